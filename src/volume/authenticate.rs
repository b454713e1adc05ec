//! Authenticates a superblock: the steps that opening a volume and rescuing one have in common.

use super::error::VolumeError;
use super::expected::RememberedHere;
use super::header::{HeaderContents, KeyMode, UnverifiedHeader, VerifiedHeader};
use super::key_wraps::{Unwrapped, unwrap_key_sets};
use super::succession::{Ancestry, fingerprint_of};
use super::{OpenOptions, OpenedBy};
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::keys::error::KeyError;
use crate::keys::uri::Scheme;
use crate::keys::{KeyUri, PassphraseSource, PlatformKeystore, VolumeRecord};
use crate::layers::KeyRing;
use crate::store::DirectoryIdentity;

/// A superblock that authenticates, and everything it was authenticated with.
pub(super) struct Authenticated {
    /// The platform keystore.
    pub(super) keystore: PlatformKeystore,
    /// The keystore's record of the volume.
    pub(super) record: Option<VolumeRecord>,
    /// The customer key that opened it; `None` for a platform-managed volume.
    pub(super) opened_by: Option<OpenedBy>,
    /// The unwrapped key sets.
    pub(super) keys: KeyRing,
    /// The superblock.
    pub(super) header: VerifiedHeader,
    /// The active key set and those that it follows.
    pub(super) ancestry: Ancestry,
}

impl Authenticated {
    /// Unwraps the keys that a superblock lists, verifies its MAC, and checks that the active key
    /// set matches the pinned fingerprint and the keystore's record.
    pub(super) fn new(
        unverified: UnverifiedHeader,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let claims = unverified.claims();
        let keystore = PlatformKeystore::open(&options.keystore)?;
        let record = keystore.record(claims.volume_id())?;
        let provider = open_customer_key(claims, options, record.as_ref())?;
        let Unwrapped { keys, opened_by } =
            unwrap_key_sets(claims, &keystore, provider.as_deref())?;
        // The provider is dropped here. A child process that probes an unresponsive filesystem, and
        // is left behind, would otherwise keep a copy of a private key.
        let opened_by = provider.zip(opened_by).map(|(provider, key)| OpenedBy {
            uri: provider.uri().clone(),
            key,
        });
        let header = unverified.verify(&keys)?;
        let ancestry = Ancestry::of(&header, &keys)?;
        let this = Self {
            keystore,
            record,
            opened_by,
            keys,
            header,
            ancestry,
        };
        if let Some(pinned) = options.fingerprint.as_deref() {
            check_pin(pinned, &this.ancestry, &this.keys)?;
        }
        this.refuse_unknown_key_set(this.record.as_ref())?;
        Ok(this)
    }

    /// Refuses a volume whose active key set neither is in the record nor follows a set that is.
    pub(super) fn refuse_unknown_key_set(
        &self,
        record: Option<&VolumeRecord>,
    ) -> Result<(), VolumeError> {
        match record.is_some_and(|record| self.ancestry.is_unknown_to(&record.key_sets)) {
            true => Err(VolumeError::UnknownKeySet {
                record: self.keystore.record_path(self.header.volume_id()),
            }),
            false => Ok(()),
        }
    }

    /// The other volumes that the keystore remembers at this location, and at the paths by which
    /// the user named it.
    pub(super) fn remembered_here<'a>(
        &self,
        location: Option<&'a DirectoryIdentity>,
        options: &'a OpenOptions,
    ) -> Result<RememberedHere<'a>, KeyError> {
        let id = self.header.volume_id();
        RememberedHere::of(&self.keystore, id, location, options.path.as_deref())?.with_named(
            &self.keystore,
            id,
            &options.named,
        )
    }
}

/// Opens the customer key that the option or the record names; `None` for a platform-managed
/// volume.
fn open_customer_key(
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
    if let Scheme::File(path) = uri.scheme()
        && customer::file::is_missing(uri, path)
    {
        return Err(VolumeError::RememberedKeyGone {
            path: path.to_owned(),
        });
    }
    Ok(customer::open(uri, passphrase)?)
}

fn claimed_provider(claims: &HeaderContents) -> String {
    let first = claims.slots().iter().next();
    first.map(|slot| slot.provider.clone()).unwrap_or_default()
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
