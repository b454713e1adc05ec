//! Flattening: keeping the lists of parts short.
//!
//! A part is added on top of a chunk whenever its newest one must not be written any more: once
//! after each snapshot and each copy. Reads search the whole list, and a record holds at most
//! [`PARTS_MAX`](crate::meta::records::PARTS_MAX) parts. So older parts are merged from time to
//! time: their visible pages are sealed again in one fresh object under the active key set.
//!
//! **The newest part is never touched.** Older parts gain no pages and are durable, so they are
//! read while writers continue with the newest one. Its reservation, its unsynced pages and its
//! shared flag stay as they are. The gate is held shared for a run of pages at a time, and
//! exclusively only while the list is replaced. If the older parts have changed by then (truncated,
//! or merged by another thread), the copy is discarded.
//!
//! Order: pages of the merged object, fdatasync, `sync_dir` of its name, then one batch with the
//! record that names it and with the old names as garbage. A page of an older part is omitted only
//! if a *durable* page of the newest part hides it: that page is part of the same record.
//!
//! **How much is merged** ([`merge_count`]) is size-tiered. A part without visible pages leaves the
//! list at once. Nothing else happens while the list has at most [`PARTS_FLAT`] parts. Beyond that,
//! the parts below the newest are collected from the top: as many as bring the list back to that
//! length, and further ones while the visible pages of the next part are at most [`GROWTH`] times
//! those collected above it. So a large old part is not rewritten for the sake of a few pages.
//! The merges that the length requires concern the small parts on top. All others copy a page only
//! into an object at least 1½ times as large as its former one. So a page is copied only a few
//! times until it is in the largest.
//!
//! An example: a chunk of 1041 pages, with a snapshot between any two rounds of writing. If each
//! round writes one page, 13 pages are copied for each page written. It is 7 if each round writes
//! five pages, 3 for fifty, less than one for three hundred, and none if all are overwritten. The
//! test below has the bounds.
//!
//! **Space**: hidden pages are not copied. The parts of one list hold at most about 2½ times the
//! pages that are visible in it. While kept views see the former parts, copied pages take space
//! twice, which is the other reason to copy little.
//!
//! In the background, each call copies a bounded number of pages. In the foreground, with the gate
//! held exclusively, a writer merges only if the record could not hold one more part.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::file::{Chunk, Extent, File};
use super::read::{page_range, page_runs};
use super::{Contents, ObjectError, chunk_start, page_bytes};
use crate::ids::{ChunkIndex, Ino};
use crate::meta::page_set::{CHUNK_PAGES, PageSet};
use crate::meta::records::{Part, PartId};
use crate::meta::{Batch, View};
use crate::sealed::PAYLOAD_BYTES;

/// Maximum number of parts of a list that is not merged.
const PARTS_FLAT: usize = 5;
/// A part that need not be merged is merged if it has at most this many times the pages of the
/// merged parts above it.
const GROWTH: u32 = 2;
/// Maximum number of queued chunks. A chunk that does not fit is queued again when its record is
/// next read, or when it gets a part.
const QUEUE_MAX: usize = 1 << 14;
/// Chunks of one group, whose merged objects are made durable together.
const GROUP_CHUNKS: usize = 32;
/// Minimum free space on the backing filesystem; with less, the space is left to writers.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Chunks with long lists, in the order in which they were queued.
#[derive(Debug, Default)]
pub(super) struct FlattenQueue {
    order: VecDeque<(Ino, ChunkIndex)>,
    known: HashSet<(Ino, ChunkIndex)>,
}

impl FlattenQueue {
    fn put(&mut self, ino: Ino, index: ChunkIndex) {
        let chunk = (ino, index);
        if self.order.len() < QUEUE_MAX && self.known.insert(chunk) {
            self.order.push_back(chunk);
        }
    }

    fn take(&mut self) -> Option<(Ino, ChunkIndex)> {
        let chunk = self.order.pop_front()?;
        self.known.remove(&chunk);
        Some(chunk)
    }
}

/// The plan for the parts below the newest one.
#[derive(Debug, PartialEq)]
struct Plan {
    /// The newest part, which hides pages of the older ones.
    newest: PartId,
    /// The older parts as they were when the plan was made.
    before: Vec<Part>,
    /// Pages to copy, by part; empty if parts only leave the list.
    copies: Vec<(PartId, PageSet)>,
    /// The parts that stay below the merged part.
    rest: Vec<Part>,
}

impl Plan {
    /// All pages of the merged part.
    fn pages(&self) -> PageSet {
        let mut pages = PageSet::new();
        self.copies.iter().for_each(|(_, more)| pages.union(more));
        pages
    }
}

/// How the file's gate is held while pages are copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CopyGate {
    /// The caller holds it exclusively.
    HeldExclusively,
    /// The copy takes it shared for each run of pages.
    SharedPerRun,
}

/// A plan whose pages have been copied and are not durable yet.
struct Merged {
    file: Arc<File>,
    index: ChunkIndex,
    plan: Plan,
    part: Option<Part>,
}

impl Contents {
    /// Queues a chunk that got a part, if its list is long enough.
    pub(super) fn queue_new_part(&self, file: &File, index: ChunkIndex, chunk: &Chunk) {
        // Of two parts, the older one is hidden only by pages that are being written now.
        self.queue_if_long(file, index, chunk, 3);
    }

    /// Queues a chunk that was loaded from its record, if its list is long enough.
    pub(super) fn queue_loaded(&self, file: &File, index: ChunkIndex, chunk: &Chunk) {
        self.queue_if_long(file, index, chunk, PARTS_FLAT + 1);
    }

    fn queue_if_long(&self, file: &File, index: ChunkIndex, chunk: &Chunk, least: usize) {
        let long = matches!(&chunk.extent, Extent::Parts { parts, .. } if parts.len() >= least);
        if long && file.view == View::LIVE {
            self.flatten_queue.lock().put(file.ino, index);
        }
    }

    /// Merges parts of queued chunks until about `budget_pages` pages are copied or `enough`
    /// returns true. A failure wastes time and space only.
    pub fn flatten_some(&self, budget_pages: u32, enough: &dyn Fn() -> bool) {
        let space = self.objects.store().space();
        let has_space = space.is_ok_and(|space| space.available_bytes >= FREE_BYTES_MIN);
        if self.meta.check_writable().is_err() || !has_space {
            return;
        }
        // A chunk that is queued again waits for the next call.
        let mut waiting = self.flatten_queue.lock().order.len();
        let mut left = budget_pages;
        while waiting > 0 && left > 0 && !enough() {
            let count = waiting.min(GROUP_CHUNKS);
            waiting -= count;
            left = self.flatten_group(count, left);
        }
    }

    /// Merges parts of some chunks whose objects are made durable together. Returns the rest of the
    /// budget.
    fn flatten_group(&self, chunks: usize, mut left_pages: u32) -> u32 {
        let mut merged = Vec::new();
        for _ in 0..chunks {
            if left_pages == 0 {
                break;
            }
            let Some((ino, index)) = self.flatten_queue.lock().take() else {
                break;
            };
            match self.file(ino).and_then(|file| self.merge(file, index)) {
                Ok(None) | Err(ObjectError::Removed) => {}
                Ok(Some(one)) => {
                    let copied = one.part.as_ref().map_or(0, |part| part.pages.len());
                    left_pages = left_pages.saturating_sub(copied);
                    merged.push(one);
                }
                Err(error) => {
                    tracing::warn!(
                        ino = ino.0,
                        index = index.0,
                        %error,
                        "parts could not be merged"
                    );
                }
            }
            self.forget(ino);
        }
        for one in self.make_durable(merged) {
            let (file, index) = (Arc::clone(&one.file), one.index);
            match self.install_merged(one) {
                Ok(true) => {}
                Ok(false) => self.flatten_queue.lock().put(file.ino, index),
                Err(error) => {
                    let (ino, index) = (file.ino.0, index.0);
                    tracing::warn!(ino, index, %error, "merged parts could not be recorded");
                }
            }
            let ino = file.ino;
            drop(file);
            self.forget(ino);
        }
        left_pages
    }

    /// Merges parts of a chunk whose record cannot hold one more.
    pub(super) fn flatten_now(&self, file: &File, index: ChunkIndex) -> Result<(), ObjectError> {
        let _permit = self.meta.permit();
        let _gate = file.gate.write();
        let Some(plan) = self.plan(file, index)? else {
            return Ok(());
        };
        if plan.copies.is_empty() {
            return self.replace_older(file, index, &plan, None);
        }
        let id = self.objects.create(&self.meta)?;
        let made = self
            .copy_runs(file, index, &plan, id, CopyGate::HeldExclusively)
            .and_then(|_| self.sync_merged(id))
            .and_then(|()| self.objects.sync_names());
        if let Err(error) = made {
            self.objects.unlink(id.name)?;
            return Err(error);
        }
        let pages = plan.pages();
        self.replace_older(file, index, &plan, Some(Part { id, pages }))
    }

    /// Copies the pages to merge. `None` if there is nothing to merge, or if the chunk has changed.
    fn merge(&self, file: Arc<File>, index: ChunkIndex) -> Result<Option<Merged>, ObjectError> {
        let plan = {
            let _permit = self.meta.permit();
            let _gate = file.gate.read();
            self.plan(&file, index)?
        };
        let Some(plan) = plan else {
            return Ok(None);
        };
        let mut part = None;
        if !plan.copies.is_empty() {
            let id = self.objects.create(&self.meta)?;
            let copied = self.copy_runs(&file, index, &plan, id, CopyGate::SharedPerRun);
            if !matches!(copied, Ok(true)) {
                self.objects.unlink(id.name)?;
                copied?;
                self.flatten_queue.lock().put(file.ino, index);
                return Ok(None);
            }
            let pages = plan.pages();
            part = Some(Part { id, pages });
        }
        Ok(Some(Merged {
            file,
            index,
            plan,
            part,
        }))
    }

    /// Plans a merge. The gate must be held.
    fn plan(&self, file: &File, index: ChunkIndex) -> Result<Option<Plan>, ObjectError> {
        self.load_chunk(file, index)?;
        let state = file.state.lock();
        let chunk = state.chunks.get(&index).filter(|_| !state.removed);
        Ok(chunk.and_then(plan_merge))
    }

    /// Copies the plan's pages into a fresh object. False if the parts have changed.
    fn copy_runs(
        &self,
        file: &File,
        index: ChunkIndex,
        plan: &Plan,
        to: PartId,
        gate: CopyGate,
    ) -> Result<bool, ObjectError> {
        let object = self.open_object(to)?;
        let mut buffer = Vec::new();
        for run in page_runs(&plan.pages(), 0..CHUNK_PAGES) {
            let start = page_bytes(run.start).start;
            buffer.resize((run.end - run.start) as usize * PAYLOAD_BYTES, 0);
            {
                let _gate = (gate == CopyGate::SharedPerRun).then(|| file.gate.read());
                if !is_as_planned(file, index, plan) {
                    return Ok(false);
                }
                for (id, visible) in &plan.copies {
                    for piece in page_runs(visible, run.clone()) {
                        let at = (piece.start - run.start) as usize * PAYLOAD_BYTES;
                        let len = (piece.end - piece.start) as usize * PAYLOAD_BYTES;
                        let from = page_bytes(piece.start).start;
                        self.read_part(*id, from, &mut buffer[at..at + len])?;
                    }
                }
                // Bytes beyond the size are zeros in every page that is sealed. If the file grows
                // meanwhile, the page with its old end has been sealed in the newest part.
                let base = chunk_start(index) + start;
                let here = file.size().saturating_sub(base).min(buffer.len() as u64);
                buffer[here as usize..].fill(0);
            }
            let guard = object.lock_exclusive(page_range(&run));
            let sequence = self.meta.sequence();
            object
                .write_at(&guard, start, &buffer, sequence, &mut |_, _| Ok(()))
                .map_err(|source| self.page_error(to.name, source))?;
        }
        Ok(true)
    }

    fn sync_merged(&self, id: PartId) -> Result<(), ObjectError> {
        self.objects.sync(std::iter::once(id.name))
    }

    /// Makes merged objects durable. Those that cannot be are discarded.
    fn make_durable(&self, mut merged: Vec<Merged>) -> Vec<Merged> {
        merged.retain(|one| match &one.part {
            None => true,
            Some(part) => self.sync_merged(part.id).is_ok() || self.discard_merged(one),
        });
        if let Err(error) = self.objects.sync_names() {
            tracing::warn!(%error, "merged parts could not be made durable");
            merged.retain(|one| self.discard_merged(one));
        }
        merged
    }

    /// Removes a merged object that no record names. Always returns false.
    fn discard_merged(&self, one: &Merged) -> bool {
        if let Some(part) = &one.part
            && let Err(error) = self.objects.unlink(part.id.name)
        {
            tracing::warn!(object = %part.id.name.object, %error, "an object could not be removed");
        }
        false
    }

    /// Puts a durable merged part into the list. False if the parts have changed.
    fn install_merged(&self, one: Merged) -> Result<bool, ObjectError> {
        let file = Arc::clone(&one.file);
        let _permit = self.meta.permit();
        let _gate = file.gate.write();
        self.load_chunk(&file, one.index)?;
        if file.state.lock().removed || !is_as_planned(&file, one.index, &one.plan) {
            return Ok(self.discard_merged(&one));
        }
        self.replace_older(&file, one.index, &one.plan, one.part)?;
        Ok(true)
    }

    /// Replaces the older parts. The gate must have been held exclusively since the parts were
    /// compared with the plan.
    fn replace_older(
        &self,
        file: &File,
        index: ChunkIndex,
        plan: &Plan,
        part: Option<Part>,
    ) -> Result<(), ObjectError> {
        let _inode = self.meta.lock_inode(file.ino);
        let state = &mut *file.state.lock();
        let mut batch = Batch::new();
        let Some(chunk) = state.chunks.get_mut(&index) else {
            return Err(ObjectError::Removed);
        };
        if let Extent::Parts { parts, .. } = &mut chunk.extent {
            parts.truncate(parts.len().saturating_sub(plan.before.len()));
            parts.extend(part);
            parts.extend(plan.rest.iter().cloned());
        }
        chunk.changed = true;
        let stays = |part: &Part| plan.rest.iter().any(|other| other.id == part.id);
        let gone = plan.before.iter().filter(|part| !stays(part));
        let names = gone.map(|part| part.id.name).collect();
        self.discard(file, index, names, &mut batch)?;
        self.publish(file, state, &mut batch)?;
        self.meta.apply(batch)?;
        Ok(())
    }
}

/// True while the plan's parts are at the end of the list, below the part that hides pages of
/// theirs. After a restore there may be another part on top of them.
fn is_as_planned(file: &File, index: ChunkIndex, plan: &Plan) -> bool {
    let state = file.state.lock();
    let Some(Extent::Parts { parts, .. }) = state.chunks.get(&index).map(|chunk| &chunk.extent)
    else {
        return false;
    };
    let above = parts.strip_suffix(&plan.before[..]);
    let above = above.and_then(|above| above.last());
    above.is_some_and(|part| part.id == plan.newest)
}

/// Plans what happens to the parts below the newest one, if anything.
fn plan_merge(chunk: &Chunk) -> Option<Plan> {
    let Extent::Parts { parts, .. } = &chunk.extent else {
        return None;
    };
    let (newest, before) = parts.split_first()?;
    // Until a page of the newest part is durable, a power cut brings back the page below it.
    let mut hidden = chunk.durable.clone();
    let mut seen = Vec::with_capacity(before.len());
    for part in before {
        let mut visible = part.pages.clone();
        visible.subtract(&hidden);
        hidden.union(&part.pages);
        if !visible.is_empty() {
            seen.push((part, visible));
        }
    }
    let sizes: Vec<u32> = seen.iter().map(|(_, visible)| visible.len()).collect();
    let merged = merge_count(&sizes);
    if merged == 0 && seen.len() == before.len() {
        return None;
    }
    let rest = seen.split_off(merged);
    Some(Plan {
        newest: newest.id,
        before: before.to_vec(),
        copies: seen.into_iter().map(|(part, v)| (part.id, v)).collect(),
        rest: rest.into_iter().map(|(part, _)| part.clone()).collect(),
    })
}

/// How many of the parts below the newest are merged, from the top, given the number of visible
/// pages of each: none, or at least two.
fn merge_count(visible: &[u32]) -> usize {
    // The newest part and the merged one are in the list too.
    let required = (visible.len() + 2).saturating_sub(PARTS_FLAT);
    if required < 2 {
        return 0;
    }
    let mut merged_pages: u32 = visible.iter().take(required).sum();
    let more = visible.iter().skip(required).take_while(|next| {
        let merges = **next <= merged_pages.saturating_mul(GROWTH);
        merged_pages = merged_pages.saturating_add(**next);
        merges
    });
    required + more.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::page_set::CHUNK_BYTES;
    use proptest::prelude::*;

    #[test]
    fn small_parts_on_top_are_merged() {
        assert_eq!(merge_count(&[]), 0);
        assert_eq!(merge_count(&[1, 1, 1, 1]), 0);
        // One part too many: the two on top are merged, and those that are not much larger.
        assert_eq!(merge_count(&[1, 1, 5, 100, 1041]), 2);
        assert_eq!(merge_count(&[1, 1, 4, 100, 1041]), 3);
        assert_eq!(merge_count(&[50, 50, 100, 400, 1041]), 5);
        assert_eq!(merge_count(&[1, 1041, 1, 1, 1]), 5);
        assert_eq!(merge_count(&[1, 10, 100, 1041, 1041]), 2);
        assert_eq!(merge_count(&[1, 2, 3, 40, 400, 1041]), 3);
        assert_eq!(merge_count(&[1, 2, 3, 4, 40, 400, 1041]), 4);
    }

    #[test]
    fn runs_are_bounded() {
        let mut set = PageSet::new();
        for run in [0..3, 10..11, 300..700] {
            set.insert(run);
        }
        assert_eq!(
            page_runs(&set, 0..CHUNK_PAGES),
            [0..3, 10..11, 300..556, 556..700]
        );
        assert_eq!(page_runs(&set, 2..301), [2..3, 10..11, 300..301]);
        assert_eq!(page_runs(&set, 11..300), []);
    }

    /// Simulates rounds of writes, each of which adds a newest part. Returns the pages written and
    /// copied, and the maximum number of pages that one list had.
    fn rounds(count: u32, changed: impl Fn(u32) -> PageSet) -> (u32, u32, u32) {
        let part = |pages: PageSet| Part {
            id: PartId {
                name: crate::meta::records::ObjectName {
                    folder: crate::ids::FolderNumber(0),
                    object: crate::ids::ObjectId([0; 16]),
                },
                crypto: crate::ids::CryptoId([0; 16]),
                epoch: crate::ids::Epoch(1),
            },
            pages,
        };
        let mut all = PageSet::new();
        all.insert(0..CHUNK_PAGES);
        let mut parts = vec![part(all)];
        let (mut written, mut copied, mut most) = (0, 0, 0);
        for round in 0..count {
            let newest = changed(round);
            written += newest.len();
            parts.insert(0, part(newest.clone()));
            let mut chunk = Chunk::from_record(crate::ids::Generation(1), None, CHUNK_PAGES);
            chunk.durable = newest;
            chunk.extent = Extent::Parts {
                shared: false,
                parts: parts.clone(),
            };
            if let Some(plan) = plan_merge(&chunk) {
                copied += plan.pages().len();
                parts.truncate(1);
                if !plan.copies.is_empty() {
                    parts.push(part(plan.pages()));
                }
                parts.extend(plan.rest);
            }
            assert!(parts.len() <= PARTS_FLAT);
            most = most.max(parts.iter().map(|part| part.pages.len()).sum());
        }
        (written, copied, most)
    }

    /// A restore can put another part on top of the same older ones.
    #[test]
    fn a_plan_is_valid_below_the_part_that_hides_pages() {
        let part = |number: u8, page: u32| {
            let mut pages = PageSet::new();
            pages.insert(page..page + 1);
            Part {
                id: PartId {
                    name: crate::meta::records::ObjectName {
                        folder: crate::ids::FolderNumber(0),
                        object: crate::ids::ObjectId([number; 16]),
                    },
                    crypto: crate::ids::CryptoId([number; 16]),
                    epoch: crate::ids::Epoch(1),
                },
                pages,
            }
        };
        let older: Vec<Part> = (0..5).map(|number| part(number, number.into())).collect();
        let file = File::new(Ino(2), View::LIVE, CHUNK_BYTES, 6);
        let below = |above: &[Part]| {
            let mut chunk = Chunk::from_record(crate::ids::Generation(1), None, CHUNK_PAGES);
            chunk.durable.union(&above[0].pages);
            chunk.extent = Extent::Parts {
                shared: false,
                parts: [above, &older[..]].concat(),
            };
            let plan = plan_merge(&chunk);
            file.state.lock().chunks.insert(ChunkIndex(0), chunk);
            plan
        };
        let plan = below(&[part(10, 1)]).unwrap();
        assert!(!plan.pages().contains(1));
        assert!(is_as_planned(&file, ChunkIndex(0), &plan));
        below(&[part(11, 9), part(10, 1)]);
        assert!(is_as_planned(&file, ChunkIndex(0), &plan));
        // Here page 1 comes from an older part.
        below(&[part(12, 7)]);
        assert!(!is_as_planned(&file, ChunkIndex(0), &plan));
    }

    /// Pages that differ from round to round, spread over the chunk.
    fn spread(round: u32, pages: u32) -> PageSet {
        let mut set = PageSet::new();
        for number in round * pages..(round + 1) * pages {
            let page = number.wrapping_mul(619) % CHUNK_PAGES;
            set.insert(page..page + 1);
        }
        set
    }

    #[test]
    fn little_is_copied_for_what_is_written() {
        for (pages, times) in [(1, 13), (5, 7), (50, 4), (300, 1), (1041, 0)] {
            for neighbours in [false, true] {
                let (written, copied, most) = rounds(1000, |round| {
                    if neighbours {
                        let start = (round * pages) % CHUNK_PAGES;
                        let mut set = PageSet::new();
                        set.insert(start..start + pages);
                        set
                    } else {
                        spread(round, pages)
                    }
                });
                assert!(
                    copied <= written * times,
                    "{pages} pages a round: {copied} copied for {written}"
                );
                assert!(most * 2 <= 5 * CHUNK_PAGES, "{most} pages of {CHUNK_PAGES}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_list_becomes_short_and_large_old_parts_are_not_merged(
            visible in prop::collection::vec(1..=CHUNK_PAGES, 0..8)
        ) {
            let merged = merge_count(&visible);
            prop_assert!(merged <= visible.len());
            prop_assert!(merged != 1);
            let after = 1 + visible.len() - merged + usize::from(merged > 0);
            prop_assert!(after <= PARTS_FLAT);
            let forced = (visible.len() + 2).saturating_sub(PARTS_FLAT);
            for last in forced..merged {
                let above: u32 = visible[..last].iter().sum();
                prop_assert!(visible[last] <= GROWTH * above);
            }
            if let Some(next) = visible.get(merged).filter(|_| merged > 0) {
                let above: u32 = visible[..merged].iter().sum();
                prop_assert!(*next > GROWTH * above);
            }
        }
    }
}
