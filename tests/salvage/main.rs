//! What `bilayer salvage` takes out of whole and of damaged volumes, and the checkpoints of the
//! metadata that make it worth something.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod damage;
mod hostile;
mod mounted;
mod victim;

use bilayer_test_support as support;
use bilayer_test_support::real;
