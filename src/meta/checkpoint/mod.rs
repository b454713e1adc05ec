//! Checkpoints: copies of the metadata beside it, for the day on which it cannot be read.
//!
//! `checkpoints/<crypto id>` is a sealed file in the geometry of `meta`. It has the pages that one
//! commit reaches, each at its place in `meta`, and page 0 as it was then, with a note in it:
//!
//! ```text
//! 512 | "bilayerC" 8 | 1 | created 12
//! ```
//! Page 0 stands in slot A and is sealed under the sequence that it has in `meta`, so that which of
//! two checkpoints is newer stands in what is authenticated. Slot B has the mark of
//! [`PageCopy`]. Other pages are sealed under the sequence of the commit
//! that they were copied from, an earlier one too: what counts is the checksum that a page's parent
//! gives, and by these the whole tree hangs on page 0, and on the note in it. So whoever puts back
//! an older page makes a page that does not count, as in `meta` itself. All pages are sealed under
//! the active key set, and only what is sealed under that opens as a checkpoint: when the active
//! set changes, all checkpoints go, and what is unfinished.
//!
//! Order of writes: `checkpoints/`, durable; the pages of the file under its name with `.new`
//! behind it, synced; its page 0, synced; renamed; the directory synced; then older ones go. A file
//! that has its name is never written again, so a copy of the volume made with `cp -al` may share
//! it. One under
//! `.new` is taken up again by whoever comes next ([`write`]), unless it has more names than that.
//!
//! Nothing is held while it is written but, for an instant at the beginning, what keeps a commit
//! out. The pages are read past the database, whose cache and locks are for others, each page with
//! its checksum: what does not count ends the attempt, and the checkpoints that there are stay.

mod write;

use std::io;
use std::sync::Arc;

use super::MetaError;
use super::raw::RawTables;
use super::records::Timespec;
use crate::ids::{CryptoId, Sequence};
use crate::layers::KeySet;
use crate::sealed::{META_PAYLOAD_BYTES, MetaFile, PageCopy, SealedError};
use crate::store::{EntryKind, OpenMode, Store, StorePath};

pub(super) use write::Unfinished;
pub use write::Written;

/// Name of the directory.
pub const CHECKPOINTS_NAME: &str = "checkpoints";
/// How many are kept.
const KEPT: usize = 2;
/// What is behind the name of an unfinished one.
const UNFINISHED: &str = ".new";
/// Of the backing filesystem's room this is left to others, or a twentieth if that is less.
const HEADROOM_BYTES: u64 = 1 << 30;
/// Where the note stands in page 0, of which the database uses 320 bytes.
const NOTE_AT: usize = 512;
const NOTE_BYTES: usize = 21;
const NOTE_BEGINS: &[u8; 9] = b"bilayerC\x01";
const _: () = assert!(NOTE_AT + NOTE_BYTES <= META_PAYLOAD_BYTES);

/// A checkpoint that opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Its name, and the domain of its keys.
    pub name: CryptoId,
    /// It is of the commit that page 0 of `meta` had this sequence after.
    pub sequence: Sequence,
    /// When it was begun.
    pub created: Timespec,
    /// Length of its file in bytes.
    pub bytes: u64,
}

/// Why there is no new checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It was to stop.
    #[error("it was broken off")]
    Stopped,
    /// There is little room left, which others need more.
    #[error("the backing filesystem has too little room left for one")]
    NoRoom,
    /// The metadata are damaged.
    #[error("page {page} of the metadata cannot be used: {reason}")]
    Damaged {
        /// Number of the page.
        page: u64,
        /// Why.
        reason: String,
    },
    /// It could not be written.
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

/// Makes the directory, durably, where there is none.
pub fn make_directory(store: &dyn Store) -> io::Result<()> {
    match store.create_dir(&directory_path()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.and_then(|()| store.sync_dir(&StorePath::root())),
    }
}

/// Names in the directory; none where there is no directory.
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

/// Opens a checkpoint as of its commit, sealed under the volume's active key set and no other.
pub fn open(
    store: &dyn Store,
    active: &Arc<KeySet>,
    name: CryptoId,
) -> Result<(Checkpoint, RawTables), MetaError> {
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

/// All checkpoints that there are, the newest first; those that do not open are named with why.
#[allow(clippy::type_complexity)]
pub fn list(
    store: &dyn Store,
    active: &Arc<KeySet>,
) -> io::Result<(Vec<(Checkpoint, RawTables)>, Vec<(CryptoId, MetaError)>)> {
    let names = names(store)?;
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for name in names.iter().filter_map(|name| CryptoId::from_hex(name)) {
        match open(store, active, name) {
            Ok(checkpoint) => found.push(checkpoint),
            Err(error) => refused.push((name, error)),
        }
    }
    found.sort_by_key(|(checkpoint, _)| std::cmp::Reverse((checkpoint.sequence, checkpoint.name)));
    Ok((found, refused))
}

/// The newest one.
pub fn newest(
    store: &dyn Store,
    active: &Arc<KeySet>,
) -> io::Result<Option<(Checkpoint, RawTables)>> {
    let (found, _) = list(store, active)?;
    Ok(found.into_iter().next())
}

/// Bytes that everything in the directory takes on the backing filesystem, unfinished ones too.
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

/// Opens the unfinished one that has most, to go on with it, and takes all others away: those that
/// are not sealed under the active key set, and those that have other names too, since they belong
/// to a copy of the volume as well.
pub fn resume_unfinished(store: &dyn Store, active: &Arc<KeySet>) -> io::Result<Option<PageCopy>> {
    let mut candidates = Vec::new();
    for name in unfinished_names(store)? {
        match name.strip_suffix(UNFINISHED).and_then(CryptoId::from_hex) {
            Some(crypto) => {
                let info = store.info(&entry_path(&name))?;
                candidates.push(((info.links == 1).then_some(info.allocated_bytes), crypto));
            }
            None => store.unlink(&entry_path(&name))?,
        }
    }
    candidates.sort_by_key(|candidate| std::cmp::Reverse(*candidate));
    let mut kept = None;
    for (has, crypto) in candidates {
        let path = unfinished_path(crypto);
        let may_stay = kept.is_none() && has.is_some();
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
    names.retain(|name| name.ends_with(UNFINISHED));
    Ok(names)
}

fn entry_path(name: &str) -> StorePath {
    StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"))
}

/// Path of one that is not finished.
fn unfinished_path(name: CryptoId) -> StorePath {
    entry_path(&format!("{name}{UNFINISHED}"))
}

/// Takes away all but so many of the newest, for the room. True when there was any.
pub fn discard_oldest(store: &dyn Store, active: &Arc<KeySet>, keep: usize) -> io::Result<bool> {
    let (found, _) = list(store, active)?;
    let mut gone = false;
    for (checkpoint, _) in found.iter().skip(keep) {
        remove(store, checkpoint.name)?;
        gone = true;
    }
    Ok(gone)
}

/// Takes away those that are older than the two newest, those that do not open, and those from a
/// time that the volume was taken back from: `newest` is the newest there can be.
fn rotate(store: &dyn Store, active: &Arc<KeySet>, newest: &Checkpoint) -> io::Result<()> {
    let (found, refused) = list(store, active)?;
    let others = found
        .iter()
        .filter(|(other, _)| other.name != newest.name)
        .map(|(other, _)| other);
    let (ahead, older): (Vec<&Checkpoint>, Vec<&Checkpoint>) =
        others.partition(|other| other.sequence > newest.sequence);
    let unneeded = ahead.into_iter().chain(older.into_iter().skip(KEPT - 1));
    let unneeded = unneeded.map(|other| other.name);
    // One that could not be read may be good.
    let refused = refused
        .into_iter()
        .filter(|(_, error)| !is_io_error(error))
        .map(|(name, _)| name);
    for name in unneeded.chain(refused) {
        remove(store, name)?;
    }
    Ok(())
}

/// True for an error of reading, which says nothing of what is there.
fn is_io_error(error: &MetaError) -> bool {
    matches!(
        error,
        MetaError::Io(_) | MetaError::Sealed(SealedError::Io(_))
    )
}

/// Somebody else may have been faster.
fn remove(store: &dyn Store, name: CryptoId) -> io::Result<()> {
    match store.unlink(&checkpoint_path(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// True where the backing filesystem has little room left.
pub fn is_short(store: &dyn Store) -> io::Result<bool> {
    let space = store.space()?;
    Ok(space.available_bytes < HEADROOM_BYTES.min(space.total_bytes / 20))
}

/// Puts the note into a page 0.
fn write_note(page_0: &mut [u8], created: Timespec) {
    let mut note = NOTE_BEGINS.to_vec();
    note.extend_from_slice(&created.secs.to_le_bytes());
    note.extend_from_slice(&created.nanos.to_le_bytes());
    page_0[NOTE_AT..NOTE_AT + NOTE_BYTES].copy_from_slice(&note);
}

/// When a checkpoint was begun, by its page 0; `None` where that is no checkpoint's.
fn read_note(page_0: &[u8]) -> Option<Timespec> {
    let note = page_0.get(NOTE_AT..NOTE_AT + NOTE_BYTES)?;
    let rest = note.strip_prefix(NOTE_BEGINS)?;
    let (secs, nanos) = rest.split_first_chunk::<8>()?;
    Some(Timespec {
        secs: i64::from_le_bytes(*secs),
        nanos: u32::from_le_bytes(nanos.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests;
