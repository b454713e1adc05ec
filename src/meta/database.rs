//! The redb database in the sealed file `meta`.
//!
//! Invariants: every durable commit is two-phase. A panic inside redb is caught and becomes an
//! ordinary error, also when an object of redb is dropped (its drop locks mutexes that an earlier
//! panic has poisoned). After a failed write the database is not used again (the caller latches). A
//! database that is dropped without being closed writes nothing, as if the process had abandoned.
//!
//! Order of writes of a commit: new pages, sync, the other commit slot in page 0, sync. Page 0
//! has two slots of its own in the sealed file, so that a torn write of it leaves the other.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, StorageBackend, TableDefinition,
};

use super::MetaError;
use super::keys::{Row, Table};
use super::overlay::Overlay;
use crate::sealed::MetaFile;

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

const fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// redb's view of the sealed file.
#[derive(Debug)]
struct Backend {
    file: Arc<MetaFile>,
    /// Set once the database is abandoned: nothing is written any more.
    abandoned: Arc<AtomicBool>,
    /// Reading fails once this is set.
    cancelled: Arc<AtomicBool>,
}

impl Backend {
    fn writable(&self) -> io::Result<&MetaFile> {
        if self.abandoned.load(Ordering::SeqCst) {
            Err(io::Error::other("the metadata database was abandoned"))
        } else {
            Ok(&self.file)
        }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.writable()?.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writable()?.write(offset, data)
    }
}

/// The tables as of the newest commit.
pub struct Committed {
    /// `None` only during the drop.
    tables: Option<[Rows; Table::ALL.len()]>,
}

impl Drop for Committed {
    fn drop(&mut self) {
        let tables = self.tables.take();
        drop_guarded(tables);
    }
}

impl fmt::Debug for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Committed")
    }
}

impl Committed {
    fn rows(&self, table: Table) -> Result<&Rows, MetaError> {
        let tables = self.tables.as_ref().map(|tables| &tables[table.index()]);
        tables.ok_or(MetaError::Corrupt("tables"))
    }

    /// The value of a physical key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        guarded(|| {
            Ok(self
                .rows(table)?
                .get(key)?
                .map(|value| value.value().to_vec()))
        })
    }

    /// The last record with `low <= key <= high`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(super) fn last_between(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
    ) -> Result<Option<Row>, MetaError> {
        guarded(|| {
            let mut range = self.rows(table)?.range::<&[u8]>(low..=high)?;
            let last = range.next_back().transpose()?;
            Ok(last.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
        })
    }

    /// Calls `visit` with each record with `low <= key < high`, in order, until it returns false.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn visit(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        guarded(|| {
            for row in self.rows(table)?.range::<&[u8]>(low..high)? {
                let (key, value) = row?;
                if !visit(key.value(), value.value()) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// The database.
pub struct Tables {
    /// `None` once it is closed.
    database: Option<Database>,
    abandoned: Arc<AtomicBool>,
}

impl Drop for Tables {
    fn drop(&mut self) {
        // After an error, redb might write inconsistent data when it is dropped.
        self.abandoned.store(true, Ordering::SeqCst);
        let database = self.database.take();
        drop_guarded(database);
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tables")
    }
}

impl Tables {
    /// Opens the database in the sealed file and recovers it after an unclean shutdown, or creates
    /// an empty one in an empty file.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is no database that redb accepts.
    pub fn open(file: Arc<MetaFile>, cache_bytes: usize) -> Result<Self, MetaError> {
        Self::open_cancellable(file, cache_bytes, Arc::default())
    }

    /// Opens the database. Every read fails once `cancelled` is set.
    pub(super) fn open_cancellable(
        file: Arc<MetaFile>,
        cache_bytes: usize,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self, MetaError> {
        let abandoned = Arc::new(AtomicBool::new(false));
        let backend = Backend {
            file,
            abandoned: Arc::clone(&abandoned),
            cancelled,
        };
        let database = guarded(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            Ok(builder.create_with_backend(backend)?)
        })?;
        Ok(Self {
            database: Some(database),
            abandoned,
        })
    }

    /// Verifies the checksums of everything that the newest commit references, and the record of
    /// free pages. False if that record was wrong and has been rebuilt.
    ///
    /// # Errors
    /// When a page does not open, or does not match its checksum.
    pub fn verify(&mut self) -> Result<bool, MetaError> {
        let database = self.database.as_mut().ok_or(MetaError::Corrupt("tables"))?;
        guarded(|| Ok(database.check_integrity()?))
    }

    fn database(&self) -> Result<&Database, MetaError> {
        self.database.as_ref().ok_or(MetaError::Corrupt("tables"))
    }

    /// The current tables.
    ///
    /// # Errors
    /// When the roots of the tables cannot be read, or the database is closed.
    pub fn committed(&self) -> Result<Committed, MetaError> {
        guarded(|| {
            let transaction = self.database()?.begin_read()?;
            let mut tables = Vec::with_capacity(Table::ALL.len());
            for table in Table::ALL {
                tables.push(transaction.open_table(definition(table))?);
            }
            let tables = tables
                .try_into()
                .map_err(|_| MetaError::Corrupt("tables"))?;
            Ok(Committed {
                tables: Some(tables),
            })
        })
    }

    /// Writes the changes and the counters in one durable transaction.
    ///
    /// # Errors
    /// When the transaction cannot be written. The caller must not use the database again.
    pub fn commit(&self, changes: &Overlay, counters: &[u8]) -> Result<(), MetaError> {
        guarded(|| {
            let mut transaction = self.database()?.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(true);
            for table in Table::ALL {
                let mut rows = transaction.open_table(definition(table))?;
                for (key, value) in changes.table(table) {
                    match value {
                        Some(value) => rows.insert(key.as_slice(), value.as_slice())?,
                        None => rows.remove(key.as_slice())?,
                    };
                }
                if table == Table::Counters {
                    rows.insert(&[][..], counters)?;
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Fills an empty database in one durable transaction of any size, in bounded memory. `fill`
    /// inserts the rows, preferably in the order of their keys, and returns the counters. If it
    /// fails, nothing takes effect.
    ///
    /// # Errors
    /// Errors of `fill`, and of writing the transaction.
    pub fn load(
        &self,
        fill: &mut dyn FnMut(&mut Loader<'_>) -> Result<Vec<u8>, MetaError>,
    ) -> Result<(), MetaError> {
        guarded(|| {
            let mut transaction = self.database()?.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(true);
            let mut tables = Vec::with_capacity(Table::ALL.len());
            for table in Table::ALL {
                tables.push(transaction.open_table(definition(table))?);
            }
            let mut loader = Loader(tables);
            let counters = fill(&mut loader)?;
            loader.insert(Table::Counters, &[], &counters)?;
            drop(loader);
            transaction.commit()?;
            Ok(())
        })
    }

    /// Closes the database and marks it clean.
    ///
    /// # Errors
    /// When the last writes fail.
    pub fn close(mut self) -> Result<(), MetaError> {
        match self.database.take() {
            Some(database) => guarded(|| Ok(database.close()?)),
            None => Ok(()),
        }
    }
}

/// The tables of a database that is being filled, in the order of [`Table::index`].
pub struct Loader<'a>(Vec<redb::Table<'a, &'static [u8], &'static [u8]>>);

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

impl Loader<'_> {
    /// Sets a row.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        let rows = self.0.get_mut(table.index());
        rows.ok_or(MetaError::Corrupt("tables"))?
            .insert(key, value)?;
        Ok(())
    }
}

/// Drops an object of redb. There is no caller left to report a panic to.
fn drop_guarded<T>(value: T) {
    let dropped = guarded(|| {
        drop(value);
        Ok(())
    });
    if let Err(error) = dropped {
        tracing::error!(%error, "the metadata database could not be closed cleanly");
    }
}

/// Runs a call into redb and turns a panic into an error.
fn guarded<T>(call: impl FnOnce() -> Result<T, MetaError>) -> Result<T, MetaError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(MetaError::Panic(message.to_owned()))
    })
}
