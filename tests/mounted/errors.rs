//! Messages and exit codes of mount(8) when the mount fails.

use std::fs;

use crate::machine::Machine;
use crate::users::AS_OTHER;

const TEST: &str = "mount-errors";

/// Arguments of mount(8), its exit code, and parts of the first line and of the hint.
const TABLE: [(&str, i32, &str, &str); 17] = [
    ("nowhere mnt", 32, "cannot find ", "bilayer create"),
    ("mnt mnt2", 32, "no bilayer volume", "bilayer create"),
    ("file mnt", 32, "ot a directory", ""),
    ("vol nowhere", 32, "cannot find ", "mkdir "),
    ("vol file", 32, "cannot mount on ", ""),
    ("vol vol", 1, "one is inside the other", "elsewhere"),
    ("vol vol/objects", 1, "one is inside the other", "elsewhere"),
    ("mounted mnt", 32, "mounted or otherwise in use", "umount"),
    ("mounted there", 32, "mounted or otherwise in use", "umount"),
    ("keyed mnt -o customer_key=file:other.pem", 32, "key", ""),
    (
        "keyed mnt -o customer_key=file:none.pem",
        32,
        "none.pem",
        "",
    ),
    (
        "vol mnt -o platform_keystore=none,audit_log=audit",
        32,
        "keystore",
        "",
    ),
    (
        "vol mnt -o fingerprint=00112233445566778899",
        32,
        "fingerprint",
        "",
    ),
    (
        "vol mnt -o rw,blah,nofail",
        1,
        "unknown mount option \"blah\"",
        "--help",
    ),
    (
        "vol mnt -o commit=never",
        1,
        "mount option commit=never",
        "",
    ),
    ("vol mnt -o log_file=none/log", 32, "cannot log to ", ""),
    ("broken mnt", 32, "broken", ""),
];

#[test]
fn every_refusal_has_a_cause_and_a_hint() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    let place = &machine.place;
    for dir in ["mnt", "mnt2", "there"] {
        place.dir(dir);
    }
    fs::write(place.path("file"), "x").unwrap();
    for words in [
        "keygen key.pem --bits 2048",
        "keygen other.pem --bits 2048",
        "create vol",
        "create mounted",
        "create broken",
        "create keyed --customer-key file:key.pem",
    ] {
        place.run(words).done();
    }
    let header = place.path("broken/volume.json");
    let mut bytes = fs::read(&header).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&header, bytes).unwrap();
    machine.run("mount -t bilayer mounted there");
    machine.daemon_of("there");
    for (words, code, what, advice) in TABLE {
        for kind in ["bilayer", "fuse.bilayer"] {
            let words = format!("mount -t {kind} {words}");
            let outcome = machine.end_of(&words);
            let stderr = &outcome.stderr;
            assert_eq!(outcome.code, code, "{words}: {stderr}");
            assert_eq!(outcome.stdout, "", "{words}");
            assert!(
                stderr.starts_with("bilayer: ") && stderr.contains(what),
                "{words}: {stderr}"
            );
            let hints = stderr.lines().skip(1).collect::<Vec<_>>();
            assert!(hints.len() <= 1, "{words}: {stderr}");
            assert!(
                hints.iter().all(|hint| hint.starts_with("hint: ")),
                "{words}: {stderr}"
            );
            assert!(hints.concat().contains(advice), "{words}: {stderr}");
        }
        assert_eq!(machine.mounted().len(), 1, "{words}");
    }
    machine.run("umount there");
    machine.refused("umount there", 32, "not mounted");
    machine.refused("mount.bilayer", 1, "usage: mount.bilayer VOLUME DIR");
    machine.refused("mount.bilayer vol mnt -x", 1, "unknown option -x");
    machine.refused("umount.bilayer mnt", 32, "nothing of bilayer is mounted");
    machine.refused("umount.bilayer /proc", 32, "not of bilayer");
    machine.refused("umount.bilayer", 1, "usage: umount.bilayer DIR");
}

#[test]
fn mounting_without_permission_is_explained() {
    let Some(machine) = Machine::open_to_users(TEST) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    let user = |words: &str| machine.end_of(&format!("{} {words}", AS_OTHER));
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    // Another user's volume, whose directory is closed to others.
    let outcome = user(&format!("mount.bilayer {vol} {mnt}"));
    assert!(outcome.code == 2 || outcome.code == 32, "{}", outcome.code);
    // A line before that says that the audit file is closed to this user too.
    assert!(
        outcome.stderr.contains("the audit cannot be written")
            && outcome.stderr.contains("\nbilayer: "),
        "{}",
        outcome.stderr
    );
    // Without a line in fstab, so that mount(8) leaves it to the helper, which has no more rights.
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    for words in [format!("umount {mnt}"), format!("umount.bilayer {mnt}")] {
        let outcome = user(&words);
        assert_ne!(outcome.code, 0, "{words}");
        assert!(
            outcome.stderr.contains("mounted by"),
            "{words}: {}",
            outcome.stderr
        );
    }
    let outcome = user(&format!("mount -o remount,ro {mnt}"));
    assert_ne!(outcome.code, 0);
    fs::write(machine.see("mnt/file"), "still there").unwrap();
    machine.run("umount mnt");
}
