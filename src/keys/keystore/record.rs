//! What the keystore remembers of a volume: where its history stood, and which customer key opens
//! it. An older copy of the volume is told by it, and a header cannot name a key of its own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::damaged;
use super::files::{self, Replace, VOLUMES};
use crate::ids::{IncarnationId, Sequence, VolumeId};
use crate::keys::encoding::{hex_array, hex_id};
use crate::keys::error::KeyError;
use crate::keys::uri::KeyUri;

const FORMAT: &str = "bilayer-volume-record";

/// What is remembered of a volume. Written after the commit it tells of is durable, so it is never
/// ahead of the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeRecord {
    /// Which incarnation of the volume.
    pub incarnation: IncarnationId,
    /// The incarnation that an accepted restore is about to begin, or began before it was cut off.
    pub becoming: Option<IncarnationId>,
    /// Newest commit known to be durable; 0 when none is known.
    pub sequence: Sequence,
    /// Outer tags of the two slots of page 0 of `meta` at that commit.
    pub page0_tags: [[u8; 16]; 2],
    /// Newest header known to be durable.
    pub header_sequence: u64,
    /// URI of the customer key that opened it last; `None` for a platform-managed volume.
    pub customer_key: Option<String>,
    /// True when it was unmounted cleanly after that commit.
    pub clean: bool,
}

impl VolumeRecord {
    /// The record of a volume of which nothing else is known.
    pub const fn unknown(incarnation: IncarnationId) -> Self {
        Self {
            incarnation,
            becoming: None,
            sequence: Sequence(0),
            page0_tags: [[0; 16]; 2],
            header_sequence: 0,
            customer_key: None,
            clean: false,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Tag(#[serde(with = "hex_array")] [u8; 16]);

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Becoming(#[serde(with = "hex_id")] IncarnationId);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordFile {
    format: String,
    version: u32,
    #[serde(with = "hex_id")]
    volume: VolumeId,
    #[serde(with = "hex_id")]
    incarnation: IncarnationId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    becoming: Option<Becoming>,
    sequence: u64,
    page0_tags: [Tag; 2],
    header_sequence: u64,
    customer_key: Option<String>,
    clean: bool,
}

fn path_of(directory: &Path, volume: VolumeId) -> PathBuf {
    directory.join(VOLUMES).join(format!("{volume}.json"))
}

/// Reads a volume's record; `None` when there is none.
pub(super) fn read(directory: &Path, volume: VolumeId) -> Result<Option<VolumeRecord>, KeyError> {
    let path = path_of(directory, volume);
    let Some(text) = files::read_file(&path)? else {
        return Ok(None);
    };
    let file: RecordFile = serde_json::from_slice(&text)
        .map_err(|error| damaged(&path, &format!("cannot be read ({error})")))?;
    files::check_format(&path, &file.format, FORMAT, file.version)?;
    if file.volume != volume {
        return Err(damaged(&path, "is about another volume"));
    }
    if let Some(uri) = &file.customer_key {
        KeyUri::parse(uri).map_err(|_| damaged(&path, "names a key that cannot be"))?;
    }
    let [first, second] = file.page0_tags;
    Ok(Some(VolumeRecord {
        incarnation: file.incarnation,
        becoming: file.becoming.map(|id| id.0),
        sequence: Sequence(file.sequence),
        page0_tags: [first.0, second.0],
        header_sequence: file.header_sequence,
        customer_key: file.customer_key,
        clean: file.clean,
    }))
}

/// Writes a volume's record.
pub(super) fn write(
    directory: &Path,
    volume: VolumeId,
    record: &VolumeRecord,
) -> Result<(), KeyError> {
    let path = path_of(directory, volume);
    let file = RecordFile {
        format: FORMAT.to_owned(),
        version: 1,
        volume,
        incarnation: record.incarnation,
        becoming: record.becoming.map(Becoming),
        sequence: record.sequence.0,
        page0_tags: record.page0_tags.map(Tag),
        header_sequence: record.header_sequence,
        customer_key: record.customer_key.clone(),
        clean: record.clean,
    };
    let mut text = serde_json::to_vec(&file)
        .map_err(|error| damaged(&path, &format!("cannot be written ({error})")))?;
    text.push(b'\n');
    files::make_directory(&directory.join(VOLUMES))?;
    files::write_file(&path, &text, Replace::Always).map(|_| ())
}
