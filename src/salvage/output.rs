//! The output directory.
//!
//! It belongs to the user who runs this program, is accessible to them alone from the start, and is
//! outside of the volume. Every file is created relative to an open directory, under a name that
//! did not exist before. A name has a single component, and a symbolic link there is not followed.
//! A created file is opened and checked, and from then on accessed only by its descriptor. So
//! neither hostile records nor other processes that exchange names cause a write outside.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec as FileTime, Timestamps, Uid,
    XattrFlags,
};

use crate::errno::Errno;
use crate::meta::records::{FileKind, InodeRecord, Timespec};
use crate::store::{SyncPolicy, os_error};
use crate::sys::files::{sync, sync_filesystem};
use crate::sys::identity::effective_user;

/// The longest name that any filesystem allows.
const NAME_BYTES_MAX: usize = 255;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Attributes of a file.
#[derive(Debug)]
pub struct Attributes<'a> {
    /// Its inode.
    pub inode: &'a InodeRecord,
    /// Names and values of its extended attributes.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// An attribute that could not be set.
#[derive(Debug)]
pub struct Unset {
    /// The attribute, in words.
    pub attribute: String,
    /// Why it could not be set.
    pub error: io::Error,
}

impl Unset {
    fn new(attribute: &str, error: rustix::io::Errno) -> Self {
        Self {
            attribute: attribute.to_owned(),
            error: error.into(),
        }
    }
}

/// Why an output directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum OutputRefused {
    /// The operating system refuses; `DirectoryNotEmpty` if the directory is not empty.
    #[error("{0}")]
    System(#[from] io::Error),
    /// The directory belongs to another user, who could change what is written there.
    #[error("it belongs to user {owner}, not to user {user}")]
    Foreign {
        /// Its owner.
        owner: u32,
        /// The user who runs this program.
        user: u32,
    },
    /// Others may write to the directory, and may have done so.
    #[error("others may write to it (mode {0:04o})")]
    Shared(u32),
    /// The directory is within the damaged volume, which is never written to.
    #[error("it is within the volume")]
    WithinVolume,
}

/// The output directory, mode 0700.
#[derive(Debug)]
pub struct OutputDir {
    root: OwnedFd,
    path: PathBuf,
    /// Whether owners can be set and devices created.
    pub privileged: bool,
    /// How output becomes durable.
    syncs: SyncPolicy,
}

/// True for an error after which nothing more can be written.
pub fn is_fatal(error: &io::Error) -> bool {
    let fatal = [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EROFS];
    fatal
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.code()))
}

impl OutputDir {
    /// Creates the directory, or accepts an existing one that is empty, belongs to this user and is
    /// not writable by others. `volume` is a directory that it must not be within, not even by way
    /// of a bind mount.
    ///
    /// # Errors
    /// The directory cannot be created, or is not acceptable.
    pub fn prepare(path: &Path, volume: Option<&Path>) -> Result<Self, OutputRefused> {
        let forbidden = volume.map(directories_of).unwrap_or_default();
        let (parent, name) = open_parent(path, &forbidden)?;
        match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
            Err(error) if error != rustix::io::Errno::EXIST => return Err(error.into()),
            _ => {}
        }
        let root = rustix::fs::openat(&parent, &name, DIRECTORY, Mode::empty())?;
        let stat = rustix::fs::fstat(&root)?;
        refuse_within(&stat, &forbidden)?;
        let user = effective_user();
        if stat.st_uid != user {
            let owner = stat.st_uid;
            return Err(OutputRefused::Foreign { owner, user });
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(OutputRefused::Shared(stat.st_mode & 0o7777));
        }
        // This is done before its contents are checked: from here on no other user can create files
        // in it, even with an open descriptor.
        rustix::fs::fchmod(&root, Mode::RWXU)?;
        if !names_in(&root)?.is_empty() {
            return Err(os_error(Errno::ENOTEMPTY).into());
        }
        let syncs = SyncPolicy::of_directory(&root);
        Ok(Self {
            root,
            path: path.to_path_buf(),
            privileged: user == 0,
            syncs,
        })
    }

    /// Called for a complete file or directory that is about to be closed. It is durable on return
    /// if it has to be synced individually.
    ///
    /// # Errors
    /// It cannot be synced.
    pub fn complete(&self, file: impl AsFd) -> io::Result<()> {
        match self.syncs {
            SyncPolicy::AtOnce => Ok(()),
            SyncPolicy::EachFile { .. } => sync(file),
        }
    }

    /// Makes everything durable, after all but the outermost directories have been [`complete`].
    ///
    /// [`complete`]: Self::complete
    ///
    /// # Errors
    /// Something cannot be synced.
    pub fn sync_all(&self) -> io::Result<()> {
        if self.syncs.is_at_once() {
            return sync_filesystem(&self.root);
        }
        for name in names_in(&self.root)? {
            match open_directory(self.root(), &name) {
                Ok(directory) => sync(directory)?,
                // A file was synced already.
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
                Err(error) => return Err(error),
            }
        }
        sync(&self.root)?;
        sync(parent(self.root())?)
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory below the output directory, and creates the missing components.
    ///
    /// # Errors
    /// A component cannot be created or opened.
    pub fn directory(&self, path: &[&[u8]]) -> io::Result<OwnedFd> {
        let mut at = open_directory(self.root(), b".")?;
        for name in path {
            at = match create_directory(at.as_fd(), name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    open_directory(at.as_fd(), name)?
                }
                created => created?,
            };
        }
        Ok(at)
    }
}

impl From<rustix::io::Errno> for OutputRefused {
    fn from(error: rustix::io::Errno) -> Self {
        Self::System(error.into())
    }
}

/// Identifies a directory independently of its path.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// A volume's directory and its subdirectories, each of which could be bind-mounted elsewhere.
/// Unreadable ones are left out, since the volume is damaged.
fn directories_of(volume: &Path) -> Vec<Identity> {
    let mut directories = Vec::new();
    let mut ahead = vec![(volume.to_path_buf(), 0)];
    while let Some((path, depth)) = ahead.pop() {
        // The volume may be given as a descriptor's entry in /proc, which is a link.
        let metadata = match depth {
            0 => std::fs::metadata(&path),
            _ => std::fs::symlink_metadata(&path),
        };
        let Ok(metadata) = metadata else {
            continue;
        };
        if !metadata.is_dir() {
            continue;
        }
        directories.push(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
        });
        // objects/<folder> is the deepest.
        if depth < 2 {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            ahead.extend(entries.map(|entry| (entry.path(), depth + 1)));
        }
    }
    directories
}

fn refuse_within(directory: &Stat, forbidden: &[Identity]) -> Result<(), OutputRefused> {
    let identity = Identity {
        device: directory.st_dev,
        inode: directory.st_ino,
    };
    if forbidden.contains(&identity) {
        return Err(OutputRefused::WithinVolume);
    }
    Ok(())
}

/// The parent directory of `path` and the name in it. A symbolic link that replaced a component
/// after the path was resolved is not followed.
fn open_parent(path: &Path, forbidden: &[Identity]) -> Result<(OwnedFd, PathBuf), OutputRefused> {
    let absolute = std::path::absolute(path)?;
    let invalid = || OutputRefused::System(io::ErrorKind::InvalidInput.into());
    let name = PathBuf::from(absolute.file_name().ok_or_else(invalid)?);
    let parent = std::fs::canonicalize(absolute.parent().ok_or_else(invalid)?)?;
    let flags = DIRECTORY.union(OFlags::PATH);
    let mut at = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    for component in parent.components() {
        if let Component::Normal(name) = component {
            at = rustix::fs::openat(&at, name, flags, Mode::empty())?;
            refuse_within(&rustix::fs::fstat(&at)?, forbidden)?;
        }
    }
    Ok((at, name))
}

/// True for a valid file name.
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_BYTES_MAX
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// The name as an argument of a system call, if it is valid.
fn checked(name: &[u8]) -> io::Result<&OsStr> {
    if is_name(name) {
        Ok(OsStr::from_bytes(name))
    } else {
        Err(os_error(Errno::EINVAL))
    }
}

fn names_in(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn open_directory(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let name = OsStr::from_bytes(name);
    Ok(rustix::fs::openat(at, name, DIRECTORY, Mode::empty())?)
}

/// Creates a directory, mode 0700, and opens it.
///
/// # Errors
/// The name is not valid or exists, or something else replaced the directory.
pub fn create_directory(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let name = checked(name)?;
    rustix::fs::mkdirat(at, name, Mode::RWXU)?;
    let created = open_directory(at, name.as_bytes())?;
    if rustix::fs::fstat(&created)?.st_uid != effective_user() {
        return Err(replaced_error());
    }
    Ok(created)
}

fn replaced_error() -> io::Error {
    io::Error::other("another file has replaced the one that was created")
}

/// Opens the parent of a directory. Directories that this program created have not been moved.
///
/// # Errors
/// The parent cannot be opened.
pub fn parent(of: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_directory(of, b"..")
}

/// Creates a plain file, mode 0600, and opens it for writing.
///
/// # Errors
/// The name is not valid or exists, or the file cannot be created.
pub fn create_file(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::fs::openat(at, checked(name)?, flags, mode)?.into())
}

/// Creates something other than a plain file or a directory. It is not opened, only referenced
/// (`O_PATH`).
///
/// # Errors
/// The name is not valid or exists, it cannot be created, or something else replaced it.
pub fn create_special(at: BorrowedFd<'_>, name: &[u8], inode: &InodeRecord) -> io::Result<OwnedFd> {
    let name = checked(name)?;
    let kind = match inode.kind {
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular | FileKind::Directory => return Err(os_error(Errno::EINVAL)),
    };
    let device = device(inode.rdev);
    if kind == FileType::Symlink {
        rustix::fs::symlinkat(OsStr::from_bytes(&inode.target), at, name)?;
    } else {
        rustix::fs::mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, device)?;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let created = rustix::fs::openat(at, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&created)?;
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    if FileType::from_raw_mode(stat.st_mode) != kind
        || stat.st_uid != effective_user()
        || stat.st_nlink != 1
        || (is_device && stat.st_rdev != device)
    {
        return Err(replaced_error());
    }
    Ok(created)
}

/// Decodes a device number of a record (minor bits 0 to 7 at 0, major at 8, the other minor bits at
/// 20).
fn device(rdev: u32) -> u64 {
    let major = (rdev >> 8) & 0xFFF;
    let minor = (rdev & 0xFF) | ((rdev >> 12) & 0xF_FF00);
    rustix::fs::makedev(major, minor)
}

/// Gives a file a further name.
///
/// # Errors
/// A name is not valid, or the link cannot be made.
pub fn link(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    new_name: &[u8],
) -> io::Result<()> {
    let (name, new_name) = (checked(name)?, checked(new_name)?);
    Ok(rustix::fs::linkat(
        from,
        name,
        to,
        new_name,
        AtFlags::empty(),
    )?)
}

/// Removes a name of anything but a directory.
///
/// # Errors
/// The name is not valid, or it cannot be removed.
pub fn unlink(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(at, checked(name)?, AtFlags::empty())?)
}

/// Removes an empty directory.
///
/// # Errors
/// The name is not valid, or the directory cannot be removed.
pub fn remove_directory(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(
        at,
        checked(name)?,
        AtFlags::REMOVEDIR,
    )?)
}

fn mode_of(inode: &InodeRecord) -> Mode {
    Mode::from_raw_mode(u32::from(inode.perm & 0o7777))
}

fn times_of(inode: &InodeRecord) -> Timestamps {
    let time = |time: Timespec| FileTime {
        tv_sec: time.secs,
        tv_nsec: time.nanos.into(),
    };
    Timestamps {
        last_access: time(inode.atime),
        last_modification: time(inode.mtime),
    }
}

fn owner_of(inode: &InodeRecord) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(inode.uid)),
        Some(Gid::from_raw(inode.gid)),
    )
}

/// True for an access control list. These are set after the mode, which would change them.
fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// Sets owner, attributes, mode and times of an open file or directory, in this order, since
/// setting one may change those after it. `set_owner`: whether to set the owner. Returns the
/// attributes that could not be set.
pub fn finish_open(fd: BorrowedFd<'_>, attributes: &Attributes<'_>, set_owner: bool) -> Vec<Unset> {
    let inode = attributes.inode;
    let mut unset = Vec::new();
    let mut note = |what: &str, result: rustix::io::Result<()>| {
        if let Err(error) = result {
            unset.push(Unset::new(what, error));
        }
    };
    if set_owner {
        let (user, group) = owner_of(inode);
        note("owner", rustix::fs::fchown(fd, user, group));
    }
    let set = |acls: bool, note: &mut dyn FnMut(&str, rustix::io::Result<()>)| {
        let xattrs = attributes.xattrs.iter();
        for (name, value) in xattrs.filter(|(name, _)| is_acl(name) == acls) {
            let result =
                rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty());
            note(&attribute(name), result);
        }
    };
    set(false, &mut note);
    note("mode", rustix::fs::fchmod(fd, mode_of(inode)));
    set(true, &mut note);
    note("times", rustix::fs::futimens(fd, &times_of(inode)));
    unset
}

/// Sets owner, attributes, mode and times of a file that [`create_special`] created. `set_owner`:
/// whether to set the owner. Returns the attributes that could not be set.
pub fn finish_special(
    created: BorrowedFd<'_>,
    attributes: &Attributes<'_>,
    set_owner: bool,
) -> Vec<Unset> {
    let inode = attributes.inode;
    let mut unset = Vec::new();
    let mut note = |what: &str, result: rustix::io::Result<()>| {
        if let Err(error) = result {
            unset.push(Unset::new(what, error));
        }
    };
    if set_owner {
        let (user, group) = owner_of(inode);
        let flags = AtFlags::EMPTY_PATH;
        note(
            "owner",
            rustix::fs::chownat(created, "", user, group, flags),
        );
    }
    // These system calls do not accept an `O_PATH` descriptor. Its entry in /proc leads to the
    // inode itself, even if that is a symbolic link.
    let path = Path::new("/proc/self/fd").join(created.as_raw_fd().to_string());
    for (name, value) in attributes.xattrs {
        let name_of = OsStr::from_bytes(name);
        let result = rustix::fs::setxattr(&path, name_of, value, XattrFlags::empty());
        note(&attribute(name), result);
    }
    let flags = AtFlags::empty();
    if inode.kind != FileKind::Symlink {
        let mode = mode_of(inode);
        note("mode", rustix::fs::chmodat(CWD, &path, mode, flags));
    }
    let times = times_of(inode);
    note("times", rustix::fs::utimensat(CWD, &path, &times, flags));
    unset
}

fn attribute(name: &[u8]) -> String {
    format!("extended attribute {}", String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = OutputDir::prepare(&dir.path().join("out"), None).unwrap();
        for name in [
            &b".."[..],
            b".",
            b"",
            b"a/b",
            b"/etc",
            b"a\0b",
            &[b'x'; 256],
        ] {
            assert!(create_file(out.root(), name).is_err());
            assert!(create_directory(out.root(), name).is_err());
            assert!(unlink(out.root(), name).is_err());
        }
        create_file(out.root(), &[0xFF, b'\n']).unwrap();
        // An existing file is neither opened nor followed.
        std::os::unix::fs::symlink("/etc", dir.path().join("out/link")).unwrap();
        assert!(create_file(out.root(), b"link").is_err());
        assert!(create_directory(out.root(), b"link").is_err());
        assert!(out.directory(&[b"link"]).is_err());
        assert!(OutputDir::prepare(&dir.path().join("out"), None).is_err());
    }

    #[test]
    fn device_numbers() {
        // As glibc's makedev(3) has it: 8:1 and 259:0x12345.
        assert_eq!(device(0x801), 0x801);
        assert_eq!(
            device((259 << 8) | 0x45 | (0x123 << 20)),
            rustix::fs::makedev(259, 0x12345)
        );
    }
}
