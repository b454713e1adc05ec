//! Wraps the key sets of a volume for its superblock, and unwraps those that a superblock holds.

use super::error::VolumeError;
use super::header::{HeaderContents, KeySetState, WrappedKeySet};
use super::slot::{Slots, SlottedKey};
use crate::ids::VolumeId;
use crate::keys::PlatformKeystore;
use crate::keys::customer::CustomerKeyProvider;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::wrap::{self, WrapContext, WrapRecord};
use crate::layers::{CustomerDek, InfrastructureDek, KeyRing, KeySet};

/// Wraps both DEKs of a set: the customer DEK to every key of every slot, or to the platform's
/// second key if there are no slots. The platform's wraps are opened again.
pub(super) fn wrap_key_set(
    keystore: &PlatformKeystore,
    slots: &Slots,
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
        customer: match slots.is_empty() {
            true => vec![wrap_customer_with_platform_key(keystore, &context, set)?],
            false => wrap_for_slots(&slots.keys()?, &context, set)?,
        },
        infrastructure: vec![infrastructure],
    })
}

fn wrap_customer_with_platform_key(
    keystore: &PlatformKeystore,
    context: &WrapContext,
    set: &KeySet,
) -> Result<WrapRecord, KeyError> {
    let record = keystore.wrap_customer(context, &set.customer)?;
    let unwrapped = keystore.unwrap_customer(context, &record)?;
    match unwrapped.expose() == set.customer.expose() {
        true => Ok(record),
        false => Err(wrap_mismatch()),
    }
}

/// Wraps a customer DEK to these keys.
pub(super) fn wrap_for_slots(
    keys: &[SlottedKey],
    context: &WrapContext,
    set: &KeySet,
) -> Result<Vec<WrapRecord>, KeyError> {
    keys.iter()
        .map(|key| wrap::wrap_for_slot(key.slot.0, &key.version, context, &set.customer))
        .collect()
}

/// Proves that a provider opens what was wrapped to a key of it.
pub(super) fn prove_unwrap(
    provider: &dyn CustomerKeyProvider,
    keys: &[SlottedKey],
    volume: VolumeId,
    set: &KeySet,
    wrapped: &WrappedKeySet,
) -> Result<(), KeyError> {
    let context = WrapContext {
        volume,
        key_set: set.id,
        epoch: set.epoch,
    };
    let current = provider.current()?;
    let own = keys.iter().zip(&wrapped.customer);
    let mut own = own.filter(|(key, _)| key.version.key.is_same_key(&current.key));
    let (key, wrap) = own.next().ok_or_else(wrap_mismatch)?;
    let unwrapped = wrap::unwrap_from_slot(provider, &key.version, &context, wrap)?;
    match unwrapped.expose() == set.customer.expose() {
        true => Ok(()),
        false => Err(wrap_mismatch()),
    }
}

pub(super) fn wrap_mismatch() -> KeyError {
    KeyError::new(
        ErrorKind::WrongKey,
        "a wrapped key did not unwrap to the key that was wrapped",
    )
}

/// The keys of a superblock, unwrapped.
pub(super) struct Unwrapped {
    /// All key sets.
    pub(super) keys: KeyRing,
    /// The customer key that opened them; `None` for a platform-managed volume.
    pub(super) opened_by: Option<SlottedKey>,
}

/// Unwraps all key sets that a superblock lists, which need not be authenticated yet.
pub(super) fn unwrap_key_sets(
    header: &HeaderContents,
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
) -> Result<Unwrapped, VolumeError> {
    // The machine's own keys first: a provider is not asked in vain.
    let mut infrastructure = Vec::with_capacity(header.key_sets().len());
    for set in header.key_sets() {
        infrastructure.push(unwrap_infrastructure(
            keystore,
            &context_of(header, set),
            set,
        )?);
    }
    let customer = customer.map(|provider| CustomerKeys::find(header, provider));
    let customer = customer.transpose()?;
    let mut active = None;
    let mut read_only = Vec::new();
    for (set, infrastructure) in header.key_sets().iter().zip(infrastructure) {
        let context = context_of(header, set);
        let keys = KeySet {
            id: set.id,
            epoch: set.epoch,
            infrastructure,
            customer: match &customer {
                None => first_that_opens(set.customer.iter(), |wrap| {
                    keystore.unwrap_customer(&context, wrap)
                })?,
                Some(customer) => customer.unwrap(&context, set)?,
            },
        };
        match set.state {
            KeySetState::Active => active = Some(keys),
            KeySetState::ReadOnly => read_only.push(keys),
        }
    }
    // The parser of the superblock guarantees exactly one.
    let active =
        active.ok_or_else(|| VolumeError::HeaderInvalid("it has no active key set".to_owned()))?;
    Ok(Unwrapped {
        keys: KeyRing::new(active, read_only),
        opened_by: customer.map(|customer| customer.key),
    })
}

/// What identifies the DEKs of a set.
pub(super) fn context_of(header: &HeaderContents, set: &WrappedKeySet) -> WrapContext {
    WrapContext {
        volume: header.volume_id(),
        key_set: set.id,
        epoch: set.epoch,
    }
}

/// The key of a slot that a provider holds.
struct CustomerKeys<'a> {
    provider: &'a dyn CustomerKeyProvider,
    /// Its place among the wraps of every key set.
    place: usize,
    key: SlottedKey,
}

impl<'a> CustomerKeys<'a> {
    /// Finds a key of a slot that the provider has, and that opens the active set. Slots that name
    /// the provider's URI come first, since for others a provider may have to be asked in vain.
    fn find(
        header: &HeaderContents,
        provider: &'a dyn CustomerKeyProvider,
    ) -> Result<Self, VolumeError> {
        let uri = provider.uri().to_string();
        let names_it = |key: &SlottedKey| {
            let slot = header.slots().get(key.slot);
            slot.is_some_and(|slot| slot.provider == uri)
        };
        let mut keys: Vec<(usize, SlottedKey)> =
            header.slots().keys()?.into_iter().enumerate().collect();
        keys.sort_by_key(|(_, key)| !names_it(key));
        let active = header.key_sets().iter();
        let mut active = active.filter(|set| set.state == KeySetState::Active);
        let active = active
            .next()
            .ok_or_else(|| VolumeError::HeaderInvalid("it has no active key set".to_owned()))?;
        let context = context_of(header, active);
        let mut refused = None;
        for (place, key) in keys {
            let this = Self {
                provider,
                place,
                key,
            };
            match this.unwrap(&context, active) {
                Ok(_) => return Ok(this),
                Err(error) if error.kind() == ErrorKind::WrongKey => {}
                // Asking again would take as long.
                Err(error) if error.kind() == ErrorKind::KeyUnreachable => return Err(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| wrong_customer_key(provider, header)))
    }

    fn unwrap(
        &self,
        context: &WrapContext,
        set: &WrappedKeySet,
    ) -> Result<CustomerDek, VolumeError> {
        let wrap = set
            .customer
            .get(self.place)
            .ok_or_else(|| VolumeError::HeaderInvalid("a key has no wrap".to_owned()))?;
        wrap::unwrap_from_slot(self.provider, &self.key.version, context, wrap)
            .map_err(VolumeError::from)
    }
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

fn wrong_customer_key(provider: &dyn CustomerKeyProvider, header: &HeaderContents) -> VolumeError {
    let found = match provider.current() {
        Ok(version) => version.key.fingerprint().to_owned(),
        Err(_) => "not known".to_owned(),
    };
    let keys = header.slots().keys().unwrap_or_default();
    let wanted: Vec<&str> = keys
        .iter()
        .map(|key| key.version.key.fingerprint())
        .collect();
    VolumeError::WrongCustomerKey {
        given: provider.uri().to_string(),
        found,
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
