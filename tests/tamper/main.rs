//! Changes by somebody who can write to the volume's directory while it is not mounted.
//!
//! Every page of every file of small volumes is flipped, zeroed, replaced by others, truncated and
//! removed, and every bit of the superblock is flipped. After each change the volume is opened and
//! read, piece by piece. Permitted are the stored contents, or an error that the log explains and
//! that names the file; everything that was not changed must read as it was stored. Never permitted
//! are other contents, names that vanish without an error, a panic that reaches the caller, or no
//! answer.
//!
//! Older pages of the same position are authentic (`docs/THREAT-MODEL.md`): there, older contents
//! are permitted too, and are counted separately.
//!
//! The counts are printed to standard error. `BILAYER_TAMPER_FULL=1` tries every bit of every
//! header and every byte of every page.
#![allow(unreachable_pub, reason = "modules of one test program")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod authority;
mod case;
mod changes;
mod checked;
mod hostile;
mod log;
mod matrix;
mod mounted;
mod pieces;
mod table;
mod victim;

use bilayer_test_support as support;
use bilayer_test_support::real;

/// True if more is to be tried than in a quick run.
fn is_full() -> bool {
    std::env::var_os("BILAYER_TAMPER_FULL").is_some_and(|value| value == "1")
}
