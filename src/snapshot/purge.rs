//! Dropping what only deleted views saw.
//!
//! A deleted view's row says *leaving* until nothing is left of it; so a power cut costs nothing
//! but time. Between the kept view before the oldest leaving one and the kept view after it (or the
//! live one) lie the rows of `change` that can have to do with it: each names a key of which a
//! version may be needed no more. When no older view is kept, the rows themselves go too.
//!
//! It goes in steps, each a batch that is whole in itself, and other work goes on between them.

use std::collections::BTreeSet;

use crate::ids::{Generation, Ino, ViewId};
use crate::meta::keys;
use crate::meta::{Batch, Meta, MetaError};

/// Keys looked at in one step.
const KEYS_PER_STEP: usize = 128;

/// The gap between kept views that deleted ones leave.
#[derive(Debug)]
struct Gap {
    /// The oldest deleted view.
    after: Generation,
    /// The next kept view, or the live one.
    through: Generation,
    /// No older view is kept.
    is_first: bool,
    /// The deleted views in it. One that leaves while this gap is worked on has a gap of its own:
    /// what it needed was still kept.
    leaving: Vec<ViewId>,
}

/// How far the dropping has come.
#[derive(Debug, Default)]
pub struct Purge {
    under_way: Option<(Gap, Option<Vec<u8>>)>,
}

impl Purge {
    /// Does one step. False when nothing is left to be done.
    ///
    /// # Errors
    /// The metadata could not be read or changed; the next call begins anew.
    pub fn step(&mut self, meta: &Meta) -> Result<bool, MetaError> {
        let (gap, from) = match self.under_way.take() {
            Some(under_way) => under_way,
            None => match oldest_gap(meta) {
                Some(gap) => (gap, None),
                None => return Ok(false),
            },
        };
        let (changed, next) = meta.changes(gap.after, gap.through, from, KEYS_PER_STEP)?;
        let _permit = meta.permit();
        // Views that were deleted or taken since the gap was looked at: begin anew.
        if oldest_gap(meta).is_none_or(|now| now.after != gap.after || now.through < gap.through) {
            return Ok(true);
        }
        let mut batch = Batch::new();
        let inos: Vec<Ino> = changed
            .iter()
            .filter_map(|(_, (_, logical))| keys::ino_of(logical))
            .collect();
        let _inodes = meta.lock_inodes(&inos);
        let mut done = BTreeSet::new();
        for (generation, key) in &changed {
            if done.insert(key) {
                let (table, logical) = key;
                meta.prune(&mut batch, *table, logical)?;
            }
            if gap.is_first {
                meta.remove_change(&mut batch, *generation, key);
            }
        }
        let left = if next.is_none() {
            finished(meta, &mut batch, &gap)
        } else {
            Vec::new()
        };
        if !batch.is_empty() {
            meta.apply(batch)?;
        }
        left.into_iter().for_each(|id| meta.forget_view(id));
        if next.is_some() {
            self.under_way = Some((gap, next));
        }
        Ok(true)
    }
}

fn oldest_gap(meta: &Meta) -> Option<Gap> {
    let leaving = meta.leaving_views();
    let after = leaving.iter().map(|(_, at)| *at).min()?;
    let kept = meta.kept_generations();
    let through = kept.iter().copied().find(|kept| *kept >= after);
    let through = through.unwrap_or_else(|| meta.generation());
    let in_gap = leaving
        .iter()
        .filter(|(_, at)| *at == after || *at < through);
    Some(Gap {
        after,
        through,
        is_first: kept.first().is_none_or(|first| *first > after),
        leaving: in_gap.map(|(id, _)| *id).collect(),
    })
}

/// Takes the rows of the views in the gap away; the answer is which they were.
fn finished(meta: &Meta, batch: &mut Batch, gap: &Gap) -> Vec<ViewId> {
    for id in &gap.leaving {
        meta.remove_view(batch, *id);
    }
    gap.leaving.clone()
}
