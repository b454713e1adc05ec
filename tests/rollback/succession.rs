//! A volume that was renewed on another machine is accepted if the key set that is known here
//! vouches for it, and not otherwise.

use bilayer::fs::FilesystemOptions;
use bilayer::volume::{Volume, VolumeError};

use super::*;

/// Opens it with a pinned fingerprint, or none.
fn open_pinned(
    store: &FaultyStore,
    keystore: &Path,
    fingerprint: Option<&str>,
) -> Result<Volume, VolumeError> {
    let options = OpenOptions {
        fingerprint: fingerprint.map(str::to_owned),
        ..options(keystore, false)
    };
    volume::open(Arc::new(store.clone()), &options)
}

/// A restored copy that one machine has accepted, and what that machine remembered before.
struct Renewed {
    past: Past,
    /// The state that was accepted.
    before: MemoryStore,
    store: FaultyStore,
    /// Fingerprints before and after.
    pins: [String; 2],
    /// A machine that knows the newest earlier state.
    informed: Arc<tempfile::TempDir>,
    /// A machine that has last seen the state that was accepted.
    behind: Arc<tempfile::TempDir>,
}

impl Renewed {
    fn new() -> Self {
        let past = Past::new();
        let informed = fork(&past.keystore);
        let behind = fork(&past.keystore);
        forget(&past.old(), behind.path());
        let old = past.old();
        let volume = open_pinned(&old, behind.path(), None).unwrap();
        let before = volume.fingerprint().unwrap();
        drop(volume);
        use_it(&old, behind.path()).unwrap().close().unwrap();
        let carried_on = old.to_memory();
        let store = FaultyStore::from_memory(&carried_on, WriteUnit::Page);
        let fs = accept(&store, past.keystore.path()).unwrap();
        let after = fs.volume().fingerprint().unwrap();
        fs.close().unwrap();
        Self {
            past,
            before: carried_on,
            store,
            pins: [before, after],
            informed,
            behind,
        }
    }
}

/// The keystore has never seen the volume.
fn forget(store: &FaultyStore, keystore: &Path) {
    let id = volume::inspect(store).unwrap().claims().volume_id();
    std::fs::remove_file(keystore.join(format!("platform/volumes/{id}.json"))).unwrap();
}

#[test]
fn a_renewal_elsewhere_is_followed_by_a_machine_that_knew_nothing_newer() {
    let renewed = Renewed::new();
    for _ in 0..2 {
        let fs = use_it(&renewed.store, renewed.behind.path()).unwrap();
        assert_eq!(contents(&fs, "kept"), pattern(1, 0, 5 * PAGE));
        fs.close().unwrap();
    }
    let (_, known) = record(&renewed.store, renewed.behind.path());
    assert_eq!(known.key_sets.len(), 2);
    // The previous state is older now.
    let why = use_it(&renewed.past.old(), renewed.behind.path());
    assert!(
        matches!(why, Err(Refusal::Older(Rollback::OtherIncarnation { .. }))),
        "{why:?}"
    );
}

#[test]
fn a_renewal_of_an_older_state_is_refused_where_the_newer_one_is_known() {
    let renewed = Renewed::new();
    let why = older(use_it(&renewed.store, renewed.informed.path()));
    assert!(matches!(why, Rollback::RenewedFromOlder { .. }), "{why}");
    assert!(
        why.to_string()
            .contains("what came in between is not in it")
    );
}

/// The superblock of a copy that was renewed elsewhere gets into the volume's directory, without
/// the metadata: the volume cannot be used until its own superblock is back, and then it can.
#[test]
fn a_superblock_without_its_metadata_is_not_remembered() {
    const SUPERBLOCKS: [&str; 2] = ["volume.json", "checkpoints/volume.json"];
    let renewed = Renewed::new();
    let volume = FaultyStore::from_memory(&renewed.before, WriteUnit::Page);
    let keystore = renewed.behind.path();
    let known = record(&volume, keystore);
    let own = SUPERBLOCKS.map(|path| bytes_of(&volume, path));
    put_back(
        &volume,
        SUPERBLOCKS[0],
        &bytes_of(&renewed.store, SUPERBLOCKS[0]),
    );
    for read_only in [false, true] {
        let options = OpenOptions {
            read_only,
            ..options(keystore, false)
        };
        let opened = volume::open(Arc::new(volume.clone()), &options).unwrap();
        let opened = Filesystem::open(
            opened,
            FilesystemOptions {
                read_only,
                ..quiet()
            },
        );
        opened.expect_err("metadata of before");
    }
    assert_eq!(record(&volume, keystore), known);
    // Nor does the spare copy become the foreign superblock.
    assert_eq!(bytes_of(&volume, SUPERBLOCKS[1]), own[1]);
    put_back(&volume, SUPERBLOCKS[0], &own[0]);
    let fs = use_it(&volume, keystore).unwrap();
    assert_eq!(contents(&fs, "kept"), pattern(1, 0, 5 * PAGE));
    fs.close().unwrap();
}

#[test]
fn a_pinned_fingerprint_follows_a_renewal_and_nothing_else() {
    let renewed = Renewed::new();
    let [before, after] = &renewed.pins;
    assert_ne!(before, after);
    for pin in [before, after] {
        for keystore in [&renewed.past.keystore, &renewed.behind] {
            open_pinned(&renewed.store, keystore.path(), Some(pin)).unwrap();
        }
        // On a machine that has never seen the volume, too.
        let fresh = fork(&renewed.behind);
        forget(&renewed.store, fresh.path());
        open_pinned(&renewed.store, fresh.path(), Some(pin)).unwrap();
    }
    // The older volume cannot pass for one under the later set.
    let past = renewed.past.old();
    let fresh = fork(&renewed.behind);
    forget(&past, fresh.path());
    let refused = open_pinned(&past, fresh.path(), Some(after));
    assert!(matches!(
        refused,
        Err(VolumeError::FingerprintMismatch { .. })
    ));
    let other = "0000-0000-0000-0000-0000-0000-0000-0000";
    let refused = open_pinned(&renewed.store, renewed.behind.path(), Some(other));
    assert!(matches!(
        refused,
        Err(VolumeError::FingerprintMismatch { .. })
    ));
}

/// A volume deployed from an image is no successor of its source: its reader may be somebody else.
#[test]
fn a_pinned_fingerprint_does_not_follow_a_deployment() {
    let mount = Mount::new();
    mount.file(ROOT, "kept", &pattern(1, 0, PAGE));
    mount
        .fs
        .create_view(ViewKind::Image, "base", None, "")
        .unwrap();
    let source = mount.fs.volume().fingerprint().unwrap();
    let at = StorePath::new("copy");
    mount.store.create_dir(&at).unwrap();
    let keystore = Arc::clone(&mount.keystore);
    let deploy = bilayer::image::DeployOptions {
        keystore: keystore.path().join("platform"),
        ..Default::default()
    };
    let target = support::directory_of(&mount.store, &at);
    mount
        .fs
        .deploy_image(
            "base",
            Arc::clone(&target),
            &deploy,
            &bilayer::image::NoProgress,
        )
        .unwrap();
    let pinned = OpenOptions {
        fingerprint: Some(source),
        ..options(keystore.path(), false)
    };
    let refused = volume::open(target, &pinned);
    assert!(matches!(
        refused,
        Err(VolumeError::FingerprintMismatch { .. })
    ));
    mount.finish();
}

/// Renewed repeatedly: every set of the chain may be pinned.
#[test]
fn the_chain_of_renewals_is_followed_to_its_end() {
    let past = Past::new();
    let fresh = fork(&past.keystore);
    let mut store = past.old();
    let mut pins = Vec::new();
    for round in 0..3 {
        let fs = accept(&store, past.keystore.path()).unwrap();
        pins.push(fs.volume().fingerprint().unwrap());
        fs.close().unwrap();
        drop(fs);
        // The same volume is used elsewhere, so that the one here is older again.
        let older = store.to_memory();
        let fs = use_it(&store, past.keystore.path()).unwrap();
        let name = format!("round-{round}");
        fs.mkdir(&support::USER, ROOT, name.as_bytes(), 0o755)
            .unwrap();
        fs.close().unwrap();
        store = FaultyStore::from_memory(&older, WriteUnit::Page);
    }
    forget(&store, fresh.path());
    for pin in &pins {
        open_pinned(&store, fresh.path(), Some(pin)).unwrap();
    }
}
