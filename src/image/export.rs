//! Exporting an image: one stream that contains it, sealed under a key set drawn for it.
//!
//! The image's records are copied into a fresh `meta`, as for a deployed volume, in which every
//! chunk has one fresh object. Then the pages of these objects are re-sealed from the image's
//! ([`super::reseal`]). No key set of the volume is in the stream: a recipient who can open it gets
//! the exported image and no other data of the volume, now or later. Every page is opened through
//! both layers first, so damage of the image is noticed while it can still be repaired. No
//! plaintext and no byte under only one layer is ever written, here or into the stream.
//!
//! The fresh `meta` is a file in the volume's directory that is unlinked as soon as it is created.
//! If that fails, opening the volume removes a file of that name.

use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::reseal::{FIRST_SEQUENCE, FreshNames, SourceObjects, VisibleChunk};
use super::stream::{
    Counts, CustomerKeyClaim, ExportHeader, ExportProvenance, StreamError, StreamWriter,
    TransportedKeySet,
};
use super::workers::{Work, with_workers};
use super::{ImageError, Progress, Source};
use crate::audit::Record;
use crate::check;
use crate::ids::{CryptoId, Epoch, ExportId};
use crate::keys::transport::{
    self, Argon2idCost, TransportContext, TransportKeys, TransportMethod,
};
use crate::keys::{KeyError, KeyUri, KeyVersion, PassphraseSource, customer};
use crate::layers::{ExportKeys, KeySet};
use crate::meta::copy::{CopiedChunk, CopyOptions, Records};
use crate::meta::keys::Table;
use crate::meta::page_set::CHUNK_PAGES;
use crate::meta::records::{ExtentRecord, ObjectName, Part, Timespec};
use crate::meta::{Meta, MetaError, keys};
use crate::object::{RUN_PAGES, page_range, page_runs};
use crate::sealed::{META_STRIDE_BYTES, MetaFile, PAGE_BYTES, PageSealer};
use crate::store::memory::MemoryStore;
use crate::store::{OpenMode, Store, StoreFile, StorePath};
use crate::volume::{KeyMode, META_NAME, Volume, VolumeError};

/// Number of a stream's only key set.
const EPOCH: Epoch = Epoch(1);
/// Strides that are processed at a time.
pub(super) const STRIDES_AT_A_TIME: u64 = 256;
/// Cache of a database that is read once, in bytes.
pub(super) const CACHE_BYTES: usize = 4 << 20;

/// Who holds the keys of an export.
#[derive(Clone, Debug, Default)]
pub enum Transport {
    /// The platform keystore: the destination must have the same.
    #[default]
    Keystore,
    /// All who know a passphrase.
    Passphrase(PassphraseSource),
}

/// Options of an export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Who holds the keys.
    pub transport: Transport,
    /// The importer's customer key; by default the image's, if that has one. Its public half is
    /// sufficient.
    pub customer_key: Option<KeyUri>,
    /// Where the passphrase of an encrypted customer key comes from.
    pub passphrase: PassphraseSource,
}

/// Result of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exported {
    /// Id of the export.
    pub export: ExportId,
    /// Number of objects.
    pub objects: u64,
    /// Number of pages of all objects.
    pub pages: u64,
    /// Length of the stream in bytes.
    pub bytes: u64,
}

/// Writes an image that was taken at `created` as one stream. An import refuses a stream without
/// its end, so after an error the output is useless.
///
/// # Errors
/// A key is not available, a page of the image does not open, or something cannot be read or
/// written.
pub fn export(
    source: &Source<'_>,
    created: Timespec,
    options: &ExportOptions,
    to: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<Exported, ImageError> {
    let result = export_unaudited(source, created, options, to, progress);
    let audited = Record::new("export-image")
        .volume(source.volume.header().volume_id())
        .with("image", source.image)
        .with("key_mode", source.volume.header().key_mode().name());
    match &result {
        Ok(exported) => audited.with_text("export", exported.export).done(),
        Err(error) => audited.with("kind", error.kind().name()).refused(error),
    }
    result
}

fn export_unaudited(
    source: &Source<'_>,
    created: Timespec,
    options: &ExportOptions,
    to: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<Exported, ImageError> {
    let volume = source.volume;
    let export = ExportId::random().map_err(key_random)?;
    // Before anything is written, since this may ask for a passphrase and fail.
    let named = options
        .customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(StreamError::from)?;
    let customer = match &named {
        Some(provider) => Some(ExportKey {
            provider: provider.uri().to_string(),
            version: provider.current().map_err(StreamError::from)?,
        }),
        None => volume.opened_by.as_ref().map(|opened| ExportKey {
            provider: opened.uri.to_string(),
            version: opened.key.version.clone(),
        }),
    };
    let customer = customer.as_ref();
    let (method, transport) = transport_keys(volume, options, export)?;
    let set = Arc::new(KeySet::random(EPOCH).map_err(key_random)?);
    let key_set = wrap(customer, export, &transport, &set)?;
    let mac_keys = ExportKeys::derive(export, &set).map_err(|_| keys_not_derivable())?;

    let meta = CryptoId::random().map_err(key_random)?;
    let copy = TransportedMeta::create(source, Arc::clone(&set), meta, progress)?;
    let header = ExportHeader {
        features: Vec::new(),
        export,
        key_mode: key_mode(volume, customer)?,
        transport: method,
        customer_key: customer.map(|key| CustomerKeyClaim::new(key.provider.clone(), &key.version)),
        meta,
        key_set,
        provenance: ExportProvenance {
            volume: volume.header().volume_id(),
            image: source.image.to_owned(),
            created: created.secs,
        },
        counts: copy.counts()?,
    };
    progress.begin(header.counts.sealed_bytes());
    let mut stream = StreamWriter::begin(to, &header, &mac_keys)?;
    copy.send(&mut stream, progress)?;
    send_objects(source, &copy.open()?, &set, &mut stream, progress)?;
    Ok(Exported {
        export,
        objects: header.counts.objects,
        pages: header.counts.pages,
        bytes: stream.end()?,
    })
}

/// The customer key that an export is made for.
struct ExportKey {
    /// Its URI, for people.
    provider: String,
    version: KeyVersion,
}

fn transport_keys(
    volume: &Volume,
    options: &ExportOptions,
    export: ExportId,
) -> Result<(TransportMethod, TransportKeys), ImageError> {
    let keys = match &options.transport {
        Transport::Keystore => volume.keystore().transport(export),
        Transport::Passphrase(from) => from.obtain_for_export().and_then(|passphrase| {
            TransportKeys::from_new_passphrase(&passphrase, Argon2idCost::DEFAULT, export)
        }),
    };
    Ok(keys.map_err(StreamError::from)?)
}

/// Key mode of the export: never weaker than that of the volume.
fn key_mode(volume: &Volume, customer: Option<&ExportKey>) -> Result<KeyMode, ImageError> {
    match (volume.header().key_mode(), customer) {
        (_, Some(_)) => Ok(KeyMode::PlatformAndCustomer),
        (KeyMode::PlatformManaged, None) => Ok(KeyMode::PlatformManaged),
        (KeyMode::PlatformAndCustomer, None) => Err(VolumeError::WouldDowngrade.into()),
    }
}

/// Wraps both DEKs of the export's key set.
fn wrap(
    customer: Option<&ExportKey>,
    export: ExportId,
    keys: &TransportKeys,
    set: &KeySet,
) -> Result<TransportedKeySet, ImageError> {
    let context = TransportContext {
        export,
        key_set: set.id,
        epoch: set.epoch,
    };
    let customer = match customer {
        Some(key) => transport::wrap_with_customer_key(&key.version.key, &context, &set.customer),
        None => keys.wrap_customer(&context, &set.customer),
    };
    let infrastructure = keys.wrap_infrastructure(&context, &set.infrastructure);
    Ok(TransportedKeySet {
        id: set.id,
        epoch: set.epoch,
        customer: customer.map_err(StreamError::from)?,
        infrastructure: infrastructure.map_err(StreamError::from)?,
    })
}

/// The metadata of the image in an unlinked file.
struct TransportedMeta {
    file: Arc<dyn StoreFile>,
    set: Arc<KeySet>,
    crypto: CryptoId,
}

impl TransportedMeta {
    /// Copies the records, with fresh parts whose pages are sealed later.
    fn create(
        source: &Source<'_>,
        set: Arc<KeySet>,
        crypto: CryptoId,
        progress: &dyn Progress,
    ) -> Result<Self, ImageError> {
        let file = create_unlinked_file(&*source.volume.store).map_err(ImageError::io(
            "cannot create a file for the image's metadata",
        ))?;
        let sealed = MetaFile::create(Arc::clone(&file), &set, crypto)?;
        let options = CopyOptions {
            limit_bytes: source.meta.counters().limit_bytes,
            frozen: true,
        };
        let mut names = FreshNames::new(set.epoch);
        source
            .meta
            .copy_view(source.view, sealed, options, &mut |_, parts| {
                super::check_cancelled(progress)?;
                Ok::<_, ImageError>(vec![names.part_for(&parts)?])
            })?;
        // An import would refuse inconsistent metadata, and here it can still be repaired.
        let sealed = MetaFile::open(Arc::clone(&file), &set, crypto)?;
        ImageError::check_consistent(check::compare_metadata(sealed, source.volume))?;
        Ok(Self { file, set, crypto })
    }

    /// Opens it for reading. Writes of the database to its file do no harm.
    fn open(&self) -> Result<Meta, ImageError> {
        let sealed = MetaFile::open(Arc::clone(&self.file), &self.set, self.crypto)?;
        Ok(Meta::open(sealed, CACHE_BYTES)?)
    }

    /// Counts the sections that follow in the stream. Afterwards the file is as it is to be sent.
    fn counts(&self) -> Result<Counts, ImageError> {
        let (mut objects, mut pages) = (0, 0);
        let meta = self.open()?;
        visit_parts(&meta, &mut |_, part| {
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

    fn send(
        &self,
        stream: &mut StreamWriter<'_>,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let strides = stream.meta()?;
        let mut buffer = vec![0; STRIDES_AT_A_TIME as usize * META_STRIDE_BYTES];
        let mut next = 0;
        while next < strides {
            let count = (strides - next).min(STRIDES_AT_A_TIME);
            let bytes = &mut buffer[..count as usize * META_STRIDE_BYTES];
            let read = self.file.read_at(bytes, next * META_STRIDE_BYTES as u64);
            if read.map_err(ImageError::io(READING))? < bytes.len() {
                let short = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(ImageError::io(READING)(short));
            }
            stream.put(bytes)?;
            progress.advance(bytes.len() as u64);
            next += count;
        }
        Ok(())
    }
}

const READING: &str = "cannot read the image's metadata";

/// The fields of an object's section header.
struct ObjectHeader {
    name: ObjectName,
    /// Number of its pages.
    pages: u32,
}

/// A run of pages to re-seal.
struct PageRun {
    chunk: Arc<VisibleChunk>,
    sealer: Arc<PageSealer>,
    pages: Range<u32>,
    /// The section header of the object, before its first run.
    header: Option<ObjectHeader>,
    /// The buffer for the sealed pages.
    buffer: Vec<u8>,
}

fn send_objects(
    source: &Source<'_>,
    meta: &Meta,
    set: &Arc<KeySet>,
    stream: &mut StreamWriter<'_>,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let objects = SourceObjects::of(source.volume);
    let work: &Work<'_, PageRun, PageRun> = &|scratch, mut run| {
        let plain = objects.read(&run.chunk, &run.pages, scratch)?;
        let out = &mut run.buffer[..run.pages.len() * PAGE_BYTES];
        let sealed = run
            .sealer
            .seal(page_range(&run.pages), plain, FIRST_SEQUENCE, out);
        sealed?;
        Ok(run)
    };
    with_workers(work, |workers| {
        let buffers = RefCell::new(Vec::new());
        let mut put = |run: PageRun| {
            super::check_cancelled(progress)?;
            if let Some(header) = run.header {
                stream.object(header.name, header.pages)?;
            }
            let bytes = run.pages.len() * PAGE_BYTES;
            stream.put(&run.buffer[..bytes])?;
            progress.advance(bytes as u64);
            buffers.borrow_mut().push(run.buffer);
            Ok(())
        };
        visit_parts(meta, &mut |chunk, part| {
            let visible = Arc::new(visible_in(source, chunk)?);
            objects.will_need(&visible);
            let sealer = Arc::new(PageSealer::new(set, part.id.crypto));
            let mut header = Some(ObjectHeader {
                name: part.id.name,
                pages: part.pages.len(),
            });
            for pages in page_runs(&part.pages, 0..CHUNK_PAGES) {
                let reused = buffers.borrow_mut().pop();
                let run = PageRun {
                    chunk: Arc::clone(&visible),
                    sealer: Arc::clone(&sealer),
                    pages,
                    header: header.take(),
                    buffer: reused.unwrap_or_else(|| vec![0; RUN_PAGES as usize * PAGE_BYTES]),
                };
                workers.submit(run, &mut put)?;
            }
            Ok(())
        })?;
        workers.finish(&mut put)
    })
}

/// The visible pages of a chunk.
fn visible_in(source: &Source<'_>, chunk: CopiedChunk) -> Result<VisibleChunk, ImageError> {
    let record = source.meta.extent(chunk.ino, chunk.chunk, source.view)?;
    match record {
        Some((_, ExtentRecord::Parts { parts, .. })) => Ok(VisibleChunk::of(&chunk, &parts)),
        // The record was copied just before.
        _ => Err(MetaError::Corrupt("extent").into()),
    }
}

/// Calls `visit` with every chunk that has objects, and each of its parts, in the order of the
/// stream: by inode and chunk.
pub(super) fn visit_parts(
    records: &dyn Records,
    visit: &mut dyn FnMut(CopiedChunk, &Part) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    const ROWS_AT_A_TIME: usize = 256;
    let mut low = Vec::new();
    let mut file = None;
    loop {
        let rows = records.read_rows(Table::Extent, &low, &[0xFF; 9], ROWS_AT_A_TIME)?;
        for (key, value) in &rows {
            let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
            let ExtentRecord::Parts { parts, .. } = record else {
                continue;
            };
            let (ino, index) = keys::extent_parts(key).ok_or(MetaError::Corrupt("key"))?;
            let size = match file {
                Some((of, size)) if of == ino => size,
                _ => match records.inode(ino)? {
                    Some(inode) => inode.size,
                    None => return Err(MetaError::Corrupt("extent").into()),
                },
            };
            file = Some((ino, size));
            let chunk = CopiedChunk::of(ino, index, size);
            parts.iter().try_for_each(|part| visit(chunk, part))?;
        }
        match rows.into_iter().next_back() {
            // No logical key is a prefix of another one.
            Some((last, _)) => low = keys::versioned(&last, crate::ids::Generation(u64::MAX)),
            None => return Ok(()),
        }
        low.push(0);
    }
}

/// Creates an unlinked file in the directory of a volume, which disappears when it is closed. For a
/// moment it has the name of a replacement of `meta`, which opening or creating a volume there
/// removes. On a read-only medium it is in memory.
pub(super) fn create_unlinked_file(store: &dyn Store) -> io::Result<Arc<dyn StoreFile>> {
    static NAME: Mutex<()> = Mutex::new(());
    let _guard = NAME.lock();
    let path = StorePath::new(&format!("{META_NAME}.new"));
    let file = match store.open(&path, OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return MemoryStore::new().open(&path, OpenMode::CreateNew);
        }
        // A file of a process that died before it could unlink it.
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

/// HKDF never fails with these inputs.
pub(super) fn keys_not_derivable() -> StreamError {
    StreamError::HeaderInvalid("its keys cannot be derived".to_owned())
}
