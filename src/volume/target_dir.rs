//! The target directory of a new volume: an empty directory, or one where an earlier attempt was
//! interrupted.
//!
//! `lock` holds a mark while a volume is being created. The mark is durable before anything else is
//! made and is cleared once the superblock is durable. So a directory with the mark and without
//! `volume.json` was never a volume, and the holder of its lock may remove what is in it. Opening a
//! volume clears a mark that a crash left beside its superblock. A directory that holds anything
//! that this program does not make is refused, whatever its `lock` says.

use std::io;
use std::path::Path;

use super::error::VolumeError;
use super::lock;
use super::mark::{MARK, read_lock, set_mark};
use super::{
    HEADER_NAME, LOCK_NAME, META_NAME, OBJECTS_NAME, header_path, lock_path, meta_path,
    objects_path,
};
use crate::ids::ObjectId;
use crate::store::{EntryKind, OpenMode, Store, StoreLock, StorePath};

/// How often taking the lock is retried if somebody removes the file in between.
const ATTEMPTS: usize = 8;

/// The state of a target directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DirState {
    /// Empty, or only a lock file that holds nothing but (part of) a mark.
    Free,
    /// An interrupted attempt left files behind.
    Incomplete,
}

/// Refuses a directory that holds anything except what a fresh filesystem has (`lost+found`) or
/// what an interrupted creation of a volume may have left. It works on directories of the backing
/// filesystem, since a store does not list foreign names.
///
/// # Errors
/// [`VolumeError::Occupied`].
pub fn refuse_occupied_directory(path: &Path) -> Result<(), VolumeError> {
    // This is the most informative message.
    if path.join(HEADER_NAME).exists() {
        return Err(VolumeError::Occupied("a volume already".to_owned()));
    }
    let marked = path.join(LOCK_NAME).exists();
    let names = names_in(path)?;
    let foreign = names.into_iter().find(|name| {
        name != "lost+found" && !(marked && name.to_str().is_some_and(is_volume_entry))
    });
    if let Some(name) = foreign {
        return Err(occupied(&name));
    }
    if !marked {
        return Ok(());
    }
    let objects = path.join(OBJECTS_NAME);
    for folder in names_in(&objects)? {
        if !folder.to_str().is_some_and(is_folder) {
            return Err(occupied(&folder));
        }
        let objects = names_in(&objects.join(&folder))?;
        let foreign = |name: &&std::ffi::OsString| !name.to_str().is_some_and(is_object);
        if let Some(name) = objects.iter().find(foreign) {
            return Err(occupied(name));
        }
    }
    Ok(())
}

fn occupied(name: &std::ffi::OsStr) -> VolumeError {
    VolumeError::Occupied(format!("{name:?} in it"))
}

/// Names in a directory; none if there is no directory.
fn names_in(path: &Path) -> Result<Vec<std::ffi::OsString>, VolumeError> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(VolumeError::io("cannot list the directory"))?,
    };
    entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()
        .map_err(VolumeError::io("cannot list the directory"))
}

/// Claims the directory for a new volume: locked, marked, and empty except for the lock.
pub(super) fn claim(store: &dyn Store) -> Result<Box<dyn StoreLock>, VolumeError> {
    inspect_dir(store)?;
    let NewLock { lock, is_new_file } = create_and_lock(store)?;
    if let Err(error) = remove_leftovers(store) {
        if is_new_file {
            let _ = store.unlink(&lock_path());
        }
        return Err(error);
    }
    if let Err(error) = set_mark(store) {
        rollback(store);
        return Err(VolumeError::io("cannot write the lock file")(error));
    }
    Ok(lock)
}

/// Looks again, since only the holder of the lock can be sure of the contents, and removes what an
/// interrupted attempt left.
fn remove_leftovers(store: &dyn Store) -> Result<(), VolumeError> {
    if inspect_dir(store)? == DirState::Incomplete {
        remove_all_but_lock(store).map_err(VolumeError::io(
            "cannot remove what an interrupted attempt left",
        ))?;
    }
    Ok(())
}

/// Removes a partly created volume, the lock last. Failures are ignored: without its superblock the
/// directory is no volume, and the first failure is the one to report.
pub(super) fn rollback(store: &dyn Store) {
    // Durably first, so that no crash brings back a superblock without its volume.
    if store.unlink(&header_path()).is_ok() {
        let _ = store.sync_dir(&StorePath::root());
    }
    if remove_all_but_lock(store).is_ok() {
        let _ = store.unlink(&lock_path());
        let _ = store.sync_dir(&StorePath::root());
    }
}

/// The lock of a directory in which this process creates a volume.
struct NewLock {
    lock: Box<dyn StoreLock>,
    /// This process created the lock file.
    is_new_file: bool,
}

/// Creates the lock file if it is missing, and locks it. The holder of the lock creates the volume.
fn create_and_lock(store: &dyn Store) -> Result<NewLock, VolumeError> {
    for _ in 0..ATTEMPTS {
        let made = store.open(&lock_path(), OpenMode::CreateNew);
        let (file, is_new_file) = match made {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match store.open(&lock_path(), OpenMode::ReadWrite) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    other => (other.map_err(cannot_make())?, false),
                }
            }
            Err(error) => return Err(cannot_make()(error)),
        };
        let result = lock::acquire_new(store).and_then(|lock| {
            let info = file.info().map_err(cannot_make())?;
            Ok((lock, info.links))
        });
        match result {
            Ok((lock, 1)) => return Ok(NewLock { lock, is_new_file }),
            // The previous holder removed it.
            Ok((_, 0)) => {}
            Ok(_) => return Err(occupied(LOCK_NAME.as_ref())),
            Err(error) => {
                // In use: another attempt locked the file that was created here, and owns it now.
                if is_new_file && !matches!(error, VolumeError::InUse { .. }) {
                    let _ = store.unlink(&lock_path());
                }
                return Err(error);
            }
        }
    }
    Err(VolumeError::InUse { shared: false })
}

fn cannot_make() -> impl FnOnce(io::Error) -> VolumeError {
    VolumeError::io("cannot make the lock file")
}

/// Determines the state of the directory.
fn inspect_dir(store: &dyn Store) -> Result<DirState, VolumeError> {
    let list = |path: &StorePath| {
        let entries = store.list(path);
        entries.map_err(VolumeError::io("cannot list the directory"))
    };
    let entries = list(&StorePath::root())?;
    let Some((first, _)) = entries.first() else {
        return Ok(DirState::Free);
    };
    if entries.iter().any(|(name, _)| name == HEADER_NAME) {
        return Err(occupied(HEADER_NAME.as_ref()));
    }
    let expected = |name: &str| match name {
        OBJECTS_NAME => EntryKind::Directory,
        _ => EntryKind::File,
    };
    let foreign = entries
        .iter()
        .find(|(name, kind)| !is_volume_entry(name) || *kind != expected(name));
    if let Some((name, _)) = foreign {
        return Err(occupied(name.as_ref()));
    }
    let contents = match read_lock(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(occupied(first.as_ref()));
        }
        result => result.map_err(VolumeError::io("cannot read the lock file"))?,
    };
    // Before the mark is durable nothing else is made, and the lock file may hold any part of it.
    let unmarked = contents.len() <= MARK.len() && contents.iter().all(|byte| *byte == 0);
    if contents != MARK && !(unmarked && entries.len() == 1) {
        return Err(occupied(first.as_ref()));
    }
    if entries.len() == 1 {
        return Ok(DirState::Free);
    }
    if entries.iter().all(|(name, _)| name != OBJECTS_NAME) {
        return Ok(DirState::Incomplete);
    }
    for (folder, kind) in list(&objects_path())? {
        if kind != EntryKind::Directory || !is_folder(&folder) {
            return Err(occupied(folder.as_ref()));
        }
        for (object, kind) in list(&folder_path(&folder))? {
            if kind != EntryKind::File || !is_object(&object) {
                return Err(occupied(object.as_ref()));
            }
        }
    }
    Ok(DirState::Incomplete)
}

/// True for a name that a volume may have at its top level before it has a superblock.
fn is_volume_entry(name: &str) -> bool {
    let aside = |of: &str| name.strip_suffix(".new") == Some(of);
    [LOCK_NAME, META_NAME, OBJECTS_NAME].contains(&name) || aside(HEADER_NAME) || aside(META_NAME)
}

fn is_folder(name: &str) -> bool {
    (8..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_object(name: &str) -> bool {
    ObjectId::from_hex(name).is_some()
}

fn folder_path(folder: &str) -> StorePath {
    StorePath::new(&format!("{OBJECTS_NAME}/{folder}"))
}

/// Removes everything but the lock. Tries all of it and returns the first failure.
fn remove_all_but_lock(store: &dyn Store) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut attempt = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound && outcome.is_ok() => {
            outcome = Err(error);
        }
        _ => {}
    };
    for name in [HEADER_NAME, META_NAME] {
        attempt(store.unlink(&StorePath::new(&format!("{name}.new"))));
    }
    attempt(store.unlink(&meta_path()));
    for (folder, kind) in store.list(&objects_path()).unwrap_or_default() {
        let path = folder_path(&folder);
        if kind != EntryKind::Directory {
            attempt(store.unlink(&path));
            continue;
        }
        for (object, _) in store.list(&path).unwrap_or_default() {
            let object = StorePath::new(&format!("{}/{object}", path.as_str()));
            attempt(store.unlink(&object));
        }
        attempt(store.remove_dir(&path));
    }
    attempt(store.remove_dir(&objects_path()));
    outcome
}
