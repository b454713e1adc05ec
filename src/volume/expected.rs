//! Which volume is expected at a location, so that a substituted volume is noticed.
//!
//! An attacker who controls the backing directory can replace a volume by one with another id,
//! which authenticates by itself. So a directory is refused, for reading too, if the platform
//! keystore remembers another volume at that location ([`RememberedDirectory::names`]), unless
//!
//! - the volume itself is remembered there, and was written there later than the other one;
//! - both are remembered there, each on a filesystem of its own (disks that take turns);
//! - the fingerprint is pinned (`-o fingerprint=`): the user has said which volume it is.
//!
//! Replacing a directory, or a parent of it, by a symbolic link makes no difference: the path
//! counts as the user wrote it, too.
//!
//! The other volume is not searched for elsewhere: what a directory claims to be is not
//! authenticated, and an attacker can swap two genuine volumes as well as their owner can. Once the
//! other volume has been opened for writing at its new location, its record names that location,
//! and the old one is free. A directory that was moved while its volume was open frees nothing, and
//! does not take over a location where another volume is remembered.
//!
//! A volume that is created, or gets a new identity, takes over its location: its record counts as
//! the later one ([`RememberedHere::now`]), whatever the clock says.

use std::path::{Path, PathBuf};

use super::error::VolumeError;
use crate::ids::VolumeId;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::{PlatformKeystore, RememberedDirectory, RememberedVolume, VolumeRecord};
use crate::store::DirectoryIdentity;
use crate::sys::clock::coarse_time;

/// The other volumes that the keystore remembers at the location of a volume.
pub(super) struct RememberedHere<'a> {
    place: Option<&'a DirectoryIdentity>,
    path: Option<&'a Path>,
    others: Vec<RememberedVolume>,
    /// For each path that the user named and that leads here through a symbolic link: the volumes
    /// remembered at that path.
    by_link: Vec<(&'a Path, Vec<RememberedVolume>)>,
}

impl<'a> RememberedHere<'a> {
    /// Looks up the other volumes at the location of `volume`; `path` is the path that it is opened
    /// by.
    pub(super) fn of(
        keystore: &PlatformKeystore,
        volume: VolumeId,
        place: Option<&'a DirectoryIdentity>,
        path: Option<&'a Path>,
    ) -> Result<Self, KeyError> {
        let mut others = keystore.volumes_at(place, path)?;
        others.retain(|other| other.volume != volume);
        Ok(Self {
            place,
            path,
            others,
            by_link: Vec::new(),
        })
    }

    /// Adds the volumes remembered at the paths that the user named, where somebody may have put a
    /// link.
    pub(super) fn with_named(
        mut self,
        keystore: &PlatformKeystore,
        volume: VolumeId,
        named: &'a [PathBuf],
    ) -> Result<Self, KeyError> {
        let place = self.place.map(|place| place.path.as_path());
        let links = named.iter().map(PathBuf::as_path);
        for path in links.filter(|path| Some(*path) != self.path && Some(*path) != place) {
            let mut others = keystore.volumes_at(None, Some(path))?;
            others.retain(|other| other.volume != volume);
            self.by_link.push((path, others));
        }
        Ok(self)
    }

    /// The current time, or later if another volume here was written later.
    pub(super) fn now(&self) -> i64 {
        let newest = self.others.iter().filter_map(|other| other.written).max();
        let after = newest.map_or(i64::MIN, |newest| newest.saturating_add(1));
        coarse_time().secs.max(after)
    }

    /// The volume that is expected here instead of the one whose record is `own`.
    pub(super) fn expected(&self, own: Option<&VolumeRecord>) -> Option<&RememberedVolume> {
        let own = own.and_then(|own| Some((own.directory.as_ref()?, own.written)));
        let at_link = self.by_link.iter().flat_map(|(path, others)| {
            // The volume's own location: a link was put there when the volume was moved.
            let own = own.filter(|(directory, _)| directory.path == *path);
            let is_later = move |other: &&RememberedVolume| {
                own.is_none_or(|(_, written)| written <= other.written)
            };
            others.iter().filter(is_later)
        });
        let own = own.filter(|(directory, _)| self.is_here(directory));
        let is_expected = |other: &&RememberedVolume| match own {
            None => true,
            Some((directory, written)) => {
                written <= other.written && !are_elsewhere(directory, &other.directory)
            }
        };
        let others = self.others.iter().filter(is_expected);
        others.chain(at_link).max_by_key(|other| other.written)
    }

    /// Whether the volume's own record names this location and the path that leads here.
    fn is_here(&self, own: &RememberedDirectory) -> bool {
        let Some(place) = self.place else {
            return false;
        };
        let same_disk = match (&own.filesystem, &place.filesystem) {
            (Some(own), Some(place)) => own == place,
            _ => true,
        };
        let same_path = |path: &Path| path == place.path || path == own.path;
        same_disk && own.names(place) && self.path.is_none_or(same_path)
    }
}

/// True if the two directories are on different filesystems, both of which are known.
fn are_elsewhere(one: &RememberedDirectory, other: &RememberedDirectory) -> bool {
    one.filesystem.is_some() && other.filesystem.is_some() && one.filesystem != other.filesystem
}

/// True if an open volume was moved to a location where another volume is remembered and where this
/// one was not opened. Somebody other than its user may have moved it, so its record must not name
/// that location.
pub(super) fn is_of_another(
    keystore: &PlatformKeystore,
    volume: VolumeId,
    record: &VolumeRecord,
    place: &DirectoryIdentity,
) -> Result<bool, KeyError> {
    let here = RememberedDirectory::from(place);
    let former = record.former.as_ref().map(|former| &former.directory);
    if record.directory.as_ref() == Some(&here) || former == Some(&here) {
        return Ok(false);
    }
    let remembered_here = RememberedHere::of(keystore, volume, Some(place), None)?;
    Ok(!remembered_here.others.is_empty())
}

/// The time to record for a volume that is written at `place` from now on.
pub(super) fn next_written_time(
    keystore: &PlatformKeystore,
    volume: VolumeId,
    place: Option<&DirectoryIdentity>,
) -> Result<i64, KeyError> {
    Ok(RememberedHere::of(keystore, volume, place, None)?.now())
}

/// Refuses to create a volume implicitly at a location where another one existed: a new, empty
/// volume, perhaps without the customer key of the former, would pass for it.
///
/// # Errors
/// [`VolumeError::Vanished`] if the keystore remembers a volume at `path`, whose links are
/// resolved, or at a path by which the user named it.
pub fn refuse_vanished(keystore: &Path, path: &Path, named: &[PathBuf]) -> Result<(), VolumeError> {
    let keystore = match PlatformKeystore::open(keystore) {
        Err(error) if error.kind() == ErrorKind::KeystoreMissing => return Ok(()),
        result => result?,
    };
    let mut known = keystore.volumes_at(place_of(path).as_ref(), Some(path))?;
    for path in named {
        known.extend(keystore.volumes_at(None, Some(path))?);
    }
    match known.into_iter().max_by_key(|known| known.written) {
        None => Ok(()),
        Some(known) => Err(VolumeError::Vanished {
            known: known.volume,
            path: path.to_owned(),
            written: known.written,
        }),
    }
}

/// The location of a directory that may be missing. Its disk may be mounted elsewhere than before.
fn place_of(path: &Path) -> Option<DirectoryIdentity> {
    DirectoryIdentity::at(path).ok().or_else(|| {
        let parent = DirectoryIdentity::at(path.parent()?).ok()?;
        let name = path.file_name()?;
        Some(DirectoryIdentity {
            path: parent.path.join(name),
            inside: parent.inside.as_ref().map(|inside| inside.join(name)),
            ..parent
        })
    })
}
