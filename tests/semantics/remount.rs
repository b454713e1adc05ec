//! Remounting read-only and writable again, without closing.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bilayer::errno::Errno;
use bilayer::fs::snapshots::{ReadOnlyBecause, ViewError, ViewKind};
use bilayer::fs::types::{DirentRef, NodeId};
use bilayer::fs::{AccessTimes, FilesystemOptions, KernelCache};
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
        let counts = after.finish();
        assert_eq!((counts.inodes, counts.objects), (2, 1), "seed {seed}");
    }
    let counts = mount.finish();
    assert_eq!((counts.inodes, counts.objects), (2, 1));
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
    // Not clean any more: objects that were never committed are swept. The committer, which runs
    // again, may have been in time for the late one.
    let mount = mount.kill();
    let names = mount.names(ROOT);
    assert!(names == ["one"] || names == ["late", "one"], "{names:?}");
    assert_eq!(mount.objects(), names.len());
    mount.file(ROOT, "two", &pattern(3, 0, 20_000));
    let counts = mount.finish();
    assert_eq!(counts.objects, names.len() as u64 + 1);
    assert_eq!(counts.inodes, counts.objects + 1);
}

/// The kernel may send the forget of a removed file late.
#[test]
fn files_released_while_read_only_are_removed_later() {
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
        let counts = mount.finish();
        assert_eq!((counts.inodes, counts.objects), (1, 0));
    }
}

#[test]
fn a_filesystem_opened_read_only_stays_so() {
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

/// The volume stays in use, so that nothing later may call it clean.
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
    // Its object exists, and no commit names it.
    let (node, handle) = mount.create(ROOT, "lost");
    mount.put(node, handle, 0, &pattern(3, 0, 20_000));
    mount.fs.release(node, handle);
    assert_eq!(mount.objects(), 3);
    let mount = mount.kill();
    assert_eq!(mount.objects(), mount.names(ROOT).len());
    mount.finish();
}

/// Time limit of a call that nothing blocks.
const LIMIT: Duration = Duration::from_secs(30);
/// Time limit of a call that is blocked.
const MOMENT: Duration = Duration::from_millis(300);

/// A kernel that is slow to send its dirty pages.
#[derive(Debug)]
struct SlowKernel {
    arrived: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl KernelCache for SlowKernel {
    fn write_back(&self, _: &[NodeId]) {
        let _ = self.arrived.lock().unwrap().send(());
        let _ = self.go_on.lock().unwrap().recv();
    }

    fn trusts_cached_attrs(&self) -> bool {
        false
    }

    fn forget(&self, _: &[NodeId], _: &[DirentRef<'_>]) {}
}

/// Begins `change`, makes the volume read-only, and lets the change continue: `begun` waits until
/// the change is half-way, `go_on` lets it finish. After the volume was reported clean, nothing may
/// be committed or created.
fn remount_during(
    mount: &Mount,
    change: impl FnOnce() -> Result<(), ViewError> + Send,
    begun: impl FnOnce(),
    go_on: impl FnOnce(),
) {
    let (said, clean) = channel();
    std::thread::scope(|scope| {
        let changing = scope.spawn(change);
        begun();
        let remounting = scope.spawn(|| {
            mount.fs.make_read_only().unwrap();
            said.send((mount.fs.usage().sequence, mount.objects()))
                .unwrap();
        });
        let early = clean.recv_timeout(MOMENT).ok();
        go_on();
        let changed = changing.join().unwrap();
        remounting.join().unwrap();
        let then = early.or_else(|| clean.recv().ok()).unwrap();
        assert_eq!(
            (mount.fs.usage().sequence, mount.objects()),
            then,
            "something was written to a clean volume: {changed:?}"
        );
    });
    // So it is clean: nothing searches for unnamed objects, and there are none.
    for seed in 0..10 {
        let survivor = mount.store.survivor(seed);
        let after = Mount::open(survivor, fork(&mount.keystore), quiet()).unwrap();
        after.finish();
    }
}

fn with_snapshot() -> Mount {
    let mount = Mount::new();
    mount.file(ROOT, "f", &pattern(1, 0, 5 << 20));
    mount
        .fs
        .create_view(ViewKind::Snapshot, "old", None, "")
        .unwrap();
    mount
}

#[test]
fn a_view_is_taken_during_a_remount() {
    for restores in [false, true] {
        let mount = with_snapshot();
        let ((arrived, has_arrived), (send, go_on)) = (channel(), channel());
        mount.fs.attach(Arc::new(SlowKernel {
            arrived: Mutex::new(arrived),
            go_on: Mutex::new(go_on),
        }));
        let change = || match restores {
            true => mount.fs.restore("old", None),
            false => mount
                .fs
                .create_view(ViewKind::Snapshot, "new", None, "")
                .map(drop),
        };
        let begun = || has_arrived.recv_timeout(LIMIT).unwrap();
        remount_during(&mount, change, begun, || send.send(()).unwrap());
        let error = mount
            .fs
            .create_view(ViewKind::Snapshot, "late", None, "")
            .unwrap_err();
        let remounted = ViewError::ReadOnly(ReadOnlyBecause::Remounted);
        assert_eq!(format!("{error:?}"), format!("{remounted:?}"));
        mount.fs.make_writable().unwrap();
        mount.fs.detach();
        mount
            .fs
            .create_view(ViewKind::Snapshot, "late", None, "")
            .unwrap();
        mount.finish();
    }
}

#[test]
fn a_path_is_restored_during_a_remount() {
    let mount = with_snapshot();
    let stall = mount.store.stall_when(|kind, _| kind == CallKind::Link);
    let change = || mount.fs.restore("old", Some(Path::new("f")));
    let stall = std::cell::Cell::new(Some(stall));
    let begun = || {
        let reached = stall.take().unwrap();
        assert!(reached.is_reached_within(LIMIT));
        stall.set(Some(reached));
    };
    remount_during(&mount, change, begun, || drop(stall.take()));
    assert!(mount.contents(mount.at("f")) == pattern(1, 0, 5 << 20));
    mount.fs.make_writable().unwrap();
    mount.finish();
}

/// The same, with the volume closed completely.
#[test]
fn a_path_is_restored_while_the_volume_is_closed() {
    let mount = with_snapshot();
    let stall = mount.store.stall_when(|kind, _| kind == CallKind::Link);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| mount.fs.restore("old", Some(Path::new("f"))));
        assert!(stall.is_reached_within(LIMIT));
        let closing = scope.spawn(|| mount.fs.close());
        std::thread::sleep(MOMENT);
        stall.release();
        let changed = changing.join().unwrap();
        closing.join().unwrap().unwrap();
        changed.unwrap();
    });
    let (store, keystore) = (mount.store.clone(), mount.keystore.clone());
    drop(mount);
    let after = Mount::open(store, keystore, quiet()).unwrap();
    assert!(after.contents(after.at("f")) == pattern(1, 0, 5 << 20));
    after.finish();
}

/// Names that may come back in a volume that is not searched for unnamed objects.
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
