//! Restores a backup: merges it with what is in the keystore's directory.
//!
//! - Without a keystore there, the backup's keystore is made, with its id.
//! - Versions of an id are united. A version that is there stays, unless its file is damaged. Two
//!   versions of one keystore and number with different keys cannot be merged: the same keystore
//!   was rotated on two machines. Then nothing is restored.
//! - Versions of another keystore's id are adopted ([`super::versions`]).
//! - A record that is not there is added. Of a record that is there, each mark that protects
//!   against older copies stays at the newer of the two. Records of volumes that are open for
//!   writing stay as they are. The directories in added records count only if the backup was made
//!   of this very keystore directory on this machine.
//!
//! Order of writes: versions, the highest first, so that no version that is missing can be made
//! anew; records; and at last the id of a new keystore, without which nothing uses it. Whoever is
//! interrupted restores again.

use std::path::Path;

use super::backup::{self, BackupBody, BackupVersion, Origin};
use super::files::{self, Replace};
use super::lock::KeystoreLock;
use super::seal::Sealing;
use super::version::Version;
use super::versions::{MAX_ADOPTED, MAX_VERSIONS};
use super::writer::{self, WriterLocked};
use super::{
    PlatformKeystore, VolumeRecord, record, refuse_inside_volume, refuse_shared, version_file,
};
use crate::audit::Record;
use crate::ids::VolumeId;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::wrap::PlatformVersion;
use crate::sys::clock::coarse_time;
use crate::sys::wipe::with_secrets;

/// What restoring a backup did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RestoreSummary {
    /// Id of the keystore in the backup.
    pub keystore: String,
    /// When the backup was made: seconds since 1970.
    pub made: i64,
    /// There was no keystore before.
    pub is_new: bool,
    /// There was a keystore with another id, which has adopted these versions.
    pub is_adopted: bool,
    /// Versions that were added.
    pub versions_added: usize,
    /// Versions that were there, but damaged.
    pub versions_repaired: usize,
    /// Records of volumes that were added.
    pub records_added: usize,
    /// Records that were brought up to date.
    pub records_updated: usize,
}

impl PlatformKeystore {
    /// Restores a backup into a directory, which is created if missing, and merges it with the
    /// keystore there.
    ///
    /// # Errors
    /// Kind `WrongKey` for a wrong passphrase, `Tampered` for a damaged backup, `KeystoreInvalid`
    /// if the two cannot be merged, and failures of the operating system. Only in the last case
    /// something may have been restored already, and doing it again restores the rest.
    pub fn restore(
        directory: &Path,
        file: &Path,
        passphrase: &PassphraseSource,
    ) -> Result<RestoreSummary, KeyError> {
        let restored = restore(directory, file, passphrase);
        let mut audited =
            Record::new("restore-keystore").with("file", file.to_string_lossy().into_owned());
        if let Ok(summary) = &restored {
            audited = audited
                .with("keystore", summary.keystore.clone())
                .with("adopted", summary.is_adopted)
                .with("versions_added", summary.versions_added)
                .with("records_added", summary.records_added)
                .with("records_updated", summary.records_updated);
        }
        audited.outcome(&restored);
        restored
    }
}

fn restore(
    directory: &Path,
    file: &Path,
    passphrase: &PassphraseSource,
) -> Result<RestoreSummary, KeyError> {
    refuse_inside_volume(directory)?;
    if directory.exists() {
        refuse_shared(directory)?;
    }
    let opened = backup::open(file, passphrase)?;
    files::make_directory(directory)?;
    refuse_shared(directory)?;
    let _lock = KeystoreLock::take(directory)?;
    let mut summary = RestoreSummary {
        keystore: hex::encode(opened.keystore),
        made: opened.created,
        ..RestoreSummary::default()
    };
    with_secrets(|| {
        let found = files::read_identity(directory).map_err(|error| {
            let path = directory.join(files::IDENTITY);
            error.with_hint(format!("move {} away, then restore again", path.display()))
        })?;
        summary.is_new = found.is_none();
        let id = found.unwrap_or(opened.keystore);
        summary.is_adopted = id != opened.keystore;
        merge_versions(directory, id, &opened.body, &mut summary)?;
        merge_records(directory, &opened.body, &mut summary)?;
        if summary.is_new {
            files::write_identity(directory, id)?;
        }
        // Whatever else is wrong with the keystore is reported now.
        PlatformKeystore::open(directory).map(|_| ())
    })?;
    Ok(summary)
}

/// What is to be done with a version.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Keep,
    Add,
    Repair,
}

fn folder_of(directory: &Path, own: [u8; 16], name: PlatformVersion) -> std::path::PathBuf {
    match name.keystore == own {
        true => files::own_versions(directory),
        false => files::adopted_versions(directory, name.keystore),
    }
}

fn merge_versions(
    directory: &Path,
    own: [u8; 16],
    body: &BackupBody,
    summary: &mut RestoreSummary,
) -> Result<(), KeyError> {
    let sealing = Sealing::of(directory)?;
    let mut steps = Vec::with_capacity(body.versions.len());
    // Nothing is written before everything has been compared.
    for version in &body.versions {
        steps.push((step_for(directory, own, version, &sealing)?, version));
    }
    refuse_too_many(directory, own, body)?;
    for folder in [
        files::own_versions(directory),
        directory.join(files::VOLUMES),
    ] {
        files::make_directory(&folder)?;
    }
    steps.sort_by_key(|(_, version)| std::cmp::Reverse(version.name.version));
    for (step, version) in steps {
        let name = version.name;
        let replace = match step {
            Step::Keep => continue,
            Step::Add => Replace::Never,
            Step::Repair => Replace::Always,
        };
        let folder = folder_of(directory, own, name);
        files::make_directory(&folder)?;
        let restored = Version {
            restored: Some(coarse_time().secs),
            ..version.keys.try_clone()?
        };
        if version.is_exported && name.keystore == own {
            files::mark_exported(directory, name.version)?;
        }
        if step == Step::Repair {
            files::keep_replaced(&folder, name.version)?;
        }
        version_file::write_version(
            &folder,
            name.keystore,
            name.version,
            &restored,
            replace,
            &sealing,
        )?;
        match step {
            Step::Repair => summary.versions_repaired += 1,
            _ => summary.versions_added += 1,
        }
        Record::new("restore-platform-key")
            .with("keystore", hex::encode(name.keystore))
            .with("key_version", name.version)
            .done();
    }
    Ok(())
}

fn step_for(
    directory: &Path,
    own: [u8; 16],
    version: &BackupVersion,
    sealing: &Sealing,
) -> Result<Step, KeyError> {
    let name = version.name;
    let folder = folder_of(directory, own, name);
    match version_file::read_version(&folder, name.keystore, name.version, sealing) {
        Ok(None) => Ok(Step::Add),
        Ok(Some(there)) if there.has_same_keys(&version.keys) => Ok(Step::Keep),
        Ok(Some(_)) => Err(KeyError::new(
            ErrorKind::KeystoreInvalid,
            format!(
                "platform key version {name} has other keys in {} than in the backup: that \
                 keystore was rotated on two machines",
                directory.display()
            ),
        )
        .with_hint("restore it into a directory of its own: --platform-keystore DIR")),
        Err(error) if error.kind() == ErrorKind::KeystoreInvalid => Ok(Step::Repair),
        Err(error) => Err(error),
    }
}

fn refuse_too_many(directory: &Path, own: [u8; 16], body: &BackupBody) -> Result<(), KeyError> {
    let mut adopted = files::adopted_keystores(directory)?;
    adopted.extend(body.versions.iter().map(|version| version.name.keystore));
    adopted.retain(|id| *id != own);
    adopted.sort_unstable();
    adopted.dedup();
    let too_many = |what: &str| {
        let message = format!("{} would hold too many {what}", directory.display());
        KeyError::new(ErrorKind::KeystoreInvalid, message)
            .with_hint("restore it into a directory of its own: --platform-keystore DIR")
    };
    if adopted.len() > MAX_ADOPTED {
        return Err(too_many("adopted keystores"));
    }
    for id in adopted.into_iter().chain([own]) {
        let folder = folder_of(
            directory,
            own,
            PlatformVersion {
                keystore: id,
                version: 0,
            },
        );
        let mut numbers = files::version_numbers(&folder)?;
        let more = body
            .versions
            .iter()
            .filter(|version| version.name.keystore == id);
        numbers.extend(more.map(|version| version.name.version));
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() > MAX_VERSIONS {
            return Err(too_many("versions"));
        }
    }
    Ok(())
}

fn merge_records(
    directory: &Path,
    body: &BackupBody,
    summary: &mut RestoreSummary,
) -> Result<(), KeyError> {
    let is_same_place = body.origin.is_same(&Origin::of(directory));
    for (volume, restored) in &body.records {
        // A process that has the volume open for writing knows better.
        let WriterLocked::Own(_writer) = writer::lock(directory, *volume, directory)? else {
            continue;
        };
        let there = match record::read(directory, *volume) {
            // Whatever it protected against is lost with it.
            Err(error) if error.kind() == ErrorKind::KeystoreInvalid => None,
            read => read?,
        };
        match there {
            None => {
                let mut added = restored.clone();
                if !is_same_place {
                    // A path of another machine.
                    (added.directory, added.former) = (None, None);
                }
                record::write(directory, *volume, &added)?;
                summary.records_added += 1;
            }
            Some(there) => {
                let merged = merge(&there, restored);
                if merged != there {
                    record::write(directory, *volume, &merged)?;
                    summary.records_updated += 1;
                }
            }
        }
        audit_record(*volume);
    }
    Ok(())
}

fn audit_record(volume: VolumeId) {
    Record::new("restore-volume-record").volume(volume).done();
}

/// The record that knows at least what each of the two knows. What is there stays where the two
/// cannot be compared: in another incarnation.
fn merge(there: &VolumeRecord, restored: &VolumeRecord) -> VolumeRecord {
    let mut merged = there.clone();
    // All versions that either needs.
    merged.platform = match (&there.platform, &restored.platform) {
        (Some(one), Some(other)) => Some(one | other),
        _ => None,
    };
    if there.customer_key.is_none() {
        merged.customer_key.clone_from(&restored.customer_key);
    }
    if there.incarnation != restored.incarnation {
        return merged;
    }
    if restored.sequence > there.sequence {
        merged.sequence = restored.sequence;
        merged.page0_tags = restored.page0_tags;
        merged.clean = restored.clean;
    }
    merged.header_sequence = there.header_sequence.max(restored.header_sequence);
    // The newest last: those of the newer record follow the others.
    let (older, newer) = match restored.header_sequence > there.header_sequence {
        true => (there, restored),
        false => (restored, there),
    };
    merged.key_sets.clone_from(&older.key_sets);
    for known in &newer.key_sets {
        merged.remember_key_set(known.clone());
    }
    merged
}
