//! Opening a volume.
//!
//! The superblock is untrusted until its MAC is verified, and the MAC needs the keys. So the
//! claimed location of a customer key is only shown to people. The key that is used is the one that
//! the option or the keystore's record names. A key's fingerprint and the numbers in the superblock
//! only choose which wraps are tried; the wrapped payload itself states which DEK it holds.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::copy_status::CopyStatus;
use super::error::VolumeError;
use super::expected::RememberedHere;
use super::header::{HeaderContents, KeyMode, KeySetState, VerifiedHeader, WrappedKeySet};
use super::history::{Rollback, check_header_rollback, check_metadata_rollback};
use super::holder::writer_elsewhere;
use super::renew::{MetaLocation, finish_meta_swap, locate_meta};
use super::succession::Ancestry;
use super::superblock::inspect;
use super::{OpenOptions, Volume, header_path, lock, spare};
use crate::audit::{self, Record};
use crate::ids::VolumeId;
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::Scheme;
use crate::keys::wrap::{self, WrapContext, WrapRecord};
use crate::keys::{
    KeyUri, KnownKeySet, PassphraseSource, PlatformKeystore, VolumeRecord, WriterLock, WriterLocked,
};
use crate::layers::{CustomerDek, InfrastructureDek, KeyRing, KeySet, fingerprint};
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
    let attempts = audit::deduplicate();
    let result = loop {
        match open_unaudited(Arc::clone(&store), options) {
            Err(error) if again(&error) => {}
            result => break result,
        }
    };
    drop(attempts);
    let audited = Record::new("open-volume").with("read_only", options.read_only);
    match &result {
        Ok(volume) => audited
            .volume(volume.header.volume_id())
            .with("key_mode", volume.header.key_mode().name())
            .done(),
        Err(error) => audited
            .volume(claimed_id(&*store))
            .with("kind", error.kind().name())
            .refused(error),
    }
    result
}

/// The volume id that the unverified superblock of a refused volume claims, for messages.
pub fn claimed_id(store: &dyn Store) -> Option<VolumeId> {
    let unverified = inspect(store).ok()?;
    Some(unverified.claims().volume_id())
}

fn open_unaudited(store: Arc<dyn Store>, options: &OpenOptions) -> Result<Volume, VolumeError> {
    match store.info(&header_path()) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(VolumeError::NotAVolume);
        }
        Err(error) => return Err(VolumeError::io("cannot read the volume directory")(error)),
    }
    let lock = lock::acquire(&*store, options.read_only)?;
    let unverified = inspect(&*store)?;
    let claims = unverified.claims();
    let keystore = PlatformKeystore::open(&options.keystore)?;
    let record = keystore.record(claims.volume_id())?;
    let customer = customer_key(claims, options, record.as_ref())?;
    let keys = unwrap_key_sets(claims, &keystore, customer.as_deref())?;
    // The private half is no longer needed. A child process that probes an unresponsive filesystem,
    // and is left behind, would otherwise keep a copy of it.
    let customer = customer.map(|key| key.public_half());
    let header = unverified.verify(&keys)?;
    let ancestry = check_ancestry(&header, &keys, options, (&keystore, record.as_ref()))?;
    let place = match store.directory_identity() {
        // A volume that is only read needs no known location.
        Err(error) if options.read_only => {
            tracing::warn!(%error, "the location of the volume's directory cannot be determined");
            None
        }
        place => place.map_err(location_error)?,
    };
    let path = options.path.as_deref();
    let id = header.volume_id();
    let remembered_here = RememberedHere::of(&keystore, id, place.as_ref(), path)?;
    let remembered_here = remembered_here.with_named(&keystore, id, &options.named)?;
    if !options.new_identity && options.fingerprint.is_none() {
        refuse_unexpected(&remembered_here, record.as_ref(), (&header, &keys))?;
    }
    let (copy_status, writer, record) =
        claim_writer(&keystore, &header, place.as_ref(), record, options)?;
    // The previous writer may have changed which key sets are known.
    refuse_unknown_key_set(&header, &ancestry, &keystore, record.as_ref())?;
    let older_header = allow_rollback(
        check_header_rollback(&header, &ancestry, record.as_ref()),
        options,
        &copy_status,
    )?;
    let meta = locate_meta(&*store, &keys, &header)?;
    if options.read_only && matches!(meta, MetaLocation::Next(_)) {
        return Err(VolumeError::HalfRenewed);
    }
    let same = record
        .as_ref()
        .filter(|record| record.incarnation == header.incarnation());
    // Such a superblock, without its metadata or with an older version of it, will not be mounted.
    // Remember nothing of it: otherwise the genuine volume would be refused as unknown, or as a
    // copy, when it is back.
    let is_whole = meta
        .slots()
        .is_some_and(|slots| check_metadata_rollback(slots, same).is_ok());
    let current = match &record {
        // Unchanged until the volume has been accepted as it is; a copy never changes it.
        Some(record) if older_header.is_some() || !copy_status.is_own() => record.clone(),
        _ if options.new_identity => VolumeRecord::new(header.incarnation()),
        record => {
            let known = (ancestry.active(), record.as_ref());
            let next = updated_record(&header, known, customer.as_deref());
            match is_whole {
                false => next,
                true => write_record(
                    &keystore,
                    header.volume_id(),
                    (place.as_ref(), remembered_here.now()),
                    (record.as_ref(), next),
                    options,
                )?,
            }
        }
    };
    if !options.read_only {
        finish_meta_swap(&*store, &meta)?;
    }
    if !options.read_only && !options.new_identity && older_header.is_none() && is_whole {
        spare::settle(&*store, &keys, &header);
    }
    let record = record.filter(|record| record.incarnation == header.incarnation());
    Ok(Volume {
        store,
        keys: Arc::new(keys),
        header,
        customer_key: customer.map(Arc::from),
        keystore: Arc::new(keystore),
        record,
        accepts_restored: options.accept_restored,
        older_header,
        current: Mutex::new(current),
        copy_status,
        awaits_new_identity: options.new_identity,
        writer,
        lock,
    })
}

/// Refuses a volume if the keystore expects another one at this location.
fn refuse_unexpected(
    remembered_here: &RememberedHere<'_>,
    record: Option<&VolumeRecord>,
    (header, keys): (&VerifiedHeader, &KeyRing),
) -> Result<(), VolumeError> {
    match remembered_here.expected(record) {
        None => Ok(()),
        Some(known) => Err(VolumeError::AnotherVolume {
            known: known.volume,
            path: known.directory.path.clone(),
            written: known.written,
            found: header.volume_id(),
            fingerprint: fingerprint_of(keys)?,
        }),
    }
}

/// Without its location a volume cannot be told from a copy.
pub(super) fn location_error(error: std::io::Error) -> VolumeError {
    VolumeError::io(
        "cannot determine the location of the volume's directory, so nothing is written to it",
    )(error)
}

/// Determines whether the directory is the volume or a copy, and takes the right to write. The
/// returned record is the one that is current while that right is held.
fn claim_writer(
    keystore: &PlatformKeystore,
    header: &VerifiedHeader,
    place: Option<&DirectoryIdentity>,
    record: Option<VolumeRecord>,
    options: &OpenOptions,
) -> Result<(CopyStatus, Option<WriterLock>, Option<VolumeRecord>), VolumeError> {
    let id = header.volume_id();
    let judge = |record: Option<&VolumeRecord>| {
        let beginning =
            record.is_some_and(|it| it.pending_incarnation == Some(header.incarnation()));
        // A pending incarnation begins in one directory only.
        match beginning {
            true => CopyStatus::Own,
            false => CopyStatus::of(place, record, id),
        }
    };
    let copy_status = judge(record.as_ref());
    if options.read_only {
        return Ok((copy_status, None, record));
    }
    if options.new_identity {
        // The keystore may have no record of the volume.
        let is_itself = copy_status == CopyStatus::Own && record.is_some() && place.is_some();
        return match is_itself {
            true => Err(VolumeError::NotACopy),
            false => Ok((copy_status, None, record)),
        };
    }
    let refuse = |copy_status: &CopyStatus, record: Option<&VolumeRecord>| {
        let refusal = copy_status.refusal(record, options.accept_restored);
        refusal.map_or(Ok(()), Err)
    };
    refuse(&copy_status, record.as_ref())?;
    let Some(place) = place else {
        return Ok((copy_status, None, record));
    };
    let locked = keystore.lock_writer(id, &place.path);
    let writer = match locked.map_err(VolumeError::CannotRemember)? {
        WriterLocked::Own(writer) => writer,
        WriterLocked::Held(by) => return Err(writer_elsewhere(by, id, place)),
    };
    // The previous holder of the lock may have changed the record.
    let record = keystore.record(id)?;
    let copy_status = judge(record.as_ref());
    refuse(&copy_status, record.as_ref())?;
    if let CopyStatus::Moved { from } = &copy_status {
        tracing::info!(
            from = %from.display(),
            to = %place.path.display(),
            "the volume's directory was moved, and is remembered at its new place"
        );
    }
    Ok((copy_status, Some(writer), record))
}

/// Decides whether an older superblock is opened all the same.
fn allow_rollback(
    judged: Result<(), Rollback>,
    options: &OpenOptions,
    copy_status: &CopyStatus,
) -> Result<Option<Rollback>, VolumeError> {
    let is_copy = matches!(copy_status, CopyStatus::Copy { .. });
    match judged {
        Ok(()) => Ok(None),
        // The age of a copy does not matter, since the copy does not become the volume.
        Err(older) if options.new_identity || (options.read_only && is_copy) => Ok(Some(older)),
        Err(older) if options.accept_restored => Ok(Some(older)),
        Err(older) => Err(older.into()),
    }
}

/// The fingerprint of the active key set.
pub(super) fn fingerprint_of(keys: &KeyRing) -> Result<String, VolumeError> {
    Ok(fingerprint(keys.active()).map_err(|_| KeyError::derivation())?)
}

/// Refuses a volume if its active key set neither is in the platform keystore's record nor follows
/// a set that is, or if it does not match the pinned fingerprint by itself or by a predecessor.
pub(super) fn check_ancestry(
    header: &VerifiedHeader,
    keys: &KeyRing,
    options: &OpenOptions,
    (keystore, record): (&PlatformKeystore, Option<&VolumeRecord>),
) -> Result<Ancestry, VolumeError> {
    let ancestry = Ancestry::of(header, keys)?;
    if let Some(pinned) = options.fingerprint.as_deref() {
        check_pin(pinned, &ancestry, keys)?;
    }
    refuse_unknown_key_set(header, &ancestry, keystore, record)?;
    Ok(ancestry)
}

/// Refuses a volume whose active key set neither is known nor follows a known one.
fn refuse_unknown_key_set(
    header: &VerifiedHeader,
    ancestry: &Ancestry,
    keystore: &PlatformKeystore,
    record: Option<&VolumeRecord>,
) -> Result<(), VolumeError> {
    match record.is_some_and(|record| ancestry.is_unknown_to(&record.key_sets)) {
        true => Err(VolumeError::UnknownKeySet {
            record: keystore.record_path(header.volume_id()),
        }),
        false => Ok(()),
    }
}

/// Opens the customer key that the option or the record names; `None` for a platform-managed
/// volume.
pub(super) fn customer_key(
    claims: &HeaderContents,
    options: &OpenOptions,
    record: Option<&VolumeRecord>,
) -> Result<Option<Box<dyn CustomerKeyProvider>>, VolumeError> {
    let remembered = record.and_then(|record| record.customer_key.as_deref());
    if claims.key_mode() == KeyMode::PlatformManaged {
        let known = match (remembered, &options.customer_key) {
            (Some(_), _) => "customer-managed by the platform keystore's record",
            (None, Some(_)) => "customer-managed, since a customer key was named",
            (None, None) => return Ok(None),
        };
        return Err(VolumeError::Downgraded {
            found: claims.key_mode().name(),
            known,
        });
    }
    let opened = match (&options.customer_key, remembered) {
        (Some(uri), _) => customer::open(uri, &options.passphrase)?,
        (None, Some(text)) => open_remembered(&KeyUri::parse(text)?, &options.passphrase)?,
        (None, None) => {
            return Err(VolumeError::CustomerKeyNeeded {
                claimed: claimed_provider(claims),
            });
        }
    };
    Ok(Some(opened))
}

/// The user named no key, so the error for a missing file says that the keystore remembered it.
fn open_remembered(
    uri: &KeyUri,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, VolumeError> {
    let Scheme::File(path) = uri.scheme();
    match path.symlink_metadata() {
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            Err(VolumeError::RememberedKeyGone {
                path: path.to_owned(),
            })
        }
        _ => Ok(customer::open(uri, passphrase)?),
    }
}

fn claimed_provider(claims: &HeaderContents) -> String {
    claims
        .key_sets()
        .iter()
        .filter(|set| set.state == KeySetState::Active)
        .flat_map(|set| &set.customer)
        .map(|wrap| wrap.provider.clone())
        .next()
        .unwrap_or_default()
}

pub(super) fn unwrap_key_sets(
    claims: &HeaderContents,
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
) -> Result<KeyRing, VolumeError> {
    let mut active = None;
    let mut read_only = Vec::new();
    for set in claims.key_sets() {
        let context = WrapContext {
            volume: claims.volume_id(),
            key_set: set.id,
            epoch: set.epoch,
        };
        let keys = KeySet {
            id: set.id,
            epoch: set.epoch,
            infrastructure: unwrap_infrastructure(keystore, &context, set)?,
            customer: unwrap_customer(keystore, customer, &context, set)?,
        };
        match set.state {
            KeySetState::Active => active = Some(keys),
            KeySetState::ReadOnly => read_only.push(keys),
        }
    }
    // The parser guarantees exactly one.
    let active =
        active.ok_or_else(|| VolumeError::HeaderInvalid("it has no active key set".to_owned()))?;
    Ok(KeyRing::new(active, read_only))
}

fn unwrap_infrastructure(
    keystore: &PlatformKeystore,
    context: &WrapContext,
    set: &WrappedKeySet,
) -> Result<InfrastructureDek, VolumeError> {
    first_that_opens(set.infrastructure.iter(), |wrap| {
        keystore.unwrap_infrastructure(context, wrap)
    })
}

fn unwrap_customer(
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
    context: &WrapContext,
    set: &WrappedKeySet,
) -> Result<CustomerDek, VolumeError> {
    let Some(provider) = customer else {
        return first_that_opens(set.customer.iter(), |wrap| {
            keystore.unwrap_customer(context, wrap)
        });
    };
    let description = provider.describe();
    let mut wraps = set
        .customer
        .iter()
        .filter(|wrap| wrap.key_version == description.key_version)
        .peekable();
    if wraps.peek().is_none() {
        return Err(wrong_customer_key(provider, set));
    }
    first_that_opens(wraps, |wrap| {
        wrap::unwrap_with_customer_key(provider, context, wrap)
    })
    .map_err(|error| match error.kind() {
        // The fingerprint matches, and yet the wrap does not open.
        ErrorKind::WrongKey => VolumeError::Tampered,
        _ => error,
    })
}

fn wrong_customer_key(provider: &dyn CustomerKeyProvider, set: &WrappedKeySet) -> VolumeError {
    let description = provider.describe();
    let wanted: Vec<String> = set
        .customer
        .iter()
        .map(|wrap| wrap.key_version.escape_default().to_string())
        .collect();
    VolumeError::WrongCustomerKey {
        given: description.uri.to_string(),
        found: description.key_version.clone(),
        wanted: wanted.join(", "),
    }
}

/// Returns the first DEK that opens; otherwise the error of the last wrap.
fn first_that_opens<'a, T>(
    wraps: impl Iterator<Item = &'a WrapRecord>,
    mut open: impl FnMut(&WrapRecord) -> Result<T, KeyError>,
) -> Result<T, VolumeError> {
    let mut last = VolumeError::HeaderInvalid("a key has no wrap".to_owned());
    for wrap in wraps {
        match open(wrap) {
            Ok(dek) => return Ok(dek),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Compares digits only: people copy fingerprints with different grouping and case.
fn check_pin(pinned: &str, ancestry: &Ancestry, keys: &KeyRing) -> Result<(), VolumeError> {
    let digits = |text: &str| -> String {
        let kept = text.chars().filter(|c| !matches!(c, '-' | ':' | ' '));
        kept.map(|c| c.to_ascii_lowercase()).collect()
    };
    let wanted = digits(pinned);
    match ancestry.find_fingerprint(|found| digits(found) == wanted) {
        Some(ancestor) => {
            if ancestor.is_past() {
                let now = fingerprint_of(keys)?;
                tracing::warn!(
                    pinned,
                    now,
                    "the pinned key set was followed by another, for which it vouches"
                );
            }
            Ok(())
        }
        None => Err(VolumeError::FingerprintMismatch {
            found: fingerprint_of(keys)?,
            pinned: pinned.to_owned(),
        }),
    }
}

/// The record after this use: `known` holds the active key set and the current record.
fn updated_record(
    header: &VerifiedHeader,
    (active, record): (Option<KnownKeySet>, Option<&VolumeRecord>),
    customer: Option<&dyn CustomerKeyProvider>,
) -> VolumeRecord {
    let same = record.filter(|record| record.incarnation == header.incarnation());
    let mut next = same.cloned().unwrap_or_else(|| VolumeRecord {
        key_sets: record.map_or_else(Vec::new, |record| record.key_sets.clone()),
        directory: record.and_then(|record| record.directory.clone()),
        written: record.and_then(|record| record.written),
        ..VolumeRecord::new(header.incarnation())
    });
    if let Some(active) = active {
        next.remember_key_set(active);
    }
    // A pending incarnation that never began: the previous superblock is still in place.
    next.pending_incarnation = None;
    next.header_sequence = next.header_sequence.max(header.header_sequence());
    next.customer_key = key_to_remember(customer, record);
    next
}

/// The URI of the customer key to remember. The remembered key stays, whichever key opened the
/// volume this time. Only a public half, which may create a volume but never opens one, is replaced
/// by the first key that opens the volume.
fn key_to_remember(
    customer: Option<&dyn CustomerKeyProvider>,
    record: Option<&VolumeRecord>,
) -> Option<String> {
    let opened = customer?.describe().uri.to_string();
    let remembered = record.and_then(|record| record.customer_key.clone());
    match remembered {
        Some(uri) if uri == opened || !is_public_half(&uri) => Some(uri),
        _ => Some(opened),
    }
}

/// True for a key that exists and is known to lack its private half.
fn is_public_half(uri: &str) -> bool {
    let key = KeyUri::parse(uri).and_then(|uri| customer::open(&uri, &PassphraseSource::None));
    key.is_ok_and(|key| !key.describe().can_unwrap)
}

/// Writes the record, which must happen only after the superblock and page 0 of the metadata were
/// authenticated. A caller that may write to the volume always writes the record, even if nothing
/// is new: otherwise a keystore that cannot be written would let rollback protection lapse
/// unnoticed.
fn write_record(
    keystore: &PlatformKeystore,
    id: VolumeId,
    (place, now): (Option<&DirectoryIdentity>, i64),
    (record, mut next): (Option<&VolumeRecord>, VolumeRecord),
    options: &OpenOptions,
) -> Result<VolumeRecord, VolumeError> {
    if options.read_only {
        if record != Some(&next)
            && let Err(error) = keystore.update_record(id, &next)
        {
            tracing::warn!(%error, "the platform keystore's record was not brought up to date");
        }
        return Ok(next);
    }
    if let Some(place) = place {
        next.directory = Some(place.into());
        next.former = None;
    }
    next.written = Some(now);
    keystore
        .update_record(id, &next)
        .map_err(VolumeError::CannotRemember)?;
    Ok(next)
}
