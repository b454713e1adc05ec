//! A control group of a test's own: a memory limit for the daemon.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::real::{Mounted, Place, run, wait_until};

/// The group; removed on drop.
pub(crate) struct Cgroup {
    dir: PathBuf,
    /// File with the limit.
    limit: &'static str,
}

impl Cgroup {
    /// A group with a limit in bytes; `None`, after a message, if there can be none. Not every
    /// machine that runs tests permits groups, so this is never a failure.
    pub(crate) fn new(test: &str, limit_bytes: u64) -> Option<Self> {
        let made = Self::make(test, limit_bytes);
        if made.is_none() {
            // Not by a macro: the test harness would capture it.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {test}: no control group with a limit of memory can be made here"
            );
        }
        made
    }

    fn make(test: &str, limit_bytes: u64) -> Option<Self> {
        let (parent, limit) = parent()?;
        let dir = parent.join(format!("bilayer-{test}-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let group = Self { dir, limit };
        group.set_limit(limit_bytes).ok()?;
        Some(group)
    }

    /// Changes the limit.
    pub(crate) fn set_limit(&self, bytes: u64) -> std::io::Result<()> {
        fs::write(self.dir.join(self.limit), bytes.to_string())
    }

    /// Mounts a volume; its daemon is in the group from its first instruction on.
    #[track_caller]
    pub(crate) fn mount<'a>(&self, place: &'a Place, volume: &str, options: &str) -> Mounted<'a> {
        place.dir("mnt");
        let mut command = Command::new("sh");
        let enter = "echo $$ > \"$1\" && shift && exec \"$@\"";
        command.args(["-c", enter, "sh"]);
        command.arg(self.dir.join("cgroup.procs"));
        command.args([
            &*crate::real::BILAYER,
            "mount",
            volume,
            "mnt",
            "-o",
            options,
        ]);
        place.environment(&mut command);
        run(&mut command).done();
        place.mounted(&place.path("mnt"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was in the group may take a moment to end.
        wait_until(Duration::from_secs(10), || {
            fs::remove_dir(&self.dir).is_ok()
        });
    }
}

/// The directory in which a group may be created, and the name of the file with its limit: version
/// 1 of control groups, else version 2.
fn parent() -> Option<(PathBuf, &'static str)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = |controller: &str| {
        let line = groups.lines().find(|line| {
            let mut fields = line.split(':');
            let named = fields.nth(1);
            named.is_some_and(|names| names.split(',').any(|name| name == controller))
        });
        line?.splitn(3, ':').nth(2).map(str::to_owned)
    };
    let below = |root: &str, path: &str| Path::new(root).join(path.trim_start_matches('/'));
    if let Some(path) = own("memory") {
        let dir = below("/sys/fs/cgroup/memory", &path);
        return dir.is_dir().then_some((dir, "memory.limit_in_bytes"));
    }
    let dir = below("/sys/fs/cgroup", &own("")?);
    let delegated = fs::read_to_string(dir.join("cgroup.subtree_control")).ok()?;
    delegated
        .split_whitespace()
        .any(|name| name == "memory")
        .then_some((dir, "memory.max"))
}
