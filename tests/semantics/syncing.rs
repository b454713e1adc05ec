//! Making contents durable: what each call syncs, and which objects stay open until then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bilayer::errno::Errno;
use bilayer::fs::FilesystemOptions;
use bilayer::fs::types::WriteFlags;
use bilayer::store::faulty::{Call, CallKind, Fault, FaultyStore};
use parking_lot::Mutex;

use crate::support::{Mount, PAGE, ROOT, format, keystore, pattern, quiet};

/// Files of one object each.
const FILES: usize = 100;

/// The expected state of objects in a store.
#[derive(Clone, Default)]
struct Watch {
    /// Written since their last sync.
    unsynced: Arc<Mutex<BTreeSet<String>>>,
    /// Opened again while they were.
    reopened: Arc<Mutex<Vec<String>>>,
    syncs: Arc<AtomicUsize>,
    syncs_at_once: Arc<AtomicUsize>,
}

impl Watch {
    fn over(store: &FaultyStore) -> Self {
        let watch = Self::default();
        let this = watch.clone();
        store.fail_when(move |call| this.see(call), Fault::Error(Errno::EIO));
        watch
    }

    fn see(&self, call: &Call<'_>) -> bool {
        let path = call.path.as_str();
        match call.kind {
            CallKind::SyncAll => {
                self.syncs_at_once.fetch_add(1, Ordering::SeqCst);
                self.unsynced.lock().clear();
            }
            _ if !path.starts_with("objects/") => {}
            CallKind::Write => drop(self.unsynced.lock().insert(path.to_owned())),
            CallKind::Sync => {
                self.syncs.fetch_add(1, Ordering::SeqCst);
                self.unsynced.lock().remove(path);
            }
            CallKind::Open if self.unsynced.lock().contains(path) => {
                self.reopened.lock().push(path.to_owned());
            }
            _ => {}
        }
        false
    }

    fn counts(&self) -> (usize, usize) {
        let count = |calls: &AtomicUsize| calls.load(Ordering::SeqCst);
        (count(&self.syncs), count(&self.syncs_at_once))
    }

    #[track_caller]
    fn none_lost(&self) {
        let reopened = self.reopened.lock();
        assert!(reopened.is_empty(), "closed unsynced: {reopened:?}");
    }
}

fn mount(each_file: bool, open_objects: usize) -> Mount {
    let (store, keystore) = (FaultyStore::new(), keystore());
    if each_file {
        store.sync_each_file();
    }
    format(&store, keystore.path(), None);
    let options = FilesystemOptions {
        open_objects,
        background: false,
        ..quiet()
    };
    Mount::open(store, keystore, options).expect("open the filesystem")
}

fn write_files(mount: &Mount, seed: u8) {
    for number in 0..FILES {
        let bytes = pattern(seed.wrapping_add(number as u8), 0, 2 * PAGE);
        mount.file(ROOT, &format!("f{number}"), &bytes);
    }
}

#[track_caller]
fn check_files(mount: &Mount, seed: u8) {
    for number in 0..FILES {
        let bytes = pattern(seed.wrapping_add(number as u8), 0, 2 * PAGE);
        assert!(mount.contents(mount.at(&format!("f{number}"))) == bytes);
    }
}

#[test]
fn many_objects_are_synced_at_once_only_where_that_proves_something() {
    for each_file in [false, true] {
        let mount = mount(each_file, 512);
        let watch = Watch::over(&mount.store);
        write_files(&mount, 1);
        mount.fs.sync().unwrap();
        let expected = if each_file { (FILES, 0) } else { (0, 1) };
        assert_eq!(watch.counts(), expected, "each file: {each_file}");
        for seed in 0..4 {
            let keystore = crate::support::fork(&mount.keystore);
            let after = Mount::open(mount.store.survivor(seed), keystore, quiet()).unwrap();
            check_files(&after, 1);
            after.finish();
        }
        mount.finish();
    }
}

/// A writer that meets only unsynced open objects waits for the sync of all writers' data.
#[test]
fn half_of_the_open_objects_are_synced_before_anybody_waits() {
    const OPEN: usize = FILES + FILES / 2;
    let (store, keystore) = (FaultyStore::new(), keystore());
    format(&store, keystore.path(), None);
    let options = FilesystemOptions {
        open_objects: OPEN,
        commit_interval: Duration::from_secs(3600),
        background: true,
        ..quiet()
    };
    let mount = Mount::open(store, keystore, options).expect("open the filesystem");
    let watch = Watch::over(&mount.store);
    write_files(&mount, 1);
    let until = Instant::now() + Duration::from_secs(60);
    while watch.counts().1 == 0 {
        assert!(Instant::now() < until, "no sync began by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    check_files(&mount, 1);
    mount.finish();
}

/// A failed write is reported to descriptors that were open at the time.
#[test]
fn no_object_is_closed_before_it_is_synced() {
    for each_file in [false, true] {
        for open_objects in [1, 16, 64] {
            let mount = mount(each_file, open_objects);
            let watch = Watch::over(&mount.store);
            write_files(&mount, 1);
            // Every object is needed again: closed ones are reopened.
            for number in 0..FILES {
                let node = mount.at(&format!("f{number}"));
                let handle = mount.open_rw(node);
                let bytes = pattern(2u8.wrapping_add(number as u8), 0, 2 * PAGE);
                mount.put(node, handle, 0, &bytes);
                mount.fs.release(node, handle);
            }
            check_files(&mount, 2);
            watch.none_lost();
            mount.fs.sync().unwrap();
            assert!(watch.unsynced.lock().is_empty());
            let (syncs, at_once) = watch.counts();
            match each_file {
                true => assert_eq!(at_once, 0),
                // The bound is respected: some objects were synced to make space.
                false => assert!(syncs + at_once > 1, "{syncs} {at_once}"),
            }
            let mount = mount.reopen();
            check_files(&mount, 2);
            mount.finish();
        }
    }
}

#[test]
fn the_number_of_open_objects_is_bounded() {
    let mount = mount(true, 16);
    let watch = Watch::over(&mount.store);
    write_files(&mount, 1);
    // All but the last ones were synced when others took their place.
    let waiting = watch.unsynced.lock().len();
    assert_eq!(waiting, 16);
    assert_eq!(watch.counts().0, FILES - waiting);
    mount.finish();
}

#[test]
fn a_failed_sync_that_was_to_make_space_ends_writing() {
    for each_file in [false, true] {
        for open_objects in [16, 64] {
            let mount = mount(each_file, open_objects);
            mount.file(ROOT, "old", &pattern(9, 0, 2 * PAGE));
            mount.fs.sync().unwrap();
            let rule = |call: &Call<'_>| {
                let object = call.path.as_str().starts_with("objects/");
                call.kind == CallKind::SyncAll || (call.kind == CallKind::Sync && object)
            };
            mount.store.fail_when(rule, Fault::Error(Errno::EIO));
            let mut refused = false;
            for number in 0..FILES {
                let made = mount.fs.create(
                    &crate::support::USER,
                    ROOT,
                    format!("f{number}").as_bytes(),
                    0o644,
                    libc::O_RDWR,
                );
                let Ok((attr, handle)) = made else {
                    refused = true;
                    break;
                };
                let bytes = pattern(1, 0, 2 * PAGE);
                let _ = mount
                    .fs
                    .write(attr.node, handle, 0, &bytes, WriteFlags::default());
                mount.fs.release(attr.node, handle);
                mount.fs.forget(attr.node, 1);
            }
            assert!(refused, "each file: {each_file}, {open_objects} open");
            assert!(mount.fs.usage().latched.is_some());
            mount.store.clear_faults();
            mount.fs.sync().unwrap_err();
            // Durable data can be read, however many objects wait for a sync that never succeeds.
            let node = mount.at("old");
            assert!(mount.contents(node) == pattern(9, 0, 2 * PAGE));
            let mount = mount.kill();
            assert_eq!(mount.names(ROOT), ["old"]);
            mount.finish();
        }
    }
}

/// Two concurrent flushes of one object: the kernel reports the error to only one of them.
#[test]
fn after_a_failed_sync_no_other_one_succeeds() {
    use bilayer::ids::{CryptoId, PageIndex, Sequence};
    use bilayer::sealed::ContentsFile;
    use bilayer::store::{OpenMode, Store, StorePath};

    let store = FaultyStore::new();
    let keys = keystore();
    format(&store, keys.path(), None);
    let volume = crate::support::open_volume(&store, keys.path(), false);
    let path = StorePath::new("object");
    let file = store.open(&path, OpenMode::CreateNew).unwrap();
    let object = ContentsFile::new(file, volume.keys.active(), CryptoId([7; 16]));
    let write = || {
        let guard = object.lock_exclusive(PageIndex(0)..PageIndex(1));
        let bytes = [1; PAGE];
        object
            .write_at(&guard, 0, &bytes, Sequence(1), &mut |_, _| Ok(()))
            .unwrap();
    };
    assert!(!object.is_unsynced());
    write();
    assert!(object.is_unsynced());
    object.sync().unwrap();
    assert!(!object.is_unsynced());
    write();
    store.fail_kind(CallKind::Sync, Fault::Error(Errno::EIO));
    object.sync().unwrap_err();
    store.clear_faults();
    object.sync().unwrap_err();
    assert!(object.is_unsynced());
}
