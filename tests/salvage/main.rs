//! What `bilayer salvage` takes out of whole and of damaged volumes, and the checkpoints of the
//! metadata that make it worth something.
#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "shared with tests/mounted; each uses its part of it"
)]
#[path = "../support/real.rs"]
mod real;
#[path = "../support/mod.rs"]
mod support;

mod checkpoints;
mod damage;
mod hostile;
mod mounted;
mod victim;
