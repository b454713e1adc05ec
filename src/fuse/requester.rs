//! Credentials of the calling process that a request does not carry: from `/proc/PID/status`
//! (proc_pid_status(5)), `/proc/PID/ns/user` and `/proc/PID/uid_map` (user_namespaces(7)).
//!
//! The caller waits for the reply, so its pid is not reused meanwhile. The credentials are looked
//! up at most once for a request, and only if they decide something. For a process that cannot be
//! looked up (hidden `/proc`, another pid namespace) only its ids are known: uid 0 then has all
//! capabilities.

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::MetadataExt;

use fuser::Request;

use crate::audit;
use crate::fs::privileges::Privileges;

/// Inode number of the machine's first user namespace (`PROC_USER_INIT_INO` of `linux/proc_ns.h`).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFD;
/// Numbers of `linux/capability.h`.
const CAP_FOWNER: u32 = 3;
const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// The calling process of a request, with credentials that are looked up on demand.
#[derive(Debug)]
pub(super) struct Requester {
    uid: u32,
    gid: u32,
    pid: u32,
    credentials: OnceCell<Option<Credentials>>,
}

/// Credentials of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Credentials {
    groups: Vec<u32>,
    /// Effective capabilities, one bit each.
    capabilities: u64,
    namespace: Namespace,
}

/// The user namespace of a process, which determines the scope of its capabilities.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Namespace {
    /// The machine's first one: capabilities apply to everything.
    First,
    /// Another one, which maps these users and groups of this process's namespace.
    Other { users: Map, groups: Map },
}

impl Requester {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            uid: request.uid(),
            gid: request.gid(),
            pid: request.pid(),
            credentials: OnceCell::new(),
        }
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.credentials
            .get_or_init(|| read_credentials(self.pid))
            .as_ref()
    }

    /// True if the process has the capability in the first namespace.
    fn has(&self, capability: u32) -> bool {
        match self.credentials() {
            Some(known) => known.has(capability) && known.namespace == Namespace::First,
            None => self.uid == 0,
        }
    }
}

impl Privileges for Requester {
    fn keeps_set_ids(&self) -> bool {
        self.has(CAP_FSETID)
    }

    fn is_of_group(&self, owner: u32, group: u32) -> bool {
        self.gid == group
            || match self.credentials() {
                Some(known) => {
                    known.groups.contains(&group)
                        || (known.has(CAP_FSETID) && known.namespace.maps(owner, group))
                }
                None => self.uid == 0,
            }
    }

    fn is_owner(&self, owner: u32) -> bool {
        self.uid == owner
            || match self.credentials() {
                Some(known) => known.has(CAP_FOWNER) && known.namespace.maps_user(owner),
                None => self.uid == 0,
            }
    }

    fn sees_trusted(&self) -> bool {
        self.has(CAP_SYS_ADMIN)
    }
}

/// The calling process, for the audit. A request carries the id of a thread.
pub(super) fn for_audit(request: &Request) -> audit::Requester {
    let thread = request.pid();
    let status = fs::read_to_string(format!("/proc/{thread}/status"));
    let process = status.ok().and_then(|status| process_of(&status));
    audit::Requester::process(request.uid(), process.unwrap_or(thread))
}

/// The process that the status of a thread names.
fn process_of(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// The caller of a write for which the kernel has said that set-id bits must be removed.
#[derive(Debug)]
pub(super) struct Unprivileged(pub(super) Requester);

impl Privileges for Unprivileged {
    fn keeps_set_ids(&self) -> bool {
        false
    }

    fn is_of_group(&self, owner: u32, group: u32) -> bool {
        self.0.is_of_group(owner, group)
    }

    fn is_owner(&self, owner: u32) -> bool {
        self.0.is_owner(owner)
    }

    fn sees_trusted(&self) -> bool {
        self.0.sees_trusted()
    }
}

impl Credentials {
    fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 == 1
    }
}

impl Namespace {
    fn maps_user(&self, user: u32) -> bool {
        match self {
            Self::First => true,
            Self::Other { users, .. } => users.has(user),
        }
    }

    fn maps(&self, owner: u32, group: u32) -> bool {
        match self {
            Self::First => true,
            Self::Other { users, groups } => users.has(owner) && groups.has(group),
        }
    }
}

/// The credentials of a process; `None` if they cannot be looked up.
fn read_credentials(pid: u32) -> Option<Credentials> {
    if pid == 0 {
        return None;
    }
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let status = read("status")?;
    let (groups, capabilities) = parse_status(&status)?;
    let of_process = |pid: &str| Some(fs::metadata(format!("/proc/{pid}/ns/user")).ok()?.ino());
    let ours = of_process("self");
    let theirs = of_process(&pid.to_string());
    let (users, mapped_groups) = (Map::parse(&read("uid_map")?), Map::parse(&read("gid_map")?));
    let is_first = match theirs {
        Some(number) => number == FIRST_NAMESPACE,
        // For a process of another user only the maps are accessible.
        None => ours == Some(FIRST_NAMESPACE) && users.is_all() && mapped_groups.is_all(),
    };
    let namespace = if is_first {
        Namespace::First
    } else if theirs.is_some() && theirs == ours {
        // Seen from within, a map shows ids of the parent namespace. All ids that files of this
        // mount can have are mapped.
        Namespace::Other {
            users: Map::all(),
            groups: Map::all(),
        }
    } else {
        Namespace::Other {
            users,
            groups: mapped_groups,
        }
    };
    Some(Credentials {
        groups,
        capabilities,
        namespace,
    })
}

/// Supplementary groups and effective capabilities.
fn parse_status(status: &str) -> Option<(Vec<u32>, u64)> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let words = line("Groups:")?.split_whitespace();
    let groups = words.filter_map(|word| word.parse().ok()).collect();
    let capabilities = u64::from_str_radix(line("CapEff:")?.trim(), 16).ok()?;
    Some((groups, capabilities))
}

/// Ids that a user namespace maps, as ids of this process's namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Map(Vec<IdRange>);

/// Consecutive user or group ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct IdRange {
    first: u32,
    count: u32,
}

impl Map {
    fn all() -> Self {
        Self(vec![IdRange {
            first: 0,
            count: u32::MAX,
        }])
    }

    fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Parses lines of the id in the namespace, the id in this process's namespace, and the count.
    fn parse(text: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            let _within = numbers.next()?.ok()?;
            Some(IdRange {
                first: numbers.next()?.ok()?,
                count: numbers.next()?.ok()?,
            })
        };
        Self(text.lines().filter_map(range).collect())
    }

    fn has(&self, id: u32) -> bool {
        let contains = |range: &IdRange| {
            let offset = id.checked_sub(range.first);
            offset.is_some_and(|offset| offset < range.count)
        };
        self.0.iter().any(contains)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status() {
        let status = "Name:\tx\nGroups:\t4 24 4294967294 \nCapPrm:\t0\nCapEff:\t0000000000000010\n";
        let (groups, capabilities) = parse_status(status).unwrap();
        assert_eq!(groups, [4, 24, u32::MAX - 1]);
        assert_eq!(capabilities, 1 << CAP_FSETID);
        assert_eq!(parse_status(""), None);
        assert_eq!(process_of("Name:\tx\nTgid:\t12\nPid:\t14\n"), Some(12));
        assert_eq!(
            parse_status("Groups:\t \nCapEff:\t0\n"),
            Some((Vec::new(), 0))
        );
    }

    #[test]
    fn reads_maps() {
        let map =
            Map::parse("         0       1000          1\n         1     100000      65536\n");
        let mapped = |number| map.has(number);
        assert!(mapped(1000) && mapped(100_000) && mapped(165_535));
        assert!(!mapped(0) && !mapped(1001) && !mapped(165_536) && !mapped(99_999));
        assert!(Map::parse("         0          0 4294967295\n").is_all());
        assert!(!map.is_all() && !Map::parse("").has(0));
    }

    #[test]
    fn looks_this_process_up() {
        let credentials = read_credentials(std::process::id()).unwrap();
        assert!(credentials.namespace.maps(0, 0));
        assert_eq!(read_credentials(0), None);
        let unknown = |uid| Requester {
            uid,
            gid: 7,
            pid: 0,
            credentials: OnceCell::new(),
        };
        assert!(unknown(0).keeps_set_ids() && unknown(0).is_of_group(1, 8));
        assert!(!unknown(1).keeps_set_ids() && !unknown(1).sees_trusted());
        assert!(unknown(1).is_of_group(1, 7) && !unknown(1).is_of_group(1, 8));
    }
}
