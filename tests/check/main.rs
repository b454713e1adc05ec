//! `bilayer check`: an intact volume has no findings, in any state and use. Each kind of damage is
//! reported, and repaired if possible.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod command;
mod damage;
mod pages;
mod whole;

use bilayer_test_support as support;
use bilayer_test_support::real;

use std::path::Path;

use bilayer::check::{self, CheckError, CheckOptions, CheckProgress, Kind, NoProgress, Report};
use bilayer::meta::Meta;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::{OpenMode, Store, StorePath};

use support::{Mount, ROOT, audit, open_volume, pattern};

const OPTIONS: CheckOptions = CheckOptions {
    jobs: 2,
    contents: true,
    memory_bytes: 4096,
};

/// A closed volume.
struct Closed {
    store: FaultyStore,
    keystore: std::sync::Arc<tempfile::TempDir>,
}

impl Closed {
    /// With a few files and directories in it.
    fn new() -> Self {
        let mount = Mount::new();
        mount.file(ROOT, "file", b"what is in it");
        mount.file(ROOT, "large", &large());
        let dir = mount.mkdir(ROOT, "dir");
        let below = mount.mkdir(dir, "below");
        mount.file(below, "deep", &pattern(2, 0, 20_000));
        Self::of(mount)
    }

    fn of(mount: Mount) -> Self {
        let (store, keystore) = (mount.store.clone(), mount.keystore.clone());
        mount.finish();
        Self { store, keystore }
    }

    fn path(&self) -> &Path {
        self.keystore.path()
    }

    fn check(&self) -> Report {
        let volume = open_volume(&self.store, self.path(), true);
        check::check(&volume, &OPTIONS, &NoProgress).unwrap()
    }

    fn repair(&self) -> Report {
        let volume = open_volume(&self.store, self.path(), false);
        check::repair(&volume, &OPTIONS, &NoProgress).unwrap()
    }

    /// Changes the metadata directly, without the filesystem.
    fn tamper(&self, change: impl FnOnce(&Meta)) {
        let meta = audit::open_meta(&self.store, self.path());
        change(&meta);
        meta.commit(meta.newest_batch(), &|| true).unwrap();
        meta.close().unwrap();
    }

    fn mount(&self) -> Mount {
        let (store, keystore) = (self.store.clone(), self.keystore.clone());
        Mount::open(store, keystore, support::quiet()).unwrap()
    }

    /// Opens a file of the store.
    fn open(&self, path: &str) -> std::sync::Arc<dyn bilayer::store::StoreFile> {
        self.store
            .open(&StorePath::new(path), OpenMode::ReadWrite)
            .unwrap()
    }

    /// The object with the most bytes.
    fn largest(&self) -> String {
        let objects = audit::objects(&self.store).into_iter();
        let paths = objects.map(|name| format!("objects/{name}"));
        paths
            .max_by_key(|path| self.open(path).len().unwrap())
            .unwrap()
    }
}

fn large() -> Vec<u8> {
    pattern(1, 0, 300_000)
}

fn kinds(report: &Report) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = report.findings.iter().map(|f| f.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

struct Impatient;

impl CheckProgress for Impatient {
    fn cancelled(&self) -> bool {
        true
    }
}

#[test]
fn a_check_ends_when_it_is_cancelled() {
    let closed = Closed::new();
    let volume = open_volume(&closed.store, closed.path(), true);
    let ended = check::check(&volume, &OPTIONS, &Impatient);
    assert!(matches!(ended, Err(CheckError::Cancelled)));
}
