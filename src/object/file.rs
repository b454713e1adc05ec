//! In-memory state of one file's contents: its pages now, and those that are durable.
//!
//! Invariants (*ordered presence*):
//! - `pages` of the newest part is what readers see. `durable` is the subset that a completed
//!   fdatasync has covered. Only the durable form ([`Chunk::durable_record`]) is ever committed.
//! - Only the newest part gains pages. The pages of older parts are durable.
//! - A page that is not present reads as zeros, and so do bytes beyond the size, whatever is on the
//!   disk.
//! - The newest part's object has space for the `reserved` pages. A page that is written stays
//!   reserved until it is durable, so that the reservation survives a power cut between the two.
//!
//! Locks, outermost first: `syncing`, `gate`, the inode's lock in [`Meta`](crate::meta::Meta),
//! `state`. Page locks of objects are taken before `state`. They are held during I/O on contents;
//! `state` never is. `state` is held while publishing reads metadata records, mostly from memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::ids::{ChunkIndex, Generation, Ino};
use crate::meta::View;
use crate::meta::page_set::{CHUNK_PAGES, PageSet, pages_touching};
use crate::meta::records::{ExtentRecord, Part, PartId, Timespec, taken};
use crate::planted::{Bug, planted};

/// The composition of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// No data: reads as zeros.
    Hole,
    /// The bytes of a small file.
    Inline(Vec<u8>),
    /// Objects, newest first.
    Parts {
        /// Linked from another extent: never written in place again.
        shared: bool,
        /// Newest first; not empty.
        parts: Vec<Part>,
    },
}

/// One chunk of a file.
#[derive(Debug)]
pub struct Chunk {
    /// The generation of the record from which it was read, or as which it was last published. If a
    /// newer part was made since, the generation in which that was made. No view of an older
    /// generation sees the newest part as it is now.
    pub generation: Generation,
    /// Its composition now.
    pub extent: Extent,
    /// Former inline bytes that were moved into an object whose pages are not durable yet.
    pub fallback: Option<Vec<u8>>,
    /// True once the newest part's name is durable.
    pub named: bool,
    /// Pages of the newest part that are durable.
    pub durable: PageSet,
    /// Pages of the newest part written since the last sync began.
    pub unsynced: PageSet,
    /// Pages of the newest part that the current sync covers.
    pub syncing: PageSet,
    /// Pages for which the newest part has reserved space, and which are not durable.
    pub reserved: PageSet,
    /// Space was reserved since the last sync began.
    pub allocated: bool,
    /// Pages that the published record takes.
    pub published_pages: u64,
    /// The durable form differs from the published record.
    pub changed: bool,
}

impl Chunk {
    /// The chunk that a record describes. Pages beyond `end_page`, where the file ends, are left
    /// out.
    pub fn from_record(
        generation: Generation,
        record: Option<ExtentRecord>,
        end_page: u32,
    ) -> Self {
        let published_pages = record.as_ref().map_or(0, ExtentRecord::pages);
        let mut reserved_pages = PageSet::new();
        let extent = match record {
            None => Extent::Hole,
            Some(ExtentRecord::Inline(bytes)) => Extent::Inline(bytes),
            Some(ExtentRecord::Parts { parts, .. }) if parts.is_empty() => Extent::Hole,
            Some(ExtentRecord::Parts {
                shared,
                mut parts,
                reserved,
            }) => {
                for part in &mut parts {
                    part.pages.remove(end_page..CHUNK_PAGES);
                }
                reserved_pages = reserved;
                Extent::Parts { shared, parts }
            }
        };
        let durable = match &extent {
            Extent::Parts { parts, .. } => {
                parts.first().map_or_else(PageSet::new, |p| p.pages.clone())
            }
            _ => PageSet::new(),
        };
        Self {
            generation,
            extent,
            fallback: None,
            named: true,
            durable,
            unsynced: PageSet::new(),
            syncing: PageSet::new(),
            reserved: reserved_pages,
            allocated: false,
            published_pages,
            changed: false,
        }
    }

    /// The record that may be committed with a size of which `len` bytes lie in this chunk. It
    /// names only pages that are on the disk, and none beyond the size, where they would become
    /// visible when the file grows.
    ///
    /// While the newest part has no durable name, the record begins with the part below it. That
    /// part must never be written in place again, whatever happens to the newest one, so the record
    /// is `shared`.
    pub fn durable_record(&self, len: u64) -> Option<ExtentRecord> {
        let inline = |bytes: &[u8]| {
            let len = bytes.len().min(len as usize);
            ExtentRecord::Inline(bytes[..len].to_vec())
        };
        if let Some(bytes) = &self.fallback {
            return Some(inline(bytes));
        }
        let end_page = pages_touching(0..len).end;
        match &self.extent {
            Extent::Hole => None,
            Extent::Inline(bytes) => Some(inline(bytes)),
            Extent::Parts { shared, parts } => {
                let mut durable = Vec::with_capacity(parts.len());
                for (index, part) in parts.iter().enumerate() {
                    let newest = index == 0;
                    if newest && !self.named {
                        continue;
                    }
                    let pages = if newest && !planted(Bug::PresenceAhead) {
                        &self.durable
                    } else {
                        &part.pages
                    };
                    let mut pages = pages.clone();
                    pages.remove(end_page..CHUNK_PAGES);
                    durable.push(Part { id: part.id, pages });
                }
                let mut reserved = PageSet::new();
                if let (true, Some(newest)) = (self.named, durable.first()) {
                    reserved.clone_from(&self.reserved);
                    reserved.subtract(&newest.pages);
                }
                (!durable.is_empty()).then_some(ExtentRecord::Parts {
                    shared: *shared || !self.named,
                    parts: durable,
                    reserved,
                })
            }
        }
    }

    /// True if [`Self::durable_record`] leaves something out because of the size.
    pub fn exceeds(&self, len: u64) -> bool {
        let end_page = pages_touching(0..len).end;
        match (&self.fallback, &self.extent) {
            (Some(bytes), _) | (None, Extent::Inline(bytes)) => bytes.len() as u64 > len,
            (None, Extent::Hole) => false,
            (None, Extent::Parts { parts, .. }) => {
                parts.iter().any(|part| part.pages.end() > end_page)
            }
        }
    }

    /// The newest part.
    pub fn newest(&self) -> Option<&Part> {
        match &self.extent {
            Extent::Parts { parts, .. } => parts.first(),
            _ => None,
        }
    }

    /// The part that has the page.
    pub fn part_with(&self, page: u32) -> Option<PartId> {
        match &self.extent {
            Extent::Parts { parts, .. } => parts
                .iter()
                .find(|part| part.pages.contains(page))
                .map(|part| part.id),
            _ => None,
        }
    }

    /// Pages that are present or reserved.
    pub fn taken(&self) -> PageSet {
        match &self.extent {
            Extent::Parts { parts, .. } => taken(parts, &self.reserved),
            _ => PageSet::new(),
        }
    }

    /// Number of pages that are present or reserved.
    pub fn pages(&self) -> u64 {
        u64::from(self.taken().len())
    }

    /// Pages that can be written without further space on the disk, if the newest part is writable.
    pub fn backed(&self) -> PageSet {
        let mut pages = self.reserved.clone();
        if let Some(newest) = self.newest() {
            pages.union(&newest.pages);
        }
        pages
    }

    /// True if something waits for a sync.
    pub fn needs_sync(&self) -> bool {
        !self.named
            || !self.unsynced.is_empty()
            || !self.syncing.is_empty()
            || self.allocated
            || self.fallback.is_some()
    }
}

/// State of a file's contents.
#[derive(Debug)]
pub struct FileState {
    /// Length in bytes, now.
    pub size: u64,
    /// Length that may be committed.
    pub durable_size: u64,
    /// Length that the sync under way covers.
    pub syncing_size: u64,
    /// Pages that are sealed or reserved now.
    pub pages: u64,
    /// Time of the last write that is not published.
    pub written: Option<Timespec>,
    /// Chunks in memory. A chunk that is not here is as its record describes.
    pub chunks: BTreeMap<ChunkIndex, Chunk>,
    /// The inode is gone.
    pub removed: bool,
}

impl FileState {
    /// The state of a file as its inode's record describes it.
    pub fn new(size: u64, pages: u64) -> Self {
        Self {
            size,
            durable_size: size,
            syncing_size: size,
            pages,
            written: None,
            chunks: BTreeMap::new(),
            removed: false,
        }
    }

    /// True if something is not durable or not published.
    pub fn is_dirty(&self) -> bool {
        !self.removed
            && (self.size != self.durable_size
                || self.written.is_some()
                || self
                    .chunks
                    .values()
                    .any(|chunk| chunk.changed || chunk.needs_sync()))
    }

    /// True if nothing waits for a sync, so that the state may be published as it is.
    pub fn is_synced(&self) -> bool {
        !self.chunks.values().any(Chunk::needs_sync)
    }
}

/// A file of the live view or of a kept one.
#[derive(Debug)]
pub struct File {
    /// Its inode.
    pub ino: Ino,
    /// The view that it belongs to.
    pub view: View,
    /// Held shared by reads and writes, and exclusively by operations that exclude them: truncate,
    /// punch, replacing the list of parts, linking, removal.
    pub gate: RwLock<()>,
    /// Held by the one sync under way.
    pub syncing: Arc<Mutex<()>>,
    /// Held while a part is put on top of a chunk.
    pub growing: Mutex<()>,
    /// The state of its contents.
    pub state: Mutex<FileState>,
}

impl File {
    /// A file as its inode's record describes it.
    pub fn new(ino: Ino, view: View, size: u64, pages: u64) -> Self {
        Self {
            ino,
            view,
            gate: RwLock::new(()),
            syncing: Arc::default(),
            growing: Mutex::new(()),
            state: Mutex::new(FileState::new(size, pages)),
        }
    }

    /// Current length in bytes.
    pub fn size(&self) -> u64 {
        self.state.lock().size
    }
}
