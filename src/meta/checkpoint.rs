//! Checkpoints: copies of the metadata beside it, for the day on which it cannot be read.
//!
//! `checkpoints/<crypto id>` is a sealed file in the geometry of `meta`, with the database of section
//! 8 of the format, of all rows as of one commit: kept views come with it. One more table in it,
//! `checkpoint`, has one row, whose key is empty:
//!
//! ```text
//! 1 | sequence 8 | created 12
//! ```
//! Its pages are sealed under the sequence of the commit and those that follow, so that which of two
//! is newer stands in what is authenticated. They are sealed under the active key set, and only what
//! is sealed under that opens as a checkpoint: when the active set changes, all checkpoints go.
//!
//! Order of writes: `checkpoints/`, durable; the file under its name with `.new` behind it, synced;
//! renamed; the directory synced; then older ones go. A file that has its name is never written again,
//! so a copy of the volume made with `cp -al` may share it. What a cut leaves under `.new` is taken
//! away by the next use.
//!
//! Nothing is held while it is written but, for an instant at the beginning, what keeps a commit out.
//! The rows are read past the database, whose cache and locks are for others, each page with its
//! checksum: what does not count ends the attempt, and the checkpoints that there are stay.

use std::io;
use std::sync::Arc;

use super::database::Tables;
use super::keys::Table;
use super::raw::{Found, RawTables};
use super::records::Timespec;
use super::{Meta, MetaError};
use crate::ids::{CryptoId, Sequence};
use crate::layers::KeySet;
use crate::sealed::{META_PAYLOAD_BYTES, META_STRIDE_BYTES, MetaFile, SealedError};
use crate::store::{EntryKind, OpenMode, Store, StorePath};

/// Name of the directory.
pub const CHECKPOINTS_NAME: &str = "checkpoints";
/// How many are kept.
const KEPT: usize = 2;
/// Cache of the database that is filled, in bytes.
const CACHE_BYTES: usize = 8 << 20;
/// Rows between two questions whether to go on.
const ROWS_AT_A_TIME: u32 = 128;
/// Of the backing filesystem's room this is left to others, or a twentieth if that is less.
const HEADROOM_BYTES: u64 = 1 << 30;
const NOTE_BYTES: usize = 21;

/// A checkpoint that opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Its name, and the domain of its keys.
    pub name: CryptoId,
    /// It is no older than the commit with this number.
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
    StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"))
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
    let mut commits = RawTables::all(&file).into_iter();
    let (sequence, created, tables) = commits
        .find_map(|tables| {
            let (sequence, created) = tables.note().and_then(decode_note)?;
            Some((sequence, created, tables))
        })
        .ok_or(MetaError::Corrupt("checkpoint"))?;
    let checkpoint = Checkpoint {
        name,
        sequence,
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
pub fn newest(store: &dyn Store, active: &Arc<KeySet>) -> io::Result<Option<Checkpoint>> {
    let (found, _) = list(store, active)?;
    Ok(found.first().map(|(checkpoint, _)| *checkpoint))
}

/// Takes away what a cut has left.
pub fn tidy(store: &dyn Store) -> io::Result<()> {
    for name in names(store)?.iter().filter(|name| name.ends_with(".new")) {
        store.unlink(&StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}")))?;
    }
    Ok(())
}

/// Takes away all but so many of the newest, for the room. True when there was any.
pub fn give_way(store: &dyn Store, active: &Arc<KeySet>, keep: usize) -> io::Result<bool> {
    let (found, _) = list(store, active)?;
    let mut gone = false;
    for (checkpoint, _) in found.iter().skip(keep) {
        take_away(store, checkpoint.name)?;
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
        .filter(|(_, error)| !is_of_the_store(error))
        .map(|(name, _)| name);
    for name in unneeded.chain(refused) {
        take_away(store, name)?;
    }
    Ok(())
}

/// True for an error of reading, which says nothing of what is there.
fn is_of_the_store(error: &MetaError) -> bool {
    matches!(
        error,
        MetaError::Io(_) | MetaError::Sealed(SealedError::Io(_))
    )
}

/// Somebody else may have been faster.
fn take_away(store: &dyn Store, name: CryptoId) -> io::Result<()> {
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

impl Meta {
    /// Writes a checkpoint of everything that is committed, and takes older ones away. `go_on` is
    /// asked all the time; it may wait.
    ///
    /// # Errors
    /// There is no new one, and those that there were are there still.
    pub fn write_checkpoint(
        &self,
        store: &dyn Store,
        active: &Arc<KeySet>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Checkpoint, CheckpointError> {
        // What page 0 says after a failed commit was not synced, and the disk may be failing.
        if self.latched().is_some() {
            return Err(CheckpointError::Stopped);
        }
        check_room(store, self.checkpoint_bytes()?)?;
        make_directory(store)?;
        tidy(store)?;
        let name = CryptoId::random()?;
        let path = checkpoint_path(name);
        let aside = StorePath::new(&format!("{}.new", path.as_str()));
        let written = self
            .write_aside(store, active, name, &aside, go_on)
            .and_then(|checkpoint| {
                store.rename(&aside, &path)?;
                Ok(checkpoint)
            });
        let checkpoint = written.inspect_err(|_| {
            // Worth nothing; whoever comes next takes it away otherwise.
            let _ = store.unlink(&aside);
        })?;
        store.sync_dir(&directory_path())?;
        if self.latched().is_none()
            && let Err(error) = rotate(store, active, &checkpoint)
        {
            tracing::warn!(%error, "older checkpoints could not be taken away");
        }
        Ok(checkpoint)
    }

    /// About the most that a checkpoint may have, in bytes.
    pub fn checkpoint_bytes(&self) -> io::Result<u64> {
        let pages = self.file.len()? / META_PAYLOAD_BYTES as u64;
        Ok((pages + 1) * META_STRIDE_BYTES as u64)
    }

    fn write_aside(
        &self,
        store: &dyn Store,
        active: &Arc<KeySet>,
        name: CryptoId,
        aside: &StorePath,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Checkpoint, CheckpointError> {
        let (commit, rows) = self.as_committed()?;
        let created = Timespec::now();
        let sequence = rows.sequence();
        let file = store.open(aside, OpenMode::CreateNew)?;
        let sealed = MetaFile::create_at(Arc::clone(&file), active, name, sequence)
            .map_err(MetaError::from)?;
        let tables = Tables::open(Arc::new(sealed), CACHE_BYTES)?;
        let mut failure = None;
        let loaded = tables.load(Some(&encode_note(sequence, created)), &mut |to| {
            let mut counters = None;
            for table in Table::ALL {
                let mut insert = |key: &[u8], value: &[u8]| {
                    if table == Table::Counters {
                        counters = Some(value.to_vec());
                        return Ok(());
                    }
                    Ok(to.insert(table, key, value)?)
                };
                copy_rows(&rows, table, &mut insert, go_on).map_err(|error| {
                    failure = Some(error);
                    MetaError::Corrupt("checkpoint")
                })?;
            }
            counters.ok_or(MetaError::Corrupt("counters"))
        });
        drop(commit);
        if let Some(failure) = failure {
            return Err(failure);
        }
        loaded?;
        tables.close()?;
        file.sync()?;
        let bytes = file.len()?;
        Ok(Checkpoint {
            name,
            sequence,
            created,
            bytes,
        })
    }

    /// The rows of the newest commit. Its pages are not used for others as long as what comes with
    /// them is held.
    pub(super) fn as_committed(
        &self,
    ) -> Result<(Arc<super::database::Committed>, RawTables), MetaError> {
        let _no_commit = self.tables.lock();
        let committed = Arc::clone(&self.state.read().committed);
        let rows = RawTables::newest(&self.file).ok_or(MetaError::Corrupt("page 0"))?;
        Ok((committed, rows))
    }
}

fn check_room(store: &dyn Store, needed_bytes: u64) -> Result<(), CheckpointError> {
    let space = store.space()?;
    let headroom = HEADROOM_BYTES.min(space.total_bytes / 20);
    // Once for it, and once more for what the metadata may need meanwhile.
    let enough = needed_bytes.saturating_mul(2).saturating_add(headroom);
    if space.available_bytes < enough {
        return Err(CheckpointError::NoRoom);
    }
    Ok(())
}

/// Takes a key and its value.
type Insert<'i> = dyn FnMut(&[u8], &[u8]) -> Result<(), CheckpointError> + 'i;

fn copy_rows(
    rows: &RawTables,
    table: Table,
    insert: &mut Insert<'_>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<(), CheckpointError> {
    let mut outcome = Ok(());
    let mut count = 0u32;
    rows.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |found| {
        outcome = match found {
            Found::Row(key, value) => insert(key, value),
            Found::Gap(gap) => Err(CheckpointError::Damaged {
                page: gap.page.unwrap_or_default(),
                reason: gap.reason.clone(),
            }),
        };
        count += 1;
        if outcome.is_ok() && count.is_multiple_of(ROWS_AT_A_TIME) && !go_on() {
            outcome = Err(CheckpointError::Stopped);
        }
        outcome.is_ok()
    });
    outcome
}

fn encode_note(sequence: Sequence, created: Timespec) -> Vec<u8> {
    let mut note = vec![1];
    note.extend_from_slice(&sequence.0.to_le_bytes());
    note.extend_from_slice(&created.secs.to_le_bytes());
    note.extend_from_slice(&created.nanos.to_le_bytes());
    note
}

fn decode_note(note: &[u8]) -> Option<(Sequence, Timespec)> {
    let note: &[u8; NOTE_BYTES] = note.try_into().ok()?;
    let (tag, rest) = note.split_first_chunk::<1>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (secs, nanos) = rest.split_first_chunk::<8>()?;
    let created = Timespec {
        secs: i64::from_le_bytes(*secs),
        nanos: u32::from_le_bytes(nanos.try_into().ok()?),
    };
    (tag == &[1]).then_some((Sequence(u64::from_le_bytes(*sequence)), created))
}
