//! Deploying an image: a new volume that holds what the image sees.
//!
//! Order of writes. The caller has raised `frozen` of the source to the image's generation,
//! durably: from then on the source writes nothing of it in place. In the new volume
//! ([`crate::volume::found`]): the lock with its mark; folders and objects, by hard link where the
//! backing filesystem gives one, else by reflink, else by copy; the metadata, in one transaction;
//! then everything is synced; then the superblock; then the keystore's record; then the mark goes.
//!
//! A cut leaves the source as it is (links to its objects count for nothing, and `frozen` costs it
//! a new part for what it writes next), and the target either whole or without a superblock and
//! with the mark: the next attempt takes that away first.
//!
//! Only what records name is taken over. Folders and names stay the same, so that a record is good
//! in both volumes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImageError;
use crate::ids::{FolderNumber, VolumeId};
use crate::keys::{CustomerKeyProvider, KeyUri, PassphraseSource, PlatformKeystore, customer};
use crate::meta::copy::Copied;
use crate::meta::page_set::{capacity_of_pages, pages_of_capacity};
use crate::meta::records::ObjectName;
use crate::meta::{Meta, View};
use crate::object::{folder_path, object_path, root_path};
use crate::planted::{Bug, planted};
use crate::sealed::{MetaFile, PAGE_BYTES};
use crate::store::{Adopted, OpenMode, Store, StorePath};
use crate::volume::{
    Founding, FreshVolume, Inheritance, META_NAME, Provenance, Volume, VolumeError, found,
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
    /// Objects in it: the sum of the three that follow.
    pub objects: u64,
    /// Objects that are hard links to the source's.
    pub linked: u64,
    /// Objects that share blocks with the source's.
    pub reflinked: u64,
    /// Objects that were copied.
    pub copied: u64,
    /// Inodes.
    pub inodes: u64,
    /// Sealed pages of contents in use, in bytes.
    pub bytes: u64,
}

/// Whether the new volume's keys are held by whoever holds the source's. Otherwise what is in it was
/// decided by others than its holder.
fn same_holder(
    source: &Source<'_>,
    named: Option<&dyn CustomerKeyProvider>,
    keystore: &Path,
) -> bool {
    let own = source.volume.customer_key.as_deref();
    let key_of =
        |key: Option<&dyn CustomerKeyProvider>| key.map(|key| key.describe().key_version.clone());
    let same_key = named.is_none() || key_of(named) == key_of(own);
    let ours = &source.volume.keystore;
    let same_keystore = keystore == ours.directory()
        || PlatformKeystore::open(keystore).is_ok_and(|other| other.id() == ours.id());
    same_key && same_keystore
}

/// Makes a volume from an image in an empty directory, or in one that an earlier attempt left half
/// made. It is durable on return.
///
/// # Errors
/// When a key cannot be had, a rule of inheritance is broken, an object is missing, or something
/// cannot be read or written. What was made is then taken away again; the source is as it was.
pub fn deploy(
    source: &Source<'_>,
    target: Arc<dyn Store>,
    options: &DeployOptions,
) -> Result<Deployed, ImageError> {
    // Before anything is written, since this may ask for a passphrase and be refused.
    let named = options
        .customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(VolumeError::from)?;
    let named = named.as_deref();
    let own = source.volume.customer_key.as_deref();
    let limit_bytes = options
        .size_bytes
        .unwrap_or(source.meta.counters().limit_bytes);
    let inheritance = Inheritance {
        key_sets: source.volume.keys.iter().map(Arc::clone).collect(),
        key_mode: source.volume.header.key_mode(),
        provenance: Provenance {
            volume: source.volume.header.volume_id(),
            image: source.image.to_owned(),
            foreign: source.volume.header.is_foreign()
                || !same_holder(source, named, &options.keystore),
        },
    };
    let founding = Founding {
        action: "deploy-image",
        customer_key: named.or(own),
        keystore: &options.keystore,
        size_bytes: (limit_bytes > 0).then_some(limit_bytes),
        inherited: Some(&inheritance),
    };
    let mut made = (Adoption::default(), Copied::default());
    let founded = found(target, &founding, &mut |fresh| {
        made = fill(source, fresh)?;
        Ok(())
    });
    let volume = founded.map_err(ImageError::of_founding)?;
    let (adoption, copied) = made;
    Ok(Deployed {
        volume,
        objects: adoption.linked + adoption.reflinked + adoption.copied,
        linked: adoption.linked,
        reflinked: adoption.reflinked,
        copied: adoption.copied,
        inodes: copied.inodes,
        bytes: copied.used_pages * PAGE_BYTES as u64,
    })
}

impl ImageError {
    /// What went wrong while a volume was founded: what filling it returned is said as it was.
    pub(super) fn of_founding(error: VolumeError) -> Self {
        match error {
            VolumeError::Format(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => Self::Volume(VolumeError::Format(inner)),
            },
            error => Self::Volume(error),
        }
    }
}

/// Writes metadata and objects of the new volume. All of it is durable on return, apart from the
/// names at the top of the volume.
fn fill(source: &Source<'_>, fresh: &FreshVolume) -> Result<(Adoption, Copied), ImageError> {
    let target = &*fresh.store;
    let file = target
        .open(&StorePath::new(META_NAME), OpenMode::CreateNew)
        .map_err(ImageError::io("cannot make the metadata file"))?;
    let file = MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto)?;
    let limit_bytes = fresh.size_bytes.unwrap_or(0);
    let mut adoption = Adoption::default();
    let copied = source
        .meta
        .copy_view(source.view, file, limit_bytes, &mut |name| {
            adoption.adopt(&*source.volume.store, target, name)
        })?;
    if limit_bytes > 0 && copied.used_pages > pages_of_capacity(limit_bytes) {
        return Err(ImageError::TooSmall {
            needed_bytes: capacity_of_pages(copied.used_pages),
            size_bytes: limit_bytes,
        });
    }
    adoption
        .sync(target)
        .map_err(ImageError::io("cannot sync the objects"))?;
    Ok((adoption, copied))
}

/// Objects taken over so far.
#[derive(Debug, Default)]
struct Adoption {
    folders: BTreeSet<FolderNumber>,
    linked: u64,
    reflinked: u64,
    copied: u64,
    /// Bytes of some are not durable.
    unsynced: bool,
}

impl Adoption {
    /// Takes one object over, under the same name.
    fn adopt(
        &mut self,
        source: &dyn Store,
        target: &dyn Store,
        object: ObjectName,
    ) -> Result<(), ImageError> {
        if self.folders.insert(object.folder) {
            target
                .create_dir(&folder_path(object.folder))
                .map_err(ImageError::io("cannot make a folder of objects"))?;
        }
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
    fn sync(&self, target: &dyn Store) -> io::Result<()> {
        if planted(Bug::DeployedWithoutSync) {
            return Ok(());
        }
        if self.unsynced {
            return target.sync_all();
        }
        for folder in &self.folders {
            target.sync_dir(&folder_path(*folder))?;
        }
        target.sync_dir(&root_path())
    }
}
