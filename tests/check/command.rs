//! The command, on real volumes and mounts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::real::{Outcome, Place, noise};

const LIMIT: Duration = Duration::from_secs(100);

#[track_caller]
fn ends(outcome: Outcome, code: i32, says: &str) -> String {
    let what = format!("{}\n{}{}", outcome.what, outcome.stdout, outcome.stderr);
    assert_eq!(outcome.code, code, "{what}");
    let said = outcome.stdout + &outcome.stderr;
    assert!(said.contains(says), "{says:?} is not said: {what}");
    said
}

/// The volume's largest object.
fn largest(place: &Place) -> PathBuf {
    let folders = fs::read_dir(place.path("vol/objects")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    paths
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

fn flip(path: &PathBuf, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn offline_and_mounted_whole_and_damaged() {
    let Some(place) = Place::new("check-command", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::create_dir(mounted.path("dir")).unwrap();
    fs::write(mounted.path("dir/large"), noise(1, 6_000_000)).unwrap();
    fs::create_dir(mounted.path(".snapshots/monday")).unwrap();
    ends(place.run("check mnt"), 0, "clean: ");
    ends(place.run("check vol --jobs 1"), 0, "clean: ");
    let json = ends(place.run("check mnt --json"), 0, "");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["result"], &json["mounted"]),
        (&"clean".into(), &true.into())
    );
    assert_eq!(json["inodes"], 3);
    assert_eq!(json["snapshots"], 1);
    assert!(json["pages"].as_u64().unwrap() > 1400);
    ends(place.run("check vol --repair"), 8, "unmount it first");

    // So that no reader gets the page from a cache.
    flip(&largest(&place), 5 * 4096 + 99);
    let said = ends(place.run("check mnt"), 4, "[page-damaged]");
    assert!(
        said.contains("page 5: /dir/large (inode 3) and 1 more"),
        "{said}"
    );
    let read = fs::read(mounted.path("dir/large"));
    assert!(
        read.is_err() || read.unwrap() == noise(1, 6_000_000),
        "from the kernel's cache"
    );
    mounted.unmount();

    let before = fs::metadata(place.path("vol/meta"))
        .unwrap()
        .modified()
        .unwrap();
    ends(place.run("check vol"), 4, "page 5: /dir/large");
    ends(place.run("check vol --quiet --quick"), 0, "");
    let after = fs::metadata(place.path("vol/meta"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after, "nothing is written");
    let json = ends(place.run("check vol --json"), 4, "");
    let json: Value = serde_json::from_str(&json).unwrap();
    let finding = &json["findings"][0];
    assert_eq!(finding["kind"], "page-damaged");
    assert_eq!(finding["pages"], serde_json::json!([[5, 6]]));
    assert_eq!(
        finding["paths"],
        serde_json::json!(["/dir/large", "/.snapshots/monday/dir/large"])
    );

    let stray = largest(&place).with_file_name("00112233445566778899aabbccddeeff");
    fs::write(&stray, b"stray").unwrap();
    ends(
        place.run("check vol --repair"),
        4,
        "[object-unnamed], repaired",
    );
    assert!(!stray.exists());
    flip(&largest(&place), 5 * 4096 + 99);
    fs::write(&stray, b"stray").unwrap();
    ends(place.run("check vol --repair"), 1, "corrected: 1 repaired");
    ends(place.run("check vol"), 0, "clean: ");
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(
        fs::read(mounted.path("dir/large")).unwrap(),
        noise(1, 6_000_000)
    );
    mounted.unmount();

    ends(place.run("check"), 16, "required");
    ends(place.run("check vol --frob"), 16, "--frob");
    ends(place.run("check nothing"), 8, "");
    ends(place.run("check home"), 8, "");
}

#[test]
fn a_mount_that_is_written_to_has_no_findings() {
    let Some(place) = Place::new("check-load", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "commit=1");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (mounted, stop) = (&mounted, &stop);
            scope.spawn(move || {
                let mut round = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    let path = mounted.path(&format!("w{writer}-{}", round % 4));
                    fs::write(&path, noise(round, 300_000)).unwrap();
                    let file = fs::File::options().write(true).open(&path).unwrap();
                    file.write_all_at(&noise(round, 50_000), 70_000).unwrap();
                    file.sync_all().unwrap();
                    file.set_len(100_000 + round % 7 * 9_000).unwrap();
                    if round % 5 == 3 {
                        fs::remove_file(&path).unwrap();
                    }
                    if round % 6 == 2 {
                        fs::create_dir(mounted.path(&format!(".snapshots/{writer}-{round}")))
                            .unwrap();
                    }
                    if round % 6 == 5 {
                        let old = format!(".snapshots/{writer}-{}", round - 3);
                        fs::remove_dir(mounted.path(&old)).unwrap();
                    }
                    round += 1;
                }
            });
        }
        let outcomes: Vec<Outcome> = (0..8).map(|_| place.run("check vol")).collect();
        stop.store(true, Ordering::SeqCst);
        for outcome in outcomes {
            let said = ends(outcome, 0, "clean: ");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    });
    mounted.kill();
    mounted.take_away();
    let said = ends(place.run("check vol"), 0, "clean: ");
    assert!(said.contains("[unclean]"), "{said}");
    let mounted = place.mount("vol", "mnt", "");
    mounted.unmount();
    let said = ends(place.run("check vol"), 0, "clean: ");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// Damage to the checkpoints is reported, and hides no other damage.
#[test]
fn checkpoints_that_are_no_directory() {
    let Some(place) = Place::new("check-checkpoints", LIMIT) else {
        return;
    };
    place.fresh("", "").unmount();
    let checkpoints = place.path("vol/checkpoints");
    fs::remove_dir_all(&checkpoints).unwrap();
    fs::write(&checkpoints, "no directory").unwrap();
    let said = ends(place.run("check vol"), 4, "[checkpoint]");
    assert!(said.contains("cannot be listed"), "{said}");
    fs::remove_file(&checkpoints).unwrap();
    std::os::unix::fs::symlink("nowhere", &checkpoints).unwrap();
    ends(place.run("check vol"), 4, "[checkpoint]");
}
