//! The only module that may contain `unsafe` and raw `libc` calls.
//!
//! Everything here is a thin safe wrapper: arguments are checked or typed, results are
//! `io::Result`, and each `unsafe` block states why it is sound. There is no policy here.
#![allow(unsafe_code, reason = "the only module that may")]

pub mod backing;
pub mod clock;
pub mod deadline;
pub mod descriptors;
pub mod directory_identity;
pub mod files;
pub mod identity;
pub mod interrupt;
pub mod limits;
pub mod location;
pub mod memory;
pub mod mountinfo;
pub mod mounts;
pub mod owned;
pub mod probe;
pub mod process;
pub mod syslog;
pub mod terminal;
pub mod wipe;
