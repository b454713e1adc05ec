//! The report of a volume that `bilayer status` and `bilayer inspect` show. No field is secret.
//!
//! The JSON is one object with stable names; a name that has no value is null.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::request::Kind;
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::Filesystem;
use crate::fs::snapshots::ViewInfo;
use crate::fs::types::Timespec;
use crate::keys::VolumeRecord;
use crate::keys::wrap::WrapRecord;
use crate::layers;
use crate::store::directory::DirectoryStore;
use crate::sys::clock;
use crate::volume::header::{HeaderContents, KeySetState};
use crate::volume::slot::Slot;
use crate::volume::{self, Volume};

/// The report of a volume. No field is secret.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The volume's state, in the words of [`crate::control::health`].
    #[serde(default)]
    pub(crate) health: String,
    /// The command that repairs this state, if there is one.
    #[serde(default)]
    pub(crate) next: Option<String>,
    /// The volume's directory.
    #[serde(serialize_with = "as_text")]
    pub(crate) volume: PathBuf,
    /// The superblock was authenticated with the volume's keys.
    pub(crate) verified: bool,
    /// Why the superblock was not authenticated.
    pub(crate) not_verified_because: Option<String>,
    /// The snapshot or image that was named.
    pub(crate) view: Option<ViewReport>,
    /// Its mounts in this mount namespace.
    pub(crate) mounts: Vec<MountReport>,
    /// Processes in other mount namespaces that keep it mounted, if it is not mounted here.
    #[serde(default)]
    pub(crate) held_by: Vec<u32>,
    /// The process that has it mounted.
    pub(crate) daemon: Option<DaemonReport>,
    /// The directory of the volume that this is a copy of, or may be.
    #[serde(serialize_with = "as_text_if_any")]
    pub(crate) copy_of: Option<PathBuf>,
    /// The contents of the superblock.
    pub(crate) header: HeaderReport,
    /// The fingerprint of the customer DEK; needs the keys.
    pub(crate) fingerprint: Option<String>,
    /// How the daemon's last look at the customer key went; `None` if it does not look.
    pub(crate) key_check: Option<KeyCheckReport>,
    /// The platform keystore that was used or looked at.
    #[serde(serialize_with = "as_text_if_any")]
    pub(crate) platform_keystore: Option<PathBuf>,
    /// The keystore's record of the volume.
    pub(crate) record: Option<RecordReport>,
    /// The implementations of both layers in this program, the inner one first.
    pub(crate) layers: Vec<LayerReport>,
    /// The filesystem's counters; only while it is mounted.
    pub(crate) usage: Option<serde_json::Value>,
    /// How many snapshots there are; needs the keys.
    pub(crate) snapshots: Option<usize>,
    /// How many images there are; needs the keys.
    pub(crate) images: Option<usize>,
}

/// A snapshot or an image, as `--json` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ViewReport {
    /// Snapshot or image.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: String,
    /// When it was created, in UTC.
    pub(crate) created: Option<Timestamp>,
    /// The generation that it shows.
    pub(crate) generation: Option<u64>,
    /// Bytes of sealed pages that only this view refers to: deleting it frees them.
    pub(crate) used_bytes: Option<u64>,
    /// Bytes of sealed pages that it refers to.
    pub(crate) refers_bytes: Option<u64>,
    /// Inodes in it.
    pub(crate) inodes: Option<u64>,
    /// The snapshot that an image was made from; `None` for the live view.
    pub(crate) from: Option<String>,
    /// Its description.
    pub(crate) description: String,
}

impl From<ViewInfo> for ViewReport {
    fn from(view: ViewInfo) -> Self {
        Self {
            kind: view.kind.into(),
            name: view.name,
            created: timestamp(view.created),
            generation: Some(view.generation),
            used_bytes: Some(view.used_bytes),
            refers_bytes: Some(view.refers_bytes),
            inodes: Some(view.inodes),
            from: Some(view.from).filter(|from| !from.is_empty()),
            description: view.description,
        }
    }
}

fn timestamp(time: Timespec) -> Option<Timestamp> {
    let nanos = i32::try_from(time.nanos).ok()?;
    Timestamp::new(time.secs, nanos).ok()
}

/// JSON has no bytes: parts of a path that are not UTF-8 become U+FFFD.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn as_text_if_any<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => as_text(path, to),
        None => to.serialize_none(),
    }
}

/// A place where the volume is mounted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MountReport {
    /// The mount point.
    #[serde(serialize_with = "as_text")]
    pub(crate) dir: PathBuf,
    /// The mount has the option `ro`.
    pub(crate) read_only: bool,
    /// The options of the mount and of its filesystem, as in `/proc/self/mountinfo`.
    pub(crate) options: String,
}

/// The daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DaemonReport {
    /// Its process id.
    pub(crate) pid: u32,
    /// The version of its program.
    pub(crate) version: String,
    /// It opened the volume read-only.
    pub(crate) read_only: bool,
}

/// The contents of the superblock.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HeaderReport {
    /// The format version.
    pub(crate) format: u32,
    /// Names of the features that the volume uses.
    pub(crate) features: Vec<String>,
    /// The volume's id, in hexadecimal digits.
    pub(crate) volume_id: String,
    /// The id of the incarnation, in hexadecimal digits.
    pub(crate) incarnation: String,
    /// The superblock's sequence number.
    pub(crate) sequence: u64,
    /// Whether a customer key or the platform wraps the customer DEK.
    pub(crate) key_mode: String,
    /// The slots with customer keys.
    pub(crate) slots: Vec<SlotReport>,
    /// All key sets.
    pub(crate) key_sets: Vec<KeySetReport>,
    /// What the volume was made from: `VOLUME-ID/IMAGE`, or `VOLUME-ID` for a copy that was given a
    /// new identity.
    pub(crate) provenance: Option<String>,
    /// The contents came from another machine or key holder.
    pub(crate) foreign: bool,
}

/// A key set and who can unwrap it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeySetReport {
    /// The key set's id, in hexadecimal digits.
    pub(crate) id: String,
    /// Its number within the volume.
    pub(crate) epoch: u32,
    /// New data is sealed under it.
    pub(crate) active: bool,
    /// The wraps of its customer DEK.
    pub(crate) customer: Vec<WrapReport>,
    /// The wraps of its infrastructure DEK.
    pub(crate) infrastructure: Vec<WrapReport>,
}

/// How the daemon's last look at the customer key went.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeyCheckReport {
    /// The key's URI.
    pub(crate) uri: String,
    /// When it was: RFC 3339, UTC.
    pub(crate) checked: Option<String>,
    /// Why it failed; `None` if it did not.
    pub(crate) error: Option<String>,
}

/// A slot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SlotReport {
    /// Its number.
    pub(crate) number: u8,
    /// `customer` or `recovery`.
    pub(crate) kind: String,
    /// A name for people.
    pub(crate) label: Option<String>,
    /// When it was added: RFC 3339, UTC.
    pub(crate) added: Option<String>,
    /// The URI by which its key was named.
    pub(crate) provider: String,
    /// Its keys, the newest first; two while it is being rotated.
    pub(crate) keys: Vec<SlotKeyReport>,
}

/// A key of a slot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SlotKeyReport {
    /// The provider's name of its version.
    pub(crate) version: Option<String>,
    /// SHA-256 of the public key.
    pub(crate) fingerprint: Option<String>,
    /// Size in bits.
    pub(crate) bits: Option<usize>,
    /// The wrapping algorithm.
    pub(crate) algorithm: String,
    /// When it was added: RFC 3339, UTC.
    pub(crate) added: Option<String>,
}

/// A wrapped key, without the ciphertext.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WrapReport {
    /// The kind of the key holder.
    pub(crate) provider: String,
    /// The version of the wrapping key.
    pub(crate) key_version: String,
    /// The wrapping algorithm.
    pub(crate) algorithm: String,
}

/// The keystore's record of the volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RecordReport {
    /// The id of the last known incarnation.
    pub(crate) incarnation: String,
    /// The sequence number of the last known commit.
    pub(crate) commit_sequence: u64,
    /// The sequence number of the last known superblock.
    pub(crate) header_sequence: u64,
    /// The URI of the customer key.
    pub(crate) customer_key: Option<String>,
    /// The volume was closed cleanly.
    pub(crate) clean: bool,
    /// The directory that is the volume.
    #[serde(serialize_with = "as_text_if_any")]
    pub(crate) directory: Option<PathBuf>,
    /// When a process that may write to the volume last wrote the record: RFC 3339, UTC.
    pub(crate) written: Option<String>,
}

/// One layer of encryption.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LayerReport {
    /// The layer's name.
    pub(crate) layer: String,
    /// Its algorithm.
    pub(crate) algorithm: String,
    /// The library that implements it.
    pub(crate) implementation: String,
    /// Whether the processor's own instructions are used; `None` if that is not known.
    pub(crate) accelerated: Option<bool>,
}

fn wrap_report(wrap: &WrapRecord) -> WrapReport {
    WrapReport {
        provider: wrap.provider.clone(),
        key_version: wrap.key_version.clone(),
        algorithm: wrap.algorithm.clone(),
    }
}

fn slot_report(slot: &Slot) -> SlotReport {
    let keys = slot.keys.iter().map(|key| {
        let version = key.to_version().ok();
        SlotKeyReport {
            version: key.version.clone(),
            fingerprint: version
                .as_ref()
                .map(|version| version.key.fingerprint().to_owned()),
            bits: version.map(|version| version.key.bits()),
            algorithm: key.algorithm.name().to_owned(),
            added: utc(key.added),
        }
    });
    SlotReport {
        number: slot.number.0,
        kind: slot.kind.name().to_owned(),
        label: slot.label.clone(),
        added: utc(slot.added),
        provider: slot.provider.clone(),
        keys: keys.collect(),
    }
}

fn header_report(header: &HeaderContents) -> HeaderReport {
    let key_sets = header.key_sets().iter().map(|set| KeySetReport {
        id: set.id.to_string(),
        epoch: set.epoch.0,
        active: set.state == KeySetState::Active,
        customer: set.customer.iter().map(wrap_report).collect(),
        infrastructure: set.infrastructure.iter().map(wrap_report).collect(),
    });
    HeaderReport {
        format: header.format(),
        features: header.features().to_vec(),
        volume_id: header.volume_id().to_string(),
        incarnation: header.incarnation().to_string(),
        sequence: header.header_sequence(),
        key_mode: header.key_mode().name().to_owned(),
        slots: header.slots().iter().map(slot_report).collect(),
        key_sets: key_sets.collect(),
        provenance: header.provenance().map(|from| match from.image.as_str() {
            "" => from.volume.to_string(),
            image => format!("{}/{image}", from.volume),
        }),
        foreign: header.is_foreign(),
    }
}

pub(crate) fn record_report(record: &VolumeRecord) -> RecordReport {
    RecordReport {
        incarnation: record.incarnation.to_string(),
        commit_sequence: record.sequence.0,
        header_sequence: record.header_sequence,
        customer_key: record.customer_key.clone(),
        clean: record.clean,
        directory: record.directory.as_ref().map(|known| known.path.clone()),
        written: record.written.and_then(utc),
    }
}

/// RFC 3339, in UTC; `None` if the clock was not set at that time.
pub(crate) fn utc(secs: i64) -> Option<String> {
    let time = Timestamp::from_second(secs).ok();
    let time = time.filter(|_| clock::is_set(secs));
    time.map(|time| time.to_string())
}

fn layer_reports() -> Vec<LayerReport> {
    let reports = layers::implementations()
        .into_iter()
        .map(|layer| LayerReport {
            layer: layer.layer.to_string(),
            algorithm: layer.algorithm.to_owned(),
            implementation: layer.implementation.to_owned(),
            accelerated: layer.accelerated,
        });
    reports.collect()
}

/// The report of an open volume.
pub(crate) fn report_open(path: &Path, volume: &Volume) -> Report {
    Report {
        volume: path.to_path_buf(),
        verified: true,
        copy_of: volume.copy_status().original().map(Path::to_path_buf),
        header: header_report(&volume.header()),
        fingerprint: volume.fingerprint().ok(),
        platform_keystore: Some(volume.keystore().directory().to_path_buf()),
        record: record_of(volume),
        layers: layer_reports(),
        ..Report::default()
    }
}

fn record_of(volume: &Volume) -> Option<RecordReport> {
    let record = volume.keystore().record(volume.header().volume_id());
    record.ok().flatten().as_ref().map(record_report)
}

/// Adds the fields that only the daemon of a mount knows.
pub(crate) fn report_mounted(
    mut report: Report,
    read_only: bool,
    filesystem: &Filesystem,
) -> Report {
    report.daemon = Some(DaemonReport {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        read_only,
    });
    report.usage = serde_json::to_value(filesystem.usage()).ok();
    if let Some(serde_json::Value::Object(usage)) = &mut report.usage {
        let bytes = filesystem.checkpoint_bytes();
        usage.insert("checkpoint_bytes".to_owned(), bytes.into());
    }
    // A re-wrap changes the superblock.
    report.header = header_report(&filesystem.volume().header());
    report.record = record_of(filesystem.volume());
    // Its slots and wraps may have changed since the mount.
    report.header = header_report(&filesystem.volume().header());
    report
}

/// The report of an unopened volume: the superblock's unverified claims.
///
/// # Errors
/// There is no superblock, or it cannot be read.
pub(crate) fn report_claims(path: &Path, store: &DirectoryStore) -> Result<Report, UserError> {
    let header = volume::inspect(store).map_err(|error| {
        UserError::volume(format_args!("cannot read {}", path.display()), &error)
    })?;
    Ok(Report {
        volume: path.to_path_buf(),
        header: header_report(header.claims()),
        layers: layer_reports(),
        ..Report::default()
    })
}

/// The report as JSON on one line.
///
/// # Errors
/// The report cannot be serialized.
pub(crate) fn to_json(report: &Report) -> Result<String, UserError> {
    serde_json::to_string(report)
        .map_err(|error| UserError::new(ExitCode::System, format!("cannot write JSON: {error}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with control characters, which must not reach a terminal.
    pub(crate) fn odd_report() -> Report {
        Report {
            volume: "/srv/vol\x1b[1m".into(),
            not_verified_because: Some("no\nkey".to_owned()),
            header: HeaderReport {
                key_mode: "platform-managed".to_owned(),
                key_sets: vec![KeySetReport {
                    customer: vec![WrapReport::default()],
                    ..KeySetReport::default()
                }],
                ..HeaderReport::default()
            },
            layers: layer_reports(),
            usage: Some(serde_json::json!({"files": 3, "latched": null})),
            ..Report::default()
        }
    }

    #[test]
    fn a_report_survives_a_round_trip_through_json() {
        let report = odd_report();
        let json = to_json(&report).unwrap();
        assert!(!json.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert_eq!(report.layers.len(), 2);
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(utc(1_795_321_800).unwrap(), "2026-11-22T04:30:00Z");
        // A clock that was never set.
        assert_eq!(utc(90), None);
    }
}
