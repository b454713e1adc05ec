//! Dropping records that only deleted views can see.
//!
//! A deleted view's row has the state *leaving* until nothing is left of the view, so the work
//! continues after a power cut. Only rows of `change` between two generations can concern a leaving
//! view: the kept view before the oldest leaving one, and the kept view after it (or the live one).
//! Each of them names a key of which a version may be unneeded. If no older view is kept, these
//! rows are removed too.
//!
//! The work is done in steps. Each is one batch that is complete by itself, and other operations
//! run between them.

use std::collections::BTreeSet;

use crate::ids::{Generation, Ino, ViewId};
use crate::meta::keys;
use crate::meta::{Batch, Meta, MetaError};

/// Keys processed in one step.
const KEYS_PER_STEP: usize = 128;

/// The range of generations between two kept views in which views were deleted.
#[derive(Debug)]
struct GenerationGap {
    /// Generation of the oldest deleted view.
    after: Generation,
    /// Generation of the next kept view, or the live one.
    through: Generation,
    /// True if no older view is kept.
    is_first: bool,
    /// The deleted views in the range. A view that is deleted while the range is processed gets a
    /// range of its own, since records that it needs have been kept so far.
    leaving: Vec<ViewId>,
}

/// Progress of the purge.
#[derive(Debug, Default)]
pub struct Purge {
    current: Option<GapProgress>,
}

/// A gap that is being processed.
#[derive(Debug)]
struct GapProgress {
    gap: GenerationGap,
    /// The key of the next row of `change`; `None` at the start.
    next: Option<Vec<u8>>,
}

impl Purge {
    /// Runs one step. False if nothing is left to do.
    ///
    /// # Errors
    /// The metadata cannot be read or changed; the next call starts again.
    pub fn step(&mut self, meta: &Meta) -> Result<bool, MetaError> {
        let started = || oldest_gap(meta).map(|gap| GapProgress { gap, next: None });
        let Some(progress) = self.current.take().or_else(started) else {
            return Ok(false);
        };
        let GapProgress { gap, next: from } = progress;
        let (changed, next) = meta.changes(gap.after, gap.through, from, KEYS_PER_STEP)?;
        let _permit = meta.permit();
        // Views were deleted or taken since the range was determined: start again.
        if oldest_gap(meta).is_none_or(|now| now.after != gap.after || now.through < gap.through) {
            return Ok(true);
        }
        let mut batch = Batch::new();
        let inos: Vec<Ino> = changed
            .iter()
            .filter_map(|row| keys::ino_of(&row.key.logical))
            .collect();
        let _inodes = meta.lock_inodes(&inos);
        let mut done = BTreeSet::new();
        for row in &changed {
            if done.insert(&row.key) {
                meta.prune(&mut batch, row.key.table, &row.key.logical)?;
            }
            if gap.is_first {
                meta.remove_change(&mut batch, row);
            }
        }
        let dropped = if next.is_none() {
            remove_leaving_rows(meta, &mut batch, &gap)
        } else {
            Vec::new()
        };
        if !batch.is_empty() {
            meta.apply(batch)?;
        }
        dropped.into_iter().for_each(|id| meta.forget_view(id));
        if next.is_some() {
            self.current = Some(GapProgress { gap, next });
        }
        Ok(true)
    }
}

/// The gap with the oldest deleted view, if there is one.
fn oldest_gap(meta: &Meta) -> Option<GenerationGap> {
    let leaving = meta.leaving_views();
    let after = leaving.iter().map(|(_, at)| *at).min()?;
    let kept = meta.kept_generations();
    let through = kept.iter().copied().find(|kept| *kept >= after);
    let through = through.unwrap_or_else(|| meta.generation());
    let in_gap = leaving
        .iter()
        .filter(|(_, at)| *at == after || *at < through);
    Some(GenerationGap {
        after,
        through,
        is_first: kept.first().is_none_or(|first| *first > after),
        leaving: in_gap.map(|(id, _)| *id).collect(),
    })
}

/// Removes the rows of the deleted views in the range, and returns their ids.
fn remove_leaving_rows(meta: &Meta, batch: &mut Batch, gap: &GenerationGap) -> Vec<ViewId> {
    for id in &gap.leaving {
        meta.remove_view(batch, *id);
    }
    gap.leaving.clone()
}
