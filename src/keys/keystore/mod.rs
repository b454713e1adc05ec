//! The platform keystore: the machine's own keys, and its records of volumes.
//!
//! ```text
//! platform/                      0700, owned by whoever uses it
//!   keystore.json                {"format":"bilayer-platform-keystore","version":1,"id":…}
//!   versions/00000001.json       {"format":"bilayer-platform-key","version":1,"keystore":…,
//!                                 "number":1,"infrastructure":…,"customer":…}
//!   adopted/<keystore id>/…      versions of another keystore, from a backup
//!   exports/00000001             an export was made for that version
//!   backup.json, tpm.json        a note of the last backup; a setting
//!   volumes/<volume id>.json     {"format":"bilayer-volume-record","version":1,…}
//!   volumes/<volume id>.lock     locked while the volume is open for writing
//!   audit/<log>.json             {"format":"bilayer-audit-head","version":1,…}
//! ```
//!
//! A version holds two independent random 256-bit keys: one wraps infrastructure DEKs, the other
//! the customer DEKs of platform-managed volumes. Losing the keystore means losing every volume.
//!
//! Invariants: the keystore is outside every volume. Files appear complete (written under a
//! temporary name, synced, renamed, directory synced), and a version is never overwritten. The
//! keystore is refused unless its directory belongs to this user alone. Files are parsed strictly:
//! bounded, without unknown or repeated fields.
//!
//! File modes protect it, and a TPM where there is one (`seal`). `backup` writes everything to one
//! file under a passphrase, and `restore` merges that with what is there. `rotate` makes and drops
//! versions.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{ErrorKind, KeyError, acknowledged, while_doing};
use super::wrap::{self, PLATFORM_PREFIX, PlatformVersion, WrapContext, WrapRecord};
use crate::audit::Record;
use crate::ids::VolumeId;
use crate::layers::{CustomerDek, InfrastructureDek};
use crate::store::DirectoryIdentity;
use crate::sys::clock::coarse_time;
use crate::sys::identity::{effective_user, home_of, real_user};
use crate::sys::location::Location;
use crate::sys::mountinfo::{FILESYSTEM_TYPE, MountInfo};
use crate::sys::wipe::with_secrets;
use version::Version;
use versions::Versions;

mod audit_heads;
mod backup;
mod backup_note;
mod directory;
mod files;
mod holder;
mod lock;
mod record;
mod restore;
mod rotate;
mod seal;
mod transport;
mod version;
mod version_file;
mod versions;
mod volumes_at;
mod writer;

pub use audit_heads::AuditHeads;
pub use backup::BackupSummary;
pub use backup_note::BackupNote;
pub use directory::{FormerDirectory, RememberedDirectory};
pub use record::{KnownKeySet, VolumeRecord};
pub use restore::RestoreSummary;
pub use rotate::{KnownVolume, ROTATION_AGE_DAYS, VersionInfo};
pub use volumes_at::RememberedVolume;
pub use writer::{WriterLock, WriterLocked};

/// Name of the file that marks a directory as a platform keystore.
pub const IDENTITY: &str = files::IDENTITY;

/// Environment variable that names the keystore's directory.
pub const ENVIRONMENT: &str = "BILAYER_PLATFORM_KEYSTORE";

/// An open platform keystore.
pub struct PlatformKeystore {
    directory: PathBuf,
    id: [u8; 16],
    versions: Versions,
}

impl PlatformKeystore {
    /// Opens an existing keystore.
    ///
    /// # Errors
    /// Kind `KeystoreMissing` if there is none, `KeystoreInvalid` if other users can access it,
    /// `Usage` if it is inside a volume, `KeystoreInvalid` if it is damaged.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        refuse_inside_volume(directory)?;
        if !directory.exists() {
            return Err(missing(directory, "does not exist"));
        }
        refuse_shared(directory)?;
        let Some(id) = files::read_identity(directory)? else {
            return Err(missing(directory, "holds no keystore"));
        };
        let versions = Versions::read(directory, id)?;
        if versions.own.is_empty() {
            return Err(missing(directory, "holds no keys"));
        }
        Ok(Self {
            directory: directory.to_owned(),
            id,
            versions,
        })
    }

    /// Opens the keystore, and creates it with its first version if there is none. Safe against
    /// concurrent processes and interruptions: the next call finishes the work.
    ///
    /// # Errors
    /// The errors of [`Self::open`], and failures of the operating system.
    pub fn open_or_create(directory: &Path) -> Result<Self, KeyError> {
        refuse_inside_volume(directory)?;
        files::make_directory(directory)?;
        refuse_shared(directory)?;
        for part in [
            files::own_versions(directory),
            directory.join(files::VOLUMES),
        ] {
            files::make_directory(&part)?;
        }
        let numbers = files::version_numbers(&files::own_versions(directory))?;
        let id = match files::read_identity(directory)? {
            Some(id) => id,
            None if numbers.is_empty() && !files::has_records(directory)? => {
                files::create_identity(directory)?
            }
            None => return Err(damaged(&directory.join(files::IDENTITY), "is missing")),
        };
        if numbers.is_empty() {
            if files::has_records(directory)? {
                return Err(missing(directory, "has lost its keys"));
            }
            create_version(directory, id, 1)?;
        }
        Self::open(directory)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its random id, as 32 hexadecimal digits.
    pub fn id(&self) -> String {
        hex::encode(self.id)
    }

    /// Number of the version that makes new wraps: the highest.
    pub fn current_version(&self) -> u32 {
        self.versions
            .own
            .last_key_value()
            .map_or(0, |(number, _)| *number)
    }

    /// The record of a volume.
    ///
    /// # Errors
    /// When the record cannot be read or is damaged.
    pub fn record(&self, volume: VolumeId) -> Result<Option<VolumeRecord>, KeyError> {
        with_secrets(|| record::read(&self.directory, volume))
    }

    /// Path of a volume's record, for messages.
    pub fn record_path(&self, volume: VolumeId) -> PathBuf {
        record::path_of(&self.directory, volume)
    }

    /// The volumes that are remembered at a location; `path` is a path that leads there. Records
    /// that cannot be read are skipped with a line in the log.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub fn volumes_at(
        &self,
        place: Option<&DirectoryIdentity>,
        path: Option<&Path>,
    ) -> Result<Vec<RememberedVolume>, KeyError> {
        with_secrets(|| volumes_at::find(&self.directory, place, path))
    }

    /// Checks that the keystore is still in place: its directory may have been moved, or mounted
    /// over, since it was opened, and a record would then be written to another keystore or to
    /// none.
    pub(crate) fn check_identity(&self) -> Result<(), KeyError> {
        match files::read_identity(&self.directory)? {
            Some(id) if id == self.id => Ok(()),
            Some(_) => Err(missing(
                &self.directory,
                "is another one than when it was opened",
            )),
            None => Err(missing(&self.directory, "is not there any more")),
        }
    }

    /// Writes the record of a volume; atomic, and durable on return.
    ///
    /// # Errors
    /// When the keystore is no longer in place, or the operating system refuses.
    pub fn update_record(&self, volume: VolumeId, record: &VolumeRecord) -> Result<(), KeyError> {
        self.check_identity()?;
        with_secrets(|| record::write(&self.directory, volume, record))
    }

    /// Removes the record of a volume that was announced but never completed.
    ///
    /// # Errors
    /// When the keystore is no longer in place, or the operating system refuses.
    pub fn forget(&self, volume: VolumeId) -> Result<(), KeyError> {
        record::remove(&self.directory, volume)
    }

    /// Requests the right to write to a volume, whose directory is `directory`, without waiting.
    ///
    /// # Errors
    /// When the keystore is no longer in place, or the operating system refuses.
    pub fn lock_writer(
        &self,
        volume: VolumeId,
        directory: &Path,
    ) -> Result<WriterLocked, KeyError> {
        self.check_identity()?;
        writer::lock(&self.directory, volume, directory)
    }

    /// Wraps an infrastructure DEK with the current version.
    pub(crate) fn wrap_infrastructure(
        &self,
        context: &WrapContext,
        dek: &InfrastructureDek,
    ) -> Result<WrapRecord, KeyError> {
        let (version, keys) = self.current()?;
        wrap::wrap_infrastructure(&keys.infrastructure, version, context, dek)
    }

    /// Unwraps an infrastructure DEK.
    pub(crate) fn unwrap_infrastructure(
        &self,
        context: &WrapContext,
        record: &WrapRecord,
    ) -> Result<InfrastructureDek, KeyError> {
        let (version, keys) = self.version_of(record)?;
        wrap::unwrap_infrastructure(&keys.infrastructure, version, context, record)
    }

    /// Wraps the customer DEK of a platform-managed volume with the current version.
    pub(crate) fn wrap_customer(
        &self,
        context: &WrapContext,
        dek: &CustomerDek,
    ) -> Result<WrapRecord, KeyError> {
        let (version, keys) = self.current()?;
        wrap::wrap_customer_with_platform_key(&keys.customer, version, context, dek)
    }

    /// Unwraps the customer DEK of a platform-managed volume.
    pub(crate) fn unwrap_customer(
        &self,
        context: &WrapContext,
        record: &WrapRecord,
    ) -> Result<CustomerDek, KeyError> {
        let (version, keys) = self.version_of(record)?;
        wrap::unwrap_customer_with_platform_key(&keys.customer, version, context, record)
    }

    fn current(&self) -> Result<(PlatformVersion, &Version), KeyError> {
        let (number, keys) = self
            .versions
            .own
            .last_key_value()
            .ok_or_else(|| missing(&self.directory, "holds no keys"))?;
        Ok((self.named(*number), keys))
    }

    /// The version that makes new wraps.
    pub fn current_name(&self) -> PlatformVersion {
        self.named(self.current_version())
    }

    fn named(&self, version: u32) -> PlatformVersion {
        PlatformVersion {
            keystore: self.id,
            version,
        }
    }

    /// The version that a wrap names: one of this keystore's own, or of an adopted one.
    fn version_of(&self, record: &WrapRecord) -> Result<(PlatformVersion, &Version), KeyError> {
        let directory = self.directory.display();
        let Some(id) = record.provider.strip_prefix(PLATFORM_PREFIX) else {
            return Err(KeyError::new(
                ErrorKind::HeaderInvalid,
                "volume.json has a platform wrap that names no platform keystore",
            ));
        };
        let named = record.platform_version();
        if let Some(name) = named
            && let Some(keys) = self.version(name)
        {
            return Ok((name, keys));
        }
        let is_known = named.is_some_and(|name| self.numbered(name.keystore).is_some());
        if is_known || id == self.id() {
            return Err(KeyError::new(
                ErrorKind::KeystoreMissing,
                format!(
                    "volume.json names platform key version {:?}, which is not in {directory}",
                    record.key_version
                ),
            )
            .with_hint("restore the keystore from a backup that has this version"));
        }
        Err(KeyError::new(
            ErrorKind::WrongKey,
            format!(
                "volume.json names platform keystore {id:?}, and {directory} is {}",
                self.id()
            ),
        )
        .with_hint(format!(
            "name the right one (--platform-keystore DIR or {ENVIRONMENT}=DIR), or restore its \
             backup: bilayer keystore restore FILE"
        )))
    }

    /// The versions of a keystore id.
    fn numbered(&self, id: [u8; 16]) -> Option<&versions::Numbered> {
        match id == self.id {
            true => Some(&self.versions.own),
            false => self.versions.adopted.get(&id),
        }
    }

    /// True if the keystore holds the version.
    pub(crate) fn has_version(&self, name: PlatformVersion) -> bool {
        self.version(name).is_some()
    }

    fn version(&self, name: PlatformVersion) -> Option<&Version> {
        self.numbered(name.keystore)?.get(&name.version)
    }
}

impl fmt::Debug for PlatformKeystore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformKeystore")
            .field("directory", &self.directory)
            .field("id", &self.id())
            .field("versions", &self.versions.own.keys().collect::<Vec<_>>())
            .field("adopted", &self.versions.adopted.len())
            .finish()
    }
}

/// Determines the keystore's directory: the command line's option, else the environment, else the
/// default.
///
/// # Errors
/// Kind `Usage` if neither option nor environment names a directory and there is no default.
pub fn resolve(
    option: Option<&Path>,
    environment: Option<&OsStr>,
    default: Option<PathBuf>,
) -> Result<PathBuf, KeyError> {
    option
        .map(Path::to_owned)
        .or_else(|| environment.filter(|v| !v.is_empty()).map(PathBuf::from))
        .or(default)
        .ok_or_else(|| {
            KeyError::new(
                ErrorKind::Usage,
                "there is no home directory to look for the platform keystore in",
            )
            .with_hint(format!(
                "name it: --platform-keystore DIR or {ENVIRONMENT}=DIR"
            ))
        })
}

/// The default directory: the machine's directory for root, below the user's data directory for
/// others (XDG Base Directory Specification: a relative `XDG_DATA_HOME` counts as unset).
pub fn default_directory(
    root: bool,
    data_home: Option<&OsStr>,
    home: Option<&OsStr>,
) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/lib/bilayer/platform"));
    }
    let absolute = |path: &OsStr| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    data_home
        .and_then(absolute)
        .or_else(|| {
            home.and_then(absolute)
                .map(|home| home.join(".local/share"))
        })
        .map(|data| data.join("bilayer/platform"))
}

/// The default directory of this process. mount(8), which users may call, passes on no environment;
/// the home directory then comes from the user database.
pub fn default_dir() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|path| Path::new(path).is_absolute());
    let known = || home_of(real_user()).map(PathBuf::into_os_string);
    default_directory(
        effective_user() == 0,
        named("XDG_DATA_HOME").as_deref(),
        named("HOME").or_else(known).as_deref(),
    )
}

/// Refuses a keystore inside a volume, which would be lost and copied together with what it
/// protects.
fn refuse_inside_volume(directory: &Path) -> Result<(), KeyError> {
    let absolute = std::path::absolute(directory)
        .map_err(while_doing("cannot find platform keystore", directory))?;
    // A path that does not exist yet has no links to resolve.
    let existing = absolute
        .ancestors()
        .find_map(|ancestor| std::fs::canonicalize(ancestor).ok())
        .unwrap_or(absolute);
    match volume_around(&existing) {
        None => Ok(()),
        Some(volume) => Err(KeyError::new(
            ErrorKind::Usage,
            format!(
                "the platform keystore {} would be inside the volume {}",
                directory.display(),
                volume.display()
            ),
        )
        .with_hint(format!(
            "keep it elsewhere: --platform-keystore DIR or {ENVIRONMENT}=DIR"
        ))),
    }
}

/// The volume that a path without links is in: in its directory, or in its mount.
fn volume_around(path: &Path) -> Option<PathBuf> {
    let is_volume = |path: &&Path| {
        path.join("objects").is_dir()
            && (path.join("volume.json").is_file() || path.join("lock").is_file())
    };
    let mount = || {
        let location = Location::open(path).ok()?;
        let mount = MountInfo::of_id(location.info().ok()?.mount_id).ok()??;
        (mount.filesystem == FILESYSTEM_TYPE).then_some(mount.dir)
    };
    let directory = path.ancestors().find(is_volume).map(Path::to_owned);
    directory.or_else(mount)
}

/// Refuses a directory that does not belong to this user alone.
fn refuse_shared(directory: &Path) -> Result<(), KeyError> {
    let metadata = std::fs::metadata(directory)
        .map_err(while_doing("cannot read platform keystore", directory))?;
    let shown = directory.display();
    let refused = |why: String, hint: String| {
        KeyError::new(
            ErrorKind::KeystoreInvalid,
            format!("the platform keystore {shown} {why}"),
        )
        .with_hint(hint)
    };
    if !metadata.is_dir() {
        return Err(refused("is no directory".into(), "name a directory".into()));
    }
    let user = effective_user();
    if metadata.uid() != user {
        return Err(refused(
            format!("belongs to user {}, not to user {user}", metadata.uid()),
            format!("run as its owner, or: chown -R {user} {shown}"),
        ));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(refused(
            format!("is open to other users (mode {mode:04o})"),
            format!("chmod -R go-rwx {shown}"),
        ));
    }
    Ok(())
}

/// Makes a version. False if it exists.
fn create_version(directory: &Path, id: [u8; 16], number: u32) -> Result<bool, KeyError> {
    let version = Version::random(coarse_time().secs)?;
    let folder = files::own_versions(directory);
    let record = Record::new("create-platform-key")
        .with("keystore", hex::encode(id))
        .with("key_version", number);
    // In front of the key: it cannot be taken back, since another process may use it at once.
    acknowledged(record.clone(), Ok(()))?;
    let sealing = seal::Sealing::of(directory)?;
    let replace = files::Replace::Never;
    match version_file::write_version(&folder, id, number, &version, replace, &sealing) {
        Ok(true) => Ok(true),
        Ok(false) => {
            record.refused("another process has created it");
            Ok(false)
        }
        Err(error) => {
            record.refused(&error);
            Err(error)
        }
    }
}

fn missing(directory: &Path, what: &str) -> KeyError {
    KeyError::new(
        ErrorKind::KeystoreMissing,
        format!("the platform keystore {} {what}", directory.display()),
    )
    .with_hint(format!(
        "name it (--platform-keystore DIR or {ENVIRONMENT}=DIR) or restore it from a backup"
    ))
}

fn damaged(path: &Path, what: &str) -> KeyError {
    KeyError::new(
        ErrorKind::KeystoreInvalid,
        format!(
            "the platform keystore is damaged: {} {what}",
            path.display()
        ),
    )
    .with_hint("restore it from a backup")
}

/// Distinguishes a missing file from an unreadable one.
fn not_found_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod backup_tests;
