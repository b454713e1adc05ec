//! Exporting an image: one stream that holds it, sealed.
//!
//! What the image sees is copied into a fresh `meta`, as for a volume deployed from it, sealed under
//! a key set that is drawn for this stream alone. So no plaintext and no byte under one layer is
//! ever written, here or into the stream, and the stream's metadata open under no key of a volume.
//! The objects go as they are on the disk, each page verified under both layers on the way: a
//! damaged image is found where it can still be mended.
//!
//! The fresh `meta` is a file of the volume's directory that loses its name as soon as it is made;
//! its name is one that opening a volume tidies away.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use super::stream::{
    Counts, CustomerKeyClaim, ExportHeader, ExportProvenance, StreamError, StreamWriter,
    TransportedKeySet, TransportedState,
};
use super::{ImageError, Source};
use crate::ids::{CryptoId, Epoch, ExportId, PageIndex};
use crate::keys::transport::{
    self, Argon2idCost, TransportContext, TransportKeys, TransportMethod,
};
use crate::keys::{KeyError, PassphraseSource};
use crate::layers::{ExportKeys, KeyRing, KeySet};
use crate::meta::keys::Table;
use crate::meta::page_set::{CHUNK_PAGES, PageSet};
use crate::meta::records::{ExtentRecord, Part, Timespec};
use crate::meta::{Meta, MetaError, View, keys};
use crate::object::Objects;
use crate::sealed::{META_STRIDE_BYTES, MetaFile, PAGE_BYTES};
use crate::store::memory::MemoryStore;
use crate::store::read_only::ReadOnlyStore;
use crate::store::{OpenMode, Store, StoreFile, StorePath};
use crate::volume::header::MAX_KEY_SETS;
use crate::volume::{KeyMode, META_NAME, Volume, VolumeError};

/// Pages that are moved at a time.
pub(super) const RUN_PAGES: u32 = 256;
/// Strides that are moved at a time.
pub(super) const RUN_STRIDES: u64 = 256;
/// Cache of a database that is read once, in bytes.
pub(super) const CACHE_BYTES: usize = 4 << 20;

/// Who is to hold the keys of an export.
#[derive(Clone, Debug, Default)]
pub enum Transport {
    /// The platform keystore: the destination must have the same.
    #[default]
    Keystore,
    /// Whoever knows a passphrase.
    Passphrase(PassphraseSource),
}

/// How an image is exported.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Who is to hold the keys.
    pub transport: Transport,
}

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exported {
    /// Names the export.
    pub export: ExportId,
    /// Objects in it.
    pub objects: u64,
    /// Pages of all objects.
    pub pages: u64,
    /// Length of the stream in bytes.
    pub bytes: u64,
}

/// Writes an image that was made at `created` as one stream. A stream without its end is refused
/// when it is imported, so after an error what was written is worth nothing.
///
/// # Errors
/// When a key cannot be had, a page of the image does not open, or something cannot be read or
/// written.
pub fn export(
    source: &Source<'_>,
    created: Timespec,
    options: &ExportOptions,
    to: &mut dyn Write,
) -> Result<Exported, ImageError> {
    let result = export_unaudited(source, created, options, to);
    let volume = source.volume.header.volume_id();
    match &result {
        Ok(exported) => tracing::info!(
            target: "audit",
            action = "export-image",
            outcome = "done",
            %volume,
            image = source.image,
            export = %exported.export,
            key_mode = source.volume.header.key_mode().name(),
        ),
        Err(error) => tracing::warn!(
            target: "audit",
            action = "export-image",
            outcome = "refused",
            kind = ?error.kind(),
            reason = %error,
            %volume,
            image = source.image,
        ),
    }
    result
}

fn export_unaudited(
    source: &Source<'_>,
    created: Timespec,
    options: &ExportOptions,
    to: &mut dyn Write,
) -> Result<Exported, ImageError> {
    let volume = source.volume;
    let export = ExportId::random().map_err(key_random)?;
    // Before anything is written, since this may ask for a passphrase and be refused.
    let (method, transport) = transport_keys(volume, options, export)?;
    let ring = KeyRing::new(transport_set(volume)?, Vec::new());
    let sets = all_sets(volume, &ring);
    let key_sets = wrap_all(volume, export, &transport, &sets)?;
    let mac_keys = ExportKeys::derive(export, &sets).map_err(|_| underivable())?;

    let meta = CryptoId::random().map_err(key_random)?;
    let copy = TransportedMeta::make(source, ring, meta)?;
    let header = ExportHeader {
        features: Vec::new(),
        export,
        key_mode: volume.header.key_mode(),
        transport: method,
        customer_key: volume.customer_key.as_ref().map(|provider| {
            let description = provider.describe();
            CustomerKeyClaim {
                provider: description.uri.to_string(),
                key_version: description.key_version.clone(),
                algorithm: description.algorithm.to_owned(),
            }
        }),
        meta,
        key_sets,
        provenance: ExportProvenance {
            volume: volume.header.volume_id(),
            image: source.image.to_owned(),
            created: created.secs,
        },
        counts: copy.counts()?,
    };
    let mut stream = StreamWriter::begin(to, &header, &mac_keys)?;
    copy.send(&mut stream)?;
    send_objects(volume, &copy.open()?, &mut stream)?;
    Ok(Exported {
        export,
        objects: header.counts.objects,
        pages: header.counts.pages,
        bytes: stream.end()?,
    })
}

/// The set that the stream's metadata are sealed under: newer than all that the image may use.
fn transport_set(volume: &Volume) -> Result<KeySet, ImageError> {
    let found = volume.keys.iter().count();
    if found >= MAX_KEY_SETS {
        return Err(VolumeError::TooManyKeySets {
            found,
            most: MAX_KEY_SETS,
        }
        .into());
    }
    let newest = volume.keys.iter().map(|set| set.epoch.0).max();
    let epoch = newest.unwrap_or(0).checked_add(1);
    let epoch =
        epoch.ok_or_else(|| VolumeError::HeaderInvalid("its epochs are used up".to_owned()))?;
    Ok(KeySet::random(Epoch(epoch)).map_err(key_random)?)
}

/// The sets of the volume by their numbers, then that of the stream.
fn all_sets<'a>(volume: &'a Volume, ring: &'a KeyRing) -> Vec<&'a KeySet> {
    let mut sets: Vec<&KeySet> = volume.keys.iter().map(|set| &**set).collect();
    sets.sort_by_key(|set| set.epoch);
    sets.push(ring.active());
    sets
}

fn transport_keys(
    volume: &Volume,
    options: &ExportOptions,
    export: ExportId,
) -> Result<(TransportMethod, TransportKeys), ImageError> {
    let keys = match &options.transport {
        Transport::Keystore => volume.keystore.transport(export),
        Transport::Passphrase(from) => from.obtain_for_export(true).and_then(|passphrase| {
            TransportKeys::from_new_passphrase(&passphrase, Argon2idCost::DEFAULT, export)
        }),
    };
    Ok(keys.map_err(StreamError::from)?)
}

/// Wraps both DEKs of every set. The last one is the stream's own.
fn wrap_all(
    volume: &Volume,
    export: ExportId,
    keys: &TransportKeys,
    sets: &[&KeySet],
) -> Result<Vec<TransportedKeySet>, ImageError> {
    let customer = match (volume.header.key_mode(), volume.customer_key.as_deref()) {
        (KeyMode::PlatformManaged, _) => None,
        (KeyMode::PlatformAndCustomer, Some(provider)) => Some(provider),
        (KeyMode::PlatformAndCustomer, None) => return Err(VolumeError::WouldDowngrade.into()),
    };
    let wrap = |(index, set): (usize, &&KeySet)| {
        let context = TransportContext {
            export,
            key_set: set.id,
            epoch: set.epoch,
        };
        let own = index + 1 == sets.len();
        Ok(TransportedKeySet {
            id: set.id,
            epoch: set.epoch,
            state: if own {
                TransportedState::Transport
            } else {
                TransportedState::ReadOnly
            },
            customer: match customer {
                Some(provider) => {
                    transport::wrap_with_customer_key(provider, &context, &set.customer)?
                }
                None => keys.wrap_customer(&context, &set.customer)?,
            },
            infrastructure: keys.wrap_infrastructure(&context, &set.infrastructure)?,
        })
    };
    let wrapped: Result<Vec<_>, KeyError> = sets.iter().enumerate().map(wrap).collect();
    Ok(wrapped.map_err(StreamError::from)?)
}

/// The metadata of the image in a file without a name.
struct TransportedMeta {
    file: Arc<dyn StoreFile>,
    ring: KeyRing,
    crypto: CryptoId,
}

impl TransportedMeta {
    fn make(source: &Source<'_>, ring: KeyRing, crypto: CryptoId) -> Result<Self, ImageError> {
        let file = nameless(&*source.volume.store).map_err(ImageError::io(
            "cannot make a file for the image's metadata",
        ))?;
        let sealed = MetaFile::create(Arc::clone(&file), ring.active(), crypto)?;
        let limit_bytes = source.meta.counters().limit_bytes;
        source
            .meta
            .copy_view(source.view, sealed, limit_bytes, &mut |_| {
                Ok::<(), MetaError>(())
            })?;
        Ok(Self { file, ring, crypto })
    }

    /// Opens it to be read. What the database writes to its file meanwhile is of no interest.
    fn open(&self) -> Result<Meta, ImageError> {
        let sealed = MetaFile::open(Arc::clone(&self.file), self.ring.active(), self.crypto)?;
        Ok(Meta::open(sealed, CACHE_BYTES)?)
    }

    /// Counts what follows in the stream; leaves the file as it is to be sent.
    fn counts(&self) -> Result<Counts, ImageError> {
        let (mut objects, mut pages) = (0, 0);
        let meta = self.open()?;
        each_part(&meta, &mut |part| {
            objects += 1;
            pages += u64::from(part.pages.len());
            Ok(())
        })?;
        meta.close()?;
        let len = self.file.len().map_err(ImageError::io(READING))?;
        Ok(Counts {
            meta_strides: len / META_STRIDE_BYTES as u64,
            objects,
            pages,
        })
    }

    fn send(&self, stream: &mut StreamWriter<'_>) -> Result<(), ImageError> {
        let strides = stream.meta()?;
        let mut buffer = vec![0; RUN_STRIDES as usize * META_STRIDE_BYTES];
        let mut next = 0;
        while next < strides {
            let count = (strides - next).min(RUN_STRIDES);
            let bytes = &mut buffer[..count as usize * META_STRIDE_BYTES];
            let read = self.file.read_at(bytes, next * META_STRIDE_BYTES as u64);
            if read.map_err(ImageError::io(READING))? < bytes.len() {
                let short = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(ImageError::io(READING)(short));
            }
            stream.put(bytes)?;
            next += count;
        }
        Ok(())
    }
}

const READING: &str = "cannot read the image's metadata";

fn send_objects(
    volume: &Volume,
    meta: &Meta,
    stream: &mut StreamWriter<'_>,
) -> Result<(), ImageError> {
    let store = Arc::new(ReadOnlyStore::over(Arc::clone(&volume.store)));
    let objects = Objects::new(store, Arc::clone(&volume.keys), 1);
    let mut buffer = vec![0; RUN_PAGES as usize * PAGE_BYTES];
    each_part(meta, &mut |part| {
        let name = part.id.name;
        let object = objects
            .open(part.id)
            .map_err(|error| ImageError::of_object(name, error))?;
        stream.object(name, part.pages.len())?;
        for run in runs(&part.pages) {
            let bytes = &mut buffer[..(run.end.0 - run.start.0) as usize * PAGE_BYTES];
            let guard = object.lock_shared(run.clone());
            object
                .read_sealed(&guard, run, bytes)
                .map_err(|source| ImageError::Page {
                    object: name,
                    source,
                })?;
            stream.put(bytes)?;
        }
        Ok(())
    })
}

/// Calls `visit` with every part that transported metadata name, in the order of the stream: by
/// inode and chunk, newest first.
pub(super) fn each_part(
    meta: &Meta,
    visit: &mut dyn FnMut(&Part) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    const AT_A_TIME: usize = 256;
    let mut low = Vec::new();
    loop {
        let rows = meta.scan(Table::Extent, &low, &[0xFF; 9], View::LIVE, AT_A_TIME)?;
        for (_, value) in &rows {
            let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
            if let ExtentRecord::Parts { parts, .. } = record {
                parts.iter().try_for_each(&mut *visit)?;
            }
        }
        match rows.into_iter().next_back() {
            // No logical key is the beginning of another one.
            Some((last, _)) => low = keys::versioned(&last, crate::ids::Generation(u64::MAX)),
            None => return Ok(()),
        }
        low.push(0);
    }
}

/// The set's pages in runs of neighbours, none longer than what is moved at a time.
pub(super) fn runs(pages: &PageSet) -> impl Iterator<Item = std::ops::Range<PageIndex>> + '_ {
    let mut next = 0;
    std::iter::from_fn(move || {
        while next < CHUNK_PAGES {
            let start = next;
            let end = pages.run_end(start, CHUNK_PAGES);
            if pages.contains(start) {
                next = end.min(start + RUN_PAGES);
                return Some(PageIndex(u64::from(start))..PageIndex(u64::from(next)));
            }
            next = end;
        }
        None
    })
}

/// A file in the directory of a volume that is gone with whoever has it open. While it has a name,
/// for an instant, it is the one that a replacement of `meta` would have, which whoever opens the
/// volume next, or makes one there, takes away. On a medium that nobody can write to it is in
/// memory.
pub(super) fn nameless(store: &dyn Store) -> io::Result<Arc<dyn StoreFile>> {
    static NAME: Mutex<()> = Mutex::new(());
    let _one = NAME.lock();
    let path = StorePath::new(&format!("{META_NAME}.new"));
    let file = match store.open(&path, OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return MemoryStore::new().open(&path, OpenMode::CreateNew);
        }
        // Of somebody who could not take its name away.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            store.unlink(&path)?;
            store.open(&path, OpenMode::CreateNew)?
        }
        result => result?,
    };
    store.unlink(&path)?;
    Ok(file)
}

fn key_random(error: io::Error) -> StreamError {
    KeyError::random(error).into()
}

/// HKDF never refuses what it is given here.
pub(super) fn underivable() -> StreamError {
    StreamError::HeaderInvalid("its keys cannot be derived".to_owned())
}
