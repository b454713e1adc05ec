//! Gives a copy of a volume an identity of its own (`bilayer mount --new-identity`).
//!
//! The original continues to exist and may be in use meanwhile. So the copy gets its own version of
//! everything that it would share: a volume id, an incarnation, a crypto id of `meta`, a fresh
//! active key set under which everything new is written, and private files if the copy was made
//! with hard links. All other key sets are wrapped again, since a wrap names its volume, and are
//! read-only. No key set of the original vouches for the new one: this is another volume, and a
//! fingerprint that was pinned for the original does not match it. Its provenance names the volume
//! that it was copied from.
//!
//! Order of writes, each durable before the next:
//! 1. objects that another directory shares by hard links are copied, one by one;
//! 2. the keystore's record of the new id, which is still unused;
//! 3. all of `meta.next`, and its directory entry;
//! 4. `volume.json`, which names the id, the incarnation, the key sets and the crypto id of that
//!    file;
//! 5. `meta.next` replaces `meta`;
//! 6. the checkpoints are removed, and the new superblock becomes the spare copy.
//!
//! A crash before step 4 leaves the copy as it was, and perhaps a record of an unused id. A crash
//! after step 4 leaves a volume of its own; the next use that may write finishes steps 5 and 6. The
//! record and the directory of the original are never changed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::copy_status::CopyStatus;
use super::error::VolumeError;
use super::expected::next_written_time;
use super::find_holder::find_holder;
use super::header::{HeaderContents, KeySetState, Provenance, VerifiedHeader, WrappedKeySet};
use super::key_wraps::wrap_key_set;
use super::renew::{NewMeta, RenewFn, next_key_set, swap_in_next_meta, write_next_meta};
use super::rewrap_platform::platform_versions;
use super::succession::known_key_set;
use super::superblock::{OBJECT_NAME, discard_aside, replace_header};
use super::{KeyState, Volume, objects_path, spare};
use crate::audit::Record;
use crate::ids::{CryptoId, IncarnationId, Sequence, VolumeId};
use crate::keys::{KeyError, VolumeRecord, WriterLock, WriterLocked};
use crate::layers::{KeyRing, KeySet};
use crate::store::{EntryKind, OpenMode, Store, StorePath, duplicate};

impl Volume {
    /// Gives a copy that was opened for this
    /// ([`OpenOptions::new_identity`](super::OpenOptions::new_identity)) an identity of its own.
    /// Its commits are counted from `first` on. `fill` writes the unchanged metadata into the new
    /// `meta`.
    ///
    /// # Errors
    /// When the copy cannot have another key set, it shares files with a volume that is in use,
    /// a key is not available, or a write fails. An error of `fill` is returned as
    /// [`VolumeError::Format`]. The copy is unchanged then, or the next use finishes what was
    /// begun.
    pub fn assign_new_identity(
        self,
        first: Sequence,
        fill: &mut RenewFn<'_>,
    ) -> Result<Self, VolumeError> {
        let before = self.header().volume_id();
        let separated = self.assign_unaudited(first, fill);
        let now = separated.as_ref().map(|now| now.header().volume_id());
        Record::new("new-identity")
            .volume(now.unwrap_or(before))
            .with_text("copy_of", before)
            .outcome(&separated);
        separated
    }

    fn assign_unaudited(
        self,
        first: Sequence,
        fill: &mut RenewFn<'_>,
    ) -> Result<Self, VolumeError> {
        let id = VolumeId::random().map_err(KeyError::random)?;
        let incarnation = IncarnationId::random().map_err(KeyError::random)?;
        let new_meta = NewMeta {
            crypto: CryptoId::random().map_err(KeyError::random)?,
            first,
        };
        let active = next_key_set(&self.header())?;
        let contents = HeaderContents::fresh(
            id,
            incarnation,
            new_meta.crypto,
            self.header().slots().clone(),
            self.wrap_all(id, &active)?,
            Some(self.copied_from()),
        );
        let sets: Vec<_> = self.keys.iter().map(Arc::clone).collect();
        let keys = KeyRing::inheriting(active, &sets);
        // Sealed before the slow part, since it may break a rule.
        let (header, bytes) = VerifiedHeader::seal(contents, &keys)?;

        // The volume belongs to this location, even if the directory is moved meanwhile.
        let place = self
            .store
            .directory_identity()
            .map_err(VolumeError::unknown_location)?;
        self.unshare_objects()?;
        let written = next_written_time(&self.keystore(), id, place.as_ref())?;
        let uri = self.opened_by.as_ref().map(|opened| opened.uri.to_string());
        let begun = VolumeRecord {
            header_sequence: header.header_sequence(),
            key_sets: vec![known_key_set(keys.active())?],
            customer_key: uri,
            platform: platform_versions(&header),
            directory: place.as_ref().map(Into::into),
            written: Some(written),
            ..VolumeRecord::new(incarnation)
        };
        let mut announced = || {
            let writer = self.lock_identity(id)?;
            self.keystore()
                .update_record(id, &begun)
                .map_err(VolumeError::CannotRemember)?;
            write_next_meta(&*self.store, &keys, new_meta, fill)?;
            Ok(writer)
        };
        let writer = announced().inspect_err(|_: &VolumeError| {
            // The id is unused. A leftover record does no harm.
            let _ = self.keystore().forget(id);
        })?;
        replace_header(&*self.store, &bytes)?;
        swap_in_next_meta(&*self.store)?;
        spare::replace(&*self.store, &keys, &header).map_err(VolumeError::io(
            "cannot replace the spare copy of volume.json",
        ))?;
        Ok(Self {
            keys: Arc::new(keys),
            key_state: KeyState::new(header, self.keystore()),
            record: Some(begun.clone()),
            older_header: None,
            current: Mutex::new(begun),
            copy_status: CopyStatus::Own,
            awaits_new_identity: false,
            writer,
            ..self
        })
    }

    /// Wraps all key sets of the copy as read-only, and the active set, for the new id.
    fn wrap_all(&self, id: VolumeId, active: &KeySet) -> Result<Vec<WrappedKeySet>, VolumeError> {
        let header = self.header();
        let keystore = self.keystore();
        let wrap = |set: &KeySet, state| wrap_key_set(&keystore, header.slots(), id, set, state);
        let mut sets: Vec<&Arc<KeySet>> = self.keys.iter().collect();
        sets.sort_by_key(|set| set.epoch);
        let mut wrapped = Vec::with_capacity(sets.len() + 1);
        for set in sets {
            wrapped.push(wrap(set, KeySetState::ReadOnly)?);
        }
        wrapped.push(wrap(active, KeySetState::Active)?);
        Ok(wrapped)
    }

    /// The provenance of a copy of a whole volume. No image has the empty name.
    fn copied_from(&self) -> Provenance {
        Provenance {
            volume: self.header().volume_id(),
            image: String::new(),
            foreign: self.header().is_foreign(),
        }
    }

    fn lock_identity(&self, id: VolumeId) -> Result<Option<WriterLock>, VolumeError> {
        let Some(place) = self
            .store
            .directory_identity()
            .map_err(VolumeError::unknown_location)?
        else {
            return Ok(None);
        };
        match self.keystore().lock_writer(id, &place.path)? {
            WriterLocked::Own(writer) => Ok(Some(writer)),
            WriterLocked::Held(by) => Err(VolumeError::SharesFiles {
                by: by.map(|path| find_holder(path, id, &place)),
            }),
        }
    }

    /// Replaces objects that another directory links to by private copies. The original cannot be
    /// written to meanwhile.
    fn unshare_objects(&self) -> Result<(), VolumeError> {
        const DOING: &str = "cannot copy an object that is shared with the original";
        let shared = shared_objects(&*self.store).map_err(VolumeError::io(DOING))?;
        if shared.is_empty() {
            return Ok(());
        }
        let _original = self.lock_identity(self.header().volume_id())?;
        tracing::info!(
            objects = shared.len(),
            "objects are shared with another directory, and get copies"
        );
        shared
            .iter()
            .try_for_each(|names| replace_with_copy(&*self.store, names))
            .and_then(|()| sync_folders(&*self.store, &shared))
            .map_err(VolumeError::io(DOING))
    }
}

/// Objects with more links than names in this volume, each with all its names.
fn shared_objects(store: &dyn Store) -> io::Result<Vec<Vec<StorePath>>> {
    let mut linked: BTreeMap<u64, (u64, Vec<StorePath>)> = BTreeMap::new();
    for (folder, kind) in store.list(&objects_path())? {
        let folder = StorePath::new(&format!("{}/{folder}", objects_path().as_str()));
        if kind != EntryKind::Directory {
            continue;
        }
        for (object, _) in store.list(&folder)? {
            let path = StorePath::new(&format!("{}/{object}", folder.as_str()));
            let info = store.info(&path)?;
            if info.kind == EntryKind::File && info.links > 1 {
                let entry = linked.entry(info.number).or_default();
                entry.0 = info.links;
                entry.1.push(path);
            }
        }
    }
    let shared = linked
        .into_values()
        .filter(|(links, names)| *links > names.len() as u64);
    Ok(shared.map(|(_, names)| names).collect())
}

/// Replaces a file under all its names by one copy, which is durable before it gets the first name.
fn replace_with_copy(store: &dyn Store, names: &[StorePath]) -> io::Result<()> {
    let Some((first, others)) = names.split_first() else {
        return Ok(());
    };
    let aside = discard_aside(store, OBJECT_NAME)?;
    duplicate(store, first, &aside)?;
    store.open(&aside, OpenMode::ReadWrite)?.sync()?;
    store.rename(&aside, first)?;
    for name in others {
        store.link(first, &aside)?;
        store.rename(&aside, name)?;
    }
    Ok(())
}

fn sync_folders(store: &dyn Store, shared: &[Vec<StorePath>]) -> io::Result<()> {
    let mut folders: Vec<StorePath> = shared.iter().flatten().map(StorePath::parent).collect();
    folders.sort();
    folders.dedup();
    folders
        .iter()
        .try_for_each(|folder| store.sync_dir(folder))?;
    store.sync_dir(&StorePath::root())
}
