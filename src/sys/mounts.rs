//! Mounting and unmounting.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Mount flags that every filesystem supports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "mount(8) names them")]
pub struct MountFlags {
    pub read_only: bool,
    pub nodev: bool,
    pub nosuid: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub strictatime: bool,
    pub sync: bool,
    pub dirsync: bool,
}

impl MountFlags {
    fn bits(self) -> libc::c_ulong {
        [
            (self.read_only, libc::MS_RDONLY),
            (self.nodev, libc::MS_NODEV),
            (self.nosuid, libc::MS_NOSUID),
            (self.noexec, libc::MS_NOEXEC),
            (self.noatime, libc::MS_NOATIME),
            (self.strictatime, libc::MS_STRICTATIME),
            (self.sync, libc::MS_SYNCHRONOUS),
            (self.dirsync, libc::MS_DIRSYNC),
        ]
        .iter()
        .filter(|(on, _)| *on)
        .fold(0, |bits, (_, bit)| bits | bit)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Opens the FUSE device.
///
/// # Errors
/// When the device does not exist, or this process may not open it.
pub(crate) fn open_fuse_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// True if this process's real user may write to a path (access(2)).
///
/// # Errors
/// When the path contains a zero byte.
pub(crate) fn may_write(path: &Path) -> io::Result<bool> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    Ok(unsafe { libc::access(path.as_ptr(), libc::W_OK) } == 0)
}

/// Mounts a FUSE filesystem (`mount(2)`); `data` is the kernel's option string without `fd=`. Needs
/// CAP_SYS_ADMIN.
///
/// # Errors
/// `InvalidInput` for a zero byte in an argument, and failures of mount(2).
pub(crate) fn mount_fuse(
    device: &File,
    source: &[u8],
    dir: &Path,
    flags: MountFlags,
    data: &str,
) -> io::Result<()> {
    let source = c_string(source)?;
    let dir = c_string(dir.as_os_str().as_bytes())?;
    let data = c_string(format!("fd={},{data}", device.as_raw_fd()).as_bytes())?;
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            dir.as_ptr(),
            c"fuse".as_ptr(),
            flags.bits(),
            data.as_ptr().cast(),
        )
    })
}

/// Changes the flags of the mount at `dir`, of the filesystem and of the mount alike.
///
/// # Errors
/// `InvalidInput` for a zero byte in the path, and failures of mount(2).
pub(crate) fn remount(dir: &Path, flags: MountFlags) -> io::Result<()> {
    // Without a flag for access times the kernel keeps the current setting.
    let times = match (flags.noatime, flags.strictatime) {
        (false, false) => libc::MS_RELATIME,
        _ => 0,
    };
    let dir = c_string(dir.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated; the others may be null for a remount.
    check(unsafe {
        libc::mount(
            std::ptr::null(),
            dir.as_ptr(),
            std::ptr::null(),
            flags.bits() | times | libc::MS_REMOUNT,
            std::ptr::null(),
        )
    })
}

/// How to unmount a filesystem that may be in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Detach {
    /// Fail with EBUSY while it is in use.
    No,
    /// Detach now, and end when the last user is gone (`MNT_DETACH`).
    Lazy,
    /// Requests that wait for the daemon fail, and data that it did not write is lost
    /// (`MNT_FORCE`); EBUSY while it is in use.
    Abort,
}

/// Unmounts (`umount2(2)`) without following symbolic links.
///
/// # Errors
/// `InvalidInput` for a zero byte in the path, and failures of umount2(2), such as EBUSY.
pub(crate) fn unmount(dir: &Path, how: Detach) -> io::Result<()> {
    let dir = c_string(dir.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW
        | match how {
            Detach::No => 0,
            Detach::Lazy => libc::MNT_DETACH,
            Detach::Abort => libc::MNT_FORCE,
        };
    // SAFETY: the path is NUL-terminated and outlives the call.
    check(unsafe { libc::umount2(dir.as_ptr(), flags) })
}

/// Enters the mount namespace of the file (`/proc/PID/ns/mnt`). Only possible for a process with a
/// single thread.
///
/// # Errors
/// When the file cannot be opened, or setns(2) fails.
pub(crate) fn enter_mount_namespace(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    // SAFETY: a descriptor that is open and a flag.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNS) })
}

/// Lets the program that `command` starts inherit the descriptor, which stays close-on-exec in this
/// process.
pub(crate) fn pass_descriptor(command: &mut Command, descriptor: RawFd) {
    // SAFETY: the closure runs between fork and exec and makes nothing but one system call, which
    // is async-signal-safe.
    unsafe {
        command.pre_exec(move || check(libc::fcntl(descriptor, libc::F_SETFD, 0)));
    }
}
