//! Mounts by users who are not root, through fusermount3.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::machine::Machine;
use crate::namespace::Namespace;
use crate::real::{
    BILAYER, Place, as_user, command, have, is_alive, need, run, run_when_free, wait_until,
};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// A command prefix for another user who owns nothing.
pub(crate) const AS_OTHER: &str = "setpriv --reuid 1 --regid 1 --clear-groups --";

/// Lets user "nobody" work in the place, and puts a copy of the program there, since other users
/// may not be able to enter the build directory.
pub(crate) fn give_to_nobody(place: &Place) {
    fs::copy(BILAYER, place.path("bilayer")).unwrap();
    for dir in ["", "home"] {
        chown(place.path(dir), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A command of that user.
pub(crate) fn as_nobody(place: &Place, words: &[&str]) -> Command {
    let mut command = as_user(NOBODY);
    command.arg(place.path("bilayer")).args(words);
    place.environment(&mut command);
    command
}

#[test]
fn a_user_mounts_through_fusermount() {
    let test = "user-mount";
    let Some(outer) = Place::new(test, Duration::from_secs(60)) else {
        return;
    };
    if !need(
        have("fusermount3"),
        test,
        "fusermount3 is missing; install fuse3",
    ) || !need(
        have("setpriv") && have("unshare"),
        test,
        "setpriv or unshare is missing; install util-linux",
    ) {
        return;
    }
    drop(outer);
    let place = Place::at(test, Duration::from_secs(60), Path::new("/var/tmp"));
    give_to_nobody(&place);
    let Some(namespace) = Namespace::new(&place, test) else {
        return;
    };
    namespace.open_fuse_device_to_users(&place);
    let within = |words: &[&str]| run_when_free(&mut namespace.inside(&as_nobody(&place, words)));
    within(&["mount", "--create", "vol", "mnt"]).done();
    let status = within(&["status", "--json", "mnt"]).done();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let pid = status["daemon"]["pid"].as_i64().expect("a daemon") as i32;
    place.take_charge(pid);

    let script = "set -e; cd mnt; echo mine > file; chmod 600 file; mkdir d; mv file d/file; \
                  ln -s d/file link; cat link; [ $(stat -c %u d) = 65534 ]";
    let mut shell = as_user(NOBODY);
    shell.args(["sh", "-c", script]);
    place.environment(&mut shell);
    assert_eq!(run(&mut namespace.inside(&shell)).done().stdout, "mine\n");
    // Only that user may enter the mount: not even root.
    let root = run(&mut namespace.inside(command("ls", ["mnt"]).current_dir(place.path(""))));
    assert_ne!(root.code, 0, "root reads a user's mount");
    // The /proc files of a process that is not dumpable belong to root: no other process of the
    // user can read its memory, its environment or its descriptors.
    let environ = format!("/proc/{pid}/environ");
    assert_eq!(fs::metadata(&environ).unwrap().uid(), 0);
    let peeked = run(as_user(NOBODY).args(["cat", &environ]));
    assert_ne!(
        peeked.code, 0,
        "a user's process reads the daemon's environment"
    );

    within(&["unmount", "mnt"]).silent();
    assert!(wait_until(Duration::from_secs(5), || !is_alive(pid)));
    within(&["mount", "vol", "mnt"]).silent();
    let status = within(&["status", "--json", "mnt"]).done();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    place.take_charge(status["daemon"]["pid"].as_i64().unwrap() as i32);
    let mut fusermount = as_user(NOBODY);
    fusermount.args(["fusermount3", "-u", "mnt"]);
    place.environment(&mut fusermount);
    run(&mut namespace.inside(&fusermount)).silent();
}

/// A line with `user`: mount(8), which is set-uid, runs the helper as the calling user, who mounts
/// through fusermount3.
#[test]
fn a_user_mounts_and_unmounts_by_fstab() {
    let test = "fstab-user";
    let Some(machine) = Machine::open_to_users(test) else {
        return;
    };
    if !need(
        have("fusermount3"),
        test,
        "fusermount3 is missing; install fuse3",
    ) {
        return;
    }
    let place = &machine.place;
    give_to_nobody(place);
    machine.namespace.open_fuse_device_to_users(place);
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    let program = machine.path("bilayer");
    let user = |words: &str| {
        machine.end_of(&format!(
            "setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups -- {words}"
        ))
    };
    let other = |words: &str| machine.end_of(&format!("{AS_OTHER} {words}"));
    user(&format!("mkdir {mnt}")).silent();
    user(&format!("{program} create {vol}")).done();
    machine.fstab(&format!(
        "{vol} {mnt} bilayer user,noauto,x-gvfs-show 0 0\n"
    ));
    let daemon = || {
        let status = user(&format!("{program} status --json {mnt}"))
            .done()
            .stdout;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let pid = status["daemon"]["pid"].as_i64().expect("a daemon") as i32;
        place.take_charge(pid);
        pid
    };
    let ways_to_unmount = [
        format!("umount {mnt}"),
        format!("fusermount3 -u {mnt}"),
        format!("{program} unmount {mnt}"),
    ];
    for unmount in &ways_to_unmount {
        user(&format!("mount {mnt}")).silent();
        let pid = daemon();
        let mounts = machine.output("cat /proc/self/mounts");
        let line = mounts.lines().find(|line| line.contains(&mnt)).unwrap();
        for word in ["nosuid", "nodev", "noexec", "user_id=65534"] {
            assert!(line.contains(word), "{line}");
        }
        user(&format!("touch {mnt}/file")).silent();
        // Only that user may enter it.
        for words in [format!("ls {mnt}"), format!("touch {mnt}/theirs")] {
            let refused = other(&words);
            assert!(
                refused.stderr.contains("Permission denied"),
                "{}",
                refused.stderr
            );
        }
        for words in &ways_to_unmount {
            assert_ne!(other(words).code, 0, "{words}");
        }
        assert_ne!(user(&format!("mount {mnt}")).code, 0);
        let remount = user(&format!("mount -o remount,ro {mnt}"));
        assert!(
            remount.stderr.contains("only root may remount"),
            "{}",
            remount.stderr
        );
        assert!(is_alive(pid));
        user(unmount).silent();
        let gone = wait_until(Duration::from_secs(10), || !is_alive(pid));
        assert!(gone, "{unmount}");
        assert!(machine.mounted().is_empty());
    }
    // For other users only if the machine permits it.
    let refused = user(&format!("{program} mount {vol} {mnt} -o allow_other"));
    assert_eq!(refused.code, 32);
    let advice = "hint: put user_allow_other into /etc/fuse.conf";
    assert!(refused.stderr.contains(advice), "{}", refused.stderr);
    // Root may unmount and remount the mounts of users.
    user(&format!("mount {mnt}")).silent();
    let pid = daemon();
    machine.run(&format!("mount -o remount,ro {mnt}"));
    let refused = user(&format!("touch {mnt}/x"));
    assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
    machine.run(&format!("mount -o remount,rw {mnt}"));
    user(&format!("touch {mnt}/x")).silent();
    machine.run(&format!("umount {mnt}"));
    assert!(!is_alive(pid));
}

/// mount(8) may pass no environment at all to a user's mount.
#[test]
fn the_keystore_of_a_user_without_environment_is_in_their_home() {
    let test = "fstab-user-home";
    let Some(machine) = Machine::open_to_users(test) else {
        return;
    };
    if !need(
        have("fusermount3"),
        test,
        "fusermount3 is missing; install fuse3",
    ) {
        return;
    }
    let place = &machine.place;
    give_to_nobody(place);
    machine.namespace.open_fuse_device_to_users(place);
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    let home = machine.path("home");
    let line = format!("nobody:x:{NOBODY}:{NOBODY}:nobody:{home}:/bin/sh\n");
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let others = users.lines().filter(|line| !line.starts_with("nobody:"));
    let users: String = others.map(|line| format!("{line}\n")).collect();
    fs::write(place.path("passwd"), users + &line).unwrap();
    machine.run("mount --bind passwd /etc/passwd");
    machine.fstab(&format!("{vol} {mnt} bilayer user,noauto 0 0\n"));
    let program = machine.path("bilayer");
    let user = |words: &str| {
        machine.end_of(&format!(
            "setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups -- \
             env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin {words}"
        ))
    };
    user(&format!("mkdir {mnt}")).silent();
    user(&format!("{program} create {vol}")).done();
    let keystore = place.path("home/.local/share/bilayer/platform");
    assert!(keystore.join("keystore.json").is_file());
    user(&format!("mount {mnt}")).silent();
    let status = user(&format!("{program} status --json {mnt}")).done();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    place.take_charge(status["daemon"]["pid"].as_i64().unwrap() as i32);
    user(&format!("umount {mnt}")).silent();
}
