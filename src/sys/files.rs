//! Files and directories relative to an open directory.
//!
//! Names are single components unless stated otherwise. Nothing here follows a symbolic link in the
//! last component, except [`open_directory`], which takes a path that a user typed. Every
//! descriptor is close-on-exec. Interrupted calls are repeated.
//!
//! Source: POSIX.1-2017 `openat`, `renameat`, `linkat`, `unlinkat`, `mkdirat`, `fstatat`,
//! `fdopendir`; Linux `fallocate(2)`, `FICLONE` of `ioctl_ficlone(2)`, `syncfs(2)`, `statvfs(3)`.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use super::backing;

/// The type of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FileType {
    /// A plain file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    SymbolicLink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block or character device.
    Device,
    /// The filesystem does not report it.
    Unknown,
}

impl FileType {
    fn from_mode(mode: libc::mode_t) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::SymbolicLink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFBLK | libc::S_IFCHR => Self::Device,
            _ => Self::Unknown,
        }
    }

    fn from_entry_type(entry_type: u8) -> Self {
        match entry_type {
            libc::DT_REG => Self::Regular,
            libc::DT_DIR => Self::Directory,
            libc::DT_LNK => Self::SymbolicLink,
            libc::DT_FIFO => Self::Fifo,
            libc::DT_SOCK => Self::Socket,
            libc::DT_BLK | libc::DT_CHR => Self::Device,
            _ => Self::Unknown,
        }
    }
}

/// Attributes as reported by `stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stat {
    /// Its type.
    pub file_type: FileType,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Number of hard links.
    pub links: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// The filesystem that contains it (`st_dev`).
    pub device: u64,
}

/// Space on a filesystem, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Space {
    /// Total size.
    pub total_bytes: u64,
    /// Free space, including space reserved for root.
    pub free_bytes: u64,
    /// Free for unprivileged users.
    pub available_bytes: u64,
}

/// How [`open_file_at`] opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_RDWR`.
    ReadWrite,
    /// `O_RDWR | O_CREAT | O_EXCL`, mode 0600.
    CreateNew,
}

/// Opens a directory by a path that may contain symbolic links.
///
/// # Errors
/// When the path is no directory, or open(2) fails.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    open_raw(libc::AT_FDCWD, &path, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Opens the directory `name` in `dir`. A symbolic link is refused (ENOTDIR or ELOOP).
///
/// # Errors
/// ENOTDIR or ELOOP for anything but a directory, and other failures of openat(2).
pub(crate) fn open_directory_at(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    open_raw(dir.as_fd().as_raw_fd(), &CString::new(name)?, flags)
}

/// Opens the file `name` in `dir`. A symbolic link is refused (ELOOP), a pipe without a reader or
/// writer does not block, and a terminal does not become the controlling one. The caller checks the
/// type of the file.
///
/// # Errors
/// When openat(2) fails, such as with ELOOP for a symbolic link.
pub(crate) fn open_file_at(dir: impl AsFd, name: &str, access: Access) -> io::Result<File> {
    let flags = match access {
        Access::Read => libc::O_RDONLY,
        Access::ReadWrite => libc::O_RDWR,
        Access::CreateNew => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
    };
    let safe = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    open_raw(dir.as_fd().as_raw_fd(), &CString::new(name)?, flags | safe).map(File::from)
}

fn open_raw(dir: libc::c_int, name: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mode: libc::c_uint = 0o600;
    let descriptor = repeat(|| {
        // SAFETY: `name` is a NUL-terminated string that outlives the call; the mode argument is
        // passed as the variadic unsigned int that O_CREAT reads.
        unsafe { libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode) }
    })?;
    // SAFETY: the descriptor was just opened and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Renames an entry, replacing an existing entry of the new name.
///
/// # Errors
/// When renameat(2) fails.
pub(crate) fn rename_at(
    from: impl AsFd,
    name: &str,
    to: impl AsFd,
    new_name: &str,
) -> io::Result<()> {
    let (name, new_name) = (CString::new(name)?, CString::new(new_name)?);
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both names are NUL-terminated strings and both descriptors are open for the call.
    check(unsafe { libc::renameat(from, name.as_ptr(), to, new_name.as_ptr()) }).map(drop)
}

/// Creates a hard link; a symbolic link is not followed.
///
/// # Errors
/// When linkat(2) fails.
pub(crate) fn link_at(
    from: impl AsFd,
    name: &str,
    to: impl AsFd,
    new_name: &str,
) -> io::Result<()> {
    let (name, new_name) = (CString::new(name)?, CString::new(new_name)?);
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both names are NUL-terminated strings and both descriptors are open for the call.
    check(unsafe { libc::linkat(from, name.as_ptr(), to, new_name.as_ptr(), 0) }).map(drop)
}

/// Removes a name that is not a directory's.
///
/// # Errors
/// When unlinkat(2) fails.
pub(crate) fn unlink_at(dir: impl AsFd, name: &str) -> io::Result<()> {
    remove_raw(dir, name, 0)
}

/// Removes an empty directory.
///
/// # Errors
/// When unlinkat(2) fails, such as with ENOTEMPTY.
pub(crate) fn remove_directory_at(dir: impl AsFd, name: &str) -> io::Result<()> {
    remove_raw(dir, name, libc::AT_REMOVEDIR)
}

fn remove_raw(dir: impl AsFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a NUL-terminated string and the descriptor is open for the call.
    check(unsafe { libc::unlinkat(dir.as_fd().as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// Creates a directory with mode 0700.
///
/// # Errors
/// When mkdirat(2) fails.
pub(crate) fn make_directory_at(dir: impl AsFd, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a NUL-terminated string and the descriptor is open for the call.
    check(unsafe { libc::mkdirat(dir.as_fd().as_raw_fd(), name.as_ptr(), 0o700) }).map(drop)
}

/// `lstat` of the entry `name` in `dir`.
///
/// # Errors
/// When fstatat(2) fails, such as with ENOENT.
pub(crate) fn stat_at(dir: impl AsFd, name: &str) -> io::Result<Stat> {
    stat_raw(dir, &CString::new(name)?, libc::AT_SYMLINK_NOFOLLOW)
}

/// `fstat`.
///
/// # Errors
/// When fstat(2) fails.
pub(crate) fn stat(file: impl AsFd) -> io::Result<Stat> {
    stat_raw(file, c"", libc::AT_EMPTY_PATH)
}

fn stat_raw(dir: impl AsFd, name: &CStr, flags: libc::c_int) -> io::Result<Stat> {
    let mut out = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the name is a NUL-terminated string, the descriptor is open for the call, and `out`
    // is writable memory of the size of a `stat`.
    check(unsafe {
        libc::fstatat(
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            out.as_mut_ptr(),
            flags,
        )
    })?;
    // SAFETY: the call succeeded, so it filled the structure.
    let out = unsafe { out.assume_init() };
    Ok(Stat {
        file_type: FileType::from_mode(out.st_mode),
        len_bytes: u64::try_from(out.st_size).unwrap_or(0),
        links: out.st_nlink as _,
        inode: out.st_ino as _,
        allocated_bytes: u64::try_from(out.st_blocks).unwrap_or(0) * 512,
        device: out.st_dev as _,
    })
}

/// Frees a range; the length stays.
///
/// # Errors
/// When fallocate(2) fails; ENOTSUP if the filesystem cannot punch holes.
pub(crate) fn punch_hole(file: impl AsFd, offset: u64, len_bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    allocate_raw(file, mode, offset, len_bytes)
}

/// Disables copy-on-write for an empty file on btrfs. A failure is harmless.
pub(crate) fn write_in_place(file: impl AsFd) {
    if backing::filesystem_type(&file).ok().flatten().as_deref() == Some("btrfs") {
        let flags = rustix::fs::ioctl_getflags(&file);
        let set = flags
            .and_then(|flags| rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::NOCOW));
        if let Err(error) = set {
            tracing::debug!(%error, "copy-on-write could not be disabled for a file");
        }
    }
}

/// Starts reading a range ahead. A failure is harmless.
pub(crate) fn will_need(file: impl AsFd, offset: u64, len_bytes: u64) {
    if let (Ok(offset), Ok(len)) = (
        libc::off64_t::try_from(offset),
        libc::off64_t::try_from(len_bytes),
    ) {
        let file = file.as_fd().as_raw_fd();
        // SAFETY: takes no pointers; the descriptor is open for the call.
        unsafe { libc::posix_fadvise64(file, offset, len, libc::POSIX_FADV_WILLNEED) };
    }
}

/// Preallocates space for a range; the length stays.
///
/// # Errors
/// When fallocate(2) fails: ENOSPC if there is no space, ENOTSUP if the filesystem cannot
/// preallocate.
pub(crate) fn reserve(file: impl AsFd, offset: u64, len_bytes: u64) -> io::Result<()> {
    allocate_raw(file, libc::FALLOC_FL_KEEP_SIZE, offset, len_bytes)
}

fn allocate_raw(file: impl AsFd, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let signed = |number: u64| {
        libc::off64_t::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    let (offset, len) = (signed(offset)?, signed(len)?);
    repeat(|| {
        // SAFETY: takes no pointers; the descriptor is open for the call.
        unsafe { libc::fallocate64(file.as_fd().as_raw_fd(), mode, offset, len) }
    })
    .map(drop)
}

/// Makes `new`, an empty file, share the blocks of `old` until one of the two is written.
///
/// # Errors
/// When the filesystem cannot share blocks between the two files.
pub(crate) fn reflink(old: impl AsFd, new: impl AsFd) -> io::Result<()> {
    repeat(|| {
        // SAFETY: FICLONE takes a descriptor as its argument and no pointer; both are open for the
        // call.
        unsafe {
            libc::ioctl(
                new.as_fd().as_raw_fd(),
                libc::FICLONE as _,
                old.as_fd().as_raw_fd(),
            )
        }
    })
    .map(drop)
}

/// Makes everything written to the filesystem of `file` durable.
///
/// # Errors
/// When syncfs(2) fails, which includes writes that failed since the descriptor was opened.
pub(crate) fn sync_filesystem(file: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointers; the descriptor is open for the call.
    check(unsafe { libc::syncfs(file.as_fd().as_raw_fd()) }).map(drop)
}

/// `fsync`, of a directory too.
///
/// # Errors
/// When fsync(2) fails.
pub(crate) fn sync(file: impl AsFd) -> io::Result<()> {
    repeat(|| {
        // SAFETY: takes no pointers; the descriptor is open for the call.
        unsafe { libc::fsync(file.as_fd().as_raw_fd()) }
    })
    .map(drop)
}

/// Space on the filesystem of `file`.
///
/// # Errors
/// When fstatvfs(3) fails.
pub(crate) fn space(file: impl AsFd) -> io::Result<Space> {
    let mut out = MaybeUninit::<libc::statvfs64>::uninit();
    repeat(|| {
        // SAFETY: the descriptor is open for the call and `out` is writable memory of the size of
        // a `statvfs64`.
        unsafe { libc::fstatvfs64(file.as_fd().as_raw_fd(), out.as_mut_ptr()) }
    })?;
    // SAFETY: the call succeeded, so it filled the structure.
    let out = unsafe { out.assume_init() };
    let fragment_bytes: u64 = out.f_frsize as _;
    Ok(Space {
        total_bytes: out.f_blocks.saturating_mul(fragment_bytes),
        free_bytes: out.f_bfree.saturating_mul(fragment_bytes),
        available_bytes: out.f_bavail.saturating_mul(fragment_bytes),
    })
}

/// Names and types of all entries except `.` and `..`, in no particular order.
///
/// # Errors
/// When the directory cannot be opened or read.
pub(crate) fn read_directory(dir: impl AsFd) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    // A separate description: a duplicate would share its position with every other reader.
    let mut stream = DirectoryStream::open(open_directory_at(dir, ".")?)?;
    let mut entries = Vec::new();
    while let Some((name, file_type)) = stream.next()? {
        if name != b"." && name != b".." {
            entries.push((name, file_type));
        }
    }
    Ok(entries)
}

/// A `DIR` that is closed when dropped.
struct DirectoryStream(ptr::NonNull<libc::DIR>);

impl DirectoryStream {
    fn open(dir: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open; on success the stream owns it.
        let stream = unsafe { libc::fdopendir(dir.as_raw_fd()) };
        let stream = ptr::NonNull::new(stream).ok_or_else(io::Error::last_os_error)?;
        // The stream closes it now.
        let _ = dir.into_raw_fd();
        Ok(Self(stream))
    }

    fn next(&mut self) -> io::Result<Option<(Vec<u8>, FileType)>> {
        // SAFETY: errno is this thread's own. Only errno distinguishes readdir's end from an error.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the stream is open, and `&mut self` keeps other threads out of it.
        let entry = unsafe { libc::readdir64(self.0.as_ptr()) };
        let Some(entry) = ptr::NonNull::new(entry) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(0) | None => Ok(None),
                Some(_) => Err(error),
            };
        };
        // SAFETY: readdir returned an entry that stays valid until the next call on the stream.
        // Its name is NUL-terminated; its memory may be shorter than the declared structure, so
        // fields are reached by pointer and no reference to the whole is made.
        let (name, entry_type) = unsafe {
            let name = CStr::from_ptr((&raw const (*entry.as_ptr()).d_name).cast());
            (name.to_bytes().to_vec(), (*entry.as_ptr()).d_type)
        };
        Ok(Some((name, FileType::from_entry_type(entry_type))))
    }
}

impl Drop for DirectoryStream {
    fn drop(&mut self) {
        // SAFETY: the stream is open and closed only here.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Repeats a call while a signal interrupts it.
fn repeat(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
