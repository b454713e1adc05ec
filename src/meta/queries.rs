//! Queries over ranges of records, and the locks of inodes.

use parking_lot::{Mutex, MutexGuard};

use super::keys::{self, Row, Table};
use super::records::{ExtentRecord, InodeRecord, TOMBSTONE};
use super::{Batch, Meta, MetaError, View};
use crate::ids::{ChunkIndex, Ino};

/// Locks of inodes. A read-modify-write of a record requires the lock of its inode.
#[derive(Debug)]
pub(super) struct InodeLocks(Vec<Mutex<()>>);

const SHARDS: usize = 256;

impl Default for InodeLocks {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::new(())).collect())
    }
}

/// Guard for the locks of several inodes.
#[derive(Debug)]
pub struct InodeGuard<'a> {
    _guards: Vec<MutexGuard<'a, ()>>,
}

impl Meta {
    /// All physical records of an unversioned table.
    ///
    /// # Errors
    /// When the database cannot be read, which latches.
    pub fn rows(&self, table: Table) -> Result<Vec<Row>, MetaError> {
        let mut rows = Vec::new();
        self.visit_physical(table, &[], &[0xFF; 9], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        })?;
        Ok(rows)
    }

    /// True if the table has any row.
    ///
    /// # Errors
    /// When the database cannot be read, which latches.
    pub fn has_rows(&self, table: Table) -> Result<bool, MetaError> {
        let mut has_rows = false;
        self.visit_physical(table, &[], &[0xFF; 9], &mut |_, _| {
            has_rows = true;
            false
        })?;
        Ok(has_rows)
    }

    /// The value of an unversioned table's row.
    ///
    /// # Errors
    /// When the database cannot be read, which latches.
    pub fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.physical(table, key)
    }

    /// Locks one inode.
    pub fn lock_inode(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.inode_locks.0[shard(ino)].lock()
    }

    /// Locks several inodes, always in the same order.
    pub fn lock_inodes(&self, inos: &[Ino]) -> InodeGuard<'_> {
        let mut shards: Vec<usize> = inos.iter().map(|ino| shard(*ino)).collect();
        shards.sort_unstable();
        shards.dedup();
        InodeGuard {
            _guards: shards
                .into_iter()
                .map(|shard| self.inode_locks.0[shard].lock())
                .collect(),
        }
    }

    /// The live inode as it will be once the batch is applied.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or the record cannot be decoded.
    pub fn inode_after(&self, batch: &Batch, ino: Ino) -> Result<Option<InodeRecord>, MetaError> {
        let key = keys::versioned(&keys::inode(ino), self.generation());
        match batch.pending(Table::Inode, &key) {
            Some(Some(TOMBSTONE)) => Ok(None),
            Some(Some(bytes)) => InodeRecord::decode(bytes)
                .map(Some)
                .ok_or(MetaError::Corrupt("inode")),
            Some(None) => Ok(None),
            None => self.inode(ino, View::LIVE),
        }
    }

    /// Up to `limit` extents of a file, starting with chunk `from`.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a record cannot be decoded.
    pub fn extents(
        &self,
        ino: Ino,
        from: ChunkIndex,
        view: View,
        limit: usize,
    ) -> Result<Vec<(ChunkIndex, ExtentRecord)>, MetaError> {
        let (low, high) = (keys::extent(ino, from), keys::after_ino(ino));
        let rows = self.scan(Table::Extent, &low, &high, view, limit)?;
        rows.into_iter()
            .map(|(key, value)| {
                let chunk = keys::extent_parts(&key).map(|(_, chunk)| chunk);
                chunk
                    .zip(ExtentRecord::decode(&value))
                    .ok_or(MetaError::Corrupt("extent"))
            })
            .collect()
    }

    /// Names of a file's extended attributes.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a key cannot be decoded.
    pub fn xattr_names(&self, ino: Ino, view: View) -> Result<Vec<Vec<u8>>, MetaError> {
        let mut names = Vec::new();
        self.visit_xattrs(ino, view, &mut |name, _| names.push(name.to_vec()))?;
        Ok(names)
    }

    /// Calls `visit` with the name of each extended attribute and the bytes of its record.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a key cannot be decoded.
    pub fn visit_xattrs(
        &self,
        ino: Ino,
        view: View,
        visit: &mut dyn FnMut(&[u8], usize),
    ) -> Result<(), MetaError> {
        // Values may be long, so only a few are held in memory at a time.
        const ROWS_AT_A_TIME: usize = 32;
        let (mut low, high) = (keys::number(ino.0), keys::after_ino(ino));
        loop {
            let rows = self.scan(Table::Xattr, &low, &high, view, ROWS_AT_A_TIME)?;
            for (key, value) in &rows {
                let name = keys::xattr_name(key).ok_or(MetaError::Corrupt("xattr"))?;
                visit(name, value.len());
            }
            match rows.into_iter().next_back() {
                // Names end with a NUL, so nothing lies between this key and the next name.
                Some((mut last, _)) => {
                    last.push(0xFF);
                    low = last;
                }
                None => return Ok(()),
            }
        }
    }

    /// Copies the extended attributes that `from` has in `view` to the inode `to`.
    ///
    /// # Errors
    /// When the attributes, or older versions of those to be replaced, cannot be read.
    pub fn copy_xattrs(
        &self,
        batch: &mut Batch,
        from: Ino,
        view: View,
        to: Ino,
    ) -> Result<(), MetaError> {
        for name in self.xattr_names(from, view)? {
            let value = self.get(Table::Xattr, &keys::xattr(from, &name), view)?;
            self.put_record(batch, Table::Xattr, &keys::xattr(to, &name), value)?;
        }
        Ok(())
    }

    /// The durable rows of `garbage`, whose objects may be unlinked.
    ///
    /// # Errors
    /// When the database cannot be read, which latches.
    pub fn committed_garbage(&self) -> Result<Vec<Row>, MetaError> {
        let committed = std::sync::Arc::clone(&self.state.read().committed);
        let mut rows = Vec::new();
        self.latch_on_error(committed.visit(
            Table::Garbage,
            &[],
            &[0xFF; 9],
            &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                true
            },
        ))?;
        Ok(rows)
    }
}

fn shard(ino: Ino) -> usize {
    (ino.0 % SHARDS as u64) as usize
}
