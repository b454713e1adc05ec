//! What kept views hold, and what becomes of it.
//!
//! A view itself is a row and a generation ([`crate::meta`]); taking one costs nothing. Here is
//! what comes afterwards, all of it from the rows of `change`, which say what was written when, so
//! that it costs as much as has changed and not as much as there is:
//!
//! - [`diff`]: what differs between two
//! - [`restore`]: taking the live view back to one
//! - [`purge`]: dropping what only deleted views saw
//! - [`usage`]: how much a view holds alone

pub mod diff;
pub mod purge;
pub mod restore;
pub mod usage;
