//! Mounts by users who are not root, through fusermount3.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::real::{BILAYER, Place, command, have, is_alive, need, run, run_when_free, wait_until};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Lets nobody work in the place, and puts a copy of the program there, since where it was built
/// need not be open to others.
pub(crate) fn give_to_nobody(place: &Place) {
    fs::copy(BILAYER, place.path("bilayer")).unwrap();
    for dir in ["", "home"] {
        chown(place.path(dir), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A command of that user.
pub(crate) fn as_nobody(place: &Place, words: &[&str]) -> Command {
    let id = NOBODY.to_string();
    let mut as_user = command(
        "setpriv",
        ["--reuid", &id, "--regid", &id, "--clear-groups", "--"],
    );
    as_user.arg(place.path("bilayer")).args(words);
    place.environment(&mut as_user);
    as_user
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
    within(&["mount", "--create", "vol", "mnt"]).silent();
    let status = within(&["status", "--json", "mnt"]).done();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let pid = status["daemon"]["pid"].as_i64().expect("a daemon") as i32;
    place.take_charge(pid);

    let script = "set -e; cd mnt; echo mine > file; chmod 600 file; mkdir d; mv file d/file; \
                  ln -s d/file link; cat link; [ $(stat -c %u d) = 65534 ]";
    let mut shell = as_nobody(&place, &[]);
    shell = {
        let mut plain = command(
            "setpriv",
            [
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
                script,
            ],
        );
        place.environment(&mut plain);
        drop(shell);
        plain
    };
    assert_eq!(run(&mut namespace.inside(&shell)).done().stdout, "mine\n");
    // The mount is that user's alone: not even root looks in.
    let root = run(&mut namespace.inside(command("ls", ["mnt"]).current_dir(place.path(""))));
    assert_ne!(root.code, 0, "root reads a user's mount");
    // What is not dumpable belongs to root in /proc: no other process of the user's reads its
    // memory, its environment or its descriptors.
    assert_eq!(
        fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(),
        0
    );
    let mut peek = command(
        "setpriv",
        ["--reuid=65534", "--regid=65534", "--clear-groups", "cat"],
    );
    let peeked = run(peek.arg(format!("/proc/{pid}/environ")));
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
    let mut fusermount = command(
        "setpriv",
        [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "fusermount3",
            "-u",
            "mnt",
        ],
    );
    place.environment(&mut fusermount);
    run(&mut namespace.inside(&fusermount)).silent();
}
