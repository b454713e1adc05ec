//! Opening a volume.
//!
//! The superblock is untrusted until its MAC is verified, and the MAC needs the keys. So the
//! claimed location of a customer key is only shown to people. The key that is used is the one that
//! the option or the keystore's record names. A key's fingerprint and the numbers in the superblock
//! only choose which wraps are tried; the wrapped payload itself states which DEK it holds.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::authenticate::Authenticated;
use super::claim::Claim;
use super::copy_status::CopyStatus;
use super::error::VolumeError;
use super::expected::RememberedHere;
use super::history::{check_header_rollback, check_metadata_rollback};
use super::record_update::RecordUpdate;
use super::renew::{MetaLocation, finish_meta_swap, locate_meta};
use super::rewrap_platform::versions_in_use;
use super::rollback::Rollback;
use super::succession::fingerprint_of;
use super::superblock::{claimed_id, inspect};
use super::{KeyState, OpenOptions, Volume, header_path, lock, spare};
use crate::audit::{self, Record};
use crate::keys::VolumeRecord;
use crate::store::{DirectoryIdentity, Store};

/// Opens a volume: takes the lock, replaces files that are shared with a copy (`cp -al`) by private
/// copies, unwraps the keys, authenticates the superblock, and remembers the customer key if no
/// usable one is remembered.
///
/// # Errors
/// See [`VolumeError`]. The volume is unchanged then, except that shared files were copied and an
/// interrupted renewal may have been finished.
pub fn open(store: Arc<dyn Store>, options: &OpenOptions) -> Result<Volume, VolumeError> {
    open_with_retry(store, options, &mut |_| false)
}

/// Opens a volume, and retries as long as `again` returns true for the error. Only the final
/// outcome is recorded in the audit.
///
/// # Errors
/// The error of the last attempt; see [`open`].
pub fn open_with_retry(
    store: Arc<dyn Store>,
    options: &OpenOptions,
    again: &mut dyn FnMut(&VolumeError) -> bool,
) -> Result<Volume, VolumeError> {
    // Each attempt unwraps the keys, which is audited.
    let begin = Instant::now();
    let attempts = audit::deduplicate();
    let result = loop {
        match open_unaudited(Arc::clone(&store), options) {
            Err(error) if again(&error) => {}
            result => break result,
        }
    };
    drop(attempts);
    let audited = Record::new("open-volume")
        .with("read_only", options.read_only)
        .since(begin);
    match &result {
        Ok(volume) => audited
            .volume(volume.header().volume_id())
            .with("key_mode", volume.header().key_mode().name())
            .done(),
        Err(error) => audited
            .volume(claimed_id(&*store))
            .with("kind", error.kind().name())
            .refused(error),
    }
    result
}

fn open_unaudited(store: Arc<dyn Store>, options: &OpenOptions) -> Result<Volume, VolumeError> {
    refuse_without_header(&*store)?;
    let lock = lock::acquire(&*store, options.read_only)?;
    let authenticated = Authenticated::new(inspect(&*store)?, options)?;
    let location = location_of(&*store, options)?;
    let remembered_here = authenticated.remembered_here(location.as_ref(), options)?;
    if !options.new_identity && options.fingerprint.is_none() {
        refuse_unexpected(&authenticated, &remembered_here)?;
    }
    let claim = Claim::new(&authenticated, location.as_ref(), options)?;
    // The previous writer may have changed which key sets are known.
    authenticated.refuse_unknown_key_set(claim.record.as_ref())?;
    let older_header = older_header(&authenticated, &claim, options)?;
    let meta = locate_meta(&*store, &authenticated.keys, &authenticated.header)?;
    if options.read_only && matches!(meta, MetaLocation::Next(_)) {
        return Err(VolumeError::HalfRenewed);
    }
    let incarnation = authenticated.header.incarnation();
    let same_incarnation = |record: &&VolumeRecord| record.incarnation == incarnation;
    // A superblock without its metadata, or with an older version of it, will not be mounted.
    // Remember nothing of it: otherwise the genuine volume would be refused as unknown, or as a
    // copy, when it is back.
    let is_whole = meta.slots().is_some_and(|slots| {
        let record = claim.record.as_ref().filter(same_incarnation);
        check_metadata_rollback(slots, record).is_ok()
    });
    let update = RecordUpdate {
        authenticated: &authenticated,
        location: location.as_ref(),
        now: remembered_here.now(),
        platform: versions_in_use(&*store, &authenticated.header),
        options,
    };
    let current = match &claim.record {
        // Unchanged until the volume has been accepted as it is; a copy never changes it.
        Some(record) if older_header.is_some() || !claim.copy_status.is_own() => record.clone(),
        _ if options.new_identity => VolumeRecord::new(incarnation),
        record if is_whole => update.write(record.as_ref())?,
        record => update.next(record.as_ref()),
    };
    if !options.read_only {
        finish_meta_swap(&*store, &meta)?;
    }
    if !options.read_only && !options.new_identity && older_header.is_none() && is_whole {
        spare::settle(&*store, &authenticated.keys, &authenticated.header);
    }
    let record = claim.record.filter(|record| same_incarnation(&record));
    Ok(Volume {
        store,
        keys: Arc::new(authenticated.keys),
        opened_by: authenticated.opened_by,
        record,
        accepts_restored: options.accept_restored,
        key_state: KeyState::new(authenticated.header, Arc::new(authenticated.keystore)),
        superblock: Mutex::new(()),
        read_only: options.read_only,
        older_header,
        current: Mutex::new(current),
        customer_key: Mutex::default(),
        copy_status: claim.copy_status,
        awaits_new_identity: options.new_identity,
        writer: claim.writer,
        lock,
    })
}

/// Checks that there is a superblock, before anything in the directory is touched.
fn refuse_without_header(store: &dyn Store) -> Result<(), VolumeError> {
    match store.info(&header_path()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VolumeError::NotAVolume),
        Err(error) => Err(VolumeError::io("cannot read the volume directory")(error)),
    }
}

fn location_of(
    store: &dyn Store,
    options: &OpenOptions,
) -> Result<Option<DirectoryIdentity>, VolumeError> {
    match store.directory_identity() {
        // A volume that is only read needs no known location.
        Err(error) if options.read_only => {
            tracing::warn!(%error, "the location of the volume's directory cannot be determined");
            Ok(None)
        }
        location => location.map_err(VolumeError::unknown_location),
    }
}

/// Refuses a volume if the keystore expects another one at this location.
fn refuse_unexpected(
    authenticated: &Authenticated,
    remembered_here: &RememberedHere<'_>,
) -> Result<(), VolumeError> {
    match remembered_here.expected(authenticated.record.as_ref()) {
        None => Ok(()),
        Some(known) => Err(VolumeError::AnotherVolume {
            known: known.volume,
            path: known.directory.path.clone(),
            written: known.written,
            found: authenticated.header.volume_id(),
            fingerprint: fingerprint_of(&authenticated.keys)?,
        }),
    }
}

/// How the superblock is older than the keystore knows, if the options permit that; `None` if it is
/// not older.
fn older_header(
    authenticated: &Authenticated,
    claim: &Claim,
    options: &OpenOptions,
) -> Result<Option<Rollback>, VolumeError> {
    let record = claim.record.as_ref();
    let is_copy = matches!(claim.copy_status, CopyStatus::Copy { .. });
    match check_header_rollback(&authenticated.header, &authenticated.ancestry, record) {
        Ok(()) => Ok(None),
        // The age of a copy does not matter, since the copy does not become the volume.
        Err(older) if options.new_identity || (options.read_only && is_copy) => Ok(Some(older)),
        Err(older) if options.accept_restored => Ok(Some(older)),
        Err(older) => Err(older.into()),
    }
}
