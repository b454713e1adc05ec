//! Importing an image: a new volume out of a stream.
//!
//! Before anything is written, the header is parsed, its keys are unwrapped, and its MAC is
//! verified. Then the volume is created ([`crate::volume::create_volume`]) with the stream's key
//! set as a read-only one and a fresh active set: with the stream's keys, no data can be read that
//! is written here later. The stream's `meta` is written to an unlinked file, its records are
//! copied into the volume's own `meta`, and the objects get the names that the records contain.
//! Every page is verified under both layers before it is written. Then the end mark must
//! authenticate the whole stream, and the new metadata must be consistent, as [`crate::check`]
//! defines it. Only after that the superblock is written. After an earlier failure everything that
//! was created is removed; after a power cut the next attempt removes it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::export::{STRIDES_AT_A_TIME, create_unlinked_file, keys_not_derivable, visit_parts};
use super::stream::{Counts, ExportHeader, ExportProvenance, StreamError, StreamReader};
use super::workers::{Work, with_workers};
use super::{ImageError, Progress};
use crate::audit::Record;
use crate::check;
use crate::ids::{FolderNumber, VolumeId};
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::keys::transport::{self, TransportContext, TransportKeys, TransportMethod};
use crate::keys::{ErrorKind, KeyError, KeyUri, KeyVersion, PassphraseSource, PlatformKeystore};
use crate::layers::{CustomerDek, ExportKeys, KeySet};
use crate::meta::MetaError;
use crate::meta::copy::{self, CopyOptions};
use crate::meta::page_set::{CHUNK_PAGES, capacity_of_pages, pages_of_capacity, pages_taken};
use crate::meta::records::{ObjectName, Part};
use crate::meta::stored::Stored;
use crate::object::{
    ObjectError, RUN_PAGES, folder_path, object_path, page_range, page_runs, root_path,
};
use crate::sealed::{ContentsFile, META_STRIDE_BYTES, MetaFile, PAGE_BYTES, SealedError};
use crate::store::{OpenMode, Store, StoreFile, StorePath};
use crate::volume::{
    FreshVolume, Inheritance, KeyMode, META_NAME, NewCustomer, NewVolume, Provenance, VolumeError,
    create_volume,
};

/// Options of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The customer key of a customer-managed image; its private half.
    pub customer_key: Option<KeyUri>,
    /// The customer key of the new volume, if it is another one. Its public half is sufficient.
    pub new_customer_key: Option<KeyUri>,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
    /// Where the passphrase of an export comes from.
    pub export_passphrase: PassphraseSource,
    /// Maximum size of the contents; by default that of the image's volume.
    pub size_bytes: Option<u64>,
    /// Directory of the platform keystore. Created if missing and the export is under a passphrase.
    pub keystore: PathBuf,
}

/// Result of an import.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Imported {
    /// The new volume.
    pub volume: VolumeId,
    /// The origin of the image.
    pub provenance: ExportProvenance,
    /// Objects in it.
    pub objects: u64,
    /// Inodes.
    pub inodes: u64,
    /// Sealed pages of contents in use, in bytes.
    pub bytes: u64,
}

/// Creates a volume from a stream in an empty directory, or in one that an earlier attempt left
/// incomplete. It is durable on return.
///
/// # Errors
/// A key is not available, the stream is not exactly what was exported, or something cannot be read
/// or written. Everything that was created is removed.
pub fn import(
    from: &mut dyn Read,
    target: Arc<dyn Store>,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Imported, ImageError> {
    let (mut opened, new_customer) = open_keys(from, options).inspect_err(|error| {
        Record::new("import-image")
            .with("kind", error.kind().name())
            .refused(error);
    })?;
    let provenance = opened.header.provenance.clone();
    let inheritance = Inheritance {
        key_sets: vec![Arc::clone(&opened.set)],
        // The key set was drawn for the stream, and belongs to no holder.
        holder: None,
        key_mode: opened.header.key_mode,
        provenance: Provenance {
            volume: provenance.volume,
            image: provenance.image.clone(),
            foreign: true,
        },
    };
    let provider = new_customer.or_else(|| opened.customer.take());
    let customer = provider.as_deref().map(NewCustomer::with_key).transpose();
    let new_volume = NewVolume {
        action: "import-image",
        customer: customer.map_err(VolumeError::from)?,
        keystore: &options.keystore,
        size_bytes: options.size_bytes,
        inherited: Some(&inheritance),
    };
    let mut received = ReceivedCounts::default();
    let created = create_volume(target, &new_volume, &mut |fresh| {
        received = opened.receive(fresh, progress)?;
        Ok(())
    });
    Ok(Imported {
        volume: created.map_err(ImageError::from_create_error)?,
        provenance,
        objects: received.objects,
        inodes: received.inodes,
        bytes: received.used_pages * PAGE_BYTES as u64,
    })
}

/// Opens the stream, and the new volume's customer key if it is another one. Nothing is written.
fn open_keys<'a>(
    from: &'a mut dyn Read,
    options: &ImportOptions,
) -> Result<(OpenedStream<'a>, Option<Box<dyn CustomerKeyProvider>>), ImageError> {
    let opened = OpenedStream::begin(from, options)?;
    let new_customer = options
        .new_customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(VolumeError::from)?;
    Ok((opened, new_customer))
}

/// Numbers of what has been received so far.
#[derive(Clone, Copy, Debug, Default)]
struct ReceivedCounts {
    objects: u64,
    pages: u64,
    inodes: u64,
    used_pages: u64,
    record_bytes: u64,
}

/// A stream whose header was verified.
struct OpenedStream<'a> {
    stream: StreamReader<'a>,
    header: ExportHeader,
    customer: Option<Box<dyn CustomerKeyProvider>>,
    mac_keys: ExportKeys,
    /// The key set of the whole stream.
    set: Arc<KeySet>,
}

impl<'a> OpenedStream<'a> {
    fn begin(from: &'a mut dyn Read, options: &ImportOptions) -> Result<Self, ImageError> {
        let (stream, unverified) = StreamReader::begin(from)?;
        let claims = unverified.claims();
        let customer = customer_key(claims, options)?;
        let transport = transport_keys(claims, options).map_err(StreamError::from)?;
        let set = unwrap(claims, &transport, customer.as_deref())?;
        let mac_keys = ExportKeys::derive(claims.export, &set).map_err(|_| keys_not_derivable())?;
        let header = unverified.verify(&mac_keys)?;
        Ok(Self {
            stream,
            header,
            customer,
            mac_keys,
            set: Arc::new(set),
        })
    }

    /// Receives everything. All of it is verified and durable on return, except for the names at
    /// the top of the volume.
    fn receive(
        &mut self,
        fresh: &FreshVolume,
        progress: &dyn Progress,
    ) -> Result<ReceivedCounts, ImageError> {
        let counts = self.header.counts;
        progress.begin(counts.sealed_bytes());
        let transported = self.receive_metadata(fresh, &counts, progress)?;
        let limit_bytes = match fresh.size_bytes {
            Some(bytes) => bytes,
            None => transported.counters().limit_bytes,
        };
        let mut received = copy_records(&transported, fresh, limit_bytes)?;
        let taken_pages = pages_taken(received.used_pages, received.record_bytes);
        if limit_bytes > 0 && taken_pages > pages_of_capacity(limit_bytes) {
            return Err(ImageError::TooSmall {
                needed_bytes: capacity_of_pages(taken_pages),
                size_bytes: limit_bytes,
            });
        }
        let written = self.receive_objects(&transported, fresh, &mut received, progress)?;
        if (received.objects, received.pages) != (counts.objects, counts.pages) {
            return Err(StreamError::Tampered {
                what: "counts do not match",
            }
            .into());
        }
        self.stream.end(&counts, &self.mac_keys)?;
        make_durable(&*fresh.store, &written)
            .map_err(ImageError::io("cannot sync the new volume"))?;
        ImageError::check_consistent(check::compare(fresh))?;
        Ok(received)
    }

    /// Receives all objects: reads them in their order, while the workers verify and write them.
    fn receive_objects(
        &mut self,
        transported: &Stored,
        fresh: &FreshVolume,
        received: &mut ReceivedCounts,
        progress: &dyn Progress,
    ) -> Result<WrittenObjects, ImageError> {
        let work: &Work<'_, PageRun, PageRun> = &|_, run| run.write(progress);
        with_workers(work, |workers| {
            let (mut folders, mut has_unsynced) = (BTreeSet::new(), false);
            let buffers = RefCell::new(Vec::new());
            let mut take = |run: PageRun| {
                if fresh.store.sync_policy().is_at_once() {
                    has_unsynced = true;
                } else if run.last {
                    // A file that was closed and opened again may not report a failed write.
                    run.object.sync().map_err(|source| run.refused(source))?;
                }
                buffers.borrow_mut().push(run.buffer);
                super::check_cancelled(progress)
            };
            visit_parts(transported, &mut |_, part| {
                received.objects += 1;
                received.pages += u64::from(part.pages.len());
                self.stream.object(part.id.name, part.pages.len())?;
                let object = Arc::new(create_object(part, fresh, &mut folders)?);
                let end = part.pages.end();
                for pages in page_runs(&part.pages, 0..CHUNK_PAGES) {
                    let reused = buffers.borrow_mut().pop();
                    let mut run = PageRun {
                        name: part.id.name,
                        object: Arc::clone(&object),
                        last: pages.end == end,
                        pages,
                        buffer: reused.unwrap_or_else(|| vec![0; RUN_PAGES as usize * PAGE_BYTES]),
                    };
                    self.stream.fill(run.bytes(), "an object's pages")?;
                    workers.submit(run, &mut take)?;
                }
                Ok(())
            })?;
            workers.finish(&mut take)?;
            Ok(WrittenObjects {
                folders,
                has_unsynced,
            })
        })
    }

    /// Receives the stream's `meta`. It is read without the database, since it may contain
    /// anything.
    fn receive_metadata(
        &mut self,
        fresh: &FreshVolume,
        counts: &Counts,
        progress: &dyn Progress,
    ) -> Result<Stored, ImageError> {
        const WRITING: &str = "cannot write the received metadata";
        self.stream.meta(counts)?;
        let file = create_unlinked_file(&*fresh.store).map_err(ImageError::io(WRITING))?;
        let mut buffer = vec![0; STRIDES_AT_A_TIME as usize * META_STRIDE_BYTES];
        let mut next = 0;
        while next < counts.meta_strides {
            let count = (counts.meta_strides - next).min(STRIDES_AT_A_TIME);
            let bytes = &mut buffer[..count as usize * META_STRIDE_BYTES];
            self.stream.fill(bytes, "its metadata")?;
            file.write_at(bytes, next * META_STRIDE_BYTES as u64)
                .map_err(ImageError::io(WRITING))?;
            progress.advance(bytes.len() as u64);
            next += count;
        }
        open_transported(file, &self.set, &self.header)
            .map_err(ImageError::from_stream_metadata_error)
    }
}

/// The objects of the new volume.
struct WrittenObjects {
    folders: BTreeSet<FolderNumber>,
    /// Whether bytes of some objects are not durable.
    has_unsynced: bool,
}

/// A run of received pages.
struct PageRun {
    name: ObjectName,
    object: Arc<ContentsFile>,
    pages: Range<u32>,
    /// Whether it is the last run of the object.
    last: bool,
    buffer: Vec<u8>,
}

impl PageRun {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.pages.len() * PAGE_BYTES]
    }

    /// Verifies both layers of all pages, and writes them.
    fn write(mut self, progress: &dyn Progress) -> Result<Self, ImageError> {
        let (object, pages) = (Arc::clone(&self.object), page_range(&self.pages));
        let guard = object.lock_exclusive(pages.clone());
        object
            .write_sealed(&guard, pages, self.bytes())
            .map_err(|source| self.refused(source))?;
        drop(guard);
        progress.advance(self.bytes().len() as u64);
        Ok(self)
    }

    fn refused(&self, source: SealedError) -> ImageError {
        ImageError::Page {
            object: self.name,
            source,
        }
    }
}

/// Makes the objects' names durable, and their bytes if some are not.
fn make_durable(store: &dyn Store, objects: &WrittenObjects) -> io::Result<()> {
    if objects.has_unsynced {
        // Each file would need an fsync: one sync for all is faster.
        return store.sync_all();
    }
    for folder in &objects.folders {
        store.sync_dir(&folder_path(*folder))?;
    }
    store.sync_dir(&root_path())
}

fn open_transported(
    file: Arc<dyn StoreFile>,
    set: &Arc<KeySet>,
    header: &ExportHeader,
) -> Result<Stored, MetaError> {
    let sealed = MetaFile::open(file, set, header.meta)?;
    Stored::open(&Arc::new(sealed))
}

/// Writes the volume's own metadata.
fn copy_records(
    transported: &Stored,
    fresh: &FreshVolume,
    limit_bytes: u64,
) -> Result<ReceivedCounts, ImageError> {
    let file = fresh
        .store
        .open(&StorePath::new(META_NAME), OpenMode::CreateNew)
        .map_err(ImageError::io("cannot create the metadata file"))?;
    let file = MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto)?;
    let options = CopyOptions {
        limit_bytes,
        frozen: true,
    };
    let mut same_parts = |_, parts| Ok::<_, MetaError>(parts);
    let copied = copy::copy(transported, file, options, &mut same_parts)
        .map_err(ImageError::from_stream_metadata_error)?;
    Ok(ReceivedCounts {
        inodes: copied.inodes,
        used_pages: copied.used_pages,
        record_bytes: copied.record_bytes,
        ..ReceivedCounts::default()
    })
}

/// Creates an empty file for a received object.
fn create_object(
    part: &Part,
    fresh: &FreshVolume,
    folders: &mut BTreeSet<FolderNumber>,
) -> Result<ContentsFile, ImageError> {
    let name = part.id.name;
    let set = fresh.keys.get(part.id.epoch).ok_or_else(|| {
        let epoch = part.id.epoch;
        ImageError::from_object_error(
            name,
            ObjectError::NoKeySet {
                object: name,
                epoch,
            },
        )
    })?;
    if folders.insert(name.folder) {
        fresh
            .store
            .create_dir(&folder_path(name.folder))
            .map_err(ImageError::io("cannot create a folder of objects"))?;
    }
    let file = fresh
        .store
        .open(&object_path(name), OpenMode::CreateNew)
        .map_err(|source| ImageError::Object {
            object: name,
            source,
        })?;
    Ok(ContentsFile::new(file, set, part.id.crypto))
}

/// Opens the given customer key; `None` for a platform-managed image.
fn customer_key(
    claims: &ExportHeader,
    options: &ImportOptions,
) -> Result<Option<Box<dyn CustomerKeyProvider>>, StreamError> {
    let named = options.customer_key.as_ref();
    let uri = match (&claims.customer_key, named) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(StreamError::Downgraded),
        (Some(_), Some(uri)) => uri,
        (Some(wanted), None) => {
            return Err(StreamError::CustomerKeyNeeded {
                claimed: wanted.provider.clone(),
            });
        }
    };
    Ok(Some(customer::open(uri, &options.passphrase)?))
}

fn wrong_customer_key(
    provider: &dyn CustomerKeyProvider,
    wanted: &KeyVersion,
) -> Result<StreamError, KeyError> {
    Ok(StreamError::WrongCustomerKey {
        given: provider.uri().to_string(),
        fingerprint: provider.current()?.key.fingerprint().to_owned(),
        wanted: wanted.key.fingerprint().to_owned(),
    })
}

/// Unwraps the customer DEK of an image that names this key.
fn unwrap_customer(
    claims: &ExportHeader,
    provider: &dyn CustomerKeyProvider,
) -> Result<CustomerDek, StreamError> {
    let claim = claims.customer_key.as_ref();
    let wanted = claim.ok_or_else(keys_not_derivable)?.to_version()?;
    let context = context_of(claims);
    let wrapped = &claims.key_set.customer;
    match transport::unwrap_with_customer_key(provider, &wanted, &context, wrapped) {
        Err(error) if error.kind() == ErrorKind::WrongKey => {
            Err(wrong_customer_key(provider, &wanted)?)
        }
        unwrapped => Ok(unwrapped?),
    }
}

fn transport_keys(
    claims: &ExportHeader,
    options: &ImportOptions,
) -> Result<TransportKeys, KeyError> {
    match &claims.transport {
        TransportMethod::Keystore {
            keystore,
            key_version,
        } => PlatformKeystore::open(&options.keystore)
            .map_err(|error| keystore_error(error, keystore))?
            .transport_of(keystore, *key_version, claims.export),
        TransportMethod::Passphrase { argon2id, salt } => {
            let from = &options.export_passphrase;
            from.obtain_for_import(|passphrase| {
                let keys =
                    TransportKeys::from_passphrase(passphrase, *argon2id, salt, claims.export)?;
                // A wrong passphrase shows when a key does not open.
                let set = &claims.key_set;
                keys.unwrap_infrastructure(&context_of(claims), &set.infrastructure)?;
                Ok(keys)
            })
        }
    }
}

fn context_of(claims: &ExportHeader) -> TransportContext {
    TransportContext {
        export: claims.export,
        key_set: claims.key_set.id,
        epoch: claims.key_set.epoch,
    }
}

/// Unwraps both DEKs.
fn unwrap(
    claims: &ExportHeader,
    keys: &TransportKeys,
    customer: Option<&dyn CustomerKeyProvider>,
) -> Result<KeySet, StreamError> {
    let set = &claims.key_set;
    let context = context_of(claims);
    let infrastructure = keys.unwrap_infrastructure(&context, &set.infrastructure)?;
    let customer = match (claims.key_mode, customer) {
        (KeyMode::PlatformAndCustomer, Some(provider)) => unwrap_customer(claims, provider)?,
        (KeyMode::PlatformManaged, None) => keys.unwrap_customer(&context, &set.customer)?,
        _ => return Err(keys_not_derivable()),
    };
    Ok(KeySet {
        id: set.id,
        epoch: set.epoch,
        customer,
        infrastructure,
    })
}

/// The error of opening a keystore. If there is none at all, it names the keystore of the export.
fn keystore_error(error: KeyError, wanted: &str) -> KeyError {
    match error.kind() {
        ErrorKind::KeystoreMissing => KeyError::new(
            ErrorKind::KeystoreMissing,
            format!("the export was made for platform keystore {wanted:?}: {error}"),
        )
        .with_hint("import it where that keystore is, or export it again under a passphrase"),
        _ => error,
    }
}
