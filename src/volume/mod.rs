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
//! [`create_empty`] creates an empty volume, [`create_volume`] creates any volume, [`open`](open())
//! opens one, [`inspect`] shows what a superblock claims without any key, and [`rescue`](rescue())
//! opens the keys of a damaged volume.
//!
//! Invariants: the superblock is written last and atomically, so a directory with a `volume.json`
//! is a complete volume. An unverified superblock decides nothing except which wraps are tried with
//! keys that an option or the keystore named.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::ids::{CryptoId, Sequence};
use crate::keys::{KeyError, KeyUri, PassphraseSource, PlatformKeystore, VolumeRecord, WriterLock};
use crate::layers::KeyRing;
use crate::sealed::SlotState;
use crate::store::{HeldLock, Store, StoreLock, StorePath};
use crate::sys::clock::coarse_time;

mod authenticate;
pub mod change_slots;
mod claim;
pub mod copy_status;
pub mod create;
pub mod error;
mod expected;
mod find_holder;
pub mod follow_key;
pub mod header;
mod history;
pub mod holder;
mod identity;
mod key_wraps;
pub mod lock;
mod mark;
pub mod open;
mod record_update;
mod renew;
pub mod rescue;
mod rewrap_platform;
mod rollback;
pub mod slot;
pub mod spare;
mod succession;
mod superblock;
pub mod target_dir;
pub mod unlock;

pub use change_slots::{Consent, SlotChange};
pub use copy_status::CopyStatus;
pub use create::{Inheritance, KeyHolder, NewCustomer, NewVolume, create_empty, create_volume};
pub use error::VolumeError;
pub use expected::refuse_vanished;
pub use header::{KeyMode, Provenance, UnverifiedHeader, VerifiedHeader};
pub use open::{open, open_with_retry};
pub use renew::RenewFn;
pub use rescue::{Rescue, rescue};
pub use rewrap_platform::Rewrap;
pub use rollback::{LastKnown, Rollback};
pub use slot::{SlotNumber, Slots, SlottedKey};
pub use superblock::{claimed_id, inspect};
pub use unlock::{Unlocked, unlock};

/// Name of the superblock's file.
pub const HEADER_NAME: &str = "volume.json";
/// Name of the file that is locked.
pub const LOCK_NAME: &str = "lock";
/// Name of the metadata database's file.
pub const META_NAME: &str = "meta";
/// Name of the metadata file that is about to replace [`META_NAME`].
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

/// Options for creating a volume.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// The customer key; its public half is enough. Without one the volume is platform-managed.
    pub customer_key: Option<KeyUri>,
    /// Largest size of the contents, for the filesystem's metadata.
    pub size_bytes: Option<u64>,
    /// Directory of the platform keystore, which is created if missing.
    pub keystore: PathBuf,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
}

/// Options for opening a volume.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The customer key, if it is not the one the keystore remembers.
    pub customer_key: Option<KeyUri>,
    /// Directory of the platform keystore.
    pub keystore: PathBuf,
    /// The path that the volume is opened by, with symbolic links resolved. A volume that the
    /// keystore remembers there is expected even if the directory was renamed after the path was
    /// resolved.
    pub path: Option<PathBuf>,
    /// Paths that the user named and that may lead to the volume through symbolic links. A volume
    /// that the keystore remembers at one of them is expected too, since somebody may have put a
    /// link in its place.
    pub named: Vec<PathBuf>,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
    /// Open for reading only.
    pub read_only: bool,
    /// The fingerprint that the active key set must have.
    pub fingerprint: Option<String>,
    /// Open a volume even though the keystore knows a newer state of it, either to accept it as it
    /// is ([`Volume::renew`]) or only to read it.
    pub accept_restored: bool,
    /// Open a copy in order to give it an identity of its own ([`Volume::assign_new_identity`]).
    pub new_identity: bool,
}

/// A volume that is being created, with everything needed to write its metadata database.
#[derive(Debug)]
pub struct FreshVolume {
    /// The store that holds the volume.
    pub store: Arc<dyn Store>,
    /// The volume's keys: a fresh active set, and the inherited sets.
    pub keys: Arc<KeyRing>,
    /// Crypto id of `meta`.
    pub meta_crypto: CryptoId,
    /// Largest size of the contents.
    pub size_bytes: Option<u64>,
}

/// The customer key that opened a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenedBy {
    /// The URI that was opened.
    pub uri: KeyUri,
    /// The key, and its slot.
    pub key: SlottedKey,
}

/// An open volume. Its lock is held until this is dropped.
#[derive(Debug)]
pub struct Volume {
    /// The store that holds the volume.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Arc<KeyRing>,
    /// The customer key that opened it; `None` for a platform-managed volume.
    pub opened_by: Option<OpenedBy>,
    /// The keystore's record as it was when the volume was opened; `None` if the keystore knew
    /// nothing of this incarnation.
    pub record: Option<VolumeRecord>,
    /// Whether the volume may be older than the keystore knows.
    pub accepts_restored: bool,
    /// The superblock and the keystore. Only a re-wrap replaces them while the volume is open.
    key_state: RwLock<KeyState>,
    /// Held while `volume.json` or its spare copy is replaced.
    superblock: Mutex<()>,
    /// It was opened for reading only.
    read_only: bool,
    /// How the superblock is older than the keystore knows; set only if that was to be accepted.
    older_header: Option<Rollback>,
    /// The record that the keystore holds now.
    current: Mutex<VolumeRecord>,
    /// The customer key, if its slot was rotated to another URI meanwhile.
    customer_key: Mutex<RotatedKey>,
    /// How the volume's directory relates to the one in the record.
    copy_status: CopyStatus,
    /// Set for a copy that is to get an identity of its own; nothing is written before that.
    awaits_new_identity: bool,
    /// The right to write to the volume. It is dropped before the lock, because the next opener
    /// waits for the lock.
    #[expect(dead_code, reason = "held, never read")]
    writer: Option<WriterLock>,
    lock: Box<dyn StoreLock>,
}

/// What a rotation to another URI has changed for an open volume.
#[derive(Debug, Default)]
struct RotatedKey {
    /// The URI that the keystore's record has to name, and does not yet.
    to_record: Option<String>,
    /// The URI whose versions are followed.
    followed: Option<KeyUri>,
}

/// The superblock, and the keystore that holds the platform keys of its wraps.
#[derive(Clone, Debug)]
struct KeyState {
    header: Arc<VerifiedHeader>,
    keystore: Arc<PlatformKeystore>,
}

impl KeyState {
    fn new(header: VerifiedHeader, keystore: Arc<PlatformKeystore>) -> RwLock<Self> {
        let header = Arc::new(header);
        RwLock::new(Self { header, keystore })
    }
}

impl Volume {
    /// The superblock. Its ids stay the same while the volume is open; a re-wrap changes its number
    /// and its wraps.
    pub fn header(&self) -> Arc<VerifiedHeader> {
        Arc::clone(&self.key_state.read().header)
    }

    /// The platform keystore.
    pub fn keystore(&self) -> Arc<PlatformKeystore> {
        Arc::clone(&self.key_state.read().keystore)
    }

    /// The descriptors behind the lock, to prove to another process that it is held; `None` if the
    /// store has none.
    pub fn held_lock(&self) -> Option<HeldLock<'_>> {
        self.lock.held()
    }

    /// The fingerprint of the active key set.
    ///
    /// # Errors
    /// When it cannot be derived.
    pub fn fingerprint(&self) -> Result<String, VolumeError> {
        succession::fingerprint_of(&self.keys)
    }

    /// How the volume's directory relates to the one in the keystore's record.
    pub fn copy_status(&self) -> &CopyStatus {
        &self.copy_status
    }

    /// True for a copy. The age of a copy says nothing about the original.
    pub fn is_copy(&self) -> bool {
        matches!(self.copy_status, CopyStatus::Copy { .. })
    }

    /// True if the user wants the volume to replace an original that no longer exists.
    pub fn replaces_original(&self) -> bool {
        self.accepts_restored && matches!(self.copy_status, CopyStatus::Unknown { .. })
    }

    /// Refuses a directory that is not the volume itself, or that has not yet got its own identity.
    ///
    /// # Errors
    /// When the directory is a copy, or may be one.
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

    /// Writes the state of the volume's history to the keystore's record: the newest durable
    /// commit, the tags of page 0, and whether this was a clean unmount. Call it after the commit
    /// is durable.
    ///
    /// # Errors
    /// When the keystore cannot be written.
    pub fn remember(
        &self,
        sequence: Sequence,
        page0_tags: [[u8; 16]; 2],
        clean: bool,
    ) -> Result<(), KeyError> {
        // Without a location the old one stays: a wrong one would make a copy pass for the volume.
        let place = self.store.directory_identity().unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "the location of the volume's directory cannot be determined now"
            );
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
            && !expected::is_of_another(&self.keystore(), self.header().volume_id(), &next, place)?
        {
            next.set_directory(place.into());
        }
        // A later caller may have finished first.
        if *current != next && sequence >= current.sequence {
            // Never move the time back: a location belongs to the volume that was written there
            // last.
            next.written = next.written.max(Some(coarse_time().secs));
            self.keystore()
                .update_record(self.header().volume_id(), &next)?;
            *current = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
