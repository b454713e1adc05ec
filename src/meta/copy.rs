//! A view of one volume's metadata as the metadata of another.
//!
//! All records get the first generation, the counters the second as the live one and the first as
//! `frozen`: whatever was copied is shared with the source and never written in place. Left out is
//! what belongs to the source alone: unlinked files that are still in use, kept views, garbage.
//! A promise of space (`fallocate`) is left out too: it has its blocks in an object that is not
//! written to any more, so nothing would stand behind it.
//!
//! Rows are read in pages and inserted in the order of their keys, in one transaction: memory is
//! bounded by the cache of the database, apart from eight bytes for each unlinked file that is
//! still in use, and a few for each file with a promise.

use std::collections::{BTreeMap, HashSet};

use super::database::{Loader, Tables};
use super::keys::{self, Row, Table};
use super::records::{Counters, ExtentRecord, InodeRecord, ObjectName};
use super::{FIRST_GENERATION, Meta, MetaError, View};
use crate::ids::{Generation, Ino, ViewId};
use crate::meta::page_set::PageSet;
use crate::sealed::MetaFile;

/// Cache of the database that is filled, in bytes.
const CACHE_BYTES: usize = 32 << 20;

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Inodes.
    pub inodes: u64,
    /// Pages of contents.
    pub used_pages: u64,
}

/// What is done with a logical key and its value.
type Visit<'v, 'a> = dyn FnMut(&mut Copy<'a>, &[u8], &[u8]) -> Result<(), MetaError> + 'v;

/// A copy under way.
struct Copy<'a> {
    source: &'a Meta,
    view: View,
    /// Inodes without a name.
    orphans: HashSet<Ino>,
    /// Pages that a file was promised and does not have.
    promised: BTreeMap<Ino, u64>,
    copied: Copied,
}

impl Meta {
    /// Writes what `view` sees into an empty sealed file, as the metadata of a volume that may hold
    /// `limit_bytes` (0: any number). `object` is told the name of every object that the copy
    /// needs, once each; what it returns as an error ends the copy. Durable when it returns.
    ///
    /// # Errors
    /// Those of `object`, of reading here and of writing there. The file is worth nothing then.
    pub fn copy_view<E: From<MetaError>>(
        &self,
        view: View,
        file: MetaFile,
        limit_bytes: u64,
        object: &mut dyn FnMut(ObjectName) -> Result<(), E>,
    ) -> Result<Copied, E> {
        let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
        let mut refused = None;
        let mut copied = Copied::default();
        let loaded = tables.load(None, &mut |loader| {
            let mut copy = Copy::new(self, view);
            copy.all(loader, &mut |name| match object(name) {
                Ok(()) => true,
                Err(error) => {
                    refused = Some(error);
                    false
                }
            })?;
            copied = copy.copied;
            Ok(copy.counters(limit_bytes).encode())
        });
        match refused {
            Some(error) => Err(error),
            None => {
                loaded?;
                tables.close()?;
                Ok(copied)
            }
        }
    }
}

impl Meta {
    /// Writes all rows as of the newest commit into an empty sealed file, as the metadata of the same
    /// volume, which is not marked clean there. Durable when it returns.
    ///
    /// # Errors
    /// Those of reading here and of writing there. The file is worth nothing then.
    pub fn copy_committed(&self, file: MetaFile) -> Result<(), MetaError> {
        let committed = std::sync::Arc::clone(&self.state.read().committed);
        let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
        tables.load(None, &mut |loader| {
            for table in Table::ALL {
                let mut inserted = Ok(());
                committed.visit(table, &[], &[0xFF; 9], &mut |key, value| {
                    inserted = loader.insert(table, key, value);
                    inserted.is_ok()
                })?;
                inserted?;
            }
            let counters = committed.get(Table::Counters, &[])?;
            let counters = counters.and_then(|bytes| Counters::decode(&bytes));
            Ok(Counters {
                clean: false,
                ..counters.ok_or(MetaError::Corrupt("counters"))?
            }
            .encode())
        })?;
        tables.close()
    }
}

impl<'a> Copy<'a> {
    fn new(source: &'a Meta, view: View) -> Self {
        Self {
            source,
            view,
            orphans: HashSet::new(),
            promised: BTreeMap::new(),
            copied: Copied::default(),
        }
    }

    fn counters(&self, limit_bytes: u64) -> Counters {
        let source = self.source.counters();
        Counters {
            clean: true,
            generation: Generation(FIRST_GENERATION.0 + 1),
            frozen: FIRST_GENERATION,
            next_ino: source.next_ino,
            folder: source.folder,
            next_garbage: 0,
            used_pages: self.copied.used_pages,
            inodes: self.copied.inodes,
            limit_bytes,
            hash_key: source.hash_key,
            restoring: Generation(0),
            newest_view: ViewId::LIVE,
        }
    }

    /// `object` says whether to go on.
    fn all(
        &mut self,
        to: &mut Loader<'_>,
        object: &mut dyn FnMut(ObjectName) -> bool,
    ) -> Result<(), MetaError> {
        let (source, view) = (self.source, self.view);
        if source.inode(Ino::ROOT, view)?.is_none() {
            return Err(MetaError::Corrupt("root"));
        }
        self.each(Table::Inode, 256, &mut |this, key, value| {
            this.inode(to, key, value)
        })?;
        self.each(Table::Dirent, 1024, &mut |_, key, value| {
            insert(to, Table::Dirent, key, value)
        })?;
        // Values are long: only a few are in memory at a time.
        self.each(Table::Xattr, 32, &mut |this, key, value| match this
            .orphans
            .contains(&ino_of(key)?)
        {
            true => Ok(()),
            false => insert(to, Table::Xattr, key, value),
        })?;
        self.each(Table::Extent, 256, &mut |this, key, value| {
            this.extent(to, key, value, object)
        })?;
        self.correct_promises(to)
    }

    /// Calls `visit` with each logical record of a table.
    fn each(
        &mut self,
        table: Table,
        at_a_time: usize,
        visit: &mut Visit<'_, 'a>,
    ) -> Result<(), MetaError> {
        let mut low = Vec::new();
        loop {
            let rows: Vec<Row> = self
                .source
                .scan(table, &low, &[0xFF; 9], self.view, at_a_time)?;
            for (key, value) in &rows {
                visit(self, key, value)?;
            }
            match rows.into_iter().next_back() {
                // No logical key is the beginning of another one: all versions of the last one
                // begin with it, and the next one is greater than it with any generation.
                Some((last, _)) => low = keys::versioned(&last, Generation(u64::MAX)),
                None => return Ok(()),
            }
            low.push(0);
        }
    }

    fn inode(&mut self, to: &mut Loader<'_>, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        let record = InodeRecord::decode(value).ok_or(MetaError::Corrupt("inode"))?;
        if record.nlink == 0 {
            self.orphans.insert(ino_of(key)?);
            return Ok(());
        }
        self.copied.inodes += 1;
        insert(to, Table::Inode, key, value)
    }

    fn extent(
        &mut self,
        to: &mut Loader<'_>,
        key: &[u8],
        value: &[u8],
        object: &mut dyn FnMut(ObjectName) -> bool,
    ) -> Result<(), MetaError> {
        let ino = ino_of(key)?;
        if self.orphans.contains(&ino) {
            return Ok(());
        }
        let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
        let before = record.pages();
        let record = match record {
            ExtentRecord::Inline(_) => return insert(to, Table::Extent, key, value),
            ExtentRecord::Parts {
                shared, mut parts, ..
            } => {
                // One without pages was made for a promise.
                parts.retain(|part| !part.pages.is_empty());
                ExtentRecord::Parts {
                    shared,
                    parts,
                    reserved: PageSet::new(),
                }
            }
        };
        let pages = record.pages();
        if pages < before {
            *self.promised.entry(ino).or_default() += before - pages;
        }
        self.copied.used_pages += pages;
        let ExtentRecord::Parts { parts, .. } = &record else {
            return Ok(());
        };
        for part in parts {
            if !object(part.id.name) {
                return Err(MetaError::Corrupt("an object"));
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        insert(to, Table::Extent, key, &record.encode())
    }

    /// Takes promises off the pages that inodes count.
    fn correct_promises(&self, to: &mut Loader<'_>) -> Result<(), MetaError> {
        for (&ino, pages) in &self.promised {
            let mut inode = self
                .source
                .inode(ino, self.view)?
                .ok_or(MetaError::Corrupt("extent"))?;
            inode.pages = inode.pages.saturating_sub(*pages);
            insert(to, Table::Inode, &keys::inode(ino), &inode.encode())?;
        }
        Ok(())
    }
}

/// Inserts a record of the first generation.
fn insert(
    to: &mut Loader<'_>,
    table: Table,
    logical: &[u8],
    value: &[u8],
) -> Result<(), MetaError> {
    to.insert(table, &keys::versioned(logical, FIRST_GENERATION), value)
}

/// The inode that a logical key begins with.
fn ino_of(logical: &[u8]) -> Result<Ino, MetaError> {
    keys::ino_of(logical).ok_or(MetaError::Corrupt("key"))
}
