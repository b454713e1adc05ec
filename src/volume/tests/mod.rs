//! Volumes on memory, directory and faulty stores.

use std::path::Path;

use super::*;
use crate::ids::VolumeId;
use crate::keys::customer::file::tests::{key_file, private_pem, public_pem};
use crate::keys::error::ErrorKind;
use crate::sealed::{META_PAYLOAD_BYTES, MetaFile};
use crate::store::OpenMode;
use crate::store::memory::MemoryStore;

mod crash;
mod inheriting;
mod opening;
mod rewrapping;
mod slots;
mod superblock;
mod target_dir;

/// Page 0 of the metadata of a new volume.
const META: &[u8] = &[0x4d; META_PAYLOAD_BYTES];
const FOLDER: &str = "objects/00000001";
const OBJECT: &str = "objects/00000001/0123456789abcdef0123456789abcdef";

/// Directory of keys and keystore, and options that name them.
struct Keys {
    directory: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("tempdir"),
        }
    }

    /// The same keys and records, which change independently from now on.
    fn fork(&self) -> Self {
        let fork = Self::new();
        let copied = std::process::Command::new("cp")
            .args(["-a", "-T"])
            .args([self.at(), fork.at()])
            .status();
        assert!(copied.expect("cp").success());
        fork
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    fn private(&self) -> KeyUri {
        key_file(self.at(), "private.pem", &private_pem())
    }

    fn public(&self) -> KeyUri {
        key_file(self.at(), "public.pem", &public_pem())
    }

    fn create_options(&self, customer_key: Option<KeyUri>) -> CreateOptions {
        CreateOptions {
            customer_key,
            keystore: self.at().join("platform"),
            ..CreateOptions::default()
        }
    }

    fn open_options(&self, customer_key: Option<KeyUri>) -> OpenOptions {
        OpenOptions {
            customer_key,
            keystore: self.at().join("platform"),
            ..OpenOptions::default()
        }
    }

    fn create(&self, store: &Arc<dyn Store>, key: Option<KeyUri>) -> VolumeId {
        create_empty(
            Arc::clone(store),
            &self.create_options(key),
            &mut write_meta,
        )
        .expect("create")
    }

    fn open(&self, store: &Arc<dyn Store>, key: Option<KeyUri>) -> Result<Volume, VolumeError> {
        open(Arc::clone(store), &self.open_options(key))
    }

    fn keystore(&self) -> PlatformKeystore {
        PlatformKeystore::open(&self.at().join("platform")).expect("keystore")
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the filesystem does for a fresh volume, in small.
fn write_meta(fresh: &FreshVolume) -> Result<(), Failure> {
    let file = fresh.store.open(&meta_path(), OpenMode::CreateNew)?;
    let file = MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto)?;
    file.write(0, META)?;
    file.sync()?;
    fresh.store.create_dir(&StorePath::new(FOLDER))?;
    let object = fresh
        .store
        .open(&StorePath::new(OBJECT), OpenMode::CreateNew)?;
    object.sync()?;
    fresh.store.sync_dir(&StorePath::new(FOLDER))?;
    fresh.store.sync_dir(&objects_path())?;
    Ok(())
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

fn read(store: &dyn Store, path: &StorePath) -> Vec<u8> {
    let file = store.open(path, OpenMode::Read).expect("open");
    let len = usize::try_from(file.len().expect("len")).expect("small");
    let mut bytes = vec![0; len];
    assert_eq!(file.read_at(&mut bytes, 0).expect("read"), len);
    bytes
}

/// Page 0 of the metadata of a volume.
fn read_meta(volume: &Volume) -> Vec<u8> {
    let file = volume
        .store
        .open(&meta_path(), OpenMode::Read)
        .expect("open");
    let crypto = volume.header().meta_crypto();
    let file = MetaFile::open(file, volume.keys.active(), crypto).expect("meta");
    let mut page = vec![0; META.len()];
    file.read(0, &mut page).expect("read");
    page
}

fn write(store: &dyn Store, path: &StorePath, bytes: &[u8]) {
    let file = store.open(path, OpenMode::ReadWrite).expect("open");
    file.set_len(bytes.len() as u64).expect("cut");
    file.write_at(bytes, 0).expect("write");
}

fn kind_of(result: Result<Volume, VolumeError>) -> ErrorKind {
    let error = result.expect_err("refused");
    assert!(!error.to_string().is_empty());
    error.kind()
}
