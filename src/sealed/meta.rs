//! The sealed file under the metadata database, which sees a flat array of 4096-byte pages.
//!
//! ```text
//! 0          4608       9216       13824
//! | page 0 A | page 0 B | page 1   | page 2   …      each 64 header, 4096 payload, 448 zero
//! ```
//! Invariants:
//! - The database never overwrites a committed page except page 0, its header. Page 0 has two
//!   slots. All writes of it between two syncs go to the slot that is not current, which becomes
//!   the current one only after a successful sync. So one slot is whole and durable at any time.
//! - When the file is opened, the newest authentic slot is used. A slot is authentic only if it was
//!   sealed under the one key set that the opener names (the volume's active set): somebody who has
//!   only a read-only set cannot make metadata.
//! - `sequence` starts at 1. After opening it is one more than the newest slot's. It grows by one
//!   with every sync that makes a new page 0 durable.
//! - A *fresh* page is one by which the file was extended and that has not been written since. It
//!   reads as zeros until the file is closed. Any other page that does not open is an error: zeros
//!   on the disk are never taken for an empty page. This also holds while the database recovers
//!   from an unclean shutdown: with two-phase commits it then reads only pages that were synced.
//!
//! Order of writes: pages; `fdatasync`; then the slot is switched in memory. Page 0 is locked
//! against writers during the sync, so that the slot that becomes current is the one that was
//! synced.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::geometry::{Geometry, META_PAYLOAD_BYTES, META_STRIDE_BYTES, PlainOffset, Slot};
use super::keys::FileKeys;
use super::page_bits::PageBits;
use super::range_lock::RangeLocks;
use super::run::{Opened, Opener, RunBuffer, Source, Target, run_pages};
use super::{LogOnce, SealedError};
use crate::ids::{CryptoId, PageIndex, Sequence};
use crate::layers::{KeySet, TAG_BYTES};
use crate::planted::{Bug, planted};
use crate::store::StoreFile;
use crate::store::read_only::ScratchFile;

const GEOMETRY: Geometry = Geometry::Meta;
const PAGE_0: Range<PageIndex> = PageIndex(0)..PageIndex(1);

/// Number of attempts before a read passes on EIO: the database never recovers from a failed read,
/// and some backing filesystems fail occasionally.
const READ_ATTEMPTS: u32 = 3;

/// The state of one slot of page 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotState {
    /// True if it opened, or has been written since.
    pub authentic: bool,
    /// The sequence under which it was sealed; 0 if it is not authentic.
    pub sequence: Sequence,
    /// The outer tag, which identifies its whole contents; zero if it is not authentic.
    pub outer_tag: [u8; TAG_BYTES],
}

/// The newest durable state of the file.
#[derive(Clone, Copy, Debug)]
pub struct DurableState {
    /// The sequence of the current slot of page 0.
    pub sequence: Sequence,
    /// The outer tags of both slots, A first. That of the slot that is not current may belong to a
    /// page 0 that is not durable yet.
    pub outer_tags: [[u8; TAG_BYTES]; 2],
}

/// The sealed file under the metadata database.
pub struct MetaFile {
    file: Arc<dyn StoreFile>,
    keys: FileKeys,
    locks: RangeLocks,
    /// Held while the length is read and changed: two writers beyond the end must not truncate each
    /// other's pages.
    length: Mutex<()>,
    state: Mutex<State>,
    /// Pages written since the file was opened.
    written_pages: AtomicU64,
    /// Pages whose failure to open was logged.
    logged: Arc<LogOnce<Option<PageIndex>>>,
}

/// The length that a call needs the file to have.
enum NewLength {
    /// Exactly this many pages.
    Pages(u64),
    /// At least this many pages, for a writer, which never shortens the file.
    AtLeastPages(u64),
}

#[derive(Debug)]
struct State {
    sequence: Sequence,
    slots: [SlotState; 2],
    /// The slot that holds the synced page 0.
    current: Slot,
    /// The other slot holds a newer page 0 that is not synced yet.
    page_0_written: bool,
    /// Fresh pages: see the module's invariants.
    fresh: PageBits,
}

impl std::fmt::Debug for MetaFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaFile")
            .field("file", &self.file)
            .field("crypto", &self.keys.crypto())
            .finish_non_exhaustive()
    }
}

impl MetaFile {
    /// Creates an empty file.
    ///
    /// # Errors
    /// [`SealedError::Io`] if the store fails.
    pub fn create(
        file: Arc<dyn StoreFile>,
        keys: &Arc<KeySet>,
        crypto: CryptoId,
    ) -> Result<Self, SealedError> {
        Self::create_at(file, keys, crypto, Sequence(1))
    }

    /// Creates an empty file whose first pages are sealed under this sequence.
    ///
    /// # Errors
    /// [`SealedError::Io`] if the store fails.
    pub fn create_at(
        file: Arc<dyn StoreFile>,
        keys: &Arc<KeySet>,
        crypto: CryptoId,
        sequence: Sequence,
    ) -> Result<Self, SealedError> {
        file.set_len(0)?;
        // The database overwrites pages all the time. Copy-on-write blocks would leave old blocks
        // behind that hold nothing and are not free.
        file.write_in_place();
        let state = State {
            sequence,
            slots: [SlotState::default(); 2],
            // Slot A is written first.
            current: Slot::B,
            page_0_written: false,
            fresh: PageBits::default(),
        };
        Ok(Self::with_state(file, keys, crypto, state))
    }

    /// Opens the file and picks the newest authentic slot of page 0.
    ///
    /// # Errors
    /// [`SealedError::Authentication`] if neither slot opens, [`SealedError::ShortRead`] if the
    /// file is too short for them, [`SealedError::Io`].
    pub fn open(
        file: Arc<dyn StoreFile>,
        keys: &Arc<KeySet>,
        crypto: CryptoId,
    ) -> Result<Self, SealedError> {
        let state = State {
            sequence: Sequence(0),
            slots: [SlotState::default(); 2],
            current: Slot::A,
            page_0_written: false,
            fresh: PageBits::default(),
        };
        // A file truncated this far would look like an empty database and would be initialised
        // anew.
        if GEOMETRY.whole_pages(file.len()?) == 0 {
            let page = PageIndex(0);
            return Err(SealedError::ShortRead { page });
        }
        let mut meta = Self::with_state(file, keys, crypto, state);
        let a = meta.open_slot(Slot::A)?;
        let b = meta.open_slot(Slot::B)?;
        let (current, newest) = match (&a, &b) {
            (Ok(a), Ok(b)) if b.sequence > a.sequence => (Slot::B, b.sequence),
            (Ok(a), _) => (Slot::A, a.sequence),
            (_, Ok(b)) => (Slot::B, b.sequence),
            (Err(_), Err(_)) => return Err(a.err().or(b.err()).unwrap_or(SealedError::OutOfRange)),
        };
        let state = meta.state.get_mut();
        state.slots = [a, b].map(Result::unwrap_or_default);
        state.current = current;
        state.sequence = Sequence(newest.0.checked_add(1).ok_or(SealedError::OutOfRange)?);
        Ok(meta)
    }

    /// The same file, with everything that is written to it kept in memory.
    ///
    /// # Errors
    /// The errors of [`Self::open`].
    pub fn scratch(&self) -> Result<Self, SealedError> {
        let file = Arc::new(ScratchFile::over(Arc::clone(&self.file))?);
        let mut scratch = Self::open(file, self.keys.set(), self.keys.crypto())?;
        // A page that does not open is logged once, whichever of the two reads it.
        scratch.logged = Arc::clone(&self.logged);
        Ok(scratch)
    }

    fn with_state(
        file: Arc<dyn StoreFile>,
        keys: &Arc<KeySet>,
        crypto: CryptoId,
        state: State,
    ) -> Self {
        Self {
            file,
            keys: FileKeys::new(Arc::clone(keys), crypto),
            locks: RangeLocks::default(),
            length: Mutex::new(()),
            state: Mutex::new(state),
            written_pages: AtomicU64::new(0),
            logged: Arc::default(),
        }
    }

    /// Opens one slot. The outer error comes from the store, the inner one from this slot.
    fn open_slot(&self, slot: Slot) -> Result<Result<SlotState, SealedError>, SealedError> {
        let mut payload = vec![0; META_PAYLOAD_BYTES];
        match self.open_page_0(slot, 0, &mut payload) {
            Ok(opened) => Ok(Ok(SlotState {
                authentic: true,
                sequence: opened.sequence,
                outer_tag: opened.outer_tag,
            })),
            Err(error @ (SealedError::Authentication { .. } | SealedError::ShortRead { .. })) => {
                Ok(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Number of plain bytes, a multiple of 4096. A partial page that a crash left at the end does
    /// not count.
    ///
    /// # Errors
    /// When the store fails.
    pub fn len(&self) -> io::Result<u64> {
        Ok(GEOMETRY.whole_pages(self.file.len()?) * META_PAYLOAD_BYTES as u64)
    }

    /// True if there is no page.
    ///
    /// # Errors
    /// When the store fails.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Truncates the file, or extends it by fresh pages, which read as zeros.
    ///
    /// # Errors
    /// When the store fails.
    pub fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let pages = len_bytes.div_ceil(META_PAYLOAD_BYTES as u64);
        let _guard = self.locks.lock_exclusive(PageIndex(0)..PageIndex(u64::MAX));
        Ok(self.resize(NewLength::Pages(pages))?)
    }

    /// Changes the length.
    fn resize(&self, to: NewLength) -> Result<(), SealedError> {
        let _length = self.length.lock();
        let before = GEOMETRY.whole_pages(self.file.len()?);
        let pages = match to {
            NewLength::AtLeastPages(pages) if pages <= before => return Ok(()),
            NewLength::AtLeastPages(pages) | NewLength::Pages(pages) => pages,
        };
        self.file.set_len(GEOMETRY.sealed_len(pages)?)?;
        let mut state = self.state.lock();
        state.fresh.truncate(pages);
        state.fresh.add(before..pages);
        Ok(())
    }

    /// Preallocates space for this many additional plain bytes: beyond the end, or from the first
    /// fresh page. (The database doubles its file and fills it from the start.)
    ///
    /// # Errors
    /// ENOSPC if there is no space, and other errors of the store.
    pub fn reserve(&self, extra_plain_bytes: u64) -> io::Result<()> {
        let len = self.file.len()?;
        let fresh = self.state.lock().fresh.first().map(PageIndex);
        let start = match fresh {
            Some(page) => GEOMETRY.sealed_len(page.0)?.min(len),
            None => len,
        };
        let extra = extra_plain_bytes
            .div_ceil(META_PAYLOAD_BYTES as u64)
            .saturating_mul(META_STRIDE_BYTES as u64);
        self.file.reserve(start, extra)
    }

    /// Preallocates space for pages by which an earlier process extended the file and which it
    /// never wrote; [`reserve`](Self::reserve) does not know about them. Best effort, and not for a
    /// very large file, where it might need gigabytes.
    pub fn reserve_holes(&self) {
        const LEN_BYTES_MAX: u64 = 1 << 30;
        let reserved = match self.file.len() {
            Ok(len) if len <= LEN_BYTES_MAX => self.file.reserve(0, len),
            result => result.map(drop),
        };
        if let Err(error) = reserved {
            tracing::debug!(%error, "no space could be reserved for the metadata");
        }
    }

    /// Reads into `out` from `offset`, with any offset and length.
    ///
    /// # Errors
    /// `InvalidData` for a page that does not open, `UnexpectedEof` beyond the end, and errors of
    /// the store.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let pages = GEOMETRY.pages(PlainOffset(offset), out.len())?;
        let _guard = self.locks.lock_shared(pages.clone());
        let read = self.read_pages(PlainOffset(offset), pages, out);
        Ok(read.inspect_err(|error| self.log_unreadable(error))?)
    }

    /// Number of pages written since the file was opened, including page 0.
    pub fn written_pages(&self) -> u64 {
        self.written_pages.load(Ordering::Relaxed)
    }

    /// True once a page could not be read.
    pub fn is_damaged(&self) -> bool {
        self.logged.any_logged()
    }

    /// Logs, once per page, that it cannot be read.
    fn log_unreadable(&self, error: &SealedError) {
        let page = error.page();
        if self.logged.first_time(page) {
            let page = page.map(|page| page.0);
            let crypto = self.keys.crypto();
            tracing::error!(%crypto, page, %error, "a page of the metadata cannot be used");
        }
    }

    /// Writes `data` and extends the file if needed. Partly covered pages are read first.
    ///
    /// # Errors
    /// The errors of reading partly covered pages, and those of the store.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let pages = GEOMETRY.pages(PlainOffset(offset), data.len())?;
        let _guard = self.locks.lock_exclusive(pages.clone());
        self.resize(NewLength::AtLeastPages(pages.end.0))?;
        let mut next = pages.start;
        while next < pages.end {
            next = self.write_run(PlainOffset(offset), data, next, pages.end)?;
        }
        Ok(())
    }

    /// Syncs the file. If page 0 was written since the last sync, its slot becomes the current one
    /// and `sequence` grows.
    ///
    /// # Errors
    /// When the store fails. The current slot stays the current one then.
    pub fn sync(&self) -> io::Result<()> {
        let _guard = self.locks.lock_shared(PAGE_0);
        self.file.sync()?;
        let mut state = self.state.lock();
        if state.page_0_written {
            let next = state.sequence.0.checked_add(1);
            let next = next.ok_or_else(|| io::Error::other("its commit numbers are used up"))?;
            state.page_0_written = false;
            state.current = state.current.other();
            state.sequence = Sequence(next);
        }
        Ok(())
    }

    /// The sequence under which new pages, of `meta` and of contents, are sealed.
    pub fn sequence(&self) -> Sequence {
        self.state.lock().sequence
    }

    /// The newest durable state.
    pub fn durable(&self) -> DurableState {
        let state = self.state.lock();
        DurableState {
            sequence: state.slots[usize::from(state.current.number())].sequence,
            outer_tags: state.slots.map(|slot| slot.outer_tag),
        }
    }

    /// The states of both slots of page 0, A first.
    pub fn slots(&self) -> [SlotState; 2] {
        self.state.lock().slots
    }

    /// Bytes allocated on the backing filesystem.
    ///
    /// # Errors
    /// When the store fails.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.info()?.allocated_bytes)
    }

    /// The contents of both slots of page 0, the newer one first; slots that do not open are left
    /// out.
    pub fn pages_0(&self) -> Vec<(Sequence, Vec<u8>)> {
        let open = |slot| {
            let mut payload = vec![0; META_PAYLOAD_BYTES];
            let opened = self.open_page_0(slot, 0, &mut payload).ok()?;
            Some((opened.sequence, payload))
        };
        let slots = [Slot::A, Slot::B].into_iter().filter_map(open);
        let mut slots: Vec<(Sequence, Vec<u8>)> = slots.collect();
        slots.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
        slots
    }

    /// The slot from which page 0 is read now.
    fn slot_to_read(&self) -> Slot {
        let state = self.state.lock();
        if planted(Bug::OneSlotOfPage0) {
            Slot::A
        } else if state.page_0_written {
            state.current.other()
        } else {
            state.current
        }
    }

    fn read_pages(
        &self,
        offset: PlainOffset,
        pages: Range<PageIndex>,
        out: &mut [u8],
    ) -> Result<(), SealedError> {
        let mut opener = Opener::new(&self.keys);
        let mut next = pages.start;
        while next < pages.end {
            // Page 0 and page 1 are not adjacent on disk.
            let count = if next.0 == 0 {
                1
            } else {
                run_pages(next, pages.end)
            };
            let slot = if next.0 == 0 {
                self.slot_to_read()
            } else {
                Slot::A
            };
            let mut run = RunBuffer::take(GEOMETRY, count);
            let read = self.fill(&mut run, next, slot)?;
            for index in 0..count {
                let page = PageIndex(next.0 + index as u64);
                let span = GEOMETRY.span(offset, out.len(), page);
                if self.state.lock().fresh.contains(page) {
                    out[span.caller].fill(0);
                    continue;
                }
                let opened = if read < (index + 1) * META_STRIDE_BYTES {
                    Err(SealedError::ShortRead { page })
                } else {
                    run.open(index, &mut opener, page, slot, &span, out)
                };
                opened?;
            }
            next.0 += count as u64;
        }
        Ok(())
    }

    fn open_page_0(&self, slot: Slot, offset: u64, out: &mut [u8]) -> Result<Opened, SealedError> {
        let page = PageIndex(0);
        let mut run = RunBuffer::take(GEOMETRY, 1);
        if self.fill(&mut run, page, slot)? < META_STRIDE_BYTES {
            return Err(SealedError::ShortRead { page });
        }
        let span = GEOMETRY.span(PlainOffset(offset), out.len(), page);
        run.open(0, &mut Opener::new(&self.keys), page, slot, &span, out)
    }

    fn fill(
        &self,
        run: &mut RunBuffer,
        first: PageIndex,
        slot: Slot,
    ) -> Result<usize, SealedError> {
        let from = GEOMETRY.sealed_offset(first, slot)?;
        let mut attempt = 1;
        loop {
            match run.fill(&*self.file, from) {
                Err(error) if attempt < READ_ATTEMPTS && is_transient(&error) => attempt += 1,
                result => return Ok(result?),
            }
        }
    }

    /// Writes one run of pages from `first` on. Returns the page after it.
    fn write_run(
        &self,
        offset: PlainOffset,
        data: &[u8],
        first: PageIndex,
        end: PageIndex,
    ) -> Result<PageIndex, SealedError> {
        let count = if first.0 == 0 {
            1
        } else {
            run_pages(first, end)
        };
        let span_of = |index: usize| {
            let page = PageIndex(first.0 + index as u64);
            (page, GEOMETRY.span(offset, data.len(), page))
        };
        let mut run = RunBuffer::take(GEOMETRY, count);
        for index in 0..count {
            let (page, span) = span_of(index);
            if !span.is_whole(GEOMETRY) {
                let payload = run.payload(index);
                self.read_pages(
                    PlainOffset(page.0 * META_PAYLOAD_BYTES as u64),
                    page..PageIndex(page.0 + 1),
                    payload,
                )?;
                payload[span.within].copy_from_slice(&data[span.caller]);
            }
        }
        let target = self.target(first);
        let sealed = run.seal(&self.keys, target, |index| {
            let (_, span) = span_of(index);
            if span.is_whole(GEOMETRY) {
                Source::Elsewhere(&data[span.caller])
            } else {
                Source::InPlace
            }
        })?;
        let written = sealed.write(&*self.file);
        self.update_after_write(target, count, written.is_ok().then(|| sealed.first_tag()));
        written?;
        Ok(PageIndex(first.0 + count as u64))
    }

    fn target(&self, first: PageIndex) -> Target {
        let state = self.state.lock();
        Target {
            first,
            slot: if first.0 == 0 && !planted(Bug::OneSlotOfPage0) {
                state.current.other()
            } else {
                Slot::A
            },
            sequence: state.sequence,
        }
    }

    /// Updates the state after a write of a run. `tag` is the tag of its first page if it
    /// succeeded.
    fn update_after_write(&self, target: Target, pages: usize, tag: Option<[u8; TAG_BYTES]>) {
        let mut state = self.state.lock();
        if target.first.0 == 0 {
            // A failed write leaves the slot undefined.
            state.slots[usize::from(target.slot.number())] = match tag {
                Some(outer_tag) => SlotState {
                    authentic: true,
                    sequence: target.sequence,
                    outer_tag,
                },
                None => SlotState::default(),
            };
            state.page_0_written = tag.is_some();
        }
        if tag.is_some() {
            self.written_pages
                .fetch_add(pages as u64, Ordering::Relaxed);
            state
                .fresh
                .remove(target.first.0..target.first.0 + pages as u64);
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    error.raw_os_error() == Some(crate::errno::Errno::EIO.code())
        || error.kind() == io::ErrorKind::Interrupted
}
