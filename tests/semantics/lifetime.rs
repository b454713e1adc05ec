//! Lifetime of inodes, and the removal of unlinked ones.

use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::types::{SetAttr, WriteFlags};
use bilayer::store::StorePath;

use crate::support::{Mount, ROOT, USER, fork, pattern, quiet};

#[test]
fn an_unlinked_file_stays_while_it_is_open() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 20_000));
    mount.fs.unlink(ROOT, b"f").unwrap();
    assert_eq!(mount.fs.getattr(node).unwrap().nlink, 0);
    mount.put(node, handle, 20_000, &pattern(1, 20_000, 5_000));
    mount.fs.fsync(node, handle, false).unwrap();
    assert_eq!(
        mount.contents_of(node, handle).unwrap(),
        pattern(1, 0, 25_000)
    );
    assert_eq!(
        mount.fs.link(node, ROOT, b"back").err(),
        Some(Errno::ENOENT)
    );
    assert_eq!(mount.objects(), 1);
    mount.fs.release(node, handle);
    assert_eq!(mount.fs.getattr(node).err(), Some(Errno::ESTALE));
    assert_eq!(mount.fs.usage().contents_bytes, 0);
    let counts = mount.finish();
    assert_eq!((counts.inodes, counts.objects), (1, 0));
}

#[test]
fn a_file_that_the_kernel_knows_stays() {
    let mount = Mount::new();
    mount.file(ROOT, "f", b"x");
    let attr = mount.fs.lookup(ROOT, b"f").unwrap();
    mount.fs.unlink(ROOT, b"f").unwrap();
    assert!(mount.fs.getattr(attr.node).is_ok());
    mount.fs.forget(attr.node, 1);
    assert_eq!(mount.fs.getattr(attr.node).err(), Some(Errno::ESTALE));
    mount.finish();
}

#[test]
fn closing_removes_unlinked_open_files() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 20_000));
    mount.fs.unlink(ROOT, b"f").unwrap();
    let counts = mount.finish();
    assert_eq!((counts.inodes, counts.objects), (1, 0));
}

#[test]
fn a_kill_removes_unlinked_open_files() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 20_000));
    mount.fs.fsync(node, handle, false).unwrap();
    mount.fs.unlink(ROOT, b"f").unwrap();
    mount.commit();
    let mount = mount.kill();
    assert_eq!(mount.fs.usage().inodes, 1);
    let counts = mount.finish();
    assert_eq!((counts.inodes, counts.objects), (1, 0));
}

#[test]
fn objects_that_were_never_committed_are_swept() {
    let mount = Mount::new();
    mount.file(ROOT, "kept", &pattern(1, 0, 20_000));
    let mount = mount.reopen();
    mount.file(ROOT, "lost", &pattern(1, 0, 20_000));
    assert_eq!(mount.objects(), 2);
    let mount = mount.kill();
    assert_eq!(mount.objects(), 1);
    assert_eq!(mount.names(ROOT), ["kept"]);
    assert_eq!(mount.finish().objects, 1);
}

/// Data that a killed process left in the kernel's cache is read by the next process: it must be
/// durable before somebody relies on it.
#[test]
fn data_read_after_a_kill_survives_a_power_cut() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 20_000));
    mount.fs.fsync(node, handle, false).unwrap();
    mount.put(node, handle, 0, &pattern(2, 0, 20_000));
    let mount = mount.kill();
    let node = mount.at("f");
    let seen = mount.contents(node);
    let handle = mount.open_rw(node);
    mount.fs.fsync(node, handle, false).unwrap();
    for seed in 0..30 {
        let survivor = mount.store.survivor(seed);
        let after = Mount::open(survivor, fork(&mount.keystore), quiet()).unwrap();
        assert!(after.contents(after.at("f")) == seen, "seed {seed}");
        after.fs.close().unwrap();
    }
}

/// Removed objects that a power cut brings back belong to no file once the volume is clean.
#[test]
fn nothing_comes_back_after_a_clean_close() {
    let mount = Mount::new();
    for n in 0..5 {
        mount.file(ROOT, &format!("f{n}"), &pattern(1, 0, 20_000));
    }
    let mount = mount.reopen();
    for n in 0..5 {
        mount.fs.unlink(ROOT, format!("f{n}").as_bytes()).unwrap();
    }
    mount.fs.close().unwrap();
    for seed in 0..30 {
        let survivor = mount.store.survivor(seed);
        crate::support::audit::audit(&survivor, mount.keystore.path());
    }
}

#[test]
fn a_forgotten_file_is_punched_without_waiting_for_itself() {
    let mount = Mount::new();
    mount.file(ROOT, "f", &pattern(1, 0, 100_000));
    let mount = mount.reopen();
    mount.truncate(mount.at("f"), 10_000).unwrap();
    let (report, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let counts = mount.finish();
        report.send(counts.pages)
    });
    let within = std::time::Duration::from_secs(30);
    assert_eq!(done.recv_timeout(within), Ok(3));
}

#[test]
fn a_read_only_filesystem_refuses_changes() {
    let mount = Mount::new();
    mount.mkdir(ROOT, "d");
    let node = mount.file(ROOT, "f", &pattern(1, 0, 10_000));
    mount.fs.close().unwrap();
    let store = mount.store.clone();
    let keys = mount.keystore.clone();
    drop(mount);
    let mut options = quiet();
    options.read_only = true;
    let mount = Mount::open(store, keys, options).unwrap();
    let fs = &mount.fs;
    assert_eq!(mount.contents(node), pattern(1, 0, 10_000));
    assert_eq!(mount.names(ROOT), ["d", "f"]);
    let refused = Some(Errno::EROFS);
    assert_eq!(fs.mkdir(&USER, ROOT, b"x", 0o755).err(), refused);
    assert_eq!(fs.unlink(ROOT, b"f").err(), refused);
    assert_eq!(fs.rmdir(ROOT, b"d").err(), refused);
    assert_eq!(fs.link(node, ROOT, b"x").err(), refused);
    assert_eq!(fs.open_file(&USER, node, libc::O_RDWR).err(), refused);
    assert_eq!(fs.setattr(&USER, node, &SetAttr::default()).err(), refused);
    assert_eq!(fs.remove_xattr(node, b"user.x").err(), refused);
    assert_eq!(fs.copy_file_range(node, 0, node, 20_000, 5).err(), refused);
    let handle = fs.open_file(&USER, node, libc::O_RDONLY).unwrap();
    assert_eq!(fs.fsync(node, handle, false), Ok(()));
    assert_eq!(fs.flush(), Ok(()));
    fs.release(node, handle);
    fs.close().unwrap();
}

#[test]
fn a_filesystem_answers_nothing_after_a_shutdown() {
    let mount = Mount::new();
    let kept = mount.file(ROOT, "kept", b"synced");
    let handle = mount.open_rw(kept);
    mount.fs.fsync(kept, handle, false).unwrap();
    mount.fs.open_dir(ROOT).unwrap();
    mount.put(kept, handle, 0, b"unsafe");
    mount.fs.shut_down();
    let fs = &mount.fs;
    let results = [
        fs.fsync(kept, handle, false),
        fs.fsync_dir(),
        fs.flush(),
        fs.getattr(kept).map(drop),
        fs.read(kept, handle, 0, &mut [0; 6]).map(drop),
        fs.write(kept, handle, 0, b"more", WriteFlags::default())
            .map(drop),
        fs.mkdir(&USER, ROOT, b"d", 0o755).map(drop),
    ];
    assert_eq!(results, [Err(Errno::EIO); 7]);
    fs.release(kept, handle);
    let mount = mount.kill();
    assert_eq!(mount.contents(mount.at("kept")), b"synced");
    mount.finish();
}

/// A process that is killed in the middle of a commit leaves pages that may exist only in the
/// kernel's cache. The next one reads them, and the power fails while it opens the volume.
#[test]
fn a_kill_in_a_commit_and_a_power_cut_while_opening() {
    let bytes = pattern(1, 0, 5_000);
    for call in (1..).step_by(2) {
        let mut ended = true;
        for opening in (1..).step_by(2) {
            let mount = Mount::new();
            let (node, handle) = mount.create(ROOT, "f");
            mount.put(node, handle, 0, &bytes);
            let store = mount.store.clone();
            store.cut_at_call(store.calls() + call);
            let synced = mount.fs.fsync(node, handle, false);
            ended = store.is_cut();
            store.restart_process();
            let _ = mount.fs.close();
            let keystore = Arc::clone(&mount.keystore);
            drop(mount);

            store.cut_at_call(store.calls() + opening);
            let opened = Mount::open_at(
                store.clone(),
                StorePath::root(),
                Arc::clone(&keystore),
                quiet(),
            );
            let whole = !store.is_cut();
            let survivor = store.power_cut(call * 64 + opening);
            drop(opened);
            let mount = Mount::open(survivor, keystore, quiet()).unwrap_or_else(|error| {
                panic!("killed in call {call}, cut in call {opening}: {error}")
            });
            if synced.is_ok() {
                assert_eq!(mount.contents(mount.at("f")), bytes);
            }
            mount.finish();
            if whole {
                break;
            }
        }
        if !ended {
            break;
        }
    }
}
