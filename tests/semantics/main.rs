//! POSIX semantics of the filesystem, without a mount.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod attributes;
mod bounds;
mod contents;
mod directories;
mod extremes;
mod flattening;
mod giving_back;
mod holes;
mod lifetime;
mod names;
mod races;
mod remount;
mod rename;
mod reservations;
mod restores;
mod sharing;
mod snapshots;
mod syncing;

use bilayer_test_support as support;
