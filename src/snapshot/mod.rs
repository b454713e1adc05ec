//! Operations on kept views.
//!
//! A view itself is a row and a generation ([`crate::meta`]), and taking one costs nothing. The
//! operations here work from the rows of the table `change`, which record the keys that each
//! generation wrote. So their cost depends on how much has changed and not on the volume's size:
//!
//! - [`diff`]: differences between two views
//! - [`restore`]: restoring the live view from a kept one
//! - [`purge`]: dropping records that only deleted views can see
//! - [`usage`]: how much only one view holds

pub mod diff;
pub mod purge;
pub mod restore;
pub mod usage;
