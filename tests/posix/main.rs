//! Whether a mount behaves as ext4 does: one script runs in a directory of an ext4 filesystem and
//! on a mount, and must say the same, line for line. What differs for a reason is listed beside the
//! test that meets it.
//!
//! Needs root, /dev/fuse, mkfs.ext4, loop devices and python3; what cannot run says so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod control;
mod full;
mod lasting;
mod scripts;
mod space;

use bilayer_test_support::real;
