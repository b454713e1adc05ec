//! Deploying an image: a new volume that contains what the image sees.
//!
//! - Under the source's customer key (or if neither has one) and the source's platform keystore,
//!   the contents are *inherited*: the source's objects, by hard link if the backing filesystem
//!   allows one, else by reflink, else by copy, with the source's key sets to read them.
//! - Under any other customer key or keystore they are *re-sealed* under the new volume's own key
//!   set, page by page ([`super::reseal`]). It contains no data key of the source.
//!
//! A keystore is the source's if it has the source's keys. Its id is not secret, so any user who
//! can request a deployment could create a keystore that claims to be the source's.
//!
//! Order of writes. The caller has raised `frozen` of the source to the image's generation,
//! durably: from then on the source writes no object of the image in place. In the new volume
//! ([`crate::volume`]): the lock with its mark; folders and objects; the metadata, in one
//! transaction; then everything is synced; then the superblock; then the keystore's record; then
//! the mark is removed.
//!
//! After a power cut the source is as it was: further links to its objects do not matter to it, and
//! because of `frozen` its next write of a chunk begins a new part. The target is either complete,
//! or it has the mark and no superblock; then the next attempt removes it first.
//!
//! Only objects that records name are inherited. They keep their folders and names, so that a
//! record is valid in both volumes; re-sealed objects get new ones.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::reseal::{FIRST_SEQUENCE, FreshNames, SourceObjects, VisibleChunk};
use super::workers::{Scratch, Work, with_workers};
use super::{ImageError, Progress};
use crate::audit::Record;
use crate::ids::{FolderNumber, VolumeId};
use crate::keys::{KeyUri, PassphraseSource, PlatformKeystore, customer};
use crate::meta::copy::{Copied, CopyOptions, CopyParts};
use crate::meta::page_set::{
    CHUNK_PAGES, PageSet, capacity_of_pages, pages_of_capacity, pages_taken,
};
use crate::meta::records::{ObjectName, Part, taken};
use crate::meta::{Meta, View};
use crate::object::{folder_path, object_path, page_range, page_runs, root_path};
use crate::planted::{Bug, planted};
use crate::sealed::{ContentsFile, MetaFile, PAGE_BYTES, PAYLOAD_BYTES};
use crate::store::{Adopted, OpenMode, Store, StorePath};
use crate::volume::{
    FreshVolume, Inheritance, KeyHolder, META_NAME, NewCustomer, NewVolume, Provenance, Volume,
    VolumeError, create_volume,
};

/// An image of an open volume.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Its metadata, in which `frozen` covers the view, durably.
    pub meta: &'a Meta,
    /// The image's view. It must not be deleted meanwhile.
    pub view: View,
    /// Name of the image: at most 255 bytes without control characters.
    pub image: &'a str,
}

/// Options of a deployment.
#[derive(Clone, Debug, Default)]
pub struct DeployOptions {
    /// The customer key of the new volume; by default the source's, if that has one. Its public
    /// half is sufficient.
    pub customer_key: Option<KeyUri>,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
    /// Maximum size of the contents; by default the source's.
    pub size_bytes: Option<u64>,
    /// Directory of the platform keystore; created if missing.
    pub keystore: PathBuf,
}

/// Result of a deployment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deployed {
    /// The new volume.
    pub volume: VolumeId,
    /// Number of objects: the sum of the four fields that follow.
    pub objects: u64,
    /// Objects that are hard links to the source's.
    pub linked: u64,
    /// Objects that share blocks with the source's.
    pub reflinked: u64,
    /// Objects that were copied.
    pub copied: u64,
    /// Objects that were re-sealed, for another holder.
    pub resealed: u64,
    /// Inodes.
    pub inodes: u64,
    /// Sealed pages of contents in use, in bytes.
    pub bytes: u64,
}

/// Creates a volume from an image in an empty directory, or in one that an earlier attempt left
/// incomplete. It is durable on return.
///
/// # Errors
/// A key is not available, a rule of inheritance would be broken, an object is missing, a page to
/// re-seal does not open, or something cannot be read or written. Everything that was created is
/// removed; the source is as it was.
pub fn deploy(
    source: &Source<'_>,
    target: Arc<dyn Store>,
    options: &DeployOptions,
    progress: &dyn Progress,
) -> Result<Deployed, ImageError> {
    let audit_refusal = |error: &VolumeError| {
        Record::new("deploy-image")
            .with("kind", error.kind().name())
            .with_text("source_volume", source.volume.header().volume_id())
            .with("source_image", source.image)
            .refused(error);
    };
    // Before anything is written, since this may ask for a passphrase and fail.
    let provider = options
        .customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(VolumeError::from)
        .inspect_err(audit_refusal)?;
    let named = provider
        .as_deref()
        .map(NewCustomer::with_key)
        .transpose()
        .map_err(VolumeError::from)
        .inspect_err(audit_refusal)?;
    let limit_bytes = options
        .size_bytes
        .unwrap_or(source.meta.counters().limit_bytes);
    let holder = KeyHolder::of(source.volume);
    // A keystore that cannot be opened, or does not exist yet, is another one; if it cannot be used
    // at all, creating the volume reports that.
    let inherits = PlatformKeystore::open(&options.keystore)
        .is_ok_and(|keystore| holder.matches(&keystore, named.as_ref()));
    let own = NewCustomer::of(source.volume);
    let customer = match (named, own) {
        // Its other slots are inherited too.
        (Some(named), Some(own)) if inherits => Some(NewCustomer {
            uri: named.uri,
            ..own
        }),
        (named, own) => named.or(own),
    };
    let inheritance = Inheritance {
        key_sets: match inherits {
            true => source.volume.keys.iter().map(Arc::clone).collect(),
            false => Vec::new(),
        },
        holder: inherits.then_some(holder),
        key_mode: source.volume.header().key_mode(),
        provenance: Provenance {
            volume: source.volume.header().volume_id(),
            image: source.image.to_owned(),
            // If it does not inherit, its contents were chosen by someone other than its holder.
            foreign: source.volume.header().is_foreign() || !inherits,
        },
    };
    let new_volume = NewVolume {
        action: "deploy-image",
        customer,
        keystore: &options.keystore,
        size_bytes: (limit_bytes > 0).then_some(limit_bytes),
        inherited: Some(&inheritance),
    };
    let mut filled = Filled::default();
    let created = create_volume(target, &new_volume, &mut |fresh| {
        filled = match inherits {
            true => inherit(source, fresh, progress)?,
            false => reseal(source, fresh, progress)?,
        };
        Ok(())
    });
    let volume = created.map_err(ImageError::from_create_error)?;
    let Filled { objects, records } = filled;
    Ok(Deployed {
        volume,
        objects: objects.linked + objects.reflinked + objects.copied + objects.resealed,
        linked: objects.linked,
        reflinked: objects.reflinked,
        copied: objects.copied,
        resealed: objects.resealed,
        inodes: records.inodes,
        bytes: records.used_pages * PAGE_BYTES as u64,
    })
}

/// The contents of the new volume.
#[derive(Default)]
struct Filled {
    objects: TargetObjects,
    records: Copied,
}

impl ImageError {
    /// Converts the error of creating a volume: an error of filling it is returned as it was.
    pub(super) fn from_create_error(error: VolumeError) -> Self {
        match error {
            VolumeError::Format(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => Self::Volume(VolumeError::Format(inner)),
            },
            error => Self::Volume(error),
        }
    }
}

/// Writes the new volume's metadata. `frozen`: its objects are shared with the source, so that it
/// must not write them in place. `parts` is called with the parts of each chunk, and returns those
/// of the new volume.
fn copy_metadata(
    source: &Source<'_>,
    fresh: &FreshVolume,
    frozen: bool,
    parts: &mut CopyParts<'_, ImageError>,
) -> Result<Copied, ImageError> {
    let file = fresh
        .store
        .open(&StorePath::new(META_NAME), OpenMode::CreateNew)
        .map_err(ImageError::io("cannot create the metadata file"))?;
    let file = MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto)?;
    let limit_bytes = fresh.size_bytes.unwrap_or(0);
    let options = CopyOptions {
        limit_bytes,
        frozen,
    };
    let copied = source.meta.copy_view(source.view, file, options, parts)?;
    let taken_pages = pages_taken(copied.used_pages, copied.record_bytes);
    if limit_bytes > 0 && taken_pages > pages_of_capacity(limit_bytes) {
        return Err(ImageError::TooSmall {
            needed_bytes: capacity_of_pages(taken_pages),
            size_bytes: limit_bytes,
        });
    }
    Ok(copied)
}

/// Links or copies the source's objects as they are. Everything is durable on return, except for
/// the names at the top of the volume.
fn inherit(
    source: &Source<'_>,
    fresh: &FreshVolume,
    progress: &dyn Progress,
) -> Result<Filled, ImageError> {
    let target = &*fresh.store;
    let mut objects = TargetObjects::default();
    let records = copy_metadata(source, fresh, true, &mut |_, parts| {
        super::check_cancelled(progress)?;
        for part in &parts {
            objects.adopt(&*source.volume.store, target, part.id.name)?;
        }
        let pages = taken(&parts, &PageSet::new()).len();
        progress.advance(u64::from(pages) * PAGE_BYTES as u64);
        Ok(parts)
    })?;
    objects.sync(target)?;
    Ok(Filled { objects, records })
}

/// Seals everything in the image under the new volume's own key set. Everything is durable on
/// return, except for the names at the top of the volume.
fn reseal(
    source: &Source<'_>,
    fresh: &FreshVolume,
    progress: &dyn Progress,
) -> Result<Filled, ImageError> {
    let from = SourceObjects::of(source.volume);
    let target = &*fresh.store;
    let work: &Work<'_, (VisibleChunk, Part), bool> =
        &|scratch, (chunk, part)| write_object(&from, &chunk, fresh, &part, progress, scratch);
    let mut objects = TargetObjects::default();
    let mut names = FreshNames::new(fresh.keys.active().epoch);
    let pages_max = match fresh.size_bytes {
        Some(bytes) if bytes > 0 => pages_of_capacity(bytes),
        _ => u64::MAX,
    };
    let (mut pages, mut unsynced) = (0, false);
    let records = with_workers(work, |workers| {
        let records = copy_metadata(source, fresh, false, &mut |chunk, parts| {
            super::check_cancelled(progress)?;
            let part = names.part_for(&parts)?;
            pages += u64::from(part.pages.len());
            // Pages beyond the size are counted, for the error, and not written.
            if pages <= pages_max {
                objects.create_folder(target, part.id.name.folder)?;
                objects.resealed += 1;
                let chunk = VisibleChunk::of(&chunk, &parts);
                from.will_need(&chunk);
                workers.submit((chunk, part.clone()), &mut |durable| {
                    unsynced |= !durable;
                    Ok(())
                })?;
            }
            Ok(vec![part])
        })?;
        workers.finish(&mut |durable| {
            unsynced |= !durable;
            Ok(())
        })?;
        Ok(records)
    })?;
    objects.unsynced = unsynced;
    objects.sync(target)?;
    Ok(Filled { objects, records })
}

/// Seals one chunk into an object of the new volume. True if its bytes are durable already.
fn write_object(
    from: &SourceObjects,
    chunk: &VisibleChunk,
    fresh: &FreshVolume,
    part: &Part,
    progress: &dyn Progress,
    scratch: &mut Scratch,
) -> Result<bool, ImageError> {
    let name = part.id.name;
    let failed = |source| ImageError::NewObject {
        object: name,
        source,
    };
    let file = fresh.store.open(&object_path(name), OpenMode::CreateNew);
    let file = file.map_err(|error| failed(error.into()))?;
    let object = ContentsFile::new(file, fresh.keys.active(), part.id.crypto);
    for run in page_runs(&part.pages, 0..CHUNK_PAGES) {
        super::check_cancelled(progress)?;
        let plain = from.read(chunk, &run, scratch)?;
        let pages = page_range(&run);
        let offset = pages.start.0 * PAYLOAD_BYTES as u64;
        let guard = object.lock_exclusive(pages);
        object
            .write_at(&guard, offset, plain, FIRST_SEQUENCE, &mut |_, _| Ok(()))
            .map_err(failed)?;
        progress.advance((run.len() * PAGE_BYTES) as u64);
    }
    if fresh.store.sync_policy().is_at_once() {
        return Ok(false);
    }
    // A file that was closed and opened again may not report a failed write.
    object.sync().map_err(failed)?;
    Ok(true)
}

/// Objects of the new volume so far.
#[derive(Debug, Default)]
struct TargetObjects {
    folders: BTreeSet<FolderNumber>,
    linked: u64,
    reflinked: u64,
    copied: u64,
    resealed: u64,
    /// Whether bytes of some objects are not durable.
    unsynced: bool,
}

impl TargetObjects {
    /// Creates a folder of objects if it does not exist yet.
    fn create_folder(
        &mut self,
        target: &dyn Store,
        folder: FolderNumber,
    ) -> Result<(), ImageError> {
        if self.folders.insert(folder) {
            target
                .create_dir(&folder_path(folder))
                .map_err(ImageError::io("cannot create a folder of objects"))?;
        }
        Ok(())
    }

    /// Links or copies one object, under the same name.
    fn adopt(
        &mut self,
        source: &dyn Store,
        target: &dyn Store,
        object: ObjectName,
    ) -> Result<(), ImageError> {
        self.create_folder(target, object.folder)?;
        let path = object_path(object);
        let is_synced_later = target.sync_policy().is_at_once();
        match target.adopt(source, &path, &path) {
            Ok(Adopted::Linked) => self.linked += 1,
            Ok(Adopted::Reflinked) => {
                self.reflinked += 1;
                self.unsynced |= is_synced_later;
            }
            Ok(Adopted::Copied) => {
                self.copied += 1;
                self.unsynced |= is_synced_later;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::MissingObject { object });
            }
            Err(source) => return Err(ImageError::Object { object, source }),
        }
        Ok(())
    }

    /// Makes everything durable. A link needs only its directory: its bytes have been durable since
    /// before the image. Other files would each need an fsync. One sync for all is faster if it
    /// proves something; otherwise the files were synced before they were closed.
    fn sync(&self, target: &dyn Store) -> Result<(), ImageError> {
        if planted(Bug::DeployedWithoutSync) {
            return Ok(());
        }
        let synced = (|| {
            if self.unsynced {
                return target.sync_all();
            }
            for folder in &self.folders {
                target.sync_dir(&folder_path(*folder))?;
            }
            target.sync_dir(&root_path())
        })();
        synced.map_err(ImageError::io("cannot sync the objects"))
    }
}
