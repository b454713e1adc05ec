//! File contents. A file is divided into chunks; each chunk is an extent made of parts, and each
//! part is a sealed object.
//!
//! Chunk n covers the nth 4 MiB of a file. A page is read from the newest part that contains it.
//! Only the newest part is written in place, and only if no kept view, no copy and no retired key
//! set refers to it. Contents of up to [`INLINE_BYTES`] are stored in the extent's record itself.
//!
//! Order of writes: pages, fdatasync, `sync_dir` of new names, then the record that names them
//! (`sync`). Objects are unlinked and holes are punched only after the commit that made them
//! unreachable (`collect`).

mod clone;
mod collect;
mod file;
mod flatten;
mod objects;
mod open_objects;
mod read;
mod reserve;
mod sync;
mod trim;
mod truncate;
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

pub(crate) use clone::visible_parts;
use collect::DeferredPunch;
pub use file::File;
use file::{Chunk, FileState};
pub use objects::Objects;
pub(crate) use objects::{folder_path, object_path, root_path};
pub use read::SeekWhence;
pub(crate) use read::{RUN_PAGES, page_range, page_runs};
pub use truncate::FreedSpace;
pub use verify::{Fault, FaultKind};

/// Contents up to this length are stored in the metadata. Measured: below it a file needs no
/// object, and a leaf of the database still holds more than one file.
pub const INLINE_BYTES: u64 = 2048;
/// Clean chunks of one file that stay in memory.
const CHUNKS_KEPT: usize = 1024;
/// Largest file size in bytes: chunk numbers have 32 bits, and offsets are signed 64-bit numbers.
pub const FILE_BYTES_MAX: u64 = ((u32::MAX as u64) + 1) * CHUNK_BYTES - 1;
const _: () = assert!(FILE_BYTES_MAX == crate::meta::records::SIZE_MAX);

/// Errors of file contents.
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
        /// The cause.
        source: SealedError,
    },
    /// The metadata refers to an object that does not exist.
    #[error("object {} is missing from folder {:08x}", .object.object, .object.folder.0)]
    Missing {
        /// The object.
        object: ObjectName,
    },
    /// The object is sealed under a key set that the volume does not have.
    #[error(
        "object {} is sealed under key set {epoch}, which this volume does not have",
        .object.object
    )]
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
    /// The file would grow beyond [`FILE_BYTES_MAX`].
    #[error("the file would be too large")]
    TooLarge,
    /// The file was removed.
    #[error("the file was removed")]
    Removed,
}

impl ObjectError {
    /// The error number that the caller of the filesystem receives.
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

/// Attributes of a live file that its inode record does not contain yet.
#[derive(Clone, Copy, Debug)]
pub struct LiveAttr {
    /// Length in bytes.
    pub size: u64,
    /// Pages that are sealed or reserved.
    pub pages: u64,
    /// Time of the last write, if the record does not contain it.
    pub written: Option<Timespec>,
}

/// The contents of all files of a volume.
#[derive(Debug)]
pub struct Contents {
    meta: Arc<Meta>,
    objects: Objects,
    /// Known files of the live view and of kept views.
    files: Mutex<HashMap<(View, Ino), Arc<File>>>,
    /// Number of files that were loaded since the last sync of all files began.
    recent: AtomicUsize,
    /// Files whose contents must be durable before the next commit
    /// ([`Contents::order_before_commit`]), each with the number of requests.
    ordered: Mutex<BTreeMap<Ino, u64>>,
    /// Pages to give back to the backing filesystem once a batch is durable.
    deferred_punches: Mutex<Vec<(BatchNumber, DeferredPunch)>>,
    /// Held while `deferred_punches` and garbage are processed.
    collecting: Mutex<()>,
    /// Chunks whose lists of parts are long.
    flatten_queue: Mutex<flatten::FlattenQueue>,
    /// Pages that are sealed or reserved now. The counter in the metadata is the durable one.
    used_pages: AtomicI64,
    limit_pages: Option<u64>,
    /// Objects, and pages of them, whose failure to open was logged.
    logged: LogOnce<(ObjectName, Option<PageIndex>)>,
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
            deferred_punches: Mutex::default(),
            collecting: Mutex::default(),
            flatten_queue: Mutex::default(),
            used_pages: AtomicI64::new(counters.used_pages.cast_signed()),
            limit_pages: (counters.limit_bytes > 0).then_some(limit),
            logged: LogOnce::default(),
        }
    }

    /// The objects that hold the sealed pages.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The live file of an inode. Its record is read under the lock of the known files: meanwhile
    /// no other thread can load the file, publish a newer record, and drop the file from memory
    /// again.
    ///
    /// # Errors
    /// [`ObjectError::Removed`] if the inode does not exist; [`ObjectError::Meta`] if its record
    /// cannot be read.
    pub fn file(&self, ino: Ino) -> Result<Arc<File>, ObjectError> {
        self.file_in(View::LIVE, ino)
    }

    /// The file of an inode in any view. A file of a kept view may only be read.
    ///
    /// # Errors
    /// [`ObjectError::Removed`] if the view has no such inode; [`ObjectError::Meta`] if its record
    /// cannot be read.
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

    /// Estimated memory, in bytes, of the files that were loaded since the last sync of all files
    /// began. Small files keep their contents in memory until then.
    pub fn recent_bytes(&self) -> usize {
        let files = self.recent.load(Ordering::Relaxed);
        files.saturating_mul(INLINE_BYTES as usize)
    }

    /// Returns true once when many objects wait for their sync ([`Objects::is_sync_due`]).
    pub fn is_sync_due(&self) -> bool {
        self.objects.is_sync_due()
    }

    fn live_file(&self, ino: Ino) -> Option<Arc<File>> {
        self.files.lock().get(&(View::LIVE, ino)).cloned()
    }

    /// The attributes of a live file that its record does not contain yet. `None` if the file is
    /// not in memory.
    pub fn live(&self, ino: Ino) -> Option<LiveAttr> {
        let file = self.live_file(ino)?;
        let state = file.state.lock();
        Some(LiveAttr {
            size: state.size,
            pages: state.pages,
            written: state.written,
        })
    }

    /// True if the file's first bytes are stored in the metadata, or if the record cannot be read.
    pub fn is_inline(&self, view: View, ino: Ino) -> bool {
        let file = self.files.lock().get(&(view, ino)).cloned();
        if let Some(file) = file
            && let Some(chunk) = file.state.lock().chunks.get(&ChunkIndex(0))
        {
            return matches!(chunk.extent, file::Extent::Inline(_));
        }
        let record = self.meta.extent(ino, ChunkIndex(0), view);
        !matches!(record, Ok(None | Some((_, ExtentRecord::Parts { .. }))))
    }

    /// Takes the time of the last write out of the file's state. The caller puts it into the
    /// record.
    pub fn take_written(&self, ino: Ino) -> Option<Timespec> {
        let file = self.live_file(ino)?;
        let mut state = file.state.lock();
        state.written.take()
    }

    /// Drops a live file from memory unless it is in use or has something to sync.
    pub fn forget(&self, ino: Ino) {
        self.forget_in(View::LIVE, ino);
    }

    /// Drops a file of any view from memory unless it is in use or has something to sync.
    pub fn forget_in(&self, view: View, ino: Ino) {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&(view, ino))
            && Arc::strong_count(file) == 1
            && !file.state.lock().is_dirty()
        {
            files.remove(&(view, ino));
        }
    }

    /// Resets the in-memory state of live files from their records. The caller makes sure that all
    /// of these files are synced and that nothing changes them. Readers rely on the chunks that
    /// they loaded, so each file's gate is held exclusively.
    ///
    /// # Errors
    /// A record cannot be read. Files before it in the iterator are reset.
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

    /// Drops the files of a deleted view from memory. None of them may be open.
    pub fn forget_view(&self, generation: crate::ids::Generation) {
        let mut files = self.files.lock();
        files.retain(|(view, _), _| *view != View(generation));
    }

    /// Pages that are sealed or reserved now.
    pub fn used_pages(&self) -> u64 {
        self.used_pages
            .load(Ordering::Relaxed)
            .max(0)
            .cast_unsigned()
    }

    /// Requires that a file's contents be durable before the next commit. The file is *ordered*
    /// until [`Self::sync_ordered`] has synced it.
    pub fn order_before_commit(&self, ino: Ino) {
        *self.ordered.lock().entry(ino).or_default() += 1;
    }

    /// True if no file is ordered, so a commit need not wait for a sync.
    pub fn none_ordered(&self) -> bool {
        self.ordered.lock().is_empty()
    }

    /// Opens an object, and logs the first failure.
    fn open_object(&self, id: PartId) -> Result<Arc<ContentsFile>, ObjectError> {
        self.objects.open(id).inspect_err(|error| {
            if self.logged.first_time((id.name, None)) {
                let folder = format_args!("{:08x}", id.name.folder.0);
                tracing::error!(
                    object = %id.name.object,
                    %folder,
                    %error,
                    "an object cannot be used"
                );
            }
        })
    }

    /// Makes an error for a page of an object, and logs it once for each page.
    fn page_error(&self, object: ObjectName, source: SealedError) -> ObjectError {
        let page = source.page();
        let error = ObjectError::Page { object, source };
        if self.logged.first_time((object, page)) {
            let (folder, page) = (
                format_args!("{:08x}", object.folder.0),
                page.map(|page| page.0),
            );
            tracing::error!(
                object = %object.object,
                %folder,
                page,
                %error,
                "a page of contents cannot be used"
            );
        }
        error
    }

    /// Adds to the number of pages of the file and of the volume.
    fn account(&self, state: &mut FileState, change: i64) {
        let pages = state.pages.saturating_add_signed(change);
        // The inode's record cannot encode more.
        state.pages = pages.min(PAGES_MAX);
        self.used_pages.fetch_add(change, Ordering::Relaxed);
    }

    /// Checks that the volume's limit allows that many more pages.
    fn check_space(&self, more_pages: i64) -> Result<(), ObjectError> {
        self.check_limit(more_pages, 0)
    }

    /// Checks that the volume's limit allows that many more bytes of records, and so many pages in
    /// addition. The pages are for a file that is about to be written: the write itself would
    /// report the full volume too late, since write(2) returns before its bytes have space.
    ///
    /// # Errors
    /// [`ObjectError::Full`] if the volume's limit is reached; [`ObjectError::Meta`] if the ballast
    /// on the backing filesystem is not complete.
    pub fn check_space_for_records(
        &self,
        more_bytes: i64,
        more_pages: i64,
    ) -> Result<(), ObjectError> {
        match more_bytes {
            ..=0 => Ok(()),
            more => {
                self.meta.check_ballast()?;
                self.check_limit(more_pages, more)
            }
        }
    }

    fn check_limit(&self, more_pages: i64, more_bytes: i64) -> Result<(), ObjectError> {
        let Some(limit) = self.limit_pages else {
            return Ok(());
        };
        // An operation that takes no more space is never refused, however full the volume is.
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

    /// Pages that count against the volume's limit now, records included.
    pub fn taken_pages(&self) -> u64 {
        pages_taken(self.used_pages(), self.meta.counters().record_bytes)
    }

    /// Loads a chunk into the file's state. The record is read without the state's lock.
    fn load_chunk(&self, file: &File, index: ChunkIndex) -> Result<(), ObjectError> {
        let size = {
            let state = file.state.lock();
            if state.chunks.contains_key(&index) {
                return Ok(());
            }
            state.size
        };
        let record = self.meta.extent(file.ino, index, file.view)?;
        let chunk = Self::chunk_of(index, size, record);
        self.queue_loaded(file, index, &chunk);
        // No chunk is evicted here: other threads hold the gate too and rely on the chunks they
        // loaded.
        file.state.lock().chunks.entry(index).or_insert(chunk);
        Ok(())
    }

    fn chunk_of(
        index: ChunkIndex,
        size: u64,
        record: Option<(crate::ids::Generation, ExtentRecord)>,
    ) -> Chunk {
        let end_page = pages_touching(0..bytes_in_chunk(size, index)).end;
        match record {
            None => Chunk::from_record(crate::ids::Generation(0), None, end_page),
            Some((generation, record)) => Chunk::from_record(generation, Some(record), end_page),
        }
    }

    /// True if the newest part may be written in place: no kept view sees the extent, no other file
    /// links it, and it is sealed under the active key set.
    fn is_writable(&self, chunk: &Chunk) -> bool {
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

/// Splits a byte range of a file into pieces that each lie in one chunk. Each item is the chunk and
/// the range of bytes within it.
fn chunk_pieces(offset: u64, len: u64) -> impl Iterator<Item = (ChunkIndex, std::ops::Range<u64>)> {
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
        Some((ChunkIndex(index as u32), start..stop))
    })
}

/// The chunk that holds the byte at an offset of a file.
fn chunk_at(offset: u64) -> ChunkIndex {
    ChunkIndex((offset / CHUNK_BYTES) as u32)
}

/// The offset of a chunk's first byte in its file.
fn chunk_start(index: ChunkIndex) -> u64 {
    u64::from(index.0) * CHUNK_BYTES
}

/// Number of bytes that a file of this size has in a chunk.
fn bytes_in_chunk(size: u64, index: ChunkIndex) -> u64 {
    size.saturating_sub(chunk_start(index)).min(CHUNK_BYTES)
}

/// The bytes of a chunk that a page holds.
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
