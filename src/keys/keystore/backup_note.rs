//! The keystore's note of its last backup: `backup.json`. It says when the backup was made and
//! which version was current, so that `keystore status` can say whether another one is needed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{self, Replace};
use super::{PlatformKeystore, damaged};
use crate::keys::encoding::hex_array;
use crate::keys::error::KeyError;
use crate::keys::wrap::PlatformVersion;

const NAME: &str = "backup.json";
const FORMAT: &str = "bilayer-keystore-backup-note";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoteFile {
    format: String,
    version: u32,
    made: i64,
    current: NotedVersion,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotedVersion {
    #[serde(with = "hex_array")]
    keystore: [u8; 16],
    number: u32,
}

/// The last backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupNote {
    /// When it was made: seconds since 1970.
    pub made: i64,
    current: PlatformVersion,
}

impl BackupNote {
    pub(super) const fn new(made: i64, current: PlatformVersion) -> Self {
        Self { made, current }
    }

    /// True if the backup has all versions of the keystore.
    pub fn is_complete(&self, keystore: &PlatformKeystore) -> bool {
        let is_later = |time: Option<i64>| time.is_some_and(|time| time > self.made);
        let mut versions = keystore.versions.names(keystore.id);
        self.current == keystore.current_name()
            && !versions.any(|(_, version)| is_later(version.created) || is_later(version.restored))
    }

    pub(super) fn write(&self, directory: &Path) -> Result<(), KeyError> {
        let path = directory.join(NAME);
        let file = NoteFile {
            format: FORMAT.to_owned(),
            version: 1,
            made: self.made,
            current: NotedVersion {
                keystore: self.current.keystore,
                number: self.current.version,
            },
        };
        let text = serde_json::to_vec(&file)
            .map_err(|error| damaged(&path, &format!("cannot be written ({error})")))?;
        files::write_file(&path, &text, Replace::Always).map(|_| ())
    }
}

impl PlatformKeystore {
    /// The note of the last backup; `None` if none was made here.
    ///
    /// # Errors
    /// The note cannot be read.
    pub fn last_backup(&self) -> Result<Option<BackupNote>, KeyError> {
        let path = self.directory.join(NAME);
        let Some(text) = files::read_file(&path)? else {
            return Ok(None);
        };
        let file: NoteFile = serde_json::from_slice(&text)
            .map_err(|error| damaged(&path, &format!("cannot be read ({error})")))?;
        files::check_format(&path, &file.format, FORMAT, file.version)?;
        Ok(Some(BackupNote {
            made: file.made,
            current: PlatformVersion {
                keystore: file.current.keystore,
                version: file.current.number,
            },
        }))
    }
}
