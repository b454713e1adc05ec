//! Where the control sockets of daemons are.
//!
//! A Unix socket, mode 0600, in a directory of the user's own: `/run/bilayer` for root, else
//! `$XDG_RUNTIME_DIR/bilayer`, `/run/user/UID/bilayer` or `/tmp/bilayer-UID`. It has two names: the
//! device and inode of the volume's directory, so that every spelling of the path finds it, and the
//! device number of the mount, which stays the same whatever is renamed or bound elsewhere.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::directory::DirectoryId;
use super::obstacle::Obstacle;
use crate::sys::identity::effective_user;
use crate::sys::mountinfo::device_name;

/// Directories in which sockets of that user's daemons may be.
pub(super) fn directories(uid: u32) -> Vec<PathBuf> {
    if uid == 0 {
        return vec![PathBuf::from("/run/bilayer")];
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = own.filter(|dir| dir.is_absolute() && uid == effective_user());
    let system = PathBuf::from(format!("/run/user/{uid}"));
    let shared = PathBuf::from(format!("/tmp/bilayer-{uid}"));
    own.into_iter()
        .chain([system])
        .map(|dir| dir.join("bilayer"))
        .chain([shared])
        .collect()
}

/// The name under which a command looks for a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// The volume's directory.
    Volume(DirectoryId),
    /// The device number of the mount.
    Mount(u64),
}

impl Address {
    pub(super) fn socket_name(self) -> String {
        match self {
            Self::Volume(id) => format!("{:x}-{:x}.sock", id.device, id.inode),
            Self::Mount(device) => format!("mount-{}.sock", device_name(device).replace(':', "-")),
        }
    }
}

/// Why a directory for sockets of `uid` is not trusted; `None` if only that user can write to it.
pub(super) fn untrusted_directory(dir: &Path, metadata: &Metadata, uid: u32) -> Option<Obstacle> {
    let problem = if !metadata.is_dir() {
        "is no directory".to_owned()
    } else if metadata.uid() != uid {
        format!("belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("has mode {:04o}", metadata.mode() & 0o7777)
    } else {
        return None;
    };
    Some(Obstacle::UntrustedDirectory {
        dir: dir.to_path_buf(),
        user: uid,
        problem,
    })
}

/// Creates the directory, or verifies that only this user can write to an existing one.
///
/// # Errors
/// The directory cannot be created, or another user can write to it.
pub(super) fn create_private_directory(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match untrusted_directory(dir, &fs::symlink_metadata(dir)?, effective_user()) {
        None => Ok(()),
        Some(obstacle) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{obstacle}; {}", obstacle.hint()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_for_sockets_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        create_private_directory(&own).unwrap();
        create_private_directory(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        let error = create_private_directory(&own).unwrap_err();
        assert!(error.to_string().contains("has mode 0755"), "{error}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let error = create_private_directory(&link).unwrap_err();
        assert!(error.to_string().contains("is no directory"), "{error}");
    }
}
