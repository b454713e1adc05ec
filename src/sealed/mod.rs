//! Sealed files: random-access files made of pages, through which all bytes reach the disk.
//!
//! A page is a 64-byte header and its payload, sealed by both layers (byte layout in `page`).
//! There are two geometries, because contents and metadata need opposite guarantees (offsets in
//! `geometry`):
//!
//! | | contents ([`ContentsFile`]) | metadata ([`MetaFile`]) |
//! |---|---|---|
//! | payload, page, stride | 4032, 4096, 4096 bytes | 4096, 4160, 4608 bytes |
//! | a page is rewritten | in place, whole: old or new, both authentic | never after its commit |
//! | page 0 | as any other | two slots, written alternately |
//!
//! A copy of the metadata that is made page by page ([`PageCopy`]) has the geometry of metadata.
//!
//! Invariants:
//! - a file is written only by `run::SealedRun::write`, whose pages have been through `Plain` →
//!   `CustomerSealed` → `Sealed`, and by `run::VerifiedRun::write`, whose pages were sealed for the
//!   same object elsewhere; no other type can be written;
//! - every page is sealed under a fresh random nonce and the keys of its own segment;
//! - a page that does not open, for whatever reason, is an error that names the page and the layer
//!   that refused it, and no byte of it reaches the caller. A page of zeros does not open.

mod contents;
mod geometry;
mod keys;
mod log_once;
mod meta;
mod page;
mod page_bits;
mod page_copy;
mod range_lock;
mod run;
mod sealer;
#[cfg(test)]
mod tests;

use std::io;

pub use contents::{ContentsFile, OldPlaintext};
pub use geometry::{META_PAYLOAD_BYTES, META_STRIDE_BYTES, PAGE_BYTES, PAYLOAD_BYTES};
pub use log_once::LogOnce;
pub use meta::{DurableState, MetaFile, SlotState};
pub use page_bits::PageBits;
pub use page_copy::PageCopy;
pub use range_lock::PageGuard;
pub use sealer::PageSealer;

use crate::errno::Errno;
use crate::ids::PageIndex;
use crate::layers::DerivationError;

/// The check that refused a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The header: reserved bytes are not zero, it names another key set than the file's, or page 0
    /// belongs to another kind of file.
    Header,
    /// The tag of the infrastructure layer.
    Outer,
    /// The tag of the customer layer.
    Inner,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "its header",
            Self::Outer => "the infrastructure layer",
            Self::Inner => "the customer layer",
        })
    }
}

/// A sealed file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The backing store failed.
    #[error("the backing store failed: {0}")]
    Io(#[from] io::Error),
    /// A page exists but is not the one that was written.
    #[error("page {page} was refused by {layer}")]
    Authentication {
        /// Index of the page.
        page: PageIndex,
        /// The check that failed.
        layer: Refusal,
    },
    /// The file ends before or within a page that should exist.
    #[error("the file ends before page {page} does")]
    ShortRead {
        /// Index of the page.
        page: PageIndex,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system has no random bytes for nonces: {0}")]
    Nonce(io::Error),
    /// Keys could not be derived.
    #[error(transparent)]
    Keys(#[from] DerivationError),
    /// A cipher refused to seal.
    #[error("page {page} could not be sealed")]
    Cipher {
        /// Index of the page.
        page: PageIndex,
    },
    /// The offset or length exceeds the largest sealed file.
    #[error("beyond the largest sealed file")]
    OutOfRange,
    /// The caller's lock belongs to another file, does not cover the pages, or is only shared.
    #[error("the pages are not locked for this")]
    NotLocked,
}

impl SealedError {
    /// The error number that the caller of the filesystem gets.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io(error) => Errno::from_backing(error),
            Self::OutOfRange => Errno::EFBIG,
            _ => Errno::EIO,
        }
    }

    /// The page concerned, if any.
    pub const fn page(&self) -> Option<PageIndex> {
        match self {
            Self::Authentication { page, .. }
            | Self::ShortRead { page }
            | Self::Cipher { page } => Some(*page),
            Self::Io(_) | Self::Nonce(_) | Self::Keys(_) | Self::OutOfRange | Self::NotLocked => {
                None
            }
        }
    }
}

impl From<SealedError> for io::Error {
    fn from(error: SealedError) -> Self {
        match error {
            SealedError::Io(error) => error,
            SealedError::ShortRead { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
            SealedError::Authentication { .. } => Self::new(io::ErrorKind::InvalidData, error),
            SealedError::OutOfRange => Self::new(io::ErrorKind::InvalidInput, error),
            _ => Self::other(error),
        }
    }
}
