//! Computes the counters of a database from its records.
//!
//! When a database is filled from another source (an image, a stream, an older copy), its counters
//! are computed here from its rows. The counters that the source stored are not trusted. So a
//! number that is allocated later is never one that a record already uses, such as the inode of a
//! directory entry or the folder of an extent.
//!
//! Rows arrive table by table in the order of their keys, so the last version of a key is the one
//! that the live view sees.

use super::MetaError;
use super::charge;
use super::keys::{self, Table, VersionedKey};
use super::records::{
    COUNT_MAX, Counters, DirentRecord, ExtentRecord, InodeRecord, ObjectName, PAGES_MAX, TOMBSTONE,
    ViewRecord,
};
use crate::ids::{FolderNumber, Generation, Ino};

/// The numbers seen so far.
#[derive(Debug)]
pub(super) struct Tally {
    /// The largest inode number that any record mentions.
    newest_ino: Ino,
    /// The newest folder that any object is in.
    folder: FolderNumber,
    /// The newest generation of any record, or one more than that of any view.
    generation: Generation,
    next_garbage: u64,
    inodes: u64,
    used_pages: u64,
    record_bytes: u64,
    /// The key whose versions are being read, with the contribution of the newest so far.
    last: Option<(Table, Vec<u8>, Share)>,
}

/// The contribution of one record.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    inodes: u64,
    pages: u64,
    bytes: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            newest_ino: Ino::ROOT,
            folder: FolderNumber(0),
            generation: Generation(0),
            next_garbage: 0,
            inodes: 0,
            used_pages: 0,
            record_bytes: 0,
            last: None,
        }
    }
}

impl Tally {
    /// Adds a row.
    ///
    /// # Errors
    /// When the row is invalid or mentions an invalid number.
    pub(super) fn add(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        match table {
            Table::Inode | Table::Dirent | Table::Xattr | Table::Extent => {
                self.add_version(table, key, value)
            }
            Table::View => {
                let record = ViewRecord::decode(value).ok_or(MetaError::Corrupt("view"))?;
                let after = Generation(record.generation.0.saturating_add(1));
                self.generation = self.generation.max(after);
                Ok(())
            }
            Table::Garbage => {
                let row = keys::number_of(key).zip(ObjectName::decode(value));
                let (number, name) = row.ok_or(MetaError::Corrupt("garbage"))?;
                self.folder = self.folder.max(name.folder);
                self.next_garbage = self.next_garbage.max(number.saturating_add(1));
                Ok(())
            }
            Table::Orphan | Table::Counters | Table::Change | Table::Trim => Ok(()),
        }
    }

    fn add_version(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        let VersionedKey {
            logical,
            generation,
        } = VersionedKey::decode(key).ok_or(MetaError::Corrupt("key"))?;
        self.note_ino(keys::ino_of(logical).ok_or(MetaError::Corrupt("key"))?)?;
        self.generation = self.generation.max(generation);
        let is_next_version = self
            .last
            .as_ref()
            .is_some_and(|(of, last, _)| *of == table && last == logical);
        if !is_next_version {
            self.add_last_share();
        }
        let mut share = self.share(table, value)?;
        share.bytes = charge::record_bytes(table, logical, value);
        self.last = Some((table, logical.to_vec(), share));
        Ok(())
    }

    /// The contribution of a record if it is the newest of its key.
    fn share(&mut self, table: Table, value: &[u8]) -> Result<Share, MetaError> {
        let mut share = Share::default();
        if value == TOMBSTONE {
            return Ok(share);
        }
        match table {
            Table::Inode => {
                let record = InodeRecord::decode(value).ok_or(MetaError::Corrupt("inode"))?;
                if record.parent != Ino(0) {
                    self.note_ino(record.parent)?;
                }
                share.inodes = 1;
            }
            Table::Dirent => {
                let entry = DirentRecord::decode(value).ok_or(MetaError::Corrupt("dirent"))?;
                self.note_ino(entry.ino)?;
            }
            Table::Extent => {
                let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
                for name in record.names() {
                    self.folder = self.folder.max(name.folder);
                }
                share.pages = record.pages();
            }
            _ => {}
        }
        Ok(share)
    }

    fn note_ino(&mut self, ino: Ino) -> Result<(), MetaError> {
        if !ino.is_valid() {
            return Err(MetaError::Corrupt("key"));
        }
        self.newest_ino = self.newest_ino.max(ino);
        Ok(())
    }

    /// Adds the contribution of the newest version of the last key.
    fn add_last_share(&mut self) {
        if let Some((_, _, share)) = self.last.take() {
            self.inodes += share.inodes;
            self.used_pages += share.pages;
            self.record_bytes += share.bytes;
        }
    }

    /// The counters according to the rows. Values that do not follow from rows, and numbers that
    /// were allocated beyond those in the rows, are taken from `others`.
    ///
    /// # Errors
    /// When a counter exceeds its limit.
    pub(super) fn counters(mut self, others: Counters) -> Result<Counters, MetaError> {
        self.add_last_share();
        let counters = Counters {
            generation: others.generation.max(self.generation),
            next_ino: others.next_ino.max(Ino(self.newest_ino.0 + 1)),
            folder: others.folder.max(self.folder),
            next_garbage: others.next_garbage.max(self.next_garbage),
            used_pages: self.used_pages,
            inodes: self.inodes,
            record_bytes: self.record_bytes,
            ..others
        };
        let fits = counters.generation <= Generation::MAX
            && counters.next_ino <= Ino::END
            && counters.used_pages <= PAGES_MAX
            && counters.record_bytes <= COUNT_MAX;
        fits.then_some(counters)
            .ok_or(MetaError::Corrupt("counters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ViewId;
    use crate::meta::records::{FileKind, Timespec};

    fn other_counters() -> Counters {
        Counters {
            clean: true,
            generation: Generation(2),
            frozen: Generation(1),
            next_ino: Ino(0),
            folder: FolderNumber(0),
            next_garbage: 0,
            used_pages: 99,
            inodes: 99,
            record_bytes: 99,
            limit_bytes: 0,
            hash_key: [0; 16],
            restoring: Generation(0),
            newest_view: ViewId::LIVE,
        }
    }

    fn inode_row(ino: u64, generation: u64) -> (Vec<u8>, Vec<u8>) {
        let record = InodeRecord::new(FileKind::Regular, 0o600, Timespec::default());
        let key = keys::versioned(&keys::inode(Ino(ino)), Generation(generation));
        (key, record.encode())
    }

    #[test]
    fn a_key_counts_once_by_its_newest_version() {
        let mut tally = Tally::default();
        for (ino, generation, exists) in [(1, 1, true), (4, 1, true), (4, 3, true), (7, 1, true)] {
            let (key, value) = inode_row(ino, generation);
            tally
                .add(Table::Inode, &key, if exists { &value } else { TOMBSTONE })
                .unwrap();
        }
        let removed = keys::versioned(&keys::inode(Ino(7)), Generation(5));
        tally.add(Table::Inode, &removed, TOMBSTONE).unwrap();
        let counters = tally.counters(other_counters()).unwrap();
        assert_eq!(counters.inodes, 2);
        assert_eq!(counters.used_pages, 0);
        let bytes = |ino| {
            let (_, value) = inode_row(ino, 1);
            charge::record_bytes(Table::Inode, &keys::inode(Ino(ino)), &value)
        };
        assert_eq!(bytes(1), 0);
        assert!(bytes(4) > 100);
        assert_eq!(counters.record_bytes, bytes(4));
        assert_eq!(counters.next_ino, Ino(8));
        assert_eq!(counters.generation, Generation(5));
    }

    #[test]
    fn the_inode_number_of_a_dangling_name_is_not_allocated_again() {
        let mut tally = Tally::default();
        let key = keys::versioned(&keys::dirent(Ino::ROOT, 5, b"a"), Generation(1));
        let entry = DirentRecord {
            ino: Ino(40),
            kind: FileKind::Regular,
        };
        tally.add(Table::Dirent, &key, &entry.encode()).unwrap();
        assert_eq!(tally.counters(other_counters()).unwrap().next_ino, Ino(41));
    }

    #[test]
    fn the_last_inode_number_is_accepted_and_the_next_is_not() {
        let mut tally = Tally::default();
        let (key, value) = inode_row(Ino::END.0 - 1, 1);
        tally.add(Table::Inode, &key, &value).unwrap();
        let (key, value) = inode_row(Ino::END.0, 1);
        assert!(tally.add(Table::Inode, &key, &value).is_err());
        assert_eq!(tally.counters(other_counters()).unwrap().next_ino, Ino::END);
    }
}
