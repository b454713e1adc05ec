//! `bilayer status` and `bilayer inspect`: what is known of a volume, for people and as JSON.
//!
//! `status` asks the daemon where the volume is mounted; else it opens the volume with the keys
//! that option and keystore give and says so, or says why it cannot and shows what the superblock
//! merely claims. `inspect` never touches a key.
//!
//! A snapshot or an image is named as `VOLUME@NAME`, or by its path, `MOUNT/.snapshots/NAME`; then
//! the report is of its volume, whose keys it is under, with what is known of it besides.
//!
//! The JSON is one object with stable names ([`Report`]); a name that has no value is null.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::control::{ControlClient, Obstacle, PATIENCE};
use super::error::{CliError, ExitCode};
use super::health::{self, Health};
use super::locate::{self, Holder, Located, find};
use super::request::{Kind, Outcome, Request, ViewReport, Views};
use super::serve::serve;
use super::wire;
use crate::audit;
use crate::fs::{Filesystem, FilesystemOptions};
use crate::fuse::mountinfo::{self, MountInfo};
use crate::keys::wrap::WrapRecord;
use crate::keys::{PassphraseSource, PlatformKeystore, VolumeRecord};
use crate::layers;
use crate::store::directory::DirectoryStore;
use crate::volume::header::{HeaderContents, KeySetState};
use crate::volume::{self, OpenOptions, Volume};

/// Everything that is shown of a volume. No field is secret.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Its state, in the words of [`super::health`].
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

/// A place where the volume is mounted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MountReport {
    #[serde(serialize_with = "as_text")]
    pub dir: PathBuf,
    pub read_only: bool,
    pub options: String,
}

/// The daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DaemonReport {
    pub pid: u32,
    pub version: String,
    pub read_only: bool,
}

/// What the superblock says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HeaderReport {
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
pub struct KeySetReport {
    pub id: String,
    pub epoch: u32,
    pub active: bool,
    pub customer: Vec<WrapReport>,
    pub infrastructure: Vec<WrapReport>,
}

/// A wrapped key, without the ciphertext.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WrapReport {
    pub provider: String,
    pub key_version: String,
    pub algorithm: String,
}

/// What the keystore remembers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RecordReport {
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
pub struct LayerReport {
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

fn record_report(record: &VolumeRecord) -> RecordReport {
    RecordReport {
        incarnation: record.incarnation.to_string(),
        commit_sequence: record.sequence.0,
        header_sequence: record.header_sequence,
        customer_key: record.customer_key.clone(),
        clean: record.clean,
        directory: record.directory.as_ref().map(|it| it.path.clone()),
        written: record.written.and_then(super::format::utc),
    }
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
pub fn report_open(path: &Path, volume: &Volume) -> Report {
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
pub fn report_mounted(mut report: Report, read_only: bool, filesystem: &Filesystem) -> Report {
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
fn report_claims(path: &Path, store: &DirectoryStore) -> Result<Report, CliError> {
    let header = volume::inspect(store).map_err(|error| {
        CliError::volume(format_args!("cannot read {}", path.display()), &error)
    })?;
    Ok(Report {
        volume: path.to_path_buf(),
        header: header_report(header.claims()),
        layers: layer_reports(),
        ..Report::default()
    })
}

fn open_store(located: &Located) -> Result<DirectoryStore, CliError> {
    DirectoryStore::open(&located.access_path()?).map_err(|error| {
        CliError::io(
            format_args!("cannot open {}", located.path.display()),
            &error,
        )
    })
}

/// What `bilayer inspect` shows.
pub fn inspect(path: &Path) -> Result<Report, CliError> {
    let located = find(path)?;
    let mut report = report_claims(&located.path, &open_store(&located)?)?;
    let why = "inspect uses no key".to_owned();
    report.health = Health::Unknown(why.clone()).to_string();
    report.not_verified_because = Some(why);
    Ok(report)
}

/// What `bilayer status` shows.
pub fn status(path: &Path, keystore: &Path) -> Result<Report, CliError> {
    let named = Named::parse(path);
    let dead = health::dead_mount(&named.volume);
    let mut located = match &dead {
        // What it says that it is: nobody can be asked any more.
        Some(mount) => {
            let dir = named.volume.display();
            let refused = |_| health::dead(&format!("cannot show {dir}"), mount);
            locate::by_source(mount).map_err(refused)?
        }
        None => find(&named.volume)?,
    };
    let holder = std::mem::replace(&mut located.holder, Holder::Nobody);
    let (mut mounts, mut held_by) = (None, Vec::new());
    let (mut report, views, mut health) = match holder {
        Holder::Daemon { control, mount } => {
            let of = |device| MountInfo::on_device(device).unwrap_or_default();
            let here = mount.map(of).unwrap_or_default();
            if let (Some(device), true) = (mount, here.is_empty()) {
                held_by = mountinfo::holders_elsewhere(&mountinfo::device_name(device));
            }
            mounts = Some(here);
            let (report, views) = ask_daemon(control, &located.path)?;
            let health = Health::of_usage(report.usage.as_ref());
            (report, views, health)
        }
        Holder::Mount(_) => {
            let dir = located.path.display();
            let message = format!("cannot show {dir}: its daemon does not answer this user");
            return Err(CliError::new(ExitCode::System, message)
                .with_hint("root and the user who mounted it may ask"));
        }
        Holder::Unknown(error) => {
            let mut report = report_claims(&located.path, &open_store(&located)?)?;
            report.not_verified_because = Some(error.message.clone());
            (report, None, Health::Unknown(error.message))
        }
        Holder::Nobody => {
            let store = open_store(&located)?;
            let claims = report_claims(&located.path, &store)?;
            open_or_claims(&located, store, keystore, claims)
        }
    };
    // Without a daemon that has proved itself, what the list of mounts hints at.
    let mounts = mounts.unwrap_or_else(|| {
        let directory = located.directory.as_ref();
        directory.map(locate::hinted).unwrap_or_default()
    });
    let is_dead = |mount: &&MountInfo| health::dead_mount(&mount.dir).is_some();
    let dead = dead.or_else(|| mounts.iter().find(is_dead).cloned());
    if dead.is_some() {
        health = Health::DaemonDead;
    }
    let dir = dead.as_ref().or(mounts.first()).map(|mount| &*mount.dir);
    report.next = health.next(&located.path, dir);
    report.health = health.to_string();
    report.held_by = held_by;
    report.volume = located.path;
    report.mounts = mounts.iter().map(mount_report).collect();
    let count = |kind| {
        let views = views.as_ref()?.iter();
        Some(views.filter(|view| view.kind == kind).count())
    };
    (report.snapshots, report.images) = (count(Kind::Snapshot), count(Kind::Image));
    if let Some((kind, name)) = &named.view {
        report.view = Some(find_view(&report, views, *kind, name)?);
    }
    Ok(report)
}

/// A volume by its directory or a mount of it, perhaps with a view.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    volume: PathBuf,
    /// Its kind, where the path says it, and its name.
    view: Option<(Option<Kind>, String)>,
}

impl Named {
    fn parse(path: &Path) -> Self {
        let within = |kind: Kind| {
            let (name, parent) = (path.file_name()?, path.parent()?);
            (parent.file_name()? == kind.directory()).then(|| Self {
                volume: Path::new(".").join(parent.parent().unwrap_or(Path::new("."))),
                view: Some((Some(kind), name.to_string_lossy().into_owned())),
            })
        };
        let behind_at = || {
            let (volume, name) = path.to_str()?.rsplit_once('@')?;
            let named = !volume.is_empty() && !name.is_empty() && !name.contains('/');
            (named && path.symlink_metadata().is_err()).then(|| Self {
                volume: volume.into(),
                view: Some((None, name.to_owned())),
            })
        };
        within(Kind::Snapshot)
            .or_else(|| within(Kind::Image))
            .or_else(behind_at)
            .unwrap_or_else(|| Self {
                volume: path.to_path_buf(),
                view: None,
            })
    }
}

/// A snapshot comes before an image of the same name.
fn find_view(
    report: &Report,
    views: Option<Vec<ViewReport>>,
    kind: Option<Kind>,
    name: &str,
) -> Result<ViewReport, CliError> {
    let what = kind.map_or("snapshot or image", Kind::name);
    let Some(views) = views else {
        let why = report.not_verified_because.as_deref();
        let why = why.unwrap_or("the volume's views cannot be read");
        return Err(CliError::new(
            ExitCode::Key,
            format!("cannot show the {what} {name}: {why}"),
        )
        .with_hint("what is named there is needed; or mount the volume and ask the mount"));
    };
    let mut views = views.into_iter();
    let is_it = |view: &ViewReport| view.name == name && kind.is_none_or(|kind| kind == view.kind);
    views.find(is_it).ok_or_else(|| {
        let volume = report.volume.display();
        CliError::new(
            ExitCode::NotFound,
            format!("there is no {what} {name} in {volume}"),
        )
        .with_hint(format!(
            "see which there are: bilayer snapshot list {volume}"
        ))
    })
}

fn mount_report(mount: &MountInfo) -> MountReport {
    MountReport {
        dir: mount.dir.clone(),
        read_only: mount.has_option("ro"),
        options: format!("{},{}", mount.options, mount.super_options),
    }
}

/// A report, and all views where they could be listed: snapshots before images.
type Known = (Report, Option<Vec<ViewReport>>);
/// The same with the state of the volume.
type KnownHealth = (Report, Option<Vec<ViewReport>>, Health);

fn ask_daemon(mut daemon: ControlClient, path: &Path) -> Result<Known, CliError> {
    let doing = || format!("cannot show {}", path.display());
    let answer = daemon.ask("status", Some(PATIENCE));
    let answer = answer.map_err(|_| locate::refusal(doing(), &[Obstacle::Silent]))?;
    let report = serde_json::from_str(&answer).map_err(|error| {
        let message = format!("{}: its daemon is of another version: {error}", doing());
        CliError::new(ExitCode::System, message).with_hint("unmount it and mount it again")
    })?;
    let views = list_views(|request, to| wire::ask(&mut daemon, request, Some(PATIENCE), to));
    Ok((report, views))
}

fn list_views(
    mut ask: impl FnMut(&Request, &mut Views) -> Result<Outcome, CliError>,
) -> Option<Vec<ViewReport>> {
    let mut views = Views::default();
    for kind in [Kind::Snapshot, Kind::Image] {
        ask(&Request::List { kind }, &mut views)
            .inspect_err(|error| tracing::warn!("{}", error.message))
            .ok()?;
    }
    Some(views.0)
}

/// Opens what is in a volume that is open. That it cannot be is no reason not to show the rest.
fn views_of(volume: Volume) -> (Option<Vec<ViewReport>>, Health) {
    let options = FilesystemOptions {
        read_only: true,
        ..FilesystemOptions::default()
    };
    let filesystem = match Filesystem::open(volume, options) {
        Ok(filesystem) => filesystem,
        Err(error) => {
            tracing::warn!(%error, "snapshots and images are not counted");
            let error = CliError::filesystem("the volume cannot be opened", &error);
            return (None, health_of(error.code, error.message));
        }
    };
    match list_views(|request, to| serve(&filesystem, request, to)) {
        None => (None, Health::Damaged),
        views => (views, Health::Ok),
    }
}

fn health_of(code: ExitCode, why: String) -> Health {
    match code {
        ExitCode::Integrity => Health::Damaged,
        _ => Health::Unknown(why),
    }
}

/// Opens the volume if that needs nobody to type anything; otherwise says why not.
fn open_or_claims(
    located: &Located,
    store: DirectoryStore,
    keystore: &Path,
    claims: Report,
) -> KnownHealth {
    let options = OpenOptions {
        keystore: keystore.to_path_buf(),
        path: Some(located.path.clone()),
        named: located.named.clone(),
        passphrase: PassphraseSource::None,
        read_only: true,
        ..OpenOptions::default()
    };
    audit::set_volume(&located.path);
    match volume::open(Arc::new(store), &options) {
        Ok(volume) => {
            let report = report_open(&located.path, &volume);
            let (views, health) = views_of(volume);
            (report, views, health)
        }
        Err(error) => {
            let health = health_of(ExitCode::of_kind(error.kind()), error.to_string());
            let id = crate::ids::VolumeId::from_hex(&claims.header.volume_id);
            let record = id.and_then(|id| {
                PlatformKeystore::open(keystore)
                    .ok()?
                    .record(id)
                    .ok()
                    .flatten()
            });
            let report = Report {
                not_verified_because: Some(error.to_string()),
                platform_keystore: Some(keystore.to_path_buf()),
                record: record.as_ref().map(record_report),
                ..claims
            };
            (report, None, health)
        }
    }
}

/// The report as JSON on one line.
pub fn to_json(report: &Report) -> Result<String, CliError> {
    serde_json::to_string(report)
        .map_err(|error| CliError::new(ExitCode::System, format!("cannot write JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_and_images_are_named_in_two_ways() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("vol@ume");
        std::fs::create_dir(&there).unwrap();
        let named = |path: &Path| Named::parse(path);
        assert_eq!(named(&there).view, None);
        let behind = named(&dir.path().join("vol@ume@monday"));
        assert_eq!(behind.volume, there);
        assert_eq!(behind.view, Some((None, "monday".to_owned())));
        let within = named(&there.join(".images/base"));
        assert_eq!(within.volume, there);
        assert_eq!(within.view, Some((Some(Kind::Image), "base".to_owned())));
        let here = named(Path::new(".snapshots/monday"));
        assert_eq!(here.volume, Path::new("./"));
        for plain in ["vol", "@", "vol@", "@monday", "a@b/c", "/.snapshots"] {
            assert_eq!(named(Path::new(plain)).view, None, "{plain}");
        }
    }

    #[test]
    fn json_goes_both_ways_and_text_is_printable() {
        let report = Report {
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
        };
        let json = to_json(&report).unwrap();
        assert!(!json.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        let text = crate::cli::status_text::to_text(&report);
        assert!(
            !text.chars().any(|c| c.is_control() && c != '\n'),
            "{text:?}"
        );
        for wanted in [
            "no: no key",
            "key mode           platform-managed",
            "files              3",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("latched"));
        assert_eq!(report.layers.len(), 2);
    }

    #[test]
    fn what_is_no_volume_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = inspect(dir.path()).unwrap_err();
        assert_eq!(error.code, ExitCode::NotFound);
        assert!(error.hint.is_some());
        assert_eq!(
            inspect(&dir.path().join("x")).unwrap_err().code,
            ExitCode::NotFound
        );
    }
}
