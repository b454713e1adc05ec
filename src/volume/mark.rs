//! The mark in `lock` of a volume that is being created (see [`super::target_dir`]).

use std::io;

use super::lock_path;
use crate::store::{OpenMode, Store, StorePath};

/// Contents of `lock` while a volume is being created.
pub(super) const MARK: &[u8] = b"bilayer: a volume is being made here\n";

/// Clears the mark if there is one; durable on return.
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

/// Writes the mark; durable on return.
pub(super) fn set_mark(store: &dyn Store) -> io::Result<()> {
    let file = store.open(&lock_path(), OpenMode::ReadWrite)?;
    file.write_at(MARK, 0)?;
    file.set_len(MARK.len() as u64)?;
    file.sync()?;
    store.sync_dir(&StorePath::root())
}

/// The beginning of the lock file: at most one byte more than the mark has.
pub(super) fn read_lock(store: &dyn Store) -> io::Result<Vec<u8>> {
    let file = store.open(&lock_path(), OpenMode::Read)?;
    let mut bytes = vec![0; MARK.len() + 1];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}
