//! The directory store: a volume in a directory of any POSIX filesystem.
//!
//! Invariants:
//! - Every path is resolved component by component from the descriptor opened at the start, and no
//!   component may be a symbolic link: somebody who can write to the directory cannot make this
//!   process access anything outside.
//! - Only plain files are opened as files. A pipe, socket or device in place of one is an error
//!   ([`io::ErrorKind::InvalidData`]) that names its type, and never blocks.
//! - Files are created with mode 0600, directories with 0700; descriptors are close-on-exec.
//! - Many files are synced by one `syncfs` only if that is reliable ([`SyncPolicy`]): the type of
//!   the directory's filesystem decides, and nothing in the volume may be on another filesystem.
//!
//! Descriptors of folders are cached, so that opening an object costs one `openat`. A cached folder
//! that is renamed stays the same folder.

use std::any::Any;
use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::{
    Adopted, BallastKind, DirectoryIdentity, EntryInfo, EntryKind, HeldLock, OpenMode, SpaceInfo,
    Store, StoreFile, StoreLock, StorePath, SyncPolicy, adopt, is_component, os_error, sync,
};
use crate::errno::Errno;
use crate::sys::backing;
use crate::sys::files::{self, Access, FileType};
use crate::sys::identity::effective_user;

/// Filesystems that overwrite a block in place. (XFS copies it if another file shares it.)
const IN_PLACE: [&str; 10] = [
    "ext2", "ext3", "ext4", "xfs", "jfs", "tmpfs", "ramfs", "vfat", "exfat", "ntfs3",
];

/// Folders kept open, `objects/` among them.
const CACHED_FOLDERS: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");

/// A volume directory on the backing filesystem.
#[derive(Debug)]
pub struct DirectoryStore {
    root: Arc<OwnedFd>,
    /// The path by which it was opened.
    path: PathBuf,
    folders: Mutex<LruCache<StorePath, Arc<OwnedFd>>>,
    /// `st_dev` of the directory.
    device: u64,
    /// The policy for the directory's own filesystem.
    policy: SyncPolicy,
    /// Something in the volume is on another filesystem.
    spans_filesystems: AtomicBool,
    /// Held during a `syncfs`. Contains the error of a failed one, which the kernel reports only
    /// once.
    failed_syncfs: Mutex<Option<i32>>,
}

impl DirectoryStore {
    /// Opens an existing directory. Symbolic links in `path` itself are followed, since a user
    /// typed it.
    ///
    /// # Errors
    /// When the directory does not exist or cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = files::open_directory(path)?;
        Ok(Self {
            device: files::stat(&root)?.device,
            policy: SyncPolicy::of_directory(&root),
            root: Arc::new(root),
            path: std::path::absolute(path)?,
            folders: Mutex::new(LruCache::new(CACHED_FOLDERS)),
            spans_filesystems: AtomicBool::new(false),
            failed_syncfs: Mutex::new(None),
        })
    }

    /// Records it if a file or folder is on another filesystem: a `syncfs` of the directory does
    /// not cover it.
    fn note_device(&self, stat: &files::Stat) {
        if stat.device != self.device {
            self.spans_filesystems.store(true, Ordering::SeqCst);
        }
    }

    /// Opens the directory, and creates its last component durably with mode 0700 if it is missing.
    ///
    /// # Errors
    /// When the directory cannot be opened or created, or its parent cannot be synced.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Through the directory itself: the parent of a path such as `a/b/` cannot be derived from
        // the text.
        let created = Self::open(path)?;
        files::sync(files::open_directory_at(&*created.root, "..")?)?;
        Ok(created)
    }

    /// Detects filesystems that are mounted on directories of the volume, by opening each
    /// directory.
    fn detect_mounts(&self) {
        let entries = self.list(&StorePath::root()).unwrap_or_default();
        for (name, kind) in entries {
            if kind == EntryKind::Directory {
                let _ = self.folder(&StorePath::new(&name));
            }
        }
    }

    /// The open descriptor of a directory of the store.
    fn folder(&self, path: &StorePath) -> io::Result<Arc<OwnedFd>> {
        if path.is_root() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(folder) = self.folders.lock().get(path) {
            return Ok(Arc::clone(folder));
        }
        let parent = self.folder(&path.parent())?;
        let folder = Arc::new(files::open_directory_at(&*parent, path.name())?);
        self.note_device(&files::stat(&*folder)?);
        self.folders.lock().put(path.clone(), Arc::clone(&folder));
        Ok(folder)
    }

    /// Runs a call relative to the folder that holds `path`. A network filesystem may forget an
    /// open folder (ESTALE); the folder is then looked up again, once.
    fn in_folder<T>(
        &self,
        folder: &StorePath,
        call: impl Fn(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        match call(&*self.folder(folder)?) {
            Err(error) if error.raw_os_error() == Some(Errno::ESTALE.code()) => {
                self.folders.lock().clear();
                call(&*self.folder(folder)?)
            }
            result => result,
        }
    }

    /// Hard-links a file of another directory store.
    fn link_from(&self, source: &Self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        source.in_folder(&from.parent(), |source| {
            self.in_folder(&to.parent(), |target| {
                files::link_at(source, from.name(), target, to.name())
            })
        })
    }

    /// Creates a file that shares the blocks of a file of another directory store.
    pub(super) fn reflink_from(
        &self,
        source: &Self,
        from: &StorePath,
        to: &StorePath,
    ) -> io::Result<()> {
        let old = source.open_plain(from, Access::Read)?;
        let new = self.open_plain(to, Access::CreateNew)?;
        let shared = files::reflink(&old, &new).and_then(|()| match self.sync_policy() {
            SyncPolicy::AtOnce => Ok(()),
            SyncPolicy::EachFile { .. } => files::sync(&new),
        });
        shared.inspect_err(|_| {
            let _ = self.unlink(to);
        })
    }

    /// Refuses anything but a plain file.
    fn check_plain(&self, path: &StorePath) -> io::Result<()> {
        let stat = self.in_folder(&path.parent(), |folder| files::stat_at(folder, path.name()))?;
        refusal(path, stat.file_type).map_or(Ok(()), Err)
    }

    /// Opens a plain file, or returns an error that names the actual type.
    fn open_plain(&self, path: &StorePath, access: Access) -> io::Result<File> {
        if path.is_root() {
            return Err(os_error(Errno::EISDIR));
        }
        self.in_folder(&path.parent(), |folder| {
            let file = files::open_file_at(folder, path.name(), access).map_err(|error| {
                // The error alone (ELOOP for a symbolic link, ENXIO for a socket) does not name the
                // type.
                match files::stat_at(folder, path.name()) {
                    Ok(stat) if access != Access::CreateNew => {
                        refusal(path, stat.file_type).unwrap_or(error)
                    }
                    _ => error,
                }
            })?;
            let stat = files::stat(&file)?;
            self.note_device(&stat);
            match refusal(path, stat.file_type) {
                Some(refused) => Err(refused),
                None => Ok(file),
            }
        })
    }
}

/// True if the backing filesystem cannot share blocks between two files.
fn cannot_reflink(error: &io::Error) -> bool {
    const CANNOT: [Errno; 6] = [
        Errno::EXDEV,
        Errno::ENOTSUP,
        Errno::ENOTTY,
        Errno::ENOSYS,
        Errno::EINVAL,
        Errno::EPERM,
    ];
    CANNOT
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.code()))
}

/// The reason why an entry of this type is not opened as a file.
fn refusal(path: &StorePath, file_type: FileType) -> Option<io::Error> {
    let what = match file_type {
        FileType::Regular => return None,
        FileType::Directory => return Some(os_error(Errno::EISDIR)),
        FileType::SymbolicLink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::Device => "a device",
        FileType::Unknown => "of an unknown type",
    };
    Some(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} is {what}, not a plain file", path.as_str()),
    ))
}

fn kind_of(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::Regular => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        _ => EntryKind::Other,
    }
}

fn entry_info(stat: files::Stat) -> EntryInfo {
    EntryInfo {
        kind: kind_of(stat.file_type),
        len_bytes: stat.len_bytes,
        links: stat.links,
        number: stat.inode,
        allocated_bytes: stat.allocated_bytes,
    }
}

/// Ignores the error of an operation that the backing filesystem does not support, for operations
/// that are only hints.
fn allow_unsupported(result: io::Result<()>) -> io::Result<()> {
    const CANNOT: [i32; 2] = [Errno::ENOTSUP.code(), Errno::ENOSYS.code()];
    match result {
        Err(error) if error.raw_os_error().is_some_and(|e| CANNOT.contains(&e)) => Ok(()),
        result => result,
    }
}

impl Store for DirectoryStore {
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>> {
        let access = match mode {
            OpenMode::Read => Access::Read,
            OpenMode::ReadWrite => Access::ReadWrite,
            OpenMode::CreateNew if path.is_root() => return Err(os_error(Errno::EEXIST)),
            OpenMode::CreateNew => Access::CreateNew,
        };
        Ok(Arc::new(DirectoryFile(self.open_plain(path, access)?)))
    }

    fn rename(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        if self.info(from)?.kind == EntryKind::Directory || to.is_root() {
            return Err(os_error(Errno::EISDIR));
        }
        self.in_folder(&from.parent(), |source| {
            self.in_folder(&to.parent(), |target| {
                files::rename_at(source, from.name(), target, to.name())
            })
        })
    }

    fn link(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        if from.is_root() {
            return Err(os_error(Errno::EPERM));
        }
        if to.is_root() {
            return Err(os_error(Errno::EEXIST));
        }
        self.link_from(self, from, to)
    }

    fn adopt(&self, source: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<Adopted> {
        let (source, from) = adopt::resolve(source, from);
        let Some(directory) = (source as &dyn Any).downcast_ref::<Self>() else {
            return adopt::copy(source, &from, self, to).map(|()| Adopted::Copied);
        };
        // A hard link to a symbolic link, a pipe or a device would be another such entry.
        directory.check_plain(&from)?;
        match self.link_from(directory, &from, to) {
            Err(error) if adopt::cannot_link(&error) => {}
            other => return other.map(|()| Adopted::Linked),
        }
        match self.reflink_from(directory, &from, to) {
            Err(error) if cannot_reflink(&error) => {}
            other => return other.map(|()| Adopted::Reflinked),
        }
        adopt::copy(source, &from, self, to).map(|()| Adopted::Copied)
    }

    fn unlink(&self, path: &StorePath) -> io::Result<()> {
        if path.is_root() {
            return Err(os_error(Errno::EISDIR));
        }
        self.in_folder(&path.parent(), |folder| {
            files::unlink_at(folder, path.name())
        })
    }

    fn create_dir(&self, path: &StorePath) -> io::Result<()> {
        if path.is_root() {
            return Err(os_error(Errno::EEXIST));
        }
        self.in_folder(&path.parent(), |folder| {
            files::make_directory_at(folder, path.name())
        })
    }

    fn remove_dir(&self, path: &StorePath) -> io::Result<()> {
        if path.is_root() {
            return Err(os_error(Errno::EBUSY));
        }
        self.in_folder(&path.parent(), |folder| {
            files::remove_directory_at(folder, path.name())
        })?;
        self.folders.lock().pop(path);
        Ok(())
    }

    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>> {
        self.in_folder(dir, |folder| {
            let mut entries = Vec::new();
            for (name, file_type) in files::read_directory(folder)? {
                let Some(name) = String::from_utf8(name).ok().filter(|n| is_component(n)) else {
                    continue;
                };
                let file_type = match file_type {
                    FileType::Unknown => match files::stat_at(folder, &name) {
                        Ok(stat) => stat.file_type,
                        // Removed since it was read.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        Err(error) => return Err(error),
                    },
                    known => known,
                };
                entries.push((name, kind_of(file_type)));
            }
            Ok(entries)
        })
    }

    fn sync_dir(&self, dir: &StorePath) -> io::Result<()> {
        self.in_folder(dir, |folder| files::sync(folder))
    }

    fn sync_policy(&self) -> SyncPolicy {
        if self.spans_filesystems.load(Ordering::SeqCst) {
            return SyncPolicy::each_file("the volume lies on more than one filesystem");
        }
        self.policy.clone()
    }

    /// The descriptor has been open since before the first write, so a `syncfs` of it reports every
    /// failed write, also of files that were closed since.
    fn sync_all(&self) -> io::Result<()> {
        self.detect_mounts();
        if !self.sync_policy().is_at_once() {
            return sync::sync_tree(self, &StorePath::root());
        }
        // The kernel reports a failure once, but all later callers must get it too.
        let mut failed = self.failed_syncfs.lock();
        if let Some(code) = *failed {
            return Err(io::Error::from_raw_os_error(code));
        }
        files::sync_filesystem(&*self.root).inspect_err(|error| {
            *failed = Some(error.raw_os_error().unwrap_or(Errno::EIO.code()));
        })
    }

    fn info(&self, path: &StorePath) -> io::Result<EntryInfo> {
        if path.is_root() {
            return files::stat(&*self.root).map(entry_info);
        }
        self.in_folder(&path.parent(), |folder| {
            files::stat_at(folder, path.name()).map(entry_info)
        })
    }

    fn ballast_kind(&self) -> BallastKind {
        let known = backing::filesystem_type(&*self.root).ok().flatten();
        match known.is_some_and(|name| IN_PLACE.contains(&name.as_str())) {
            true => BallastKind::Blocks,
            false => BallastKind::Bytes,
        }
    }

    fn space(&self) -> io::Result<SpaceInfo> {
        let space = files::space(&*self.root)?;
        Ok(SpaceInfo {
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            available_bytes: space.available_bytes,
        })
    }

    fn directory_identity(&self) -> io::Result<Option<DirectoryIdentity>> {
        DirectoryIdentity::of(&*self.root, &self.path).map(Some)
    }

    /// `flock(2)`: the lock belongs to the open file description, so that two opens in one process
    /// exclude each other too, and it survives the fork of a process that continues in the
    /// background.
    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        // Opened for writing, since NFS makes an exclusive flock a write lock of the range.
        let file = self.open_plain(path, Access::ReadWrite)?;
        restrict_to_owner(&file);
        file.try_lock()?;
        Ok(self.lock_of(file, true))
    }

    fn lock_shared(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        let file = self.open_plain(path, Access::Read)?;
        file.try_lock_shared()?;
        Ok(self.lock_of(file, false))
    }

    fn lock_dir(&self, dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        let directory = self.open_dir(dir)?;
        restrict_to_owner(&directory);
        directory.try_lock().map_err(lock_dir_error)?;
        Ok(self.lock_of(directory, true))
    }

    fn lock_dir_shared(&self, dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        let directory = self.open_dir(dir)?;
        directory.try_lock_shared().map_err(lock_dir_error)?;
        Ok(self.lock_of(directory, false))
    }
}

fn lock_dir_error(error: TryLockError) -> io::Error {
    match error {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => io::Error::new(io::ErrorKind::Unsupported, error),
    }
}

/// Restricts a file or directory to its owner: every user who may open it may lock it and keep
/// others out. A copy may have a wider mode from the umask of the program that made it. Returns the
/// previous mode if it was changed. If modes cannot be set, the mode stays.
fn restrict_to_owner(file: &File) -> Option<Permissions> {
    let restrict = || {
        let metadata = file.metadata()?;
        let me = effective_user();
        let may_change = me == 0 || me == metadata.uid();
        // A file with several names may be an unrelated file that somebody linked here.
        let is_unshared = metadata.is_dir() || metadata.nlink() == 1;
        if metadata.mode() & 0o077 == 0 || !may_change || !is_unshared {
            return Ok(None);
        }
        let mode = match metadata.is_dir() {
            true => metadata.mode() & 0o7700,
            false => 0o600,
        };
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(Some(metadata.permissions()))
    };
    restrict().unwrap_or_else(|error: io::Error| {
        tracing::debug!(%error, "other users may open the locked file");
        None
    })
}

impl DirectoryStore {
    /// Removes the permissions of group and others from the directory, and returns the previous
    /// mode if it was changed. Nobody else needs access: the contents of a volume belong to its
    /// owner alone.
    pub fn restrict_to_owner(&self) -> Option<Permissions> {
        let root = self.root.try_clone().map(File::from);
        root.ok().and_then(|root| restrict_to_owner(&root))
    }

    /// Restores a mode that [`Self::restrict_to_owner`] has returned.
    ///
    /// # Errors
    /// When the operating system refuses to change the mode.
    pub fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        File::from(self.root.try_clone()?).set_permissions(permissions)
    }

    fn open_dir(&self, dir: &StorePath) -> io::Result<File> {
        let name = if dir.is_root() { "." } else { dir.name() };
        let directory = self.in_folder(&dir.parent(), |folder| {
            files::open_directory_at(folder, name)
        })?;
        Ok(File::from(directory))
    }

    fn lock_of(&self, file: File, exclusive: bool) -> Box<dyn StoreLock> {
        Box::new(DirectoryLock {
            file,
            exclusive,
            root: Arc::clone(&self.root),
        })
    }
}

#[derive(Debug)]
struct DirectoryLock {
    file: File,
    exclusive: bool,
    root: Arc<OwnedFd>,
}

impl StoreLock for DirectoryLock {
    fn held(&self) -> Option<HeldLock<'_>> {
        Some(HeldLock {
            file: self.file.as_fd(),
            directory: self.root.as_fd(),
            exclusive: self.exclusive,
        })
    }
}

#[derive(Debug)]
struct DirectoryFile(File);

impl StoreFile for DirectoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Repeats interrupted and short writes.
        self.0.write_all_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        files::stat(&self.0).map(|stat| stat.len_bytes)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        allow_unsupported(files::punch_hole(&self.0, offset, len_bytes))
    }

    fn reserve(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        allow_unsupported(files::reserve(&self.0, offset, len_bytes))
    }

    fn write_in_place(&self) {
        files::write_in_place(&self.0);
    }

    fn will_need(&self, offset: u64, len_bytes: u64) {
        files::will_need(&self.0, offset, len_bytes);
    }

    fn sync(&self) -> io::Result<()> {
        loop {
            match self.0.sync_data() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn info(&self) -> io::Result<EntryInfo> {
        files::stat(&self.0).map(entry_info)
    }
}
