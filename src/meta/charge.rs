//! What the records that the live view sees take of the volume's room.
//!
//! A file's pages are counted one by one. Everything else of it lies in records: its inode, its
//! names, its extended attributes, the target of a symbolic link, and contents so short that they
//! are inline. Each such record counts its key and value as they are encoded and [`ROW_BYTES`]
//! more; but that of an inode as if it had all fields, so that none but the target of a symbolic
//! link changes what it counts. It is the same number whatever the tree of the database looks like,
//! so that it can be computed again from the records alone. Not counted are extents that name
//! objects, whose pages are, and the inode of the root directory, which no volume is without.

use super::keys::{self, Table};
use super::records::{TOMBSTONE, charged_bytes, is_inline};
use crate::ids::Ino;

/// What a record takes beside its key and value: its version, its place in the database's pages,
/// and the part of those that is empty.
const ROW_BYTES: u64 = 64;

/// Bytes that a record counts, which is a version of `logical`.
pub fn record_bytes(table: Table, logical: &[u8], value: &[u8]) -> u64 {
    let counts = match table {
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
    match counts {
        true => ROW_BYTES + (logical.len() + value_bytes) as u64,
        false => 0,
    }
}
