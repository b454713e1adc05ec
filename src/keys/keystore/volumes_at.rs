//! Finds the volumes that are remembered at one location.
//!
//! There is a file per volume and no index of locations, so all records are examined. A record is
//! parsed only if its text contains the path; thousands of records take some ten milliseconds.

use std::path::Path;

use super::directory::{RememberedDirectory, digits_of};
use super::{files, record};
use crate::ids::VolumeId;
use crate::keys::error::KeyError;
use crate::store::DirectoryIdentity;

/// A volume that is remembered at a location.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RememberedVolume {
    /// Its id.
    pub volume: VolumeId,
    /// The directory in its record: its current one, or the one it was opened in.
    pub directory: RememberedDirectory,
    /// When the volume was last written there: seconds since 1970.
    pub written: Option<i64>,
}

/// The volumes whose record contains the location, or a path that leads there.
pub(super) fn find(
    keystore: &Path,
    place: Option<&DirectoryIdentity>,
    path: Option<&Path>,
) -> Result<Vec<RememberedVolume>, KeyError> {
    let paths = [
        path,
        place.map(|place| place.path.as_path()),
        place.and_then(|place| place.inside.as_deref()),
    ];
    let digits: Vec<String> = paths.into_iter().flatten().map(digits_of).collect();
    if digits.is_empty() {
        return Ok(Vec::new());
    }
    let is_here = |directory: &RememberedDirectory| {
        path.is_some_and(|path| directory.path == path)
            || place.is_some_and(|place| directory.names(place))
    };
    let mut volumes = Vec::new();
    for volume in files::remembered_volumes(keystore)? {
        match directories_of(keystore, volume, &digits) {
            Ok(directories) => {
                let here = directories.into_iter().flatten();
                let mut here = here.filter(|(directory, _)| is_here(directory));
                volumes.extend(here.next().map(|(directory, written)| RememberedVolume {
                    volume,
                    directory,
                    written,
                }));
            }
            Err(error) => {
                tracing::warn!(%volume, %error, "a record of another volume cannot be read");
            }
        }
    }
    Ok(volumes)
}

type Remembered = (RememberedDirectory, Option<i64>);

/// The volume's directory and the one it was opened in, if the record's text contains any of these
/// digits.
fn directories_of(
    keystore: &Path,
    volume: VolumeId,
    digits: &[String],
) -> Result<[Option<Remembered>; 2], KeyError> {
    let Some(text) = record::read_text(keystore, volume)? else {
        return Ok([None, None]);
    };
    let has_one = std::str::from_utf8(&text)
        .is_ok_and(|text| digits.iter().any(|digits| text.contains(digits.as_str())));
    if !has_one {
        return Ok([None, None]);
    }
    let record = record::parse(keystore, volume, &text)?;
    let written = record.written;
    Ok([
        record.directory.map(|directory| (directory, written)),
        record
            .former
            .map(|former| (former.directory, former.written)),
    ])
}
