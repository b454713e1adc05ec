//! A power cut at every call of the store while a copy becomes a volume of its own.

use std::path::Path;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::{Filesystem, FsError};
use bilayer::ids::VolumeId;
use bilayer::keys::PlatformKeystore;
use bilayer::store::faulty::{Call, CallKind, Fault, FaultyStore, WriteUnit};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, OpenOptions};

use crate::support::{self, Mount, PAGE, ROOT, fork, pattern, quiet};

const META_CACHE: usize = 1 << 20;
/// Another name of an object, like the one in the original of a hard-linked copy.
const OF_THE_ORIGINAL: &str = "of-the-original";

/// A copy of a volume that is not open, which shares its first object with its original.
struct Copy {
    keystore: Arc<tempfile::TempDir>,
    memory: MemoryStore,
    id: VolumeId,
    shared: StorePath,
}

impl Copy {
    fn new() -> Self {
        let mount = Mount::new();
        mount.file(ROOT, "kept", &pattern(1, 0, 5 * PAGE));
        mount.file(ROOT, "small", &pattern(1, 0, 900));
        let view = mount.fs.create_view(ViewKind::Snapshot, "then", None, "");
        view.unwrap();
        let mount = mount.reopen();
        mount.fs.checkpoint_now().unwrap();
        mount.fs.close().unwrap();
        let id = mount.fs.volume().header().volume_id();
        let objects = support::audit::objects(&mount.store);
        let shared = StorePath::new(&format!("objects/{}", objects.first().unwrap()));
        let link = StorePath::new(OF_THE_ORIGINAL);
        mount.store.link(&shared, &link).unwrap();
        mount.store.sync_dir(&StorePath::root()).unwrap();
        Self {
            keystore: Arc::clone(&mount.keystore),
            memory: mount.store.to_memory(),
            id,
            shared,
        }
    }

    fn store(&self) -> FaultyStore {
        FaultyStore::from_memory(&self.memory, WriteUnit::Page)
    }

    fn record(&self, keystore: &Path) -> Vec<u8> {
        let path = format!("platform/volumes/{}.json", self.id);
        std::fs::read(keystore.join(path)).unwrap()
    }
}

fn separate(store: &FaultyStore, keystore: &Path) -> Result<Arc<Filesystem>, FsError> {
    let options = OpenOptions {
        keystore: keystore.join("platform"),
        new_identity: true,
        ..OpenOptions::default()
    };
    let volume = volume::open(Arc::new(store.clone()), &options)?;
    let volume = Filesystem::separate(volume, META_CACHE)?;
    Filesystem::open(volume, quiet())
}

fn use_it(store: &FaultyStore, keystore: &Path) -> Result<Arc<Filesystem>, FsError> {
    let volume = support::try_open_volume(Arc::new(store.clone()), keystore, false)?;
    Filesystem::open(volume, quiet())
}

fn bytes_of(store: &dyn Store, path: &StorePath) -> Vec<u8> {
    let file = store.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[track_caller]
fn holds_everything(fs: &Arc<Filesystem>, what: &str) {
    for (name, len) in [("kept", 5 * PAGE), ("small", 900)] {
        let node = fs.lookup(ROOT, name.as_bytes()).expect(what);
        let handle = fs.open_file(&support::USER, node.node, libc::O_RDONLY);
        let handle = handle.expect(what);
        let mut bytes = vec![0; len];
        assert_eq!(fs.read(node.node, handle, 0, &mut bytes), Ok(len), "{what}");
        assert!(bytes == pattern(1, 0, len), "{what}: {name}");
        fs.release(node.node, handle);
        fs.forget(node.node, 1);
    }
    assert_eq!(fs.views(ViewKind::Snapshot).expect(what).len(), 1, "{what}");
}

fn links(store: &dyn Store, path: &StorePath) -> u64 {
    store.info(path).unwrap().links
}

/// The copy is still a copy or a volume of its own, wherever the power failed, and the original's
/// file and record are unchanged.
#[test]
fn a_cut_at_every_call_leaves_the_copy_or_a_volume_of_its_own() {
    let copy = Copy::new();
    let original = bytes_of(&copy.memory, &copy.shared);
    let record = copy.record(copy.keystore.path());
    let (mut still, mut own) = (0, 0);
    for call in 1.. {
        let store = copy.store();
        let keystore = fork(&copy.keystore);
        store.cut_at_call(call);
        let done = separate(&store, keystore.path()).and_then(|fs| fs.close());
        for seed in 0..3 {
            let what = format!("call {call}, seed {seed}");
            let survivor = store.survivor(seed);
            let keystore = fork(&keystore);
            assert_eq!(copy.record(keystore.path()), record, "{what}");
            // Once more while it is opened.
            let survivor = if seed == 1 {
                survivor.cut_at_call(1 + call % 7);
                drop(use_it(&survivor, keystore.path()));
                survivor.survivor(call)
            } else {
                survivor
            };
            let mut fs = use_it(&survivor, keystore.path()).expect(&what);
            if fs.volume().header().volume_id() == copy.id {
                still += 1;
                assert!(done.is_err(), "{what}");
                holds_everything(&fs, &what);
                fs.close().unwrap();
                drop(fs);
                // A second request succeeds.
                fs = separate(&survivor, keystore.path()).expect(&what);
            } else {
                own += 1;
            }
            let header = fs.volume().header().clone();
            assert_ne!(header.volume_id(), copy.id, "{what}");
            assert_eq!(header.provenance().unwrap().volume, copy.id, "{what}");
            holds_everything(&fs, &what);
            fs.close().unwrap();
            drop(fs);
            let link = StorePath::new(OF_THE_ORIGINAL);
            assert!(bytes_of(&survivor, &link) == original, "{what}");
            assert_eq!(
                (links(&survivor, &link), links(&survivor, &copy.shared)),
                (1, 1)
            );
            for left in ["meta.next", "object.new"] {
                assert!(
                    survivor.info(&StorePath::new(left)).is_err(),
                    "{what}: {left}"
                );
            }
            survivor.unlink(&link).unwrap();
            support::audit::audit(&survivor, keystore.path());
        }
        if !store.is_cut() {
            assert!(done.is_ok() && call > 40, "{call}");
            break;
        }
    }
    assert!(still > 20 && own > 20, "{still}, {own}");
}

/// Without a power cut: nothing of the original's identity remains, nor of the keystore's.
#[test]
fn nothing_of_the_former_identity_stays() {
    let copy = Copy::new();
    let store = copy.store();
    let keystore = fork(&copy.keystore);
    let before = volume::inspect(&store).unwrap();
    let before = before.claims();
    let fs = separate(&store, keystore.path()).unwrap();
    let volume = fs.volume();
    let now = volume.header();
    assert_ne!(now.incarnation(), before.incarnation());
    assert_ne!(now.meta_crypto(), before.meta_crypto());
    let newest = before.key_sets().iter().map(|set| set.epoch).max();
    assert!(Some(volume.keys.active().epoch) > newest);
    // No wrap is one of the original's, and no set vouches for another.
    let wraps = |header: &bilayer::volume::header::HeaderContents| {
        let sets = header.key_sets().iter();
        let wraps = sets.flat_map(|set| set.customer.iter().chain(&set.infrastructure));
        wraps
            .map(|wrap| wrap.ciphertext.clone())
            .collect::<Vec<_>>()
    };
    let old = wraps(before);
    assert!(wraps(&now).iter().all(|wrap| !old.contains(wrap)));
    assert!(now.key_sets().iter().all(|set| set.succeeds.is_none()));
    assert_eq!(now.key_sets().len(), before.key_sets().len() + 1);
    for (entry, _) in store.list(&StorePath::new("checkpoints")).unwrap() {
        assert_eq!(entry, "volume.json");
    }
    let spare = StorePath::new("checkpoints/volume.json");
    let header = bytes_of(&store, &StorePath::new("volume.json"));
    assert!(bytes_of(&store, &spare) == header);
    fs.close().unwrap();
    let platform = PlatformKeystore::open(&keystore.path().join("platform")).unwrap();
    let record = platform.record(now.volume_id()).unwrap().unwrap();
    assert_eq!(record.incarnation, now.incarnation());
    assert!(record.clean && record.sequence.0 > 0);
}

/// A failed attempt leaves no record of an unused id, and the copy unchanged.
#[test]
fn an_attempt_that_fails_leaves_no_record() {
    let copy = Copy::new();
    let store = copy.store();
    let keystore = fork(&copy.keystore);
    let records = || {
        let entries = std::fs::read_dir(keystore.path().join("platform/volumes")).unwrap();
        entries.count()
    };
    let (before, header) = (records(), bytes_of(&store, &StorePath::new("volume.json")));
    let made = |call: &Call<'_>| {
        call.kind == CallKind::Create && call.path.as_str().starts_with("meta.next")
    };
    store.fail_when(made, Fault::Error(Errno::ENOSPC));
    separate(&store, keystore.path()).unwrap_err();
    store.clear_faults();
    assert_eq!(records(), before);
    assert!(bytes_of(&store, &StorePath::new("volume.json")) == header);
    let fs = separate(&store, keystore.path()).unwrap();
    holds_everything(&fs, "at the second attempt");
    fs.close().unwrap();
}

/// A volume that was opened to become a volume of its own is not used before it is one.
#[test]
fn a_copy_is_not_written_before_it_is_a_volume_of_its_own() {
    let copy = Copy::new();
    let options = OpenOptions {
        keystore: copy.keystore.path().join("platform"),
        new_identity: true,
        ..OpenOptions::default()
    };
    let store = copy.store();
    let volume = volume::open(Arc::new(store.clone()), &options).unwrap();
    assert!(Filesystem::open(volume, quiet()).is_err());
    assert!(bytes_of(&store, &copy.shared) == bytes_of(&copy.memory, &copy.shared));
}
