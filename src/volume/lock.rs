//! The lock of a volume directory: only one process has a volume open.
//!
//! A volume directory that was copied with `cp -al` shares its inodes with the original, including
//! the lock file. So the existing lock is taken first. If the file is shared, it is replaced by a
//! private copy, and the copy is locked before the first lock is released: at no moment do two
//! processes both own the volume. Then `meta` and `volume.json` are replaced by private copies too.
//! Objects stay shared; their extents say when the volume may write to them.
//!
//! Users may delete a lock file. So `objects/` is locked too, with a shared lock if the lock of
//! `lock` is shared: removing `lock` does not give another process access. The volume's own
//! directory is not locked, because other users may be able to open it (mode 0755, or before the
//! volume was created in it), whereas only its owner could ever open `objects/`.

use std::io;

use super::error::VolumeError;
use super::mark::clear_mark;
use super::superblock::{OBJECT_NAME, discard_aside, unshare};
use super::{HEADER_NAME, LOCK_NAME, META_NAME, lock_path, objects_path};
use crate::store::{HeldLock, OpenMode, Store, StoreLock};

/// Stands in for the lock of a volume on a read-only filesystem that does not even grant shared
/// locks.
#[derive(Debug)]
struct ReadOnlyMedium;

impl StoreLock for ReadOnlyMedium {}

/// The locks of `lock` and of `objects/`.
#[derive(Debug)]
struct BothLocks {
    file: Box<dyn StoreLock>,
    #[expect(dead_code, reason = "held, never read")]
    objects: Option<Box<dyn StoreLock>>,
}

impl StoreLock for BothLocks {
    fn held(&self) -> Option<HeldLock<'_>> {
        self.file.held()
    }
}

/// Locks the volume and replaces shared files by private copies.
pub(super) fn acquire(
    store: &dyn Store,
    read_only: bool,
) -> Result<Box<dyn StoreLock>, VolumeError> {
    let mut lock = match lock_or_make(store) {
        Err(error) if read_only && error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return lock_medium(store);
        }
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return Err(VolumeError::ReadOnlyMedium);
        }
        result => result.map_err(|error| refused(store, error))?,
    };
    if unshare(store, LOCK_NAME).map_err(VolumeError::io("cannot replace the shared lock"))? {
        let own = store
            .lock(&lock_path())
            .map_err(|error| refused(store, error))?;
        drop(std::mem::replace(&mut lock, own));
    }
    let lock = with_objects(lock, store.lock_dir(&objects_path()))
        .map_err(|error| refused(store, error))?;
    discard_aside(store, OBJECT_NAME).map_err(VolumeError::io("cannot clean up the volume"))?;
    for name in [META_NAME, HEADER_NAME] {
        unshare(store, name)
            .map_err(naming(name))
            .map_err(VolumeError::io("cannot copy a shared file"))?;
        discard_aside(store, name)
            .map_err(naming(&format!("{name}.new")))
            .map_err(VolumeError::io("cannot clean up the volume"))?;
    }
    // A crash after the superblock was written may have left the mark of an incomplete volume.
    clear_mark(store).map_err(VolumeError::io("cannot clean up the volume"))?;
    Ok(lock)
}

/// Locks `objects/` too, if directories can be locked.
fn with_objects(
    file: Box<dyn StoreLock>,
    objects: io::Result<Box<dyn StoreLock>>,
) -> io::Result<Box<dyn StoreLock>> {
    let objects = match objects {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
        Err(error) => {
            tracing::debug!(%error, "objects/ cannot be locked");
            None
        }
        Ok(objects) => Some(objects),
    };
    Ok(Box::new(BothLocks { file, objects }))
}

/// Takes shared locks of a volume whose filesystem is mounted read-only here. It may be writable
/// through another mount, so a writer and this reader must exclude each other.
fn lock_medium(store: &dyn Store) -> Result<Box<dyn StoreLock>, VolumeError> {
    let file = match store.lock_shared(&lock_path()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(refused(store, error));
        }
        Err(error) => {
            tracing::debug!(%error, "the lock cannot be shared");
            Box::new(ReadOnlyMedium)
        }
        Ok(file) => file,
    };
    with_objects(file, store.lock_dir_shared(&objects_path()))
        .map_err(|error| refused(store, error))
}

/// Locks a volume for reading only, however damaged it is.
pub(super) fn acquire_damaged(store: &dyn Store) -> Result<Box<dyn StoreLock>, VolumeError> {
    match store.lock(&lock_path()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(refused(store, error)),
        Err(error) => {
            tracing::warn!(%error, "the volume's lock cannot be taken; continuing without it");
            lock_medium(store)
        }
        Ok(file) => with_objects(file, store.lock_dir(&objects_path()))
            .map_err(|error| refused(store, error)),
    }
}

/// Adds the name of the file to an error.
fn naming(name: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// Takes the lock. A volume without a lock file gets a new one: some copies leave out empty files.
fn lock_or_make(store: &dyn Store) -> io::Result<Box<dyn StoreLock>> {
    match store.lock(&lock_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match store.open(&lock_path(), OpenMode::CreateNew) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            store.lock(&lock_path())
        }
        result => result,
    }
}

/// Locks the lock file of a volume that is being created.
pub(super) fn acquire_new(store: &dyn Store) -> Result<Box<dyn StoreLock>, VolumeError> {
    store
        .lock(&lock_path())
        .map_err(|error| refused(store, error))
}

fn refused(store: &dyn Store, error: io::Error) -> VolumeError {
    match error.kind() {
        io::ErrorKind::WouldBlock => VolumeError::InUse {
            shared: store.info(&lock_path()).is_ok_and(|info| info.links > 1),
        },
        _ => VolumeError::io("cannot lock the volume")(error),
    }
}
