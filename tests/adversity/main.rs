//! What goes wrong around the daemon, with the built program and a mount through the kernel: it is
//! killed, memory runs out, the disk is full, becomes read-only, is slow. Needs root and /dev/fuse;
//! what cannot run says so.
//!
//! A disk that gives I/O errors takes a device mapper, which few machines that run tests offer: the
//! faulty store of `tests/simulator` fails every single call instead.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cgroup;
mod disk;
mod full;
mod kill;
mod memory;
mod no_room;
mod read_only;
mod slow;
mod surroundings;
mod writers;

use bilayer_test_support::real;
