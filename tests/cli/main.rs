//! The command line as people meet it: what goes wrong ends in one clear line, a hint where there is
//! something to do, and the documented exit code; and the volume is none the worse for it.
#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "shared with tests/mounted; each uses its part of it"
)]
#[path = "../support/real.rs"]
mod real;

mod failures;
mod secrets;
