//! A volume on a filesystem that is a FUSE filesystem itself: another bilayer mount. The kernel
//! does not forward `syncfs(2)` to it, so each object has to be synced by itself.

use std::fs;
use std::time::Duration;

use crate::real::{Place, noise};

const FILES: u64 = 60;
const FILE_BYTES: usize = 20_000;
/// Neither daemon does anything by itself.
const QUIET: &str = "commit=300";

#[test]
fn synced_data_survives_a_kill_of_the_filesystem_below() {
    let Some(place) = Place::new("stacked", Duration::from_secs(180)) else {
        return;
    };
    place.run("create lower").done();
    let lower = place.mount("lower", "below", QUIET);
    place.run("create below/upper").done();
    let log = place.path("log");
    let options = format!("{QUIET},log_file={}", log.display());
    let upper = place.mount("below/upper", "mnt", &options);
    let said = fs::read_to_string(&log).unwrap();
    for number in 0..FILES {
        let bytes = noise(number, FILE_BYTES);
        fs::write(upper.path(&format!("f{number}")), bytes).unwrap();
    }
    // It is durable when the command returns, together with everything written before.
    place.run("snapshot create mnt s").done();
    upper.kill();
    lower.kill();
    upper.take_away();
    lower.take_away();

    let lower = place.mount("lower", "below", QUIET);
    let upper = place.mount("below/upper", "mnt", QUIET);
    for number in 0..FILES {
        let bytes = fs::read(upper.path(&format!(".snapshots/s/f{number}"))).unwrap();
        assert!(bytes == noise(number, FILE_BYTES), "f{number}");
    }
    assert!(
        said.contains("each file by itself") && said.contains("fuse.bilayer"),
        "{said}"
    );
    place.run("check mnt").done();
    // After the kill each object was synced once, and the volume is still an ordinary one.
    fs::write(upper.path("late"), noise(99, FILE_BYTES)).unwrap();
    upper.unmount();
    let upper = place.mount("below/upper", "mnt", "");
    assert!(fs::read(upper.path("late")).unwrap() == noise(99, FILE_BYTES));
    upper.unmount();
    lower.unmount();
}

#[test]
fn salvaged_data_survives_a_kill_of_the_filesystem_of_out() {
    let Some(place) = Place::new("stacked-salvage", Duration::from_secs(180)) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::create_dir_all(mounted.path("a/b")).unwrap();
    for number in 0..FILES {
        let bytes = noise(number, FILE_BYTES);
        fs::write(mounted.path(&format!("a/b/f{number}")), bytes).unwrap();
    }
    mounted.unmount();
    place.run("create lower").done();
    let lower = place.mount("lower", "below", QUIET);
    place.run("salvage vol below/out").done();
    lower.kill();
    lower.take_away();
    let lower = place.mount("lower", "below", "");
    let report = fs::read_dir(lower.path("out")).unwrap().count();
    assert!(report > 1, "{report}");
    let mut synced = 0;
    let mut dirs = vec![lower.path("out")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                dirs.push(path);
            } else if let Some(number) = name.strip_prefix('f').and_then(|n| n.parse().ok()) {
                assert!(
                    fs::read(path).unwrap() == noise(number, FILE_BYTES),
                    "{name}"
                );
                synced += 1;
            }
        }
    }
    assert_eq!(synced, FILES);
    lower.unmount();
}

/// On a disk's filesystem one call is enough.
#[test]
fn the_log_says_how_files_are_synced() {
    let Some(place) = Place::new("synced", Duration::from_secs(100)) else {
        return;
    };
    let log = place.path("log");
    let mounted = place.fresh("", &format!("log_file={}", log.display()));
    let said = fs::read_to_string(&log).unwrap();
    let type_of = std::process::Command::new("findmnt")
        .args(["-n", "-o", "FSTYPE", "--target"])
        .arg(place.path("vol"))
        .output()
        .unwrap();
    let type_of = String::from_utf8(type_of.stdout).unwrap();
    let proven = ["ext4", "xfs", "btrfs", "f2fs", "tmpfs"];
    let expected = match proven.contains(&type_of.trim()) {
        true => "many files at once",
        false => "each file by itself",
    };
    assert!(said.contains(expected), "{type_of}: {said}");
    mounted.unmount();
}
