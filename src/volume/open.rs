//! Opening a volume.
//!
//! The superblock is hostile until its MAC is checked, and its MAC needs the keys. So what it says
//! about where a customer key is, is shown to people and used for nothing: the key is the one that
//! the option names, or the keystore's record of this volume. A key's fingerprint and the numbers
//! in the superblock only choose which wraps are tried; each wrap says inside what it is of.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::VolumeError;
use super::header::{HeaderContents, KeyMode, KeySetState, VerifiedHeader, WrappedKeySet};
use super::history::judge_header;
use super::renew::settle_meta;
use super::succession::Ancestry;
use super::superblock::inspect;
use super::{OpenOptions, Volume, header_path, lock};
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::wrap::{self, WrapContext, WrapRecord};
use crate::keys::{KeyUri, KnownKeySet, PlatformKeystore, VolumeRecord};
use crate::layers::{CustomerDek, InfrastructureDek, KeyRing, KeySet, fingerprint};
use crate::store::Store;

/// Opens a volume: takes the lock, gives files shared with a copy (`cp -al`) copies of their own,
/// unwraps the keys, authenticates the superblock, and remembers the customer key.
///
/// # Errors
/// See [`VolumeError`]; nothing of the volume has been changed then but files that were shared.
pub fn open(store: Arc<dyn Store>, options: &OpenOptions) -> Result<Volume, VolumeError> {
    let result = open_audited(store, options);
    match &result {
        Ok(volume) => tracing::info!(
            target: "audit",
            action = "open-volume",
            outcome = "done",
            volume = %volume.header.volume_id(),
            key_mode = volume.header.key_mode().name(),
        ),
        Err(error) => tracing::warn!(
            target: "audit",
            action = "open-volume",
            outcome = "refused",
            kind = ?error.kind(),
            reason = %error,
        ),
    }
    result
}

fn open_audited(store: Arc<dyn Store>, options: &OpenOptions) -> Result<Volume, VolumeError> {
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
    let keys = unwrap_all(claims, &keystore, customer.as_deref())?;
    let header = unverified.verify(&keys)?;
    let ancestry = vouched_for(&header, &keys, options, record.as_ref())?;
    let older_header = match judge_header(&header, &ancestry, record.as_ref()) {
        Err(older) if options.accept_restored => Some(older),
        result => result.map(|()| None)?,
    };
    settle_meta(&*store, &keys, &header, options.read_only)?;
    let current = match (&older_header, &record) {
        // Left as it is until the volume has been taken as it is.
        (Some(_), Some(record)) => record.clone(),
        _ => remember(
            &keystore,
            &header,
            ancestry.active(),
            record.as_ref(),
            customer.as_deref(),
            options,
        )?,
    };
    let record = record.filter(|record| record.incarnation == header.incarnation());
    Ok(Volume {
        store,
        keys: Arc::new(keys),
        header,
        customer_key: customer.map(|provider| Arc::from(provider.public_half())),
        keystore: Arc::new(keystore),
        record,
        accepts_restored: options.accept_restored,
        older_header,
        current: Mutex::new(current),
        lock,
    })
}

/// The fingerprint of the active key set.
pub(super) fn fingerprint_of(keys: &KeyRing) -> Result<String, VolumeError> {
    Ok(fingerprint(keys.active()).map_err(|_| KeyError::derivation())?)
}

/// Refuses a volume whose active key set is a stranger to the platform keystore's record, or does
/// not have, and does not follow one that has, the pinned fingerprint.
pub(super) fn vouched_for(
    header: &VerifiedHeader,
    keys: &KeyRing,
    options: &OpenOptions,
    record: Option<&VolumeRecord>,
) -> Result<Ancestry, VolumeError> {
    let ancestry = Ancestry::of(header, keys)?;
    if let Some(pinned) = options.fingerprint.as_deref() {
        check_pin(pinned, &ancestry, keys)?;
    }
    if let Some(record) = record {
        ancestry.refuse_stranger(&record.key_sets)?;
    }
    Ok(ancestry)
}

/// Opens the customer key that option or record names; `None` for a platform-managed volume.
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
    let uri = match (&options.customer_key, remembered) {
        (Some(uri), _) => uri.clone(),
        (None, Some(text)) => KeyUri::parse(text)?,
        (None, None) => {
            return Err(VolumeError::CustomerKeyNeeded {
                claimed: claimed_provider(claims),
            });
        }
    };
    Ok(Some(customer::open(&uri, &options.passphrase)?))
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

pub(super) fn unwrap_all(
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
    // The parser has seen to it that there is exactly one.
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
        // The very key by its fingerprint, and yet it does not open.
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

/// Any wrap of a DEK gives it; the error is the last one's.
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

/// Compares by digits: grouping and case are how people copy, not what they pin.
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

/// Brings the record up to date; only ever after the superblock was authenticated.
fn remember(
    keystore: &PlatformKeystore,
    header: &VerifiedHeader,
    active: Option<KnownKeySet>,
    record: Option<&VolumeRecord>,
    customer: Option<&dyn CustomerKeyProvider>,
    options: &OpenOptions,
) -> Result<VolumeRecord, VolumeError> {
    let same = record.filter(|record| record.incarnation == header.incarnation());
    let mut next = same.cloned().unwrap_or_else(|| VolumeRecord {
        key_sets: record.map_or_else(Vec::new, |record| record.key_sets.clone()),
        ..VolumeRecord::unknown(header.incarnation())
    });
    if let Some(active) = active {
        next.remember_key_set(active);
    }
    // One that was to begin and did not: the superblock of before is still there.
    next.becoming = None;
    next.header_sequence = next.header_sequence.max(header.header_sequence());
    next.customer_key = customer.map(|provider| provider.describe().uri.to_string());
    if record == Some(&next) {
        return Ok(next);
    }
    match keystore.update_record(header.volume_id(), &next) {
        Err(error) if options.read_only => {
            tracing::warn!(%error, "the platform keystore's record was not brought up to date");
        }
        result => result?,
    }
    Ok(next)
}
