//! Making a volume.
//!
//! Order of writes: `lock` (taken at once), `objects/`, then the metadata database by the caller,
//! all of it synced; `volume.json` last and atomically; then the keystore's record. A crash before
//! `volume.json` leaves a directory that is no volume. A failure takes away what was made.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::VolumeError;
use super::header::{HeaderContents, KeyMode, KeySetState, VerifiedHeader, WrappedKeySet};
use super::superblock::replace_header;
use super::{
    CreateOptions, FreshVolume, HEADER_NAME, LOCK_NAME, META_NAME, OBJECTS_NAME, header_path, lock,
    lock_path, meta_path, objects_path,
};
use crate::ids::{CryptoId, Epoch, IncarnationId, Sequence, VolumeId};
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::wrap::{self, WrapContext, WrapRecord};
use crate::keys::{PlatformKeystore, VolumeRecord};
use crate::layers::{KeyRing, KeySet};
use crate::store::{EntryKind, OpenMode, Store, StoreLock, StorePath};

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
        .transpose()?;
    refuse_occupied(&*store)?;
    let lock = take_place(&*store)?;
    let made = fill(&store, options, customer.as_deref(), format);
    if let Err(error) = &made {
        take_away(&*store);
        tracing::warn!(
            target: "audit",
            action = "create-volume",
            outcome = "refused",
            kind = ?error.kind(),
            reason = %error,
        );
    }
    drop(lock);
    made
}

/// Refuses a directory that has anything in it but what a fresh filesystem has (`lost+found`).
/// For directories of the backing filesystem: a store does not see names that are not its own.
///
/// # Errors
/// [`VolumeError::Occupied`].
pub fn refuse_occupied_directory(path: &Path) -> Result<(), VolumeError> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(VolumeError::io("cannot list the directory"))?,
    };
    // Of everything that may be there, this says most.
    if path.join(HEADER_NAME).exists() {
        return Err(VolumeError::Occupied("a volume already".to_owned()));
    }
    for entry in entries {
        let name = entry
            .map_err(VolumeError::io("cannot list the directory"))?
            .file_name();
        if name != "lost+found" {
            return Err(VolumeError::Occupied(format!("{name:?} in it")));
        }
    }
    Ok(())
}

fn refuse_occupied(store: &dyn Store) -> Result<(), VolumeError> {
    let entries = store
        .list(&StorePath::root())
        .map_err(VolumeError::io("cannot list the directory"))?;
    match entries.into_iter().next() {
        Some((name, _)) => Err(VolumeError::Occupied(format!("{name:?} in it"))),
        None => Ok(()),
    }
}

/// Makes and takes the lock: whoever makes it makes the volume.
fn take_place(store: &dyn Store) -> Result<Box<dyn StoreLock>, VolumeError> {
    match store.open(&lock_path(), OpenMode::CreateNew) {
        Ok(_) => lock::acquire_new(store).inspect_err(|_| {
            let _ = store.unlink(&lock_path());
        }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(VolumeError::Occupied(format!("{LOCK_NAME:?} in it")))
        }
        Err(error) => Err(VolumeError::io("cannot make the lock file")(error)),
    }
}

fn fill(
    store: &Arc<dyn Store>,
    options: &CreateOptions,
    customer: Option<&dyn CustomerKeyProvider>,
    format: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    store
        .create_dir(&objects_path())
        .map_err(VolumeError::io("cannot make objects/"))?;
    // Only now: a keystore inside this volume is told by `lock` and `objects/`.
    let keystore = PlatformKeystore::open_or_create(&options.keystore)?;
    let volume = VolumeId::random().map_err(KeyError::random)?;
    let incarnation = IncarnationId::random().map_err(KeyError::random)?;
    let meta_crypto = CryptoId::random().map_err(KeyError::random)?;
    let set = KeySet::random(Epoch(1)).map_err(KeyError::random)?;
    let wrapped = wrap_key_set(&keystore, customer, volume, &set)?;
    let key_mode = match customer {
        Some(_) => KeyMode::PlatformAndCustomer,
        None => KeyMode::PlatformManaged,
    };
    let contents = HeaderContents::fresh(volume, incarnation, meta_crypto, key_mode, wrapped);

    let fresh = FreshVolume {
        store: Arc::clone(store),
        keys: Arc::new(KeyRing::new(set, Vec::new())),
        meta_crypto,
        size_bytes: options.size_bytes,
    };
    format(&fresh).map_err(VolumeError::Format)?;
    store
        .sync_dir(&StorePath::root())
        .map_err(VolumeError::io("cannot sync the volume directory"))?;
    let (header, bytes) = VerifiedHeader::seal(contents, fresh.keys.active())?;
    replace_header(&**store, &bytes)?;
    keystore.update_record(
        volume,
        &VolumeRecord {
            incarnation,
            sequence: Sequence(0),
            page0_tags: [[0; 16]; 2],
            header_sequence: header.header_sequence(),
            customer_key: options.customer_key.as_ref().map(ToString::to_string),
            clean: false,
        },
    )?;
    tracing::info!(
        target: "audit",
        action = "create-volume",
        outcome = "done",
        volume = %volume,
        key_mode = key_mode.name(),
    );
    Ok(volume)
}

/// Wraps both DEKs of a set and proves, as far as the keys at hand allow, that the wraps open.
fn wrap_key_set(
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
    volume: VolumeId,
    set: &KeySet,
) -> Result<WrappedKeySet, KeyError> {
    let context = WrapContext {
        volume,
        key_set: set.id,
        epoch: set.epoch,
    };
    let infrastructure = keystore.wrap_infrastructure(&context, &set.infrastructure)?;
    let proof = keystore.unwrap_infrastructure(&context, &infrastructure)?;
    if proof.expose() != set.infrastructure.expose() {
        return Err(not_proven());
    }
    Ok(WrappedKeySet {
        id: set.id,
        epoch: set.epoch,
        state: KeySetState::Active,
        customer: vec![wrap_customer_dek(keystore, customer, &context, set)?],
        infrastructure: vec![infrastructure],
    })
}

fn wrap_customer_dek(
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
    context: &WrapContext,
    set: &KeySet,
) -> Result<WrapRecord, KeyError> {
    let (record, proof) = match customer {
        None => {
            let record = keystore.wrap_customer(context, &set.customer)?;
            let proof = keystore.unwrap_customer(context, &record)?;
            (record, Some(proof))
        }
        Some(provider) => {
            let record = wrap::wrap_with_customer_key(provider, context, &set.customer)?;
            let proof = if provider.describe().can_unwrap {
                Some(wrap::unwrap_with_customer_key(provider, context, &record)?)
            } else {
                None
            };
            (record, proof)
        }
    };
    if proof.is_some_and(|proof| proof.expose() != set.customer.expose()) {
        return Err(not_proven());
    }
    Ok(record)
}

fn not_proven() -> KeyError {
    KeyError::new(
        ErrorKind::WrongKey,
        "a wrapped key did not unwrap to what was wrapped",
    )
}

/// Takes away what [`create`] made, the lock last. Failures are left: the directory is no volume
/// without its superblock, and the first failure is the one to tell of.
fn take_away(store: &dyn Store) {
    // Durably first, so that no crash brings back a superblock without its volume.
    if store.unlink(&header_path()).is_ok() {
        let _ = store.sync_dir(&StorePath::root());
    }
    for name in [HEADER_NAME, META_NAME] {
        let _ = store.unlink(&StorePath::new(&format!("{name}.new")));
    }
    let _ = store.unlink(&meta_path());
    for (folder, kind) in store.list(&objects_path()).unwrap_or_default() {
        let folder = StorePath::new(&format!("{OBJECTS_NAME}/{folder}"));
        if kind == EntryKind::Directory {
            for (object, _) in store.list(&folder).unwrap_or_default() {
                let _ = store.unlink(&StorePath::new(&format!("{}/{object}", folder.as_str())));
            }
            let _ = store.remove_dir(&folder);
        } else {
            let _ = store.unlink(&folder);
        }
    }
    let _ = store.remove_dir(&objects_path());
    let _ = store.unlink(&lock_path());
    let _ = store.sync_dir(&StorePath::root());
}
