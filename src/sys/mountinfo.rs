//! The mount table: `/proc/self/mountinfo`, see proc(5).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::location::Location;

/// Filesystem type of this filesystem's mounts.
pub const FILESYSTEM_TYPE: &str = "fuse.bilayer";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountInfo {
    /// Id of the mount, unique among existing mounts.
    pub id: u64,
    /// Device number, as `major:minor`.
    pub device: String,
    /// The directory of the filesystem that is mounted: `/`, except for bind mounts.
    pub root: PathBuf,
    /// The mount point.
    pub dir: PathBuf,
    /// Options of the mount itself (`ro`, `nodev`, ...).
    pub options: String,
    /// Type of filesystem.
    pub filesystem: String,
    /// The source that the mounting process gave, any text. For a mount of this filesystem, the
    /// path that the volume's directory had then.
    pub source: PathBuf,
    /// Options of the filesystem (`rw`, `user_id=0`, ...).
    pub super_options: String,
}

impl MountInfo {
    /// All mounts that this process sees, in the order in which they were made.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn all() -> io::Result<Vec<Self>> {
        Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// The mount with that id, wherever it was moved to.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn of_id(id: u64) -> io::Result<Option<Self>> {
        Ok(Self::all()?.into_iter().find(|mount| mount.id == id))
    }

    /// The mount whose root is that location; `None` for a location within a mount.
    ///
    /// # Errors
    /// The location or the mount table cannot be read.
    pub fn beginning_at(location: &Location) -> io::Result<Option<Self>> {
        let info = location.info()?;
        if info.is_mount_root {
            Self::of_id(info.mount_id)
        } else {
            Ok(None)
        }
    }

    /// The mounts of this filesystem type with that device number: one filesystem with its bind
    /// mounts.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn on_device(device: u64) -> io::Result<Vec<Self>> {
        let name = device_name(device);
        let mut mounts = Self::all()?;
        mounts.retain(|mount| mount.is_ours() && mount.device == name);
        Ok(mounts)
    }

    /// True for mounts of this filesystem type.
    pub fn is_ours(&self) -> bool {
        self.filesystem == FILESYSTEM_TYPE
    }

    /// The user who made a FUSE mount. The kernel reports it, and nobody can choose it.
    pub fn owner(&self) -> Option<u32> {
        self.super_options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id="))?
            .parse()
            .ok()
    }

    /// Identifies the mounted filesystem, as the kernel knows it now. `None` if it is gone, or if
    /// sysfs does not show it. It outlives this mount while it is also mounted at another place or
    /// in another mount namespace, or while a detached mount is in use.
    pub fn backing_device(&self) -> Option<u64> {
        let entry = Path::new("/sys/class/bdi").join(&self.device);
        // A device number is reused; the inode number of its sysfs directory is not.
        Some(std::fs::metadata(entry).ok()?.ino())
    }

    /// True if the mount or the filesystem has this option.
    pub fn has_option(&self, name: &str) -> bool {
        self.options
            .split(',')
            .chain(self.super_options.split(','))
            .any(|option| option == name)
    }
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
    let filesystem = text(fields.next()?);
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

/// Blank, tab, newline and backslash are written as a backslash and three octal digits.
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
pub fn device_name(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

/// Maximum number of processes that are searched for mount namespaces, and maximum time.
const PROCESSES_MAX: usize = 50_000;
const SEARCH: Duration = Duration::from_secs(2);

/// Processes in other mount namespaces that have the filesystem of that device mounted: one of each
/// namespace, as far as this user may look.
pub fn holders_elsewhere(device: &str) -> Vec<u32> {
    let namespace = |process: &str| {
        let metadata = std::fs::metadata(format!("/proc/{process}/ns/mnt"));
        metadata.map(|metadata| metadata.ino()).ok()
    };
    let (end, mut seen) = (Instant::now() + SEARCH, vec![namespace("self")]);
    let mut holders = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return holders;
    };
    for entry in entries.flatten().take(PROCESSES_MAX) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        let found = namespace(&name);
        if found.is_none() || seen.contains(&found) {
            continue;
        }
        seen.push(found);
        let text = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if parse(&text).iter().any(|mount| mount.device == device) {
            holders.push(pid);
        }
        if Instant::now() > end {
            break;
        }
    }
    holders
}

/// Mounts that were made by one of these users and whose source leads to a directory for which
/// `is_it` is true. This is only a hint where a volume is mounted. Mounts of other users are
/// skipped: a source is any text, and may lead to a filesystem that does not answer.
///
/// # Errors
/// The mount table cannot be read.
pub fn hinted(users: &[u32], is_it: impl Fn(&Path) -> bool) -> io::Result<Vec<MountInfo>> {
    let mut mounts = MountInfo::all()?;
    mounts.retain(|mount| {
        mount.is_ours()
            && mount.owner().is_some_and(|owner| users.contains(&owner))
            && mount.source.is_absolute()
            && is_it(&mount.source)
    });
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_lines() {
        let text = b"24 30 0:22 / /proc rw,relatime shared:13 master:1 - proc proc rw\n\
            41 31 0:38 / /mnt/a\\040b\\134 ro,nosuid,nodev - fuse.bilayer /srv/vol\\040ume \
            rw,user_id=1000,group_id=1000,default_permissions\n\
            broken line\n\
            42 31 0:39 / /mnt/x rw -\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].filesystem, "proc");
        let ours = &mounts[1];
        assert_eq!(ours.id, 41);
        assert_eq!(ours.device, "0:38");
        assert_eq!(ours.root, Path::new("/"));
        assert_eq!(ours.dir, Path::new("/mnt/a b\\"));
        assert_eq!(ours.source, Path::new("/srv/vol ume"));
        assert!(ours.is_ours());
        assert_eq!(ours.owner(), Some(1000));
        assert!(ours.has_option("ro") && ours.has_option("rw"));
        assert!(!ours.has_option("noexec"));
        assert_eq!(mounts[0].owner(), None);
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
        assert!(!root.is_ours() && root.dir == Path::new("/"));
        assert_eq!(at("/proc/self").unwrap(), None);
        let device = Location::open(Path::new("/")).unwrap();
        let device = device.info().unwrap().device;
        assert!(MountInfo::on_device(device).unwrap().is_empty());
        assert_eq!(device_name(libc::makedev(0, 300)), "0:300");
    }
}
