//! Rotation: a new version takes over, and versions that nothing needs are dropped.
//!
//! A version is dropped only if all of this holds:
//! - it is not the current one, and no process holds it ([`super::versions`]);
//! - every record says which versions its volume needs, and none needs this one;
//! - no export was made for it;
//! - if it was restored from a backup, the current version was made after that.
//!
//! A volume needs every version that its superblock, or the spare copy of it, names. A record that
//! cannot be read, or that an older program wrote, keeps all versions.

use std::collections::BTreeSet;
use std::fs::TryLockError;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::lock::KeystoreLock;
use super::version::Version;
use super::versions::MAX_VERSIONS;
use super::{PlatformKeystore, VolumeRecord, create_version, files, record};
use crate::audit::Record;
use crate::ids::VolumeId;
use crate::keys::error::{ErrorKind, KeyError, while_writing};
use crate::keys::wrap::PlatformVersion;
use crate::sys::clock::{self, coarse_time};
use crate::sys::files::{self as sys, Access};
use crate::sys::wipe::with_secrets;

/// The age at which a daemon replaces the current version, in days.
pub const ROTATION_AGE_DAYS: i64 = 90;
const DAY_SECS: i64 = 24 * 3600;

/// A version, without its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionInfo {
    /// Keystore and number.
    pub name: PlatformVersion,
    /// When it was made, if known: seconds since 1970.
    pub created: Option<i64>,
    /// When it was restored from a backup.
    pub restored: Option<i64>,
    /// An export was made for it.
    pub is_exported: bool,
    /// It is sealed to the machine.
    pub is_sealed: bool,
}

/// A volume that the keystore has a record of.
#[derive(Debug)]
pub struct KnownVolume {
    /// Its id.
    pub volume: VolumeId,
    /// Its record, or why that cannot be read.
    pub record: Result<VolumeRecord, KeyError>,
}

impl PlatformKeystore {
    /// Makes a new version, which wraps everything new from now on, and returns the keystore with
    /// it.
    ///
    /// # Errors
    /// The errors of [`Self::open`]; the keystore has too many versions, or cannot be written.
    pub fn rotate(directory: &Path) -> Result<Self, KeyError> {
        let rotated = Self::rotate_if(directory, &|_| true)?;
        rotated.map_or_else(|| Self::open(directory), Ok)
    }

    /// Rotates a keystore whose current version is [`ROTATION_AGE_DAYS`] old. `None`: it is not.
    ///
    /// # Errors
    /// The errors of [`Self::rotate`].
    pub fn rotate_if_due(directory: &Path) -> Result<Option<Self>, KeyError> {
        Self::rotate_if(directory, &|keystore| keystore.is_due(coarse_time().secs))
    }

    fn rotate_if(
        directory: &Path,
        is_due: &dyn Fn(&Self) -> bool,
    ) -> Result<Option<Self>, KeyError> {
        let before = Self::open(directory)?;
        if !is_due(&before) {
            return Ok(None);
        }
        let rotated = Self::rotate_locked(directory, is_due);
        let number = match &rotated {
            Ok(Some(now)) => now.current_version(),
            Ok(None) => return Ok(None),
            Err(_) => before.current_version(),
        };
        Record::new("rotate-platform-key")
            .with("keystore", before.id())
            .with("key_version", number)
            .outcome(&rotated);
        rotated
    }

    fn rotate_locked(
        directory: &Path,
        is_due: &dyn Fn(&Self) -> bool,
    ) -> Result<Option<Self>, KeyError> {
        let _lock = KeystoreLock::take(directory)?;
        // Another process may have rotated it meanwhile.
        let before = Self::open(directory)?;
        if !is_due(&before) {
            return Ok(None);
        }
        let next = before.current_version().checked_add(1);
        let next = next.filter(|next| {
            files::is_version_number(*next) && before.versions.own.len() < MAX_VERSIONS
        });
        let next = next.ok_or_else(|| {
            KeyError::new(
                ErrorKind::KeystoreInvalid,
                format!(
                    "the platform keystore {} has as many versions as it may have",
                    directory.display()
                ),
            )
            .with_hint("see which volumes need old ones: bilayer keystore list")
        })?;
        create_version(directory, before.id, next)?;
        Self::open(directory).map(Some)
    }

    /// True if the current version is so old that it is to be replaced.
    pub fn is_due(&self, now: i64) -> bool {
        let age = self
            .current_created()
            .map(|created| now.saturating_sub(created));
        clock::is_set(now) && age.is_some_and(|age| age >= ROTATION_AGE_DAYS * DAY_SECS)
    }

    /// When the current version was made: seconds since 1970. For a version of an older program
    /// this is the time of its file.
    pub fn current_created(&self) -> Option<i64> {
        let (number, version) = self.versions.own.last_key_value()?;
        version.created.or_else(|| {
            let path = files::version_path(&files::own_versions(&self.directory), *number);
            std::fs::metadata(path)
                .map(|metadata| metadata.mtime())
                .ok()
        })
    }

    /// True if what this version wrapped is to be wrapped again with the current one. What an
    /// adopted version wrapped stays as it is until the next rotation: the volume may go back to
    /// the machine that it came from.
    pub(crate) fn is_superseded(&self, name: PlatformVersion) -> bool {
        if name.keystore == self.id {
            return name.version != self.current_version();
        }
        match self.version(name) {
            Some(version) => self.was_current_made_after(version),
            None => true,
        }
    }

    /// True unless the version was restored after the current one was made.
    fn was_current_made_after(&self, version: &Version) -> bool {
        let Some(restored) = version.restored else {
            return true;
        };
        self.current_created()
            .is_some_and(|created| created > restored)
    }

    /// True if the directory has another current version than this open keystore: it was rotated.
    ///
    /// # Errors
    /// The versions cannot be listed.
    pub fn was_rotated(&self) -> Result<bool, KeyError> {
        let numbers = files::version_numbers(&files::own_versions(&self.directory))?;
        Ok(numbers.into_iter().max() != Some(self.current_version()))
    }

    /// All versions: the keystore's own in their order, then those of adopted keystores.
    pub fn versions(&self) -> Vec<VersionInfo> {
        let info = |(name, version): (PlatformVersion, &Version)| VersionInfo {
            name,
            created: version.created,
            restored: version.restored,
            is_exported: self.is_exported(name),
            is_sealed: version.is_sealed,
        };
        self.versions.names(self.id).map(info).collect()
    }

    pub(super) fn is_exported(&self, name: PlatformVersion) -> bool {
        name.keystore == self.id && files::is_exported(&self.directory, name.version)
    }

    /// The volumes that have a record.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub fn volumes(&self) -> Result<Vec<KnownVolume>, KeyError> {
        let mut volumes = files::remembered_volumes(&self.directory)?;
        volumes.sort();
        let mut known = Vec::with_capacity(volumes.len());
        for volume in volumes {
            // A record may be removed meanwhile.
            let read = with_secrets(|| record::read(&self.directory, volume));
            if let Some(record) = read.transpose() {
                known.push(KnownVolume { volume, record });
            }
        }
        Ok(known)
    }

    /// Drops the versions that nothing needs any more, and returns their names.
    ///
    /// # Errors
    /// The keystore cannot be read or written.
    pub fn drop_unneeded_versions(&self) -> Result<Vec<PlatformVersion>, KeyError> {
        self.check_identity()?;
        let _lock = KeystoreLock::take(&self.directory)?;
        let now = Self::open(&self.directory)?;
        let Some(needed) = now.needed_versions()? else {
            return Ok(Vec::new());
        };
        let candidates: Vec<PlatformVersion> = now
            .versions
            .names(now.id)
            .filter(|(name, version)| {
                *name != now.current_name()
                    && !needed.contains(name)
                    && !now.is_exported(*name)
                    && now.was_current_made_after(version)
            })
            .map(|(name, _)| name)
            .collect();
        let mut dropped = Vec::new();
        for name in candidates {
            if now.drop_version(name)? {
                dropped.push(name);
            }
        }
        Ok(dropped)
    }

    /// The versions that the known volumes need; `None` if a record does not say.
    fn needed_versions(&self) -> Result<Option<BTreeSet<PlatformVersion>>, KeyError> {
        let mut needed = BTreeSet::new();
        for known in self.volumes()? {
            let platform = known
                .record
                .as_ref()
                .ok()
                .and_then(|record| record.platform.as_ref());
            match platform {
                Some(platform) => needed.extend(platform),
                None => return Ok(None),
            }
        }
        Ok(Some(needed))
    }

    /// Removes a version unless a process holds it. True if it was removed.
    fn drop_version(&self, name: PlatformVersion) -> Result<bool, KeyError> {
        let folder = match name.keystore == self.id {
            true => files::own_versions(&self.directory),
            false => files::adopted_versions(&self.directory, name.keystore),
        };
        let path = files::version_path(&folder, name.version);
        let opened = || -> io::Result<std::fs::File> {
            let at = sys::open_directory(&folder)?;
            let file = path.file_name().and_then(|file| file.to_str());
            sys::open_file_at(&at, file.unwrap_or_default(), Access::ReadWrite)
        };
        let file = opened().map_err(while_writing("cannot remove", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(%error, "a platform key version stays: it cannot be locked");
                return Ok(false);
            }
        }
        files::remove_version(&folder, name.version)?;
        if name.keystore != self.id {
            // Succeeds only if it was the last one.
            let _ = std::fs::remove_dir(&folder);
        }
        Record::new("drop-platform-key")
            .with("keystore", hex::encode(name.keystore))
            .with("key_version", name.version)
            .done();
        Ok(true)
    }
}
