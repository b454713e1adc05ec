//! Determines the filesystem of an open file or directory.
//!
//! `statfs(2)` reports one number for all FUSE filesystems, so the type is read where the kernel
//! writes its name: the mount that the descriptor belongs to (`mnt_id` in
//! `/proc/thread-self/fdinfo`) and that mount's line in `/proc/self/mountinfo` (proc(5)). For a
//! bind mount, a btrfs subvolume or a directory below a mount point this yields the actual
//! filesystem.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The type of the filesystem of an open file or directory, as `/proc/mounts` shows it: `ext4`,
/// `nfs4`, `fuse.glusterfs`. `None` if its mount is not visible to this process.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn filesystem_type(file: impl AsFd) -> io::Result<Option<String>> {
    let descriptor = file.as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{descriptor}"))?;
    let Some(id) = mount_id(&info) else {
        return Ok(None);
    };
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(type_of_mount(&String::from_utf8_lossy(&mounts), id))
}

/// The running kernel's release (`uname -r`).
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn kernel_release() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}

fn mount_id(info: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    value.trim().parse().ok()
}

/// `id parent major:minor root dir options [optional fields ...] - type source super-options`.
/// Blanks within a field are written as `\040`.
fn type_of_mount(mounts: &str, id: u64) -> Option<String> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let mut fields = lines.find(|fields| {
        let first = fields.clone().next();
        first.and_then(|first| first.parse().ok()) == Some(id)
    })?;
    fields.by_ref().find(|field| *field == "-")?;
    fields.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 30 0:22 / /proc rw,relatime shared:13 master:1 - proc proc rw\n\
        41 31 0:38 / /mnt/a\\040- ro - fuse.glusterfs host:/vol rw,user_id=0\n\
        411 31 0:39 /@home /home rw shared:1 - btrfs /dev/sda2 rw\n\
        42 31 0:39 / /mnt/x rw -\n";

    #[test]
    fn the_type_of_a_mount_is_found_by_its_number() {
        let of = |id| type_of_mount(MOUNTS, id);
        assert_eq!(of(24).as_deref(), Some("proc"));
        assert_eq!(of(41).as_deref(), Some("fuse.glusterfs"));
        assert_eq!(of(411).as_deref(), Some("btrfs"));
        assert_eq!(of(42), None);
        assert_eq!(of(4), None);
    }

    #[test]
    fn a_descriptor_says_which_mount_it_belongs_to() {
        let info = "pos:\t0\nflags:\t0100000\nmnt_id:\t31\nino:\t2\n";
        assert_eq!(mount_id(info), Some(31));
        assert_eq!(mount_id("pos:\t0\n"), None);
        assert_eq!(mount_id("mnt_id:\tx\n"), None);
    }

    #[test]
    fn of_an_open_directory() {
        let proc = fs::File::open("/proc").unwrap();
        assert_eq!(filesystem_type(&proc).unwrap().as_deref(), Some("proc"));
        assert!(kernel_release().unwrap().contains('.'));
    }
}
