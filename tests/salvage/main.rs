//! What `bilayer salvage` extracts from intact and damaged volumes, and the checkpoints of the
//! metadata that it relies on.
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
