//! Kept views of the filesystem.

use bilayer::errno::Errno;
use bilayer::fs::snapshots::{ViewError, ViewKind};
use bilayer::fs::types::{DirentRef, Fallocate, RenameFlags};

use bilayer::snapshot::purge::Purge;

use crate::support::{ADMIN, CHUNK, Mount, PAGE, ROOT, USER, audit, pattern};

pub(super) fn take(mount: &Mount, name: &str) {
    let made = mount
        .fs
        .create_view(ViewKind::Snapshot, name, None, "")
        .unwrap();
    assert_eq!(made.name, name);
}

pub(super) fn drop_it(mount: &Mount, name: &str) {
    mount.fs.delete_view(ViewKind::Snapshot, name).unwrap();
}

pub(super) fn overwrite(mount: &Mount, name: &str, offset: usize, bytes: &[u8]) {
    let node = mount.at(name);
    let handle = mount.open_rw(node);
    mount.put(node, handle, offset as u64, bytes);
    mount.fs.release(node, handle);
}

pub(super) fn restore(mount: &Mount, name: &str, path: Option<&str>) {
    let path = path.map(std::path::Path::new);
    mount.fs.restore(name, path).unwrap();
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "dir");
    let large = pattern(1, 0, 2 * CHUNK + 70_000);
    mount.file(dir, "large", &large);
    mount.file(dir, "small", b"before");
    mount.file(ROOT, "gone", b"still here");
    take(&mount, "one");
    overwrite(&mount, "dir/large", 5_000, &pattern(9, 0, 3 * PAGE));
    overwrite(&mount, "dir/large", 2 * CHUNK, b"more");
    overwrite(&mount, "dir/small", 0, b"after!");
    mount.truncate(mount.at("dir/large"), CHUNK as u64).unwrap();
    mount.fs.unlink(ROOT, b"gone").unwrap();
    mount
        .fs
        .rename(
            &USER,
            DirentRef::new(dir, b"small"),
            DirentRef::new(ROOT, b"moved"),
            RenameFlags::default(),
        )
        .unwrap();
    mount.file(dir, "new", b"new");

    let check = |mount: &Mount| {
        assert_eq!(mount.names(mount.at(".snapshots/one")), ["dir", "gone"]);
        assert_eq!(
            mount.names(mount.at(".snapshots/one/dir")),
            ["large", "small"]
        );
        assert!(mount.contents(mount.at(".snapshots/one/dir/large")) == large);
        assert_eq!(
            mount.contents(mount.at(".snapshots/one/dir/small")),
            b"before"
        );
        assert_eq!(
            mount.contents(mount.at(".snapshots/one/gone")),
            b"still here"
        );
        assert_eq!(mount.names(ROOT), ["dir", "moved"]);
        assert_eq!(mount.names(mount.at("dir")), ["large", "new"]);
        assert_eq!(mount.contents(mount.at("moved")), b"after!");
        let mut now = large[..CHUNK].to_vec();
        now[5_000..5_000 + 3 * PAGE].copy_from_slice(&pattern(9, 0, 3 * PAGE));
        assert!(mount.contents(mount.at("dir/large")) == now);
    };
    check(&mount);
    let mount = mount.reopen();
    check(&mount);
    let mount = mount.kill();
    check(&mount);
    drop_it(&mount, "one");
    mount.fs.finish_purge().unwrap();
    assert_eq!(mount.lookup(ROOT, b".snapshots").unwrap().nlink, 2);
    // One object is left for the one chunk, and the part on top of it.
    assert_eq!(mount.objects(), 2);
    let mount = mount.reopen();
    assert_eq!(mount.names(ROOT), ["dir", "moved"]);
    mount.finish();
}

/// Everything in a snapshot refuses to change.
#[test]
fn nothing_in_a_snapshot_changes() {
    let mount = Mount::new();
    mount.file(ROOT, "file", b"bytes");
    take(&mount, "one");
    let (top, file) = (mount.at(".snapshots/one"), mount.at(".snapshots/one/file"));
    let fs = &mount.fs;
    assert_eq!(fs.open_file(&ADMIN, file, libc::O_RDWR), Err(Errno::EROFS));
    assert_eq!(fs.mkdir(&ADMIN, top, b"x", 0o755), Err(Errno::EROFS));
    assert_eq!(fs.unlink(top, b"file"), Err(Errno::EROFS));
    assert_eq!(mount.truncate(file, 0), Err(Errno::EROFS));
    let flags = RenameFlags::default();
    let moved = fs.rename(
        &ADMIN,
        DirentRef::new(top, b"file"),
        DirentRef::new(top, b"other"),
        flags,
    );
    assert_eq!(moved, Err(Errno::EROFS));
    assert_eq!(fs.link(file, ROOT, b"link"), Err(Errno::EXDEV));
    assert_eq!(fs.link(file, top, b"link"), Err(Errno::EROFS));
    assert_eq!(
        fs.fallocate(
            file,
            fs.open_file(&USER, file, 0).unwrap(),
            0,
            1,
            Fallocate::PunchHole
        ),
        Err(Errno::EROFS)
    );
    mount.finish();
}

#[test]
fn the_directory_of_snapshots_accepts_nothing_else() {
    let mount = Mount::new();
    let fs = &mount.fs;
    let dir = mount.at(".snapshots");
    assert!(mount.names(ROOT).is_empty());
    assert_eq!(
        fs.mknod(&ADMIN, dir, b"x", libc::S_IFREG, 0),
        Err(Errno::EPERM)
    );
    assert_eq!(fs.mkdir(&USER, dir, b"x", 0o755), Err(Errno::EPERM));
    let made = fs.mkdir(&ADMIN, dir, b"x", 0o755).unwrap();
    assert_eq!(made.node, mount.at(".snapshots/x"));
    assert_eq!(fs.mkdir(&ADMIN, dir, b"x", 0o755), Err(Errno::EEXIST));
    assert_eq!(mount.names(dir), ["x"]);
    let flags = RenameFlags::default();
    fs.rename(
        &ADMIN,
        DirentRef::new(dir, b"x"),
        DirentRef::new(dir, b"y"),
        flags,
    )
    .unwrap();
    assert_eq!(mount.names(dir), ["y"]);
    let images = mount.at(".images");
    assert_eq!(
        fs.rename(
            &ADMIN,
            DirentRef::new(dir, b"y"),
            DirentRef::new(images, b"y"),
            flags
        ),
        Err(Errno::EXDEV)
    );
    assert_eq!(
        fs.rename(
            &ADMIN,
            DirentRef::new(dir, b"y"),
            DirentRef::new(ROOT, b"y"),
            flags
        ),
        Err(Errno::EXDEV)
    );
    assert_eq!(fs.rmdir(ROOT, b".snapshots"), Err(Errno::EBUSY));
    assert_eq!(fs.mkdir(&USER, ROOT, b".images", 0o755), Err(Errno::EEXIST));
    // In a snapshot these names mean nothing.
    assert_eq!(
        mount.lookup(mount.at(".snapshots/y"), b".snapshots"),
        Err(Errno::ENOENT)
    );
    assert_eq!(
        mount.lookup(mount.at(".snapshots/y"), b".."),
        mount.lookup(ROOT, b".snapshots")
    );
    fs.rmdir(dir, b"y").unwrap();
    assert_eq!(fs.rmdir(dir, b"y"), Err(Errno::ENOENT));
    mount.finish();
}

/// From the first position on: the directory itself and the root come before the views.
#[test]
fn the_directory_of_snapshots_is_listed_whole() {
    let mount = Mount::new();
    take(&mount, "one");
    for (path, expected) in [
        (".snapshots", vec![".", "..", "one"]),
        (".images", vec![".", ".."]),
    ] {
        let node = mount.at(path);
        let handle = mount.fs.open_dir(node).unwrap();
        let mut listed = Vec::new();
        let done = mount.fs.read_dir(node, handle, 0, &mut |entry| {
            listed.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.node));
            true
        });
        mount.fs.release_dir(node, handle);
        done.unwrap();
        let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, expected);
        assert_eq!([listed[0].1, listed[1].1], [node, ROOT]);
    }
    mount.finish();
}

#[test]
fn an_open_file_keeps_its_snapshot() {
    let mount = Mount::new();
    mount.file(ROOT, "file", b"bytes");
    take(&mount, "one");
    let file = mount.at(".snapshots/one/file");
    let handle = mount.fs.open_file(&USER, file, libc::O_RDONLY).unwrap();
    let refused = mount.fs.delete_view(ViewKind::Snapshot, "one");
    assert!(matches!(refused, Err(ViewError::Busy { .. })));
    assert_eq!(mount.contents_of(file, handle).unwrap(), b"bytes");
    mount.fs.release(file, handle);
    drop_it(&mount, "one");
    assert_eq!(mount.fs.getattr(file), Err(Errno::ESTALE));
    assert_eq!(
        mount.fs.open_file(&USER, file, libc::O_RDONLY),
        Err(Errno::ESTALE)
    );
    assert_eq!(mount.fs.open_dir(file), Err(Errno::ESTALE));
    mount.finish();
}

/// In whichever order views are deleted, the others stay, and at the end nothing is left.
#[test]
fn views_are_deleted_in_any_order() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let mut mount = Mount::new();
        let mut expected = Vec::new();
        mount.file(ROOT, "file", &pattern(0, 0, CHUNK + 50_000));
        mount.file(ROOT, "deleted-0", b"x");
        for number in 0..4u8 {
            take(&mount, &format!("s{number}"));
            expected.push((mount.contents(mount.at("file")), mount.names(ROOT)));
            overwrite(
                &mount,
                "file",
                usize::from(number) * 9_000,
                &pattern(number + 1, 0, 20_000),
            );
            let old = format!("deleted-{number}");
            mount.fs.unlink(ROOT, old.as_bytes()).unwrap();
            mount.file(
                ROOT,
                &format!("deleted-{}", number + 1),
                &pattern(number, 0, 9_000),
            );
        }
        let live = mount.contents(mount.at("file"));
        let mut left = vec![0, 1, 2, 3];
        for gone in order {
            drop_it(&mount, &format!("s{gone}"));
            mount.fs.finish_purge().unwrap();
            left.retain(|number| *number != gone);
            mount = mount.reopen();
            for number in &left {
                let top = mount.at(&format!(".snapshots/s{number}"));
                let (contents, names) = &expected[*number];
                assert_eq!(mount.names(top), *names);
                assert!(mount.contents(mount.lookup(top, b"file").unwrap().node) == *contents);
            }
            assert!(mount.contents(mount.at("file")) == live);
        }
        assert_eq!(mount.fs.views(ViewKind::Snapshot).unwrap(), []);
        mount.finish();
    }
}

#[test]
fn the_space_of_a_snapshot_is_reported() {
    let mount = Mount::new();
    mount.file(ROOT, "file", &pattern(0, 0, 100 * PAGE));
    take(&mount, "one");
    take(&mount, "two");
    let used = |mount: &Mount| -> Vec<(u64, u64)> {
        let views = mount.fs.views(ViewKind::Snapshot).unwrap();
        let pages = |bytes| bytes / 4096;
        views
            .iter()
            .map(|v| (pages(v.refers_bytes), pages(v.used_bytes)))
            .collect()
    };
    assert_eq!(used(&mount), [(100, 0), (100, 0)]);
    mount.fs.unlink(ROOT, b"file").unwrap();
    mount.commit();
    assert_eq!(used(&mount), [(100, 0), (100, 0)]);
    drop_it(&mount, "one");
    assert_eq!(used(&mount), [(100, 100)]);
    let info = mount
        .fs
        .create_view(ViewKind::Image, "image", Some("two"), "for all")
        .unwrap();
    assert_eq!((info.from.as_str(), info.refers_bytes / 4096), ("two", 100));
    assert_eq!(used(&mount), [(100, 0)]);
    drop_it(&mount, "two");
    mount.fs.finish_purge().unwrap();
    assert_eq!(
        mount.contents(mount.at(".images/image/file")).len(),
        100 * PAGE
    );
    mount.fs.delete_view(ViewKind::Image, "image").unwrap();
    mount.fs.finish_purge().unwrap();
    assert_eq!(mount.objects(), 0);
    mount.finish();
}

/// A reservation made before a snapshot still holds after it.
#[test]
fn a_reservation_survives_a_snapshot() {
    let mount = Mount::with(Some(8 << 20), crate::support::quiet());
    let (node, handle) = mount.create(ROOT, "file");
    let mode = Fallocate::Allocate { keep_size: false };
    mount.fs.fallocate(node, handle, 0, 1 << 20, mode).unwrap();
    mount.put(node, handle, 0, &pattern(1, 0, 100_000));
    let used = mount.fs.usage().contents_bytes;
    take(&mount, "one");
    mount.put(node, handle, 50_000, &pattern(2, 0, 100_000));
    assert_eq!(mount.fs.usage().contents_bytes, used);
    mount.fs.fsync(node, handle, false).unwrap();
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert_eq!(mount.fs.usage().contents_bytes, used);
    assert!(mount.contents(mount.at(".snapshots/one/file"))[..100_000] == pattern(1, 0, 100_000));
    drop_it(&mount, "one");
    mount.fs.finish_purge().unwrap();
    mount.finish();
}

/// Syncing and copying a file of a snapshot does not affect the live file.
#[test]
fn the_live_file_keeps_its_length_when_a_snapshot_is_synced_or_copied() {
    let mount = Mount::new();
    let before = pattern(1, 0, CHUNK + 1_500_000);
    let live = mount.file(ROOT, "file", &before);
    let copy = mount.file(ROOT, "copy", b"");
    take(&mount, "one");
    mount.truncate(live, 20_000).unwrap();
    let old = mount.at(".snapshots/one/file");
    let handle = mount.fs.open_file(&USER, old, libc::O_RDONLY).unwrap();
    mount.fs.fsync(old, handle, false).unwrap();
    assert!(mount.contents(live) == before[..20_000]);
    let all = before.len() as u64;
    let copied = mount.fs.copy_file_range(old, 0, copy, 0, all);
    assert!(copied.unwrap() > 0);
    mount.fs.release(old, handle);
    assert!(mount.contents(live) == before[..20_000]);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("file")) == before[..20_000]);
    mount.finish();
}

/// A file deep in a replaced tree has lost its name there when the restore returns.
#[test]
fn a_replaced_tree_is_removed_completely() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "dir");
    take(&mount, "one");
    let deep = mount.mkdir(mount.mkdir(dir, "a"), "b");
    let file = mount.file(deep, "file", &pattern(1, 0, 10_000));
    mount.fs.link(file, ROOT, b"link").unwrap();
    mount.fs.forget(file, 1);
    restore(&mount, "one", Some("dir"));
    assert_eq!(mount.names(mount.at("dir")), [""; 0]);
    assert_eq!(mount.fs.getattr(file).unwrap().nlink, 1);
    assert_eq!(mount.fs.usage().inodes, 3);
    mount.finish();
}

/// A file copied out of a snapshot shares its objects, also with the live file that still has the
/// same contents. Neither is overwritten after the snapshot is deleted.
#[test]
fn a_copy_out_of_a_snapshot_is_a_file_of_its_own() {
    let mount = Mount::new();
    let large = pattern(1, 0, CHUNK);
    mount.file(ROOT, "large", &large);
    take(&mount, "one");
    let copy = mount.file(ROOT, "copy", b"");
    let from = mount.at(".snapshots/one/large");
    let copied = mount.fs.copy_file_range(from, 0, copy, 0, CHUNK as u64);
    assert_eq!(copied, Ok(CHUNK as u64));
    drop_it(&mount, "one");
    mount.fs.finish_purge().unwrap();
    overwrite(&mount, "large", 0, b"changed");
    assert!(mount.contents(copy) == large);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("copy")) == large);
    mount.finish();
}

/// Whole chunks of it are linked, which makes their source durable first: the live file with the
/// same number is another one.
#[test]
fn copying_out_of_a_snapshot_leaves_the_live_file_alone() {
    let mount = Mount::new();
    let before = pattern(1, 0, 2 * CHUNK);
    mount.file(ROOT, "f", &before);
    take(&mount, "one");
    let now = pattern(2, 0, 3 * CHUNK + 1000);
    overwrite(&mount, "f", 0, &now);
    mount.fs.sync().unwrap();
    let to = mount.file(ROOT, "copy", b"");
    let from = mount.at(".snapshots/one/f");
    let len = before.len() as u64;
    assert_eq!(mount.fs.copy_file_range(from, 0, to, 0, len), Ok(len));
    restore(&mount, "one", Some("f"));
    mount.fs.link(mount.at("copy"), ROOT, b"other").unwrap();
    take(&mount, "two");
    mount.truncate(mount.at("other"), 10).unwrap();
    restore(&mount, "two", Some("copy"));
    let check = |mount: &Mount| {
        assert!(mount.contents(mount.at("f")) == before);
        assert!(mount.contents(mount.at("copy")) == before);
        assert!(mount.contents(mount.at("other")) == before[..10]);
        assert!(mount.contents(mount.at(".snapshots/two/other")) == before);
    };
    check(&mount);
    let mount = mount.reopen();
    check(&mount);
    // And without a restore in between.
    overwrite(&mount, "other", 0, &now);
    mount.fs.sync().unwrap();
    let to = mount.file(ROOT, "third", b"");
    let from = mount.at(".snapshots/two/other");
    assert_eq!(mount.fs.copy_file_range(from, 0, to, 0, len), Ok(len));
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("other")) == now);
    assert!(mount.contents(mount.at("third")) == before);
    mount.finish();
}

/// The whole volume is restored from a snapshot while the copy that will replace one path exists,
/// which that snapshot does not have.
#[test]
fn the_whole_volume_and_one_path_are_restored_in_turn() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "dir");
    for number in 0..300 {
        mount.file(dir, &format!("f{number}"), b"before");
    }
    take(&mount, "one");
    std::thread::scope(|scope| {
        let path = scope.spawn(|| {
            for _ in 0..20 {
                restore(&mount, "one", Some("dir"));
            }
        });
        while !path.is_finished() {
            restore(&mount, "one", None);
        }
        path.join().unwrap();
    });
    let names = mount.names(mount.at("dir"));
    assert_eq!(names.len(), 300);
    drop_it(&mount, "one");
    mount.fs.finish_purge().unwrap();
    mount.finish();
}

/// A view that is deleted while the purge of another one is under way gets a purge of its own.
#[test]
fn a_view_deleted_during_another_purge_leaves_nothing() {
    let mount = Mount::new();
    for name in ["one", "two"] {
        take(&mount, name);
        for number in 0..200 {
            let file = format!("{number}");
            let _ = mount.fs.unlink(ROOT, file.as_bytes());
            mount.file(ROOT, &file, name.as_bytes());
        }
    }
    mount.fs.close().unwrap();
    drop(mount.fs);
    let meta = audit::open_meta(&mount.store, mount.keystore.path());
    let mut purge = Purge::default();
    for (id, _) in meta.views() {
        meta.hide_view(id);
        meta.write_leaving(id).unwrap();
        meta.release_view(id);
        assert!(purge.step(&meta).unwrap());
        assert!(!meta.leaving_views().is_empty(), "there is more to drop");
    }
    while purge.step(&meta).unwrap() {}
    assert_eq!(meta.kept_generations(), []);
    meta.commit(meta.newest_batch(), &|| true).unwrap();
    meta.close().unwrap();
    drop(meta);
    Mount::open(mount.store, mount.keystore, crate::support::quiet())
        .unwrap()
        .finish();
}

/// The next mount finishes a restore that a power cut interrupted, and never shows a mixture
/// before.
#[test]
fn an_interrupted_restore_is_finished() {
    let mount = Mount::new();
    mount.file(ROOT, "file", b"before");
    take(&mount, "one");
    let record = mount.fs.views(ViewKind::Snapshot).unwrap().remove(0);
    overwrite(&mount, "file", 0, b"after!");
    mount.file(ROOT, "new", &pattern(1, 0, 9_000));
    let (store, keystore) = (mount.store.clone(), mount.keystore.clone());
    mount.finish();
    let meta = audit::open_meta(&store, keystore.path());
    meta.set_restoring(bilayer::ids::Generation(record.generation));
    meta.commit(meta.newest_batch(), &|| true).unwrap();
    meta.close().unwrap();
    let read_only = bilayer::fs::FilesystemOptions {
        read_only: true,
        ..crate::support::quiet()
    };
    let refused = Mount::open(store.clone(), keystore.clone(), read_only);
    assert!(matches!(refused, Err(bilayer::fs::FsError::HalfRestored)));
    let mount = Mount::open(store, keystore, crate::support::quiet()).unwrap();
    assert_eq!(mount.names(ROOT), ["file"]);
    assert_eq!(mount.contents(mount.at("file")), b"before");
    let mount = mount.reopen();
    assert_eq!(mount.contents(mount.at("file")), b"before");
    mount.finish();
}
