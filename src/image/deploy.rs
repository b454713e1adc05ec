//! Deploying an image: a new volume that holds what the image sees.
//!
//! | the new volume has | its contents are |
//! |---|---|
//! | the source's customer key (or neither has one) and the source's platform keystore | *inherited*: the source's objects, by hard link where the backing filesystem gives one, else by reflink, else by copy, with the source's key sets to read them |
//! | any other customer key or keystore | *re-sealed* under the new volume's own key set, page by page ([`super::reseal`]); no data key of the source is in it |
//!
//! Whether a keystore is the source's is decided by its keys, since its id is no secret: anybody
//! who can ask for a deployment could make a keystore that says it is the source's.
//!
//! Order of writes. The caller has raised `frozen` of the source to the image's generation,
//! durably: from then on the source writes nothing of it in place. In the new volume
//! ([`crate::volume::create_volume`]): the lock with its mark; folders and objects; the metadata, in one
//! transaction; then everything is synced; then the superblock; then the keystore's record; then
//! the mark goes.
//!
//! A cut leaves the source as it is (links to its objects count for nothing, and `frozen` costs it
//! a new part for what it writes next), and the target either whole or without a superblock and
//! with the mark: the next attempt takes that away first.
//!
//! Only objects that records name are taken over. What is inherited keeps folders and names, so
//! that a record is good in both volumes; what is re-sealed gets fresh ones.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::reseal::{FIRST_SEQUENCE, FreshNames, SourceObjects, VisibleChunk, page_range, runs};
use super::workers::{Scratch, Work, with_workers};
use super::{ImageError, Progress};
use crate::audit::Record;
use crate::ids::{FolderNumber, VolumeId};
use crate::keys::{KeyUri, PassphraseSource, PlatformKeystore, customer};
use crate::meta::copy::{Copied, CopyOptions, CopyParts};
use crate::meta::page_set::{PageSet, capacity_of_pages, pages_of_capacity, pages_taken};
use crate::meta::records::{ObjectName, Part, taken};
use crate::meta::{Meta, View};
use crate::object::{folder_path, object_path, root_path};
use crate::planted::{Bug, planted};
use crate::sealed::{ContentsFile, MetaFile, PAGE_BYTES, PAYLOAD_BYTES};
use crate::store::{Adopted, OpenMode, Store, StorePath};
use crate::volume::{
    FreshVolume, Inheritance, KeyHolder, META_NAME, NewVolume, Provenance, Volume, VolumeError,
    create_volume,
};

/// An image of an open volume.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Its metadata, in which `frozen` covers the view, durably.
    pub meta: &'a Meta,
    /// What the image sees. It must not be deleted meanwhile.
    pub view: View,
    /// Name of the image: at most 255 bytes without control characters.
    pub image: &'a str,
}

/// How an image is deployed.
#[derive(Clone, Debug, Default)]
pub struct DeployOptions {
    /// The customer key of the new volume; without one it is the source's, where that has one. Its
    /// public half is enough.
    pub customer_key: Option<KeyUri>,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
    /// Largest size of the contents; without one it is the source's.
    pub size_bytes: Option<u64>,
    /// Directory of the platform keystore; made where missing.
    pub keystore: PathBuf,
}

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deployed {
    /// The new volume.
    pub volume: VolumeId,
    /// Objects in it: the sum of the four that follow.
    pub objects: u64,
    /// Objects that are hard links to the source's.
    pub linked: u64,
    /// Objects that share blocks with the source's.
    pub reflinked: u64,
    /// Objects that were copied.
    pub copied: u64,
    /// Objects that were sealed anew, for another holder.
    pub resealed: u64,
    /// Inodes.
    pub inodes: u64,
    /// Sealed pages of contents in use, in bytes.
    pub bytes: u64,
}

/// Makes a volume from an image in an empty directory, or in one that an earlier attempt left half
/// made. It is durable on return.
///
/// # Errors
/// When a key cannot be had, a rule of inheritance is broken, an object is missing, a page that is
/// to be re-sealed does not open, or something cannot be read or written. What was made is then
/// taken away again; the source is as it was.
pub fn deploy(
    source: &Source<'_>,
    target: Arc<dyn Store>,
    options: &DeployOptions,
    progress: &dyn Progress,
) -> Result<Deployed, ImageError> {
    // Before anything is written, since this may ask for a passphrase and be refused.
    let named = options
        .customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(VolumeError::from)
        .inspect_err(|error| {
            Record::new("deploy-image")
                .with("kind", error.kind().name())
                .with_text("source_volume", source.volume.header.volume_id())
                .with("source_image", source.image)
                .refused(error);
        })?;
    let own = source.volume.customer_key.as_deref();
    let customer_key = named.as_deref().or(own);
    let limit_bytes = options
        .size_bytes
        .unwrap_or(source.meta.counters().limit_bytes);
    let holder = KeyHolder::of(source.volume);
    // A keystore that cannot be opened, or is not there yet, is another one; if it is of no use at
    // all, making the volume says so.
    let inherits = PlatformKeystore::open(&options.keystore)
        .is_ok_and(|keystore| holder.matches(&keystore, customer_key));
    let inheritance = Inheritance {
        key_sets: match inherits {
            true => source.volume.keys.iter().map(Arc::clone).collect(),
            false => Vec::new(),
        },
        holder: inherits.then_some(holder),
        key_mode: source.volume.header.key_mode(),
        provenance: Provenance {
            volume: source.volume.header.volume_id(),
            image: source.image.to_owned(),
            // Otherwise what is in it was decided by others than its holder.
            foreign: source.volume.header.is_foreign() || !inherits,
        },
    };
    let new_volume = NewVolume {
        action: "deploy-image",
        customer_key,
        keystore: &options.keystore,
        size_bytes: (limit_bytes > 0).then_some(limit_bytes),
        inherited: Some(&inheritance),
    };
    let mut made = (Taken::default(), Copied::default());
    let created = create_volume(target, &new_volume, &mut |fresh| {
        made = match inherits {
            true => inherit(source, fresh, progress)?,
            false => reseal(source, fresh, progress)?,
        };
        Ok(())
    });
    let volume = created.map_err(ImageError::of_creation)?;
    let (taken, copied) = made;
    Ok(Deployed {
        volume,
        objects: taken.linked + taken.reflinked + taken.copied + taken.resealed,
        linked: taken.linked,
        reflinked: taken.reflinked,
        copied: taken.copied,
        resealed: taken.resealed,
        inodes: copied.inodes,
        bytes: copied.used_pages * PAGE_BYTES as u64,
    })
}

impl ImageError {
    /// The error of making a volume: one that filling it returned is given back as it was.
    pub(super) fn of_creation(error: VolumeError) -> Self {
        match error {
            VolumeError::Format(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => Self::Volume(VolumeError::Format(inner)),
            },
            error => Self::Volume(error),
        }
    }
}

/// Writes the new volume's metadata; `parts` sees to the objects.
fn copy_metadata(
    source: &Source<'_>,
    fresh: &FreshVolume,
    frozen: bool,
    parts: &mut CopyParts<'_, ImageError>,
) -> Result<Copied, ImageError> {
    let file = fresh
        .store
        .open(&StorePath::new(META_NAME), OpenMode::CreateNew)
        .map_err(ImageError::io("cannot make the metadata file"))?;
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

/// Takes the source's objects over as they are. All of it is durable on return, apart from the
/// names at the top of the volume.
fn inherit(
    source: &Source<'_>,
    fresh: &FreshVolume,
    progress: &dyn Progress,
) -> Result<(Taken, Copied), ImageError> {
    let target = &*fresh.store;
    let mut made = Taken::default();
    let copied = copy_metadata(source, fresh, true, &mut |_, parts| {
        super::go_on(progress)?;
        for part in &parts {
            made.adopt(&*source.volume.store, target, part.id.name)?;
        }
        let pages = taken(&parts, &PageSet::new()).len();
        progress.advance(u64::from(pages) * PAGE_BYTES as u64);
        Ok(parts)
    })?;
    made.sync(target)?;
    Ok((made, copied))
}

/// Seals all that the image sees under the new volume's own key set. All of it is durable on
/// return, apart from the names at the top of the volume.
fn reseal(
    source: &Source<'_>,
    fresh: &FreshVolume,
    progress: &dyn Progress,
) -> Result<(Taken, Copied), ImageError> {
    let objects = SourceObjects::of(source.volume);
    let target = &*fresh.store;
    let work: &Work<'_, (VisibleChunk, Part), bool> =
        &|scratch, (chunk, part)| write_object(&objects, &chunk, fresh, &part, progress, scratch);
    let mut made = Taken::default();
    let mut names = FreshNames::new(fresh.keys.active().epoch);
    let most_pages = match fresh.size_bytes {
        Some(bytes) if bytes > 0 => pages_of_capacity(bytes),
        _ => u64::MAX,
    };
    let (mut pages, mut unsynced) = (0, false);
    let copied = with_workers(work, |workers| {
        let copied = copy_metadata(source, fresh, false, &mut |chunk, parts| {
            super::go_on(progress)?;
            let part = names.part_for(&parts)?;
            pages += u64::from(part.pages.len());
            // What does not fit is counted to its end, to be told, and not written.
            if pages <= most_pages {
                made.folder(target, part.id.name.folder)?;
                made.resealed += 1;
                let chunk = VisibleChunk::of(&chunk, &parts);
                objects.will_need(&chunk);
                workers.give((chunk, part.clone()), &mut |durable| {
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
        Ok(copied)
    })?;
    made.unsynced = unsynced;
    made.sync(target)?;
    Ok((made, copied))
}

/// Seals one chunk into an object of the new volume. True when its bytes are durable already.
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
    for run in runs(&part.pages) {
        super::go_on(progress)?;
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
    // Closed and opened again it may not tell of a failed write.
    object.sync().map_err(failed)?;
    Ok(true)
}

/// Objects of the new volume so far.
#[derive(Debug, Default)]
struct Taken {
    folders: BTreeSet<FolderNumber>,
    linked: u64,
    reflinked: u64,
    copied: u64,
    resealed: u64,
    /// Bytes of some are not durable.
    unsynced: bool,
}

impl Taken {
    /// Makes a folder of objects where it is not there yet.
    fn folder(&mut self, target: &dyn Store, folder: FolderNumber) -> Result<(), ImageError> {
        if self.folders.insert(folder) {
            target
                .create_dir(&folder_path(folder))
                .map_err(ImageError::io("cannot make a folder of objects"))?;
        }
        Ok(())
    }

    /// Takes one object over, under the same name.
    fn adopt(
        &mut self,
        source: &dyn Store,
        target: &dyn Store,
        object: ObjectName,
    ) -> Result<(), ImageError> {
        self.folder(target, object.folder)?;
        let path = object_path(object);
        let waits = target.sync_policy().is_at_once();
        match target.adopt(source, &path, &path) {
            Ok(Adopted::Linked) => self.linked += 1,
            Ok(Adopted::Reflinked) => {
                self.reflinked += 1;
                self.unsynced |= waits;
            }
            Ok(Adopted::Copied) => {
                self.copied += 1;
                self.unsynced |= waits;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::MissingObject { object });
            }
            Err(source) => return Err(ImageError::Object { object, source }),
        }
        Ok(())
    }

    /// Makes it all durable. A link needs nothing but its directory: the bytes have been durable
    /// since before the image. Other files would each need an fsync: one for all is faster, where
    /// it proves something, and elsewhere they were synced before they were closed.
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
