//! The mount table: `/proc/self/mountinfo`, see proc(5).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::location::Location;

/// Filesystem type of this filesystem's mounts. Their source is the path that the volume's
/// directory had when it was mounted.
pub(crate) const FILESYSTEM_TYPE: &str = "fuse.bilayer";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountInfo {
    /// Id of the mount, unique among existing mounts.
    pub(crate) id: u64,
    /// Device number, as `major:minor`.
    pub(crate) device: String,
    /// The directory of the filesystem that is mounted: `/`, except for bind mounts.
    pub(crate) root: PathBuf,
    /// The mount point.
    pub(crate) dir: PathBuf,
    /// Options of the mount itself (`ro`, `nodev`, ...).
    pub(crate) options: String,
    /// Type of filesystem: `ext4`, `nfs4`, `fuse.glusterfs`.
    pub(crate) filesystem: String,
    /// The source that the mounting process gave, any text.
    pub(crate) source: PathBuf,
    /// Options of the filesystem (`rw`, `user_id=0`, ...).
    pub(crate) super_options: String,
}

impl MountInfo {
    /// All mounts that this process sees, in the order in which they were made.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub(crate) fn all() -> io::Result<Vec<Self>> {
        Ok(parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// The mount with that id, wherever it was moved to.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub(crate) fn of_id(id: u64) -> io::Result<Option<Self>> {
        Ok(Self::all()?.into_iter().find(|mount| mount.id == id))
    }

    /// The mount through which a file or directory was opened. For a bind mount, a btrfs subvolume
    /// or a directory below a mount point this is the actual mount. `None` if it is not visible to
    /// this process.
    ///
    /// A thread may have its own descriptors ([`super::deadline`]), which `/proc/thread-self`
    /// shows.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub(crate) fn of_file(file: impl AsFd) -> io::Result<Option<Self>> {
        let descriptor = file.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{descriptor}"))?;
        match mount_id(&info) {
            Some(id) => Self::of_id(id),
            None => Ok(None),
        }
    }

    /// The mount whose root is that location; `None` for a location within a mount.
    ///
    /// # Errors
    /// The location or the mount table cannot be read.
    pub(crate) fn beginning_at(location: &Location) -> io::Result<Option<Self>> {
        let info = location.info()?;
        if info.is_mount_root {
            Self::of_id(info.mount_id)
        } else {
            Ok(None)
        }
    }

    /// Identifies the mounted filesystem, as the kernel knows it now. `None` if it is gone, or if
    /// sysfs does not show it. It outlives this mount while it is also mounted at another place or
    /// in another mount namespace, or while a detached mount is in use.
    pub(crate) fn backing_device(&self) -> Option<u64> {
        let entry = Path::new("/sys/class/bdi").join(&self.device);
        // A device number is reused; the inode number of its sysfs directory is not.
        Some(fs::metadata(entry).ok()?.ino())
    }

    /// True if the mount or the filesystem has this option.
    pub(crate) fn has_option(&self, name: &str) -> bool {
        self.options
            .split(',')
            .chain(self.super_options.split(','))
            .any(|option| option == name)
    }
}

/// The mount that `/proc/PID/fdinfo/FD` names.
fn mount_id(info: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    value.trim().parse().ok()
}

fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `id parent major:minor root dir options [optional fields ...] - type source super-options`
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let id = text(fields.next()?).parse().ok()?;
    let _parent = fields.next()?;
    let device = text(fields.next()?);
    let root = PathBuf::from(unescape(fields.next()?));
    let dir = PathBuf::from(unescape(fields.next()?));
    let options = text(fields.next()?);
    fields.by_ref().find(|field| *field == b"-")?;
    let filesystem = unescape(fields.next()?).to_string_lossy().into_owned();
    let source = PathBuf::from(unescape(fields.next()?));
    let super_options = text(fields.next()?);
    Some(MountInfo {
        id,
        device,
        root,
        dir,
        options,
        filesystem,
        source,
        super_options,
    })
}

/// Blanks, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(plain)
}

/// A device number in the notation of mountinfo.
pub(crate) fn device_name(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

/// Maximum number of processes that [`holders_elsewhere`] examines ...
const PROCESSES_MAX: usize = 50_000;
/// ... and maximum time for it.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(2);

/// Processes in other mount namespaces that have the filesystem of that device mounted: one of each
/// namespace, as far as this user may look.
pub(crate) fn holders_elsewhere(device: &str) -> Vec<u32> {
    let namespace_of = |process: &str| {
        let metadata = fs::metadata(format!("/proc/{process}/ns/mnt"));
        metadata.map(|metadata| metadata.ino()).ok()
    };
    let end = Instant::now() + SEARCH_TIME_MAX;
    let mut examined = vec![namespace_of("self")];
    let mut holders = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return holders;
    };
    for entry in entries.flatten().take(PROCESSES_MAX) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        let namespace = namespace_of(&name);
        if namespace.is_none() || examined.contains(&namespace) {
            continue;
        }
        examined.push(namespace);
        let text = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if parse(&text).iter().any(|mount| mount.device == device) {
            holders.push(pid);
        }
        if Instant::now() > end {
            break;
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_lines() {
        let text = b"24 30 0:22 / /proc rw,relatime shared:13 master:1 - proc proc rw\n\
            41 31 0:38 / /mnt/a\\040b\\134 ro,nosuid,nodev - fuse.bilayer /srv/vol\\040ume \
            rw,user_id=1000,group_id=1000,default_permissions\n\
            411 31 0:39 /@home /mnt/- rw shared:1 - btrfs /dev/sda2 rw\n\
            broken line\n\
            42 31 0:39 / /mnt/x rw -\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].filesystem, "proc");
        let mount = &mounts[1];
        assert_eq!(mount.id, 41);
        assert_eq!(mount.device, "0:38");
        assert_eq!(mount.root, Path::new("/"));
        assert_eq!(mount.dir, Path::new("/mnt/a b\\"));
        assert_eq!(mount.filesystem, "fuse.bilayer");
        assert_eq!(mount.source, Path::new("/srv/vol ume"));
        assert!(mount.has_option("ro") && mount.has_option("rw"));
        assert!(!mount.has_option("noexec"));
        assert_eq!(
            (mounts[2].id, mounts[2].filesystem.as_str()),
            (411, "btrfs")
        );
        assert_eq!(mounts[2].dir, Path::new("/mnt/-"));
    }

    #[test]
    fn unescapes_what_is_escaped_only() {
        for (escaped, plain) in [
            ("a\\040b", "a b"),
            ("\\134040", "\\040"),
            ("\\09", "\\09"),
            ("\\", "\\"),
            ("", ""),
        ] {
            assert_eq!(
                unescape(escaped.as_bytes()),
                OsString::from(plain),
                "{escaped}"
            );
        }
    }

    #[test]
    fn finds_the_root() {
        let at = |path: &str| MountInfo::beginning_at(&Location::open(Path::new(path)).unwrap());
        let root = at("/").unwrap().unwrap();
        assert_eq!(root.dir, Path::new("/"));
        assert_eq!(at("/proc/self").unwrap(), None);
        assert_eq!(device_name(libc::makedev(0, 300)), "0:300");
    }

    #[test]
    fn finds_the_mount_of_a_file() {
        let info = "pos:\t0\nflags:\t0100000\nmnt_id:\t31\nino:\t2\n";
        assert_eq!(mount_id(info), Some(31));
        assert_eq!(mount_id("pos:\t0\n"), None);
        assert_eq!(mount_id("mnt_id:\tx\n"), None);
        let proc = fs::File::open("/proc").unwrap();
        let mount = MountInfo::of_file(&proc).unwrap().unwrap();
        assert_eq!(
            (mount.filesystem.as_str(), mount.dir.as_path()),
            ("proc", Path::new("/proc"))
        );
    }
}
