//! Attacks, each refused.
//!
//! Each file has one attacker: what they hold, what they do with it, and what stops them. The table
//! in `docs/ATTACKS.md` names every test of this folder.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod daemon;
mod descriptors;
mod foreign;
mod foreign_set;
mod hostile_image;
mod impostor;
mod memory;
mod other_holder;
mod read_only_set;
mod renamed;
mod salvage_out;

use bilayer_test_support as support;
use bilayer_test_support::{machine, real};
