//! mount(8), umount(8) and fstab, with the helpers installed as `mount-helper/install` does it.

use std::fs;

use crate::machine::Machine;
use crate::real::{is_alive, noise};

const TEST: &str = "mount-helpers";

#[test]
fn mount_and_umount_know_the_type() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    let place = &machine.place;
    place.run("keygen key.pem --bits 2048").done();
    place.run("create vol --customer-key file:key.pem").done();
    place.dir("mnt");
    for (number, kind) in ["bilayer", "fuse.bilayer"].into_iter().enumerate() {
        machine.run(&format!("mount -t {kind} vol mnt -o rw,noexec,nofail"));
        let daemon = machine.daemon();
        let listed = machine
            .output("findmnt -n -o FSTYPE,SOURCE mnt")
            .trim()
            .to_owned();
        assert!(listed.starts_with("fuse.bilayer"), "{listed}");
        assert!(listed.ends_with(place.path("vol").canonicalize().unwrap().to_str().unwrap()));
        // Much that is dirty: umount(8) is to come back when it is on disk and not before.
        let bytes = noise(number as u64, 40_000_000);
        fs::write(machine.see("mnt/file"), &bytes).unwrap();
        machine.run("umount mnt");
        assert!(
            !is_alive(daemon),
            "umount came back before the daemon had gone"
        );
        assert!(!machine.namespace.is_mount_point(&machine.mount_point()));
        let status = place.status(&place.path("vol"));
        assert_eq!(status["record"]["clean"], true);
        machine.run(&format!("mount -r -t {kind} vol mnt"));
        machine.daemon();
        assert!(fs::read(machine.see("mnt/file")).unwrap() == bytes);
        let error = fs::write(machine.see("mnt/file"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        machine.run("umount mnt");
    }
    machine.run("mount -f -t bilayer vol mnt");
    assert!(!machine.namespace.is_mount_point(&machine.mount_point()));
}

#[test]
fn flags_of_mount_and_umount() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    let told = machine.output("mount -v -t bilayer vol mnt");
    assert_eq!(told, format!("bilayer: {vol} mounted on {mnt}.\n"));
    machine.daemon();
    let told = machine.output("umount -v mnt");
    assert_eq!(told, format!("bilayer: {mnt} unmounted.\n"));
    // Fake: everything but the mount.
    machine.run("mount -f -t bilayer vol mnt");
    machine.refused(
        "mount -f -t bilayer vol mnt -o blah",
        1,
        "unknown mount option",
    );
    assert!(machine.mounted().is_empty());
    // Sloppy: what nobody knows is left out; not written to mtab.
    machine.run("mount -s -n -t bilayer vol mnt -o quota,errors=remount-ro,noexec");
    machine.daemon();
    let options = machine.output("findmnt -n -o OPTIONS mnt");
    assert!(options.contains("noexec"), "{options}");
    machine.run("umount -n mnt");
    assert!(machine.mounted().is_empty());
}

#[test]
fn every_tool_shows_type_and_volume() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    let df = machine.output("df -T mnt");
    let words: Vec<&str> = df.lines().last().unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1]), (vol.as_str(), "fuse.bilayer"));
    assert_eq!(words.last(), Some(&mnt.as_str()));
    let all = machine.output("mount -t fuse.bilayer");
    assert!(
        all.contains(&format!("{vol} on {mnt} type fuse.bilayer (rw,relatime,")),
        "{all}"
    );
    let mounts = machine.output("cat /proc/mounts");
    assert!(
        mounts.contains(&format!("{vol} {mnt} fuse.bilayer rw,relatime,")),
        "{mounts}"
    );
    let found = machine.output(&format!("findmnt -n -o TARGET --source {vol}"));
    assert_eq!(found.trim(), mnt);
    let kind = machine.output("stat -f -c %T mnt");
    assert!(kind.starts_with("fuse"), "{kind}");
    // By the volume as well.
    machine.run("umount vol");
    assert!(machine.mounted().is_empty());
}
