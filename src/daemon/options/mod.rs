//! The one parser of mount options: `bilayer mount -o`, the mount helpers, `/etc/fstab`, systemd.
//!
//! Words are separated by commas; `\,` and `\\` stand for a comma and a backslash within a value.
//! Of words that contradict each other the last one counts.
//!
//! | word | meaning |
//! |---|---|
//! | `ro`, `rw` | nothing is written; the default is `rw` |
//! | `allow_other`, `noallow_other` | for other users too; the default for root's mounts |
//! | `default_permissions` | always so; accepted for those who are used to it |
//! | `customer_key=URI` | the customer key, such as `file:/etc/keys/backup.pem` |
//! | `platform_keystore=DIR` | the platform keystore, where it is not in its usual place |
//! | `passphrase_file=FILE`, `passphrase_fd=N` | where the customer key's passphrase is |
//! | `fingerprint=HEX` | the volume must have this fingerprint |
//! | `commit=SECONDS` | longest time before a change is on disk without fsync |
//! | `checkpoint=SECONDS` | minimum interval between copies of the metadata; 0 for none |
//! | `workers=N` | threads for contents |
//! | `follow_caller=on\|off` | the reading thread stays on its caller's CPU |
//! | `nfs_export=on\|off` | file handles stay good when the kernel has forgotten the file |
//! | `nowriteback`, `writeback` | every write reaches the filesystem at once, or is gathered |
//! | `max_background=N` | requests of the kernel's own under way |
//! | `meta_cache=SIZE`, `pending=SIZE` | memory for metadata, and for changes not yet on disk |
//! | `open_objects=N` | files of the volume held open |
//! | `snapshot_dir=NAME\|off` | the directory of snapshots; `off`: none, nor of images |
//! | `log_file=FILE` | where the daemon writes its log, instead of the system's |
//! | `audit_log=FILE\|syslog` | where the audit goes, instead of the keystore's directory |
//! | `nodev` `dev` `nosuid` `suid` | as in mount(8); a user's mount is `nodev,nosuid` |
//! | `noexec` `exec` `noatime` `atime` `sync` `async` `dirsync` | as in mount(8) |
//! | `trusted` | `suid` and `dev` also for a volume that came from elsewhere |
//! | `relatime`, `strictatime` | when times of access change; `atime` is `relatime` |
//! | `remount` | change `ro`, `rw` and those words of a mount that is there |
//! Options of mount(8) without a meaning here are accepted: see [`IGNORED_OPTIONS`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::Destination;
use crate::diagnostics::UserError;
use crate::fs::{AccessTimes, SnapshotDir};
use crate::keys::{KeyUri, PassphraseSource};
use crate::sys::mounts::MountFlags;

/// Options that other programs act on (mount(8), systemd) or that have no effect on this
/// filesystem.
const IGNORED_OPTIONS: [&str; 27] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "_netdev",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "mand",
    "nomand",
    "default_permissions",
    "seclabel",
];
/// Prefixes of such options. The last four are the kernel's own, which mount(8) repeats when it
/// remounts.
const IGNORED_PREFIXES: [&str; 10] = [
    "x-",
    "X-",
    "comment=",
    "user=",
    "helper=",
    "uhelper=",
    "user_id=",
    "group_id=",
    "max_read=",
    "rootmode=",
];

/// The options that were requested; `None`: the default applies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RequestedOptions {
    /// `ro`, `rw`.
    pub(crate) read_only: Option<bool>,
    /// `dev`, `nodev`.
    pub(crate) dev: Option<bool>,
    /// `suid`, `nosuid`.
    pub(crate) suid: Option<bool>,
    /// `exec`, `noexec`.
    pub(crate) exec: Option<bool>,
    /// `atime`, `relatime`, `strictatime`, `noatime`.
    pub(crate) access_times: Option<AccessTimes>,
    /// `sync`, `async`.
    pub(crate) sync: Option<bool>,
    /// `dirsync`.
    pub(crate) dirsync: Option<bool>,
    /// `trusted`: a volume that came from elsewhere is mounted as if it had not.
    pub(crate) trusted: bool,
    /// `remount`.
    pub(crate) remount: bool,
    /// They come from mount(8), which leaves some out.
    pub(crate) by_mount: bool,
    /// `allow_other`, `noallow_other`.
    pub(crate) allow_other: Option<bool>,
    /// `writeback`, `nowriteback`.
    pub(crate) writeback: Option<bool>,
    /// `follow_caller=`.
    pub(crate) follow_caller: Option<bool>,
    /// `nfs_export=`.
    pub(crate) nfs_export: Option<bool>,
    /// `customer_key=`.
    pub(crate) customer_key: Option<KeyUri>,
    /// `platform_keystore=`.
    pub(crate) platform_keystore: Option<PathBuf>,
    /// `passphrase_file=`, `passphrase_fd=`.
    pub(crate) passphrase: Option<PassphraseSource>,
    /// `fingerprint=`.
    pub(crate) fingerprint: Option<String>,
    /// `commit=`.
    pub(crate) commit: Option<Duration>,
    /// `checkpoint=`; zero for never.
    pub(crate) checkpoint: Option<Duration>,
    /// `workers=`.
    pub(crate) workers: Option<usize>,
    /// `max_background=`.
    pub(crate) max_background: Option<u16>,
    /// `meta_cache=`, in bytes.
    pub(crate) meta_cache_bytes: Option<usize>,
    /// `pending=`, in bytes.
    pub(crate) pending_bytes: Option<usize>,
    /// `open_objects=`.
    pub(crate) open_objects: Option<usize>,
    /// `snapshot_dir=`.
    pub(crate) snapshot_dir: Option<SnapshotDir>,
    /// `log_file=`.
    pub(crate) log_file: Option<PathBuf>,
    /// `audit_log=`.
    pub(crate) audit_log: Option<Destination>,
}

impl RequestedOptions {
    /// Reads the arguments of `-o`, one after the other. Relative paths start at `directory`.
    ///
    /// # Errors
    /// A usage error that names the word.
    pub(crate) fn parse<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
        directory: &Path,
    ) -> Result<Self, UserError> {
        let (options, unknown_options) = Self::parse_sloppy(arguments, directory)?;
        match unknown_options.first() {
            Some(word) => Err(unknown_option(word)),
            None => Ok(options),
        }
    }

    /// Reads the arguments of `-o` and returns unknown options instead of refusing them (`mount
    /// -s`).
    ///
    /// # Errors
    /// A usage error that names a word whose value is wrong.
    pub(crate) fn parse_sloppy<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
        directory: &Path,
    ) -> Result<(Self, Vec<String>), UserError> {
        let mut options = Self::default();
        let mut unknown_options = Vec::new();
        for word in arguments.into_iter().flat_map(split) {
            if !options.parse_option(&word, directory)? {
                unknown_options.push(word);
            }
        }
        Ok((options, unknown_options))
    }

    /// Applies one option; false if it is unknown.
    fn parse_option(&mut self, word: &str, directory: &Path) -> Result<bool, UserError> {
        if word.is_empty() || self.parse_flag(word) || self.parse_access_times(word) {
            return Ok(true);
        }
        if let Some((name, value)) = word.split_once('=')
            && self.parse_value(name, value, directory)?
        {
            return Ok(true);
        }
        let mut beginnings = IGNORED_PREFIXES.iter();
        Ok(IGNORED_OPTIONS.contains(&word)
            || beginnings.any(|beginning| word.starts_with(beginning)))
    }

    fn parse_access_times(&mut self, word: &str) -> bool {
        self.access_times = Some(match word {
            "atime" | "relatime" => AccessTimes::Relative,
            "strictatime" => AccessTimes::Strict,
            "noatime" => AccessTimes::Never,
            _ => return false,
        });
        true
    }

    fn parse_flag(&mut self, word: &str) -> bool {
        let (flag, value) = match word {
            "ro" => (&mut self.read_only, true),
            "rw" => (&mut self.read_only, false),
            "dev" => (&mut self.dev, true),
            "nodev" => (&mut self.dev, false),
            "suid" => (&mut self.suid, true),
            "nosuid" => (&mut self.suid, false),
            "exec" => (&mut self.exec, true),
            "noexec" => (&mut self.exec, false),
            "sync" => (&mut self.sync, true),
            "async" => (&mut self.sync, false),
            "dirsync" => (&mut self.dirsync, true),
            "allow_other" => (&mut self.allow_other, true),
            "noallow_other" => (&mut self.allow_other, false),
            "writeback" => (&mut self.writeback, true),
            "nowriteback" => (&mut self.writeback, false),
            "remount" => {
                self.remount = true;
                return true;
            }
            "trusted" => {
                self.trusted = true;
                return true;
            }
            _ => return false,
        };
        *flag = Some(value);
        true
    }

    /// Applies one option with a value; false if the name is unknown.
    fn parse_value(&mut self, name: &str, value: &str, from: &Path) -> Result<bool, UserError> {
        match name {
            "customer_key" => self.customer_key = Some(key_uri(value, from)?),
            "platform_keystore" => self.platform_keystore = Some(path(name, value, from)?),
            "passphrase_file" => {
                self.passphrase = Some(PassphraseSource::File(path(name, value, from)?));
            }
            "passphrase_fd" => {
                let descriptor = number(name, value, 0, i32::MAX as u64)?;
                self.passphrase = Some(PassphraseSource::Descriptor(descriptor as i32));
            }
            "fingerprint" => self.fingerprint = Some(fingerprint(value)?),
            "commit" => self.commit = Some(Duration::from_secs(number(name, value, 1, 3600)?)),
            "checkpoint" => {
                let most = 365 * 24 * 3600;
                self.checkpoint = Some(Duration::from_secs(number(name, value, 0, most)?));
            }
            "workers" => self.workers = Some(number(name, value, 2, 256)? as usize),
            "max_background" => {
                self.max_background = Some(number(name, value, 1, 4096)? as u16);
            }
            "open_objects" => {
                self.open_objects = Some(number(name, value, 8, 1 << 20)? as usize);
            }
            "meta_cache" => self.meta_cache_bytes = Some(memory(name, value)?),
            "pending" => self.pending_bytes = Some(memory(name, value)?),
            "snapshot_dir" => {
                let parsed = SnapshotDir::parse(value);
                self.snapshot_dir = Some(parsed.map_err(|wanted| {
                    UserError::usage(format!("mount option {name}={value}: {wanted}"))
                        .with_hint(LISTED)
                })?);
            }
            "log_file" => self.log_file = Some(path(name, value, from)?),
            "audit_log" => self.audit_log = Some(audit_log(Path::new(value), from)?),
            "follow_caller" => self.follow_caller = Some(on_or_off(name, value)?),
            "nfs_export" => self.nfs_export = Some(on_or_off(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What mount(8) means by words that it leaves out: it hands on none that asks for what is its
    /// own default (`suid`, `dev`, `exec`, `async`), not even when it remounts.
    #[must_use]
    pub(crate) fn with_defaults_of_mount(self) -> Self {
        Self {
            read_only: self.read_only.or(Some(false)),
            dev: self.dev.or(Some(true)),
            suid: self.suid.or(Some(true)),
            exec: self.exec.or(Some(true)),
            sync: self.sync.or(Some(false)),
            dirsync: self.dirsync.or(Some(false)),
            by_mount: true,
            ..self
        }
    }

    /// Flags of a new mount. Root's begins like that of any disk: mount(8) keeps the words `suid`
    /// and `dev` to itself, so that their absence cannot mean the opposite.
    pub(crate) fn flags(&self, by_root: bool) -> MountFlags {
        self.flags_over(MountFlags {
            nodev: !by_root,
            nosuid: !by_root,
            ..MountFlags::default()
        })
    }

    /// What is wanted, without set-id programs and devices unless they are asked for: flags for a
    /// volume that others have filled. mount(8) hands on neither `suid` nor `dev`, which is why
    /// there is `trusted`.
    #[must_use]
    pub(super) fn restricted(&self, wanted: MountFlags) -> MountFlags {
        let asked = |word: Option<bool>| self.trusted || (!self.by_mount && word == Some(true));
        MountFlags {
            nosuid: wanted.nosuid || !asked(self.suid),
            nodev: wanted.nodev || !asked(self.dev),
            ..wanted
        }
    }

    /// Flags of a mount that has these now.
    pub(super) fn flags_over(&self, now: MountFlags) -> MountFlags {
        MountFlags {
            read_only: self.read_only.unwrap_or(now.read_only),
            nodev: self.dev.map_or(now.nodev, |dev| !dev),
            nosuid: self.suid.map_or(now.nosuid, |suid| !suid),
            noexec: self.exec.map_or(now.noexec, |exec| !exec),
            noatime: match self.access_times {
                Some(times) => times == AccessTimes::Never,
                // Of a mount that has it now, mount(8) would say so.
                None => now.noatime && !self.by_mount,
            },
            strictatime: match self.access_times {
                Some(times) => times == AccessTimes::Strict,
                None => now.strictatime,
            },
            sync: self.sync.unwrap_or(now.sync),
            dirsync: self.dirsync.unwrap_or(now.dirsync),
        }
    }
}

const LISTED: &str = "bilayer mount --help lists the options";

/// Names the option and not its value: it may be a secret that has no place on a command line, and
/// what is said here may end in a log.
fn unknown_option(word: &str) -> UserError {
    let name = match word.split_once('=') {
        Some((name, _)) => format!("{name}=..."),
        None => word.to_owned(),
    };
    UserError::usage(format!("unknown mount option {name:?}")).with_hint(LISTED)
}

fn bad_value(name: &str, value: &str, wanted: &str) -> UserError {
    UserError::usage(format!("mount option {name}={value}: {wanted} is wanted")).with_hint(LISTED)
}

/// Splits at commas, `\,` and `\\` taken for themselves. A backslash before anything else stays.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = characters
            .peek()
            .copied()
            .filter(|next| matches!(next, ',' | '\\'));
        match (character, escaped, words.last_mut()) {
            (',', ..) => words.push(String::new()),
            ('\\', Some(next), Some(word)) => {
                word.push(next);
                characters.next();
            }
            (plain, _, Some(word)) => word.push(plain),
            (_, _, None) => {}
        }
    }
    words
}

/// A customer key as it is named on a command line.
///
/// # Errors
/// The URI is malformed or of an unknown kind.
pub(crate) fn key_uri(value: &str, directory: &Path) -> Result<KeyUri, UserError> {
    KeyUri::parse_at(value, directory)
        .map_err(|error| UserError::key(format_args!("customer key {value}"), &error))
}

/// Where the audit is to go, as it is named on a command line.
///
/// # Errors
/// The path is empty.
pub(crate) fn audit_log(value: &Path, directory: &Path) -> Result<Destination, UserError> {
    match value.to_str() {
        Some("") => Err(bad_value("audit_log", "", "a path, or syslog,")),
        Some("syslog") => Ok(Destination::SystemLog),
        _ => Ok(Destination::File(directory.join(value))),
    }
}

fn path(name: &str, value: &str, directory: &Path) -> Result<PathBuf, UserError> {
    if value.is_empty() {
        return Err(bad_value(name, value, "a path"));
    }
    Ok(directory.join(value))
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, UserError> {
    let parsed = value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number));
    parsed.ok_or_else(|| bad_value(name, value, &format!("a number from {least} to {most}")))
}

fn on_or_off(name: &str, value: &str) -> Result<bool, UserError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(bad_value(name, value, "on or off")),
    }
}

fn memory(name: &str, value: &str) -> Result<usize, UserError> {
    const LEAST: u64 = 1 << 20;
    crate::daemon::size::parse_size(value)
        .ok()
        .filter(|bytes| *bytes >= LEAST)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| bad_value(name, value, "a size from 1M to less than 8E"))
}

/// Takes hex digits, grouped by `:` or `-` as people copy them.
fn fingerprint(value: &str) -> Result<String, UserError> {
    let digits = value.chars().filter(char::is_ascii_hexdigit).count();
    let plain = value
        .chars()
        .all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '-'));
    if plain && digits >= 16 {
        Ok(value.to_owned())
    } else {
        Err(bad_value(
            "fingerprint",
            value,
            "the hexadecimal digits that `bilayer status` shows",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequestedOptions, UserError> {
        RequestedOptions::parse([text], Path::new("/here"))
    }

    #[test]
    fn flags_and_values() {
        let options = parse(
            "rw,ro,noallow_other,allow_other,customer_key=file:k.pem,platform_keystore=/p\\,q,\
             passphrase_file=pass,fingerprint=00112233-44556677,workers=3,commit=5,\
             nowriteback,checkpoint=0,follow_caller=off,nfs_export=on,max_background=8,\
             meta_cache=64M,pending=1GiB,open_objects=100,\
             log_file=/var/log/b,audit_log=a,snapshot_dir=.zeitpunkte,,",
        )
        .unwrap();
        let expected = RequestedOptions {
            read_only: Some(true),
            allow_other: Some(true),
            customer_key: Some(KeyUri::parse("file:/here/k.pem").unwrap()),
            platform_keystore: Some("/p,q".into()),
            passphrase: Some(PassphraseSource::File("/here/pass".into())),
            fingerprint: Some("00112233-44556677".to_owned()),
            workers: Some(3),
            commit: Some(Duration::from_secs(5)),
            checkpoint: Some(Duration::ZERO),
            writeback: Some(false),
            follow_caller: Some(false),
            nfs_export: Some(true),
            max_background: Some(8),
            meta_cache_bytes: Some(64 << 20),
            pending_bytes: Some(1 << 30),
            open_objects: Some(100),
            log_file: Some("/var/log/b".into()),
            audit_log: Some(Destination::File("/here/a".into())),
            snapshot_dir: Some(SnapshotDir::Named(".zeitpunkte".to_owned())),
            ..RequestedOptions::default()
        };
        assert_eq!(options, expected);
        let descriptor = parse("passphrase_fd=7").unwrap().passphrase;
        assert_eq!(descriptor, Some(PassphraseSource::Descriptor(7)));
    }

    #[test]
    fn options_without_meaning_here_are_accepted() {
        for word in IGNORED_OPTIONS {
            assert_eq!(parse(word).unwrap(), RequestedOptions::default(), "{word}");
        }
        let text = "x-systemd.automount,x-gvfs-show,comment=my \
             disk,user=me,uhelper=fuse,X-mount.mkdir,user_id=0,group_id=0";
        assert_eq!(parse(text).unwrap(), RequestedOptions::default());
        assert_eq!(parse("").unwrap(), RequestedOptions::default());
    }

    #[test]
    fn sloppy_parsing_returns_unknown_options() {
        let (options, unknown) =
            RequestedOptions::parse_sloppy(["ro,errors=remount-ro", "quota"], Path::new("/"))
                .unwrap();
        assert_eq!(options.read_only, Some(true));
        assert_eq!(unknown, ["errors=remount-ro", "quota"]);
        assert!(RequestedOptions::parse_sloppy(["workers=none"], Path::new("/")).is_err());
    }

    #[test]
    fn wrong_options_are_named() {
        for word in [
            "readonly",
            "Ro",
            "customer_key",
            "customer_key=",
            "customer_key=https://x/k",
            "platform_keystore=",
            "passphrase=secret",
            "passphrase_fd=-1",
            "passphrase_fd=x",
            "fingerprint=xyz",
            "fingerprint=1234",
            "workers=0",
            "workers=1",
            "workers=",
            "commit=0",
            "commit=9999",
            "commit=1.5",
            "checkpoint=-1",
            "checkpoint=often",
            "follow_caller=maybe",
            "nfs_export=1",
            "max_background=0",
            "meta_cache=4K",
            "meta_cache=big",
            "open_objects=1",
            "snapshot_dir=",
            "snapshot_dir=.",
            "snapshot_dir=..",
            "snapshot_dir=a/b",
            "snapshot_dir=.images",
            "exec=1",
            "rw=1",
            "blah=",
        ] {
            let error = parse(&format!("rw,{word},noexec")).unwrap_err();
            assert_eq!(error.code, crate::diagnostics::ExitCode::Usage, "{word}");
            let name = word.split('=').next().unwrap();
            assert!(
                error.message.contains(name) || error.message.contains("customer key"),
                "{word}: {}",
                error.message
            );
        }
    }

    #[test]
    fn flags() {
        let theirs = MountFlags {
            nodev: true,
            nosuid: true,
            ..MountFlags::default()
        };
        assert_eq!(parse("").unwrap().flags(false), theirs);
        assert_eq!(parse("").unwrap().flags(true), MountFlags::default());
        assert_eq!(parse("nodev,nosuid").unwrap().flags(true), theirs);
        let flags = parse("dev,suid,noexec,noatime,sync,dirsync,ro")
            .unwrap()
            .flags(false);
        let all = MountFlags {
            read_only: true,
            nodev: false,
            nosuid: false,
            noexec: true,
            noatime: true,
            strictatime: false,
            sync: true,
            dirsync: true,
        };
        assert_eq!(flags, all);
        let restricted = |text: &str| {
            let options = parse(text).unwrap();
            options.restricted(options.flags(true))
        };
        assert_eq!(restricted(""), theirs);
        assert_eq!(restricted("suid,dev"), MountFlags::default());
        assert_eq!(restricted("trusted"), MountFlags::default());
        let nodev = MountFlags {
            nodev: true,
            ..MountFlags::default()
        };
        assert_eq!(restricted("suid"), nodev);
        assert_eq!(restricted("trusted,nodev"), nodev);
        let theirs_by_mount = parse("").unwrap().with_defaults_of_mount();
        assert_eq!(
            theirs_by_mount.restricted(theirs_by_mount.flags(true)),
            theirs
        );
        let by_mount = parse("trusted").unwrap().with_defaults_of_mount();
        assert_eq!(
            by_mount.restricted(by_mount.flags(true)),
            MountFlags::default()
        );
        let by_mount = parse("nosuid").unwrap().with_defaults_of_mount();
        let nosuid = MountFlags {
            nosuid: true,
            ..MountFlags::default()
        };
        assert_eq!(by_mount.flags(true), nosuid);
        assert_eq!(by_mount.flags_over(all), nosuid);
        let remount = parse("remount,rw,exec").unwrap();
        assert!(remount.remount);
        let after = remount.flags_over(all);
        assert_eq!(
            after,
            MountFlags {
                read_only: false,
                noexec: false,
                ..all
            }
        );
    }

    #[test]
    fn escapes() {
        assert_eq!(split("a\\,b,c\\\\,d\\e"), ["a,b", "c\\", "d\\e"]);
        assert_eq!(split(""), [""]);
        assert_eq!(split("\\"), ["\\"]);
    }
}
