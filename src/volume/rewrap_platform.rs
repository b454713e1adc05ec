//! Re-wraps the data keys of an open volume with the newest platform keys, after the platform
//! keystore was rotated. The key sets and everything sealed under them stay as they are, and so do
//! checkpoints, which hold no wraps. A volume in use is neither paused nor otherwise affected.
//!
//! Order of writes, each durable before the next:
//! 1. `volume.json` with the new wraps behind the old ones;
//! 2. it is read back, and the new wraps in it are unwrapped and compared with the data keys;
//! 3. `volume.json` with the new wraps alone;
//! 4. its spare copy, if there is one;
//! 5. the keystore's record, which says which platform keys the volume needs.
//!
//! A crash leaves a superblock that opens with the old version or with both. The old version is
//! not dropped before step 5 ([`crate::keys::keystore`]), and the next use that may write repeats
//! what is missing.

use std::collections::BTreeSet;

use super::error::VolumeError;
use super::header::{HeaderContents, UnverifiedHeader, VerifiedHeader, WrappedKeySet};
use super::key_wraps::wrap_mismatch;
use super::superblock::{inspect, replace_header};
use super::{Volume, header_path, spare};
use crate::audit::Record;
use crate::keys::wrap::{PlatformVersion, WrapContext, WrapRecord};
use crate::keys::{PlatformKeystore, VolumeRecord};
use crate::layers::KeySet;
use crate::store::Store;

/// The outcome of a re-wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rewrap {
    /// There was nothing to do.
    Current,
    /// The data keys are wrapped with this version now.
    Done(PlatformVersion),
}

/// The versions of platform keys that a superblock names; `None` if a wrap of it names none.
pub(super) fn platform_versions(header: &HeaderContents) -> Option<BTreeSet<PlatformVersion>> {
    platform_wraps(header)
        .map(WrapRecord::platform_version)
        .collect()
}

/// The versions that a superblock and its spare copy name.
pub(super) fn versions_in_use(
    store: &dyn Store,
    header: &HeaderContents,
) -> Option<BTreeSet<PlatformVersion>> {
    let mut versions = platform_versions(header)?;
    if let Some(spare) = spare::claims(store)
        && spare.claims().volume_id() == header.volume_id()
    {
        versions.extend(platform_versions(spare.claims())?);
    }
    Some(versions)
}

fn platform_wraps(header: &HeaderContents) -> impl Iterator<Item = &WrapRecord> {
    let sets = header.key_sets().iter();
    let wraps = sets.flat_map(|set| set.infrastructure.iter().chain(&set.customer));
    wraps.filter(|wrap| wrap.is_platform())
}

/// True if a wrap is of a superseded version, or an interrupted re-wrap left more than one.
fn is_stale(header: &HeaderContents, keystore: &PlatformKeystore) -> bool {
    let is_superseded = |wrap: &WrapRecord| {
        let version = wrap.platform_version();
        version.is_none_or(|version| keystore.is_superseded(version))
    };
    let has_several = |set: &WrappedKeySet| {
        let customer = set.customer.iter().filter(|wrap| wrap.is_platform());
        set.infrastructure.len() > 1 || customer.count() > 1
    };
    platform_wraps(header).any(is_superseded) || header.key_sets().iter().any(has_several)
}

impl Volume {
    /// Wraps the data keys with the newest version of the keystore, if another version wraps them
    /// now, and finishes an interrupted re-wrap. The volume stays in use meanwhile.
    ///
    /// # Errors
    /// The volume may not be written, the keystore cannot be read, or a write fails. The volume
    /// then opens as before, and the old version stays needed.
    pub fn rewrap_platform(&self) -> Result<Rewrap, VolumeError> {
        let _turn = self.superblock.lock();
        let before = self.keystore();
        let is_finished = self.is_record_current();
        if !before.was_rotated()? && is_finished && !is_stale(&self.header(), &before) {
            return Ok(Rewrap::Current);
        }
        if self.read_only {
            return Err(VolumeError::ReadOnlyMedium);
        }
        self.check_writer()?;
        let newest = PlatformKeystore::open(before.directory())?;
        before.check_identity()?;
        let is_stale = is_stale(&self.header(), &newest);
        if !is_stale && is_finished {
            self.key_state.write().keystore = newest.into();
            return Ok(Rewrap::Current);
        }
        let rewrapped = self.rewrap_with(newest, is_stale);
        let header = self.header();
        Record::new("rewrap-platform-key")
            .volume(header.volume_id())
            .with("header_sequence", header.header_sequence())
            .with_text("key_version", self.keystore().current_name())
            .outcome(&rewrapped);
        rewrapped
    }

    fn rewrap_with(&self, newest: PlatformKeystore, stale: bool) -> Result<Rewrap, VolumeError> {
        let name = newest.current_name();
        if stale {
            let wrapped = self.wrap_anew(&newest)?;
            let header = self.header();
            let both = header.key_sets().iter().zip(&wrapped);
            let both = both
                .map(|(old, new)| with_both(&newest, old, new))
                .collect();
            self.replace_wraps(both)?;
            self.prove(&newest, &wrapped)?;
            self.replace_wraps(wrapped)?;
        }
        self.key_state.write().keystore = newest.into();
        self.renew_spare()?;
        self.record_superblock(|_| ())?;
        Ok(Rewrap::Done(name))
    }

    /// All key sets with wraps of the current version in the place of those of other versions.
    fn wrap_anew(&self, keystore: &PlatformKeystore) -> Result<Vec<WrappedKeySet>, VolumeError> {
        let header = self.header();
        let wrap = |set: &WrappedKeySet| {
            let (keys, context) = (self.key_set(set)?, self.context_of(set));
            let infrastructure = keystore.wrap_infrastructure(&context, &keys.infrastructure)?;
            let mut wrapped = WrappedKeySet {
                infrastructure: vec![infrastructure],
                ..set.clone()
            };
            if set.customer.iter().any(WrapRecord::is_platform) {
                let customer = keystore.wrap_customer(&context, &keys.customer)?;
                wrapped.customer.retain(|wrap| !wrap.is_platform());
                wrapped.customer.push(customer);
            }
            Ok(wrapped)
        };
        header.key_sets().iter().map(wrap).collect()
    }

    fn key_set(&self, wrapped: &WrappedKeySet) -> Result<&KeySet, VolumeError> {
        let keys = self.keys.get(wrapped.epoch);
        let keys = keys.filter(|keys| keys.id == wrapped.id);
        keys.map(|keys| &**keys)
            .ok_or_else(|| VolumeError::HeaderInvalid("a key set of it is not at hand".to_owned()))
    }

    fn context_of(&self, set: &WrappedKeySet) -> WrapContext {
        WrapContext {
            volume: self.header().volume_id(),
            key_set: set.id,
            epoch: set.epoch,
        }
    }

    /// Writes a superblock with these wraps; durable on return.
    fn replace_wraps(&self, key_sets: Vec<WrappedKeySet>) -> Result<(), VolumeError> {
        let above = self.current.lock().header_sequence;
        self.replace_superblock(self.header().rewrapped(key_sets, above))
    }

    /// Writes a superblock with these contents; durable on return.
    pub(super) fn replace_superblock(&self, contents: HeaderContents) -> Result<(), VolumeError> {
        let (header, bytes) = VerifiedHeader::seal(contents, &self.keys)?;
        if let Err(error) = replace_header(&*self.store, &bytes) {
            // Its last step may have failed, with the new one in place.
            let written = inspect(&*self.store).and_then(|found| found.verify(&self.keys));
            if written.is_ok_and(|written| written == header) {
                self.key_state.write().header = header.into();
            }
            return Err(error);
        }
        self.key_state.write().header = header.into();
        Ok(())
    }

    /// Reads the superblock back, and unwraps the new wraps in it.
    fn prove(
        &self,
        keystore: &PlatformKeystore,
        wrapped: &[WrappedKeySet],
    ) -> Result<(), VolumeError> {
        let bytes = spare::read(&*self.store, &header_path())
            .map_err(VolumeError::io("cannot read volume.json"))?;
        let written = UnverifiedHeader::parse(&bytes)?.verify(&self.keys)?;
        if written != *self.header() {
            return Err(VolumeError::Tampered);
        }
        for (set, new) in written.key_sets().iter().zip(wrapped) {
            let (keys, context) = (self.key_set(set)?, self.context_of(set));
            for wrap in new.infrastructure.iter().chain(&new.customer) {
                let is_there = set.infrastructure.contains(wrap) || set.customer.contains(wrap);
                if !is_there {
                    return Err(VolumeError::Tampered);
                }
            }
            for wrap in &new.infrastructure {
                let unwrapped = keystore.unwrap_infrastructure(&context, wrap)?;
                if unwrapped.expose() != keys.infrastructure.expose() {
                    return Err(wrap_mismatch().into());
                }
            }
            for wrap in new.customer.iter().filter(|wrap| wrap.is_platform()) {
                let unwrapped = keystore.unwrap_customer(&context, wrap)?;
                if unwrapped.expose() != keys.customer.expose() {
                    return Err(wrap_mismatch().into());
                }
            }
        }
        Ok(())
    }

    /// Replaces an existing spare copy of the superblock.
    pub(super) fn renew_spare(&self) -> Result<(), VolumeError> {
        const DOING: &str = "cannot replace the spare copy of volume.json";
        match self.store.info(&spare::spare_path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(VolumeError::io(DOING))?,
        };
        let header = self.header();
        spare::keep(&*self.store, &self.keys, &header).map_err(VolumeError::io(DOING))?;
        // An unexpected volume.json is not copied.
        let written = spare::claims(&*self.store).map(|spare| spare.verify(&self.keys));
        match written {
            Some(Ok(written)) if written == *header => Ok(()),
            _ => Err(VolumeError::Tampered),
        }
    }

    /// Updates the spare copy of the superblock, which may not exist yet.
    ///
    /// # Errors
    /// When the store fails. The older copy is then unchanged.
    pub fn keep_spare(&self) -> std::io::Result<()> {
        let _turn = self.superblock.lock();
        spare::keep(&*self.store, &self.keys, &self.header())
    }

    /// True if the keystore's record describes the superblock.
    fn is_record_current(&self) -> bool {
        let is_recorded = self.customer_key.lock().to_record.is_none();
        let (header, current) = (self.header(), self.current.lock());
        is_recorded
            && current.platform == platform_versions(&header)
            && current.header_sequence >= header.header_sequence()
    }

    /// Writes to the keystore's record what it has to know of the superblock, and `change`.
    pub(super) fn record_superblock(
        &self,
        change: impl FnOnce(&mut VolumeRecord),
    ) -> Result<(), VolumeError> {
        let header = self.header();
        let mut rotated = self.customer_key.lock();
        let mut current = self.current.lock();
        let mut next = VolumeRecord {
            platform: platform_versions(&header),
            header_sequence: current.header_sequence.max(header.header_sequence()),
            ..current.clone()
        };
        if let Some(uri) = &rotated.to_record {
            next.customer_key = Some(uri.clone());
        }
        change(&mut next);
        self.keystore()
            .update_record(header.volume_id(), &next)
            .map_err(VolumeError::CannotRemember)?;
        *current = next;
        rotated.to_record = None;
        Ok(())
    }
}

/// The key set with an old wrap that opens it, and the new ones behind it.
fn with_both(
    keystore: &PlatformKeystore,
    old: &WrappedKeySet,
    new: &WrappedKeySet,
) -> WrappedKeySet {
    // One old wrap is enough, and an interrupted re-wrap may have left several.
    let platform = |wraps: &[WrapRecord]| -> Vec<WrapRecord> {
        let opens = |wrap: &&WrapRecord| {
            let version = wrap.platform_version();
            version.is_some_and(|version| keystore.has_version(version))
        };
        wraps.iter().find(opens).cloned().into_iter().collect()
    };
    let mut both = new.clone();
    both.infrastructure
        .splice(0..0, platform(&old.infrastructure));
    let customer = platform(&old.customer);
    if !customer.is_empty() {
        both.customer.splice(0..0, customer);
    }
    both
}
