//! What somebody who writes to the volume's directory can do while it is not mounted.
//!
//! Every page of every file of a small volume is flipped, zeroed, replaced by others, cut off and
//! taken away, and the volume is opened and read after each of it. What may come of it: the
//! contents that were stored, or an error. Never other contents, names that vanish without an
//! error, a panic that reaches the caller, or a volume that opens when it is another one.
//!
//! Older pages of the same place are authentic (`docs/THREAT-MODEL.md`): there the older contents
//! may come back too. The counts go to standard error.
#![allow(unreachable_pub, reason = "modules of one test program")]

#[path = "../support/mod.rs"]
mod support;

mod hostile;
mod matrix;
mod victim;
