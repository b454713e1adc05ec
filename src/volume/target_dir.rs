//! The place of a new volume: a directory that is empty, or that an attempt which was cut off has
//! left half made.
//!
//! `lock` holds a mark while a volume is being made. It is durable before anything else is made and
//! goes when the superblock is durable, so a directory with the mark and without `volume.json` was
//! never a volume, and whoever holds its lock may take it away. Opening a volume clears a mark that
//! a cut has left beside its superblock. A directory with anything in it that this program does not
//! make is refused, whatever its `lock` says.

use std::io;
use std::path::Path;

use super::error::VolumeError;
use super::lock;
use super::{
    HEADER_NAME, LOCK_NAME, META_NAME, OBJECTS_NAME, header_path, lock_path, meta_path,
    objects_path,
};
use crate::ids::ObjectId;
use crate::store::{EntryKind, OpenMode, Store, StoreLock, StorePath};

/// What `lock` holds while a volume is being made.
const MARK: &[u8] = b"bilayer: a volume is being made here\n";

/// How often the lock is tried again when it was taken away in between.
const ATTEMPTS: usize = 8;

/// What a directory is to a new volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DirState {
    /// Nothing is there, or a lock that nobody has written anything into but a mark.
    Free,
    /// Something that was cut off is there.
    Incomplete,
}

/// Refuses a directory that has anything in it but what a fresh filesystem has (`lost+found`) or
/// what a volume that was cut off while it was made may have.
/// For directories of the backing filesystem: a store does not see names that are not its own.
///
/// # Errors
/// [`VolumeError::Occupied`].
pub fn refuse_occupied_directory(path: &Path) -> Result<(), VolumeError> {
    // Of everything that may be there, this says most.
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

/// Names in a directory; none where there is no directory.
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

/// Takes the directory for a new volume: locked, marked, and with nothing in it but the lock.
pub(super) fn claim(store: &dyn Store) -> Result<Box<dyn StoreLock>, VolumeError> {
    inspect_dir(store)?;
    let (lock, new) = create_and_lock(store)?;
    if let Err(error) = remove_leftovers(store) {
        if new {
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

/// Looks again, since only who holds the lock can say what is there, and takes away what was left.
fn remove_leftovers(store: &dyn Store) -> Result<(), VolumeError> {
    if inspect_dir(store)? == DirState::Incomplete {
        remove_all_but_lock(store)
            .map_err(VolumeError::io("cannot take away what was left half made"))?;
    }
    Ok(())
}

/// Takes away what was made of a volume, the lock last. Failures are left: the directory is no
/// volume without its superblock, and the first failure is the one to tell of.
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

/// Clears the mark where there is one; durable on return.
pub(super) fn clear_mark(store: &dyn Store) -> io::Result<()> {
    let marked = match read_lock(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        contents => contents? == MARK,
    };
    if marked {
        let file = store.open(&lock_path(), OpenMode::ReadWrite)?;
        file.set_len(0)?;
        file.sync()?;
    }
    Ok(())
}

fn set_mark(store: &dyn Store) -> io::Result<()> {
    let file = store.open(&lock_path(), OpenMode::ReadWrite)?;
    file.write_at(MARK, 0)?;
    file.set_len(MARK.len() as u64)?;
    file.sync()?;
    store.sync_dir(&StorePath::root())
}

/// The beginning of the lock file, one byte more than the mark has at most.
fn read_lock(store: &dyn Store) -> io::Result<Vec<u8>> {
    let file = store.open(&lock_path(), OpenMode::Read)?;
    let mut bytes = vec![0; MARK.len() + 1];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// Makes the lock file where there is none, and locks it. Whoever has the lock makes the volume.
/// True when the file is new.
fn create_and_lock(store: &dyn Store) -> Result<(Box<dyn StoreLock>, bool), VolumeError> {
    for _ in 0..ATTEMPTS {
        let made = store.open(&lock_path(), OpenMode::CreateNew);
        let (file, new) = match made {
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
            Ok((lock, 1)) => return Ok((lock, new)),
            // Taken away by the one who had it before.
            Ok((_, 0)) => {}
            Ok(_) => return Err(occupied(LOCK_NAME.as_ref())),
            Err(error) => {
                // In use: another attempt has the lock of the file made here, and the file is its.
                if new && !matches!(error, VolumeError::InUse { .. }) {
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

/// Looks at what is in the directory.
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
    // Before the mark is durable nothing else is made, and the lock file is any part of one.
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

/// True for a name that a volume may have at its top before it has a superblock.
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

/// Takes away everything but the lock; tries all of it and gives the first failure.
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
