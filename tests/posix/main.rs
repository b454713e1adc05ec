//! Whether a mount behaves as ext4 does: one script runs in a directory of an ext4 filesystem and
//! on a mount, and its output must be identical, line for line. Intended differences are listed
//! beside the test.
//!
//! Needs root, /dev/fuse, mkfs.ext4, loop devices and python3; tests that cannot run say so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod control;
mod full;
mod lasting;
mod scripts;
mod space;

use bilayer_test_support::real;
