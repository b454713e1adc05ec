//! Space: limits, reservations, and what is given back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::control::{Ext4, OPTIONS, place, run_script};
use crate::real::{noise, write_synced};

const RESERVED: &str = include_str!("reserved.py");
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

/// All effects of a reservation, on a volume with a limit of its own.
#[test]
fn a_reservation_holds_on_a_full_volume() {
    let Some(place) = place("reserve-limit") else {
        return;
    };
    let mounted = place.fresh("--size 64M", OPTIONS);
    assert_eq!(run_script(&place, mounted.dir(), RESERVED, &[]), KEPT);
    fs::remove_dir_all(mounted.path("work")).unwrap();
    mounted.unmount();
    assert_eq!(bytes_on_disk(&place.path("vol/objects")), 0);
}

/// The same on a full backing disk, through the mount and by other processes.
#[test]
fn a_reservation_holds_on_a_full_disk() {
    let test = "reserve-disk";
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
    assert_eq!(run_script(&place, mounted.dir(), RESERVED, &words), KEPT);
    mounted.unmount();
}

/// Reserved space is reserved on the backing disk, also across a remount, and is given back to it.
#[test]
fn reserved_space_is_on_the_backing_disk() {
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
    // A hole in the middle of a range that was never written; then the end.
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

/// `df` shows the limit, inodes are counted, and a full volume gives back the space of removed
/// files.
#[test]
fn a_full_volume_gives_back_removed_space() {
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
        // Existing data may be rewritten on a full volume.
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

fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
}

/// Files that are too small for a page, names, attributes and links take space too.
#[test]
fn small_files_and_names_are_counted() {
    let Some(place) = place("small-files") else {
        return;
    };
    const LIMIT: u64 = 1 << 20;
    let mounted = place.fresh("--size 1M", OPTIONS);
    let free = || {
        let space = rustix::fs::statvfs(mounted.dir()).unwrap();
        space.f_bavail * space.f_frsize
    };
    let used = || place.status(mounted.dir())["usage"]["used_bytes"].as_u64();
    assert_eq!(free(), LIMIT);
    let mut made = 0;
    while fs::write(mounted.path(&format!("f{made}")), noise(made, 2000)).is_ok() {
        made += 1;
        assert!(made < 600, "2000 bytes each are not counted");
        if made == 100 {
            let taken = LIMIT - free();
            assert!((200_000..260_000).contains(&taken), "{taken}");
        }
    }
    assert!(made > 400, "{made}");
    assert!(free() < 8192, "{}", free());
    assert!(
        used().is_none_or(|used| used > LIMIT * 9 / 10),
        "{:?}",
        used()
    );
    // Everything that is created takes space, the smallest file too.
    let at = |name: &str| mounted.path(name);
    let mut links = 0;
    while fs::hard_link(at("f0"), at(&format!("link{links}"))).is_ok() {
        links += 1;
        assert!(links < 200, "names are not counted");
    }
    refused(fs::create_dir(at("dir")));
    refused(std::os::unix::fs::symlink("where to", at("link")));
    let attribute = |value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(at("f1"), "user.it", value, flags)
    };
    assert_eq!(attribute(&[1; 500]), Err(rustix::io::Errno::NOSPC));
    refused(fs::File::create(at("new")));
    let script = format!("echo x > {}", at("new").display());
    let shell = crate::real::run(&mut crate::real::command("sh", ["-c", &script]));
    assert_ne!(shell.code, 0);
    assert!(shell.stderr.contains("No space left"), "{}", shell.stderr);
    let append = fs::File::options().append(true).open(at("f2"));
    let append = append.and_then(|mut file| {
        std::io::Write::write_all(&mut file, &[1; 5000])?;
        file.sync_all()
    });
    refused(append);
    // Operations that take no more space than before succeed.
    fs::rename(at("f3"), at("renamed to something longer")).unwrap();
    fs::set_permissions(
        at("f4"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let file = fs::File::options().write(true).open(at("f4")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(99, 2000), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(fs::read(at("f4")).unwrap() == noise(99, 2000));
    place.run("snapshot create mnt one").done();
    for number in 0..links {
        fs::remove_file(at(&format!("link{number}"))).unwrap();
    }
    for number in 5..105 {
        fs::remove_file(at(&format!("f{number}"))).unwrap();
    }
    assert!((200_000..270_000).contains(&free()), "{}", free());
    let views = place.run("snapshot list mnt --json").done().stdout;
    let views: serde_json::Value = serde_json::from_str(&views).unwrap();
    let view = &views[0];
    let bytes = |name: &str| view[name].as_u64().unwrap_or_else(|| panic!("{views}"));
    assert!(bytes("refers_bytes") > LIMIT * 9 / 10, "{view}");
    assert!((200_000..280_000).contains(&bytes("used_bytes")), "{view}");
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("new"), b"x\n").unwrap();
    attribute(&[1; 500]).unwrap();
    mounted.unmount();
    place.run("check vol").done();
    let mounted = place.mount("vol", "mnt", OPTIONS);
    fs::remove_dir_all(mounted.path("dir")).unwrap();
    for entry in fs::read_dir(mounted.dir()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let space = rustix::fs::statvfs(mounted.dir()).unwrap();
    assert_eq!(space.f_bavail * space.f_frsize, LIMIT);
    mounted.unmount();
}
