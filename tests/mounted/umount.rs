//! umount(8) of a mount that is busy, bound, moved, hidden or does not answer.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use crate::machine::Machine;
use crate::real::{BILAYER, command, is_alive, noise, run, wait_until};

const TEST: &str = "umount";

fn machine() -> Option<Machine> {
    let machine = Machine::new(TEST)?;
    machine.place.run("create vol").done();
    for dir in ["mnt", "other", "moved"] {
        machine.place.dir(dir);
    }
    Some(machine)
}

fn gone(daemon: i32) -> bool {
    wait_until(Duration::from_secs(20), || !is_alive(daemon))
}

#[test]
fn a_busy_mount_stays_until_it_is_detached() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let held = fs::File::create(machine.see("mnt/held")).unwrap();
    for words in ["umount mnt", "umount -f mnt", "umount vol"] {
        machine.refused(
            words,
            32,
            "it is in use\nhint: see who uses it: fuser -vm /",
        );
    }
    assert!(is_alive(daemon));
    fs::write(machine.see("mnt/usable"), noise(1, 500_000)).unwrap();
    assert!(fs::read(machine.see("mnt/usable")).unwrap() == noise(1, 500_000));
    machine.run("umount -l mnt");
    assert!(machine.mounted().is_empty());
    held.write_all_at(b"to the last", 0).unwrap();
    drop(held);
    assert!(gone(daemon), "the daemon outlives the last user");
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    assert_eq!(fs::read(machine.see("mnt/held")).unwrap(), b"to the last");

    // Or it becomes read-only instead.
    let reader = fs::File::open(machine.see("mnt/held")).unwrap();
    machine.run("umount -r mnt");
    assert!(fs::write(machine.see("mnt/held"), "x").is_err());
    drop(reader);
    machine.run("umount mnt");
}

/// umount(8) handles an absolute path differently.
#[test]
fn a_mount_is_found_by_every_kind_of_path() {
    let Some(machine) = machine() else {
        return;
    };
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    std::os::unix::fs::symlink(&mnt, machine.place.path("link")).unwrap();
    let link = machine.path("link");
    for (round, path) in [
        "mnt",
        &mnt,
        &format!("{mnt}/"),
        "link",
        &link,
        "vol",
        "-c mnt",
    ]
    .into_iter()
    .enumerate()
    {
        for mount in [
            "mount -t bilayer vol mnt",
            &format!("{BILAYER} mount vol mnt"),
        ] {
            machine.run(mount);
            let daemon = machine.daemon();
            // Much dirty data, so that it takes a while.
            fs::write(machine.see("mnt/file"), noise(round as u64, 10_000_000)).unwrap();
            machine.run(&format!("umount {path}"));
            assert!(!is_alive(daemon), "umount {path} came back too early");
            let status = machine.place.status(&machine.place.path("vol"));
            assert_eq!(status["record"]["clean"], true);
        }
    }
    let utab = fs::read_to_string(machine.namespace.see("/run/mount/utab".as_ref()));
    assert!(
        !utab.unwrap_or_default().contains(&vol),
        "a line of utab is left"
    );
}

#[test]
fn a_bound_or_moved_mount_ends_with_its_last_mount_point() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt -o commit=3600");
    let daemon = machine.daemon();
    fs::write(machine.see("mnt/file"), noise(1, 3_000_000)).unwrap();
    machine.run("mount --bind mnt other");
    machine.run("mount -o remount,bind,ro other");
    assert!(fs::write(machine.see("other/new"), "x").is_err());
    fs::write(machine.see("mnt/new"), "x").unwrap();
    machine.run("umount mnt");
    assert!(is_alive(daemon));
    // Everything is on disk anyway.
    let copy = machine.place.path("copy");
    run(command("cp", ["-a"])
        .arg(machine.place.path("vol"))
        .arg(&copy))
    .silent();
    let copied = machine.place.mount("copy", "seen", "ro");
    assert!(fs::read(copied.path("file")).unwrap() == noise(1, 3_000_000));
    copied.unmount();

    machine.run("mount --move other moved");
    assert!(fs::read(machine.see("moved/file")).unwrap() == noise(1, 3_000_000));
    machine.run("umount moved");
    assert!(!is_alive(daemon));

    // A signal unmounts it at its new path.
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    machine.run("mount --move mnt moved");
    machine.run(&format!("kill -TERM {daemon}"));
    assert!(gone(daemon));
    assert!(machine.mounted().is_empty());
}

#[test]
fn shared_mounts_appear_and_disappear_in_both_places() {
    let Some(machine) = machine() else {
        return;
    };
    for dir in ["top", "peer", "top/mnt"] {
        machine.place.dir(dir);
    }
    machine.run("mount --bind top top");
    machine.run("mount --make-shared top");
    machine.run("mount --bind top peer");
    machine.run("mount -t bilayer vol top/mnt");
    let daemon = machine.daemon_of("top/mnt");
    fs::write(machine.see("top/mnt/file"), "x").unwrap();
    assert_eq!(fs::read(machine.see("peer/mnt/file")).unwrap(), b"x");
    assert_eq!(machine.mounted().len(), 2);
    machine.run("umount peer/mnt");
    assert!(machine.mounted().is_empty() && !is_alive(daemon));
    machine.run("umount peer");
    machine.run("umount top");
}

/// A container, or a service with a mount namespace of its own, that was started while it was
/// mounted.
#[test]
fn another_namespace_does_not_block_unmount() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt -o commit=3600");
    let daemon = machine.daemon();
    fs::write(machine.see("mnt/file"), noise(1, 3_000_000)).unwrap();
    let script = "echo ready; cat";
    let mut container = machine.command("unshare --mount --propagation private -- sh -c");
    let mut container = container
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(container.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let outcome = machine.end_of("umount mnt").done();
    assert!(
        outcome.stderr.contains("another mount namespace"),
        "{}",
        outcome.stderr
    );
    assert!(is_alive(daemon) && machine.mounted().is_empty());
    let copy = machine.place.path("copy");
    run(command("cp", ["-a"])
        .arg(machine.place.path("vol"))
        .arg(&copy))
    .silent();
    let copied = machine.place.mount("copy", "seen", "ro");
    assert!(fs::read(copied.path("file")).unwrap() == noise(1, 3_000_000));
    copied.unmount();
    drop(container.stdin.take());
    container.wait().unwrap();
    assert!(gone(daemon), "the daemon outlives the last namespace");
    let status = machine.place.status(&machine.place.path("vol"));
    assert_eq!(status["record"]["clean"], true);
}

#[test]
fn force_unmounts_a_silent_mount() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    machine.run("touch mnt/file");
    machine.run("sync -f mnt/file");
    machine.run(&format!("kill -STOP {daemon}"));
    let forced = machine.end_of("umount -f mnt");
    machine.run(&format!("kill -CONT {daemon}"));
    assert!(
        forced
            .done()
            .stderr
            .starts_with("bilayer: waiting for a daemon"),
    );
    assert!(gone(daemon) && machine.mounted().is_empty());
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    machine.run("umount -n -f mnt");
}
