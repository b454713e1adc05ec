//! How much a view holds alone: what deleting it would give back.

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
    let kept = meta.kept_generations();
    let mut views: BTreeMap<Generation, u32> = BTreeMap::new();
    for (_, record) in meta.views() {
        *views.entry(record.generation).or_default() += 1;
    }
    let mut held = BTreeMap::new();
    let mut before = Generation(0);
    for (at, generation) in kept.iter().enumerate() {
        let next = kept.get(at + 1).copied();
        let pages = if views.get(generation) == Some(&1) {
            alone(meta, before, *generation, next)?
        } else {
            0
        };
        held.insert(*generation, pages);
        before = *generation;
    }
    Ok(held)
}

/// Pages that the view sees and neither the one before it nor the one after it (`None`: the live
/// one): all of them belong to extents that were written anew between it and the next.
fn alone(
    meta: &Meta,
    before: Generation,
    view: Generation,
    next: Option<Generation>,
) -> Result<u64, MetaError> {
    let through = next.unwrap_or_else(|| meta.generation());
    let mut pages = 0;
    let mut seen = BTreeSet::new();
    let mut from = None;
    loop {
        let (changed, more) = meta.changes(view, through, from, ROWS)?;
        for (_, (table, logical)) in changed {
            if table == Table::Extent && seen.insert(logical.clone()) {
                pages += alone_in(meta, before, view, &logical)?;
            }
        }
        match more {
            Some(more) => from = Some(more),
            None => return Ok(pages),
        }
    }
}

fn alone_in(
    meta: &Meta,
    before: Generation,
    view: Generation,
    logical: &[u8],
) -> Result<u64, MetaError> {
    let versions = meta.versions(Table::Extent, logical)?;
    let Some(seen) = versions.iter().rposition(|(at, _)| *at <= view) else {
        return Ok(0);
    };
    if versions[seen].0 <= before {
        return Ok(0);
    }
    let mut elsewhere: BTreeMap<ObjectName, PageSet> = BTreeMap::new();
    for (_, value) in versions
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != seen)
        .map(|(_, v)| v)
    {
        for (name, pages) in parts(value)? {
            elsewhere.entry(name).or_default().union(&pages);
        }
    }
    let mut alone = 0;
    for (name, mut pages) in parts(&versions[seen].1)? {
        if let Some(others) = elsewhere.get(&name) {
            pages.subtract(others);
        }
        alone += u64::from(pages.len());
    }
    Ok(alone)
}

fn parts(value: &[u8]) -> Result<Vec<(ObjectName, PageSet)>, MetaError> {
    if value == TOMBSTONE {
        return Ok(Vec::new());
    }
    match ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))? {
        ExtentRecord::Inline(_) => Ok(Vec::new()),
        ExtentRecord::Parts { parts, .. } => Ok(parts
            .into_iter()
            .map(|part| (part.id.name, part.pages))
            .collect()),
    }
}
