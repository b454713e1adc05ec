//! Duplicates a file within one store.

use std::any::Any;
use std::io;

use super::directory::DirectoryStore;
use super::{Store, StorePath, adopt};

/// Duplicates a file within a store. The copy shares the blocks of the original until one of the
/// two is written, if the backing filesystem supports that. Neither its name nor its bytes are
/// durable before a sync.
pub(crate) fn duplicate(store: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<()> {
    if let Some(directory) = (store as &dyn Any).downcast_ref::<DirectoryStore>()
        && directory.reflink_from(directory, from, to).is_ok()
    {
        return Ok(());
    }
    adopt::copy(store, from, store, to)
}
