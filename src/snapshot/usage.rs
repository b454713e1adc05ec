//! How much only one view holds: the space that deleting it would free.
//!
//! If exactly one kept view sees a version of a record, that view alone holds the version, and for
//! an extent also the pages that no other version names. Records that were not written since the
//! oldest kept view are shared with the live view. Each key is read once, however many views there
//! are.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Generation;
use crate::meta::charge;
use crate::meta::keys::Table;
use crate::meta::page_set::PageSet;
use crate::meta::records::{ExtentRecord, ObjectName, TOMBSTONE};
use crate::meta::{ChangedKey, Meta, MetaError};

/// Rows read at a time.
const ROWS_AT_A_TIME: usize = 1024;

/// Space that only one view uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeldAlone {
    /// Pages of contents.
    pub pages: u64,
    /// Bytes of records.
    pub record_bytes: u64,
}

/// Space that only one view uses, for each kept generation. Two views of the same generation use
/// nothing alone.
///
/// # Errors
/// The metadata cannot be read.
pub fn held_alone(meta: &Meta) -> Result<BTreeMap<Generation, HeldAlone>, MetaError> {
    let mut views: BTreeMap<Generation, u32> = BTreeMap::new();
    for (_, record) in meta.views() {
        *views.entry(record.generation).or_default() += 1;
    }
    let mut held: BTreeMap<Generation, HeldAlone> = BTreeMap::new();
    let kept: BTreeSet<Generation> = meta.kept_generations().into_iter().collect();
    let Some(oldest) = kept.first() else {
        return Ok(held);
    };
    for ChangedKey { table, logical } in changed_keys(meta, *oldest)? {
        let versions = meta.versions(table, &logical)?;
        let mut parts = Vec::with_capacity(versions.len());
        for (_, value) in &versions {
            parts.push(match table {
                Table::Extent => parts_of(value)?,
                _ => Parts::new(),
            });
        }
        let shared = named_twice(&parts);
        // The last version is the live view's.
        for (pair, parts) in versions.windows(2).zip(parts) {
            let mut seen_by = kept.range(pair[0].0..pair[1].0);
            if let (Some(view), None) = (seen_by.next(), seen_by.next())
                && views.get(view) == Some(&1)
            {
                let held = held.entry(*view).or_default();
                held.pages += pages_alone(parts, &shared);
                held.record_bytes += charge::record_bytes(table, &logical, &pair[0].1);
            }
        }
    }
    Ok(held)
}

/// Keys that were written after that generation.
fn changed_keys(meta: &Meta, after: Generation) -> Result<BTreeSet<ChangedKey>, MetaError> {
    let mut keys = BTreeSet::new();
    let mut from = None;
    loop {
        let (changed, more) = meta.changes(after, meta.generation(), from, ROWS_AT_A_TIME)?;
        keys.extend(changed.into_iter().map(|row| row.key));
        match more {
            Some(more) => from = Some(more),
            None => return Ok(keys),
        }
    }
}

/// The objects that a version of an extent names, with the pages that it names of each.
type Parts = Vec<(ObjectName, PageSet)>;

/// Pages of each object that more than one version names.
fn named_twice(versions: &[Parts]) -> BTreeMap<ObjectName, PageSet> {
    let mut once: BTreeMap<ObjectName, PageSet> = BTreeMap::new();
    let mut twice: BTreeMap<ObjectName, PageSet> = BTreeMap::new();
    for (name, pages) in versions.iter().flatten() {
        let known = once.entry(*name).or_default();
        let mut new = pages.clone();
        new.subtract(known);
        let mut repeated = pages.clone();
        repeated.subtract(&new);
        known.union(&new);
        twice.entry(*name).or_default().union(&repeated);
    }
    twice
}

/// Number of pages that no other version names.
fn pages_alone(parts: Parts, shared: &BTreeMap<ObjectName, PageSet>) -> u64 {
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
