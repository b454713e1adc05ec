//! Newtypes for every id, number and index that crosses a module boundary.
//!
//! Invariants: absolute and relative numbers are never the same type. Random ids come from the
//! operating system's generator and are never derived from a counter, so that crashed, restored,
//! copied or cloned volumes do not mint the same id.

use std::fmt;

/// Random 128-bit identifiers.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Draws a fresh id from the operating system's generator.
            ///
            /// # Errors
            /// When the operating system provides no random bytes.
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
    /// Identifies a volume for as long as it exists.
    VolumeId
);
random_id!(
    /// Changes when an older copy of a volume is deliberately put back into use.
    IncarnationId
);
random_id!(
    /// Identifies a pair of DEKs.
    KeySetId
);
random_id!(
    /// Key domain of one sealed file: drawn when the file is created, never reused for writes.
    CryptoId
);
random_id!(
    /// Identifies one export of an image: keys wrapped for it open only in it.
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
    /// Raised by every snapshot; every metadata record carries the generation that wrote it.
    Generation, u64
);
number!(
    /// Number of a kept view, with 12 bits; 0 is the live view. Reused once it is free.
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
    /// Bits of a number. Together with the bits of a view they make 53, so that every program can
    /// store the inode number of stat(2) in a floating-point number, as JavaScript programs do.
    pub const BITS: u32 = 41;
    /// Upper bound: the last numbers are left for directories that have no record.
    pub const END: Self = Self((1 << Self::BITS) - 16);

    /// Checks a number; `None` if no file may have it.
    pub const fn checked(number: u64) -> Option<Self> {
        let ino = Self(number);
        if ino.is_valid() { Some(ino) } else { None }
    }

    /// True if a file may have this number.
    pub const fn is_valid(self) -> bool {
        self.0 >= Self::ROOT.0 && self.0 < Self::END.0
    }
}

impl FolderNumber {
    /// Upper bound of the numbers.
    pub const END: Self = Self(1 << 48);
}

impl Generation {
    /// The last generation; it is never exceeded.
    pub const MAX: Self = Self(1 << 62);
}

impl ViewId {
    /// The live view.
    pub const LIVE: Self = Self(0);
    /// The largest number, of 12 bits.
    pub const MAX: Self = Self((1 << (53 - Ino::BITS)) - 1);
}
