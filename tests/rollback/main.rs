//! Copies of a volume that are older than it was: refused, and accepted as they are on request.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod succession;

use bilayer_test_support as support;

use std::path::Path;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::WriteFlags;
use bilayer::fs::{Filesystem, FsError};
use bilayer::ids::VolumeId;
use bilayer::keys::{PlatformKeystore, VolumeRecord};
use bilayer::store::faulty::{Call, CallKind, Fault, FaultyStore, WriteUnit};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, OpenOptions, Rollback, VolumeError};
use support::{Mount, PAGE, ROOT, fork, pattern, quiet};

const META_CACHE: usize = 1 << 20;
const META_STRIDE: usize = 4608;

/// A volume, closed, at several points of its history.
struct Past {
    keystore: Arc<tempfile::TempDir>,
    old: MemoryStore,
    new: MemoryStore,
}

impl Past {
    fn new() -> Self {
        let mount = Mount::new();
        mount.file(ROOT, "kept", &pattern(1, 0, 5 * PAGE));
        mount.file(ROOT, "small", &pattern(1, 0, 900));
        mount
            .fs
            .create_view(ViewKind::Snapshot, "then", None, "")
            .unwrap();
        let mount = mount.reopen();
        mount.fs.checkpoint_now().unwrap();
        mount.fs.close().unwrap();
        let old = mount.store.to_memory();
        let Mount {
            store,
            keystore,
            fs,
            ..
        } = mount;
        drop(fs);
        let mount = Mount::open(store, keystore, quiet()).unwrap();
        let kept = mount.at("kept");
        let handle = mount.open_rw(kept);
        mount.put(kept, handle, 0, &pattern(2, 0, 5 * PAGE));
        mount.fs.release(kept, handle);
        mount.file(ROOT, "later", &pattern(3, 0, 3 * PAGE));
        mount.fs.close().unwrap();
        Self {
            keystore: Arc::clone(&mount.keystore),
            old,
            new: mount.store.to_memory(),
        }
    }

    fn old(&self) -> FaultyStore {
        FaultyStore::from_memory(&self.old, WriteUnit::Page)
    }

    fn new_one(&self) -> FaultyStore {
        FaultyStore::from_memory(&self.new, WriteUnit::Page)
    }
}

fn options(keystore: &Path, accept_restored: bool) -> OpenOptions {
    OpenOptions {
        keystore: keystore.join("platform"),
        accept_restored,
        ..OpenOptions::default()
    }
}

/// Why a volume cannot be opened.
#[derive(Debug)]
enum Refusal {
    Older(Rollback),
    Else(String),
}

fn use_it(store: &FaultyStore, keystore: &Path) -> Result<Arc<Filesystem>, Refusal> {
    let volume = match volume::open(Arc::new(store.clone()), &options(keystore, false)) {
        Err(VolumeError::RolledBack(older)) => return Err(Refusal::Older(older)),
        Err(error) => return Err(Refusal::Else(error.to_string())),
        Ok(volume) => volume,
    };
    Filesystem::open(volume, quiet()).map_err(|error| match error {
        FsError::RolledBack(older) => Refusal::Older(older),
        error => Refusal::Else(error.to_string()),
    })
}

fn accept(store: &FaultyStore, keystore: &Path) -> Result<Arc<Filesystem>, FsError> {
    let volume = volume::open(Arc::new(store.clone()), &options(keystore, true))?;
    let volume = Filesystem::accept_restored(volume, META_CACHE)?;
    Filesystem::open(volume, quiet())
}

#[track_caller]
fn older(opened: Result<Arc<Filesystem>, Refusal>) -> Rollback {
    match opened {
        Err(Refusal::Older(older)) => older,
        other => panic!("not refused as older: {other:?}"),
    }
}

fn record(store: &FaultyStore, keystore: &Path) -> (VolumeId, VolumeRecord) {
    let id = volume::inspect(store).unwrap().claims().volume_id();
    let keystore = PlatformKeystore::open(&keystore.join("platform")).unwrap();
    (id, keystore.record(id).unwrap().unwrap())
}

fn bytes_of(store: &dyn Store, path: &str) -> Vec<u8> {
    let file = store.open(&StorePath::new(path), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn put_back(store: &dyn Store, path: &str, bytes: &[u8]) {
    let file = store
        .open(&StorePath::new(path), OpenMode::ReadWrite)
        .unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync().unwrap();
}

/// The contents of a file of an open filesystem.
fn contents(fs: &Arc<Filesystem>, name: &str) -> Vec<u8> {
    let node = fs.lookup(ROOT, name.as_bytes()).unwrap();
    let handle = fs
        .open_file(&support::USER, node.node, libc::O_RDONLY)
        .unwrap();
    let mut bytes = vec![0; node.size as usize];
    assert_eq!(fs.read(node.node, handle, 0, &mut bytes), Ok(bytes.len()));
    fs.release(node.node, handle);
    fs.forget(node.node, 1);
    bytes
}

#[test]
fn an_older_copy_is_refused_and_changes_nothing() {
    let past = Past::new();
    let old = past.old();
    let before = record(&old, past.keystore.path());
    for _ in 0..2 {
        let why = older(use_it(&old, past.keystore.path()));
        assert!(matches!(why, Rollback::OlderMetadata { .. }), "{why}");
        assert!(why.to_string().contains("an older copy was put back"));
    }
    assert_eq!(record(&old, past.keystore.path()), before);
    assert_eq!(bytes_of(&old, "meta"), bytes_of(&past.old, "meta"));
    // The newest one is accepted as before.
    let fs = use_it(&past.new_one(), past.keystore.path()).unwrap();
    assert_eq!(contents(&fs, "later"), pattern(3, 0, 3 * PAGE));
    fs.close().unwrap();
}

#[test]
fn reading_only_is_refused_too() {
    let past = Past::new();
    let options = OpenOptions {
        read_only: true,
        ..options(past.keystore.path(), false)
    };
    let volume = volume::open(Arc::new(past.old()), &options).unwrap();
    let mut reading = quiet();
    reading.read_only = true;
    let error = Filesystem::open(volume, reading).unwrap_err();
    assert!(matches!(error, FsError::RolledBack(_)), "{error}");
}

#[test]
fn older_metadata_alone_is_refused() {
    let past = Past::new();
    let mixed = past.new_one();
    put_back(&mixed, "meta", &bytes_of(&past.old, "meta"));
    let why = older(use_it(&mixed, past.keystore.path()));
    assert!(matches!(why, Rollback::OlderMetadata { .. }), "{why}");
}

#[test]
fn the_older_slot_alone_is_refused() {
    let past = Past::new();
    let (_, known) = record(&past.new_one(), past.keystore.path());
    let mut refused = 0;
    for slot in 0..2 {
        let damaged = past.new_one();
        let mut meta = bytes_of(&past.new, "meta");
        let at = slot * META_STRIDE;
        meta[at..at + META_STRIDE].fill(0);
        put_back(&damaged, "meta", &meta);
        let keystore = fork(&past.keystore);
        match use_it(&damaged, keystore.path()) {
            Err(Refusal::Older(Rollback::OlderMetadata {
                found, known: k, ..
            })) => {
                assert_eq!((k, found.0 + 1), (known.sequence, known.sequence.0));
                refused += 1;
            }
            // The spare one: nothing that is checked is older.
            Ok(fs) => {
                assert_eq!(contents(&fs, "later"), pattern(3, 0, 3 * PAGE));
                fs.close().unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 1, "of two slots one is the newest");
}

#[test]
fn another_history_of_the_same_age_is_refused() {
    let past = Past::new();
    // The old one is used elsewhere, for as long as the known one was and longer.
    let (elsewhere, other) = (fork(&past.keystore), past.old());
    let (id, known) = record(&other, past.keystore.path());
    let records = elsewhere.path().join(format!("platform/volumes/{id}.json"));
    std::fs::remove_file(records).unwrap();
    let mut met = 0;
    for round in 0..20 {
        let fs = use_it(&other, elsewhere.path()).unwrap();
        fs.close().unwrap();
        drop(fs);
        let (_, there) = record(&other, elsewhere.path());
        if there.sequence == known.sequence {
            met += 1;
            let why = older(use_it(&other, past.keystore.path()));
            assert!(matches!(why, Rollback::OtherMetadata { .. }), "{why}");
        }
        if there.sequence > known.sequence {
            assert!(round > 0);
            break;
        }
    }
    // Its age may exceed that of the known one.
    assert!(met <= 1);
}

#[test]
fn accepted_once_it_begins_an_incarnation_of_its_own() {
    let past = Past::new();
    let old = past.old();
    let before = volume::inspect(&old).unwrap();
    let before = before.claims();
    let fs = accept(&old, past.keystore.path()).unwrap();
    assert_eq!(contents(&fs, "kept"), pattern(1, 0, 5 * PAGE));
    assert!(fs.lookup(ROOT, b"later").is_err());
    let now = fs.volume().header();
    assert_eq!(now.volume_id(), before.volume_id());
    assert_ne!(now.incarnation(), before.incarnation());
    assert_ne!(now.meta_crypto(), before.meta_crypto());
    assert!(now.header_sequence() > before.header_sequence());
    let active = fs.volume().keys.active().epoch;
    assert!(before.key_sets().iter().all(|set| set.epoch < active));

    // New data is under the fresh set, in an object of its own.
    let kept = fs.lookup(ROOT, b"kept").unwrap().node;
    let handle = fs.open_file(&support::USER, kept, libc::O_RDWR).unwrap();
    let page = pattern(9, 0, PAGE);
    fs.write(kept, handle, 0, &page, WriteFlags::default())
        .unwrap();
    fs.fsync(kept, handle, false).unwrap();
    fs.release(kept, handle);
    fs.forget(kept, 1);
    fs.close().unwrap();
    drop(fs);
    let meta = support::audit::open_meta(&old, past.keystore.path());
    let mut epochs = std::collections::BTreeSet::new();
    meta.visit_extents(&mut |_, extent| {
        if let bilayer::meta::records::ExtentRecord::Parts { parts, .. } = extent {
            epochs.extend(parts.iter().map(|part| part.id.epoch));
        }
    })
    .unwrap();
    meta.close().unwrap();
    assert!(epochs.contains(&active) && epochs.len() == 2, "{epochs:?}");
    support::audit::audit(&old, past.keystore.path());

    // From now on it is used like any other, without the option.
    let fs = use_it(&old, past.keystore.path()).unwrap();
    assert_eq!(contents(&fs, "kept")[..PAGE], page);
    fs.close().unwrap();
    drop(fs);
    // All other copies are of another incarnation: the one that was newest, the one from before ...
    for other in [past.new_one(), past.old()] {
        let why = older(use_it(&other, past.keystore.path()));
        assert!(matches!(why, Rollback::OtherIncarnation { .. }), "{why}");
    }
    // ... and a superblock or metadata of theirs put into this one.
    let mixed = FaultyStore::from_memory(&old.to_memory(), WriteUnit::Page);
    put_back(&mixed, "volume.json", &bytes_of(&past.new, "volume.json"));
    older(use_it(&mixed, past.keystore.path()));
    let mixed = FaultyStore::from_memory(&old.to_memory(), WriteUnit::Page);
    put_back(&mixed, "meta", &bytes_of(&past.new, "meta"));
    let Err(Refusal::Else(why)) = use_it(&mixed, past.keystore.path()) else {
        panic!("metadata of another incarnation were used");
    };
    assert!(why.contains("page 0"), "{why}");
}

#[test]
fn accepting_a_current_volume_changes_nothing() {
    let past = Past::new();
    let new = past.new_one();
    let before = bytes_of(&new, "volume.json");
    let fs = accept(&new, past.keystore.path()).unwrap();
    assert_eq!(contents(&fs, "later"), pattern(3, 0, 3 * PAGE));
    fs.close().unwrap();
    assert_eq!(bytes_of(&new, "volume.json"), before);
}

/// The volume is as it was, refused, or a new incarnation, wherever the power failed; and a power
/// cut while that is finished is survived too.
#[test]
fn a_cut_at_every_call_of_accepting() {
    let past = Past::new();
    let (mut refused, mut begun) = (0, 0);
    for call in 1.. {
        let store = past.old();
        let keystore = fork(&past.keystore);
        store.cut_at_call(call);
        let done = accept(&store, keystore.path()).and_then(|fs| fs.close());
        for seed in 0..4 {
            let survivor = store.survivor(seed);
            let keystore = fork(&keystore);
            // Once more while it is opened.
            let survivor = if seed % 2 == 1 {
                survivor.cut_at_call(1 + call % 7 * seed);
                drop(use_it(&survivor, keystore.path()));
                survivor.survivor(call)
            } else {
                survivor
            };
            let what = format!("call {call}, seed {seed}");
            let fs = match use_it(&survivor, keystore.path()) {
                Ok(fs) => {
                    begun += 1;
                    fs
                }
                Err(Refusal::Older(_)) if done.is_err() => {
                    refused += 1;
                    accept(&survivor, keystore.path()).expect(&what)
                }
                Err(other) => panic!("{what}: {other:?}"),
            };
            assert_eq!(contents(&fs, "kept"), pattern(1, 0, 5 * PAGE), "{what}");
            assert_eq!(contents(&fs, "small"), pattern(1, 0, 900), "{what}");
            fs.close().unwrap();
            drop(fs);
            support::audit::audit(&survivor, keystore.path());
            assert!(
                survivor.info(&StorePath::new("meta.next")).is_err(),
                "{what}"
            );
            older(use_it(&past.new_one(), keystore.path()));
        }
        if !store.is_cut() {
            assert!(done.is_ok() && call > 40, "{call}");
            break;
        }
    }
    assert!(refused > 20 && begun > 20, "{refused}, {begun}");
}

/// However often accepting begins and fails, the old metadata does not look newer.
#[test]
fn failed_attempts_leave_the_volume_refused() {
    let past = Past::new();
    let store = past.old();
    let before = bytes_of(&store, "meta");
    for _ in 0..12 {
        let made = |call: &Call<'_>| call.kind == CallKind::Create;
        store.fail_when(made, Fault::Error(Errno::ENOSPC));
        accept(&store, past.keystore.path()).unwrap_err();
        store.clear_faults();
    }
    assert!(bytes_of(&store, "meta") == before);
    older(use_it(&store, past.keystore.path()));
}

/// A file that only looks like the coming metadata does not replace the existing metadata.
#[test]
fn metadata_that_was_slipped_in_is_refused() {
    let past = Past::new();
    let store = past.new_one();
    let next = StorePath::new("meta.next");
    let file = store.open(&next, OpenMode::CreateNew).unwrap();
    file.write_at(&bytes_of(&past.old, "meta"), 0).unwrap();
    drop(file);
    let fs = use_it(&store, past.keystore.path()).unwrap();
    assert_eq!(contents(&fs, "later"), pattern(3, 0, 3 * PAGE));
    fs.close().unwrap();
    assert!(store.info(&next).is_err());
}
