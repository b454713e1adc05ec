//! The stream format of an exported image: its bytes and their order, independent of where they
//! come from.
//!
//! ```text
//! bilayer-export 2\n                                  the format
//! {"features":[],"export":…}\n                        header: one line of JSON ([`header`])
//! <64 lower-case hexadecimal digits>\n                HMAC-SHA-256 of the bytes of both lines
//! "M" | strides 8 | sealed file `meta`                strides of 4608 bytes
//! "O" | folder 8 | object id 16 | pages 4 | pages     each page 4096 bytes; any number of these
//! "E" | objects 8 | pages 8 | bytes 8 | MAC 32        HMAC-SHA-256 of the SHA-256 of all before it
//! ```
//!
//! Numbers little-endian. `meta` says which objects follow, in which order, and which of their
//! pages. Every page of either is sealed by both layers under one key set, which was drawn for this
//! stream. The keys of the MACs need both its DEKs ([`crate::layers::export`]).
//!
//! Invariants: no number in the stream determines how much memory is allocated; a reader accepts
//! the sections in this order only, and nothing before or after them. Only [`StreamReader::end`]
//! authenticates the whole: what was read before must be discarded unless it succeeds.

mod header;
mod read;
mod write;

use std::io;

use crate::keys::error::{kind_of_io, usual_hint};
use crate::keys::{ErrorKind, KeyError};
use crate::sealed::META_STRIDE_BYTES;

pub use header::{
    Counts, CustomerKeyClaim, ExportHeader, ExportProvenance, TransportedKeySet, UnverifiedExport,
};
pub use read::StreamReader;
pub use write::StreamWriter;

/// The format version that is written, and the only one that is read. Streams of format 1 contained
/// key sets of the volume that they came from.
pub const STREAM_VERSION: u32 = 2;
/// Prefix of the first line.
const FIRST_WORD: &str = "bilayer-export ";
/// Longest header line, in bytes.
pub const MAX_HEADER_BYTES: usize = 256 * 1024;

const TAG_META: u8 = b'M';
const TAG_OBJECT: u8 = b'O';
const TAG_END: u8 = b'E';

/// Bytes of one stride of `meta`.
const STRIDE: u64 = META_STRIDE_BYTES as u64;

/// A stream that cannot be written, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The data does not begin like a stream.
    #[error("this is no exported image")]
    NotAnExport,
    /// It was written by a newer program.
    #[error(
        "the image was exported by a newer bilayer (format {format}); this one reads {supported}"
    )]
    NewerFormat {
        /// Format of the stream.
        format: u64,
        /// Newest format that is read.
        supported: u32,
    },
    /// It was written by an older program.
    #[error(
        "the image was exported by an older bilayer (format {format}); this one reads {supported}"
    )]
    OlderFormat {
        /// Format of the stream.
        format: u64,
        /// The format that is read.
        supported: u32,
    },
    /// The header names unknown features.
    #[error("the export needs features that this bilayer does not have: {0}")]
    UnknownFeatures(String),
    /// The header cannot be parsed.
    #[error("the export's header is not valid: {0}")]
    HeaderInvalid(String),
    /// The header does not authenticate.
    #[error("the export's header does not authenticate: it is not the one that was written")]
    HeaderTampered,
    /// The stream ends too early.
    #[error("the export is truncated within {within}")]
    Truncated {
        /// What was being read.
        within: &'static str,
    },
    /// A section does not match what must follow.
    #[error("the export is damaged: {actual} where {wanted} should follow")]
    OutOfOrder {
        /// The expected section.
        wanted: String,
        /// The section that follows.
        actual: String,
    },
    /// The end mark does not authenticate the stream.
    #[error("the export does not authenticate as a whole: its {what}")]
    Tampered {
        /// What does not match.
        what: &'static str,
    },
    /// Data follows the end.
    #[error("the export is damaged: something follows its end")]
    Trailing,
    /// A key is not available or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The image is under a customer key, and none was given.
    #[error("the image needs its customer key")]
    CustomerKeyNeeded {
        /// The URI of the key that the unverified header claims.
        claimed: String,
    },
    /// A customer key was given for an image that is not under one.
    #[error("the export says that it is platform-managed, and its customer key was named")]
    Downgraded,
    /// The given customer key is not the image's.
    #[error(
        "the customer key {given} (fingerprint {fingerprint}) is not that of the image ({wanted})"
    )]
    WrongCustomerKey {
        /// The given key.
        given: String,
        /// Its fingerprint.
        fingerprint: String,
        /// The fingerprint that the unverified header names.
        wanted: String,
    },
    /// Reading or writing the stream failed.
    #[error("{doing}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl StreamError {
    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAnExport | Self::HeaderInvalid(_) => ErrorKind::HeaderInvalid,
            Self::OlderFormat { .. } => ErrorKind::HeaderInvalid,
            Self::NewerFormat { .. } | Self::UnknownFeatures(_) => ErrorKind::NewerFormat,
            Self::HeaderTampered
            | Self::Truncated { .. }
            | Self::OutOfOrder { .. }
            | Self::Tampered { .. }
            | Self::Downgraded
            | Self::Trailing => ErrorKind::Tampered,
            Self::Key(error) => error.kind(),
            Self::CustomerKeyNeeded { .. } => ErrorKind::KeyUnavailable,
            Self::WrongCustomerKey { .. } => ErrorKind::WrongKey,
            Self::Io { source, .. } => kind_of_io(source),
        }
    }

    /// What the user can do next, if anything.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotAnExport => "export an image: bilayer image export VOLUME NAME FILE",
            Self::NewerFormat { .. } | Self::UnknownFeatures(_) => "upgrade bilayer",
            Self::OlderFormat { .. } => "export the image again, with this version",
            Self::HeaderInvalid(_)
            | Self::HeaderTampered
            | Self::Truncated { .. }
            | Self::OutOfOrder { .. }
            | Self::Tampered { .. }
            | Self::Trailing => "fetch it again, or export the image again",
            Self::Downgraded => {
                "another image may have been put in its place; if it is the right one, leave the \
                 customer key out"
            }
            Self::CustomerKeyNeeded { claimed } => {
                return Some(format!(
                    "pass it: --customer-key URI (unverified: the export names {claimed:?})"
                ));
            }
            Self::WrongCustomerKey { .. } => "name the right key: --customer-key URI",
            Self::Key(error) => return error.hint().map(str::to_owned),
            Self::Io { .. } if self.kind() == ErrorKind::NoSpace => {
                "make space on the filesystem that it is written to"
            }
            Self::Io { .. } => usual_hint(ErrorKind::Io),
        };
        Some(text.to_owned())
    }

    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

fn invalid(why: impl Into<String>) -> StreamError {
    StreamError::HeaderInvalid(why.into())
}

#[cfg(test)]
mod tests;
