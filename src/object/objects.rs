//! Objects as files of the store: creating, opening, linking and unlinking them.
//!
//! Layout: `objects/<folder>/<id>`. The folder is a hexadecimal counter that increases every 4096
//! objects and at every mount; the id is 32 random hexadecimal digits. An object that is created
//! here is named by its crypto id, which is not secret, so that it can be opened when `meta` is
//! lost (`bilayer salvage`). A linked object has a random name.
//!
//! Invariants: an object's file is created once, and its crypto id is drawn with it. Open files are
//! a bounded cache, however many files users have open. A commit may name a new object only after
//! [`Objects::sync_names`]. An object that was written stays open until it is synced: the kernel
//! reports a failed write to the descriptors that are open then, and may not report it to a
//! descriptor that is opened later for the sync. If all open objects wait for their sync, a thread
//! that needs another one syncs some first ([`super::open_objects`]).

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::ObjectError;
use super::open_objects::OpenObjects;
use crate::ids::{CryptoId, FolderNumber, ObjectId};
use crate::layers::KeyRing;
use crate::meta::Meta;
use crate::meta::records::{ObjectName, PartId};
use crate::planted::{Bug, planted};
use crate::sealed::ContentsFile;
use crate::store::{EntryKind, OpenMode, Store, StorePath, too_many_open};

/// How often an operation that must open a file is retried.
const OPEN_ATTEMPTS_MAX: u32 = 100;
/// Delay between two attempts if nothing could be closed here.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// The folder of the newest objects.
#[derive(Debug, Default)]
struct Folder {
    number: FolderNumber,
    /// Objects created in it. A folder is created with its first object.
    used: u32,
}

/// The objects of a volume.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn Store>,
    keys: Arc<KeyRing>,
    open: OpenObjects,
    folder: Mutex<Folder>,
    /// Folders with new names that are not durable yet.
    unsynced: Mutex<BTreeSet<FolderNumber>>,
    /// `objects/` itself has new names that are not durable yet.
    root_unsynced: Mutex<bool>,
    /// Folders with removed names whose removal is not durable yet.
    unlinked: Mutex<BTreeSet<FolderNumber>>,
    /// Held while names are made durable.
    syncing: Mutex<()>,
    /// Held while the removal of names is made durable.
    syncing_unlinked: Mutex<()>,
    /// Folders from this one on were created by this mount.
    first_folder: Mutex<FolderNumber>,
    /// Whether the log has a warning that too many files are open.
    warned_too_many_open: AtomicBool,
}

/// The directory of all objects.
pub(crate) fn root_path() -> StorePath {
    StorePath::new("objects")
}

fn folder_name(folder: FolderNumber) -> String {
    format!("{:08x}", folder.0)
}

pub(crate) fn folder_path(folder: FolderNumber) -> StorePath {
    StorePath::new(&format!("objects/{}", folder_name(folder)))
}

pub(crate) fn object_path(name: ObjectName) -> StorePath {
    StorePath::new(&format!("objects/{:08x}/{}", name.folder.0, name.object))
}

impl Objects {
    /// Maximum number of objects in one folder.
    pub const FOLDER_OBJECTS: u32 = 4096;

    /// The objects of a volume that is only read. `open_max` bounds the files kept open.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyRing>, open_max: usize) -> Self {
        let open = OpenObjects::new(Arc::clone(&store), open_max, None);
        Self::with_open(store, keys, open)
    }

    /// The objects of a volume in use. A failed sync ends all writing to it.
    pub fn in_use(
        meta: &Arc<Meta>,
        store: Arc<dyn Store>,
        keys: Arc<KeyRing>,
        open_max: usize,
    ) -> Self {
        let open = OpenObjects::new(Arc::clone(&store), open_max, Some(Arc::clone(meta)));
        Self::with_open(store, keys, open)
    }

    fn with_open(store: Arc<dyn Store>, keys: Arc<KeyRing>, open: OpenObjects) -> Self {
        Self {
            store,
            keys,
            open,
            folder: Mutex::default(),
            unsynced: Mutex::default(),
            root_unsynced: Mutex::default(),
            unlinked: Mutex::default(),
            syncing: Mutex::default(),
            syncing_unlinked: Mutex::default(),
            first_folder: Mutex::default(),
            warned_too_many_open: AtomicBool::new(false),
        }
    }

    /// Runs an operation that must open a file. If too many files are open, in this process or on
    /// the whole machine, closes some and runs it again: this is not an error of the disk.
    fn retry_when_too_many_open<T>(
        &self,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut tries = 0;
        loop {
            let result = work();
            let is_too_many = result.as_ref().is_err_and(too_many_open);
            if !is_too_many || tries == OPEN_ATTEMPTS_MAX {
                return result;
            }
            if tries == 0 && !self.warned_too_many_open.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "too many files are open: objects are closed, and opened again when they are \
                     needed (ulimit -n, fs.file-max)"
                );
            }
            if !self.open.close_some() {
                self.open.make_space();
                std::thread::sleep(RETRY_DELAY);
            }
            tries += 1;
        }
    }

    /// The store that holds the objects.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The key sets of the volume.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Creates an empty object under the active key set.
    ///
    /// # Errors
    /// The store refuses to create it, or no folder number can be allocated.
    pub fn create(&self, meta: &Meta) -> Result<PartId, ObjectError> {
        meta.check_not_held()?;
        let folder = self.allocate_folder_slot(meta)?;
        let crypto = CryptoId::random()?;
        let name = ObjectName {
            folder,
            object: ObjectId(crypto.0),
        };
        let set = self.keys.active();
        let id = PartId {
            name,
            crypto,
            epoch: set.epoch,
        };
        let path = object_path(name);
        let file = self.retry_when_too_many_open(|| self.store.open(&path, OpenMode::CreateNew))?;
        self.unsynced.lock().insert(folder);
        let contents = Arc::new(ContentsFile::new(file, set, id.crypto));
        self.open.put(name, contents);
        Ok(id)
    }

    /// Gives an object a second name. The name is durable after the next `sync_names`.
    ///
    /// # Errors
    /// The store refuses the link, or no folder number can be allocated.
    pub fn link(&self, meta: &Meta, from: ObjectName) -> Result<ObjectName, ObjectError> {
        meta.check_not_held()?;
        let to = ObjectName {
            folder: self.allocate_folder_slot(meta)?,
            object: ObjectId::random()?,
        };
        let (old, new) = (object_path(from), object_path(to));
        self.retry_when_too_many_open(|| self.store.link(&old, &new))?;
        self.unsynced.lock().insert(to.folder);
        Ok(to)
    }

    /// Returns an object from the open ones, or opens it.
    ///
    /// # Errors
    /// [`ObjectError::Missing`] if it does not exist, [`ObjectError::NoKeySet`] if its key set is
    /// unknown, or an error of the store.
    pub fn open(&self, id: PartId) -> Result<Arc<ContentsFile>, ObjectError> {
        if let Some(open) = self.open.get(id.name) {
            return Ok(open);
        }
        let set = self.keys.get(id.epoch).ok_or(ObjectError::NoKeySet {
            object: id.name,
            epoch: id.epoch,
        })?;
        let path = object_path(id.name);
        let file =
            match self.retry_when_too_many_open(|| self.store.open(&path, OpenMode::ReadWrite)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(ObjectError::Missing { object: id.name });
                }
                other => other?,
            };
        let contents = Arc::new(ContentsFile::new(file, set, id.crypto));
        Ok(self.open.put(id.name, contents))
    }

    /// Makes everything written so far to these objects durable. An object that is not open was
    /// synced before it was closed, or was removed.
    ///
    /// # Errors
    /// Not all of it is durable. The caller makes sure that nothing builds on it.
    pub fn sync(&self, names: impl Iterator<Item = ObjectName>) -> Result<(), ObjectError> {
        self.open.sync(names)
    }

    /// Returns true once when so many objects wait for their sync that a sync should begin before
    /// anyone has to wait for it.
    pub fn is_sync_due(&self) -> bool {
        self.open.is_sync_due()
    }

    /// Makes the names of all objects created or linked so far durable.
    ///
    /// # Errors
    /// A folder cannot be synced. All folders of this call are synced again by the next one.
    pub(super) fn sync_names(&self) -> Result<(), ObjectError> {
        // A concurrent caller must not return before this sync is complete.
        let _one = self.syncing.lock();
        let folders = std::mem::take(&mut *self.unsynced.lock());
        let root = std::mem::take(&mut *self.root_unsynced.lock());
        let result = (|| {
            for folder in &folders {
                if planted(Bug::FolderNotSynced) {
                    break;
                }
                let path = folder_path(*folder);
                self.retry_when_too_many_open(|| self.store.sync_dir(&path))?;
            }
            if root {
                self.retry_when_too_many_open(|| self.store.sync_dir(&root_path()))
            } else {
                Ok(())
            }
        })();
        if let Err(error) = result {
            self.unsynced.lock().extend(folders);
            *self.root_unsynced.lock() |= root;
            return Err(error.into());
        }
        Ok(())
    }

    /// Removes an object's name. A missing name is not an error: after a power cut the request to
    /// unlink it can still be there.
    ///
    /// # Errors
    /// The store refuses to unlink it.
    pub fn unlink(&self, name: ObjectName) -> Result<(), ObjectError> {
        self.open.close(name);
        // Inserted before, for a concurrent sync, and again after, in case that sync missed the
        // unlink.
        self.unlinked.lock().insert(name.folder);
        let path = object_path(name);
        let unlinked = self.retry_when_too_many_open(|| self.store.unlink(&path));
        self.unlinked.lock().insert(name.folder);
        match unlinked {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    /// Makes the removal of names durable, so that no removed object reappears in a volume that is
    /// marked clean and is not searched for such objects.
    ///
    /// # Errors
    /// A folder could not be synced. It and those after it are synced by the next call.
    pub fn sync_unlinked(&self) -> Result<(), ObjectError> {
        // A concurrent caller must not return before this sync is complete.
        let _one = self.syncing_unlinked.lock();
        let mut folders = std::mem::take(&mut *self.unlinked.lock());
        if planted(Bug::UnlinkedNotSynced) {
            return Ok(());
        }
        while let Some(folder) = folders.first().copied() {
            let path = folder_path(folder);
            match self.retry_when_too_many_open(|| self.store.sync_dir(&path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    self.unlinked.lock().extend(folders);
                    return Err(error.into());
                }
                _ => folders.remove(&folder),
            };
        }
        Ok(())
    }

    /// Lists all objects.
    ///
    /// # Errors
    /// A directory cannot be listed.
    pub fn names(&self) -> Result<Vec<ObjectName>, ObjectError> {
        let mut names = Vec::new();
        for folder in self.folders()? {
            let objects = self.in_folder(folder)?.into_iter();
            names.extend(objects.map(|object| ObjectName { folder, object }));
        }
        Ok(names)
    }

    /// Lists the objects in a folder.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn in_folder(&self, folder: FolderNumber) -> Result<Vec<ObjectId>, ObjectError> {
        let entries = self
            .retry_when_too_many_open(|| self.store.list(&folder_path(folder)))?
            .into_iter();
        let files = entries.filter(|(_, kind)| *kind != EntryKind::Directory);
        Ok(files
            .filter_map(|(name, _)| ObjectId::from_hex(&name))
            .collect())
    }

    /// Makes new objects be created in folders after this one.
    pub fn begin_after(&self, newest: FolderNumber) {
        *self.first_folder.lock() = FolderNumber(newest.0.saturating_add(1));
        *self.folder.lock() = Folder {
            number: newest,
            used: 0,
        };
    }

    /// The first folder of this mount. Objects in folders before it are from earlier mounts.
    pub fn first_folder(&self) -> FolderNumber {
        *self.first_folder.lock()
    }

    /// Lists the folders of objects. Other programs may have created other names in `objects/`:
    /// names in another form, and numbers that this program would never reach, are skipped.
    ///
    /// # Errors
    /// `objects/` cannot be listed.
    pub fn folders(&self) -> Result<Vec<FolderNumber>, ObjectError> {
        let entries = self.store.list(&root_path()).map_err(|error| {
            let named = format!("{}: {error}", root_path().as_str());
            std::io::Error::new(error.kind(), named)
        })?;
        let number = |name: &str| u64::from_str_radix(name, 16).ok().map(FolderNumber);
        Ok(entries
            .iter()
            .filter(|(_, kind)| *kind == EntryKind::Directory)
            .filter_map(|(name, _)| number(name).filter(|folder| folder_name(*folder) == *name))
            .filter(|folder| *folder < FolderNumber::END)
            .collect())
    }

    /// Removes empty folders, except the folder of the newest objects.
    ///
    /// # Errors
    /// `objects/` cannot be listed.
    pub fn remove_empty_folders(&self) -> Result<(), ObjectError> {
        let in_use = self.folder.lock().number;
        for folder in self
            .folders()?
            .into_iter()
            .filter(|folder| *folder != in_use)
        {
            // The store refuses to remove a folder that is not empty.
            let _ = self.store.remove_dir(&folder_path(folder));
        }
        Ok(())
    }

    /// The folder for one more object; creates a new one when it is full.
    fn allocate_folder_slot(&self, meta: &Meta) -> Result<FolderNumber, ObjectError> {
        let mut folder = self.folder.lock();
        if folder.used == 0 || folder.used >= Self::FOLDER_OBJECTS {
            let number = meta.allocate_folder(FolderNumber(folder.number.0 + 1))?;
            let path = folder_path(number);
            match self.retry_when_too_many_open(|| self.store.create_dir(&path)) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            *self.root_unsynced.lock() = true;
            *folder = Folder { number, used: 0 };
        }
        folder.used += 1;
        Ok(folder.number)
    }
}
