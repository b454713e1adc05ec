//! An ordinary user who impersonates the daemon: `impostor.py`, run on a machine of a test's own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::machine::Machine;
use crate::real::{BILAYER, Outcome, have, need, run_within};

/// The attacker, a user that every machine has.
pub(crate) const ATTACKER: u32 = 3;
/// Another user who is not root.
pub(crate) const VICTIM: u32 = 2;

/// An interpreter that every user may run.
const PYTHON: &str = "/usr/bin/python3";

/// Longer than any of the commands takes.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// A machine on which users mount, with a `/tmp` of its own.
pub(crate) fn machine(test: &'static str) -> Option<Machine> {
    let machine = Machine::open_to_users(test)?;
    let is_possible = have("fusermount3") && have("setpriv") && Path::new(PYTHON).exists();
    if !need(is_possible, test, "fuse3, util-linux or python3 is missing") {
        return None;
    }
    machine.namespace.open_fuse_device_to_users(&machine.place);
    machine.run("mount -t tmpfs -o mode=1777 tmpfs /tmp");
    let conf = machine.place.path("fuse.conf");
    fs::write(&conf, "user_allow_other\n").unwrap();
    if !need(
        Path::new("/etc/fuse.conf").exists(),
        test,
        "there is no /etc/fuse.conf",
    ) {
        return None;
    }
    machine.run("mount --bind fuse.conf /etc/fuse.conf");
    // Other users may not be able to enter the build directory.
    let program = machine.place.path("bilayer");
    fs::copy(BILAYER, &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    Some(machine)
}

/// A directory that belongs to a user.
pub(crate) fn dir_of(machine: &Machine, name: &str, user: u32) -> PathBuf {
    let dir = machine.place.dir(name);
    chown(&dir, Some(user), Some(user)).unwrap();
    dir
}

/// A command that runs as a user.
pub(crate) fn as_user(machine: &Machine, user: u32, words: &str) -> Command {
    let words = words.replace("bilayer ", &format!("{} ", machine.path("bilayer")));
    machine.command(&format!(
        "setpriv --reuid {user} --regid {user} --clear-groups -- {words}"
    ))
}

/// Runs `bilayer` as root, to its end.
#[track_caller]
pub(crate) fn bilayer(machine: &Machine, words: &str) -> Outcome {
    run_within(&mut machine.command(&format!("{BILAYER} {words}")), LIMIT)
}

/// The attacker's process.
pub(crate) struct Impostor {
    child: Child,
    log: PathBuf,
}

impl Impostor {
    /// Impersonates the daemon of that volume, with a mount whose source is `source`, unless that
    /// is empty.
    #[track_caller]
    pub(crate) fn start(machine: &Machine, source: &str, volume: &str, proof: &str) -> Self {
        let own = dir_of(machine, &format!("own-{proof}"), ATTACKER);
        let dir = dir_of(machine, &format!("bait-{proof}"), ATTACKER);
        let log = own.join("log");
        fs::write(&log, b"").unwrap();
        chown(&log, Some(ATTACKER), Some(ATTACKER)).unwrap();
        let script = machine.place.path("impostor.py");
        fs::write(&script, include_str!("impostor.py")).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o644)).unwrap();
        let mut command = as_user(machine, ATTACKER, PYTHON);
        command.arg(&script).arg(dir).arg(source);
        command.arg(machine.path(volume)).arg(proof).arg(&own);
        let mut child = command
            .arg(&log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the impostor could not begin");
        Self { child, log }
    }

    /// The requests that it got, except those for proof.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        let lines = log.lines().filter(|line| *line != "prove");
        lines.map(str::to_owned).collect()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
