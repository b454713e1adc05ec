//! POSIX semantics of the filesystem, without a mount.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod smoke;
