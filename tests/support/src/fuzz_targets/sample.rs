//! Small volumes from which cases begin, created once in each thread.

use std::cell::OnceCell;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use bilayer::fs::types::{Caller, NodeId, Owner};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::keys::KeyUri;
use bilayer::keys::customer::file::generate;
use bilayer::layers::{KeyRing, KeySet};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{
    self, CreateOptions, FreshVolume, HEADER_NAME, OpenOptions, Volume, VolumeError,
};

/// The caller of all operations.
pub const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// The root directory.
pub const ROOT: NodeId = NodeId::ROOT;

/// A closed volume.
pub struct Sample {
    directory: tempfile::TempDir,
    /// Its store, which cases copy.
    pub store: MemoryStore,
    /// All bytes of its superblock.
    pub header: Vec<u8>,
    /// Its key sets.
    pub keys: Arc<KeyRing>,
    /// Its customer key, private half.
    pub customer: Option<KeyUri>,
}

/// Creates the metadata of a volume.
pub type Fill<'a> = dyn FnMut(&FreshVolume) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

impl Sample {
    /// Creates a volume; `fill` creates its metadata.
    pub fn new(customer: bool, fill: &mut Fill<'_>) -> Self {
        let directory = directory();
        let customer = customer.then(|| {
            let path = directory.path().join("customer.pem");
            generate(&path, 2048, None).unwrap();
            KeyUri::from_file(&path).unwrap()
        });
        let store = MemoryStore::new();
        let options = CreateOptions {
            keystore: directory.path().join("platform"),
            customer_key: customer.clone(),
            ..CreateOptions::default()
        };
        volume::create_empty(Arc::new(store.clone()), &options, fill).unwrap();
        let mut sample = Self {
            directory,
            header: contents(&store, HEADER_NAME),
            store,
            keys: Arc::new(KeyRing::new(
                KeySet::random(bilayer::ids::Epoch(1)).unwrap(),
                Vec::new(),
            )),
            customer,
        };
        sample.keys = Arc::clone(&sample.open(&sample.store.snapshot()).unwrap().keys);
        sample
    }

    /// Directory of its platform keystore.
    pub fn keystore(&self) -> PathBuf {
        self.directory.path().join("platform")
    }

    /// A path beside the keystore.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens a copy of it, which the platform keystore does not know.
    pub fn open(&self, store: &MemoryStore) -> Result<Volume, VolumeError> {
        forget_records(&self.keystore());
        let options = OpenOptions {
            keystore: self.keystore(),
            customer_key: self.customer.clone(),
            ..OpenOptions::default()
        };
        volume::open(Arc::new(store.clone()), &options)
    }
}

/// A directory for keys; `TMPDIR` sets where.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("bilayer-fuzz-")
        .tempdir()
        .unwrap()
}

fn forget_records(keystore: &Path) {
    for record in fs::read_dir(keystore.join("volumes")).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
}

/// All bytes of a file of the store.
pub fn contents(store: &MemoryStore, name: &str) -> Vec<u8> {
    let file = store.open(&StorePath::new(name), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Options under which nothing happens in the background.
pub fn options() -> FilesystemOptions {
    FilesystemOptions {
        commit_interval: std::time::Duration::from_secs(3600),
        meta_cache_bytes: 1 << 20,
        open_objects: 16,
        ..FilesystemOptions::default()
    }
}

thread_local! {
    static PLATFORM: OnceCell<Rc<Sample>> = const { OnceCell::new() };
    static CUSTOMER: OnceCell<Rc<Sample>> = const { OnceCell::new() };
}

fn empty(customer: bool) -> Rc<Sample> {
    Rc::new(Sample::new(customer, &mut |fresh| {
        Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
    }))
}

/// An empty platform-managed volume.
pub fn platform() -> Rc<Sample> {
    PLATFORM.with(|sample| Rc::clone(sample.get_or_init(|| empty(false))))
}

/// An empty customer-managed volume.
pub fn customer() -> Rc<Sample> {
    CUSTOMER.with(|sample| Rc::clone(sample.get_or_init(|| empty(true))))
}
