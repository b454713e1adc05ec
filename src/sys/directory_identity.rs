//! Identifies the directory of an open descriptor in terms that survive a reboot.
//!
//! The kernel assigns `st_dev` numbers as disks appear, and a path depends on today's mounts. So a
//! directory is identified by its inode number and an identity of its filesystem: `f_fsid` of
//! statvfs(3), which ext4 and btrfs compute from their UUID (btrfs: and the subvolume); or the UUID
//! itself if `f_fsid` is the number of the device (XFS and others, `FS_IOC_GETFSUUID` of Linux
//! 6.9). Network filesystems have neither. For them it is the type and the source of the mount,
//! which identifies the filesystem but says nothing about inode numbers.
//!
//! A thread may have its own descriptors ([`super::deadline`]), which `/proc/thread-self` shows.
//!
//! Sources: statvfs(3), Linux `include/uapi/linux/fs.h`.

use std::fs::{self, File, Metadata};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::mountinfo::MountInfo;

/// Prefix of the identity of a filesystem that is known only by the source of its mount.
const SOURCE: &str = "source:";
/// Length limit of an identity, in bytes.
pub(crate) const FILESYSTEM_BYTES_MAX: usize = 1024;
/// Filesystems whose `f_fsid` is the number of the device.
const NAMED_BY_DEVICE: [&str; 7] = ["xfs", "f2fs", "vfat", "exfat", "ntfs3", "bcachefs", "erofs"];

/// A directory: its location and its identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryIdentity {
    /// Absolute path without symbolic links.
    pub path: PathBuf,
    /// `st_dev`, valid until the next reboot.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Identity of its filesystem; `None` if there is none.
    pub filesystem: Option<String>,
    /// Its path within that filesystem; `None` if unknown.
    pub inside: Option<PathBuf>,
}

impl DirectoryIdentity {
    /// The identity of an open directory; `typed` is the path by which it was opened.
    ///
    /// # Errors
    /// When the directory cannot be examined any more.
    pub fn of(directory: impl AsFd, typed: &Path) -> io::Result<Self> {
        let file = File::from(directory.as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        let path = current_path(&file, &metadata, typed)?;
        let mount = MountInfo::of_file(&file).ok().flatten();
        let filesystem = mount
            .as_ref()
            .and_then(|mount| filesystem_identity(&file, mount));
        let inside = mount.and_then(|mount| path_inside(&mount, &path));
        Ok(Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            filesystem,
            inside,
        })
    }

    /// The identity of the directory at that path.
    ///
    /// # Errors
    /// When there is no directory, or it cannot be examined.
    pub fn at(path: &Path) -> io::Result<Self> {
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path)?;
        Self::of(directory, path)
    }

    /// True if both are the same directory now, however their paths are written.
    pub fn is_same_now(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// True if inode numbers of that filesystem are stable.
pub fn has_stable_inodes(filesystem: &str) -> bool {
    !filesystem.starts_with(SOURCE)
}

/// True if some kernels do not report that identity.
pub fn depends_on_kernel(filesystem: &str) -> bool {
    let kind = filesystem.split(':').next().unwrap_or_default();
    NAMED_BY_DEVICE.contains(&kind)
}

/// The current path of the directory, which may have been renamed since it was opened.
fn current_path(file: &File, metadata: &Metadata, typed: &Path) -> io::Result<PathBuf> {
    let link = fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()));
    let is_it = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (metadata.dev(), metadata.ino()))
    };
    match link {
        Ok(path) if path.is_absolute() && is_it(&path) => Ok(path),
        // The typed path may lead elsewhere by now: a wrong path is worse than none.
        _ => {
            let path = fs::canonicalize(typed)?;
            match is_it(&path) {
                true => Ok(path),
                false => Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "no path leads to the directory: something is mounted over it, or it is gone",
                )),
            }
        }
    }
}

/// The path within the filesystem, for a path of this mount.
fn path_inside(mount: &MountInfo, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(&mount.dir).ok()?;
    // Without a slash at the end.
    Some(match rest.as_os_str().is_empty() {
        true => mount.root.clone(),
        false => mount.root.join(rest),
    })
}

fn filesystem_identity(file: &File, mount: &MountInfo) -> Option<String> {
    let kind = &mount.filesystem;
    let source = mount.source.to_string_lossy();
    if NAMED_BY_DEVICE.contains(&kind.as_str()) {
        // Without a UUID there is only the number of the device, which another disk may get.
        return filesystem_uuid(file).map(|uuid| format!("{kind}:{uuid}"));
    }
    match filesystem_number(file) {
        Ok(number) if number != 0 => Some(format!("{kind}:{number:016x}")),
        // A local device or path may hold another filesystem tomorrow; a server's does not.
        _ if !names_a_server(&source) => None,
        _ => {
            let text = format!("{SOURCE}{kind}:{source}");
            let plain = text.chars().filter(|c| !c.is_control()).collect::<String>();
            (plain.len() <= FILESYSTEM_BYTES_MAX).then_some(plain)
        }
    }
}

/// True for `host:/path` and `//host/share`.
fn names_a_server(source: &str) -> bool {
    let host = source.split(':').next().unwrap_or_default();
    source.starts_with("//") || (source.contains(':') && !host.is_empty() && !host.contains('/'))
}

/// `f_fsid`; 0 if the filesystem has none.
fn filesystem_number(file: &File) -> io::Result<u64> {
    let mut out = MaybeUninit::<libc::statvfs64>::uninit();
    loop {
        // SAFETY: the descriptor is open for the call and `out` is writable memory of the size of
        // a `statvfs64`.
        let done = unsafe { libc::fstatvfs64(file.as_raw_fd(), out.as_mut_ptr()) };
        match io::Error::last_os_error() {
            _ if done == 0 => break,
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
    // SAFETY: the call succeeded, so it filled the structure.
    let number = unsafe { out.assume_init() }.f_fsid;
    #[allow(clippy::unnecessary_cast, reason = "32 bits on some machines")]
    Ok(number as u64)
}

/// The filesystem's UUID as hexadecimal digits, if kernel and filesystem report it.
fn filesystem_uuid(file: &File) -> Option<String> {
    /// `struct fsuuid2`: a length and 16 bytes.
    #[repr(C)]
    struct Uuid {
        len: u8,
        bytes: [u8; 16],
    }
    /// `_IOR(0x15, 0, struct fsuuid2)`.
    const FS_IOC_GETFSUUID: u64 = 0x8011_1500;
    // An ioctl does not work on an `O_PATH` descriptor.
    let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    let opened = File::open(path).ok()?;
    let mut uuid = Uuid {
        len: 0,
        bytes: [0; 16],
    };
    // SAFETY: the ioctl writes at most the 17 bytes that its number says, which `uuid` has.
    let done = unsafe { libc::ioctl(opened.as_raw_fd(), FS_IOC_GETFSUUID as _, &raw mut uuid) };
    let bytes = uuid.bytes.get(..usize::from(uuid.len))?;
    let is_one = done == 0 && bytes.iter().any(|byte| *byte != 0);
    is_one.then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_identified_by_more_than_its_path() {
        let top = tempfile::tempdir().unwrap();
        let (one, two) = (top.path().join("one"), top.path().join("two"));
        fs::create_dir(&one).unwrap();
        let open = File::open(&one).unwrap();
        let before = DirectoryIdentity::of(&open, &one).unwrap();
        assert_eq!(before.path, fs::canonicalize(&one).unwrap());
        assert_eq!(before, DirectoryIdentity::at(&one).unwrap());
        let inside = before.inside.clone().unwrap();
        assert!(
            inside.is_absolute() && inside.ends_with("one"),
            "{inside:?}"
        );
        fs::rename(&one, &two).unwrap();
        // The descriptor refers to the same directory under its new name.
        let after = DirectoryIdentity::of(&open, &one).unwrap();
        assert_eq!(after.path, fs::canonicalize(&two).unwrap());
        assert!(after.is_same_now(&before) && after.filesystem == before.filesystem);
        assert_ne!(after.inside, before.inside);
        fs::create_dir(&one).unwrap();
        assert!(!DirectoryIdentity::at(&one).unwrap().is_same_now(&after));
        assert!(DirectoryIdentity::at(&top.path().join("none")).is_err());
    }

    #[test]
    fn paths_within_a_filesystem() {
        let mount = MountInfo {
            root: "/sub dir".into(),
            dir: "/mnt/a b".into(),
            ..MountInfo::of_file(File::open("/").unwrap())
                .unwrap()
                .unwrap()
        };
        let inside = path_inside(&mount, Path::new("/mnt/a b/vol"));
        assert_eq!(inside, Some("/sub dir/vol".into()));
        let inside = path_inside(&mount, Path::new("/mnt/a b"));
        assert_eq!(inside, Some("/sub dir".into()));
        assert_eq!(path_inside(&mount, Path::new("/elsewhere")), None);
    }

    #[test]
    fn only_real_identities_have_stable_inode_numbers() {
        assert!(has_stable_inodes("ext4:7412d06e42551866"));
        assert!(!has_stable_inodes("source:nfs4:host:/x"));
        for source in ["host:/x", "user@host:/x", "[fe80::1]:/x", "//host/share"] {
            assert!(names_a_server(source), "{source}");
        }
        assert!(depends_on_kernel("xfs:00ff") && !depends_on_kernel("ext4:7412d06e42551866"));
        for source in ["/dev/sdb1", "/srv/volume", "proc", ":x", "/a:b", ""] {
            assert!(!names_a_server(source), "{source}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_has_no_identity() {
        let top = tempfile::tempdir().unwrap();
        let (gone, other) = (top.path().join("gone"), top.path().join("other"));
        fs::create_dir(&gone).unwrap();
        fs::create_dir(&other).unwrap();
        let open = File::open(&gone).unwrap();
        fs::remove_dir(&gone).unwrap();
        assert!(DirectoryIdentity::of(&open, &gone).is_err());
        assert!(DirectoryIdentity::of(&open, &other).is_err());
    }
}
