//! A database over a sealed file, like `meta`, to which other records are written, or the same ones
//! with additional fields.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bilayer::ids::CryptoId;
use bilayer::layers::KeyRing;
use bilayer::sealed::MetaFile;
use bilayer::store::directory::DirectoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer_bench::Outcome;
use redb::{Database, Durability, StorageBackend, TableDefinition};

use crate::volume::Watched;

const ROWS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("extent");
const CACHE_BYTES: usize = 64 << 20;

#[derive(Debug)]
struct Backend(Arc<MetaFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// A fresh sealed file of that name in a directory.
pub(crate) fn sealed_file(
    place: &Path,
    name: &str,
    keys: &KeyRing,
) -> Outcome<(Arc<Watched>, MetaFile)> {
    let store = DirectoryStore::open_or_create(place)?;
    let watched = Watched::over(store.open(&StorePath::new(name), OpenMode::CreateNew)?);
    let file = MetaFile::create(watched.clone(), keys.active(), CryptoId::random()?)?;
    Ok((watched, file))
}

/// Opens the database in a sealed file.
pub(crate) fn open(file: Arc<MetaFile>) -> Outcome<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    Ok(builder.create_with_backend(Backend(file))?)
}

/// A database with one table.
pub(crate) struct Rows {
    file: Arc<Watched>,
    database: Database,
}

/// The cost of a commit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
}

impl Rows {
    pub(crate) fn create(place: &Path, name: &str, keys: &KeyRing) -> Outcome<Self> {
        let (file, sealed) = sealed_file(place, name, keys)?;
        let database = open(Arc::new(sealed))?;
        Ok(Self { file, database })
    }

    /// Sets rows in one commit, with the settings of the volume's own commits.
    pub(crate) fn commit(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Outcome<Cost> {
        let before = self.file.written.load(Ordering::Relaxed);
        let start = Instant::now();
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(ROWS)?;
            for (key, value) in rows {
                table.insert(key.as_slice(), value.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(Cost {
            seconds: start.elapsed().as_secs_f64(),
            bytes: self.file.written.load(Ordering::Relaxed) - before,
        })
    }
}
