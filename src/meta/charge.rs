//! The share of the volume's space limit that the records of the live view use.
//!
//! The pages of a file are counted one by one. Everything else is in records: its inode, its names,
//! its extended attributes, the target of a symbolic link, and inline contents. Each such record is
//! charged for its encoded key and value plus `ROW_BYTES`. The inode's record is charged as if it
//! had all fields, so that only the target of a symbolic link affects its charge. The charge does
//! not depend on the shape of the database's tree, so it can be recomputed from the records alone.
//! Not charged are extents that reference objects, because their pages are counted, and the inode
//! of the root directory, which every volume has.

use super::keys::{self, Table};
use super::records::{TOMBSTONE, charged_bytes, is_inline};
use crate::ids::Ino;

/// The overhead of a record: its version, its share of the database's pages, and their empty space.
const ROW_BYTES: u64 = 64;

/// The charge for a record with this value, which is a version of `logical`.
pub fn record_bytes(table: Table, logical: &[u8], value: &[u8]) -> u64 {
    let is_charged = match table {
        _ if value == TOMBSTONE => false,
        Table::Inode => keys::ino_of(logical) != Some(Ino::ROOT),
        Table::Dirent | Table::Xattr => true,
        Table::Extent => is_inline(value),
        _ => false,
    };
    let value_bytes = match table {
        Table::Inode => charged_bytes(value),
        _ => value.len(),
    };
    match is_charged {
        true => ROW_BYTES + (logical.len() + value_bytes) as u64,
        false => 0,
    }
}
