//! How much a view holds alone: what deleting it would give back.
//!
//! A version of an extent that one kept view sees and nobody else holds, for that view, the pages
//! that no other version names. Extents that were not written since the oldest kept view are the
//! live view's too. Each extent is looked at once, however many views there are.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Generation;
use crate::meta::keys::Table;
use crate::meta::page_set::PageSet;
use crate::meta::records::{ExtentRecord, ObjectName, TOMBSTONE};
use crate::meta::{Meta, MetaError};

/// Rows read at a time.
const ROWS: usize = 1024;

/// Pages of contents that only the view of that generation sees, for all kept generations. Two views
/// of one generation hold nothing alone.
///
/// # Errors
/// The metadata could not be read.
pub fn held_alone(meta: &Meta) -> Result<BTreeMap<Generation, u64>, MetaError> {
    let mut views: BTreeMap<Generation, u32> = BTreeMap::new();
    for (_, record) in meta.views() {
        *views.entry(record.generation).or_default() += 1;
    }
    let mut held: BTreeMap<Generation, u64> = BTreeMap::new();
    let kept: BTreeSet<Generation> = meta.kept_generations().into_iter().collect();
    let Some(oldest) = kept.first() else {
        return Ok(held);
    };
    for logical in changed_extents(meta, *oldest)? {
        let versions = meta.versions(Table::Extent, &logical)?;
        let mut parts = Vec::with_capacity(versions.len());
        for (_, value) in &versions {
            parts.push(parts_of(value)?);
        }
        let shared = named_twice(&parts);
        // The last version is the live view's.
        for (pair, parts) in versions.windows(2).zip(parts) {
            let mut seen_by = kept.range(pair[0].0..pair[1].0);
            if let (Some(view), None) = (seen_by.next(), seen_by.next())
                && views.get(view) == Some(&1)
            {
                *held.entry(*view).or_default() += alone(parts, &shared);
            }
        }
    }
    Ok(held)
}

/// Extents that were written after that generation.
fn changed_extents(meta: &Meta, after: Generation) -> Result<BTreeSet<Vec<u8>>, MetaError> {
    let mut found = BTreeSet::new();
    let mut from = None;
    loop {
        let (changed, more) = meta.changes(after, meta.generation(), from, ROWS)?;
        let keys = changed.into_iter().map(|(_, key)| key);
        let extents = keys.filter(|(table, _)| *table == Table::Extent);
        found.extend(extents.map(|(_, logical)| logical));
        match more {
            Some(more) => from = Some(more),
            None => return Ok(found),
        }
    }
}

type Parts = Vec<(ObjectName, PageSet)>;

/// Pages of each object that several versions name.
fn named_twice(versions: &[Parts]) -> BTreeMap<ObjectName, PageSet> {
    let mut once: BTreeMap<ObjectName, PageSet> = BTreeMap::new();
    let mut twice: BTreeMap<ObjectName, PageSet> = BTreeMap::new();
    for (name, pages) in versions.iter().flatten() {
        let known = once.entry(*name).or_default();
        let mut new = pages.clone();
        new.subtract(known);
        let mut again = pages.clone();
        again.subtract(&new);
        known.union(&new);
        twice.entry(*name).or_default().union(&again);
    }
    twice
}

fn alone(parts: Parts, shared: &BTreeMap<ObjectName, PageSet>) -> u64 {
    let pages = parts.into_iter().map(|(name, mut pages)| {
        if let Some(shared) = shared.get(&name) {
            pages.subtract(shared);
        }
        u64::from(pages.len())
    });
    pages.sum()
}

fn parts_of(value: &[u8]) -> Result<Parts, MetaError> {
    if value == TOMBSTONE {
        return Ok(Vec::new());
    }
    match ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))? {
        ExtentRecord::Inline(_) => Ok(Vec::new()),
        ExtentRecord::Parts { parts, .. } => {
            let parts = parts.into_iter();
            Ok(parts.map(|part| (part.id.name, part.pages)).collect())
        }
    }
}
