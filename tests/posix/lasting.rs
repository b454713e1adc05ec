//! State that outlives the daemon: after a clean unmount, and after its death.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::control::{OPTIONS, objects, place, run_script};
use crate::real::{Mounted, noise};

fn free(mounted: &Mounted<'_>) -> (u64, u64) {
    let space = rustix::fs::statvfs(mounted.dir()).unwrap();
    (space.f_bfree, space.f_ffree)
}

/// Many open files without a name: when the daemon dies, they and their space are gone.
#[test]
fn nameless_files_leave_nothing_after_a_crash() {
    let Some(place) = place("nameless-crash") else {
        return;
    };
    let mounted = place.fresh("--size 256M", "");
    fs::write(mounted.path("kept"), noise(1, 50_000)).unwrap();
    File::open(mounted.path("kept"))
        .unwrap()
        .sync_all()
        .unwrap();
    let before = free(&mounted);
    let files: Vec<File> = (0..300)
        .map(|number| {
            let path = mounted.path(&format!("f{number}"));
            let mut options = OpenOptions::new();
            let file = options.create_new(true).read(true).write(true).open(&path);
            let mut file = file.unwrap();
            file.write_all(&noise(number, 200_000)).unwrap();
            if number % 3 == 0 {
                file.sync_all().unwrap();
            }
            fs::remove_file(path).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            file
        })
        .collect();
    for (number, file) in files.iter().enumerate() {
        let mut actual = vec![0; 1_000];
        file.read_exact_at(&mut actual, 150_000).unwrap();
        assert!(actual == noise(number as u64, 200_000)[150_000..151_000]);
        file.sync_all().unwrap();
    }
    assert_ne!(free(&mounted), before);
    mounted.kill();
    mounted.take_away();
    drop(files);
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 1);
    assert_eq!(free(&mounted), before);
    assert!(fs::read(mounted.path("kept")).unwrap() == noise(1, 50_000));
    mounted.unmount();
    assert_eq!(objects(&place.path("vol/objects")), 1);
}

/// A write that returned is on the disk if that was requested.
#[test]
fn synchronous_writes_outlive_a_crash() {
    let Some(place) = place("synchronous") else {
        return;
    };
    let mounted = place.fresh("", "commit=3600");
    let root = File::open(mounted.dir()).unwrap();
    let mut expected = Vec::new();
    for (name, flags) in [
        ("sync", libc_flags::SYNC),
        ("dsync", libc_flags::DSYNC),
        ("direct", libc_flags::DIRECT | libc_flags::DSYNC),
    ] {
        let path = mounted.path(name);
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).write(true);
        let file = options.custom_flags(flags).open(&path).unwrap();
        root.sync_all().unwrap();
        let bytes = noise(flags.unsigned_abs().into(), 1 << 20);
        // O_DIRECT requires aligned memory on some filesystems, not on this one.
        for (number, piece) in bytes.chunks(8192).enumerate() {
            file.write_all_at(piece, number as u64 * 8192).unwrap();
        }
        expected.push((name, bytes));
        std::mem::forget(file.try_clone().unwrap());
    }
    mounted.kill();
    mounted.take_away();
    let mounted = place.mount("vol", "mnt", "");
    for (name, bytes) in expected {
        assert!(fs::read(mounted.path(name)).unwrap() == bytes, "{name}");
    }
    mounted.unmount();
}

/// `open(2)` flags as Linux has them on the architectures it runs on today.
mod libc_flags {
    pub(super) const SYNC: i32 = rustix::fs::OFlags::SYNC.bits().cast_signed();
    pub(super) const DSYNC: i32 = rustix::fs::OFlags::DSYNC.bits().cast_signed();
    pub(super) const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();
}

/// Everything that stat(2) shows of everything below a directory, by path.
fn everything(root: &Path) -> BTreeMap<PathBuf, Vec<i64>> {
    let mut entries = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let status = fs::symlink_metadata(&path).unwrap();
        if status.is_dir() {
            rest.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let status = fs::symlink_metadata(&path).unwrap();
        let numbers = [
            status.ino(),
            status.nlink(),
            status.rdev(),
            status.size(),
            status.blocks(),
        ];
        let owners = [status.mode(), status.uid(), status.gid()];
        let times = [
            (status.atime(), status.atime_nsec()),
            (status.mtime(), status.mtime_nsec()),
            (status.ctime(), status.ctime_nsec()),
        ];
        let mut all: Vec<i64> = numbers.into_iter().map(u64::cast_signed).collect();
        all.extend(owners.map(i64::from));
        all.extend(times.into_iter().flat_map(|(secs, nanos)| [secs, nanos]));
        entries.insert(path, all);
    }
    entries
}

#[test]
fn everything_is_the_same_after_a_remount() {
    let Some(place) = place("remount-same") else {
        return;
    };
    let mut mounted = place.fresh("", OPTIONS);
    for (name, script) in [
        ("special", include_str!("special.py")),
        ("names", include_str!("names.py")),
        ("acl", include_str!("acl.py")),
        ("times", include_str!("times.py")),
    ] {
        let parent = mounted.path(name);
        fs::create_dir(&parent).unwrap();
        run_script(&place, &parent, script, &[]);
    }
    // Listing a directory updates its time of last access once.
    everything(mounted.dir());
    let before = everything(mounted.dir());
    assert!(before.len() > 100);
    for _ in 0..2 {
        mounted.unmount();
        mounted = place.mount("vol", "mnt", OPTIONS);
        let after = everything(mounted.dir());
        for (path, was) in &before {
            assert_eq!(after.get(path), Some(was), "{}", path.display());
        }
        assert_eq!(after.len(), before.len());
    }
    mounted.unmount();
}

/// ext4 has the years 1901 to 2446; a mount has all times in seconds of 64 bits.
#[test]
fn times_far_away_are_kept() {
    let Some(place) = place("far-times") else {
        return;
    };
    let mounted = place.fresh("", OPTIONS);
    let seconds = [
        i64::from(i32::MIN),
        i64::from(i32::MIN) - 1,
        1 << 34,
        -(1 << 34),
        1 << 50,
        -(1 << 50),
        i64::MAX - 1,
        i64::MIN + 1,
        // At the limits, and only there, the kernel drops the nanoseconds.
        i64::MAX,
        i64::MIN,
    ];
    let words = seconds.map(|second| second.to_string());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = run_script(&place, mounted.dir(), include_str!("times.py"), &words);
    for word in words {
        let prefix = format!("{word} ");
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with(&prefix))
            .collect();
        assert_eq!(lines.len(), 4, "{word}");
        for line in lines {
            let whole = format!("{word}000000000");
            let kept = match word {
                "9223372036854775807" | "-9223372036854775808" => {
                    line.split(' ').filter(|shown| *shown == whole).count() == 2
                }
                _ => line.ends_with(" True"),
            };
            assert!(kept, "{line}");
        }
    }
    mounted.unmount();
}

/// Without the kernel's times, a write through a mapping still updates the times.
#[test]
fn a_mapping_moves_the_times_without_writeback() {
    let Some(place) = place("times-without-writeback") else {
        return;
    };
    let mounted = place.fresh("", &format!("{OPTIONS},nowriteback"));
    let said = run_script(&place, mounted.dir(), include_str!("times.py"), &[]);
    let (_, after) = said.split_once("# through a mapping\n").unwrap();
    assert_eq!(after.lines().next(), Some("m:mtime+ctime"));
    mounted.unmount();
}

/// Reading updates the time of last access as `relatime` says, or never.
#[test]
fn options_about_access_times() {
    let Some(place) = place("access-times") else {
        return;
    };
    place.run("create vol").done();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    for (options, moves) in [("", true), ("relatime", true), ("noatime", false)] {
        let mounted = place.mount("vol", "mnt", options);
        let file = File::create(mounted.path("f")).unwrap();
        (&file).write_all(&noise(1, 10_000)).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(long_ago))
            .unwrap();
        drop(file);
        mounted.unmount();
        let mounted = place.mount("vol", "mnt", options);
        let accessed = || fs::metadata(mounted.path("f")).unwrap().accessed().unwrap();
        assert_eq!(accessed(), long_ago);
        fs::read(mounted.path("f")).unwrap();
        assert_eq!(accessed() != long_ago, moves, "{options}");
        let first = accessed();
        mounted.unmount();
        let mounted = place.mount("vol", "mnt", options);
        let accessed = || fs::metadata(mounted.path("f")).unwrap().accessed().unwrap();
        fs::read(mounted.path("f")).unwrap();
        // Newer than the last change and less than a day old.
        assert_eq!(accessed(), first, "{options}");
        mounted.unmount();
    }
}
