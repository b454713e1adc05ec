//! Versions of records: which exist, which are needed, and which keys changed when.
//!
//! The rule: let a key have the versions r1 < r2 < .... The version r(i) is needed if a kept view
//! has a generation g with r(i) <= g < r(i+1). The last version is needed because the live view
//! sees it. A tombstone is needed only while an older version is.
//!
//! Versions are dropped on two occasions. The first write of a key in a generation drops the
//! earlier versions that are not needed ([`Meta::put_record`]). After a view was deleted, the
//! versions that only this view saw are looked up in `change` and dropped ([`Meta::prune`]). When a
//! version of an extent is dropped, so are the objects that no other version of it references.
//!
//! A row of `change` is written with the first write of a key in a generation while some view is
//! kept. So the differences between two kept views, or a kept view and the live one, are among the
//! rows whose generations are after the older and up to the newer one. A key without such a row is
//! the same in both.

use std::collections::BTreeSet;

use super::keys::{self, Table, VersionedKey};
use super::records::{ExtentRecord, ObjectName, TOMBSTONE};
use super::{Batch, FIRST_GENERATION, Meta, MetaError, View};
use crate::ids::{ChunkIndex, Generation, Ino};

/// The versions of a key, oldest first.
pub(super) type Versions = Vec<(Generation, Vec<u8>)>;

/// A key whose record changed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ChangedKey {
    /// The table of the record.
    pub table: Table,
    /// The logical key of the record.
    pub logical: Vec<u8>,
}

/// A row of `change`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeRow {
    /// A generation in which the key was written.
    pub generation: Generation,
    /// The key.
    pub key: ChangedKey,
}

/// What remains after unneeded versions were dropped.
#[derive(Default)]
struct PruneOutcome {
    /// Some versions remain.
    any_left: bool,
    /// The newest remaining version has a value, so a removal needs a tombstone.
    ends_with_value: bool,
    /// Some versions were dropped.
    dropped: bool,
}

/// The version that follows those that may be dropped.
#[derive(Clone, Copy)]
struct NextVersion<'a> {
    generation: Generation,
    /// `None` if the record is removed.
    value: Option<&'a [u8]>,
}

impl Meta {
    /// Sets the record of `logical` to `value` (`None` removes it) as part of the batch. The caller
    /// holds a permit until the batch is applied.
    ///
    /// # Errors
    /// When older versions of the record cannot be read or decoded, and [`MetaError::UsedUp`] if an
    /// object to unlink gets no number.
    pub fn put_record(
        &self,
        batch: &mut Batch,
        table: Table,
        logical: &[u8],
        value: Option<Vec<u8>>,
    ) -> Result<(), MetaError> {
        let generation = self.generation();
        let key = keys::versioned(logical, generation);
        let newest = self.newest(table, logical, View::LIVE)?;
        let before = newest.as_ref().map(|(_, value)| value.as_slice());
        batch.charge_record(table, logical, before, value.as_deref());
        if generation == FIRST_GENERATION {
            batch.change(table, key, value);
            return Ok(());
        }
        let is_first = newest.as_ref().is_none_or(|(at, _)| *at != generation);
        if !is_first && value.is_some() {
            batch.change(table, key, value);
            return Ok(());
        }
        let older = match newest {
            Some(older) if is_first => Some(older),
            _ => self.newest(table, logical, View(Generation(generation.0 - 1)))?,
        };
        let (any_kept, older_needed) = {
            let views = self.views.read();
            let needed = |(at, _): &(Generation, Vec<u8>)| views.keeps(*at, generation);
            (
                views.newest() > Generation(0),
                older.as_ref().is_some_and(needed),
            )
        };
        if is_first && any_kept {
            let row = keys::change(generation, table, logical);
            batch.change(Table::Change, row, Some(vec![1]));
        }
        let hides_value = match older {
            None => false,
            Some((_, value)) if older_needed => value != TOMBSTONE,
            Some(_) => {
                let mut versions = self.versions(table, logical)?;
                versions.retain(|(at, _)| *at < generation);
                let next = NextVersion {
                    generation,
                    value: value.as_deref(),
                };
                self.drop_unneeded(batch, table, logical, &versions, next)?
                    .ends_with_value
            }
        };
        let value = value.or_else(|| hides_value.then(|| TOMBSTONE.to_vec()));
        batch.change(table, key, value);
        Ok(())
    }

    /// Drops unneeded versions among those before `next`. The caller holds a permit.
    fn drop_unneeded(
        &self,
        batch: &mut Batch,
        table: Table,
        logical: &[u8],
        versions: &[(Generation, Vec<u8>)],
        next: NextVersion<'_>,
    ) -> Result<PruneOutcome, MetaError> {
        let names = |value: &[u8]| match table {
            Table::Extent => object_names(value),
            _ => Ok(Vec::new()),
        };
        let newest = next.value.map(names).transpose()?.unwrap_or_default();
        let mut keep: BTreeSet<ObjectName> = newest.into_iter().collect();
        let mut gone = BTreeSet::new();
        let mut outcome = PruneOutcome::default();
        for ((at, value), needed) in versions.iter().zip(self.needed(versions, next.generation)) {
            if needed {
                outcome.any_left = true;
                outcome.ends_with_value = value != TOMBSTONE;
                keep.extend(names(value)?);
            } else {
                outcome.dropped = true;
                gone.extend(names(value)?);
                batch.change(table, keys::versioned(logical, *at), None);
            }
        }
        self.release_objects(batch, logical, &gone, &keep)?;
        Ok(outcome)
    }

    /// For each version, oldest first, whether it is needed. `next` is the generation of the
    /// version that follows the last of them.
    fn needed(&self, versions: &[(Generation, Vec<u8>)], next: Generation) -> Vec<bool> {
        let views = self.views.read();
        let ends = versions.iter().skip(1).map(|(at, _)| *at).chain([next]);
        let mut older = false;
        versions
            .iter()
            .zip(ends)
            .map(|((at, value), end)| {
                let needed = views.keeps(*at, end) && (older || value != TOMBSTONE);
                older |= needed;
                needed
            })
            .collect()
    }

    /// All versions of a key, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a key cannot be decoded.
    pub fn versions(&self, table: Table, logical: &[u8]) -> Result<Versions, MetaError> {
        let mut versions = Versions::new();
        let low = keys::versioned(logical, Generation(0));
        let high = keys::versioned(logical, Generation(u64::MAX));
        let mut corrupt = false;
        self.visit_physical(table, &low, &high, &mut |key, value| {
            match VersionedKey::decode(key) {
                Some(key) => versions.push((key.generation, value.to_vec())),
                None => corrupt = true,
            }
            !corrupt
        })?;
        if corrupt {
            return Err(MetaError::Corrupt("key"));
        }
        Ok(versions)
    }

    /// Objects that older versions of the extent, before the live generation, reference.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a record cannot be decoded.
    pub fn older_names(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
    ) -> Result<BTreeSet<ObjectName>, MetaError> {
        let generation = self.generation();
        let mut names = BTreeSet::new();
        if generation == FIRST_GENERATION {
            return Ok(names);
        }
        for (at, value) in self.versions(Table::Extent, &keys::extent(ino, chunk))? {
            if at < generation {
                names.extend(object_names(&value)?);
            }
        }
        Ok(names)
    }

    /// Drops the versions of a key that are not needed any more. The caller holds the lock of its
    /// inode and a permit. True if something was dropped.
    ///
    /// # Errors
    /// When the versions cannot be read or decoded, and [`MetaError::UsedUp`] if an object to
    /// unlink gets no number.
    pub fn prune(
        &self,
        batch: &mut Batch,
        table: Table,
        logical: &[u8],
    ) -> Result<bool, MetaError> {
        let versions = self.versions(table, logical)?;
        let Some(((live, newest), older)) = versions.split_last() else {
            return Ok(false);
        };
        let next = NextVersion {
            generation: *live,
            value: Some(newest.as_slice()),
        };
        let mut outcome = self.drop_unneeded(batch, table, logical, older, next)?;
        // A tombstone is unnecessary if nothing older is left.
        if newest == TOMBSTONE && !outcome.any_left {
            outcome.dropped = true;
            batch.change(table, keys::versioned(logical, *live), None);
        }
        batch.frees |= outcome.dropped;
        Ok(outcome.dropped)
    }

    /// Queues the objects that only dropped versions of an extent referenced (`gone` without
    /// `keep`) for unlinking. Queues the extent for trimming if an object of a dropped version is
    /// kept.
    fn release_objects(
        &self,
        batch: &mut Batch,
        logical: &[u8],
        gone: &BTreeSet<ObjectName>,
        keep: &BTreeSet<ObjectName>,
    ) -> Result<(), MetaError> {
        for name in gone.difference(keep) {
            self.put_garbage(batch, *name)?;
        }
        if !gone.is_disjoint(keep) {
            Self::put_trim(batch, logical);
        }
        Ok(())
    }

    /// Returns up to `limit` keys that were first written in generations after `after` and up to
    /// `through`, and the `from` of the next call, if there are more. A key may appear several
    /// times.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a key cannot be decoded.
    pub fn changes(
        &self,
        after: Generation,
        through: Generation,
        from: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<(Vec<ChangeRow>, Option<Vec<u8>>), MetaError> {
        let low = from.unwrap_or_else(|| keys::number(after.0.saturating_add(1)));
        let high = keys::number(through.0.saturating_add(1));
        let mut rows = Vec::new();
        let mut next = None;
        let mut corrupt = false;
        self.visit_physical(Table::Change, &low, &high, &mut |key, _| {
            if rows.len() == limit {
                next = Some(key.to_vec());
                return false;
            }
            match keys::change_parts(key) {
                Some((generation, table, logical)) => {
                    let logical = logical.to_vec();
                    let key = ChangedKey { table, logical };
                    rows.push(ChangeRow { generation, key });
                }
                None => corrupt = true,
            }
            !corrupt
        })?;
        if corrupt {
            return Err(MetaError::Corrupt("change"));
        }
        Ok((rows, next))
    }

    /// Removes a row of `change` that is no longer needed.
    pub fn remove_change(&self, batch: &mut Batch, row: &ChangeRow) {
        let key = keys::change(row.generation, row.key.table, &row.key.logical);
        batch.change(Table::Change, key, None);
    }
}

/// Objects that an extent's record references.
fn object_names(value: &[u8]) -> Result<Vec<ObjectName>, MetaError> {
    if value == TOMBSTONE {
        return Ok(Vec::new());
    }
    let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
    Ok(record.names())
}
