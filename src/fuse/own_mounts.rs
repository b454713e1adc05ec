//! Mounts of this filesystem type in the mount table.

use std::io;
use std::path::Path;

pub(crate) use crate::sys::mountinfo::FILESYSTEM_TYPE;
use crate::sys::mountinfo::{MountInfo, device_name};

impl MountInfo {
    /// True for mounts of this filesystem type.
    pub(crate) fn is_ours(&self) -> bool {
        self.filesystem == FILESYSTEM_TYPE
    }

    /// The mounts of this filesystem type with that device number: one filesystem with its bind
    /// mounts.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub(crate) fn on_device(device: u64) -> io::Result<Vec<Self>> {
        let name = device_name(device);
        let mut mounts = Self::all()?;
        mounts.retain(|mount| mount.is_ours() && mount.device == name);
        Ok(mounts)
    }

    /// The user who made a FUSE mount. The kernel reports it, so no user can claim to be another.
    pub(crate) fn owner(&self) -> Option<u32> {
        self.super_options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id="))?
            .parse()
            .ok()
    }
}

/// Mounts that one of these users made and whose source `matches`. A source is only a hint at the
/// volume that is mounted. Mounts of other users are skipped: a source is any text, and may lead to
/// a filesystem that does not answer.
///
/// # Errors
/// The mount table cannot be read.
pub(crate) fn with_source(
    users: &[u32],
    matches: impl Fn(&Path) -> bool,
) -> io::Result<Vec<MountInfo>> {
    let mut mounts = MountInfo::all()?;
    mounts.retain(|mount| {
        mount.is_ours()
            && mount.owner().is_some_and(|owner| users.contains(&owner))
            && mount.source.is_absolute()
            && matches(&mount.source)
    });
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::location::Location;

    #[test]
    fn recognizes_mounts_of_this_filesystem() {
        let root = Location::open(Path::new("/")).unwrap();
        let mut mount = MountInfo::beginning_at(&root).unwrap().unwrap();
        assert!(!mount.is_ours());
        let device = root.info().unwrap().device;
        assert!(MountInfo::on_device(device).unwrap().is_empty());
        mount.filesystem = FILESYSTEM_TYPE.to_owned();
        mount.super_options = "rw,user_id=1000,group_id=7,default_permissions".to_owned();
        assert!(mount.is_ours());
        assert_eq!(mount.owner(), Some(1000));
        mount.super_options = "rw".to_owned();
        assert_eq!(mount.owner(), None);
    }
}
