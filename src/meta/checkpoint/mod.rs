//! Checkpoints: copies of the metadata, for when `meta` cannot be read.
//!
//! `checkpoints/<crypto id>` is a sealed file in the geometry of `meta`. It holds the pages that
//! one commit references, each at its position in `meta`, and page 0 of that time with an added
//! note:
//!
//! ```text
//! 512 | "bilayerC" 8 | 1 | created 12
//! ```
//! Page 0 is in slot A and is sealed under the sequence that it has in `meta`, so authenticated
//! data tells which of two checkpoints is newer. Slot B holds the mark of [`PageCopy`]. Other pages
//! are sealed under the sequence of the commit that they were copied from, which may be an earlier
//! one. They are bound to page 0, and to the note in it, by checksums: each page states those of
//! its children. So an older page that is put back is rejected, as in `meta` itself. All pages are
//! sealed under the active key set, and a file that is sealed under another one does not open as a
//! checkpoint: when the active set changes, all checkpoints and unfinished files are removed.
//!
//! Order of writes: `checkpoints/`, durable; the pages of the file under its name with the suffix
//! `.new`, synced; its page 0, synced; the rename; the sync of the directory; then older
//! checkpoints are removed. A file with its final name is never written again, so a copy of the
//! volume made with `cp -al` may share it. The next writer continues a `.new` file ([`write`]),
//! unless the file has more names.
//!
//! Commits are excluded only briefly at the beginning, not while pages are copied. Pages are read
//! past the database, whose cache and locks serve other callers, and verified by their checksums. A
//! rejected page ends the attempt, and the existing checkpoints stay.

mod write;

use std::io;
use std::sync::Arc;

use super::MetaError;
use super::raw::RawTables;
use super::records::Timespec;
use crate::ids::{CryptoId, Sequence};
use crate::layers::KeySet;
use crate::sealed::{META_PAYLOAD_BYTES, MetaFile, PageCopy, SealedError};
use crate::store::{EntryKind, OpenMode, SpaceInfo, Store, StorePath};

pub(super) use write::Unfinished;
pub use write::Written;

/// Name of the directory.
const CHECKPOINTS_NAME: &str = "checkpoints";
/// Number of finished checkpoints that are kept.
const CHECKPOINTS_KEPT: usize = 2;
/// Suffix of an unfinished checkpoint's name.
const UNFINISHED_SUFFIX: &str = ".new";
/// Free space of the backing filesystem that checkpoints leave to others ([`headroom_bytes`]).
const HEADROOM_BYTES_MAX: u64 = 1 << 30;
/// Offset of the note in page 0, of which the database uses 320 bytes.
const NOTE_AT: usize = 512;
const NOTE_BYTES: usize = 21;
const NOTE_MAGIC: &[u8; 9] = b"bilayerC\x01";
const _: () = assert!(NOTE_AT + NOTE_BYTES <= META_PAYLOAD_BYTES);

/// A checkpoint that opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Its name, and the domain of its keys.
    pub name: CryptoId,
    /// The sequence of page 0 of `meta` after its commit.
    pub sequence: Sequence,
    /// When its commit was pinned.
    pub created: Timespec,
    /// Length of its file in bytes.
    pub bytes: u64,
}

/// A checkpoint with the tables as of its commit.
pub type Opened = (Checkpoint, RawTables);

/// A checkpoint that does not open, and why.
pub type Refused = (CryptoId, MetaError);

/// Why no checkpoint was made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The caller asked to stop.
    #[error("it was stopped")]
    Stopped,
    /// The remaining space is left to others.
    #[error("the backing filesystem has too little space left for a checkpoint")]
    NoSpace,
    /// The metadata is damaged.
    #[error("page {page} of the metadata cannot be used: {reason}")]
    Damaged {
        /// Number of the page.
        page: u64,
        /// Why it cannot be used.
        reason: String,
    },
    /// The checkpoint could not be read or written.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The backing store failed.
    #[error("the backing store failed: {0}")]
    Io(#[from] io::Error),
}

fn directory_path() -> StorePath {
    StorePath::new(CHECKPOINTS_NAME)
}

/// Path of a checkpoint.
pub fn checkpoint_path(name: CryptoId) -> StorePath {
    entry_path(&name.to_string())
}

/// Creates the directory durably if it is missing.
///
/// # Errors
/// When the store fails.
fn create_directory(store: &dyn Store) -> io::Result<()> {
    match store.create_dir(&directory_path()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.and_then(|()| store.sync_dir(&StorePath::root())),
    }
}

/// Names in the directory; none if there is no directory.
fn names(store: &dyn Store) -> io::Result<Vec<String>> {
    let entries = match store.list(&directory_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let files = entries
        .into_iter()
        .filter(|(_, kind)| *kind == EntryKind::File);
    let mut names: Vec<String> = files.map(|(name, _)| name).collect();
    names.sort();
    Ok(names)
}

/// Opens a checkpoint, which must be sealed under the volume's active key set.
///
/// # Errors
/// When the file cannot be read, a page 0 does not open under the key set, or it holds no note.
pub fn open(store: &dyn Store, active: &Arc<KeySet>, name: CryptoId) -> Result<Opened, MetaError> {
    let file = store.open(&checkpoint_path(name), OpenMode::Read)?;
    let bytes = file.len()?;
    let file = Arc::new(MetaFile::open(file, active, name)?);
    let (created, tables) = file
        .pages_0()
        .into_iter()
        .find_map(|(sequence, page)| {
            let created = read_note(&page)?;
            Some((created, RawTables::of_page_0(&file, &page, sequence)?))
        })
        .ok_or(MetaError::Corrupt("checkpoint"))?;
    let checkpoint = Checkpoint {
        name,
        sequence: tables.sequence(),
        created,
        bytes,
    };
    Ok((checkpoint, tables))
}

/// All checkpoints, the newest first, and those that do not open with the reasons.
///
/// # Errors
/// When the directory cannot be listed.
pub fn list(store: &dyn Store, active: &Arc<KeySet>) -> io::Result<(Vec<Opened>, Vec<Refused>)> {
    let names = names(store)?;
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for name in names.iter().filter_map(|name| CryptoId::from_hex(name)) {
        match open(store, active, name) {
            Ok(checkpoint) => opened.push(checkpoint),
            Err(error) => refused.push((name, error)),
        }
    }
    opened.sort_by_key(|(checkpoint, _)| std::cmp::Reverse((checkpoint.sequence, checkpoint.name)));
    Ok((opened, refused))
}

/// The newest checkpoint that opens.
///
/// # Errors
/// When the directory cannot be listed.
pub fn newest(store: &dyn Store, active: &Arc<KeySet>) -> io::Result<Option<Opened>> {
    let (opened, _) = list(store, active)?;
    Ok(opened.into_iter().next())
}

/// Bytes allocated to everything in the directory, including unfinished checkpoints.
///
/// # Errors
/// When the directory cannot be listed, or a file in it cannot be examined.
pub fn allocated_bytes(store: &dyn Store) -> io::Result<u64> {
    let mut bytes = 0u64;
    for name in names(store)? {
        match store.info(&entry_path(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            info => bytes = bytes.saturating_add(info?.allocated_bytes),
        }
    }
    Ok(bytes)
}

/// Opens the largest unfinished checkpoint in order to continue it, and removes all others: those
/// that are not sealed under the active key set, and those with several names, since they belong to
/// a copy of the volume too.
///
/// # Errors
/// When the store fails. A file that does not open is no error: it is removed.
pub fn resume_unfinished(store: &dyn Store, active: &Arc<KeySet>) -> io::Result<Option<PageCopy>> {
    let mut candidates = Vec::new();
    for name in unfinished_names(store)? {
        match name
            .strip_suffix(UNFINISHED_SUFFIX)
            .and_then(CryptoId::from_hex)
        {
            Some(crypto) => {
                let info = store.info(&entry_path(&name))?;
                let allocated_bytes = (info.links == 1).then_some(info.allocated_bytes);
                candidates.push((allocated_bytes, crypto));
            }
            None => store.unlink(&entry_path(&name))?,
        }
    }
    candidates.sort_by_key(|candidate| std::cmp::Reverse(*candidate));
    let mut kept = None;
    for (allocated_bytes, crypto) in candidates {
        let path = unfinished_path(crypto);
        let may_stay = kept.is_none() && allocated_bytes.is_some();
        let resume = || {
            let file = store.open(&path, OpenMode::ReadWrite)?;
            PageCopy::resume(file, active, crypto)
        };
        match may_stay.then(resume) {
            Some(Ok(copy)) => kept = Some(copy),
            _ => store.unlink(&path)?,
        }
    }
    Ok(kept)
}

fn unfinished_names(store: &dyn Store) -> io::Result<Vec<String>> {
    let mut names = names(store)?;
    names.retain(|name| name.ends_with(UNFINISHED_SUFFIX));
    Ok(names)
}

fn entry_path(name: &str) -> StorePath {
    StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"))
}

/// Path of an unfinished checkpoint.
fn unfinished_path(name: CryptoId) -> StorePath {
    entry_path(&format!("{name}{UNFINISHED_SUFFIX}"))
}

/// Removes all but the `keep` newest checkpoints to free space. True if any was removed.
///
/// # Errors
/// When the directory cannot be listed, or a checkpoint cannot be removed.
pub fn discard_oldest(store: &dyn Store, active: &Arc<KeySet>, keep: usize) -> io::Result<bool> {
    let (opened, _) = list(store, active)?;
    for (checkpoint, _) in opened.iter().skip(keep) {
        remove(store, checkpoint.name)?;
    }
    Ok(opened.len() > keep)
}

/// Removes checkpoints that are older than the two newest, that do not open, or that are newer than
/// `newest`, which was just written: the latter date from before the volume was rolled back on
/// purpose.
fn rotate(store: &dyn Store, active: &Arc<KeySet>, newest: &Checkpoint) -> io::Result<()> {
    let (opened, refused) = list(store, active)?;
    let others = opened
        .iter()
        .filter(|(other, _)| other.name != newest.name)
        .map(|(other, _)| other);
    let (ahead, older): (Vec<&Checkpoint>, Vec<&Checkpoint>) =
        others.partition(|other| other.sequence > newest.sequence);
    let unneeded = ahead
        .into_iter()
        .chain(older.into_iter().skip(CHECKPOINTS_KEPT - 1));
    let unneeded = unneeded.map(|other| other.name);
    // A checkpoint that could not be read may be good.
    let refused = refused
        .into_iter()
        .filter(|(_, error)| !is_io_error(error))
        .map(|(name, _)| name);
    for name in unneeded.chain(refused) {
        remove(store, name)?;
    }
    Ok(())
}

/// True for an I/O error: the contents may be good.
fn is_io_error(error: &MetaError) -> bool {
    matches!(
        error,
        MetaError::Io(_) | MetaError::Sealed(SealedError::Io(_))
    )
}

/// Removes a checkpoint, unless another process has done so.
fn remove(store: &dyn Store, name: CryptoId) -> io::Result<()> {
    match store.unlink(&checkpoint_path(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// True if the backing filesystem has too little space left to continue a checkpoint.
///
/// # Errors
/// When the free space cannot be determined.
pub fn is_short(store: &dyn Store) -> io::Result<bool> {
    let space = store.space()?;
    Ok(space.available_bytes < headroom_bytes(&space))
}

/// The free space that is left to others: at most a twentieth of the filesystem.
fn headroom_bytes(space: &SpaceInfo) -> u64 {
    HEADROOM_BYTES_MAX.min(space.total_bytes / 20)
}

/// Writes the note into a page 0.
fn write_note(page_0: &mut [u8], created: Timespec) {
    let mut note = NOTE_MAGIC.to_vec();
    note.extend_from_slice(&created.secs.to_le_bytes());
    note.extend_from_slice(&created.nanos.to_le_bytes());
    page_0[NOTE_AT..NOTE_AT + NOTE_BYTES].copy_from_slice(&note);
}

/// The time recorded in page 0 of a checkpoint; `None` if this is no checkpoint's page 0.
fn read_note(page_0: &[u8]) -> Option<Timespec> {
    let note = page_0.get(NOTE_AT..NOTE_AT + NOTE_BYTES)?;
    let rest = note.strip_prefix(NOTE_MAGIC)?;
    let (secs, nanos) = rest.split_first_chunk::<8>()?;
    Some(Timespec {
        secs: i64::from_le_bytes(*secs),
        nanos: u32::from_le_bytes(nanos.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests;
