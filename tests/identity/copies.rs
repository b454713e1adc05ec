//! Copies and their originals, step by step, as a user sees them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::real::{Place, command, run};
use crate::{end, fails};

const LIMIT: Duration = Duration::from_secs(300);

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

fn with_file(test: &'static str, create: &str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    let mounted = place.fresh(create, "");
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    Some(place)
}

fn header(place: &Place, volume: &str) -> Value {
    place.status(&place.path(volume))["header"].clone()
}

/// The names and contents of a directory.
fn everything(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            entries.extend(everything(&path));
        } else {
            entries.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    entries.sort();
    entries
}

#[test]
fn a_drill_leaves_the_original_as_it_was() {
    let Some(place) = with_file("identity-drill", "") else {
        return;
    };
    sh(&place, "cp -a vol drill");
    let refused = place.run("mount drill mnt");
    fails(&refused, 32, "this directory is a copy of the volume in");
    let original = place.path("vol").canonicalize().unwrap();
    for said in [
        original.to_str().unwrap(),
        "last written 20",
        "-o ro",
        "--new-identity",
    ] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    // Commands that open a volume themselves follow the same rule, with their own exit codes.
    fails(&place.run("snapshot create drill s"), 3, "is a copy of");
    fails(&place.run("check drill --repair"), 8, "is a copy of");
    place.run("check drill").done();
    place.run("snapshot list drill").done();
    let drill = place.mount("drill", "mnt", "ro");
    assert_eq!(fs::read(drill.path("file")).unwrap(), b"as it was");
    // Beside the original, which is in use.
    let mounted = place.mount("vol", "other", "");
    fs::write(mounted.path("file"), "goes on").unwrap();
    drill.unmount();
    mounted.unmount();
    let status = place.status(&place.path("drill"));
    assert_eq!(status["copy_of"], original.to_str().unwrap());
    assert_eq!(status["record"]["directory"], original.to_str().unwrap());
    assert_eq!(place.status(&place.path("vol"))["copy_of"], Value::Null);
    let text = place.run("status drill").done().stdout;
    assert!(
        text.contains("copy of") && text.contains("known directory"),
        "{text}"
    );
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"goes on");
    mounted.unmount();
}

#[test]
fn an_older_copy_can_be_read_and_does_not_replace_the_original() {
    let Some(place) = with_file("identity-older", "") else {
        return;
    };
    sh(&place, "cp -a vol backup");
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "of now").unwrap();
    mounted.unmount();
    let log = place.path("log");
    let seen = place.mount("backup", "mnt", &format!("ro,log_file={}", log.display()));
    assert_eq!(fs::read(seen.path("file")).unwrap(), b"as it was");
    seen.unmount();
    let said = fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("an older copy of the volume is opened read-only"),
        "{said}"
    );
    // In the volume's place it is a copy that somebody put there: refused, with time and path.
    sh(&place, "mv vol newest; cp -a backup vol");
    for options in ["", "-o ro"] {
        let refused = place.run(&format!("mount vol mnt {options}"));
        fails(&refused, 32, "not the newest state that this machine knows");
        for said in ["commit", "last written 20", "/vol)"] {
            assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
        }
    }
    // By its path, the newest one is a copy now, until the other one is removed.
    fails(&place.run("mount newest mnt"), 32, "is a copy of");
    sh(&place, "rm -r vol");
    let mounted = place.mount("newest", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"of now");
    mounted.unmount();
}

/// An attempt to use a backup that is too old does not make its directory the volume's.
#[test]
fn an_older_copy_that_is_refused_is_not_remembered() {
    let Some(place) = with_file("identity-tried", "") else {
        return;
    };
    sh(&place, "cp -a vol backup");
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "of now").unwrap();
    mounted.unmount();
    sh(&place, "mkdir away; mv vol away");
    for options in ["", "-o ro"] {
        let refused = place.run(&format!("mount backup mnt {options}"));
        fails(&refused, 32, "not the newest state that this machine knows");
    }
    sh(&place, "mv away/vol .");
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"of now");
    mounted.unmount();
}

#[test]
fn a_restored_copy_is_accepted_when_the_original_is_gone() {
    let Some(place) = with_file("identity-taken", "") else {
        return;
    };
    sh(&place, "mkdir srv; mv vol srv/vol");
    place.mount("srv/vol", "mnt", "").unmount();
    sh(&place, "cp -a srv/vol copy");
    let refused = place.run("mount copy mnt --accept-restored");
    fails(&refused, 32, "the original still exists");
    sh(&place, "mount -t tmpfs tmpfs srv");
    let refused = place.run("mount copy mnt");
    fails(&refused, 32, "that place cannot be seen now");
    assert!(
        refused.stderr.contains("--accept-restored"),
        "{}",
        refused.stderr
    );
    let before = header(&place, "copy");
    place.run("mount copy mnt --accept-restored").done();
    let mounted = place.mounted(&place.path("mnt"));
    fs::write(mounted.path("file"), "goes on").unwrap();
    let now = header(&place, "copy");
    assert_eq!(now["volume_id"], before["volume_id"]);
    assert_ne!(now["incarnation"], before["incarnation"]);
    // The original comes back: it is the copy now.
    sh(&place, "umount srv");
    fails(
        &place.run("mount srv/vol other --create"),
        32,
        "is a copy of",
    );
    mounted.unmount();
    fails(&place.run("mount srv/vol other"), 32, "is a copy of");
    place.mount("copy", "mnt", "").unmount();
}

#[test]
fn a_volume_of_its_own_lives_beside_its_original() {
    for customer in [false, true] {
        let Some(place) = Place::new("identity-own", LIMIT) else {
            return;
        };
        let create = if customer {
            place.run("keygen key.pem --bits 2048").done();
            "--customer-key file:key.pem"
        } else {
            ""
        };
        let mounted = place.fresh(create, "");
        fs::write(mounted.path("file"), vec![3; 3 << 20]).unwrap();
        mounted.unmount();
        place.run("snapshot create vol then").done();
        sh(&place, "cp -a vol copy");
        let records = everything(&place.path("keystore/volumes"));
        let original = everything(&place.path("vol"));
        let before = header(&place, "copy");

        fails(&place.run("mount vol mnt --new-identity"), 1, "no copy");
        fails(
            &place.run("mount copy mnt --new-identity -o ro"),
            1,
            "-o ro",
        );
        fails(
            &place.run("mount copy mnt -o new_identity"),
            1,
            "unknown mount option",
        );
        place.run("mount copy mnt --new-identity").done();
        let copy = place.mounted(&place.path("mnt"));
        assert!(everything(&place.path("vol")) == original);
        let now = everything(&place.path("keystore/volumes"));
        assert!(records.iter().all(|record| now.contains(record)));
        let after = header(&place, "copy");
        for changed in ["volume_id", "incarnation"] {
            assert_ne!(after[changed], before[changed], "{changed}");
        }
        assert_eq!(after["provenance"], before["volume_id"]);
        assert_eq!(after["key_mode"], before["key_mode"]);
        let sets = after["key_sets"].as_array().unwrap();
        let active: Vec<bool> = sets.iter().map(|set| set["active"] == true).collect();
        assert_eq!(active, [false, true]);
        assert_eq!(sets[0]["id"], before["key_sets"][0]["id"]);

        // Both are written to.
        let vol = place.mount("vol", "other", "");
        fs::write(vol.path("file"), "of the original").unwrap();
        fs::write(copy.path("own"), "of the copy").unwrap();
        assert_eq!(fs::read(copy.path("file")).unwrap(), vec![3; 3 << 20]);
        assert_eq!(
            fs::read(copy.path(".snapshots/then/file")).unwrap(),
            vec![3; 3 << 20]
        );
        assert!(!vol.path("own").exists());
        copy.unmount();
        vol.unmount();
        place.run("check copy").done();
        place.run("check vol").done();
        // A pinned fingerprint of the original does not match the copy, and keeps matching the
        // original.
        let pin = |volume: &str| {
            let status = place.status(&place.path(volume));
            status["fingerprint"].as_str().unwrap().to_owned()
        };
        let pinned = pin("vol");
        assert_ne!(pinned, pin("copy"));
        place
            .mount("vol", "mnt", &format!("fingerprint={pinned}"))
            .unmount();
        fails(
            &place.run(&format!("mount copy mnt -o fingerprint={pinned}")),
            32,
            "fingerprint",
        );
        let inspect = place.run("inspect copy").done().stdout;
        assert!(inspect.contains("was a copy of"), "{inspect}");
        fails(&place.run("mount copy mnt --new-identity"), 1, "no copy");
    }
}

/// Data that is written to the original in place is not visible in a hard-linked copy.
#[test]
fn a_hard_linked_copy_shares_nothing_any_more() {
    let Some(place) = with_file("identity-linked", "") else {
        return;
    };
    sh(&place, "cp -al vol copy");
    place.run("mount copy mnt --new-identity").done();
    place.mounted(&place.path("mnt")).unmount();
    let shared = run(
        command("find", ["copy/objects", "-type", "f", "-links", "+1"]).current_dir(place.path("")),
    );
    assert_eq!(shared.done().stdout, "");
    let mounted = place.mount("vol", "mnt", "");
    let file = fs::File::options()
        .write(true)
        .open(mounted.path("file"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"AS", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let copy = place.mount("copy", "other", "");
    assert_eq!(fs::read(copy.path("file")).unwrap(), b"as it was");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"AS it was");
    copy.unmount();
    mounted.unmount();
}

/// The volume's directory is moved while it is mounted: the keystore remembers the new path.
#[test]
fn a_volume_that_is_moved_while_it_is_mounted_is_remembered_there() {
    let Some(place) = with_file("identity-moving", "") else {
        return;
    };
    let mounted = place.mount("vol", "mnt", "commit=1");
    sh(&place, "mv vol away");
    fs::write(mounted.path("file"), "and on").unwrap();
    end(mounted);
    let known = place.path("away").canonicalize().unwrap();
    let status = place.status(&place.path("away"));
    assert_eq!(status["record"]["directory"], known.to_str().unwrap());
    // A directory that is put in the old place is the copy.
    sh(&place, "cp -a away vol");
    fails(&place.run("mount vol mnt"), 32, "is a copy of");
    place.mount("away", "mnt", "").unmount();
}

/// A second writer of the same id is excluded by the lock of the id, whatever the record says.
#[test]
fn the_id_is_locked_while_it_is_written() {
    let Some(place) = with_file("identity-lock", "") else {
        return;
    };
    sh(&place, "cp -a vol copy");
    let mounted = place.mount("vol", "mnt", "commit=3600");
    // A record from before directories were remembered.
    let records = fs::read_dir(place.path("keystore/volumes")).unwrap();
    for path in records.map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|it| it == "json") {
            let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            record.as_object_mut().unwrap().remove("directory");
            fs::write(&path, record.to_string()).unwrap();
        }
    }
    place.dir("other");
    let refused = place.run("mount copy other");
    fails(&refused, 32, "open for writing already in");
    let holder = place.path("vol").canonicalize().unwrap();
    assert!(
        refused.stderr.contains(holder.to_str().unwrap()),
        "{}",
        refused.stderr
    );
    mounted.unmount();
}

/// The process that has it open recorded its directory, which may have been renamed since.
#[test]
fn a_writer_whose_directory_was_renamed_is_named_as_it_was() {
    let Some(place) = with_file("identity-renamed", "") else {
        return;
    };
    let known = place.path("vol").canonicalize().unwrap();
    sh(&place, "cp -a vol copy");
    let mounted = place.mount("vol", "mnt", "commit=3600");
    sh(&place, "mv vol away; mkdir other");
    let renamed = format!(
        "already in a directory that was {} when it was opened",
        known.display()
    );
    fails(&place.run("mount copy other"), 32, &renamed);
    // Another copy has its place.
    sh(&place, "mv copy vol");
    fails(&place.run("mount vol other"), 32, &renamed);
    end(mounted);
}

/// The age of a copy does not limit what can be read of it.
#[test]
fn an_older_copy_is_salvaged_whole() {
    let Some(place) = with_file("identity-salvage", "") else {
        return;
    };
    sh(&place, "cp -a vol copy");
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "goes on").unwrap();
    mounted.unmount();
    place.run("check copy").done();
    place.run("salvage copy out").done();
    let taken = fs::read(place.path("out/files/file")).unwrap();
    assert_eq!(taken, b"as it was");
    // In the volume's own place it is older than it should be.
    sh(&place, "rm -r vol; mv copy vol");
    fails(&place.run("salvage vol out2"), 5, "at an earlier time");
}
