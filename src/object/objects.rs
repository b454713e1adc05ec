//! Objects as files of the store: making, opening, naming, unlinking.
//!
//! Layout: `objects/<folder>/<id>`, folder a counter in hexadecimal that is new every 4096
//! objects and at every mount, id 32 random hexadecimal digits. An object that is made here is named
//! by its crypto id, which is no secret, so that it can be opened when `meta` is lost
//! (`bilayer salvage`); one that is linked has a name that says nothing.
//!
//! Invariants: an object's file is made once and its crypto id is drawn with it; open files are a
//! bounded cache and never tied to descriptors of users. A new object may be named by a commit
//! only after [`Objects::sync_names`]. An object that was written stays open until it is synced:
//! the kernel reports a failed write to the descriptors that are open then, so an object that is
//! closed and opened again to be synced may never hear of it. When all open ones wait for their
//! sync, whoever needs another one syncs some first ([`super::open_objects`]).

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

/// How often something for which a file must be opened is tried again.
const TRIES: u32 = 100;
/// Between two tries where nothing could be closed here.
const PAUSE: Duration = Duration::from_millis(10);

/// Folder of the newest objects.
#[derive(Debug, Default)]
struct Folder {
    number: FolderNumber,
    /// Objects made in it; a folder is made with its first one.
    used: u32,
}

/// The objects of a volume.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn Store>,
    keys: Arc<KeyRing>,
    open: OpenObjects,
    folder: Mutex<Folder>,
    /// Folders with names that are not durable yet.
    unsynced: Mutex<BTreeSet<FolderNumber>>,
    /// `objects/` itself has names that are not durable yet.
    root_unsynced: Mutex<bool>,
    /// Folders with names that are gone, though not durably.
    unlinked: Mutex<BTreeSet<FolderNumber>>,
    /// Held while names are made durable.
    syncing: Mutex<()>,
    /// Held while the removal of names is.
    syncing_unlinked: Mutex<()>,
    /// Folders from this one on are of this use.
    first_folder: Mutex<FolderNumber>,
    /// The log was told that too many files were open.
    told_of_too_many: AtomicBool,
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
    /// Objects in one folder at most.
    pub const FOLDER_OBJECTS: u32 = 4096;

    /// Objects that are only read. `open_max` bounds the files kept open.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyRing>, open_max: usize) -> Self {
        let open = OpenObjects::new(Arc::clone(&store), open_max, None);
        Self::with_open(store, keys, open)
    }

    /// The objects of a volume in use, whose writing ends when a sync fails.
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
            told_of_too_many: AtomicBool::new(false),
        }
    }

    /// Does something for which a file must be opened. Where too many are open, here or on the whole
    /// machine, others are closed and it is tried again: that is no error of the disk.
    fn with_files<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut tries = 0;
        loop {
            let result = work();
            let is_too_many = result.as_ref().is_err_and(too_many_open);
            if !is_too_many || tries == TRIES {
                return result;
            }
            if tries == 0 && !self.told_of_too_many.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "too many files are open: objects are closed, and opened again when they are \
                     needed (ulimit -n, fs.file-max)"
                );
            }
            if !self.open.close_some() {
                self.open.sync_some();
                std::thread::sleep(PAUSE);
            }
            tries += 1;
        }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The key sets.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Makes an empty object under the active key set.
    pub fn create(&self, meta: &Meta) -> Result<PartId, ObjectError> {
        meta.check_not_held()?;
        let folder = self.next_place(meta)?;
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
        let file = self.with_files(|| self.store.open(&path, OpenMode::CreateNew))?;
        self.unsynced.lock().insert(folder);
        let contents = Arc::new(ContentsFile::new(file, set, id.crypto));
        self.open.put(name, contents);
        Ok(id)
    }

    /// Gives an object a second name.
    pub fn link(&self, meta: &Meta, from: ObjectName) -> Result<ObjectName, ObjectError> {
        meta.check_not_held()?;
        let to = ObjectName {
            folder: self.next_place(meta)?,
            object: ObjectId::random()?,
        };
        let (old, new) = (object_path(from), object_path(to));
        self.with_files(|| self.store.link(&old, &new))?;
        self.unsynced.lock().insert(to.folder);
        Ok(to)
    }

    /// Opens an object, or finds it open.
    pub fn open(&self, id: PartId) -> Result<Arc<ContentsFile>, ObjectError> {
        if let Some(open) = self.open.get(id.name) {
            return Ok(open);
        }
        let set = self.keys.get(id.epoch).ok_or(ObjectError::NoKeySet {
            object: id.name,
            epoch: id.epoch,
        })?;
        let path = object_path(id.name);
        let file = match self.with_files(|| self.store.open(&path, OpenMode::ReadWrite)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ObjectError::Missing { object: id.name });
            }
            other => other?,
        };
        let contents = Arc::new(ContentsFile::new(file, set, id.crypto));
        Ok(self.open.put(id.name, contents))
    }

    /// Makes everything written so far to these objects durable. One that is not open was synced
    /// before it was closed, or removed.
    ///
    /// # Errors
    /// Not all of it is. The caller sees to it that nothing is built on it.
    pub fn sync(&self, names: impl Iterator<Item = ObjectName>) -> Result<(), ObjectError> {
        self.open.sync(names)
    }

    /// True, once, when so many objects wait for their sync that one should begin before somebody
    /// has to wait for it.
    pub fn is_sync_due(&self) -> bool {
        self.open.is_sync_due()
    }

    /// Makes the names of all objects made so far durable.
    pub fn sync_names(&self) -> Result<(), ObjectError> {
        // Who comes while another does it must not go before it is done.
        let _one = self.syncing.lock();
        let folders = std::mem::take(&mut *self.unsynced.lock());
        let root = std::mem::take(&mut *self.root_unsynced.lock());
        let result = (|| {
            for folder in &folders {
                if planted(Bug::FolderNotSynced) {
                    break;
                }
                let path = folder_path(*folder);
                self.with_files(|| self.store.sync_dir(&path))?;
            }
            if root {
                self.with_files(|| self.store.sync_dir(&root_path()))
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

    /// Removes an object's name. A name that is gone already is no error: a power cut can leave
    /// the order to unlink it behind.
    pub fn unlink(&self, name: ObjectName) -> Result<(), ObjectError> {
        self.open.close(name);
        // Before, for one who syncs meanwhile, and after, for what he did not see.
        self.unlinked.lock().insert(name.folder);
        let path = object_path(name);
        let unlinked = self.with_files(|| self.store.unlink(&path));
        self.unlinked.lock().insert(name.folder);
        match unlinked {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    /// Makes the removal of names durable, so that none comes back to a volume that is clean and
    /// is not searched for such names.
    ///
    /// # Errors
    /// Some folder could not be synced: it and those after it are synced by the next call.
    pub fn sync_unlinked(&self) -> Result<(), ObjectError> {
        // Who comes while another does it must not go before it is done.
        let _one = self.syncing_unlinked.lock();
        let mut folders = std::mem::take(&mut *self.unlinked.lock());
        if planted(Bug::UnlinkedNotSynced) {
            return Ok(());
        }
        while let Some(folder) = folders.first().copied() {
            let path = folder_path(folder);
            match self.with_files(|| self.store.sync_dir(&path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    self.unlinked.lock().extend(folders);
                    return Err(error.into());
                }
                _ => folders.remove(&folder),
            };
        }
        Ok(())
    }

    /// Every object there is.
    pub fn names(&self) -> Result<Vec<ObjectName>, ObjectError> {
        let mut names = Vec::new();
        for folder in self.folders()? {
            let objects = self.in_folder(folder)?.into_iter();
            names.extend(objects.map(|object| ObjectName { folder, object }));
        }
        Ok(names)
    }

    /// The objects in a folder.
    pub fn in_folder(&self, folder: FolderNumber) -> Result<Vec<ObjectId>, ObjectError> {
        let entries = self
            .with_files(|| self.store.list(&folder_path(folder)))?
            .into_iter();
        let files = entries.filter(|(_, kind)| *kind != EntryKind::Directory);
        Ok(files
            .filter_map(|(name, _)| ObjectId::from_hex(&name))
            .collect())
    }

    /// Makes new objects in folders after this one.
    pub fn begin_after(&self, newest: FolderNumber) {
        *self.first_folder.lock() = FolderNumber(newest.0.saturating_add(1));
        *self.folder.lock() = Folder {
            number: newest,
            used: 0,
        };
    }

    /// Objects in folders before this one were made by earlier uses.
    pub fn first_folder(&self) -> FolderNumber {
        *self.first_folder.lock()
    }

    /// The folders there are. What is in `objects/` is anybody's to put there: a name that this
    /// program would not have given, or a number that it would never reach, is not one of them.
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

    /// Removes folders that hold nothing, except the one in use.
    pub fn remove_empty_folders(&self) -> Result<(), ObjectError> {
        let in_use = self.folder.lock().number;
        for folder in self
            .folders()?
            .into_iter()
            .filter(|folder| *folder != in_use)
        {
            // A folder that is not empty refuses, which is what tells.
            let _ = self.store.remove_dir(&folder_path(folder));
        }
        Ok(())
    }

    fn next_place(&self, meta: &Meta) -> Result<FolderNumber, ObjectError> {
        let mut folder = self.folder.lock();
        if folder.used == 0 || folder.used >= Self::FOLDER_OBJECTS {
            let number = meta.allocate_folder(FolderNumber(folder.number.0 + 1))?;
            let path = folder_path(number);
            match self.with_files(|| self.store.create_dir(&path)) {
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
