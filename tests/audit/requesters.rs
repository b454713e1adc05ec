//! A record names the requester, not the process that performed the action.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::real::{Mounted, Place, as_user, can_switch_users, command, have, need, run};
use crate::{LIMIT, clear_records, of_action};

/// Owner of the root directory, and a user who owns nothing.
const OWNER: u32 = 65_534;
const STRANGER: u32 = 1;

/// Runs a command to its end. Returns its process id.
fn pid_of_run(command: &mut Command) -> u32 {
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

/// Runs a command as another user in the mount, which that user could not enter by its path.
/// Returns the process id.
fn run_as(mounted: &Mounted<'_>, user: u32, words: &[&str]) -> u32 {
    pid_of_run(as_user(user).args(words).current_dir(mounted.dir()))
}

/// The only record of that action.
#[track_caller]
fn only(place: &Place, action: &str) -> Value {
    let mut recorded = of_action(place, action);
    assert_eq!(recorded.len(), 1, "{action}: {recorded:#?}");
    recorded.remove(0)
}

#[track_caller]
fn asked(record: &Value, uid: u32, pid: u32) {
    assert_eq!(
        (&record["uid"], &record["pid"]),
        (&uid.into(), &pid.into()),
        "{record}"
    );
}

#[test]
fn an_ordinary_user_in_the_mount() {
    let test = "audit-user";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !can_switch_users(test) {
        return;
    }
    let mounted = place.fresh("", "");
    chown(mounted.dir(), Some(OWNER), Some(OWNER)).unwrap();
    for (action, words) in [
        ("create-snapshot", &["mkdir", ".snapshots/x"][..]),
        ("rename-snapshot", &["mv", ".snapshots/x", ".snapshots/y"]),
        ("delete-snapshot", &["rmdir", ".snapshots/y"]),
        ("create-image", &["mkdir", ".images/x"]),
    ] {
        clear_records(&place);
        let pid = run_as(&mounted, OWNER, words);
        let record = only(&place, action);
        assert_eq!(record["outcome"], "done", "{record}");
        assert_eq!(record["mount_point"], mounted.dir().to_str().unwrap());
        asked(&record, OWNER, pid);
    }
    mounted.unmount();
}

/// A thread sends the request, and the record names its process.
#[test]
fn a_thread_of_this_process() {
    let Some(place) = Place::new("audit-thread", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    clear_records(&place);
    let path = mounted.path(".snapshots/x");
    std::thread::spawn(|| fs::create_dir(path).unwrap())
        .join()
        .unwrap();
    asked(&only(&place, "create-snapshot"), 0, std::process::id());
    mounted.unmount();
}

#[test]
fn commands_that_a_daemon_serves() {
    let Some(place) = Place::new("audit-commands", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    clear_records(&place);
    let command = |words: &[&str]| pid_of_run(place.bilayer(words).stdout(Stdio::null()));
    let pid = command(&["snapshot", "create", "mnt", "x"]);
    asked(&only(&place, "create-snapshot"), 0, pid);
    command(&["image", "create", "mnt", "base"]);
    let pid = command(&["image", "deploy", "mnt", "base", "new"]);
    let record = only(&place, "deploy-image");
    asked(&record, 0, pid);
    assert_eq!(record["path"], place.path("new").to_str().unwrap());
    // Actions that are part of the request have the same requester, although a thread of their own
    // performs them.
    let wraps = of_action(&place, "wrap");
    assert!(!wraps.is_empty());
    wraps.iter().for_each(|wrap| asked(wrap, 0, pid));
    clear_records(&place);
    let pid = command(&["unmount", "mnt"]);
    asked(&only(&place, "unmount"), 0, pid);
    // The record of a mount names the command, and not the daemon.
    clear_records(&place);
    let pid = command(&["mount", "vol", "mnt"]);
    let record = only(&place, "mount");
    asked(&record, 0, pid);
    let mounted_again = place.mounted(mounted.dir());
    assert_ne!(record["pid"], mounted_again.pid);
    // A requester that does not wait is recorded too.
    clear_records(&place);
    let pid = command(&["unmount", "--lazy", "mnt"]);
    let is_recorded = || !of_action(&place, "unmount").is_empty();
    assert!(crate::real::wait_until(LIMIT, is_recorded));
    asked(&only(&place, "unmount"), 0, pid);
    let is_gone = || !crate::real::is_alive(mounted_again.pid);
    assert!(crate::real::wait_until(LIMIT, is_gone));
    drop(mounted_again);
    command(&["mount", "vol", "mnt"]);
    let mounted_again = place.mounted(mounted.dir());
    // umount(8) itself does not announce its user.
    clear_records(&place);
    run(command_of("umount", "-i").arg(mounted_again.dir())).silent();
    assert!(crate::real::wait_until(LIMIT, || !of_action(
        &place, "unmount"
    )
    .is_empty()));
    let record = only(&place, "unmount");
    assert!(
        record["uid"].is_null() && record["pid"].is_null(),
        "{record}"
    );
}

fn command_of(program: &str, word: &str) -> Command {
    command(program, [word])
}

#[test]
fn the_caller_of_sudo_is_recorded() {
    let Some(place) = Place::new("audit-sudo", LIMIT) else {
        return;
    };
    run(place.bilayer(["create", "vol"]).env("SUDO_UID", "1234")).done();
    let record = only(&place, "create-volume");
    assert_eq!(
        (&record["uid"], &record["sudo_uid"]),
        (&0.into(), &1234.into())
    );
}

#[test]
fn the_shutdown_ioctl() {
    let test = "audit-shutdown";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !need(have("python3"), test, "python3 is missing") {
        return;
    }
    let mounted = place.fresh("", "");
    clear_records(&place);
    // From inside it is another user: that one may not be able to run the interpreter.
    let program = "import fcntl, os, sys; root = os.open('.', 0); os.setuid(int(sys.argv[1])); \
                   fcntl.ioctl(root, 0x8004587d, bytes(4))";
    let shut_down = |user: u32| {
        let mut python = command("python3", ["-c", program, &user.to_string()]);
        pid_of_run(python.current_dir(mounted.dir()))
    };
    let recorded = || of_action(&place, "shut-down");
    let pid = shut_down(STRANGER);
    assert!(crate::real::wait_until(LIMIT, || recorded().len() == 1));
    assert_eq!(recorded()[0]["outcome"], "refused");
    asked(&recorded()[0], STRANGER, pid);
    let pid = shut_down(0);
    assert!(crate::real::wait_until(LIMIT, || recorded().len() == 2));
    assert_eq!(recorded()[1]["outcome"], "done");
    asked(&recorded()[1], 0, pid);
}
