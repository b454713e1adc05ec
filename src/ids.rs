//! Newtypes for every id, number and index that crosses a module boundary.
//!
//! Invariants: an absolute and a relative number are never the same type; random ids come from
//! the operating system's generator and are never derived from a counter, so that crashed,
//! restored, copied or cloned volumes do not mint the same one.

use std::fmt;

/// Random 128-bit identifiers.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Draws a fresh id from the operating system.
            pub fn random() -> std::io::Result<Self> {
                let mut bytes = [0u8; 16];
                getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
                Ok(Self(bytes))
            }

            /// Parses exactly 32 lower-case hexadecimal digits.
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0u8; 16];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                (hex::encode(bytes) == text).then_some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

random_id!(
    /// Names a volume for its whole life.
    VolumeId
);
random_id!(
    /// Changes when an older copy of a volume is knowingly taken back into use.
    IncarnationId
);
random_id!(
    /// Names a pair of DEKs.
    KeySetId
);
random_id!(
    /// Domain of one sealed file's keys: drawn when the object is made, never reused for writes.
    CryptoId
);
random_id!(
    /// Names one export of an image: what is wrapped for it opens in it alone.
    ExportId
);
random_id!(
    /// Name of an object's file.
    ObjectId
);

/// Plain numbers.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Number of a key set within its volume, counted from 1.
    Epoch, u32
);
number!(
    /// Raised by every snapshot; every metadata record carries the one that wrote it.
    Generation, u64
);
number!(
    /// Number of a kept view, of 12 bits; 0 is the live one. Used again once it is free.
    ViewId, u16
);
number!(
    /// Inode number within a volume. The root is 1; 41 bits.
    Ino, u64
);
number!(
    /// Commit number under which a page was sealed.
    Sequence, u64
);
number!(
    /// Index of a page within its sealed file.
    PageIndex, u64
);
number!(
    /// Index of a 4 MiB chunk within its file.
    ChunkIndex, u32
);
number!(
    /// Number of a folder under `objects/`.
    FolderNumber, u64
);

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);
    /// Bits of a number. Together with those of a view they are 53, so that every program can hold
    /// what stat(2) shows in a floating-point number, as those in JavaScript do.
    pub const BITS: u32 = 41;
    /// The first number that no file has: the last ones are left for directories that have no record.
    pub const END: Self = Self((1 << Self::BITS) - 16);

    /// The number, where a file may have it.
    pub const fn checked(number: u64) -> Option<Self> {
        let ino = Self(number);
        if ino.is_valid() { Some(ino) } else { None }
    }

    /// True for a number that a file may have.
    pub const fn is_valid(self) -> bool {
        self.0 >= Self::ROOT.0 && self.0 < Self::END.0
    }
}

impl FolderNumber {
    /// The first number that no folder has.
    pub const END: Self = Self(1 << 48);
}

impl Generation {
    /// The last one: it is never raised beyond.
    pub const MAX: Self = Self(1 << 62);
}

impl ViewId {
    /// "Now".
    pub const LIVE: Self = Self(0);
    /// The largest number, of 12 bits.
    pub const MAX: Self = Self((1 << (53 - Ino::BITS)) - 1);
}
