//! From writable to read-only and back, without closing.

use bilayer::errno::Errno;
use bilayer::fs::{AccessTimes, FilesystemOptions};
use bilayer::store::faulty::{CallKind, Fault};

use crate::support::{Mount, ROOT, fork, pattern, quiet};

#[test]
fn read_only_is_durable_and_refuses_changes() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 20_000));
    mount.fs.release(node, handle);
    mount.file(ROOT, "removed", &pattern(2, 0, 20_000));
    mount.fs.unlink(ROOT, b"removed").unwrap();
    assert!(!mount.fs.is_read_only());
    mount.fs.make_read_only().unwrap();
    mount.fs.make_read_only().unwrap();
    assert!(mount.fs.is_read_only());

    let sequence = mount.fs.usage().sequence;
    assert_eq!(mount.fs.unlink(ROOT, b"f").err(), Some(Errno::EROFS));
    assert_eq!(mount.truncate(node, 1).err(), Some(Errno::EROFS));
    assert!(mount.contents(node) == pattern(1, 0, 20_000));
    mount.fs.sync().unwrap();
    assert_eq!(mount.fs.usage().sequence, sequence, "it was written to");
    for seed in 0..20 {
        let survivor = mount.store.survivor(seed);
        let after = Mount::open(survivor, fork(&mount.keystore), quiet()).unwrap();
        assert!(after.contents(after.at("f")) == pattern(1, 0, 20_000));
        assert_eq!(after.names(ROOT), ["f"]);
        let found = after.finish();
        assert_eq!((found.inodes, found.objects), (2, 1), "seed {seed}");
    }
    let found = mount.finish();
    assert_eq!((found.inodes, found.objects), (2, 1));
}

#[test]
fn writable_again_and_an_unclean_stop() {
    let mount = Mount::new();
    mount.file(ROOT, "one", &pattern(1, 0, 20_000));
    mount.fs.make_read_only().unwrap();
    mount.fs.make_writable().unwrap();
    mount.fs.make_writable().unwrap();
    assert!(!mount.fs.is_read_only());
    mount.file(ROOT, "late", &pattern(2, 0, 20_000));
    // Not clean any more: what was never committed is found and swept. The committing thread, awake
    // again, may have been in time for the late one.
    let mount = mount.kill();
    let names = mount.names(ROOT);
    assert!(names == ["one"] || names == ["late", "one"], "{names:?}");
    assert_eq!(mount.objects(), names.len());
    mount.file(ROOT, "two", &pattern(3, 0, 20_000));
    let found = mount.finish();
    assert_eq!(found.objects, names.len() as u64 + 1);
    assert_eq!(found.inodes, found.objects + 1);
}

/// The kernel may tell late that it has forgotten a file that was removed before.
#[test]
fn what_is_released_meanwhile_is_removed_later() {
    for comes_back in [true, false] {
        let mount = Mount::new();
        let (node, handle) = mount.create(ROOT, "f");
        mount.put(node, handle, 0, &pattern(1, 0, 20_000));
        mount.fs.unlink(ROOT, b"f").unwrap();
        mount.fs.make_read_only().unwrap();
        mount.fs.release(node, handle);
        assert_eq!(mount.objects(), 1, "removed from what is read-only");
        if comes_back {
            mount.fs.make_writable().unwrap();
        }
        let found = mount.finish();
        assert_eq!((found.inodes, found.objects), (1, 0));
    }
}

#[test]
fn what_was_opened_read_only_stays_so() {
    let mount = Mount::new();
    mount.file(ROOT, "f", b"x");
    let keystore = mount.keystore.clone();
    let store = mount.store.clone();
    mount.fs.close().unwrap();
    drop(mount);
    let options = FilesystemOptions {
        read_only: true,
        ..quiet()
    };
    let mount = Mount::open(store, keystore, options).unwrap();
    mount.fs.make_read_only().unwrap();
    let error = mount.fs.make_writable().unwrap_err();
    assert_eq!(error.errno(), Errno::EROFS);
    mount.fs.set_access_times(AccessTimes::Relative);
    assert_eq!(mount.names(ROOT), ["f"]);
    mount.fs.close().unwrap();
}

/// It goes on being used, so that nothing later may take it for clean.
#[test]
fn a_remount_that_fails_leaves_no_mark_of_being_clean() {
    let mount = Mount::new();
    mount.file(ROOT, "one", &pattern(1, 0, 20_000));
    mount.fs.sync().unwrap();
    mount
        .store
        .fail_kind(CallKind::Reserve, Fault::Error(Errno::ENOSPC));
    mount.fs.make_read_only().unwrap_err();
    mount.store.clear_faults();
    assert!(!mount.fs.is_read_only());
    mount.file(ROOT, "two", &pattern(2, 0, 20_000));
    mount.fs.sync().unwrap();
    // Its object is made, and no commit names it.
    let (node, handle) = mount.create(ROOT, "lost");
    mount.put(node, handle, 0, &pattern(3, 0, 20_000));
    mount.fs.release(node, handle);
    assert_eq!(mount.objects(), 3);
    let mount = mount.kill();
    assert_eq!(mount.objects(), mount.names(ROOT).len());
    mount.finish();
}

/// Names that may come back to a volume that nobody searches for such.
#[test]
fn a_folder_whose_removals_could_not_be_synced_is_synced_by_the_next_attempt() {
    let mount = Mount::new();
    for name in ["one", "two"] {
        mount.file(ROOT, name, &pattern(1, 0, 20_000));
    }
    mount.fs.sync().unwrap();
    for name in ["one", "two"] {
        mount.fs.unlink(ROOT, name.as_bytes()).unwrap();
    }
    mount.fs.sync().unwrap();
    assert_eq!(mount.objects(), 0);
    mount
        .store
        .fail_kind(CallKind::SyncDir, Fault::Error(Errno::EIO));
    mount.fs.make_read_only().unwrap_err();
    mount.store.clear_faults();
    mount.fs.make_read_only().unwrap();
    for seed in 0..20 {
        let survivor = mount.store.survivor(seed);
        let after = Mount::open(survivor, fork(&mount.keystore), quiet()).unwrap();
        assert_eq!(after.finish().objects, 0, "seed {seed}");
    }
    mount.finish();
}
