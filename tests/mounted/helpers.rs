//! mount(8), umount(8) and fstab, with the helpers installed as `mount-helper/install` does it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::machine::Machine;
use crate::real::{BILAYER, command, have, is_alive, noise, run};

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
        // Much dirty data: umount(8) must return when it is on disk and not before.
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
    let printed = machine.output("mount -v -t bilayer vol mnt");
    assert_eq!(printed, format!("bilayer: {vol} mounted on {mnt}.\n"));
    machine.daemon();
    let printed = machine.output("umount -v mnt");
    assert_eq!(printed, format!("bilayer: {mnt} unmounted.\n"));
    // Fake: everything except the mount itself.
    machine.run("mount -f -t bilayer vol mnt");
    machine.refused(
        "mount -f -t bilayer vol mnt -o blah",
        1,
        "unknown mount option",
    );
    assert!(machine.mounted().is_empty());
    // Sloppy: unknown options are ignored; not written to mtab.
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
    let target = machine.output(&format!("findmnt -n -o TARGET --source {vol}"));
    assert_eq!(target.trim(), mnt);
    let kind = machine.output("stat -f -c %T mnt");
    assert!(kind.starts_with("fuse"), "{kind}");
    // By the volume's directory as well.
    machine.run("umount vol");
    assert!(machine.mounted().is_empty());
}

#[test]
fn install_and_uninstall() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    let place = &machine.place;
    let built = Path::new(&BILAYER).parent().unwrap();
    let script = |name: &str, built: &Path| {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helper");
        let mut script = command(scripts.join(name), [built]);
        run(script.env("DESTDIR", place.path("root")))
    };
    let missing = script("install", &place.path("home"));
    assert_eq!(missing.code, 1);
    assert!(
        missing
            .stderr
            .contains("hint: cargo build --release --workspace")
    );
    assert!(!place.path("root").exists());
    let names = || {
        let files = fs::read_dir(place.path("root/sbin")).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let units = || {
        let system = place.path("root/usr/local/lib/systemd/system");
        fs::read_dir(system).map_or(Vec::new(), Iterator::collect)
    };
    // Also over installed files; the programs run.
    for _ in 0..2 {
        script("install", built).done();
        let all = [
            "mount.bilayer",
            "mount.fuse.bilayer",
            "umount.bilayer",
            "umount.fuse.bilayer",
        ];
        assert_eq!(names(), all);
        for name in all {
            let path = place.path("root/sbin").join(name);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
            let outcome = run(&mut Command::new(path));
            assert!(
                outcome.stderr.contains("usage: "),
                "{name}: {}",
                outcome.stderr
            );
        }
        assert_eq!(units().len(), if have("systemctl") { 2 } else { 0 });
    }
    // If the system has them, they are covered for this test.
    let sbin = fs::canonicalize("/sbin").unwrap();
    let sbin = sbin.display();
    let laid_over = format!(
        "lowerdir={sbin},upperdir={},workdir={}",
        place.dir("upper").display(),
        place.dir("work").display()
    );
    machine.run(&format!("mount -t overlay overlay -o {laid_over} {sbin}"));
    machine.run("mount -t tmpfs tmpfs /usr/local/lib");
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/mount-helper");
    machine.output(&format!("{scripts}/uninstall"));
    machine.run("test ! -e /sbin/mount.bilayer");
    machine.output(&format!("{scripts}/install {}", built.display()));
    machine.run("test -x /sbin/mount.bilayer -a -x /sbin/umount.fuse.bilayer");

    fs::write(place.path("root/sbin/mount.other"), "").unwrap();
    for _ in 0..2 {
        script("uninstall", built).done();
        assert_eq!(names(), ["mount.other"]);
        assert!(units().is_empty());
    }
}
