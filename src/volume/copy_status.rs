//! Whether a directory is the volume itself or a copy of it. Each volume identity has one writer.
//!
//! A copy (`cp -a`) has the volume's id and its keys, and nothing in it says that it is a copy. So
//! the platform keystore remembers which directory is the volume ([`RememberedDirectory`]), and
//! holds a lock for each id that is open for writing. Let P be the directory that is opened and D
//! the one that is remembered. The first matching row decides:
//!
//! | | P is |
//! |---|---|
//! | D is P: the same path, or the same directory now (bind mounts, links) | the volume |
//! | P has D's filesystem and inode number, and D has no other directory with the id | moved |
//! | a directory with the id is at D | a copy |
//! | D's filesystem is mounted at D's path, and no volume with the id is at D | moved |
//! | else: D cannot be seen, or does not respond within 5 seconds | unknown |
//!
//! A copy, and a directory whose status is unknown, is never written to. What `volume.json` at D
//! claims is not authenticated: it can only cause a mount to be refused.
//!
//! A store that is no directory of the operating system (such as memory, in tests) has no copies.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HEADER_NAME;
use super::error::VolumeError;
use super::superblock::inspect;
use crate::ids::VolumeId;
use crate::keys::{RememberedDirectory, VolumeRecord};
use crate::store::directory::DirectoryStore;
use crate::store::{DirectoryIdentity, depends_on_kernel, has_stable_inodes};
use crate::sys::deadline::isolated_within;
use crate::sys::probe;

/// How long looking at the remembered directory may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How a directory relates to the keystore's record of the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyStatus {
    /// The volume itself, or a volume without a remembered directory.
    Own,
    /// The volume itself, which was moved.
    Moved {
        /// Its previous path.
        from: PathBuf,
    },
    /// A copy of the volume.
    Copy {
        /// Path of the original.
        original: PathBuf,
    },
    /// The volume or a copy: the remembered directory cannot be seen.
    Unknown {
        /// Path of the remembered directory.
        original: PathBuf,
    },
}

impl CopyStatus {
    /// Compares the opened directory with the remembered one.
    pub(super) fn of(
        place: Option<&DirectoryIdentity>,
        record: Option<&VolumeRecord>,
        id: VolumeId,
    ) -> Self {
        let remembered = record.and_then(|record| record.directory.as_ref());
        match (place, remembered) {
            (Some(place), Some(remembered)) => compare(place, remembered, id),
            _ => Self::Own,
        }
    }

    /// True for the volume itself, which may be written to.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own | Self::Moved { .. })
    }

    /// The path of the original, if this is or may be a copy.
    pub fn original(&self) -> Option<&Path> {
        match self {
            Self::Copy { original } | Self::Unknown { original } => Some(original),
            Self::Own | Self::Moved { .. } => None,
        }
    }

    /// The reason not to open a directory that is or may be a copy for writing. `accept` is true if
    /// the user wants it to replace an original that no longer exists.
    pub(super) fn refusal(
        &self,
        record: Option<&VolumeRecord>,
        accept: bool,
    ) -> Option<VolumeError> {
        let written = record.and_then(|record| record.written);
        match self {
            Self::Own | Self::Moved { .. } => None,
            Self::Unknown { .. } if accept => None,
            Self::Copy { original } => Some(VolumeError::IsCopy {
                original: original.clone(),
                written,
                accepting: accept,
            }),
            Self::Unknown { original } => Some(VolumeError::MayBeCopy {
                original: original.clone(),
                written,
            }),
        }
    }
}

/// What is at the remembered path.
enum AtOriginal {
    /// The opened directory itself.
    Same,
    /// Another directory, with a volume of that id or something that may be one.
    Another,
    /// No volume of that id, as far as can be seen.
    Nothing,
}

fn compare(
    place: &DirectoryIdentity,
    remembered: &RememberedDirectory,
    id: VolumeId,
) -> CopyStatus {
    let path = || remembered.path.clone();
    if place.path == remembered.path {
        // Another disk or directory mounted over the path hides the volume.
        if is_elsewhere(place, remembered) {
            return CopyStatus::Unknown { original: path() };
        }
        if place.inode != remembered.inode {
            tracing::warn!(
                path = %place.path.display(),
                "the directory at the volume's path is another one than before; it is assumed to \
                 be the volume"
            );
        }
        return CopyStatus::Own;
    }
    // The filesystem there may not respond: the network or a daemon may be down.
    let answers = probe::responds(&remembered.path, HEADER_NAME, PATIENCE);
    let looked = answers.then(|| {
        let (place, remembered) = (place.clone(), remembered.clone());
        isolated_within(PATIENCE, move || look(&place, &remembered, id))
    });
    looked.flatten().unwrap_or_else(|| {
        tracing::warn!(
            path = %remembered.path.display(),
            "the previous location of the volume does not respond"
        );
        CopyStatus::Unknown { original: path() }
    })
}

/// Looks at the remembered path, which differs from the path of `place`.
fn look(place: &DirectoryIdentity, remembered: &RememberedDirectory, id: VolumeId) -> CopyStatus {
    let path = || remembered.path.clone();
    match at_original(place, remembered, id) {
        AtOriginal::Same => CopyStatus::Own,
        AtOriginal::Another => CopyStatus::Copy { original: path() },
        AtOriginal::Nothing if is_same_directory(place, remembered) => {
            CopyStatus::Moved { from: path() }
        }
        AtOriginal::Nothing if is_filesystem_visible(remembered) => {
            CopyStatus::Moved { from: path() }
        }
        AtOriginal::Nothing => CopyStatus::Unknown { original: path() },
    }
}

fn at_original(
    place: &DirectoryIdentity,
    remembered: &RememberedDirectory,
    id: VolumeId,
) -> AtOriginal {
    match DirectoryIdentity::at(&remembered.path) {
        Ok(original) if original.is_same_now(place) => return AtOriginal::Same,
        Ok(_) => {}
        // A path that cannot be examined does not count as visible: `is_filesystem_visible`
        // decides.
        Err(_) => return AtOriginal::Nothing,
    }
    let claimed = DirectoryStore::open(&remembered.path)
        .map_err(VolumeError::io("cannot open the directory"))
        .and_then(|store| inspect(&store));
    match claimed {
        Ok(header) if header.claims().volume_id() == id => AtOriginal::Another,
        Ok(_) | Err(VolumeError::NotAVolume) => AtOriginal::Nothing,
        // A damaged original still counts as one.
        Err(_) => AtOriginal::Another,
    }
}

/// True if the same path is known to lead to another filesystem, or to another part of it.
fn is_elsewhere(place: &DirectoryIdentity, remembered: &RememberedDirectory) -> bool {
    match (&place.filesystem, &remembered.filesystem) {
        (Some(here), Some(there)) if here != there => true,
        // A filesystem without an identity is another one, unless an older kernel does not report
        // it.
        (None, Some(one)) | (Some(one), None) => {
            !depends_on_kernel(one) || place.inode != remembered.inode
        }
        (Some(_), Some(_)) => matches!(
            (&place.inside, &remembered.inside),
            (Some(here), Some(there)) if here != there
        ),
        _ => false,
    }
}

/// True for the remembered directory, whatever its path is now.
fn is_same_directory(place: &DirectoryIdentity, remembered: &RememberedDirectory) -> bool {
    let has_stable_inodes = place.filesystem.as_deref().is_some_and(has_stable_inodes);
    has_stable_inodes
        && place.filesystem == remembered.filesystem
        && place.inode == remembered.inode
}

/// True if the volume's filesystem is still mounted where it was. Then a missing directory no
/// longer exists: it is not on a disk that is not mounted, nor hidden by one that is mounted over
/// it.
fn is_filesystem_visible(remembered: &RememberedDirectory) -> bool {
    for ancestor in remembered.path.ancestors() {
        match DirectoryIdentity::at(ancestor) {
            Ok(existing) => return leads_to_same_path(&existing, ancestor, remembered),
            Err(error) if is_absent(&error) => {}
            Err(_) => return false,
        }
    }
    false
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// True if the remembered path, which begins with `ancestor`, leads to the remembered path within
/// the remembered filesystem. `existing` is the directory at `ancestor`.
fn leads_to_same_path(
    existing: &DirectoryIdentity,
    ancestor: &Path,
    remembered: &RememberedDirectory,
) -> bool {
    let inside = remembered
        .path
        .strip_prefix(ancestor)
        .ok()
        .zip(existing.inside.as_ref())
        .map(|(rest, inside)| inside.join(rest));
    // A joined path may end in a slash, which does not matter for the comparison.
    existing.filesystem.is_some()
        && existing.filesystem == remembered.filesystem
        && inside.is_some()
        && inside == remembered.inside
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ID: VolumeId = VolumeId([7; 16]);

    fn remembered(path: &Path) -> RememberedDirectory {
        RememberedDirectory::from(&DirectoryIdentity::at(path).unwrap())
    }

    fn make(path: &Path) -> DirectoryIdentity {
        fs::create_dir_all(path).unwrap();
        DirectoryIdentity::at(path).unwrap()
    }

    #[test]
    fn the_same_directory_by_another_path_is_the_volume() {
        let top = tempfile::tempdir().unwrap();
        let (volume, link) = (top.path().join("volume"), top.path().join("link"));
        let place = make(&volume);
        let own = remembered(&volume);
        assert_eq!(compare(&place, &own, ID), CopyStatus::Own);
        // The same path with another inode number, as a network filesystem may show it.
        let other = DirectoryIdentity {
            inode: place.inode + 1,
            ..place.clone()
        };
        assert_eq!(compare(&other, &own, ID), CopyStatus::Own);
        // Not every kernel reports the identity of such a filesystem: the same inode is enough.
        for (one, two, inode, is_own) in [
            (None, Some("xfs:00ff"), 0, true),
            (Some("xfs:00ff"), None, 0, true),
            (None, Some("xfs:00ff"), 1, false),
            (None, Some("ext4:00ff"), 0, false),
            (Some("ext4:00ff"), None, 0, false),
            (None, None, 1, true),
        ] {
            let here = DirectoryIdentity {
                filesystem: one.map(str::to_owned),
                inode: place.inode + inode,
                ..place.clone()
            };
            let own = RememberedDirectory {
                filesystem: two.map(str::to_owned),
                ..own.clone()
            };
            let status = compare(&here, &own, ID);
            assert_eq!(status == CopyStatus::Own, is_own, "{one:?} {two:?} {inode}");
        }
        std::os::unix::fs::symlink(&volume, &link).unwrap();
        let by_link = RememberedDirectory { path: link, ..own };
        assert_eq!(compare(&place, &by_link, ID), CopyStatus::Own);
    }

    #[test]
    fn a_directory_that_was_renamed_is_the_volume() {
        let top = tempfile::tempdir().unwrap();
        let (one, two) = (top.path().join("one"), top.path().join("two"));
        make(&one);
        let own = remembered(&one);
        fs::rename(&one, &two).unwrap();
        let moved = CopyStatus::Moved {
            from: own.path.clone(),
        };
        let place = DirectoryIdentity::at(&two).unwrap();
        assert_eq!(compare(&place, &own, ID), moved);
        // Something else is there now, which is no volume.
        make(&one);
        assert_eq!(compare(&place, &own, ID), moved);
        // A volume that cannot be understood may be the original.
        fs::write(one.join("volume.json"), "damaged").unwrap();
        assert!(matches!(compare(&place, &own, ID), CopyStatus::Copy { .. }));
    }

    #[test]
    fn the_status_is_unknown_if_the_remembered_path_cannot_be_seen() {
        let top = tempfile::tempdir().unwrap();
        let (gone, copy) = (top.path().join("a/b/gone"), top.path().join("copy"));
        make(&gone);
        let own = remembered(&gone);
        fs::remove_dir_all(top.path().join("a")).unwrap();
        let place = make(&copy);
        // Its disk is there, and it is not: it went to another one.
        assert!(matches!(
            compare(&place, &own, ID),
            CopyStatus::Moved { .. }
        ));
        for hidden in [
            RememberedDirectory {
                filesystem: Some("ext4:0123456789abcdef".to_owned()),
                ..own.clone()
            },
            RememberedDirectory {
                filesystem: None,
                ..own.clone()
            },
            RememberedDirectory {
                inside: Some("/another/subtree".into()),
                ..own.clone()
            },
            RememberedDirectory {
                inside: None,
                ..own
            },
        ] {
            let found = compare(&place, &hidden, ID);
            assert!(matches!(found, CopyStatus::Unknown { .. }), "{hidden:?}");
            assert!(found.refusal(None, false).is_some());
            assert!(found.refusal(None, true).is_none());
        }
    }

    #[test]
    fn inode_numbers_count_if_they_are_stable() {
        let top = tempfile::tempdir().unwrap();
        let place = make(&top.path().join("here"));
        let own = RememberedDirectory {
            path: "/no/such/place".into(),
            inside: Some("/elsewhere".into()),
            ..RememberedDirectory::from(&place)
        };
        assert!(matches!(
            compare(&place, &own, ID),
            CopyStatus::Moved { .. }
        ));
        let network = |filesystem: Option<&str>| {
            let filesystem = filesystem.map(str::to_owned);
            let place = DirectoryIdentity {
                filesystem: filesystem.clone(),
                ..place.clone()
            };
            let own = RememberedDirectory {
                filesystem,
                ..own.clone()
            };
            compare(&place, &own, ID)
        };
        for without in [None, Some("source:fuse.sshfs:host:/srv")] {
            assert!(matches!(network(without), CopyStatus::Unknown { .. }));
        }
    }

    #[test]
    fn without_a_directory_there_are_no_copies() {
        let record = VolumeRecord::new(crate::ids::IncarnationId([1; 16]));
        assert_eq!(CopyStatus::of(None, Some(&record), ID), CopyStatus::Own);
        let place = DirectoryIdentity::at(Path::new("/")).unwrap();
        assert_eq!(CopyStatus::of(Some(&place), None, ID), CopyStatus::Own);
        assert_eq!(
            CopyStatus::of(Some(&place), Some(&record), ID),
            CopyStatus::Own
        );
    }
}
