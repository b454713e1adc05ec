//! Failures around the daemon, with the built program and a mount through the kernel: the daemon is
//! killed, memory runs out, the disk is full, becomes read-only, is slow. Needs root and /dev/fuse;
//! tests that cannot run say so.
//!
//! A disk with I/O errors needs a device mapper, which few machines that run tests offer. Instead
//! the faulty store of `tests/simulator` fails every single call.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cgroup;
mod disk;
mod full;
mod kill;
mod memory;
mod no_space;
mod read_only;
mod slow;
mod surroundings;
mod writers;

use bilayer_test_support::real;
