//! Making an empty volume.

use std::error::Error;
use std::sync::Arc;

use super::error::VolumeError;
use super::found::{Founding, found};
use super::{CreateOptions, FreshVolume};
use crate::audit::Record;
use crate::ids::VolumeId;
use crate::keys::customer;
use crate::store::Store;

pub use super::place::refuse_occupied_directory;

/// What writes the metadata database of a new volume, and syncs it.
pub type FormatFn<'a> = dyn FnMut(&FreshVolume) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

/// Makes a volume in an empty directory. `format` writes and syncs `meta`.
///
/// # Errors
/// When the directory is not empty, a key cannot be had, or something cannot be written. What was
/// made is then taken away again.
pub fn create(
    store: Arc<dyn Store>,
    options: &CreateOptions,
    format: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    // Before anything is written, since this may ask for a passphrase and be refused.
    let customer = options
        .customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(VolumeError::from)
        .inspect_err(|error| {
            Record::new("create-volume")
                .with("kind", error.kind().name())
                .refused(error);
        })?;
    let founding = Founding {
        action: "create-volume",
        customer_key: customer.as_deref(),
        keystore: &options.keystore,
        size_bytes: options.size_bytes,
        inherited: None,
    };
    found(store, &founding, format)
}
