//! Metadata sealed by the holder of a key set which the volume only reads with.

use std::sync::Arc;

use bilayer::fs::Filesystem;
use bilayer::fs::snapshots::ViewKind;
use bilayer::ids::Sequence;
use bilayer::image::{DeployOptions, NoProgress};
use bilayer::store::{OpenMode, Store, StorePath};

use crate::support::{self, Mount, ROOT, forge, pattern};

/// Reports whether forged metadata was accepted as the volume's.
pub fn find() -> Option<String> {
    let mount = Mount::new();
    mount.file(ROOT, "file", &pattern(1, 0, 9000));
    mount
        .fs
        .create_view(ViewKind::Image, "image", None, "")
        .unwrap();
    let at = StorePath::new("deployed");
    mount.store.create_dir(&at).unwrap();
    let options = DeployOptions {
        keystore: mount.keystore.path().join("platform"),
        ..DeployOptions::default()
    };
    let target = support::directory_of(&mount.store, &at);
    mount
        .fs
        .deploy_image("image", Arc::clone(&target), &options, &NoProgress)
        .unwrap();
    let open = || support::try_open_volume(Arc::clone(&target), mount.keystore.path(), false);
    let volume = open().unwrap();
    let active = volume.keys.active().epoch;
    let inherited = volume.keys.iter().find(|set| set.epoch != active).unwrap();
    let crypto = volume.header().meta_crypto();
    let forged = forge::meta_of_an_empty_tree(inherited, crypto, Sequence(1 << 40));
    drop(volume);
    let meta = target
        .open(&StorePath::new("meta"), OpenMode::ReadWrite)
        .unwrap();
    meta.set_len(forged.len() as u64).unwrap();
    meta.write_at(&forged, 0).unwrap();
    let opened = Filesystem::open(open().unwrap(), support::quiet());
    let accepted = opened
        .is_ok()
        .then(|| "forged metadata were mounted".to_owned());
    drop(opened);
    mount.finish();
    accepted
}
