//! Making, tuning and removing a mount.
//!
//! Root mounts by `mount(2)`, others by `fusermount3`, which is set-uid for that. fuser gets only
//! the open device: it would also unmount a mount that has already been unmounted, and so remove
//! one that replaced it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::MountOptions;
use crate::sys::files::sync_filesystem;
use crate::sys::identity::{effective_user, real_group, real_user};
use crate::sys::location::{Location, LocationInfo};
use crate::sys::mountinfo::{MountInfo, device_name};
use crate::sys::mounts::Detach;
use crate::sys::{descriptors, mounts};

/// Names of the set-uid helper.
const FUSERMOUNT: [&str; 2] = ["fusermount3", "fusermount"];
/// Shown after the dot of `fuse.bilayer`.
const SUBTYPE: &str = "subtype=bilayer";

/// A mount that was made by this process. It is identified by its id, since it may be moved.
#[derive(Clone, Debug)]
pub(super) struct Mounted {
    location: Option<LocationInfo>,
}

/// Mounts on `dir`, an absolute path without symbolic links. The kernel's first request waits in
/// the returned device.
pub(super) fn mount(dir: &Path, options: &MountOptions) -> io::Result<(File, Mounted)> {
    let device = if effective_user() == 0 {
        match mount_directly(dir, options) {
            // Root of a container may not be allowed to mount directly.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                mount_by_fusermount(dir, options)?
            }
            result => result?,
        }
    } else {
        mount_by_fusermount(dir, options)?
    };
    let location = Location::open(dir)
        .and_then(|location| location.info())
        .ok();
    let location = location.filter(|location| location.is_mount_root);
    Ok((device, Mounted { location }))
}

/// Checks that the device can be opened. fusermount3 opens it with this user's rights, too.
pub(super) fn check_device() -> io::Result<()> {
    mounts::open_fuse_device().map(drop)
}

/// Checks whether this user may mount on `dir`: the conditions of fusermount3, and that it is
/// installed.
pub(super) fn check_user(dir: &Path) -> io::Result<()> {
    let user = effective_user();
    if user == 0 {
        return Ok(());
    }
    let metadata = fs::metadata(dir)?;
    let sticky = metadata.mode() & libc::S_ISVTX != 0;
    if (sticky && metadata.uid() != user) || !mounts::may_write(dir)? {
        let reason = "a user may mount only on directories that they may write to";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    run_fusermount(|command| {
        command.arg("-V");
    })?
    .wait_with_output()
    .map(drop)
}

/// Mount options for the kernel, in the order in which `/proc/mounts` shows them.
fn filesystem_options(options: &MountOptions) -> Vec<&'static str> {
    let mut words = vec!["default_permissions"];
    if options.allow_other {
        words.push("allow_other");
    }
    words.push(SUBTYPE);
    words
}

fn mount_directly(dir: &Path, options: &MountOptions) -> io::Result<File> {
    let device = mounts::open_fuse_device()?;
    let mode = fs::metadata(dir)?.mode();
    let (uid, gid) = (real_user(), real_group());
    let words = filesystem_options(options).join(",");
    let data = format!("rootmode={mode:o},user_id={uid},group_id={gid},{words}");
    mounts::mount_fuse(
        &device,
        options.source.as_os_str().as_bytes(),
        dir,
        options.flags,
        &data,
    )?;
    Ok(device)
}

/// The option string of fusermount3(1), in which commas and backslashes of values are escaped.
fn fusermount_options(options: &MountOptions) -> OsString {
    let flags = options.flags;
    let mut words = vec![if flags.read_only { "ro" } else { "rw" }];
    for (on, word) in [
        (flags.nodev, "nodev"),
        (flags.nosuid, "nosuid"),
        (flags.noexec, "noexec"),
        (flags.noatime, "noatime"),
        (flags.sync, "sync"),
        (flags.dirsync, "dirsync"),
    ] {
        if on {
            words.push(word);
        }
    }
    words.extend(filesystem_options(options));
    let mut text = words.join(",").into_bytes();
    text.extend_from_slice(b",fsname=");
    for &byte in options.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    OsString::from_vec(text)
}

fn mount_by_fusermount(dir: &Path, options: &MountOptions) -> io::Result<File> {
    let options = fusermount_options(options);
    let arguments = [
        OsStr::new("-o"),
        &options,
        OsStr::new("--"),
        dir.as_os_str(),
    ];
    let (ours, theirs) = UnixStream::pair()?;
    let descriptor = theirs.as_raw_fd();
    let child = run_fusermount(|command| {
        command
            .args(arguments)
            .env("_FUSE_COMMFD", descriptor.to_string());
        mounts::pass_descriptor(command, descriptor);
    })?;
    drop(theirs);
    let received = descriptors::receive_one(&ours);
    drop(ours);
    let output = child.wait_with_output()?;
    received
        .map(File::from)
        .map_err(|_| io::Error::other(error_line(&output.stderr)))
}

/// Starts fusermount3, after `prepare` has set its arguments.
fn run_fusermount(prepare: impl Fn(&mut Command)) -> io::Result<std::process::Child> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for name in FUSERMOUNT {
        let mut command = Command::new(name);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        prepare(&mut command);
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) => last = error,
        }
    }
    if last.kind() == io::ErrorKind::NotFound {
        last = io::Error::new(
            io::ErrorKind::NotFound,
            "fusermount3 is not installed; without root it is needed to mount (package fuse3)",
        );
    }
    Err(last)
}

/// The first line of fusermount3's error output.
fn error_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("fusermount3 failed");
    line.trim().to_owned()
}

impl Mounted {
    /// The mount as it is now. `None` if it does not exist any more.
    fn find(&self) -> Option<MountInfo> {
        let mount = MountInfo::of_id(self.location?.mount_id).ok()??;
        mount.is_ours().then_some(mount)
    }

    /// Device number of the filesystem.
    pub(super) fn device(&self) -> Option<u64> {
        self.find()?;
        Some(self.location?.device)
    }

    /// True while the mount exists.
    pub(super) fn is_there(&self) -> bool {
        self.find().is_some()
    }

    /// Makes the kernel send all dirty pages in large requests, and the times of writing, without
    /// waiting for the answers.
    pub(super) fn send_all(&self) -> io::Result<()> {
        let mount = self.find().ok_or(io::ErrorKind::NotFound)?;
        let dir = File::open(&mount.dir)?;
        // Another filesystem may be mounted over it.
        if device_name(dir.metadata()?.dev()) != mount.device {
            return Err(io::ErrorKind::NotFound.into());
        }
        sync_filesystem(&dir)
    }

    /// Unmounts it, if it still exists.
    pub(super) fn unmount(&self, how: Detach) -> io::Result<()> {
        match self.find() {
            Some(mount) => unmount(&mount, how),
            None => Ok(()),
        }
    }

    /// The sysfs folder with the limits of the mount's device, while the mount exists.
    pub(super) fn limits_folder(&self) -> Option<PathBuf> {
        Some(Path::new("/sys/class/bdi").join(self.find()?.device))
    }
}

/// Unmounts that mount, by `umount2(2)` or, without the right to, by `fusermount3 -u`. The mount is
/// identified at its current location, so no other mount is unmounted if one covers it or if its
/// path changes meanwhile.
///
/// # Errors
/// The mount is in use, another one is mounted over it, or the kernel or fusermount3 refuses.
pub(crate) fn unmount(mount: &MountInfo, how: Detach) -> io::Result<()> {
    let (Some(parent), Some(name)) = (mount.dir.parent(), mount.dir.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = Location::open(parent)?;
    // This location is closed before the unmount, which it would prevent. A name on which something
    // is mounted cannot be renamed.
    let target = Location::open_at(&parent, Path::new(name))?.info()?;
    if target.mount_id != mount.id || !target.is_mount_root {
        return Err(io::Error::other("something else is mounted over it"));
    }
    match mounts::unmount(&parent.fixed_path().join(name), how) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        result => return result,
    }
    let output = run_fusermount(|command| {
        command
            .args(if how == Detach::Lazy {
                ["-u", "-z", "--"].as_slice()
            } else {
                &["-u", "--"]
            })
            .arg(&mount.dir);
    })?
    .wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let error_line = error_line(&output.stderr);
    Err(if error_line.contains("busy") {
        io::Error::from_raw_os_error(libc::EBUSY)
    } else {
        io::Error::other(error_line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_for_fusermount() {
        let mut options = MountOptions::new("/srv/a,b\\c");
        options.flags.nosuid = true;
        options.flags.read_only = true;
        assert_eq!(
            fusermount_options(&options),
            OsString::from("ro,nosuid,default_permissions,subtype=bilayer,fsname=/srv/a\\,b\\\\c")
        );
        options.allow_other = true;
        options.flags = mounts::MountFlags {
            noexec: true,
            ..Default::default()
        };
        assert_eq!(
            fusermount_options(&options),
            OsString::from(
                "rw,noexec,default_permissions,allow_other,subtype=bilayer,fsname=/srv/a\\,b\\\\c"
            )
        );
    }

    #[test]
    fn errors_are_one_line() {
        assert_eq!(error_line(b"\n fusermount3: no\nmore\n"), "fusermount3: no");
        assert_eq!(error_line(b""), "fusermount3 failed");
    }

    #[test]
    fn does_not_unmount_other_filesystems() {
        let location = Location::open(Path::new("/")).unwrap().info().ok();
        let root = Mounted { location };
        assert!(!root.is_there() && root.device().is_none());
        root.unmount(Detach::No).unwrap();
    }

    #[test]
    fn does_not_unmount_a_mount_that_covers_another() {
        let at = |path: &str| Location::open(Path::new(path)).unwrap().info().unwrap();
        let mut proc = MountInfo::of_id(at("/proc").mount_id).unwrap().unwrap();
        proc.id = at("/").mount_id;
        let error = unmount(&proc, Detach::No).unwrap_err();
        assert!(error.to_string().contains("mounted over"), "{error}");
    }
}
