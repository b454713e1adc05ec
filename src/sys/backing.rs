//! Determines the filesystem of an open file or directory.
//!
//! `statfs(2)` reports one number for all FUSE filesystems, so the type is read where the kernel
//! writes its name: in the line of `/proc/self/mountinfo` (proc(5)) for the mount that the
//! descriptor belongs to.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use super::mountinfo::MountInfo;

/// The type of the filesystem of an open file or directory, as `/proc/mounts` shows it: `ext4`,
/// `nfs4`, `fuse.glusterfs`. `None` if its mount is not visible to this process.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn filesystem_type(file: impl AsFd) -> io::Result<Option<String>> {
    Ok(MountInfo::of_file(file)?.map(|mount| mount.filesystem))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_open_directory() {
        let proc = fs::File::open("/proc").unwrap();
        assert_eq!(filesystem_type(&proc).unwrap().as_deref(), Some("proc"));
        assert!(kernel_release().unwrap().contains('.'));
    }
}
