//! `bilayer status` and `bilayer inspect`: the state of a volume, for people and as JSON.
//!
//! `status` asks the daemon of a mounted volume. A volume that is not mounted is opened with the
//! keys that the options and the keystore give. If it cannot be opened, the report says why, and
//! has only the unverified claims of the superblock. `inspect` never uses a key.
//!
//! A snapshot or an image is named as `VOLUME@NAME`, or by its path, `MOUNT/.snapshots/NAME`. The
//! report is then that of its volume, with a part about the snapshot or image.
//!
//! The JSON is one object with stable names ([`Report`]); a name without a value is null.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::audit;
use crate::cli::args::KeystoreArg;
use crate::cli::output::print;
use crate::cli::output::status_text::to_text;
use crate::control::client::ControlClient;
use crate::control::health::Health;
use crate::control::line::{RESPONSE_TIMEOUT, is_timeout};
use crate::control::locate::{self, Holder, Located, find};
use crate::control::mount_state;
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::report::{
    self, MountReport, Report, ViewReport, record_report, report_claims, report_open,
};
use crate::control::request::{Kind, Operation, Request};
use crate::control::response::{Outcome, Response, Views};
use crate::control::wire::DecodeError;
use crate::daemon::operations::perform;
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::{Filesystem, FilesystemOptions};
use crate::keys::{PassphraseSource, PlatformKeystore};
use crate::store::directory::DirectoryStore;
use crate::sys::mountinfo::{self, MountInfo};
use crate::volume::{self, OpenOptions, Volume};

#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArgs {
    /// Directory of the volume, or where it is mounted; VOLUME@NAME or DIR/.snapshots/NAME for a
    /// snapshot or an image
    #[arg(value_name = "VOLUME|DIR")]
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keystore: KeystoreArg,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct InspectArgs {
    /// Directory of the volume
    volume: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// `bilayer status`.
///
/// # Errors
/// There is no volume, its daemon does not answer, or the volume has no snapshot or image of the
/// given name.
pub(in crate::cli) fn run(args: &StatusArgs) -> Result<(), UserError> {
    let keystore = args.keystore.dir()?;
    show(&status(&args.path, &keystore)?, args.json)
}

/// `bilayer inspect`.
///
/// # Errors
/// There is no volume, or its superblock cannot be read.
pub(in crate::cli) fn run_inspect(args: &InspectArgs) -> Result<(), UserError> {
    show(&inspect(&args.volume)?, args.json)
}

fn show(report: &Report, json: bool) -> Result<(), UserError> {
    if json {
        print(&(report::to_json(report)? + "\n"))
    } else {
        print(&to_text(report))
    }
}

fn open_store(located: &Located) -> Result<DirectoryStore, UserError> {
    DirectoryStore::open(&located.access_path()?).map_err(|error| {
        UserError::io(
            format_args!("cannot open {}", located.path.display()),
            &error,
        )
    })
}

/// The report of `bilayer inspect`.
fn inspect(path: &Path) -> Result<Report, UserError> {
    let located = find(path)?;
    let mut report = report_claims(&located.path, &open_store(&located)?)?;
    let why = "inspect uses no key".to_owned();
    report.health = Health::Unknown(why.clone()).to_string();
    report.not_verified_because = Some(why);
    Ok(report)
}

/// The report of `bilayer status`.
fn status(path: &Path, keystore: &Path) -> Result<Report, UserError> {
    let target = Target::parse(path);
    let dead = mount_state::dead_mount(&target.volume);
    let mut located = match &dead {
        // The mount's own claim: there is no daemon left to ask.
        Some(mount) => {
            let dir = target.volume.display();
            let refused = |_| mount_state::dead_mount_error(&format!("cannot show {dir}"), mount);
            locate::find_by_mount_source(mount).map_err(refused)?
        }
        None => find(&target.volume)?,
    };
    let holder = std::mem::replace(&mut located.holder, Holder::Nobody);
    let (mut mounts, mut held_by) = (None, Vec::new());
    let VolumeState {
        mut report,
        views,
        mut health,
    } = match holder {
        Holder::Daemon { control, mount } => {
            let mounts_of = |device| MountInfo::on_device(device).unwrap_or_default();
            let here = mount.map(mounts_of).unwrap_or_default();
            if let (Some(device), true) = (mount, here.is_empty()) {
                held_by = mountinfo::holders_elsewhere(&mountinfo::device_name(device));
            }
            mounts = Some(here);
            ask_daemon(control, &located.path)?
        }
        Holder::Mount(_) => {
            let dir = located.path.display();
            let message = format!("cannot show {dir}: its daemon does not answer this user");
            return Err(UserError::new(ExitCode::System, message)
                .with_hint("root and the user who mounted it may ask"));
        }
        Holder::Unknown(error) => {
            let mut report = report_claims(&located.path, &open_store(&located)?)?;
            report.not_verified_because = Some(error.message.clone());
            VolumeState {
                report,
                views: None,
                health: Health::Unknown(error.message),
            }
        }
        Holder::Nobody => {
            let store = open_store(&located)?;
            let claims = report_claims(&located.path, &store)?;
            open_or_claims(&located, store, keystore, claims)
        }
    };
    // Without a daemon that has proved that it holds the volume, the list of mounts is a hint.
    let mounts = mounts.unwrap_or_else(|| {
        let directory = located.directory.as_ref();
        directory.map(locate::hinted_mounts).unwrap_or_default()
    });
    let is_dead = |mount: &&MountInfo| mount_state::dead_mount(&mount.dir).is_some();
    let dead = dead.or_else(|| mounts.iter().find(is_dead).cloned());
    if dead.is_some() {
        health = Health::DaemonDead;
    }
    let dir = dead.as_ref().or(mounts.first()).map(|mount| &*mount.dir);
    report.next = health.next_command(&located.path, dir);
    report.health = health.to_string();
    report.held_by = held_by;
    report.volume = located.path;
    report.mounts = mounts.iter().map(mount_report).collect();
    let count = |kind| {
        let views = views.as_ref()?.iter();
        Some(views.filter(|view| view.kind == kind).count())
    };
    (report.snapshots, report.images) = (count(Kind::Snapshot), count(Kind::Image));
    if let Some(view) = &target.view {
        report.view = Some(find_view(&report, views, view)?);
    }
    Ok(report)
}

/// The volume, by its directory or a mount of it, and possibly the view that a path names.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    volume: PathBuf,
    view: Option<TargetView>,
}

/// The snapshot or image that a path names.
#[derive(Debug, PartialEq, Eq)]
struct TargetView {
    /// `None` if the path does not say which of the two it is.
    kind: Option<Kind>,
    name: String,
}

impl Target {
    fn parse(path: &Path) -> Self {
        let within = |kind: Kind| {
            let (name, parent) = (path.file_name()?, path.parent()?);
            (parent.file_name()? == kind.directory()).then(|| Self {
                volume: Path::new(".").join(parent.parent().unwrap_or(Path::new("."))),
                view: Some(TargetView {
                    kind: Some(kind),
                    name: name.to_string_lossy().into_owned(),
                }),
            })
        };
        let behind_at = || {
            let (volume, name) = path.to_str()?.rsplit_once('@')?;
            let has_view = !volume.is_empty() && !name.is_empty() && !name.contains('/');
            (has_view && path.symlink_metadata().is_err()).then(|| Self {
                volume: volume.into(),
                view: Some(TargetView {
                    kind: None,
                    name: name.to_owned(),
                }),
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

/// Finds a view in the list. If its kind is not known, a snapshot is preferred to an image of the
/// same name.
fn find_view(
    report: &Report,
    views: Option<Vec<ViewReport>>,
    TargetView { kind, name }: &TargetView,
) -> Result<ViewReport, UserError> {
    let what = kind.map_or("snapshot or image", Kind::name);
    let Some(views) = views else {
        let why = report.not_verified_because.as_deref();
        let why = why.unwrap_or("the volume's views cannot be read");
        return Err(UserError::new(
            ExitCode::Key,
            format!("cannot show the {what} {name}: {why}"),
        )
        .with_hint("provide what is missing; or mount the volume and ask the mount"));
    };
    let mut views = views.into_iter();
    let matches =
        |view: &ViewReport| view.name == *name && kind.is_none_or(|kind| kind == view.kind);
    views.find(matches).ok_or_else(|| {
        let volume = report.volume.display();
        UserError::new(
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

/// Everything that could be determined about a volume.
struct VolumeState {
    report: Report,
    /// All snapshots, then all images; `None` if they could not be listed.
    views: Option<Vec<ViewReport>>,
    health: Health,
}

fn ask_daemon(mut daemon: ControlClient, path: &Path) -> Result<VolumeState, UserError> {
    let doing = || format!("cannot show {}", path.display());
    let report = match daemon.ask(&Request::Status, Some(RESPONSE_TIMEOUT)) {
        Ok(Response::Status(report)) => *report,
        Err(error) if is_timeout(&error) => return Err(refusal(doing(), &[Obstacle::Silent])),
        other => {
            let why = match other {
                Ok(Response::Failed(failure)) => failure.message,
                Ok(_) => DecodeError::Malformed.to_string(),
                Err(error) => error.to_string(),
            };
            let message = format!("{}: its daemon cannot be asked: {why}", doing());
            return Err(UserError::new(ExitCode::System, message)
                .with_hint("unmount it and mount it again"));
        }
    };
    let views = list_views(|operation, to| daemon.perform(operation, Some(RESPONSE_TIMEOUT), to));
    Ok(VolumeState {
        health: Health::from_usage(report.usage.as_ref()),
        report,
        views,
    })
}

fn list_views(
    mut ask: impl FnMut(&Operation, &mut Views) -> Result<Outcome, UserError>,
) -> Option<Vec<ViewReport>> {
    let mut views = Views::default();
    for kind in [Kind::Snapshot, Kind::Image] {
        ask(&Operation::List { kind }, &mut views)
            .inspect_err(|error| tracing::warn!("{}", error.message))
            .ok()?;
    }
    Some(views.0)
}

/// Opens the filesystem in an open volume and lists its views. If it cannot be opened, the report
/// lacks only the views.
fn views_of(volume: Volume) -> (Option<Vec<ViewReport>>, Health) {
    let options = FilesystemOptions {
        read_only: true,
        ..FilesystemOptions::default()
    };
    let filesystem = match Filesystem::open(volume, options) {
        Ok(filesystem) => filesystem,
        Err(error) => {
            tracing::warn!(%error, "snapshots and images are not counted");
            let error = UserError::filesystem("the volume cannot be opened", &error);
            return (None, health_of(error.code, error.message));
        }
    };
    match list_views(|operation, to| perform(&filesystem, operation, to)) {
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

/// Opens the volume if no passphrase has to be typed; otherwise reports the claims of its
/// superblock and why it was not opened.
fn open_or_claims(
    located: &Located,
    store: DirectoryStore,
    keystore: &Path,
    claims: Report,
) -> VolumeState {
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
            VolumeState {
                report,
                views,
                health,
            }
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
            VolumeState {
                report,
                views: None,
                health,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_and_images_have_two_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("vol@ume");
        std::fs::create_dir(&there).unwrap();
        let view = |kind, name: &str| {
            let name = name.to_owned();
            Some(TargetView { kind, name })
        };
        assert_eq!(Target::parse(&there).view, None);
        let behind = Target::parse(&dir.path().join("vol@ume@monday"));
        assert_eq!(behind.volume, there);
        assert_eq!(behind.view, view(None, "monday"));
        let within = Target::parse(&there.join(".images/base"));
        assert_eq!(within.volume, there);
        assert_eq!(within.view, view(Some(Kind::Image), "base"));
        let here = Target::parse(Path::new(".snapshots/monday"));
        assert_eq!(here.volume, Path::new("./"));
        for plain in ["vol", "@", "vol@", "@monday", "a@b/c", "/.snapshots"] {
            assert_eq!(Target::parse(Path::new(plain)).view, None, "{plain}");
        }
    }

    #[test]
    fn a_directory_that_is_no_volume_is_refused() {
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
