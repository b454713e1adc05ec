//! A full backing disk: writers get ENOSPC, nothing that was synced is lost, and freed space can be
//! written again.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::disk::SmallDisk;
use crate::real::{Mounted, Place, noise, write_synced};
use crate::writers::Writer;

const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

/// Writes files until the disk is full. Returns the names and seeds of those that were synced.
fn fill(dir: &Path, prefix: &str, len: usize) -> Vec<(String, u64)> {
    let mut synced = Vec::new();
    for seed in 0..20_000 {
        let name = format!("{prefix}-{seed}");
        match write_synced(&dir.join(&name), &noise(seed, len)) {
            Ok(()) => synced.push((name, seed)),
            Err(error) => {
                assert!(is_full(&error), "{name}: {error}");
                // A file that exists only in part can be removed.
                match fs::remove_file(dir.join(&name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        panic!("{name} cannot be removed: {error}")
                    }
                    _ => return synced,
                }
            }
        }
    }
    panic!("the disk does not get full");
}

fn check(dir: &Path, synced: &[(String, u64)], len: usize) {
    for (name, seed) in synced {
        let actual = fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(actual == noise(*seed, len), "{name} is not what was synced");
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let test = "full-disk";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(_disk) = SmallDisk::new(&place, 32, test) else {
        return;
    };
    place.run("create disk/vol").done();
    let mut mounted = place.mount("disk/vol", "mnt", "");
    for (round, len) in [1_000_000, 60_000, 20_000].into_iter().enumerate() {
        let mut synced = fill(mounted.dir(), &format!("round-{round}"), len);
        assert!(synced.len() > 8, "round {round}: {}", synced.len());
        check(mounted.dir(), &synced, len);
        assert_writable_after_removal(&mounted, &mut synced, len);
        check(mounted.dir(), &synced, len);
        mounted.unmount();
        mounted = place.mount("disk/vol", "mnt", "");
        check(mounted.dir(), &synced, len);
        for (name, _) in &synced {
            fs::remove_file(mounted.path(name)).unwrap();
        }
        // The space is free once the removal is on disk.
        fs::File::open(mounted.dir()).unwrap().sync_all().unwrap();
        mounted.unmount();
        mounted = place.mount("disk/vol", "mnt", "");
    }
    assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 0);
    mounted.unmount();
}

/// Removes a third of the files and writes others into their space.
fn assert_writable_after_removal(
    mounted: &Mounted<'_>,
    synced: &mut Vec<(String, u64)>,
    len: usize,
) {
    for (name, _) in synced.split_off(synced.len() * 2 / 3) {
        fs::remove_file(mounted.path(&name)).unwrap();
    }
    fs::File::open(mounted.dir()).unwrap().sync_all().unwrap();
    for seed in 10_000..10_003 {
        let name = format!("again-{seed}");
        let written = write_synced(&mounted.path(&name), &noise(seed, len));
        written.unwrap_or_else(|error| panic!("{name} after a third was removed: {error}"));
        synced.push((name, seed));
    }
}

#[test]
fn a_disk_that_others_fill_does_not_break_the_volume() {
    let test = "disk-filled-by-others";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(disk) = SmallDisk::new(&place, 32, test) else {
        return;
    };
    place.run("create disk/vol").done();
    let mounted = place.mount("disk/vol", "mnt", "commit=1");
    write_synced(&mounted.path("kept"), &noise(1, 500_000)).unwrap();
    let ballast = disk.dir.join("ballast");
    let filled = fs::write(&ballast, vec![1; 40 << 20]).unwrap_err();
    assert!(is_full(&filled), "{filled}");
    // Names need no space for contents: creating them may succeed or fail with ENOSPC.
    for number in 0..2000 {
        match fs::create_dir(mounted.path(&format!("dir-{number}"))) {
            Err(error) if !is_full(&error) => panic!("dir-{number}: {error}"),
            _ => {}
        }
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert!(fs::read(mounted.path("kept")).unwrap() == noise(1, 500_000));
    fs::remove_file(&ballast).unwrap();
    let written = write_synced(&mounted.path("after"), &noise(2, 500_000));
    written.unwrap_or_else(|error| panic!("after space was freed: {error}"));
    mounted.unmount();
    let mounted = place.mount("disk/vol", "mnt", "");
    assert!(fs::read(mounted.path("kept")).unwrap() == noise(1, 500_000));
    assert!(fs::read(mounted.path("after")).unwrap() == noise(2, 500_000));
    mounted.unmount();
}

/// An operation that fails with ENOSPC has no effect, and deleting files frees space.
#[test]
fn views_of_a_full_disk() {
    let test = "full-views";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(disk) = SmallDisk::new(&place, 100, test) else {
        return;
    };
    place.run("create disk/vol").done();
    let mounted = place.mount("disk/vol", "mnt", "commit=1");
    let before = fill_some(mounted.dir());
    place.run("snapshot create mnt one").done();
    for (name, _) in &before {
        fs::remove_file(mounted.path(name)).unwrap();
    }
    fill(mounted.dir(), "after", 300_000);
    // Less is free than a commit reserves.
    fs::write(disk.dir.join("other"), vec![1; 100 << 20]).unwrap_err();
    let names = |dir: &str| -> Vec<_> {
        let entries = fs::read_dir(mounted.path(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let mut taken = vec![std::ffi::OsString::from("one")];
    for number in 0..40 {
        // The times of a directory are a change of the metadata.
        fs::create_dir(mounted.path(&format!("dir{number}"))).ok();
        let name = format!("two{number:02}");
        match fs::create_dir(mounted.path(".snapshots").join(&name)) {
            Ok(()) => taken.push(name.into()),
            Err(error) => assert!(is_full(&error), "{error}"),
        }
        assert_eq!(names(".snapshots"), taken);
    }
    for name in &taken {
        fs::remove_dir(mounted.path(".snapshots").join(name)).unwrap();
    }
    assert!(names(".snapshots").is_empty());
    // As much as before fits again.
    for (name, seed) in &before {
        write_synced(&mounted.path(name), &noise(*seed, 1_000_000)).unwrap();
    }
    mounted.unmount();
}

fn fill_some(dir: &Path) -> Vec<(String, u64)> {
    let names = (0..30).map(|seed| (format!("before-{seed}"), seed));
    let names: Vec<_> = names.collect();
    for (name, seed) in &names {
        write_synced(&dir.join(name), &noise(*seed, 1_000_000)).unwrap();
    }
    names
}

/// Several threads write, sync, rename, append and take snapshots, while another process fills the
/// disk and frees it again.
#[test]
fn the_disk_fills_up_during_every_kind_of_work() {
    let test = "full-middle";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(disk) = SmallDisk::new(&place, 192, test) else {
        return;
    };
    place.run("create disk/vol").done();
    let mounted = place.mount("disk/vol", "mnt", "commit=1");
    let mut writers: Vec<_> = (0..3)
        .map(|number| Writer::new(mounted.dir(), number))
        .collect();
    for round in 0..3 {
        std::thread::scope(|scope| {
            for writer in &mut writers {
                scope.spawn(|| {
                    // Until the disk is full. A disk that is never full is noticed at the end.
                    let stopped = writer.work(100_000);
                    assert!(is_full(&stopped.unwrap_err()));
                });
            }
            std::thread::sleep(Duration::from_millis(400));
            let snapshot = place.run(&format!("snapshot create mnt round-{round}"));
            std::thread::sleep(Duration::from_millis(200));
            disk.fill(200);
            eprintln!("snapshot {round}: {}", snapshot.code);
        });
        disk.empty();
        writers.iter_mut().for_each(Writer::check);
        // Files may be half written: removing them frees space, and everything works again.
        for snapshot in fs::read_dir(mounted.path(".snapshots")).unwrap() {
            fs::remove_dir(snapshot.unwrap().path()).unwrap();
        }
    }
    mounted.unmount();
    let mounted = place.mount("disk/vol", "mnt", "");
    writers.iter_mut().for_each(Writer::check);
    writers
        .iter_mut()
        .for_each(|writer| writer.work(20).unwrap());
    mounted.unmount();
    place.run("check disk/vol").done();
}
