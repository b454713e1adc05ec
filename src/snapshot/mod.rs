//! Operations on kept views.
//!
//! A view itself is a row and a generation ([`crate::meta`]), and taking one costs nothing. The
//! operations here work from the rows of the table `change`, which say what was written when, so
//! that their cost depends on how much has changed and not on how much there is:
//!
//! - [`diff`]: differences between two views
//! - [`restore`]: restoring the live view from a kept one
//! - [`purge`]: dropping what only deleted views can see
//! - [`usage`]: how much only one view holds

pub mod diff;
pub mod purge;
pub mod restore;
pub mod usage;
