//! The only module that may contain `unsafe` and raw `libc` calls.
//!
//! Everything here is a thin safe wrapper: arguments are checked or typed, results are
//! `io::Result`, and each `unsafe` block states why it is sound. There is no policy here.
#![allow(unsafe_code, reason = "the only module that may")]

pub(crate) mod backing;
pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod descriptors;
pub(crate) mod directory_identity;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod interrupt;
pub(crate) mod limits;
pub(crate) mod location;
pub(crate) mod memory;
pub(crate) mod mountinfo;
pub(crate) mod mounts;
pub(crate) mod owned;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod syslog;
pub(crate) mod terminal;
#[cfg(feature = "pkcs11")]
pub(crate) mod token_info;
pub(crate) mod wipe;
