//! The volumes that a platform keystore has records of: where they are now, and asking their
//! daemons to re-wrap after the keystore was rotated.
//!
//! The directory in a record is where the volume was last open for writing. What its superblock
//! claims is not authenticated, so a state is information for people. A daemon proves that it holds
//! the directory, and re-wraps only if it uses the same keystore.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::ControlClient;
use super::locate::{Holder, find};
use super::request::Operation;
use super::response::{Discard, Outcome};
use crate::diagnostics::UserError;
use crate::keys::keystore::KnownVolume;
use crate::keys::wrap::PlatformVersion;
use crate::keys::{KeyError, PlatformKeystore};
use crate::store::directory::DirectoryStore;
use crate::sys::mountinfo::MountInfo;
use crate::sys::probe;
use crate::volume::{HEADER_NAME, claimed_id};

/// How long looking at one directory may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a known volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VolumeState {
    /// A daemon has it mounted.
    Mounted,
    /// A process that cannot be asked has it open.
    InUse,
    /// It is there, and no process has it open.
    Present,
    /// There is no volume in its directory.
    Absent,
    /// Another volume is in its directory.
    Replaced,
    /// Its directory does not respond.
    Silent,
    /// Its directory is not known: it was not open for writing since its record was made.
    Unknown,
}

impl VolumeState {
    /// The state as `list` shows it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mounted => "mounted",
            Self::InUse => "in use",
            Self::Present => "present",
            Self::Absent => "absent",
            Self::Replaced => "replaced by another volume",
            Self::Silent => "not responding",
            Self::Unknown => "not known",
        }
    }
}

/// A known volume and its present state.
#[derive(Debug)]
pub(crate) struct LocatedVolume {
    pub(crate) state: VolumeState,
    /// Where it is mounted, as far as this process sees.
    pub(crate) mounts: Vec<PathBuf>,
    daemon: Option<ControlClient>,
}

impl LocatedVolume {
    const fn new(state: VolumeState) -> Self {
        Self {
            state,
            mounts: Vec::new(),
            daemon: None,
        }
    }
}

/// The directory in the record of a volume.
pub(crate) fn directory_of(known: &KnownVolume) -> Option<&Path> {
    let record = known.record.as_ref().ok()?;
    Some(&record.directory.as_ref()?.path)
}

/// Looks for a volume in the directory that its record names.
pub(crate) fn locate(known: &KnownVolume) -> LocatedVolume {
    let Some(directory) = directory_of(known) else {
        return LocatedVolume::new(VolumeState::Unknown);
    };
    if !probe::responds(directory, HEADER_NAME, PATIENCE) {
        return LocatedVolume::new(VolumeState::Silent);
    }
    let store = DirectoryStore::open(directory).ok();
    match store.and_then(|store| claimed_id(&store)) {
        None => return LocatedVolume::new(VolumeState::Absent),
        Some(claimed) if claimed != known.volume => {
            return LocatedVolume::new(VolumeState::Replaced);
        }
        Some(_) => {}
    }
    let Ok(located) = find(directory) else {
        return LocatedVolume::new(VolumeState::InUse);
    };
    match located.holder {
        Holder::Daemon { control, mount } => {
            let mounts = mount.map(|device| MountInfo::on_device(device).unwrap_or_default());
            LocatedVolume {
                state: VolumeState::Mounted,
                mounts: mounts
                    .into_iter()
                    .flatten()
                    .map(|mount| mount.dir)
                    .collect(),
                daemon: Some(control),
            }
        }
        Holder::Mount(_) | Holder::Unknown(_) => LocatedVolume::new(VolumeState::InUse),
        Holder::Nobody => {
            let locked = located
                .directory
                .is_some_and(|dir| matches!(dir.is_locked(), Ok(true)));
            LocatedVolume::new(match locked {
                true => VolumeState::InUse,
                false => VolumeState::Present,
            })
        }
    }
}

/// A known volume after a rotation.
#[derive(Debug)]
pub(crate) struct RotatedVolume {
    /// Its id.
    pub(crate) volume: String,
    /// Its directory, if known.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) state: VolumeState,
    /// The outcome of asking its daemon; `None` if no daemon has it mounted for writing.
    pub(crate) rewrapped: Option<Result<(), UserError>>,
}

/// Asks the daemons of all known volumes that are mounted to re-wrap with the current version.
///
/// # Errors
/// The records cannot be listed.
pub(crate) fn rewrap_mounted(keystore: &PlatformKeystore) -> Result<Vec<RotatedVolume>, KeyError> {
    let known = keystore.volumes()?.into_iter().map(|known| {
        let located = locate(&known);
        let state = located.state;
        let rewrapped = located
            .daemon
            .and_then(|daemon| ask_to_rewrap(daemon, keystore.current_name()));
        RotatedVolume {
            volume: known.volume.to_string(),
            directory: directory_of(&known).map(Path::to_owned),
            state,
            rewrapped,
        }
    });
    Ok(known.collect())
}

/// The daemon's answer; `None` if it has the volume mounted read-only.
fn ask_to_rewrap(
    mut daemon: ControlClient,
    version: PlatformVersion,
) -> Option<Result<(), UserError>> {
    let operation = Operation::RewrapPlatform {
        keystore: hex::encode(version.keystore),
        version: version.version,
    };
    match daemon.perform(&operation, None, &mut Discard) {
        Ok(Outcome::ReadOnly) => None,
        outcome => Some(outcome.map(|_| ())),
    }
}
