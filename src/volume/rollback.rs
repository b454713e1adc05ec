//! How a volume can be older than the state that the platform keystore knows.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::ids::{IncarnationId, Sequence};
use crate::keys::VolumeRecord;
use crate::sys::clock::is_set;

/// When and where the newest state existed that the keystore knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LastKnown {
    /// When the keystore's record was written: seconds since 1970.
    pub written: Option<i64>,
    /// The volume's directory at that time.
    pub directory: Option<PathBuf>,
}

impl LastKnown {
    pub(super) fn of(record: &VolumeRecord) -> Self {
        Self {
            written: record.written,
            directory: record.directory.as_ref().map(|it| it.path.clone()),
        }
    }

    /// A time without a directory.
    pub(super) fn at(written: Option<i64>) -> Self {
        Self {
            written,
            directory: None,
        }
    }
}

impl fmt::Display for LastKnown {
    /// ` (last written 2026-11-22T04:30:00Z in /srv/volume)`, or nothing where nothing is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self
            .written
            .filter(|secs| is_set(*secs))
            .and_then(|secs| Timestamp::from_second(secs).ok());
        match (time, &self.directory) {
            (None, None) => Ok(()),
            (Some(time), None) => write!(f, " (last written {time})"),
            (None, Some(path)) => write!(f, " (in {})", path.display()),
            (Some(time), Some(path)) => {
                write!(f, " (last written {time} in {})", path.display())
            }
        }
    }
}

/// How a volume is older than the state that the keystore knows.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rollback {
    /// The superblock belongs to another incarnation.
    #[error(
        "volume.json is of incarnation {found}, and this machine knows the volume as incarnation \
         {known}{last}: it is a copy from before or beside an accepted restore"
    )]
    OtherIncarnation {
        /// Of the superblock.
        found: IncarnationId,
        /// Of the record.
        known: IncarnationId,
        /// When and where the known state existed.
        last: LastKnown,
    },
    /// The superblock belongs to another incarnation, which began from a state older than the known
    /// one.
    #[error(
        "it was renewed elsewhere from commit {}, and commit {} was on disk{last}: what came in \
         between is not in it", .carried_on.0, .known.0
    )]
    RenewedFromOlder {
        /// Newest commit of the state that was carried on.
        carried_on: Sequence,
        /// Of the record.
        known: Sequence,
        /// When and where the known state existed.
        last: LastKnown,
    },
    /// The superblock names the known incarnation, but its active key set does not belong to it.
    #[error(
        "the key set that volume.json has active is not the newest that this machine knows{last}, \
         nor does that one vouch for it"
    )]
    OtherKeySet {
        /// When and where the known state existed.
        last: LastKnown,
    },
    /// The superblock is older.
    #[error(
        "volume.json is number {found}, and number {known} was on disk{last}: an older copy was \
         put back"
    )]
    OlderHeader {
        /// Of the superblock.
        found: u64,
        /// Of the record.
        known: u64,
        /// When and where the known state existed.
        last: LastKnown,
    },
    /// The metadata is older.
    #[error(
        "its metadata is of commit {}, and commit {} was on disk{last}: an older copy was put \
         back, or the newest state was damaged", .found.0, .known.0
    )]
    OlderMetadata {
        /// Newest authentic commit.
        found: Sequence,
        /// Of the record.
        known: Sequence,
        /// When and where the known state existed.
        last: LastKnown,
    },
    /// The metadata has the same commit number but another history.
    #[error(
        "its metadata is another commit {} than the one that was on disk{last}: \
         a copy that was used elsewhere was put in its place", .sequence.0
    )]
    OtherMetadata {
        /// The commit number of both.
        sequence: Sequence,
        /// When and where the known state existed.
        last: LastKnown,
    },
}

impl Rollback {
    /// What the user can do next.
    pub const HINT: &str = "if you restored a backup, take it as it is: bilayer mount \
        --accept-restored VOLUME DIR (with -o ro to look only, which changes nothing); if you did \
        not, somebody has put an older copy in its place";
}
