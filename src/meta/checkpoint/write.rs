//! Writes a checkpoint: a copy of the pages that a commit references, made from the branches down.
//!
//! Each referenced page is first looked for in the unfinished file. A page that opens there and has
//! the checksum that its parent states is neither read from `meta` nor written. So pages that were
//! copied before an unmount, a kill or a power cut, and have not changed, are not written again,
//! and any damage to the unfinished file is harmless. The price is that the file is read once.
//!
//! While a commit is pinned, the database reuses none of its pages, and `meta` grows by as much as
//! is written meanwhile. So after a number of pages, which increases each time, the pinned commit
//! is replaced by the newest one, and copying continues with that one: branches that have not
//! changed are complete with everything below them. At each replacement, only branches that the new
//! commit references are still remembered as complete. A page below such a branch is current, and
//! nothing else is ever written in its place.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{
    Checkpoint, CheckpointError, checkpoint_path, create_directory, directory_path, headroom_bytes,
    is_short, resume_unfinished, rotate, unfinished_names, unfinished_path, write_note,
};
use crate::ids::{CryptoId, KeySetId, PageIndex, Sequence};
use crate::layers::KeySet;
use crate::meta::commit::BatchNumber;
use crate::meta::database::Committed;
use crate::meta::raw::RawTables;
use crate::meta::raw::reachable::{Branch, ReachError, Reachable, TreePage};
use crate::meta::records::Timespec;
use crate::meta::{Meta, MetaError};
use crate::sealed::{META_PAYLOAD_BYTES, META_STRIDE_BYTES, PageCopy};
use crate::store::{OpenMode, Store};

/// Limit on the pages read with one call, except for a single larger page of the database.
const RUN_PAGES: u64 = 256;
/// Number of pages between two syncs, so that the last sync is short.
const SYNC_PAGES: u64 = 4096;
/// A pinned commit is replaced once this many pages of `meta`, or an eighth of its own pages if
/// that is more, were written since it was pinned.
const RENEW_PAGES: u64 = if cfg!(test) { 64 } else { 16_384 };
/// Shorter runs of unreferenced pages are not punched: they share blocks with their neighbours, and
/// hardly any space would be freed.
const PUNCHED_PAGES_MIN: u64 = 16;
/// How long a caller that needs space waits for the unfinished checkpoint to be discarded.
const DISCARD_WAIT: Duration = Duration::from_millis(500);

/// A finished checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// It contains all batches up to this one.
    pub through: BatchNumber,
    /// Pages that were written.
    pub copied_pages: u64,
    /// Pages that were examined and already present.
    pub kept_pages: u64,
    /// How often the pinned commit was replaced by a newer one.
    pub renewals: u32,
}

/// An unfinished checkpoint.
#[derive(Debug)]
pub(in crate::meta) struct Unfinished {
    name: CryptoId,
    key_set: KeySetId,
    file: PageCopy,
    /// First page and checksum of branches that are in the file together with all leaves below
    /// them.
    complete: HashMap<u64, u128>,
}

/// A pinned commit: its pages are not reused as long as this is held.
struct Pin {
    _commit: Arc<Committed>,
    rows: RawTables,
    page_0: Vec<u8>,
    sequence: Sequence,
    /// The newest batch that it contains.
    through: BatchNumber,
    created: Timespec,
    /// Number of pages that had been written to `meta` when it was pinned.
    written_before: u64,
}

/// Pages processed so far.
#[derive(Default)]
struct Progress {
    copied: u64,
    kept: u64,
    /// Pages written since the last sync.
    unsynced: u64,
}

impl Meta {
    /// Writes a checkpoint of everything that is committed, and removes older checkpoints. `go_on`
    /// is called frequently; it may wait, and returns false to stop.
    ///
    /// # Errors
    /// No checkpoint was made; the existing ones are unchanged. If the work was stopped, or the
    /// metadata is damaged, the next call continues with the unfinished file.
    pub fn write_checkpoint(
        &self,
        store: &dyn Store,
        active: &Arc<KeySet>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Written, CheckpointError> {
        // After a failed commit page 0 was not synced, and the disk may be failing.
        if self.latched().is_some() {
            return Err(CheckpointError::Stopped);
        }
        let mut unfinished = self.unfinished.lock();
        self.discard_requested.store(false, Ordering::Release);
        let mut go_on = || !self.discard_requested.load(Ordering::Acquire) && go_on();
        let mut written = self.copy_committed_pages(&mut unfinished, store, active, &mut go_on);
        if self.discard_requested.load(Ordering::Acquire)
            && matches!(written, Err(CheckpointError::Stopped))
        {
            written = Err(CheckpointError::NoSpace);
        }
        match &written {
            Err(CheckpointError::Stopped | CheckpointError::Damaged { .. }) => {}
            Ok(_) => *unfinished = None,
            Err(_) => {
                if let Some(unfinished) = unfinished.take() {
                    let _ = store.unlink(&unfinished_path(unfinished.name));
                }
            }
        }
        let written = written?;
        store.sync_dir(&directory_path())?;
        if self.latched().is_none()
            && let Err(error) = rotate(store, active, &written.checkpoint)
            && self.rotation_failures.first_time(())
        {
            tracing::warn!(%error, "older checkpoints could not be removed");
        }
        Ok(written)
    }

    /// Discards an unfinished checkpoint to free its space. True if there was one.
    ///
    /// # Errors
    /// Those of the store.
    pub fn discard_unfinished_checkpoint(&self, store: &dyn Store) -> io::Result<bool> {
        let names = unfinished_names(store)?;
        let mut names = names.iter().filter_map(|name| {
            let name = name.strip_suffix(super::UNFINISHED_SUFFIX)?;
            CryptoId::from_hex(name)
        });
        let Some(first) = names.next() else {
            // Its name may have been removed while its space is still in use.
            let unfinished = self.unfinished.try_lock();
            return Ok(unfinished.is_some_and(|mut unfinished| unfinished.take().is_some()));
        };
        self.discard_requested.store(true, Ordering::Release);
        // Its writer removes it, or has finished it.
        let Some(mut unfinished) = self.unfinished.try_lock_for(DISCARD_WAIT) else {
            return Ok(true);
        };
        *unfinished = None;
        for name in std::iter::once(first).chain(names) {
            match store.unlink(&unfinished_path(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }

    /// True if nothing was changed since the commit of these rows.
    ///
    /// # Errors
    /// When page 0 cannot be read.
    pub fn has_rows_of(&self, rows: &RawTables) -> Result<bool, MetaError> {
        Ok(self.pin()?.rows.has_rows_of(rows))
    }

    fn pin(&self) -> Result<Pin, MetaError> {
        let _no_commit = self.tables.lock();
        let commit = Arc::clone(&self.state.read().committed);
        let mut page_0 = vec![0; META_PAYLOAD_BYTES];
        self.file.read(0, &mut page_0)?;
        let sequence = self.file.durable().sequence;
        let rows = RawTables::of_page_0(&self.file, &page_0, sequence);
        Ok(Pin {
            _commit: commit,
            rows: rows.ok_or(MetaError::Corrupt("page 0"))?,
            page_0,
            sequence,
            through: self.newest_durable_batch(),
            created: Timespec::now(),
            written_before: self.file.written_pages(),
        })
    }

    fn copy_committed_pages(
        &self,
        slot: &mut Option<Unfinished>,
        store: &dyn Store,
        active: &Arc<KeySet>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Written, CheckpointError> {
        let mut progress = Progress::default();
        let mut renewals = 0;
        let (mut pin, unfinished) = loop {
            let pin = self.pin()?;
            // Page 0 may belong to a commit that has failed meanwhile.
            if self.latched().is_some() {
                return Err(CheckpointError::Stopped);
            }
            let reach = pin.rows.reachable(go_on)?;
            let unfinished = match slot.take() {
                Some(one) if one.key_set == active.id => slot.insert(one),
                _ => slot.insert(Unfinished::resume_or_begin(store, active, pin.sequence)?),
            };
            unfinished.retain_reachable(&reach, go_on)?;
            let has_bytes = unfinished.file.allocated_bytes()?;
            let needed_bytes = (reach.count + 2) * META_STRIDE_BYTES as u64;
            check_space(store, needed_bytes.saturating_sub(has_bytes))?;
            let renew_pages = RENEW_PAGES.max(reach.count / 8) << renewals.min(16);
            let mut copying = Copying {
                meta: self,
                store,
                pin: &pin,
                to: unfinished,
                progress: &mut progress,
            };
            if copying.copy(&reach, renew_pages, go_on)? {
                break (pin, unfinished);
            }
            renewals += 1;
        };
        write_note(&mut pin.page_0, pin.created);
        if !go_on() {
            return Err(CheckpointError::Stopped);
        }
        let finished = unfinished.file.finish(&pin.page_0, pin.sequence);
        finished.map_err(MetaError::from)?;
        let bytes = unfinished.file.sealed_bytes()?;
        let name = unfinished.name;
        // From here on the file is never written again.
        store.rename(&unfinished_path(name), &checkpoint_path(name))?;
        Ok(Written {
            checkpoint: Checkpoint {
                name,
                sequence: pin.sequence,
                created: pin.created,
                bytes,
            },
            through: pin.through,
            copied_pages: progress.copied,
            kept_pages: progress.kept,
            renewals,
        })
    }
}

impl Unfinished {
    fn resume_or_begin(
        store: &dyn Store,
        active: &Arc<KeySet>,
        sequence: Sequence,
    ) -> Result<Self, CheckpointError> {
        create_directory(store)?;
        let file = match resume_unfinished(store, active)? {
            Some(file) => file,
            None => {
                let name = CryptoId::random()?;
                let file = store.open(&unfinished_path(name), OpenMode::CreateNew)?;
                let begun = PageCopy::begin(file, active, name, sequence);
                begun.map_err(MetaError::from).inspect_err(|_| {
                    let _ = store.unlink(&unfinished_path(name));
                })?
            }
        };
        Ok(Self {
            name: file.crypto(),
            key_set: active.id,
            file,
            complete: HashMap::new(),
        })
    }

    /// Punches pages that the commit does not reference, and forgets branches that it does not
    /// reference: the pages below them may be reused.
    fn retain_reachable(
        &mut self,
        reach: &Reachable,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), CheckpointError> {
        let mut complete = HashMap::with_capacity(self.complete.len());
        for Branch { page, .. } in &reach.branches {
            if self.complete.get(&page.first) == Some(&page.checksum()) {
                complete.insert(page.first, page.checksum());
            }
        }
        self.complete = complete;
        let truncated = self.file.truncate(reach.pages.end());
        truncated.map_err(MetaError::from)?;
        for gap in reach.pages.gaps(1, self.file.pages()?) {
            if !go_on() {
                return Err(CheckpointError::Stopped);
            }
            if gap.end - gap.start < PUNCHED_PAGES_MIN {
                continue;
            }
            let discarded = self.file.discard(PageIndex(gap.start)..PageIndex(gap.end));
            discarded.map_err(MetaError::from)?;
        }
        Ok(())
    }
}

/// The copying of one commit.
struct Copying<'a> {
    meta: &'a Meta,
    store: &'a dyn Store,
    pin: &'a Pin,
    to: &'a mut Unfinished,
    progress: &'a mut Progress,
}

impl Copying<'_> {
    /// Copies the pinned commit. False if it is to be replaced by a newer one.
    fn copy(
        &mut self,
        reach: &Reachable,
        renew_pages: u64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, CheckpointError> {
        for Branch { page, is_bottom } in &reach.branches {
            if self.to.complete.get(&page.first) == Some(&page.checksum()) {
                continue;
            }
            let written = self.meta.file.written_pages();
            if written.saturating_sub(self.pin.written_before) > renew_pages {
                return Ok(false);
            }
            self.copy_branch(*page)?;
            if *is_bottom {
                let mut leaves = self.pin.rows.children_of(*page)?;
                self.copy_leaves(&mut leaves, go_on)?;
            }
            self.to.complete.insert(page.first, page.checksum());
            self.sync_if_due()?;
        }
        self.copy_leaves(&mut reach.single_leaves.clone(), go_on)?;
        Ok(true)
    }

    fn copy_branch(&mut self, page: TreePage) -> Result<(), CheckpointError> {
        let bytes = self.pin.rows.bytes_of(page)?;
        let mut copy = vec![0; bytes.len()];
        let opens = self.to.file.read(PageIndex(page.first), &mut copy);
        let opens = opens.map_err(MetaError::from)?;
        if opens.iter().all(|opens| *opens) && page.is(&copy) {
            self.progress.kept += page.count;
            return Ok(());
        }
        self.write(page.first, &bytes)
    }

    fn copy_leaves(
        &mut self,
        leaves: &mut [TreePage],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), CheckpointError> {
        leaves.sort_unstable_by_key(|leaf| leaf.first);
        let mut rest = &*leaves;
        while let Some(first) = rest.first() {
            if !go_on() {
                return Err(CheckpointError::Stopped);
            }
            let mut end = first.first;
            let fits = rest.iter().take_while(|leaf| {
                let is_next = leaf.first == end;
                end += leaf.count;
                is_next && (end - first.first <= RUN_PAGES || leaf.first == first.first)
            });
            let count = fits.count();
            let (run, after) = rest.split_at(count);
            self.copy_run(run)?;
            rest = after;
        }
        Ok(())
    }

    /// Copies leaves that are adjacent in the file.
    fn copy_run(&mut self, run: &[TreePage]) -> Result<(), CheckpointError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let start = first.first;
        let mut bytes = vec![0; range_of(start, start, last.first + last.count - start).len()];
        let opens = self.to.file.read(PageIndex(start), &mut bytes);
        let opens = opens.map_err(MetaError::from)?;
        let is_copied = |leaf: &TreePage| {
            let pages = (leaf.first - start) as usize..(leaf.first - start + leaf.count) as usize;
            opens[pages].iter().all(|opens| *opens)
                && leaf.is_leaf(&bytes[range_of(start, leaf.first, leaf.count)])
        };
        let copied: Vec<bool> = run.iter().map(is_copied).collect();
        let mut rest = run;
        for same in copied.chunk_by(bool::eq) {
            let (leaves, after) = rest.split_at(same.len());
            rest = after;
            let (Some(first), Some(last)) = (leaves.first(), leaves.last()) else {
                continue;
            };
            let count = last.first + last.count - first.first;
            if same.first() == Some(&true) {
                self.progress.kept += count;
                continue;
            }
            let missing = &mut bytes[range_of(start, first.first, count)];
            self.read_from_meta(leaves, missing)?;
            self.write(first.first, missing)?;
        }
        Ok(())
    }

    fn read_from_meta(&self, leaves: &[TreePage], bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let file = &self.meta.file;
        let start = leaves.first().map_or(0, |leaf| leaf.first);
        let read = file.read(start * META_PAYLOAD_BYTES as u64, bytes);
        for leaf in leaves {
            let leaf_bytes = &mut bytes[range_of(start, leaf.first, leaf.count)];
            let damaged = |reason: String| CheckpointError::Damaged {
                page: leaf.first,
                reason,
            };
            if read.is_err() {
                // Find out which of them cannot be read.
                let read = file.read(leaf.first * META_PAYLOAD_BYTES as u64, leaf_bytes);
                read.map_err(|error| damaged(error.to_string()))?;
            }
            if !leaf.is_leaf(leaf_bytes) {
                let reason = "it is not the page that was written there last";
                return Err(damaged(reason.to_owned()));
            }
        }
        Ok(())
    }

    fn write(&mut self, first: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let written = self
            .to
            .file
            .write(PageIndex(first), bytes, self.pin.sequence);
        written.map_err(MetaError::from)?;
        let pages = (bytes.len() / META_PAYLOAD_BYTES) as u64;
        self.progress.copied += pages;
        self.progress.unsynced += pages;
        Ok(())
    }

    /// Syncs if enough was written since the last sync, and checks that there is space for more.
    fn sync_if_due(&mut self) -> Result<(), CheckpointError> {
        if self.progress.unsynced < SYNC_PAGES {
            return Ok(());
        }
        self.to.file.sync()?;
        self.progress.unsynced = 0;
        if is_short(self.store)? {
            return Err(CheckpointError::NoSpace);
        }
        Ok(())
    }
}

/// The byte range of pages in a buffer that begins with page `start`.
const fn range_of(start: u64, first: u64, count: u64) -> std::ops::Range<usize> {
    let at = (first - start) as usize * META_PAYLOAD_BYTES;
    at..at + count as usize * META_PAYLOAD_BYTES
}

fn check_space(store: &dyn Store, needed_bytes: u64) -> Result<(), CheckpointError> {
    let space = store.space()?;
    if space.available_bytes < needed_bytes.saturating_add(headroom_bytes(&space)) {
        return Err(CheckpointError::NoSpace);
    }
    Ok(())
}

impl From<ReachError> for CheckpointError {
    fn from(error: ReachError) -> Self {
        match error {
            ReachError::Stopped => Self::Stopped,
            ReachError::Damaged { page, reason } => Self::Damaged { page, reason },
        }
    }
}
