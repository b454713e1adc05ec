//! Metadata: versioned records in redb, behind an in-memory map of uncommitted changes.
//!
//! Invariants:
//! - A batch is applied atomically, and a commit contains a prefix of the batches.
//! - A view of generation `g` sees the newest version of a record whose generation is at most `g`.
//!   A tombstone means that the record does not exist.
//! - A read returns the newest of: uncommitted batches, batches being committed, the database.
//! - After an error that leaves the database in doubt, nothing is written any more
//!   ([`Meta::latch`]).
//!
//! Order of a commit: the pending map is replaced by an empty one, which new batches use. It is
//! written in one two-phase transaction, and dropped once readers have the new tables.

mod audit_head;
pub mod charge;
pub mod checkpoint;
pub mod commit;
pub mod copy;
pub mod cycle;
pub mod database;
pub mod keys;
pub mod overlay;
pub mod page_set;
mod permit;
mod queries;
pub mod raw;
mod read;
pub mod records;
pub mod repair;
pub mod stored;
mod tally;
pub mod trims;
mod versions;
mod views;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::errno::Errno;
use crate::ids::{FolderNumber, Generation, Ino, Sequence, ViewId};
use crate::sealed::{LogOnce, MetaFile, SealedError};
use crate::store::ballast::Ballast;
use database::{Committed, Tables};
use keys::Table;
pub use overlay::Batch;
use overlay::Overlay;
pub use permit::{ExclusivePermit, Permit};
use records::{COUNT_MAX, Counters, InodeRecord};
pub use versions::{ChangeRow, ChangedKey};

/// Errors of the metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The backing store failed; nothing was changed.
    #[error("the backing store failed under the metadata: {0}")]
    Io(#[from] std::io::Error),
    /// A page did not open, or its file is unusable.
    #[error("the metadata file: {0}")]
    Sealed(#[from] SealedError),
    /// An error of redb.
    #[error("the metadata database: {0}")]
    Database(Box<redb::Error>),
    /// redb panicked, which it does on inconsistent contents.
    #[error("the metadata database stopped: {0}")]
    Panic(String),
    /// All numbers of a kind are used up, or a counter has reached its limit.
    #[error("the volume has used up its {0}")]
    UsedUp(&'static str),
    /// A record is not one that this program writes.
    #[error("a metadata record in {0} is not what this version writes")]
    Corrupt(&'static str),
    /// Changes are refused for now.
    #[error("the volume is read-only")]
    ReadOnly,
    /// An earlier error has ended all writing.
    #[error("the volume is read-only since an earlier error: {0}")]
    Latched(String),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for MetaError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

impl MetaError {
    /// The error number that the caller of the filesystem gets.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io(error) => Errno::from_backing(error),
            Self::Sealed(error) => error.errno(),
            Self::ReadOnly | Self::Latched(_) => Errno::EROFS,
            Self::Database(error) => match error.as_ref() {
                redb::Error::Io(error) => Errno::from_backing(error),
                _ => Errno::EIO,
            },
            Self::UsedUp(_) => Errno::ENOSPC,
            Self::Panic(_) | Self::Corrupt(_) => Errno::EIO,
        }
    }
}

/// The filesystem as of a generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct View(pub Generation);

impl View {
    /// The live view.
    pub const LIVE: Self = Self(Generation(u64::MAX));
}

/// The first generation. While it is the only one, every physical key is known without a search.
const FIRST_GENERATION: Generation = Generation(1);
/// Space reserved for the metadata in addition to what the pending changes need, so that files can
/// be deleted on a full disk.
const HEADROOM_BYTES: u64 = 8 << 20;

struct State {
    /// Batches since the last commit began.
    pending: Overlay,
    /// The pending batches free space: they remove an inode, pages, or a view.
    pending_removes: bool,
    /// The pending batches need more space than before.
    pending_adds: bool,
    /// Batches of the commit under way.
    committing: Arc<Overlay>,
    committed: Arc<Committed>,
    counters: Counters,
    /// The first inode number that was allocated in the live generation. The records of inodes from
    /// this one on have no older versions.
    first_fresh: Ino,
    /// Number of the newest batch.
    applied: u64,
    /// Set while changes are refused: the number of the last permitted batch.
    held_at: Option<u64>,
    /// The volume is about to be unmounted ([`Meta::expect_unmount`]).
    unmounting: bool,
}

/// The metadata of a volume.
pub struct Meta {
    file: Arc<MetaFile>,
    tables: Mutex<Option<Tables>>,
    state: RwLock<State>,
    /// Number of the newest batch that is durable.
    durable: AtomicU64,
    latched: RwLock<Option<String>>,
    hash_key: [u8; 16],
    inode_locks: queries::InodeLocks,
    permits: permit::PermitLock,
    views: RwLock<views::Views>,
    /// The space reserve that a commit may use on a full disk.
    ballast: OnceLock<Arc<Ballast>>,
    /// The unfinished checkpoint, locked by its writer.
    unfinished: Mutex<Option<checkpoint::Unfinished>>,
    /// Whether it was logged that older checkpoints could not be removed.
    rotation_failures: LogOnce<()>,
    /// The space of the unfinished checkpoint is needed.
    discard_requested: AtomicBool,
    /// Inodes whose inconsistent records were logged.
    logged: LogOnce<Ino>,
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meta")
    }
}

impl Meta {
    /// Creates the metadata of an empty volume in an empty sealed file. Durable on return.
    ///
    /// # Errors
    /// When the file cannot be written, or there are no random bytes.
    pub fn format(file: MetaFile, limit_bytes: u64, root: &InodeRecord) -> Result<(), MetaError> {
        let mut hash_key = [0; 16];
        getrandom::fill(&mut hash_key).map_err(|e| std::io::Error::other(e.to_string()))?;
        let counters = Counters {
            clean: true,
            generation: FIRST_GENERATION,
            frozen: Generation(0),
            next_ino: Ino(Ino::ROOT.0 + 1),
            folder: FolderNumber(0),
            next_garbage: 0,
            used_pages: 0,
            inodes: 1,
            record_bytes: 0,
            limit_bytes,
            hash_key,
            restoring: Generation(0),
            newest_view: ViewId::LIVE,
        };
        let tables = Tables::open(Arc::new(file), 4 << 20)?;
        let mut overlay = Overlay::default();
        let mut batch = Batch::new();
        let key = keys::versioned(&keys::inode(Ino::ROOT), FIRST_GENERATION);
        batch.change(Table::Inode, key, Some(root.encode()));
        overlay.apply(batch);
        tables.commit(&overlay, &counters.encode())?;
        tables.close()
    }

    /// Opens the metadata; redb recovers it after an unclean shutdown. `cache_bytes` limits redb's
    /// cache.
    ///
    /// # Errors
    /// When the file cannot be read or synced, the database does not open, or its counters
    /// contradict the records.
    pub fn open(file: MetaFile, cache_bytes: usize) -> Result<Self, MetaError> {
        let mut this = Self::open_for_repair(file, cache_bytes)?;
        let state = this.state.get_mut();
        check_counters(&state.counters, &state.committed, this.views.get_mut())?;
        Ok(this)
    }

    /// Opens the metadata without comparing its counters with the records, so that a repair can
    /// correct them. Nothing else may be changed before.
    ///
    /// # Errors
    /// When the file cannot be read or synced, the database does not open, or the counters or the
    /// rows of views cannot be decoded.
    pub fn open_for_repair(file: MetaFile, cache_bytes: usize) -> Result<Self, MetaError> {
        // After a process was killed, its writes, including the slot of page 0 that now counts as
        // durable, may exist only in the kernel's memory. They must reach the disk before redb
        // writes the other slot, or a power cut may destroy both.
        file.sync()?;
        let file = Arc::new(file);
        let tables = Tables::open(Arc::clone(&file), cache_bytes)?;
        let committed = Arc::new(tables.committed()?);
        let counters = committed
            .get(Table::Counters, &[])?
            .and_then(|bytes| Counters::decode(&bytes))
            .ok_or(MetaError::Corrupt("counters"))?;
        let hash_key = counters.hash_key;
        let mut views = Vec::new();
        committed.visit(Table::View, &[], &[0xFF; 3], &mut |key, value| {
            views.push((key.to_vec(), value.to_vec()));
            true
        })?;
        let views = views::Views::from_rows(views).ok_or(MetaError::Corrupt("view"))?;
        let state = State {
            pending: Overlay::default(),
            pending_removes: false,
            pending_adds: false,
            committing: Arc::default(),
            committed,
            first_fresh: counters.next_ino,
            counters,
            applied: 0,
            held_at: None,
            unmounting: false,
        };
        Ok(Self {
            file,
            tables: Mutex::new(Some(tables)),
            state: RwLock::new(state),
            durable: AtomicU64::new(0),
            latched: RwLock::new(None),
            hash_key,
            inode_locks: queries::InodeLocks::default(),
            permits: permit::PermitLock::default(),
            views: RwLock::new(views),
            ballast: OnceLock::new(),
            unfinished: Mutex::new(None),
            rotation_failures: LogOnce::default(),
            discard_requested: AtomicBool::new(false),
            logged: LogOnce::default(),
        })
    }

    /// Ends all writing if the database could not be read: other parts may be bad too, and redb
    /// itself does not continue after that.
    fn latch_on_error<T>(&self, read: Result<T, MetaError>) -> Result<T, MetaError> {
        if let Err(error) = &read {
            self.latch(&format!("the metadata could not be read: {error}"));
        }
        read
    }

    /// Logs, once per inode, that its records contradict others.
    pub fn log_inconsistent(&self, ino: Ino, what: &str) {
        if self.logged.first_time(ino) {
            tracing::error!(ino = ino.0, what, "the metadata is damaged");
        }
    }

    /// The counters as they are now.
    pub fn counters(&self) -> Counters {
        self.state.read().counters.clone()
    }

    /// The commit number under which pages are sealed now.
    pub fn sequence(&self) -> Sequence {
        self.file.sequence()
    }

    /// The sealed file under the database.
    pub fn file(&self) -> &MetaFile {
        &self.file
    }

    /// The hash of a name, which is its entry's position in the directory. If another name with the
    /// same hash is there, the entry takes a position nearby.
    pub fn name_hash(&self, name: &[u8]) -> u32 {
        keys::name_hash(&self.hash_key, name)
    }

    /// Allocates an inode number.
    ///
    /// # Errors
    /// [`MetaError::UsedUp`] if there are no more numbers.
    pub fn allocate_ino(&self) -> Result<Ino, MetaError> {
        let counters = &mut self.state.write().counters;
        let ino = Ino::checked(counters.next_ino.0).ok_or(MetaError::UsedUp("inode numbers"))?;
        counters.next_ino = Ino(ino.0 + 1);
        Ok(ino)
    }

    /// Allocates the number of a new folder of objects.
    ///
    /// # Errors
    /// [`MetaError::UsedUp`] if there are no more numbers.
    pub fn allocate_folder(&self, at_least: FolderNumber) -> Result<FolderNumber, MetaError> {
        let counters = &mut self.state.write().counters;
        let folder = FolderNumber(counters.folder.0.saturating_add(1)).max(at_least);
        if folder >= FolderNumber::END {
            return Err(MetaError::UsedUp("folder numbers"));
        }
        counters.folder = folder;
        Ok(folder)
    }

    /// Allocates the number of a row of `garbage`.
    ///
    /// # Errors
    /// [`MetaError::UsedUp`] if there are no more numbers.
    fn allocate_garbage(&self) -> Result<u64, MetaError> {
        let counters = &mut self.state.write().counters;
        let number = counters.next_garbage;
        if number >= COUNT_MAX {
            return Err(MetaError::UsedUp("numbers for garbage"));
        }
        counters.next_garbage = number + 1;
        Ok(number)
    }
}

/// Checks the counters against the records. Counters that lag behind the records do not belong to
/// them. With such counters, a write would not see an extent of a later generation. A new file
/// would get the number of an existing one, or would take over names, attributes and contents that
/// are stored under its number.
fn check_counters(
    counters: &Counters,
    committed: &Committed,
    views: &views::Views,
) -> Result<(), MetaError> {
    let last_number = |table| -> Result<Option<u64>, MetaError> {
        let last = committed.last_between(table, &[], &[0xFF; 16])?;
        Ok(last.and_then(|(key, _)| key.first_chunk().map(|number| u64::from_be_bytes(*number))))
    };
    let newest_shared = views.newest().max(counters.frozen);
    let restoring = counters.restoring;
    let mut consistent = newest_shared < counters.generation
        && (restoring == Generation(0) || views.is_kept(restoring))
        && last_number(Table::Garbage)? < Some(counters.next_garbage);
    for table in [Table::Inode, Table::Dirent, Table::Xattr, Table::Extent] {
        consistent &= last_number(table)? < Some(counters.next_ino.0);
    }
    consistent
        .then_some(())
        .ok_or(MetaError::Corrupt("counters"))
}

impl From<MetaError> for Errno {
    fn from(error: MetaError) -> Self {
        tracing::debug!(%error, "answered with an error number");
        error.errno()
    }
}
