//! Common programs, on a mount through the kernel: they behave as on any local filesystem, also
//! after the next mount, and after they or the daemon were killed.
//!
//! Needs root, /dev/fuse and the programs that each test names; tests that cannot run say so.
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
