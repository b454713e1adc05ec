//! The versions of a keystore: reading all of them, and keeping the current one in place.
//!
//! A directory holds the versions of its own keystore id, with which everything new is wrapped, and
//! those of *adopted* keystores: a backup of a keystore of another id was restored beside this one.
//! An adopted version only unwraps. A wrap names keystore and version, so the numbers of two
//! keystores do not collide.
//!
//! A process that wraps with a version holds a shared lock (flock(2)) on its file until what it
//! wrapped is in a record. [`super::rotate`] drops no version that somebody holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::seal::Sealing;
use super::version::Version;
use super::{damaged, files, version_file};
use crate::keys::error::{KeyError, while_doing};
use crate::keys::wrap::PlatformVersion;

/// Limit on the versions of one keystore id.
pub(super) const MAX_VERSIONS: usize = 1000;
/// Limit on the adopted keystores.
pub(super) const MAX_ADOPTED: usize = 100;
/// How often the versions are read again if one is dropped meanwhile.
const TRIES: u32 = 10;

/// The versions of one keystore id.
pub(super) type Numbered = BTreeMap<u32, Version>;

/// All versions in a keystore's directory.
pub(super) struct Versions {
    /// Those of the keystore's own id.
    pub(super) own: Numbered,
    /// Those of adopted keystores.
    pub(super) adopted: BTreeMap<[u8; 16], Numbered>,
    /// Keeps the current version from being dropped.
    #[expect(dead_code, reason = "held, never read")]
    pub(super) held: Option<File>,
}

impl Versions {
    /// Reads all versions and holds the current one.
    pub(super) fn read(directory: &Path, id: [u8; 16]) -> Result<Self, KeyError> {
        let sealing = Sealing::of(directory)?;
        let mut last = None;
        for _ in 0..TRIES {
            let own = read_numbered(&files::own_versions(directory), id, &sealing)?;
            let held = match own.last_key_value() {
                Some((number, _)) => hold(&files::own_versions(directory), *number)?,
                None => None,
            };
            // A current version that vanished was replaced by a newer one.
            if held.is_some() || own.is_empty() {
                let adopted = read_adopted(directory, &sealing)?;
                return Ok(Self { own, adopted, held });
            }
            last = own.last_key_value().map(|(number, _)| *number);
        }
        let path = files::version_path(&files::own_versions(directory), last.unwrap_or_default());
        Err(damaged(&path, "changes all the time"))
    }

    /// The names of all versions.
    pub(super) fn names(&self, id: [u8; 16]) -> impl Iterator<Item = (PlatformVersion, &Version)> {
        let own = std::iter::once((id, &self.own));
        let adopted = self.adopted.iter().map(|(id, versions)| (*id, versions));
        own.chain(adopted).flat_map(|(keystore, versions)| {
            versions.iter().map(move |(number, keys)| {
                let version = *number;
                (PlatformVersion { keystore, version }, keys)
            })
        })
    }
}

fn read_numbered(folder: &Path, id: [u8; 16], sealing: &Sealing) -> Result<Numbered, KeyError> {
    let numbers = files::version_numbers(folder)?;
    if numbers.len() > MAX_VERSIONS {
        return Err(damaged(folder, "has too many versions"));
    }
    let mut versions = Numbered::new();
    for number in numbers {
        // Another process may have dropped it since.
        if let Some(version) = version_file::read_version(folder, id, number, sealing)? {
            versions.insert(number, version);
        }
    }
    Ok(versions)
}

fn read_adopted(
    directory: &Path,
    sealing: &Sealing,
) -> Result<BTreeMap<[u8; 16], Numbered>, KeyError> {
    let ids = files::adopted_keystores(directory)?;
    if ids.len() > MAX_ADOPTED {
        return Err(damaged(directory, "has too many adopted keystores"));
    }
    let read = |id| {
        Ok((
            id,
            read_numbered(&files::adopted_versions(directory, id), id, sealing)?,
        ))
    };
    let mut adopted = ids
        .into_iter()
        .map(read)
        .collect::<Result<BTreeMap<_, _>, KeyError>>()?;
    adopted.retain(|_, versions| !versions.is_empty());
    Ok(adopted)
}

/// Locks the file of a version, shared; `None` if the version has been dropped. A filesystem
/// without locks leaves it unlocked, and then nothing on it is dropped either.
fn hold(folder: &Path, number: u32) -> Result<Option<File>, KeyError> {
    let path = files::version_path(folder, number);
    let failed = |error| while_doing("cannot read", &path)(error);
    let file = match files::open_plain(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    if let Err(error) = file.try_lock_shared() {
        match error {
            // It is being dropped at this moment.
            std::fs::TryLockError::WouldBlock => return Ok(None),
            std::fs::TryLockError::Error(error) => {
                tracing::debug!(%error, "a platform key version is not locked");
            }
        }
    }
    let inode = |metadata: io::Result<std::fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    let is_there = inode(file.metadata()) == inode(std::fs::symlink_metadata(&path));
    Ok(is_there.then_some(file))
}
