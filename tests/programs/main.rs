//! Programs that people use, on a mount through the kernel: what they do there is what they do on
//! any local filesystem, also after the next mount, and after they or the daemon were killed.
//!
//! Needs root, /dev/fuse and the programs that each test names; what cannot run says so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

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

use bilayer_test_support::{real, tree};
