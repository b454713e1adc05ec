//! What `bilayer salvage` extracts from intact and damaged volumes, and the checkpoints of the
//! metadata that it relies on.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod checkpoints;
mod damage;
mod hostile;
mod mounted;
mod victim;

use bilayer_test_support as support;
use bilayer_test_support::real;
