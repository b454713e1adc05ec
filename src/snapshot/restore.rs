//! Restoring the live view from a kept one.
//!
//! The table `change` lists what was written since the kept view was taken. For each such key, the
//! record that the kept view sees is written into the live generation, or the key is removed. So
//! the cost depends on how much has changed, and newer views stay. Extents are marked *shared*,
//! since the kept view sees their parts too.
//!
//! An inode that does not exist in the kept view becomes an orphan, which is removed when no
//! program has it open.
//!
//! Nothing else changes meanwhile. The work is done in steps. From before the first until after the
//! last one, the counters record that a restore is under way. If it is interrupted, the next mount
//! continues it: repeating a step does no harm.

use std::collections::BTreeSet;

use crate::ids::{Generation, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::records::{ExtentRecord, InodeRecord};
use crate::meta::{Batch, ChangeRow, ChangedKey, Meta, MetaError, View};

/// Keys processed in one step.
const KEYS_PER_STEP: usize = 512;

/// What a restore changed, for caches.
#[derive(Debug, Default)]
pub struct Restored {
    /// Inodes that were restored or removed.
    pub inodes: BTreeSet<Ino>,
    /// Directory and name of changed entries.
    pub names: Vec<(Ino, Vec<u8>)>,
    /// Inodes that lost their last name.
    pub orphans: Vec<Ino>,
    /// Inodes that have a name, and may have had none before.
    pub named: BTreeSet<Ino>,
}

/// Restores the live view from the kept view of generation `target`. The caller has paused all
/// other changes. `relieve` is called after every step.
///
/// # Errors
/// The metadata cannot be read or changed. The restore is incomplete then, and the next mount
/// finishes it.
pub fn restore(
    meta: &Meta,
    target: Generation,
    relieve: &dyn Fn() -> Result<(), MetaError>,
) -> Result<Restored, MetaError> {
    meta.set_restoring(target);
    let mut restored = Restored::default();
    let mut from = None;
    loop {
        let (changed, more) = meta.changes(target, meta.generation(), from, KEYS_PER_STEP)?;
        let mut batch = Batch::new();
        let mut done = BTreeSet::new();
        for ChangeRow { key, .. } in &changed {
            if done.insert(key) {
                let view = View(target);
                restore_key(meta, &mut batch, view, key, &mut restored)?;
            }
        }
        meta.apply(batch)?;
        relieve()?;
        match more {
            Some(more) => from = Some(more),
            None => break,
        }
    }
    meta.set_restoring(Generation(0));
    Ok(restored)
}

/// A record as the kept view sees it, and as it is now.
struct Change {
    then: Option<Vec<u8>>,
    now: Option<Vec<u8>>,
}

fn restore_key(
    meta: &Meta,
    batch: &mut Batch,
    view: View,
    key: &ChangedKey,
    restored: &mut Restored,
) -> Result<(), MetaError> {
    let (table, logical) = (key.table, &*key.logical);
    let ino = keys::ino_of(logical).ok_or(MetaError::Corrupt("change"))?;
    let then = meta.get(table, logical, view)?;
    let now = meta.get(table, logical, View::LIVE)?;
    if then == now {
        return Ok(());
    }
    match table {
        Table::Inode => restore_inode(meta, batch, ino, Change { then, now }, restored),
        Table::Dirent => {
            let (_, name) = keys::dirent_parts(logical).ok_or(MetaError::Corrupt("change"))?;
            restored.names.push((ino, name.to_vec()));
            meta.put_record(batch, table, logical, then)
        }
        // Everything that belongs to an orphan is removed with it.
        _ if !has_name(meta, ino, view)? => Ok(()),
        Table::Extent => {
            restored.inodes.insert(ino);
            restore_extent(meta, batch, logical, Change { then, now })
        }
        _ => {
            restored.inodes.insert(ino);
            meta.put_record(batch, table, logical, then)
        }
    }
}

/// True if the inode has a name in the view.
fn has_name(meta: &Meta, ino: Ino, view: View) -> Result<bool, MetaError> {
    Ok(meta
        .inode(ino, view)?
        .is_some_and(|record| record.nlink > 0))
}

fn restore_inode(
    meta: &Meta,
    batch: &mut Batch,
    ino: Ino,
    Change { then, now }: Change,
    restored: &mut Restored,
) -> Result<(), MetaError> {
    let decode = |bytes: Option<Vec<u8>>| match bytes {
        Some(bytes) => InodeRecord::decode(&bytes)
            .map(Some)
            .ok_or(MetaError::Corrupt("inode")),
        None => Ok(None),
    };
    let then = decode(then)?.filter(|record| record.nlink > 0);
    restored.inodes.insert(ino);
    match (then, decode(now)?) {
        (Some(record), now) => {
            batch.inodes += i64::from(now.is_none());
            meta.remove_orphan(batch, ino);
            restored.named.insert(ino);
            meta.put_inode(batch, ino, &record)
        }
        (None, Some(record)) => {
            meta.put_orphan(batch, ino);
            restored.orphans.push(ino);
            meta.put_inode(batch, ino, &InodeRecord { nlink: 0, ..record })
        }
        (None, None) => Ok(()),
    }
}

fn restore_extent(
    meta: &Meta,
    batch: &mut Batch,
    logical: &[u8],
    Change { then, now }: Change,
) -> Result<(), MetaError> {
    let decode = |bytes: Option<Vec<u8>>| match bytes {
        Some(bytes) => ExtentRecord::decode(&bytes)
            .map(Some)
            .ok_or(MetaError::Corrupt("extent")),
        None => Ok(None),
    };
    let (mut then, now) = (decode(then)?, decode(now)?);
    if let Some(ExtentRecord::Parts { shared, .. }) = &mut then {
        *shared = true;
    }
    let pages = |record: &Option<ExtentRecord>| {
        record.as_ref().map_or(0, ExtentRecord::pages).cast_signed()
    };
    batch.used_pages += pages(&then) - pages(&now);
    let (ino, chunk) = keys::extent_parts(logical).ok_or(MetaError::Corrupt("change"))?;
    let kept = meta.older_names(ino, chunk)?;
    let stays = then.as_ref().map(ExtentRecord::names).unwrap_or_default();
    for name in now.as_ref().map(ExtentRecord::names).unwrap_or_default() {
        if !kept.contains(&name) && !stays.contains(&name) {
            meta.put_garbage(batch, name)?;
        }
    }
    meta.put_extent(batch, ino, chunk, then.as_ref())
}
