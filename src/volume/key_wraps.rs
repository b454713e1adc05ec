//! Wraps the key sets of a volume for its superblock, and unwraps those that a superblock holds.

use super::error::VolumeError;
use super::header::{HeaderContents, KeySetState, WrappedKeySet};
use crate::ids::VolumeId;
use crate::keys::PlatformKeystore;
use crate::keys::customer::CustomerKeyProvider;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::wrap::{self, WrapContext, WrapRecord};
use crate::layers::{CustomerDek, InfrastructureDek, KeyRing, KeySet};

/// Wraps both DEKs of a set, and verifies that the wraps open, as far as the available keys allow:
/// the public half of a customer key cannot unwrap.
pub(super) fn wrap_key_set(
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
    volume: VolumeId,
    set: &KeySet,
    state: KeySetState,
) -> Result<WrappedKeySet, KeyError> {
    let context = WrapContext {
        volume,
        key_set: set.id,
        epoch: set.epoch,
    };
    let infrastructure = keystore.wrap_infrastructure(&context, &set.infrastructure)?;
    let unwrapped = keystore.unwrap_infrastructure(&context, &infrastructure)?;
    if unwrapped.expose() != set.infrastructure.expose() {
        return Err(wrap_mismatch());
    }
    Ok(WrappedKeySet {
        id: set.id,
        epoch: set.epoch,
        state,
        succeeds: None,
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
    let (record, unwrapped) = match customer {
        None => {
            let record = keystore.wrap_customer(context, &set.customer)?;
            let unwrapped = keystore.unwrap_customer(context, &record)?;
            (record, Some(unwrapped))
        }
        Some(provider) => {
            let record = wrap::wrap_with_customer_key(provider, context, &set.customer)?;
            let unwrapped = if provider.describe().can_unwrap {
                Some(wrap::unwrap_with_customer_key(provider, context, &record)?)
            } else {
                None
            };
            (record, unwrapped)
        }
    };
    if unwrapped.is_some_and(|unwrapped| unwrapped.expose() != set.customer.expose()) {
        return Err(wrap_mismatch());
    }
    Ok(record)
}

pub(super) fn wrap_mismatch() -> KeyError {
    KeyError::new(
        ErrorKind::WrongKey,
        "a wrapped key did not unwrap to the key that was wrapped",
    )
}

/// Unwraps all key sets that a superblock lists, which need not be authenticated yet.
pub(super) fn unwrap_key_sets(
    header: &HeaderContents,
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
) -> Result<KeyRing, VolumeError> {
    let mut active = None;
    let mut read_only = Vec::new();
    for set in header.key_sets() {
        let context = WrapContext {
            volume: header.volume_id(),
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
    // The parser of the superblock guarantees exactly one.
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
        // The wrap names this key by its fingerprint, but does not open with it.
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
    let mut last_error = VolumeError::HeaderInvalid("a key has no wrap".to_owned());
    for wrap in wraps {
        match open(wrap) {
            Ok(dek) => return Ok(dek),
            Err(error) => last_error = error.into(),
        }
    }
    Err(last_error)
}
