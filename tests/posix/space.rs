//! Room: limits, promises, what comes back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::control::{Ext4, OPTIONS, place, run_script};
use crate::real::{noise, write_synced};

const PROMISED: &str = include_str!("promised.py");
const KEPT: &str = "full ENOSPC True\nwritten ENOSPC\nback True\nand is used\n";

fn bytes_on_disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => bytes_on_disk(&entry.path()),
            false => entry.metadata().unwrap().blocks() * 512,
        })
        .sum()
}

/// Everything that a promise means, where a volume has a limit of its own.
#[test]
fn a_promise_is_kept_on_a_full_volume() {
    let Some(place) = place("promise-limit") else {
        return;
    };
    let mounted = place.fresh("--size 64M", OPTIONS);
    assert_eq!(run_script(&place, mounted.dir(), PROMISED, &[]), KEPT);
    fs::remove_dir_all(mounted.path("work")).unwrap();
    mounted.unmount();
    assert_eq!(bytes_on_disk(&place.path("vol/objects")), 0);
}

/// The same where the disk below is full, through the mount and by others.
#[test]
fn a_promise_is_kept_on_a_full_disk() {
    let test = "promise-disk";
    let Some(place) = place(test) else { return };
    let Some(disk) = Ext4::new(&place, test, 96, &["-m", "0"]) else {
        return;
    };
    let volume = disk.dir().join("vol");
    let volume = volume.to_str().unwrap();
    place.run(&format!("create {volume}")).done();
    let mounted = place.mount(volume, "mnt", OPTIONS);
    let ballast = disk.dir().join("ballast");
    let words = [ballast.to_str().unwrap()];
    assert_eq!(run_script(&place, mounted.dir(), PROMISED, &words), KEPT);
    mounted.unmount();
}

/// What is set aside is set aside on the disk below, also across a remount, and goes back to it.
#[test]
fn what_is_set_aside_is_on_the_disk_below() {
    let Some(place) = place("set-aside") else {
        return;
    };
    const LEN: u64 = 10 << 20;
    let mounted = place.fresh("", OPTIONS);
    let allocate = |path: &Path, keep: bool, offset: u64, len: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        let flags = if keep {
            rustix::fs::FallocateFlags::KEEP_SIZE
        } else {
            rustix::fs::FallocateFlags::empty()
        };
        rustix::fs::fallocate(&file, flags, offset, len).unwrap();
        file.sync_all().unwrap();
        file
    };
    let path = mounted.path("file");
    fs::write(&path, noise(1, 100_000)).unwrap();
    drop(allocate(&path, true, 0, LEN));
    let objects = place.path("vol/objects");
    let on_disk = || bytes_on_disk(&objects);
    assert!((LEN..LEN + LEN / 20).contains(&on_disk()), "{}", on_disk());
    let status = fs::metadata(&path).unwrap();
    assert_eq!(status.len(), 100_000);
    assert!((LEN..LEN + LEN / 20).contains(&(status.blocks() * 512)));
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", OPTIONS);
    assert_eq!(fs::metadata(&path).unwrap().blocks(), status.blocks());
    assert!((LEN..LEN + LEN / 20).contains(&on_disk()), "{}", on_disk());
    // A hole in the middle, in the midst of what was never written; then the end.
    let file = allocate(&path, false, 0, LEN);
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, LEN / 2, LEN / 4).unwrap();
    drop(file);
    mounted.unmount();
    assert!(
        (LEN / 4 * 3..LEN * 8 / 10).contains(&on_disk()),
        "{}",
        on_disk()
    );
    let mounted = place.mount("vol", "mnt", OPTIONS);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(50_000).unwrap();
    drop(file);
    mounted.unmount();
    assert!((50_000..70_000).contains(&on_disk()), "{}", on_disk());
    let mounted = place.mount("vol", "mnt", OPTIONS);
    assert!(fs::read(&path).unwrap() == noise(1, 100_000)[..50_000]);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 70_000);
    mounted.unmount();
}

/// `df` says what the limit says, inodes are counted, and a full volume gives back what is removed.
#[test]
fn a_full_volume_gives_back_what_is_removed() {
    let Some(place) = place("full-volume") else {
        return;
    };
    let mounted = place.fresh("--size 16M", OPTIONS);
    let space = || rustix::fs::statvfs(mounted.dir()).unwrap();
    let (blocks, files) = (space().f_blocks, space().f_files - space().f_ffree);
    assert_eq!(blocks * space().f_frsize, 16 << 20);
    for round in 0..3 {
        let mut written = 0;
        while write_synced(
            &mounted.path(&format!("f{written}")),
            &noise(written, 700_000),
        )
        .is_ok()
        {
            written += 1;
            assert!(written < 30, "the limit is not kept");
        }
        assert!(written >= 22, "round {round}: {written}");
        assert!(space().f_bavail < 200);
        // What exists may be written anew however full it is.
        for number in 0..written {
            let path = mounted.path(&format!("f{number}"));
            let file = fs::File::options().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &noise(99, 700_000), 0).unwrap();
            file.sync_all().unwrap();
        }
        fs::create_dir(mounted.path("dir")).unwrap();
        fs::rename(mounted.path("f0"), mounted.path("dir/f0")).unwrap();
        assert!(fs::read(mounted.path("dir/f0")).unwrap() == noise(99, 700_000));
        fs::remove_dir_all(mounted.path("dir")).unwrap();
        for number in 1..=written {
            let _ = fs::remove_file(mounted.path(&format!("f{number}")));
        }
        assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 0);
        assert_eq!(space().f_bfree, blocks, "round {round}");
        assert_eq!(space().f_files - space().f_ffree, files);
    }
    mounted.unmount();
}
