//! Checks a closed volume, and looks at its objects.

use std::collections::BTreeSet;
use std::path::Path;

use bilayer::check::{self, CheckOptions, NoProgress};
use bilayer::meta::Meta;
use bilayer::sealed::MetaFile;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::Volume;

/// The contents of a volume.
#[derive(Debug, Default)]
pub struct Totals {
    /// Inodes in use.
    pub inodes: u64,
    /// Pages of contents in use.
    pub pages: u64,
    /// Bytes of the records that count against the limit.
    pub record_bytes: u64,
    /// Objects in the store.
    pub objects: u64,
}

/// Names of all objects in the store.
pub fn objects(store: &dyn Store) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (folder, _) in store.list(&StorePath::new("objects")).expect("list") {
        let path = StorePath::new(&format!("objects/{folder}"));
        for (name, _) in store.list(&path).expect("list") {
            names.insert(format!("{folder}/{name}"));
        }
    }
    names
}

/// The metadata of a volume that is closed.
pub fn open_meta(store: &FaultyStore, keystore: &Path) -> Meta {
    let volume = super::open_volume(store, keystore, false);
    let file = volume
        .store
        .open(&StorePath::new("meta"), OpenMode::ReadWrite)
        .expect("open meta");
    let file =
        MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto()).expect("meta");
    Meta::open(file, 4 << 20).expect("metadata")
}

/// Checks a volume that was closed cleanly: there must be no finding, not even a note.
pub fn audit(store: &FaultyStore, keystore: &Path) -> Totals {
    audit_volume(&super::open_volume(store, keystore, false))
}

/// Checks a volume in a directory of the store.
pub fn audit_at(store: &FaultyStore, at: &StorePath, keystore: &Path) -> Totals {
    let directory = super::directory_of(store, at);
    let volume = super::try_open_volume(directory, keystore, false);
    audit_volume(&volume.expect("open the volume"))
}

/// Checks an open volume without a filesystem on it.
pub fn audit_volume(volume: &Volume) -> Totals {
    let options = CheckOptions {
        jobs: 1,
        ..CheckOptions::default()
    };
    let report = check::check(volume, &options, &NoProgress).expect("check");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    Totals {
        inodes: report.inodes,
        pages: report.used_pages,
        record_bytes: report.record_bytes,
        objects: report.objects,
    }
}
