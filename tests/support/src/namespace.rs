//! A mount namespace of a test's own: the helpers in /sbin, and a FUSE device that users may open,
//! without changes to the machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, kill_process};

use crate::real::{Place, command, have, need, pid_of, run, scratch_directory};

/// A mount namespace, kept by a process that waits.
pub struct Namespace {
    holder: Child,
    root: PathBuf,
}

impl Namespace {
    /// A new one, from which no mount propagates; `None`, after a message, if that is not possible.
    pub fn new(place: &Place, test: &str) -> Option<Self> {
        if !need(
            have("unshare") && have("nsenter"),
            test,
            "unshare or nsenter is missing; install util-linux",
        ) {
            return None;
        }
        let mut unshare = command("unshare", ["--mount", "--propagation", "private", "--"]);
        unshare.args(["sh", "-c", "echo ready; exec cat"]);
        let mut holder = unshare
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = holder.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let this = Self {
            holder,
            root: place.path("").canonicalize().unwrap(),
        };
        if !need(line == "ready\n", test, "unshare --mount is refused") {
            return None;
        }
        this.leave_mounts_of_others();
        Some(this)
    }

    /// The namespace has copies of the mounts of other tests, of this run or another, which would
    /// stay here when those tests unmount them.
    fn leave_mounts_of_others(&self) {
        let tests = scratch_directory();
        let mounts = self.mounts();
        let of_tests = |(dir, kind): &&(PathBuf, String)| {
            dir.starts_with(&tests) || kind == "fuse.bilayer" || dir.starts_with("/var/tmp")
        };
        for (dir, _) in mounts.iter().rev().filter(of_tests) {
            let mut umount = command("umount", ["-i", "-l"]);
            // It may be gone already, with the filesystem in which it was mounted.
            let _ = run(&mut self.inside(umount.arg(dir)));
        }
    }

    /// The same command, inside the namespace.
    pub fn inside(&self, command: &Command) -> Command {
        let pid = self.holder.id();
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--mount=/proc/{pid}/ns/mnt"));
        if let Some(dir) = command.get_current_dir() {
            nsenter.arg(format!("--wdns={}", dir.display()));
        }
        nsenter
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => nsenter.env(name, value),
                None => nsenter.env_remove(name),
            };
        }
        nsenter
    }

    /// A path inside the namespace, as seen from outside.
    pub fn see(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(path.strip_prefix("/").unwrap())
    }

    /// True if something is mounted there inside the namespace.
    pub fn is_mount_point(&self, dir: &Path) -> bool {
        self.mounts().iter().any(|(mounted, _)| mounted == dir)
    }

    /// The mount points of this filesystem within that directory.
    pub fn mounts_in(&self, dir: &Path) -> Vec<PathBuf> {
        let dir = dir.canonicalize().unwrap();
        let ours = |(mounted, kind): (PathBuf, String)| {
            (kind == "fuse.bilayer" && mounted.starts_with(&dir)).then_some(mounted)
        };
        self.mounts().into_iter().filter_map(ours).collect()
    }

    /// Mount points and types of all filesystems.
    fn mounts(&self) -> Vec<(PathBuf, String)> {
        let mounts = fs::read(format!("/proc/{}/mountinfo", self.holder.id()));
        let mounts = String::from_utf8_lossy(&mounts.unwrap_or_default()).into_owned();
        let parse = |line: &str| {
            let (_, behind) = line.split_once(" - ")?;
            let kind = behind.split(' ').next()?.to_owned();
            Some((PathBuf::from(line.split(' ').nth(4)?), kind))
        };
        mounts.lines().filter_map(parse).collect()
    }

    /// Covers these files in /sbin.
    pub fn add_to_sbin(&self, files: &Path) {
        let sbin = fs::canonicalize("/sbin").unwrap();
        let options = format!("lowerdir={}:{}", files.display(), sbin.display());
        let mut overlay = command("mount", ["-t", "overlay", "overlay", "-o", &options]);
        run(&mut self.inside(overlay.arg(&sbin))).silent();
    }

    /// A FUSE device that users may open, as on distributions.
    pub fn open_fuse_device_to_users(&self, place: &Place) {
        let device = place.path("fuse");
        let script = "mknod -m 666 \"$0\" c 10 229 && mount --bind \"$0\" /dev/fuse";
        let mut shell = command("sh", ["-c", script]);
        run(&mut self.inside(shell.arg(&device))).silent();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let inside = self.mounts();
        let own = |(dir, _): &&(PathBuf, String)| dir.starts_with(&self.root);
        for (dir, _) in inside.iter().rev().filter(own) {
            let mut umount = command("umount", ["-i", "-l"]);
            let _ = self.inside(umount.arg(dir)).status();
        }
        let _ = kill_process(pid_of(&self.holder), Signal::KILL);
        let _ = self.holder.wait();
    }
}
