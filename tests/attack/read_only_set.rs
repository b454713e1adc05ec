//! The attacker holds a key set that the victim's volume only reads with (like the owner of its
//! source, or anybody who knows the passphrase of the export from which it was imported), and can
//! write to the victim's directory while it is not mounted. They seal metadata of their own under
//! it.

use std::sync::Arc;

use bilayer::check::{self, CheckOptions, Kind};
use bilayer::fs::Filesystem;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::WriteFlags;
use bilayer::ids::{CryptoId, Sequence};
use bilayer::image::{DeployOptions, NoProgress};
use bilayer::layers::KeySet;
use bilayer::meta::{Meta, checkpoint};
use bilayer::sealed::MetaFile;
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, OpenOptions, Volume, VolumeError};

use crate::support::{self, Mount, ROOT, forge, pattern, quiet};

/// A commit that is newer than any.
const NEWEST: Sequence = Sequence(1 << 40);

/// A volume deployed from an image: the set of its source is read-only in it.
struct Victim {
    mount: Mount,
    store: Arc<dyn Store>,
    pin: String,
    /// What the attacker holds.
    inherited: Arc<KeySet>,
    meta: CryptoId,
}

impl Victim {
    fn new() -> Self {
        let mount = Mount::new();
        mount.file(ROOT, "kept", &pattern(1, 0, 9000));
        mount
            .fs
            .create_view(ViewKind::Image, "base", None, "")
            .unwrap();
        let at = StorePath::new("victim");
        mount.store.create_dir(&at).unwrap();
        let store = support::directory_of(&mount.store, &at);
        let options = DeployOptions {
            keystore: mount.keystore.path().join("platform"),
            ..DeployOptions::default()
        };
        mount
            .fs
            .deploy_image("base", Arc::clone(&store), &options, &NoProgress)
            .unwrap();
        let volume = support::try_open_volume(Arc::clone(&store), mount.keystore.path(), false);
        let volume = volume.unwrap();
        let active = volume.keys.active().epoch;
        let inherited = volume.keys.iter().find(|set| set.epoch != active);
        let inherited = Arc::clone(inherited.unwrap());
        let (pin, meta) = (volume.fingerprint().unwrap(), volume.header().meta_crypto());
        // Used once, with a checkpoint of its metadata.
        let fs = Filesystem::open(volume, quiet()).unwrap();
        fs.mkdir(&support::USER, ROOT, b"own", 0o755).unwrap();
        fs.checkpoint_now().unwrap();
        fs.close().unwrap();
        Self {
            mount,
            store,
            pin,
            inherited,
            meta,
        }
    }

    /// With its own keystore, and its fingerprint pinned.
    fn open(&self) -> Result<Volume, VolumeError> {
        let options = OpenOptions {
            keystore: self.mount.keystore.path().join("platform"),
            fingerprint: Some(self.pin.clone()),
            ..OpenOptions::default()
        };
        volume::open(Arc::clone(&self.store), &options)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = StorePath::new(path);
        let file = match self.store.open(&path, OpenMode::ReadWrite) {
            Err(_) => self.store.open(&path, OpenMode::CreateNew),
            opened => opened,
        };
        let file = file.unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.write_at(bytes, 0).unwrap();
    }

    fn findings(&self) -> Vec<Kind> {
        let options = CheckOptions {
            jobs: 1,
            contents: true,
            memory_bytes: 1 << 20,
        };
        let report = check::check(&self.open().unwrap(), &options, &check::NoProgress).unwrap();
        report.findings.iter().map(|finding| finding.kind).collect()
    }
}

#[test]
fn metadata_under_a_read_only_set_is_not_mounted() {
    let victim = Victim::new();
    assert!(victim.findings().is_empty());
    victim.put(
        "meta",
        &forge::meta_of_an_empty_tree(&victim.inherited, victim.meta, NEWEST),
    );
    let opened = Filesystem::open(victim.open().unwrap(), quiet());
    let message = opened.expect_err("forged metadata").to_string();
    assert!(message.contains("page 0 was refused"), "{message}");
    let kinds = victim.findings();
    assert!(kinds.contains(&Kind::Metadata), "{kinds:?}");
    victim.mount.finish();
}

/// `meta.next` is read if `meta` does not open: it too must open under the active set.
#[test]
fn metadata_about_to_replace_meta_is_refused() {
    let victim = Victim::new();
    victim.put("meta", &[0; 3 * 4608]);
    victim.put(
        "meta.next",
        &forge::meta_of_an_empty_tree(&victim.inherited, victim.meta, NEWEST),
    );
    let opened = Filesystem::open(victim.open().unwrap(), quiet());
    assert!(opened.is_err());
    victim.mount.finish();
}

/// Salvage of a damaged volume extracts nothing that the attacker put there.
#[test]
fn a_checkpoint_under_a_read_only_set_is_not_trusted() {
    let victim = Victim::new();
    // A well-formed checkpoint of the attacker's own metadata, under the set that they hold.
    let scratch = MemoryStore::new();
    let own = forge::meta_of_an_empty_tree(&victim.inherited, victim.meta, NEWEST);
    let path = StorePath::new("meta");
    let file = scratch.open(&path, OpenMode::CreateNew).unwrap();
    file.write_at(&own, 0).unwrap();
    let file = MetaFile::open(file, &victim.inherited, victim.meta).unwrap();
    let meta = Meta::open(file, 1 << 20).unwrap();
    let made = meta
        .write_checkpoint(&scratch, &victim.inherited, &mut || true)
        .unwrap();
    meta.close().unwrap();
    let path = checkpoint::checkpoint_path(made.checkpoint.name);
    let file = scratch.open(&path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    victim.put(path.as_str(), &bytes);

    let volume = victim.open().unwrap();
    let (good, refused) = checkpoint::list(&*victim.store, volume.keys.active()).unwrap();
    assert_eq!(good.len(), 1, "the volume's own is there still");
    assert!(
        good.iter()
            .all(|(kept, _)| kept.name != made.checkpoint.name)
    );
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, made.checkpoint.name);
    drop(volume);
    let kinds = victim.findings();
    assert!(kinds.contains(&Kind::Checkpoint), "{kinds:?}");
    assert!(!kinds.contains(&Kind::RolledBack), "{kinds:?}");
    victim.mount.finish();
}

/// Inherited data that was not written since can be forged by other holders of its set; so `status`
/// says how much that is.
#[test]
fn bytes_that_can_still_be_forged_are_counted() {
    let victim = Victim::new();
    let fs = Filesystem::open(victim.open().unwrap(), quiet()).unwrap();
    // 9000 bytes in pages of 4032.
    assert_eq!(fs.usage().read_only_set_bytes, Some(3 * 4096));
    let node = fs.lookup(ROOT, b"kept").unwrap().node;
    let handle = fs.open_file(&support::USER, node, libc::O_RDWR).unwrap();
    let written = pattern(2, 0, 9000);
    assert_eq!(
        fs.write(node, handle, 0, &written, WriteFlags::default()),
        Ok(9000)
    );
    fs.fsync(node, handle, false).unwrap();
    fs.release(node, handle);
    fs.run_maintenance().unwrap();
    fs.compact_parts();
    assert_eq!(fs.usage().read_only_set_bytes, Some(0));
    fs.forget(node, 1);
    fs.close().unwrap();
    assert_eq!(victim.mount.fs.usage().read_only_set_bytes, None);
    victim.mount.finish();
}
