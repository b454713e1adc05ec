//! POSIX semantics.

pub mod types;
