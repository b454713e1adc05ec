//! What is known of a volume, as `bilayer status` and `bilayer inspect` show it. No field is secret.
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
use crate::volume::{self, Volume};

/// Everything that is shown of a volume. No field is secret.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Its state, in the words of [`crate::control::health`].
    #[serde(default)]
    pub health: String,
    /// The command to type next, where there is something to do.
    #[serde(default)]
    pub next: Option<String>,
    /// The volume's directory.
    #[serde(serialize_with = "as_text")]
    pub volume: PathBuf,
    /// The superblock was authenticated with the volume's keys.
    pub verified: bool,
    /// Why it was not.
    pub not_verified_because: Option<String>,
    /// The snapshot or image that was asked for.
    pub view: Option<ViewReport>,
    /// Where it is mounted.
    pub mounts: Vec<MountReport>,
    /// Processes in other mount namespaces that keep it mounted, where it is not mounted here.
    #[serde(default)]
    pub held_by: Vec<u32>,
    /// The process that has it mounted.
    pub daemon: Option<DaemonReport>,
    /// The directory of the volume that this is a copy of, or may be.
    #[serde(serialize_with = "as_text_if_any")]
    pub copy_of: Option<PathBuf>,
    /// What the superblock says.
    pub header: HeaderReport,
    /// Names the customer DEK; needs the keys.
    pub fingerprint: Option<String>,
    /// The platform keystore that was used or looked at.
    #[serde(serialize_with = "as_text_if_any")]
    pub platform_keystore: Option<PathBuf>,
    /// What the platform keystore remembers of the volume.
    pub record: Option<RecordReport>,
    /// Both layers as this program computes them, the inner one first.
    pub layers: Vec<LayerReport>,
    /// What the filesystem counts; only while it is mounted.
    pub usage: Option<serde_json::Value>,
    /// How many snapshots there are; needs the keys.
    pub snapshots: Option<usize>,
    /// How many images there are; needs the keys.
    pub images: Option<usize>,
}

/// JSON has no bytes: what of a path is not UTF-8 is shown as U+FFFD.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn as_text_if_any<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => as_text(path, to),
        None => to.serialize_none(),
    }
}

/// A snapshot or an image, as `--json` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ViewReport {
    /// Snapshot or image.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// When it was made, in UTC.
    pub created: Option<Timestamp>,
    /// The generation that it shows.
    pub generation: Option<u64>,
    /// Bytes of sealed pages that it holds alone: what deleting it gives back.
    pub used_bytes: Option<u64>,
    /// Bytes of sealed pages that it shows.
    pub refers_bytes: Option<u64>,
    /// Inodes in it.
    pub inodes: Option<u64>,
    /// The snapshot that an image was made from; none for the live view.
    pub from: Option<String>,
    /// What it was said to be.
    pub description: String,
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

/// A place where the volume is mounted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct MountReport {
    #[serde(serialize_with = "as_text")]
    pub dir: PathBuf,
    pub read_only: bool,
    pub options: String,
}

/// The daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct DaemonReport {
    pub pid: u32,
    pub version: String,
    pub read_only: bool,
}

/// What the superblock says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct HeaderReport {
    pub format: u32,
    pub features: Vec<String>,
    pub volume_id: String,
    pub incarnation: String,
    pub sequence: u64,
    pub key_mode: String,
    pub key_sets: Vec<KeySetReport>,
    pub provenance: Option<String>,
    pub foreign: bool,
}

/// A key set and who can unwrap it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct KeySetReport {
    pub id: String,
    pub epoch: u32,
    pub active: bool,
    pub customer: Vec<WrapReport>,
    pub infrastructure: Vec<WrapReport>,
}

/// A wrapped key, without the ciphertext.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct WrapReport {
    pub provider: String,
    pub key_version: String,
    pub algorithm: String,
}

/// What the keystore remembers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct RecordReport {
    pub incarnation: String,
    pub commit_sequence: u64,
    pub header_sequence: u64,
    pub customer_key: Option<String>,
    pub clean: bool,
    /// The directory that is the volume.
    #[serde(serialize_with = "as_text_if_any")]
    pub directory: Option<PathBuf>,
    /// When the record was last written by somebody who may write to the volume: RFC 3339, UTC.
    pub written: Option<String>,
}

/// One layer of encryption.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct LayerReport {
    pub layer: String,
    pub algorithm: String,
    pub implementation: String,
    pub accelerated: Option<bool>,
}

fn wrap_report(wrap: &WrapRecord) -> WrapReport {
    WrapReport {
        provider: wrap.provider.clone(),
        key_version: wrap.key_version.clone(),
        algorithm: wrap.algorithm.clone(),
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
        directory: record.directory.as_ref().map(|it| it.path.clone()),
        written: record.written.and_then(utc),
    }
}

/// RFC 3339, in UTC; none for the time of a clock that was not set.
fn utc(secs: i64) -> Option<String> {
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

/// What is known of a volume that is open.
pub(crate) fn report_open(path: &Path, volume: &Volume) -> Report {
    Report {
        volume: path.to_path_buf(),
        verified: true,
        copy_of: volume.copy_status().original().map(Path::to_path_buf),
        header: header_report(&volume.header),
        fingerprint: volume.fingerprint().ok(),
        platform_keystore: Some(volume.keystore.directory().to_path_buf()),
        record: record_of(volume),
        layers: layer_reports(),
        ..Report::default()
    }
}

fn record_of(volume: &Volume) -> Option<RecordReport> {
    let record = volume.keystore.record(volume.header.volume_id());
    record.ok().flatten().as_ref().map(record_report)
}

/// Adds what only the daemon knows.
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
    report.record = record_of(filesystem.volume());
    report
}

/// What the superblock claims.
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
pub(crate) fn to_json(report: &Report) -> Result<String, UserError> {
    serde_json::to_string(report)
        .map_err(|error| UserError::new(ExitCode::System, format!("cannot write JSON: {error}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with text in it that must not reach a terminal as it is.
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
    fn json_goes_both_ways() {
        let report = odd_report();
        let json = to_json(&report).unwrap();
        assert!(!json.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert_eq!(report.layers.len(), 2);
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(utc(1_795_321_800).unwrap(), "2026-11-22T04:30:00Z");
        // A clock that nobody has set.
        assert_eq!(utc(90), None);
    }
}
