//! A volume: a directory with a superblock, a lock, a metadata file and objects.
//!
//! ```text
//! volume/
//!   volume.json      superblock (see [`header`])
//!   lock             locked while the volume is open; marked while it is being made
//!   meta             sealed file: the metadata database
//!   objects/         sealed files: contents
//!   checkpoints/     sealed files: copies of the metadata database; a spare superblock ([`spare`])
//! ```
//!
//! [`create_empty`] makes an empty one, [`create_volume`] any, [`open`](open()) opens one,
//! [`inspect`] shows what a superblock claims without any key, [`rescue`](rescue()) opens the keys of a damaged one.
//!
//! Invariants: the superblock is written last and atomically, so a directory with a `volume.json`
//! is a whole volume; what an unverified superblock says decides nothing but which wraps are tried
//! with keys that option or keystore named.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::{CryptoId, Sequence};
use crate::keys::{
    CustomerKeyProvider, KeyError, KeyUri, PassphraseSource, PlatformKeystore, VolumeRecord,
    WriterLock,
};
use crate::layers::KeyRing;
use crate::sealed::SlotState;
use crate::store::{HeldLock, Store, StoreLock, StorePath};
use crate::sys::clock::coarse_time;

pub mod copy_status;
pub mod create;
pub mod error;
mod expected;
pub mod header;
mod history;
pub mod holder;
mod identity;
pub mod lock;
pub mod open;
mod renew;
pub mod rescue;
pub mod spare;
mod succession;
mod superblock;
pub mod target_dir;

pub use copy_status::CopyStatus;
pub use create::{Inheritance, KeyHolder, NewVolume, create_empty, create_volume};
pub use error::VolumeError;
pub use expected::refuse_vanished;
pub use header::{KeyMode, Provenance, UnverifiedHeader, VerifiedHeader};
pub use history::{LastKnown, Rollback};
pub use open::{claimed_id, open, open_with_retry};
pub use renew::RenewFn;
pub use rescue::{Rescue, rescue};
pub use superblock::inspect;

/// Name of the superblock's file.
pub const HEADER_NAME: &str = "volume.json";
/// Name of the file that is locked.
pub const LOCK_NAME: &str = "lock";
/// Name of the metadata database's file.
pub const META_NAME: &str = "meta";
/// Name of the metadata database's file that is about to take the place of [`META_NAME`].
pub const NEXT_META_NAME: &str = "meta.next";
/// Name of the directory with the objects.
pub const OBJECTS_NAME: &str = "objects";

fn header_path() -> StorePath {
    StorePath::new(HEADER_NAME)
}

fn lock_path() -> StorePath {
    StorePath::new(LOCK_NAME)
}

fn meta_path() -> StorePath {
    StorePath::new(META_NAME)
}

fn next_meta_path() -> StorePath {
    StorePath::new(NEXT_META_NAME)
}

fn objects_path() -> StorePath {
    StorePath::new(OBJECTS_NAME)
}

/// How to make a volume.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// The customer key; without one the volume is platform-managed. Its public half is enough.
    pub customer_key: Option<KeyUri>,
    /// Largest size of the contents, for the filesystem's metadata.
    pub size_bytes: Option<u64>,
    /// Directory of the platform keystore; made where missing.
    pub keystore: PathBuf,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
}

/// How to open a volume.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The customer key, where it is not the one the keystore remembers.
    pub customer_key: Option<KeyUri>,
    /// Directory of the platform keystore.
    pub keystore: PathBuf,
    /// The path that the volume is opened by, without links: a volume that the keystore remembers
    /// there counts even if the directory was renamed since the path was resolved.
    pub path: Option<PathBuf>,
    /// Paths that were named and may lead to it by links: a volume that the keystore remembers
    /// there counts too, since a link may have been put in its place.
    pub named: Vec<PathBuf>,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
    /// Nothing will be written to the volume.
    pub read_only: bool,
    /// The fingerprint that the active key set must have.
    pub fingerprint: Option<String>,
    /// A volume that is older than the keystore knows it is opened all the same, to be taken as it
    /// is ([`Volume::renew`]), or only looked at.
    pub accept_restored: bool,
    /// A copy of a volume is opened, to become a volume of its own ([`Volume::assign_new_identity`]).
    pub new_identity: bool,
}

/// A volume that is being made: all that is needed to write its metadata database.
#[derive(Debug)]
pub struct FreshVolume {
    /// Where it is.
    pub store: Arc<dyn Store>,
    /// Its keys: a fresh active set, and those it inherits.
    pub keys: Arc<KeyRing>,
    /// Crypto id of `meta`.
    pub meta_crypto: CryptoId,
    /// Largest size of the contents.
    pub size_bytes: Option<u64>,
}

/// An open volume; the lock is held until it is dropped.
#[derive(Debug)]
pub struct Volume {
    /// Where it is.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Arc<KeyRing>,
    /// Its superblock.
    pub header: VerifiedHeader,
    /// The public half of its customer key; `None` for a platform-managed volume.
    pub customer_key: Option<Arc<dyn CustomerKeyProvider>>,
    /// The platform keystore.
    pub keystore: Arc<PlatformKeystore>,
    /// What the keystore remembered when the volume was opened; `None` when it knew nothing of this
    /// incarnation.
    pub record: Option<VolumeRecord>,
    /// It may be older than the keystore knows.
    pub accepts_restored: bool,
    /// How the superblock is older than the keystore knows; only where that was to be accepted.
    older_header: Option<Rollback>,
    /// The record as it is in the keystore now.
    current: Mutex<VolumeRecord>,
    /// What its directory is to the record.
    copy_status: CopyStatus,
    /// It is a copy that is about to become a volume of its own, and nothing is written before.
    awaits_new_identity: bool,
    /// The right to write to it; goes before the lock, for which the next one waits.
    #[expect(dead_code, reason = "held, never read")]
    writer: Option<WriterLock>,
    lock: Box<dyn StoreLock>,
}

impl Volume {
    /// What this process can show of the lock that it holds; `None` where there is none to show.
    pub fn held_lock(&self) -> Option<HeldLock<'_>> {
        self.lock.held()
    }

    /// The fingerprint of the active key set.
    ///
    /// # Errors
    /// When it cannot be derived.
    pub fn fingerprint(&self) -> Result<String, VolumeError> {
        open::fingerprint_of(&self.keys)
    }

    /// What its directory is to the keystore's record.
    pub fn copy_status(&self) -> &CopyStatus {
        &self.copy_status
    }

    /// True for a copy, whose age says nothing of the volume that it is a copy of.
    pub fn is_copy(&self) -> bool {
        matches!(self.copy_status, CopyStatus::Copy { .. })
    }

    /// True where it is to take the place of an original that is gone for good.
    pub fn takes_over(&self) -> bool {
        self.accepts_restored && matches!(self.copy_status, CopyStatus::Unknown { .. })
    }

    /// Refuses what is not the volume itself, or not yet.
    ///
    /// # Errors
    /// When it is a copy, or may be one.
    pub fn check_writer(&self) -> Result<(), VolumeError> {
        let record = self.record.as_ref();
        match self.copy_status.refusal(record, false) {
            Some(refusal) => Err(refusal),
            None if self.awaits_new_identity => Err(VolumeError::NotACopy),
            None => Ok(()),
        }
    }

    /// Compares the slots of page 0 of `meta` with what the keystore knows.
    ///
    /// # Errors
    /// When the volume is older than it is known to be.
    pub fn check_rollback(&self, slots: &[SlotState; 2]) -> Result<(), Rollback> {
        match &self.older_header {
            Some(older) => Err(older.clone()),
            None => history::check_metadata_rollback(slots, self.record.as_ref()),
        }
    }

    /// Tells the keystore where the volume's history stands: the newest durable commit, the tags of
    /// page 0, and whether this was a clean unmount. To be called after the commit is durable.
    ///
    /// # Errors
    /// When the keystore cannot be written.
    pub fn remember(
        &self,
        sequence: Sequence,
        page0_tags: [[u8; 16]; 2],
        clean: bool,
    ) -> Result<(), KeyError> {
        // Where it cannot be told the old one stays: a wrong one would make a copy the volume.
        let place = self.store.directory_identity().unwrap_or_else(|error| {
            tracing::warn!(%error, "where the volume's directory is cannot be told now");
            None
        });
        let mut current = self.current.lock();
        let mut next = VolumeRecord {
            sequence,
            page0_tags,
            clean,
            ..current.clone()
        };
        if let Some(place) = &place
            && !expected::is_of_another(&self.keystore, self.header.volume_id(), &next, place)?
        {
            next.set_directory(place.into());
        }
        // Somebody who asked later may have been faster.
        if *current != next && sequence >= current.sequence {
            // Never back: the volume that was written last is the one that a place belongs to.
            next.written = next.written.max(Some(coarse_time().0));
            self.keystore
                .update_record(self.header.volume_id(), &next)?;
            *current = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
