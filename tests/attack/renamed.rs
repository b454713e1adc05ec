//! No attacker, only names: volumes and directories above them are renamed, replaced, bound and
//! mounted over while they are mounted. Every command reaches the intended volume, or is refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::machine::Machine;
use crate::real::{
    BILAYER, Outcome, Place, command, have, is_alive, need, noise, run, run_within, wait_until,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A machine with these directories.
fn machine(test: &'static str, dirs: &[&str]) -> Option<Machine> {
    let machine = Machine::new(test)?;
    for dir in dirs {
        machine.place.dir(dir);
    }
    Some(machine)
}

#[track_caller]
fn bilayer(machine: &Machine, words: &str) -> Outcome {
    run_within(&mut machine.command(&format!("{BILAYER} {words}")), LIMIT)
}

#[track_caller]
fn snapshots(machine: &Machine, path: &str) -> Vec<String> {
    let outcome = bilayer(machine, &format!("snapshot list --json {path}")).done();
    let views: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let name = |view: &Value| view["name"].as_str().unwrap().to_owned();
    views.iter().map(name).collect()
}

#[track_caller]
fn status(machine: &Machine, path: &str) -> Value {
    let outcome = bilayer(machine, &format!("status --json {path}")).done();
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn rename(machine: &Machine, from: &str, to: &str) {
    fs::rename(machine.place.path(from), machine.place.path(to)).unwrap();
}

fn read(machine: &Machine, path: &str) -> String {
    fs::read_to_string(machine.see(path)).unwrap()
}

fn write(machine: &Machine, path: &str, text: &str) {
    fs::write(machine.see(path), text).unwrap();
}

/// Two volumes: the second one has the path that the first had when it was mounted. Returns their
/// daemons.
fn replaced(machine: &Machine) -> (i32, i32) {
    machine.place.run("create v").done();
    machine.run("mount -t bilayer v a");
    let first = machine.daemon_of("a");
    write(machine, "a/file", "a, old");
    bilayer(machine, "snapshot create a s1").done();
    rename(machine, "v", "v.old");
    machine.place.run("create v").done();
    machine.run("mount -t bilayer v b");
    let second = machine.daemon_of("b");
    write(machine, "b/file", "b, old");
    bilayer(machine, "snapshot create b s1").done();
    write(machine, "a/file", "a, new");
    write(machine, "b/file", "b, new");
    (first, second)
}

#[test]
fn the_mount_that_was_named_is_the_one_that_is_reached() {
    let Some(machine) = machine("attack-replaced", &["a", "b"]) else {
        return;
    };
    let (first, second) = replaced(&machine);
    assert_eq!(status(&machine, "a")["daemon"]["pid"], first);
    assert_eq!(status(&machine, "a")["volume"], machine.path("v.old"));
    assert_eq!(status(&machine, "b")["volume"], machine.path("v"));
    assert_eq!(status(&machine, "v")["daemon"]["pid"], second);
    let places = status(&machine, "v.old")["mounts"].clone();
    assert_eq!(places.as_array().unwrap().len(), 1);
    assert_eq!(places[0]["dir"], machine.path("a"));

    bilayer(&machine, "snapshot restore a s1 --yes").done();
    assert_eq!(read(&machine, "a/file"), "a, old");
    assert_eq!(read(&machine, "b/file"), "b, new");
    bilayer(&machine, "snapshot rename a s1 s2").done();
    bilayer(&machine, "snapshot delete a s2").done();
    assert!(snapshots(&machine, "a").is_empty());
    assert_eq!(snapshots(&machine, "b"), ["s1"]);
    bilayer(&machine, "snapshot create v s2").done();
    bilayer(&machine, "image create v.old image").done();
    assert_eq!(snapshots(&machine, "b"), ["s1", "s2"]);
    let images = bilayer(&machine, "image list b").done().stdout;
    assert_eq!(images, "");
    let deployed = bilayer(&machine, "image deploy a image a/inside");
    assert!(
        deployed.stderr.contains("inside its source"),
        "{}",
        deployed.stderr
    );
    let deployed = bilayer(&machine, "image deploy a image v.old/inside");
    assert!(
        deployed.stderr.contains("inside its source"),
        "{}",
        deployed.stderr
    );
    for path in ["a", "b", "v", "v.old"] {
        let checked = bilayer(&machine, &format!("check --json {path}")).done();
        assert!(checked.stdout.contains("\"clean\""), "{}", checked.stdout);
    }
    // One is made read-only, and the other one is written to.
    machine.run("mount -o remount,ro a");
    assert!(fs::write(machine.see("a/x"), "x").is_err());
    write(&machine, "b/x", "x");
    machine.run("mount -o remount,rw a");
    write(&machine, "a/x", "x");

    machine.run("umount a");
    assert!(!is_alive(first) && is_alive(second));
    let utab = fs::read_to_string(machine.namespace.see("/run/mount/utab".as_ref())).unwrap();
    let target = format!("TARGET={} ", machine.path("b"));
    assert!(
        utab.contains(&target),
        "the other mount's line is gone: {utab}"
    );
    machine.run(&format!("umount {}", machine.path("b")));
    assert!(!is_alive(second));
    for (volume, file) in [("v.old", "a, old"), ("v", "b, new")] {
        assert_eq!(status(&machine, volume)["record"]["clean"], true);
        machine.run(&format!("mount -t bilayer {volume} a"));
        machine.daemon_of("a");
        assert_eq!(read(&machine, "a/file"), file);
        machine.run("umount a");
    }
}

#[test]
fn unmounting_waits_for_the_disk_whatever_was_renamed() {
    let Some(machine) = machine("attack-unmount", &["top", "mnt", "other"]) else {
        return;
    };
    machine.place.run("create top/vol").done();
    let moves: [&[(&str, &str)]; 4] = [
        &[("top/vol", "top/moved")],
        &[("top", "above")],
        &[("top/vol", "top/moved"), ("other", "top/vol")],
        &[],
    ];
    for (round, renames) in moves.iter().enumerate() {
        machine.run("mount -t bilayer top/vol mnt -o commit=3600");
        let daemon = machine.daemon();
        let bytes = noise(round as u64, 20_000_000);
        fs::write(machine.see("mnt/file"), &bytes).unwrap();
        for (from, to) in *renames {
            rename(&machine, from, to);
        }
        machine.run("umount mnt");
        assert!(!is_alive(daemon), "{renames:?}: it came back too early");
        for (from, to) in renames.iter().rev() {
            rename(&machine, to, from);
        }
        assert_eq!(status(&machine, "top/vol")["record"]["clean"], true);
        machine.run("mount -t bilayer top/vol mnt");
        machine.daemon();
        assert!(fs::read(machine.see("mnt/file")).unwrap() == bytes);
        machine.run("umount mnt");
    }
}

#[test]
fn bound_and_mounted_over() {
    let dirs = ["top", "mnt", "bound", "vol2", "part", "above/mnt"];
    let Some(machine) = machine("attack-bound", &dirs) else {
        return;
    };
    machine.place.run("create top/vol").done();
    machine.run("mount -t bilayer top/vol above/mnt");
    let daemon = machine.daemon_of("above/mnt");
    fs::create_dir(machine.see("above/mnt/sub")).unwrap();
    machine.run("mount --bind above/mnt bound");
    machine.run("mount --bind above/mnt/sub part");
    machine.run("mount --bind top/vol vol2");
    for path in ["above/mnt", "bound", "part", "top/vol", "vol2"] {
        let name = path.replace('/', "-");
        bilayer(&machine, &format!("snapshot create {path} {name}")).done();
        assert_eq!(status(&machine, path)["daemon"]["pid"], daemon, "{path}");
        assert_eq!(snapshots(&machine, "bound").last(), Some(&name));
    }
    // A directory of the volume that only looks like the directory of snapshots.
    assert!(fs::read_dir(machine.see("part")).unwrap().next().is_none());
    assert_eq!(
        status(&machine, "bound")["mounts"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    // If there are several mounts, one has to be named.
    machine.refused(
        &format!("{BILAYER} unmount top/vol"),
        2,
        "nothing of bilayer",
    );
    machine.run("umount part");
    machine.run("umount bound");
    assert!(is_alive(daemon));

    // Something else is at the volume's path: the mount still reaches the volume, the path does
    // not.
    machine.run("mount -t tmpfs tmpfs top");
    bilayer(&machine, "snapshot create above/mnt hidden").done();
    let gone = bilayer(&machine, "snapshot create top/vol hidden");
    assert_eq!(gone.code, 2, "{}", gone.stderr);
    machine.run("umount top");
    // Something else is at the path of the mount.
    machine.run("mount -t tmpfs tmpfs above");
    bilayer(&machine, "snapshot create top/vol covered").done();
    let covered = bilayer(&machine, "unmount top/vol");
    assert_eq!(covered.code, 6, "{}", covered.stderr);
    assert!(
        covered.stderr.contains("mounted over it"),
        "{}",
        covered.stderr
    );
    assert_eq!(bilayer(&machine, "unmount above/mnt").code, 2);
    assert!(is_alive(daemon));
    machine.run("umount above");
    // And mounted exactly over it.
    machine.run("mount -t tmpfs tmpfs above/mnt");
    let covered = bilayer(&machine, "unmount top/vol");
    assert!(
        covered.stderr.contains("mounted over it"),
        "{}",
        covered.stderr
    );
    assert!(
        bilayer(&machine, "unmount above/mnt")
            .stderr
            .contains("tmpfs")
    );
    machine.run("umount -i above/mnt");
    let names = snapshots(&machine, "above/mnt");
    assert!(names.ends_with(&["hidden".to_owned(), "covered".to_owned()]));
    machine.run(&format!("{BILAYER} unmount top/vol"));
    assert!(!is_alive(daemon));
}

#[test]
fn other_mount_namespaces_reach_the_same_daemon() {
    let Some(machine) = machine("attack-namespace", &["a", "b", "moved"]) else {
        return;
    };
    let (first, second) = replaced(&machine);
    let apart = |script: &str| {
        let mut shell = machine.command("unshare --mount --propagation private -- sh -ec");
        run_within(shell.arg(script), LIMIT)
    };
    apart(&format!(
        "{BILAYER} snapshot create a there; {BILAYER} snapshot create v.old by-volume"
    ))
    .done();
    assert_eq!(snapshots(&machine, "a"), ["s1", "there", "by-volume"]);
    assert_eq!(snapshots(&machine, "b"), ["s1"]);
    // Inside the namespace the two directories are exchanged.
    apart(&format!(
        "mount --move a moved; mount --bind b a; {BILAYER} snapshot create a b2
         {BILAYER} snapshot create moved a2"
    ))
    .done();
    assert_eq!(snapshots(&machine, "a"), ["s1", "there", "by-volume", "a2"]);
    assert_eq!(snapshots(&machine, "b"), ["s1", "b2"]);
    // If no daemon can be reached, the command is refused and reports no success.
    let refused = apart(&format!(
        "mount -t tmpfs tmpfs /run; ! {BILAYER} snapshot restore a s1 --yes
         ! {BILAYER} snapshot restore v s1 --yes; ! {BILAYER} mount -o remount,ro v a"
    ))
    .done();
    let stderr = refused.stderr;
    assert!(stderr.contains("cannot be asked"), "{stderr}");
    assert_eq!(read(&machine, "a/file"), "a, new");
    assert_eq!(read(&machine, "b/file"), "b, new");
    // A mount that still exists in another namespace is synced here.
    let left = apart("umount a").done();
    assert!(
        left.stderr.contains("another mount namespace"),
        "{}",
        left.stderr
    );
    assert!(is_alive(first) && is_alive(second));
    machine.run("umount a");
    machine.run("umount b");
    assert!(!is_alive(first) && !is_alive(second));
}

#[test]
fn without_a_proof_nothing_is_done() {
    let Some(machine) = machine("attack-no-proof", &["mnt"]) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let lock = machine.place.path("vol/lock");
    for replacement in [None, Some(())] {
        let aside = machine.place.path("lock");
        fs::rename(&lock, &aside).unwrap();
        if replacement.is_some() {
            fs::write(&lock, b"").unwrap();
        }
        for words in [
            "snapshot create vol s",
            "snapshot create mnt s",
            "check mnt",
        ] {
            let outcome = bilayer(&machine, words);
            assert_ne!(outcome.code, 0, "{words}");
            assert!(
                outcome.stderr.contains("proved"),
                "{words}: {}",
                outcome.stderr
            );
        }
        fs::rename(&aside, &lock).unwrap();
    }
    assert!(snapshots(&machine, "mnt").is_empty());
    machine.run("umount mnt");
    assert!(!is_alive(daemon));
}

#[test]
fn a_stopped_daemon_keeps_no_command_waiting_for_ever() {
    let Some(machine) = machine("attack-stopped", &["mnt"]) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let signal = |signal| kill_process(Pid::from_raw(daemon).unwrap(), signal).unwrap();
    signal(Signal::STOP);
    let begin = Instant::now();
    for words in [
        "snapshot create vol s",
        "snapshot create mnt s",
        "status mnt",
        "unmount mnt",
    ] {
        let outcome = bilayer(&machine, words);
        assert_ne!(outcome.code, 0, "{words}");
        let stderr = outcome.stderr;
        assert!(stderr.contains("does not answer"), "{words}: {stderr}");
    }
    assert!(begin.elapsed() < LIMIT);
    assert_eq!(machine.mounted().len(), 1, "it was unmounted unasked");
    signal(Signal::CONT);
    bilayer(&machine, "snapshot create mnt s").done();
    machine.run("umount mnt");
    assert!(!is_alive(daemon));

    // The daemon is stopped while it closes the volume.
    machine.run("mount -t bilayer vol mnt -o commit=3600");
    let daemon = machine.daemon();
    fs::write(machine.see("mnt/file"), noise(1, 30_000_000)).unwrap();
    let mut unmounting = machine.command(&format!("{BILAYER} unmount mnt"));
    let unmounting = unmounting.stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_until(LIMIT, || machine.mounted().is_empty()));
    if kill_process(Pid::from_raw(daemon).unwrap(), Signal::STOP).is_ok() && is_alive(daemon) {
        let output = unmounting.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{stderr}");
        assert!(stderr.contains("not known"), "{stderr}");
        signal_if_there(daemon, Signal::CONT);
    } else {
        assert!(unmounting.wait_with_output().unwrap().status.success());
    }
    assert!(wait_until(LIMIT, || !is_alive(daemon)));
    assert_eq!(status(&machine, "vol")["record"]["clean"], true);
}

fn signal_if_there(process: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(process).unwrap(), signal);
}

/// A filesystem to which nothing is written until this is dropped.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(dir: &'a Path) -> Self {
        run(command("fsfreeze", ["-f"]).arg(dir)).done();
        Self(dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run(command("fsfreeze", ["-u"]).arg(self.0));
    }
}

/// The kernel reuses the device number of a mount that is gone, and closing the volume may take
/// long.
#[test]
fn a_daemon_speaks_for_no_mount_that_is_gone() {
    const TEST: &str = "attack-gone";
    let Some(place) = Place::new(TEST, Duration::from_secs(120)) else {
        return;
    };
    let programs = have("mkfs.ext4") && have("fsfreeze");
    if !need(programs, TEST, "mkfs.ext4 or fsfreeze is missing") {
        return;
    }
    let (image, disk) = (place.path("image"), place.dir("disk"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run(command("mkfs.ext4", ["-q"]).arg(&image)).done();
    let attached = run(command("mount", ["-o", "loop"]).arg(&image).arg(&disk));
    if !need(attached.code == 0, TEST, attached.stderr.trim()) {
        return;
    }
    place.run("create disk/vol").done();
    let mounted = place.mount("disk/vol", "mnt", "");
    fs::write(mounted.path("file"), "text").unwrap();
    run(command("sync", ["-f"]).arg(mounted.dir())).done();
    let volume = fs::metadata(disk.join("vol")).unwrap();
    let socket = format!("/run/bilayer/{:x}-{:x}.sock", volume.dev(), volume.ino());
    let claim = || -> Value {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream
            .write_all(b"{\"version\":1,\"body\":\"prove\"}\n")
            .unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let response: Value = serde_json::from_str(&line).unwrap();
        response["body"]["proof"].clone()
    };
    assert!(claim()["mount"].is_u64());
    {
        let _frozen = Frozen::new(&disk);
        run(command("umount", ["-i"]).arg(mounted.dir())).done();
        assert!(wait_until(LIMIT, || claim()["mount"].is_null()));
        assert_eq!(claim()["closing"], false);
    }
    assert!(wait_until(LIMIT, || !is_alive(mounted.pid)));
}

#[test]
fn a_read_only_medium_is_shared_and_proved() {
    let dirs = ["mnt", "mnt2", "medium"];
    let Some(machine) = machine("attack-medium", &dirs) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    write(&machine, "mnt/file", "x");
    bilayer(&machine, "snapshot create mnt one").done();
    machine.run("mount --bind vol medium");
    machine.run("mount -o remount,bind,ro medium");
    // Another process writes to it by another path.
    let refused = bilayer(&machine, "mount -o ro medium mnt2");
    assert_eq!(refused.code, 32, "{}", refused.stderr);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    // Not even if the lock file is missing.
    let lock = machine.place.path("vol/lock");
    let aside = machine.place.path("aside");
    fs::rename(&lock, &aside).unwrap();
    let refused = bilayer(&machine, "mount -o ro medium mnt2");
    assert_eq!(refused.code, 32, "{}", refused.stderr);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    fs::rename(&aside, &lock).unwrap();
    machine.run("umount mnt");

    machine.run("mount -t bilayer medium mnt -o ro");
    let first = machine.daemon();
    machine.run("mount -t bilayer medium mnt2 -o ro");
    let second = machine.daemon_of("mnt2");
    assert_ne!(first, second);
    for path in ["mnt", "mnt2", "medium"] {
        assert_eq!(snapshots(&machine, path), ["one"], "{path}");
        assert!(
            bilayer(&machine, &format!("check {path}")).code == 0,
            "{path}"
        );
    }
    assert_eq!(status(&machine, "mnt")["daemon"]["pid"], first);
    let refused = bilayer(&machine, "snapshot create mnt two");
    assert_ne!(refused.code, 0);
    // Nobody writes to a volume that is being read, whatever happened to its lock file.
    let refused = bilayer(&machine, "mount vol vol2 --create");
    assert_eq!(refused.code, 32, "{}", refused.stderr);
    fs::rename(&lock, &aside).unwrap();
    let refused = bilayer(&machine, "mount vol vol2");
    assert_eq!(refused.code, 32, "{}", refused.stderr);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    fs::rename(&aside, &lock).unwrap();
    machine.run("umount mnt2");
    assert!(is_alive(first) && !is_alive(second));
    assert_eq!(snapshots(&machine, "mnt"), ["one"]);
    machine.run("umount mnt");
    assert!(!is_alive(first));
    machine.run("umount medium");
}
