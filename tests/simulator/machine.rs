//! The machine under a volume: its disk, its keystore, and the power.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bilayer::fs::types::Owner;
use bilayer::fs::{AccessTimes, Filesystem, FilesystemOptions, FsError};
use bilayer::meta::database::Tables;
use bilayer::meta::overlay::Overlay;
use bilayer::meta::{Meta, MetaError};
use bilayer::sealed::MetaFile;
use bilayer::store::faulty::{FaultyStore, WriteUnit};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{CreateOptions, FreshVolume, META_NAME, create_empty};

use crate::plan::Again;
use crate::stats::Stats;
use crate::support::{Mount, copy_tree, directory_of, keystore, quiet};

/// Records of a keystore, by their files.
type Records = BTreeMap<PathBuf, Vec<u8>>;

/// A fresh volume and its keystore, created once: every scenario starts with a copy.
struct Template {
    store: MemoryStore,
    keystore: Arc<tempfile::TempDir>,
}

static TEMPLATE: LazyLock<Template> = LazyLock::new(|| {
    let (store, keystore) = (FaultyStore::new(), keystore());
    let at = volume_path();
    store.create_dir(&at).unwrap();
    let options = CreateOptions {
        keystore: keystore.path().join("platform"),
        ..CreateOptions::default()
    };
    create_empty(directory_of(&store, &at), &options, &mut |fresh| {
        Filesystem::format(fresh, Owner::ROOT)?;
        Ok(repeat_hashes(fresh)?)
    })
    .unwrap();
    store.sync_all().unwrap();
    let store = store.to_memory();
    Template { store, keystore }
});

/// Names are hashed under a key that is drawn for each volume. Here it is always the same one, so
/// that the same operations produce the same database.
fn repeat_hashes(fresh: &FreshVolume) -> Result<(), MetaError> {
    let open = || -> Result<MetaFile, MetaError> {
        let path = StorePath::new(META_NAME);
        let file = fresh.store.open(&path, OpenMode::ReadWrite)?;
        Ok(MetaFile::open(
            file,
            fresh.keys.active(),
            fresh.meta_crypto,
        )?)
    };
    let meta = Meta::open(open()?, 4 << 20)?;
    let mut counters = meta.counters();
    meta.close()?;
    counters.hash_key = [7; 16];
    let tables = Tables::open(Arc::new(open()?), 4 << 20)?;
    tables.commit(&Overlay::default(), &counters.encode())?;
    tables.close()
}

/// Creates the volume that all scenarios start with.
pub fn prepare() {
    LazyLock::force(&TEMPLATE);
}

fn volume_path() -> StorePath {
    StorePath::new("vol")
}

/// Options with which nothing happens in the background and nothing depends on the time.
pub fn options() -> FilesystemOptions {
    FilesystemOptions {
        background: false,
        access_times: AccessTimes::Never,
        commit_interval: Duration::from_secs(3600),
        checkpoint_interval: Some(Duration::from_secs(3600)),
        ..quiet()
    }
}

/// A fresh volume that is mounted.
pub fn mount_fresh(unit: WriteUnit, options: FilesystemOptions) -> Mount {
    let template = &*TEMPLATE;
    let store = FaultyStore::from_memory(&template.store, unit);
    if unit == WriteUnit::Sector {
        // As on a filesystem whose `syncfs` proves nothing.
        store.sync_each_file();
    }
    let keystore = keystore();
    copy_tree(template.keystore.path(), keystore.path());
    Mount::open_at(store, volume_path(), keystore, options).unwrap()
}

/// The keystore's records during the current scenario, oldest first.
#[derive(Default)]
pub struct Remembered(Vec<Records>);

impl Remembered {
    /// Notes the current records.
    pub fn note(&mut self, mount: &Mount) {
        self.note_in(mount.keystore.path());
    }

    fn note_in(&mut self, keystore: &Path) {
        let mut records = Records::new();
        for entry in fs::read_dir(records_of(keystore)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read(&path).unwrap();
            records.insert(path, text);
        }
        if self.0.last() != Some(&records) {
            self.0.push(records);
        }
    }

    /// The power fails: the keystore's newest writes are lost. True if there were such writes.
    fn lose(&mut self, keystore: &Path, writes: u64) -> bool {
        self.note_in(keystore);
        let newest = self.0.len() - 1;
        let kept = newest.saturating_sub(writes as usize);
        self.0.truncate(kept + 1);
        let records = &self.0[kept];
        let there = fs::read_dir(records_of(keystore)).unwrap();
        for path in there.map(|entry| entry.unwrap().path()) {
            if !records.contains_key(&path) {
                fs::remove_file(path).unwrap();
            }
        }
        for (path, text) in records {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(path).unwrap().write_all(text).unwrap();
        }
        kept < newest
    }
}

fn records_of(keystore: &Path) -> PathBuf {
    keystore.join("platform").join("volumes")
}

/// What a power cut leaves.
#[derive(Clone, Copy, Debug)]
pub struct Survivors {
    /// Seed of the choice of what survives on the disk.
    pub seed: u64,
    /// Number of the newest keystore records that are lost.
    pub lost_records: u64,
}

/// The power fails.
pub fn power_cut(mount: Mount, survivors: Survivors, env: &mut Environment<'_>) -> Machine {
    let store = mount.store.power_cut(survivors.seed);
    // Only ends its threads: the store refuses everything.
    let _ = mount.fs.close();
    let (keystore, options) = (Arc::clone(&mount.keystore), mount.options.clone());
    drop(mount);
    env.lose(&keystore, survivors.lost_records);
    Machine {
        store,
        keystore,
        options,
    }
}

/// The process dies, and the machine stays up.
pub fn kill(mount: Mount) -> Machine {
    mount.store.restart_process();
    let _ = mount.fs.close();
    Machine::of(mount)
}

/// State that survives a crash of the machine.
pub struct Environment<'a> {
    pub remembered: Remembered,
    pub stats: &'a mut Stats,
    /// The log, if one is requested.
    pub trace: Option<Vec<String>>,
}

impl<'a> Environment<'a> {
    /// An environment without a log.
    pub fn new(stats: &'a mut Stats) -> Self {
        Self {
            remembered: Remembered::default(),
            stats,
            trace: None,
        }
    }

    pub fn log(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    fn lose(&mut self, keystore: &tempfile::TempDir, record: u64) {
        let lost = self.remembered.lose(keystore.path(), record);
        if lost {
            self.stats.older_records += 1;
            self.log(|| format!("the keystore lost its newest {record} writes"));
        }
    }
}

/// A machine on which nothing runs.
pub struct Machine {
    pub store: FaultyStore,
    pub keystore: Arc<tempfile::TempDir>,
    pub options: FilesystemOptions,
}

impl Machine {
    /// The machine after the volume was closed.
    pub fn of(mount: Mount) -> Self {
        let (store, keystore, options) = (mount.store, mount.keystore, mount.options);
        Self {
            store,
            keystore,
            options,
        }
    }

    /// Opens the volume, which must not need help. The power fails during it once for each of
    /// `cuts`.
    pub fn open(mut self, cuts: &[Again], env: &mut Environment<'_>) -> Mount {
        for cut in cuts {
            self.store.cut_at_call(self.store.calls() + cut.call);
            let opened = self.try_open();
            if !self.store.is_cut() {
                self.store.cut_at_call(u64::MAX);
                drop(opened);
                self.store.restart_process();
                continue;
            }
            drop(opened);
            env.stats.cuts_in_recovery += 1;
            let call = self.store.cut_call();
            env.log(|| format!("the power fails while it is opened, in {call:?}; {cut:?}"));
            self.store = self.store.power_cut(cut.survivor);
            env.lose(&self.keystore, cut.record);
        }
        let opened = self.try_open();
        let mount = opened.unwrap_or_else(|error| panic!("the volume does not open: {error}"));
        env.remembered = Remembered::default();
        env.remembered.note(&mount);
        mount
    }

    fn try_open(&self) -> Result<Mount, FsError> {
        let (store, keystore) = (self.store.clone(), Arc::clone(&self.keystore));
        Mount::open_at(store, volume_path(), keystore, self.options.clone())
    }

    /// A copy of the disk, which can be read without side effects.
    pub fn copy_of_disk(&self) -> FaultyStore {
        FaultyStore::from_memory(&self.store.to_memory(), WriteUnit::Page)
    }

    /// Counts everything in the closed volume again.
    pub fn audit(&self) -> crate::support::audit::Totals {
        let store = self.copy_of_disk();
        crate::support::audit::audit_at(&store, &volume_path(), self.keystore.path())
    }
}
