//! Space that is given back after a commit: objects are unlinked, pages are punched, and object
//! files are truncated.
//!
//! This happens only after the commit that made the pages unreachable is durable. Presence is
//! checked again under the page lock, since a page may have been written again meanwhile.

use std::ops::Range;

use super::read::page_range;
use super::{Contents, ObjectError};
use crate::ids::{ChunkIndex, Ino};
use crate::meta::commit::BatchNumber;
use crate::meta::keys::{self, Table};
use crate::meta::page_set::{CHUNK_PAGES, PageSet};
use crate::meta::records::{ObjectName, PartId};
use crate::meta::{Batch, MetaError};
use crate::planted::{Bug, planted};

/// Pages to remove from an object's file once a batch is durable.
#[derive(Debug)]
pub(super) struct DeferredPunch {
    pub(super) ino: Ino,
    pub(super) index: ChunkIndex,
    pub(super) id: PartId,
    pub(super) pages: Range<u32>,
}

impl Contents {
    /// Queues pages to be punched once the batch is durable.
    pub(super) fn punch_after(&self, batch: BatchNumber, punch: Option<DeferredPunch>) {
        self.deferred_punches
            .lock()
            .extend(punch.map(|punch| (batch, punch)));
    }

    /// True if there is space to give back, now or after a commit.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn has_garbage(&self) -> Result<bool, ObjectError> {
        Ok(!self.deferred_punches.lock().is_empty() || self.meta.has_rows(Table::Garbage)?)
    }

    /// Gives back the space that the last commit made unreachable. A failure for one object is
    /// logged and wastes its space.
    ///
    /// # Errors
    /// The metadata cannot be read or changed.
    pub fn collect(&self) -> Result<(), ObjectError> {
        let _one = self.collecting.lock();
        let due = {
            let mut deferred_punches = self.deferred_punches.lock();
            let (due, waiting) = deferred_punches.drain(..).partition(|(batch, _)| {
                planted(Bug::PunchBeforeCommit) || self.meta.is_durable(*batch)
            });
            *deferred_punches = waiting;
            let due: Vec<(BatchNumber, DeferredPunch)> = due;
            due
        };
        for (_, punch) in due {
            let object = punch.id.name.object;
            if let Err(error) = self.punch_deferred(punch) {
                tracing::warn!(%object, %error, "space of an object could not be given back");
            }
        }
        self.unlink_garbage()
    }

    fn punch_deferred(&self, punch: DeferredPunch) -> Result<(), ObjectError> {
        let file = match self.file(punch.ino) {
            Err(ObjectError::Removed) => return Ok(()),
            other => other?,
        };
        let _permit = self.meta.permit();
        let _gate = file.gate.read();
        // Pages that were written again, committed and removed again may still be in the committed
        // record. The thread that removed them has queued a later entry for this object, since the
        // gate is held here. So this entry waits for the batch of that one too.
        {
            let mut deferred_punches = self.deferred_punches.lock();
            let waiting = deferred_punches
                .iter()
                .filter(|(_, other)| other.id == punch.id);
            if let Some(batch) = waiting.map(|(batch, _)| *batch).max() {
                deferred_punches.push((batch, punch));
                return Ok(());
            }
        }
        self.load_chunk(&file, punch.index)?;
        let object = match self.objects.open(punch.id) {
            Err(ObjectError::Missing { .. }) => return Ok(()),
            other => other?,
        };
        let guard = object.lock_exclusive(page_range(&punch.pages));
        let runs = {
            let state = file.state.lock();
            let Some(chunk) = state.chunks.get(&punch.index) else {
                return Ok(());
            };
            match chunk.newest() {
                // The part was removed, shared or replaced: it must not be touched any more.
                Some(part) if part.id == punch.id && self.is_writable(chunk) => {
                    absent_runs(&chunk.backed(), punch.pages.clone())
                }
                _ => return Ok(()),
            }
        };
        let page_error = |source| ObjectError::Page {
            object: punch.id.name,
            source,
        };
        for run in runs {
            if run.end == CHUNK_PAGES {
                object
                    .set_len_pages(&guard, u64::from(run.start))
                    .map_err(page_error)?;
            } else {
                object.punch(&guard, page_range(&run)).map_err(page_error)?;
            }
        }
        Ok(())
    }

    fn unlink_garbage(&self) -> Result<(), ObjectError> {
        let rows = if planted(Bug::UnlinkBeforeCommit) {
            self.meta.rows(Table::Garbage)?
        } else {
            self.meta.committed_garbage()?
        };
        if rows.is_empty() {
            return Ok(());
        }
        let _permit = self.meta.permit();
        let mut batch = Batch::new();
        for (key, value) in rows {
            let (Some(number), Some(name)) = (keys::number_of(&key), ObjectName::decode(&value))
            else {
                return Err(MetaError::Corrupt("garbage").into());
            };
            // If one object cannot be removed, the others are removed all the same.
            match self.objects.unlink(name) {
                Ok(()) => self.meta.remove_garbage(&mut batch, number),
                Err(error) => {
                    tracing::warn!(object = %name.object, %error, "an object could not be removed");
                }
            }
        }
        if !batch.is_empty() {
            self.meta.apply(batch)?;
        }
        Ok(())
    }
}

/// The runs of pages in the range that are not in the set.
pub(super) fn absent_runs(present: &PageSet, pages: Range<u32>) -> Vec<Range<u32>> {
    let mut runs = Vec::new();
    let mut page = pages.start;
    while page < pages.end {
        let end = present.run_end(page, pages.end);
        if !present.contains(page) {
            runs.push(page..end);
        }
        page = end;
    }
    runs
}
