//! The keystore's record of a volume: the state of its history, its active key sets, and the
//! customer key that opens it. The record lets an older copy of the volume be noticed and a foreign
//! key set be refused, and it keeps a superblock from naming a customer key of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::damaged;
use super::directory::{DirectoryFile, FormerDirectory, FormerFile, RememberedDirectory};
use super::files::{self, Replace, VOLUMES};
use crate::ids::{IncarnationId, KeySetId, Sequence, VolumeId};
use crate::keys::encoding::{hex_array, hex_id};
use crate::keys::error::KeyError;
use crate::keys::uri::KeyUri;
use crate::keys::wrap::PlatformVersion;
use crate::layers::VerificationKey;

const FORMAT: &str = "bilayer-volume-record";

/// The record of a volume. It is written after the commit that it describes is durable, so it is
/// never ahead of the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeRecord {
    /// Incarnation of the volume.
    pub incarnation: IncarnationId,
    /// The incarnation that an accepted restore is about to begin, or began before it was
    /// interrupted.
    pub pending_incarnation: Option<IncarnationId>,
    /// Newest commit that is known to be durable; 0 if none is known.
    pub sequence: Sequence,
    /// Outer tags of the two slots of page 0 of `meta` at that commit.
    pub page0_tags: [[u8; 16]; 2],
    /// Newest superblock that is known to be durable.
    pub header_sequence: u64,
    /// The key sets that were active when the volume was opened here, the newest last; at most
    /// [`MAX_KEY_SETS`](Self::MAX_KEY_SETS).
    pub key_sets: Vec<KnownKeySet>,
    /// URI of the customer key that opens the volume unless another one is named: the one that it
    /// was created with, or, if that is unknown or only a public half, the first one that opened
    /// it. `None` for a platform-managed volume.
    pub customer_key: Option<String>,
    /// The versions of platform keys that the volume needs: those that its superblock, or the spare
    /// copy of it, names. `None` if an older program wrote the record.
    pub platform: Option<BTreeSet<PlatformVersion>>,
    /// True if the volume was unmounted cleanly after that commit.
    pub clean: bool,
    /// The directory that is the volume, all others being copies; `None` until the volume was
    /// written to.
    pub directory: Option<RememberedDirectory>,
    /// The directory in which it was opened, if that has been moved since.
    pub former: Option<FormerDirectory>,
    /// When a writer of the volume wrote this record: seconds since 1970.
    pub written: Option<i64>,
}

/// A key set that was active in a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownKeySet {
    /// Its id.
    pub key_set: KeySetId,
    /// Distinguishes the set from another one of the same id, and its successors from foreign sets.
    pub verification_key: VerificationKey,
}

impl VolumeRecord {
    /// Limit on the remembered key sets; older ones are forgotten.
    pub const MAX_KEY_SETS: usize = 64;

    /// Limit on the versions of platform keys that one volume needs.
    pub const MAX_PLATFORM_VERSIONS: usize = 512;

    /// Records the set as the newest active one.
    pub fn remember_key_set(&mut self, active: KnownKeySet) {
        self.key_sets.retain(|known| *known != active);
        self.key_sets.push(active);
        let surplus = self.key_sets.len().saturating_sub(Self::MAX_KEY_SETS);
        self.key_sets.drain(..surplus);
    }

    /// Records the current directory of the open volume.
    pub fn set_directory(&mut self, now: RememberedDirectory) {
        let before = self.directory.replace(now.clone());
        let left = before.filter(|before| before.path != now.path);
        if let (None, Some(directory)) = (&self.former, left) {
            let written = self.written;
            self.former = Some(FormerDirectory { directory, written });
        }
        // The volume is back in the former directory.
        self.former
            .take_if(|former| former.directory.path == now.path);
    }

    /// A record of a volume about which nothing else is known.
    pub const fn new(incarnation: IncarnationId) -> Self {
        Self {
            incarnation,
            pending_incarnation: None,
            sequence: Sequence(0),
            page0_tags: [[0; 16]; 2],
            header_sequence: 0,
            key_sets: Vec::new(),
            customer_key: None,
            platform: None,
            clean: false,
            directory: None,
            former: None,
            written: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Tag(#[serde(with = "hex_array")] [u8; 16]);

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct PendingIncarnation(#[serde(with = "hex_id")] IncarnationId);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeySetEntry {
    #[serde(with = "hex_id")]
    id: KeySetId,
    #[serde(with = "hex_array")]
    verification_key: [u8; VerificationKey::BYTES],
}

impl KeySetEntry {
    fn of(known: &KnownKeySet) -> Self {
        let mut entry = Self {
            id: known.key_set,
            verification_key: [0; VerificationKey::BYTES],
        };
        entry
            .verification_key
            .copy_from_slice(known.verification_key.expose());
        entry
    }

    fn known(&self) -> KnownKeySet {
        KnownKeySet {
            key_set: self.id,
            verification_key: VerificationKey::from_bytes(&self.verification_key),
        }
    }
}

impl Drop for KeySetEntry {
    fn drop(&mut self) {
        self.verification_key.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlatformEntry {
    #[serde(with = "hex_array")]
    keystore: [u8; 16],
    version: u32,
}

impl From<PlatformVersion> for PlatformEntry {
    fn from(name: PlatformVersion) -> Self {
        Self {
            keystore: name.keystore,
            version: name.version,
        }
    }
}

impl From<PlatformEntry> for PlatformVersion {
    fn from(entry: PlatformEntry) -> Self {
        Self {
            keystore: entry.keystore,
            version: entry.version,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordFile {
    format: String,
    version: u32,
    #[serde(with = "hex_id")]
    volume: VolumeId,
    #[serde(with = "hex_id")]
    incarnation: IncarnationId,
    #[serde(default, rename = "becoming", skip_serializing_if = "Option::is_none")]
    pending_incarnation: Option<PendingIncarnation>,
    sequence: u64,
    page0_tags: [Tag; 2],
    header_sequence: u64,
    key_sets: Vec<KeySetEntry>,
    customer_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Vec<PlatformEntry>>,
    clean: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<DirectoryFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<FormerFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written: Option<i64>,
}

pub(super) fn path_of(directory: &Path, volume: VolumeId) -> PathBuf {
    directory.join(VOLUMES).join(format!("{volume}.json"))
}

/// Reads a volume's record; `None` if there is none.
pub(super) fn read(directory: &Path, volume: VolumeId) -> Result<Option<VolumeRecord>, KeyError> {
    match read_text(directory, volume)? {
        Some(text) => parse(directory, volume, &text).map(Some),
        None => Ok(None),
    }
}

/// The text of a volume's record; `None` if there is none.
pub(super) fn read_text(
    directory: &Path,
    volume: VolumeId,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    files::read_file(&path_of(directory, volume))
}

/// Parses the text of a volume's record.
pub(super) fn parse(
    directory: &Path,
    volume: VolumeId,
    text: &[u8],
) -> Result<VolumeRecord, KeyError> {
    let path = path_of(directory, volume);
    let file: RecordFile = serde_json::from_slice(text)
        .map_err(|error| damaged(&path, &format!("cannot be read ({error})")))?;
    files::check_format(&path, &file.format, FORMAT, file.version)?;
    if file.volume != volume {
        return Err(damaged(&path, "is about another volume"));
    }
    if let Some(uri) = &file.customer_key {
        KeyUri::parse(uri).map_err(|_| damaged(&path, "names a key that cannot be"))?;
    }
    if file.key_sets.len() > VolumeRecord::MAX_KEY_SETS {
        return Err(damaged(&path, "has too many key sets"));
    }
    let bad_directory = || damaged(&path, "names a directory that cannot be");
    let directory = match file.directory {
        Some(directory) => Some(directory.read().ok_or_else(bad_directory)?),
        None => None,
    };
    let former = match file.former {
        Some(former) => Some(former.read().ok_or_else(bad_directory)?),
        None => None,
    };
    let platform = file.platform;
    if platform
        .as_ref()
        .is_some_and(|names| names.len() > VolumeRecord::MAX_PLATFORM_VERSIONS)
    {
        return Err(damaged(&path, "names too many platform keys"));
    }
    let [first, second] = file.page0_tags;
    Ok(VolumeRecord {
        incarnation: file.incarnation,
        pending_incarnation: file.pending_incarnation.map(|id| id.0),
        sequence: Sequence(file.sequence),
        page0_tags: [first.0, second.0],
        header_sequence: file.header_sequence,
        key_sets: file.key_sets.iter().map(KeySetEntry::known).collect(),
        customer_key: file.customer_key,
        platform: platform.map(|names| names.into_iter().map(Into::into).collect()),
        clean: file.clean,
        directory,
        former,
        written: file.written,
    })
}

/// Writes a volume's record.
pub(super) fn write(
    directory: &Path,
    volume: VolumeId,
    record: &VolumeRecord,
) -> Result<(), KeyError> {
    let text = to_text(directory, volume, record)?;
    files::make_directory(&directory.join(VOLUMES))?;
    files::write_file(&path_of(directory, volume), &text, Replace::Always).map(|_| ())
}

/// The text of a volume's record.
pub(super) fn to_text(
    directory: &Path,
    volume: VolumeId,
    record: &VolumeRecord,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let path = path_of(directory, volume);
    // Without the names all versions are kept.
    let platform = record.platform.as_ref();
    let platform = platform.filter(|names| names.len() <= VolumeRecord::MAX_PLATFORM_VERSIONS);
    let file = RecordFile {
        format: FORMAT.to_owned(),
        version: 1,
        volume,
        incarnation: record.incarnation,
        pending_incarnation: record.pending_incarnation.map(PendingIncarnation),
        sequence: record.sequence.0,
        page0_tags: record.page0_tags.map(Tag),
        header_sequence: record.header_sequence,
        key_sets: record.key_sets.iter().map(KeySetEntry::of).collect(),
        customer_key: record.customer_key.clone(),
        platform: platform.map(|names| names.iter().map(|name| (*name).into()).collect()),
        clean: record.clean,
        directory: record.directory.as_ref().map(Into::into),
        former: record.former.as_ref().map(Into::into),
        written: record.written,
    };
    let mut text = Zeroizing::new(
        serde_json::to_vec(&file)
            .map_err(|error| damaged(&path, &format!("cannot be written ({error})")))?,
    );
    text.push(b'\n');
    Ok(text)
}

/// Removes the record of a volume that was never completed. A missing record is no failure.
pub(super) fn remove(directory: &Path, volume: VolumeId) -> Result<(), KeyError> {
    let folder = directory.join(VOLUMES);
    for path in [
        path_of(directory, volume),
        folder.join(super::writer::name_of(volume)),
    ] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(KeyError::io("cannot remove", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}
