//! A table of failures.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::real::{Outcome, Place, command, run};

const LIMIT: Duration = Duration::from_secs(120);
const CONTENTS: &[u8] = b"what was there before the failure\n";

/// One line of the program, with what is wanted in it, at most one hint, and this code.
#[track_caller]
fn fails(outcome: &Outcome, code: i32, wanted: &str) {
    let text = outcome.stderr.as_str();
    assert_eq!(outcome.code, code, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let errors = lines
        .iter()
        .filter(|line| line.starts_with("bilayer: "))
        .count();
    let hints = lines
        .iter()
        .filter(|line| line.starts_with("hint: "))
        .count();
    assert!(
        errors == 1 && hints <= 1 && lines.len() == errors + hints,
        "not one clear line: {text}"
    );
    assert!(text.contains(wanted), "{wanted:?} is not in: {text}");
    assert!(!text.contains("panicked"), "{text}");
}

/// A volume with a file in it, under a key of its own.
fn volume(place: &Place) {
    place.run("keygen key.pem --bits 2048").done();
    let mounted = place.fresh("--customer-key file:key.pem", "");
    fs::write(mounted.path("file"), CONTENTS).unwrap();
    mounted.unmount();
}

#[track_caller]
fn unharmed(place: &Place) {
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), CONTENTS);
    mounted.unmount();
}

#[test]
fn keys_and_places() {
    let Some(place) = Place::new("keys-and-places", LIMIT) else {
        return;
    };
    volume(&place);
    place.run("keygen other.pem --bits 2048").done();
    place.dir("mnt");
    place.dir("plain");
    fs::write(place.path("plain/notes"), "no volume").unwrap();
    place.dir("empty");
    fs::write(place.path("no.pem"), "not a key").unwrap();
    let table: [(&str, i32, &str); 15] = [
        ("mount vol mnt -o customer_key=file:other.pem", 32, "key"),
        (
            "mount vol mnt -o customer_key=file:absent.pem",
            32,
            "absent.pem",
        ),
        (
            "mount vol mnt -o customer_key=file:no.pem",
            1,
            "no PEM file",
        ),
        ("mount vol mnt -o customer_key=exec:/bin/true", 1, "exec"),
        (
            "mount vol mnt -o fingerprint=00000000000000000000000000000000",
            32,
            "fingerprint",
        ),
        ("mount vol mnt -o platform_keystore=absent", 32, "absent"),
        ("mount vol mnt -o surprise", 1, "surprise"),
        ("mount vol mnt -o commit=never", 1, "commit"),
        ("mount vol absent", 32, "absent"),
        ("mount absent mnt", 32, "absent"),
        ("mount plain mnt", 32, "plain"),
        ("mount empty mnt", 32, "empty"),
        ("create vol", 1, "a volume already"),
        ("keygen key.pem", 3, "exists"),
        ("unmount mnt", 2, "mnt"),
    ];
    for (words, code, wanted) in table {
        let outcome = place.run(words);
        let text = outcome.stderr.clone();
        assert!(
            text.contains(wanted),
            "{words}: {wanted:?} is not in: {text}"
        );
        if outcome.code != code {
            panic!("{words}: exit code {} and not {code}: {text}", outcome.code);
        }
        fails(&outcome, code, wanted);
    }
    unharmed(&place);
}

#[test]
fn a_volume_is_mounted_once() {
    let Some(place) = Place::new("mounted-once", LIMIT) else {
        return;
    };
    volume(&place);
    let mounted = place.mount("vol", "mnt", "");
    place.dir("second");
    fails(&place.run("mount vol second"), 32, "in use");
    fails(&place.run("mount vol mnt"), 32, "in use");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), CONTENTS);
    mounted.unmount();
    unharmed(&place);
}

#[test]
fn superblocks_that_are_not_as_they_were() {
    let Some(place) = Place::new("superblocks", LIMIT) else {
        return;
    };
    volume(&place);
    place.dir("mnt");
    let path = place.path("vol/volume.json");
    let good = fs::read(&path).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let key = place.path("key.pem");
    let uri = format!("file:{}", key.display());
    assert!(text.contains(&uri), "{text}");
    let replaced = |from: &str, to: &str| text.replacen(from, to, 1).into_bytes();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let first_brace = text.find('{').unwrap() + 1;
    let inserted = |field: &str| {
        let mut changed = text.clone();
        changed.insert_str(first_brace, field);
        changed.into_bytes()
    };
    let version = "\"version\":";
    let number_at = text.find(version).unwrap() + version.len();
    let number_end = number_at + text[number_at..].find([',', '}']).unwrap();
    let with_version = |number: &str| {
        format!("{}{number}{}", &text[..number_at], &text[number_end..]).into_bytes()
    };
    let table: [(&str, Vec<u8>); 13] = [
        ("a bit of the middle", flipped(good.len() / 2)),
        (
            "a bit of the first line's end",
            flipped(text.find('\n').unwrap() - 2),
        ),
        ("a bit of the tag", flipped(good.len() - 3)),
        (
            "a program as provider",
            replaced(&uri, "exec:/bin/touch /tmp/owned"),
        ),
        ("another key's file", replaced(&uri, "file:/etc/hostname")),
        ("a host", replaced(&uri, "https://example.org/key")),
        ("a huge number", with_version("99999999999999999999999999")),
        ("a negative number", with_version("-1")),
        ("a newer format", with_version("2")),
        ("an unknown key", inserted("\"surprise\":1,")),
        ("a duplicate key", inserted(&format!("{}1,", version))),
        ("nothing", Vec::new()),
        ("a quarter of a megabyte", vec![b'{'; 300 << 10]),
    ];
    for (what, bytes) in table {
        fs::write(&path, bytes).unwrap();
        let outcome = place.run("mount vol mnt");
        assert_eq!(outcome.code, 32, "{what}: {}", outcome.stderr);
        fails(&outcome, 32, "vol");
        if what == "a newer format" {
            assert!(outcome.stderr.contains("newer"), "{}", outcome.stderr);
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(!Path::new("/tmp/owned").exists());
    unharmed(&place);
}

#[test]
fn a_provider_that_only_the_header_names_is_not_used() {
    let Some(place) = Place::new("only-the-header", LIMIT) else {
        return;
    };
    volume(&place);
    place.dir("mnt");
    // Another keystore with the same platform keys that has never seen the volume.
    let copied = place.run("status vol --json").done();
    assert!(copied.stdout.contains("customer_key"));
    let records = place.path("keystore/volumes");
    let kept = place.path("records");
    fs::rename(&records, &kept).unwrap();
    fs::create_dir(&records).unwrap();
    let outcome = place.run("mount vol mnt");
    fails(&outcome, 32, "customer key");
    assert!(
        outcome.stderr.contains("customer_key="),
        "{}",
        outcome.stderr
    );
    fs::remove_dir_all(&records).unwrap();
    fs::rename(&kept, &records).unwrap();
    unharmed(&place);
}

#[test]
fn keys_of_other_sizes_are_refused() {
    let Some(place) = Place::new("key-sizes", LIMIT) else {
        return;
    };
    for bits in ["1024", "2047", "8192"] {
        let outcome = place.run(&format!("keygen {bits}.pem --bits {bits}"));
        assert_eq!(outcome.code, 1, "{bits}: {}", outcome.stderr);
        assert!(!place.path(&format!("{bits}.pem")).exists());
    }
}

#[test]
fn every_command_shows_an_example() {
    let Some(place) = Place::new("examples", LIMIT) else {
        return;
    };
    for verb in ["create", "mount", "unmount", "status", "inspect", "keygen"] {
        let help = place.run(&format!("{verb} --help")).done();
        assert!(
            help.stdout.contains(&format!("bilayer {verb} ")),
            "{verb}: {}",
            help.stdout
        );
    }
    assert_eq!(place.run("").code, 1);
    assert_eq!(place.run("surprise").code, 1);
}

/// A small filesystem in memory; taken away when it is dropped.
struct Tiny(std::path::PathBuf);

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_disk_without_room_for_a_volume() {
    let Some(place) = Place::new("no-room", LIMIT) else {
        return;
    };
    let disk = Tiny(place.dir("disk"));
    run(command("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk.0)).done();
    fails(&place.run("create disk/vol"), 6, "No space");
    // Nothing half made is left.
    let left: Vec<_> = fs::read_dir(&disk.0).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_secret_given_by_mistake_is_not_repeated() {
    let Some(place) = Place::new("by-mistake", LIMIT) else {
        return;
    };
    place.dir("mnt");
    let outcome = place.run("mount vol mnt -o passphrase=hunter2");
    fails(&outcome, 1, "passphrase");
    assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
}
