//! Kept views in the filesystem: snapshots and images.
//!
//! | file | what it contains |
//! |---|---|
//! | `views` | taking, deleting, renaming and listing views |
//! | `directory` | `.snapshots` and `.images`, the directories that hold them |
//! | `restore`, `restore_path` | restoring the whole live view, or one path of it |
//! | `images` | deploying and exporting images |
//! | `error` | errors of all of these |

mod directory;
mod error;
mod images;
mod restore;
mod restore_path;
mod views;

pub use crate::meta::records::{Timespec, ViewKind};
pub use crate::snapshot::diff::{Change, ChangeKind};
pub use directory::SnapshotDir;
pub use error::{ReadOnlyBecause, ViewError};
pub use views::{DESCRIPTION_BYTES_MAX, VIEW_NAME_BYTES_MAX, ViewInfo, check_name};
