//! Keys of the metadata tables.
//!
//! All numbers are big-endian, so that the order of bytes is the order of numbers. In the versioned
//! tables every key ends in the generation (8 bytes) that wrote the record; the part before it is
//! the *logical key*. Names contain neither NUL nor `/`, so the NUL after a name prevents one
//! logical key from being a prefix of another.
//!
//! | table | logical key | versioned | value ([`super::records`]) |
//! |---|---|---|---|
//! | `inode` | ino (8) | yes | inode |
//! | `dirent` | parent ino (8), position (4), name, NUL | yes | ino (8), kind (1) |
//! | `xattr` | ino (8), name, NUL | yes | the value |
//! | `extent` | ino (8), chunk (4) | yes | parts, or the bytes of a small file |
//! | `view` | view id (2) | no | a kept view |
//! | `change` | generation (8), table (1), logical key | no | one byte, 1: first write in it |
//! | `trim` | ino (8), chunk (4) | no | one byte, 1: objects may hold unneeded pages |
//! | `orphan` | ino (8) | no | one byte, 1: unlinked, still in use |
//! | `garbage` | number (8) | no | folder (8), object id (16): to be unlinked |
//! | `counters` | empty | no | counters |
//! | `counters` | `audit` | no | the head of the audit: chain (16), count (8), hash (32) |
//!
//! The *name hash* is derived from the first 4 bytes of SHA-256(hash key ‖ name), where the hash
//! key is 16 random bytes of the volume ([`super::records::Counters`]); see [`name_hash`]. An
//! entry's *position* is its name's hash, or the first number after it that no other entry of the
//! directory uses. It does not change when other entries come and go, as `telldir` and `seekdir`
//! require, and it fits into the 31 bits that programs with a signed 32-bit `off_t` can hold. The
//! secret key prevents users from constructing colliding names.

use sha2::{Digest, Sha256};

use crate::ids::{ChunkIndex, Generation, Ino, ViewId};

/// Upper bound of name hashes; together with the largest offset they fit into 31 bits.
const NAME_HASHES: u32 = (1 << 31) - 1024;
/// The position of an entry is less than this after its name's hash.
pub const PROBE_LIMIT: u32 = 64;

/// The hash of a name: its position unless another entry occupies it.
pub fn name_hash(key: &[u8; 16], name: &[u8]) -> u32 {
    let digest = Sha256::new()
        .chain_update(key)
        .chain_update(name)
        .finalize();
    let mut first = [0; 4];
    first.copy_from_slice(&digest[..4]);
    // The high half of the product is below the second factor.
    ((u64::from(u32::from_be_bytes(first)) * u64::from(NAME_HASHES)) >> 32) as u32
}

/// The tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[allow(
    missing_docs,
    reason = "the table in the module's header describes them"
)]
pub enum Table {
    Inode,
    Dirent,
    Xattr,
    Extent,
    View,
    Orphan,
    Garbage,
    Counters,
    Change,
    Trim,
}

impl Table {
    /// All of them, in the order of [`Table::index`].
    pub const ALL: [Self; 10] = [
        Self::Inode,
        Self::Dirent,
        Self::Xattr,
        Self::Extent,
        Self::View,
        Self::Orphan,
        Self::Garbage,
        Self::Counters,
        Self::Change,
        Self::Trim,
    ];

    /// Position in [`Table::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The table's name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inode => "inode",
            Self::Dirent => "dirent",
            Self::Xattr => "xattr",
            Self::Extent => "extent",
            Self::View => "view",
            Self::Orphan => "orphan",
            Self::Garbage => "garbage",
            Self::Counters => "counters",
            Self::Change => "change",
            Self::Trim => "trim",
        }
    }
}

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Bytes of the generation at the end of a versioned key.
pub(super) const GENERATION_BYTES: usize = 8;

/// Logical key of an inode.
pub fn inode(ino: Ino) -> Vec<u8> {
    concat(&[&ino.0.to_be_bytes()])
}

/// Logical key of a directory entry.
pub fn dirent(parent: Ino, position: u32, name: &[u8]) -> Vec<u8> {
    concat(&[&parent.0.to_be_bytes(), &position.to_be_bytes(), name, &[0]])
}

/// The first logical key of a directory's entries from that position on.
pub fn dirent_from(parent: Ino, position: u32) -> Vec<u8> {
    concat(&[&parent.0.to_be_bytes(), &position.to_be_bytes()])
}

/// The position and name in a directory entry's logical key.
pub fn dirent_parts(logical: &[u8]) -> Option<(u32, &[u8])> {
    let (_, rest) = logical.split_first_chunk::<8>()?;
    let (position, rest) = rest.split_first_chunk::<4>()?;
    let (0, name) = rest.split_last()? else {
        return None;
    };
    Some((u32::from_be_bytes(*position), name))
}

/// Logical key of an extended attribute.
pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    concat(&[&ino.0.to_be_bytes(), name, &[0]])
}

/// The name in an extended attribute's logical key.
pub fn xattr_name(logical: &[u8]) -> Option<&[u8]> {
    let (0, name) = logical.get(8..)?.split_last()? else {
        return None;
    };
    Some(name)
}

/// Logical key of an extent.
pub fn extent(ino: Ino, chunk: ChunkIndex) -> Vec<u8> {
    concat(&[&ino.0.to_be_bytes(), &chunk.0.to_be_bytes()])
}

/// Inode and chunk of an extent's logical key.
pub fn extent_parts(logical: &[u8]) -> Option<(Ino, ChunkIndex)> {
    let (ino, rest) = logical.split_first_chunk::<8>()?;
    let (chunk, []) = rest.split_first_chunk::<4>()? else {
        return None;
    };
    Some((
        Ino(u64::from_be_bytes(*ino)),
        ChunkIndex(u32::from_be_bytes(*chunk)),
    ))
}

/// Key of a view.
pub fn view(id: ViewId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

/// The view of a view's key; the live view has none.
pub fn view_of(key: &[u8]) -> Option<ViewId> {
    let id = ViewId(u16::from_be_bytes(key.try_into().ok()?));
    (id != ViewId::LIVE && id <= ViewId::MAX).then_some(id)
}

/// Key of a `change` row: the record was first written in that generation.
pub fn change(generation: Generation, table: Table, logical: &[u8]) -> Vec<u8> {
    let table = table.index() as u8;
    concat(&[&generation.0.to_be_bytes(), &[table], logical])
}

/// Generation, table and logical key of a `change` row's key.
pub fn change_parts(key: &[u8]) -> Option<(Generation, Table, &[u8])> {
    let (generation, rest) = key.split_first_chunk::<8>()?;
    let (table, logical) = rest.split_first()?;
    let table = *Table::ALL.get(usize::from(*table))?;
    let versioned = matches!(
        table,
        Table::Inode | Table::Dirent | Table::Xattr | Table::Extent
    );
    versioned.then_some((Generation(u64::from_be_bytes(*generation)), table, logical))
}

/// The inode that a logical key belongs to; for a directory entry its directory.
pub fn ino_of(logical: &[u8]) -> Option<Ino> {
    let (ino, _) = logical.split_first_chunk::<8>()?;
    Some(Ino(u64::from_be_bytes(*ino)))
}

/// A number as an unversioned key.
pub fn number(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// The number in an unversioned key.
pub fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// Upper bound of all keys of inode `ino` in a versioned table.
pub fn after_ino(ino: Ino) -> Vec<u8> {
    ino.0.saturating_add(1).to_be_bytes().to_vec()
}

/// The physical key: logical key and generation.
pub fn versioned(logical: &[u8], generation: Generation) -> Vec<u8> {
    concat(&[logical, &generation.0.to_be_bytes()])
}

/// A key of a versioned table: one version of a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VersionedKey<'a> {
    /// The logical key.
    pub logical: &'a [u8],
    /// The generation that wrote the version.
    pub generation: Generation,
}

impl<'a> VersionedKey<'a> {
    /// The physical key.
    pub fn encode(self) -> Vec<u8> {
        versioned(self.logical, self.generation)
    }

    /// Splits a physical key; `None` if it is too short.
    pub fn decode(physical: &'a [u8]) -> Option<Self> {
        let (logical, generation) = physical.split_last_chunk::<GENERATION_BYTES>()?;
        Some(Self {
            logical,
            generation: Generation(u64::from_be_bytes(*generation)),
        })
    }
}

fn concat(pieces: &[&[u8]]) -> Vec<u8> {
    let len = pieces.iter().map(|piece| piece.len()).sum::<usize>();
    let mut key = Vec::with_capacity(len + GENERATION_BYTES);
    for piece in pieces {
        key.extend_from_slice(piece);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_logical_key_is_a_prefix_of_another() {
        let a = dirent(Ino(7), 5, b"a");
        let ab = dirent(Ino(7), 5, b"ab");
        assert!(!ab.starts_with(&a));
        assert!(versioned(&a, Generation(u64::MAX)) < versioned(&ab, Generation(0)));
    }

    #[test]
    fn keys_are_split_into_their_parts() {
        assert_eq!(dirent_parts(&dirent(Ino(7), 5, b"a")), Some((5, &b"a"[..])));
        assert_eq!(xattr_name(&xattr(Ino(7), b"user.x")), Some(&b"user.x"[..]));
        assert_eq!(
            extent_parts(&extent(Ino(7), ChunkIndex(3))),
            Some((Ino(7), ChunkIndex(3)))
        );
        let key = versioned(b"k", Generation(9));
        let version = VersionedKey {
            logical: b"k",
            generation: Generation(9),
        };
        assert_eq!(VersionedKey::decode(&key), Some(version));
        assert_eq!(version.encode(), key);
        assert_eq!(dirent_parts(b"short"), None);
        assert_eq!(extent_parts(&[0; 13]), None);
    }
}
