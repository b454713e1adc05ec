//! Programs that people use, on a mount through the kernel: what they do there is what they do on
//! any local filesystem, also after the next mount, and after they or the daemon were killed.
//!
//! Needs root, /dev/fuse and the programs that each test names; what cannot run says so.
#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "shared with tests/mounted; each uses its part of it"
)]
#[path = "../support/real.rs"]
mod real;
#[allow(
    dead_code,
    reason = "shared with tests/mounted; each uses its part of it"
)]
#[path = "../mounted/tree.rs"]
mod tree;

mod archives;
mod build;
mod disks;
mod fio;
mod git;
mod overlay;
mod postgres;
mod script;
mod sqlite;
mod tools;
mod trees;
