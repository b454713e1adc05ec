//! The filesystem as users see it: the built program, a mount through the kernel, mount(8), cp,
//! rsync, diff, grep. Needs root, /dev/fuse and the tools that each test names; tests that cannot
//! run say so.
//!
//! The helpers of mount(8) are programs of another package: `cargo build --workspace` builds them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod copy;
mod errors;
mod files;
mod foreign;
mod fstab;
mod helpers;
mod noise;
mod odd_names;
mod permissions;
mod read_only_medium;
mod remount;
mod snapshot_dir;
mod snapshots;
mod stacked;
mod state;
mod transcript;
mod umount;
mod users;

use bilayer_test_support::{machine, namespace, real, tree};
