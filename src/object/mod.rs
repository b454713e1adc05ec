//! Contents of files: extents made of parts, each a sealed object.
//!
//! Chunk n of a file is 4 MiB. A page is read from the first part that has it; only the newest
//! part is written in place, and only where no kept view, no copy and no retired key set sees it.
//! Contents of up to [`INLINE_BYTES`] live in the extent's record itself.
//!
//! Order of writes: pages, fdatasync, `sync_dir` of new names, then the record that names them
//! ([`sync`]); objects are unlinked and holes punched only after the commit that made them
//! unreachable ([`collect`]).

mod clone;
mod collect;
mod cut;
mod file;
mod flatten;
mod objects;
mod open_objects;
mod read;
mod reserve;
mod sync;
mod trim;
mod verify;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::errno::Errno;
use crate::ids::{ChunkIndex, Epoch, Ino, PageIndex};
use crate::layers::KeyRing;
use crate::meta::commit::BatchNumber;
use crate::meta::page_set::{
    CHUNK_BYTES, PAYLOAD_BYTES, pages_of_capacity, pages_taken, pages_touching,
};
use crate::meta::records::{ExtentRecord, ObjectName, PAGES_MAX, PartId, Timespec};
use crate::meta::{Meta, MetaError, View};
use crate::planted::{Bug, planted};
use crate::sealed::{ContentsFile, LogOnce, SealedError};
use crate::store::Store;

pub use collect::Cut;
pub use cut::Space;
pub use file::File;
use file::{Chunk, FileState};
pub use objects::Objects;
pub(crate) use objects::{folder_path, object_path, root_path};
pub use verify::{Fault, FaultKind};

/// Contents up to this length live in the metadata. Measured: below it a file costs no object,
/// and a leaf of the database still holds more than one.
pub const INLINE_BYTES: u64 = 2048;
/// Chunks of one file kept in memory beyond those that are dirty.
const CHUNKS_KEPT: usize = 1024;
/// The largest file: chunks are numbered with 32 bits, offsets are signed 64-bit numbers.
pub const FILE_BYTES_MAX: u64 = ((u32::MAX as u64) + 1) * CHUNK_BYTES - 1;
const _: () = assert!(FILE_BYTES_MAX == crate::meta::records::SIZE_MAX);

/// What can go wrong with contents.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The metadata could not be read or changed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A page of an object could not be read or written.
    #[error("object {object}: {source}", object = .object.object)]
    Page {
        /// The object.
        object: ObjectName,
        /// What happened.
        source: SealedError,
    },
    /// An object that the metadata name is not there.
    #[error("object {} is missing from folder {:08x}", .object.object, .object.folder.0)]
    Missing {
        /// The object.
        object: ObjectName,
    },
    /// An object is sealed under a key set that the volume does not have.
    #[error("object {} is sealed under key set {epoch}, which this volume does not have", .object.object)]
    NoKeySet {
        /// The object.
        object: ObjectName,
        /// Number of the key set.
        epoch: Epoch,
    },
    /// The backing store failed.
    #[error("the backing store failed: {0}")]
    Io(#[from] std::io::Error),
    /// The volume's own limit is reached.
    #[error("the volume is full")]
    Full,
    /// The file would grow beyond what an offset can say.
    #[error("the file would be too large")]
    TooLarge,
    /// The file is gone.
    #[error("the file was removed")]
    Removed,
}

impl ObjectError {
    /// What the caller of the filesystem is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Meta(error) => error.errno(),
            Self::Page { source, .. } => source.errno(),
            Self::Missing { .. } | Self::NoKeySet { .. } => Errno::EIO,
            Self::Io(error) => Errno::from_backing(error),
            Self::Full => Errno::ENOSPC,
            Self::TooLarge => Errno::EFBIG,
            Self::Removed => Errno::ESTALE,
        }
    }
}

/// Size, sealed pages and time of writing of a live file: what its record does not say yet.
#[derive(Clone, Copy, Debug)]
pub struct LiveAttr {
    /// Length in bytes.
    pub size: u64,
    /// Pages that are sealed or have space set aside.
    pub pages: u64,
    /// Time of a write that is not in the record.
    pub written: Option<Timespec>,
}

/// The contents of all files of a volume.
#[derive(Debug)]
pub struct Contents {
    meta: Arc<Meta>,
    objects: Objects,
    /// Of the live view and of kept ones.
    files: Mutex<HashMap<(View, Ino), Arc<File>>>,
    /// Files that became known since the last sync of all of them began.
    recent: AtomicUsize,
    /// Files whose contents must be durable before the next commit, and how often that was asked.
    ordered: Mutex<BTreeMap<Ino, u64>>,
    /// Physical work that waits for the next commit.
    cuts: Mutex<Vec<(BatchNumber, Cut)>>,
    /// Held by who does that work.
    collecting: Mutex<()>,
    /// Chunks with lists of parts that have become long.
    waiting: Mutex<flatten::Waiting>,
    /// Pages sealed or set aside, now; the counter in the metadata is the durable one.
    used_pages: AtomicI64,
    limit_pages: Option<u64>,
    /// Objects, and pages of them, that the log knows not to open.
    told: LogOnce<(ObjectName, Option<PageIndex>)>,
}

impl Contents {
    /// The contents of the volume in `store`.
    pub fn new(
        meta: Arc<Meta>,
        store: Arc<dyn Store>,
        keys: Arc<KeyRing>,
        open_max: usize,
    ) -> Self {
        let counters = meta.counters();
        let limit = pages_of_capacity(counters.limit_bytes);
        Self {
            objects: Objects::in_use(&meta, store, keys, open_max),
            meta,
            files: Mutex::default(),
            recent: AtomicUsize::new(0),
            ordered: Mutex::default(),
            cuts: Mutex::default(),
            collecting: Mutex::default(),
            waiting: Mutex::default(),
            used_pages: AtomicI64::new(counters.used_pages.cast_signed()),
            limit_pages: (counters.limit_bytes > 0).then_some(limit),
            told: LogOnce::default(),
        }
    }

    /// The objects below.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The live file of an inode. Its record is read while nobody can forget the file: one that
    /// was read before may be older than what a file forgotten meanwhile has published.
    pub fn file(&self, ino: Ino) -> Result<Arc<File>, ObjectError> {
        self.file_in(View::LIVE, ino)
    }

    /// The same in any view. Nothing but reading may be done with a file of a kept one.
    pub fn file_in(&self, view: View, ino: Ino) -> Result<Arc<File>, ObjectError> {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&(view, ino)) {
            return Ok(Arc::clone(file));
        }
        let inode = self.meta.inode(ino, view)?;
        let inode = inode.ok_or(ObjectError::Removed)?;
        let file = Arc::new(File::new(ino, view, inode.size, inode.pages));
        files.insert((view, ino), Arc::clone(&file));
        self.recent.fetch_add(1, Ordering::Relaxed);
        Ok(file)
    }

    /// About the memory held by files that became known since the last sync of all of them began,
    /// in bytes: small ones have their contents there until then.
    pub fn recent_bytes(&self) -> usize {
        let files = self.recent.load(Ordering::Relaxed);
        files.saturating_mul(INLINE_BYTES as usize)
    }

    /// True, once, when many objects wait for their sync ([`Objects::is_sync_due`]).
    pub fn is_sync_due(&self) -> bool {
        self.objects.is_sync_due()
    }

    fn live_file(&self, ino: Ino) -> Option<Arc<File>> {
        self.files.lock().get(&(View::LIVE, ino)).cloned()
    }

    /// What a live file's record does not say yet.
    pub fn live(&self, ino: Ino) -> Option<LiveAttr> {
        let file = self.live_file(ino)?;
        let state = file.state.lock();
        Some(LiveAttr {
            size: state.size,
            pages: state.pages,
            written: state.written,
        })
    }

    /// True when the file's first bytes are in the metadata, or when that cannot be told.
    pub fn is_inline(&self, view: View, ino: Ino) -> bool {
        let file = self.files.lock().get(&(view, ino)).cloned();
        if let Some(file) = file
            && let Some(chunk) = file.state.lock().chunks.get(&0)
        {
            return matches!(chunk.extent, file::Extent::Inline(_));
        }
        let record = self.meta.extent(ino, ChunkIndex(0), view);
        !matches!(record, Ok(None | Some((_, ExtentRecord::Parts { .. }))))
    }

    /// The time of a write that is not in the file's record, which the caller puts there.
    pub fn take_written(&self, ino: Ino) -> Option<Timespec> {
        let file = self.live_file(ino)?;
        let mut state = file.state.lock();
        state.written.take()
    }

    /// Forgets a file that nobody uses and that has nothing to sync.
    pub fn forget(&self, ino: Ino) {
        self.forget_in(View::LIVE, ino);
    }

    /// The same in any view.
    pub fn forget_in(&self, view: View, ino: Ino) {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&(view, ino))
            && Arc::strong_count(file) == 1
            && !file.state.lock().is_dirty()
        {
            files.remove(&(view, ino));
        }
    }

    /// Takes note that files are as their records say again. Nothing of them waits for the disk, and
    /// nobody changes anything; who reads one relies on the chunks that he loaded.
    pub fn reload(&self, inos: impl Iterator<Item = Ino>) -> Result<(), ObjectError> {
        for ino in inos {
            let Some(file) = self.live_file(ino) else {
                continue;
            };
            let _gate = file.gate.write();
            match self.meta.inode(ino, View::LIVE)? {
                Some(record) => *file.state.lock() = FileState::new(record.size, record.pages),
                None => file.state.lock().removed = true,
            }
        }
        let used = self.meta.counters().used_pages;
        self.used_pages.store(used.cast_signed(), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets the files of a view that is gone; nothing in it is open.
    pub fn forget_view(&self, generation: crate::ids::Generation) {
        let mut files = self.files.lock();
        files.retain(|(view, _), _| *view != View(generation));
    }

    /// Pages sealed or set aside, now.
    pub fn used_pages(&self) -> u64 {
        self.used_pages
            .load(Ordering::Relaxed)
            .max(0)
            .cast_unsigned()
    }

    /// Asks that a file's contents be durable before the next commit.
    pub fn order(&self, ino: Ino) {
        *self.ordered.lock().entry(ino).or_default() += 1;
    }

    /// True when no file has to be synced before a commit.
    pub fn none_ordered(&self) -> bool {
        self.ordered.lock().is_empty()
    }

    /// Opens an object whose pages are asked for. If it cannot be, the log is told.
    fn open_object(&self, id: PartId) -> Result<Arc<ContentsFile>, ObjectError> {
        self.objects.open(id).inspect_err(|error| {
            if self.told.first_time((id.name, None)) {
                let folder = format_args!("{:08x}", id.name.folder.0);
                tracing::error!(object = %id.name.object, %folder, %error, "an object cannot be used");
            }
        })
    }

    /// Says in the log, once a page, which object and which page of it cannot be used.
    fn page_error(&self, object: ObjectName, source: SealedError) -> ObjectError {
        let page = source.page();
        let error = ObjectError::Page { object, source };
        if self.told.first_time((object, page)) {
            let (folder, page) = (
                format_args!("{:08x}", object.folder.0),
                page.map(|page| page.0),
            );
            tracing::error!(object = %object.object, %folder, page, %error, "a page of contents cannot be used");
        }
        error
    }

    fn account(&self, state: &mut FileState, change: i64) {
        let pages = state.pages.saturating_add_signed(change);
        // Beyond that the inode's record could not be read any more.
        state.pages = pages.min(PAGES_MAX);
        self.used_pages.fetch_add(change, Ordering::Relaxed);
    }

    /// `Err` where the volume's limit leaves no room for so many more pages.
    fn check_room(&self, more_pages: i64) -> Result<(), ObjectError> {
        self.check_limit(more_pages, 0)
    }

    /// `Err` where the volume's limit leaves no room for so many more bytes of records. Whoever makes
    /// something that is to be written asks for a page beside: it would be told too late, as a
    /// write(2) ends before there is room for its bytes.
    pub fn check_room_for_records(
        &self,
        more_bytes: i64,
        to_write: bool,
    ) -> Result<(), ObjectError> {
        match more_bytes {
            ..=0 => Ok(()),
            more => {
                self.meta.check_ballast()?;
                self.check_limit(i64::from(to_write), more)
            }
        }
    }

    fn check_limit(&self, more_pages: i64, more_bytes: i64) -> Result<(), ObjectError> {
        let Some(limit) = self.limit_pages else {
            return Ok(());
        };
        // What takes no more room is never refused, however full the volume is.
        if more_pages <= 0 && more_bytes <= 0 {
            return Ok(());
        }
        let pages = self.used_pages().saturating_add_signed(more_pages);
        let record_bytes = self.meta.counters().record_bytes;
        let taken = pages_taken(pages, record_bytes.saturating_add_signed(more_bytes));
        if taken > limit {
            return Err(ObjectError::Full);
        }
        Ok(())
    }

    /// Pages that are taken of the volume's limit, now.
    pub fn taken_pages(&self) -> u64 {
        pages_taken(self.used_pages(), self.meta.counters().record_bytes)
    }

    /// Makes sure that the state knows a chunk. The record is read without the state's lock.
    fn load_chunk(&self, file: &File, index: u32) -> Result<(), ObjectError> {
        let size = {
            let state = file.state.lock();
            if state.chunks.contains_key(&index) {
                return Ok(());
            }
            state.size
        };
        let record = self.meta.extent(file.ino, ChunkIndex(index), file.view)?;
        let chunk = Self::chunk_of(index, size, record);
        self.note_record(file, index, &chunk);
        // Nothing is forgotten here: others hold the gate too and rely on what they loaded.
        file.state.lock().chunks.entry(index).or_insert(chunk);
        Ok(())
    }

    fn chunk_of(
        index: u32,
        size: u64,
        record: Option<(crate::ids::Generation, ExtentRecord)>,
    ) -> Chunk {
        let end_page = pages_touching(0..bytes_here(size, index)).end;
        match record {
            None => Chunk::from_record(crate::ids::Generation(0), None, end_page),
            Some((generation, record)) => Chunk::from_record(generation, Some(record), end_page),
        }
    }

    /// True when the newest part may be written in place: no kept view sees the extent, nobody
    /// else links it, and it is sealed under the active key set.
    fn writable(&self, chunk: &Chunk) -> bool {
        let file::Extent::Parts {
            shared: false,
            parts,
        } = &chunk.extent
        else {
            return false;
        };
        let active = self.objects.keys().active().epoch;
        parts.first().is_some_and(|part| part.id.epoch == active)
            && (chunk.generation > self.meta.newest_shared()
                || planted(Bug::KeptViewWrittenInPlace))
    }
}

/// Splits bytes of a file into pieces that each lie in one chunk: chunk, range within the chunk.
fn chunk_pieces(offset: u64, len: u64) -> impl Iterator<Item = (u32, std::ops::Range<u64>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let index = at / CHUNK_BYTES;
        let start = at % CHUNK_BYTES;
        let stop = (end - index * CHUNK_BYTES).min(CHUNK_BYTES);
        at = index * CHUNK_BYTES + stop;
        Some((index as u32, start..stop))
    })
}

/// Bytes of a file of this size that lie in a chunk.
fn bytes_here(size: u64, index: u32) -> u64 {
    size.saturating_sub(u64::from(index) * CHUNK_BYTES)
        .min(CHUNK_BYTES)
}

/// Bytes of a chunk that a page holds.
fn page_bytes(page: u32) -> std::ops::Range<u64> {
    let start = u64::from(page) * PAYLOAD_BYTES;
    start..(start + PAYLOAD_BYTES).min(CHUNK_BYTES)
}

impl From<ObjectError> for Errno {
    fn from(error: ObjectError) -> Self {
        tracing::debug!(%error, "answered with an error number");
        error.errno()
    }
}
