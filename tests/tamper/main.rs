//! What somebody who writes to the volume's directory can do while it is not mounted.
//!
//! Every page of every file of small volumes is flipped, zeroed, replaced by others, cut off and
//! taken away, every bit of the superblock is flipped, and the volume is opened and read after each
//! of it, piece by piece. What may come of it: the contents that were stored, or an error that the
//! log explains, naming the file; and everything that was not changed reads as it was stored. Never
//! other contents, names that vanish without an error, a panic that reaches the caller, or no
//! answer.
//!
//! Older pages of the same place are authentic (`docs/THREAT-MODEL.md`): there older contents may
//! come out too, and are counted by themselves.
//!
//! The counts go to standard error. `BILAYER_TAMPER_FULL=1` tries every bit of every header and
//! every byte of every page.
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

/// True when more is wanted than a quick run can try.
fn is_full() -> bool {
    std::env::var_os("BILAYER_TAMPER_FULL").is_some_and(|value| value == "1")
}
