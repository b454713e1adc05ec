//! `bilayer mount`, from the arguments to the end of the daemon.
//!
//! Order: parse the arguments; fork; open the volume (this may ask for a passphrase); block
//! signals; open the filesystem (its threads start here); create the control socket; mount; report
//! readiness. When the mount has ended: close the filesystem; release the volume's lock; send the
//! outcome to waiting commands; exit.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::background::{Readiness, in_background};
use super::customer_key::{self, KeyCheck, watch_customer_key};
use super::directories::{MountDirectories, prepare_directories};
use super::effective_options::{filesystem_options, fuse_options};
use super::former_identity::FormerIdentity;
use super::key_rotation::watch_platform_keys;
use super::log::Log;
use super::mount_record::{audit_unmount, log_reopener, mount_record, record_in_background};
use super::mount_request::MountRequest;
use super::remount::remount;
use super::request_handler::{MountedOn, Reports, publish_mount_name, start_control_server};
use super::utab;
use crate::audit::{self, Record};
use crate::control::directory::VolumeDirectory;
use crate::control::locate;
use crate::control::paths::{absolute, possible_paths};
use crate::control::report;
use crate::control::response::Closed;
use crate::control::server::ControlServer;
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fs::{Filesystem, FsError};
use crate::fuse::{self, FuseError, Signals};
use crate::store::Store;
use crate::store::directory::DirectoryStore;
use crate::sys::limits;
use crate::sys::location::Location;
use crate::sys::process::{self, EndSignals};
use crate::sys::terminal::has_terminal;
use crate::volume::{self, OpenOptions, Volume, VolumeError};

/// How long opening a volume that is mounted is retried.
const MOUNTED_RETRY: Duration = Duration::from_secs(1);
/// How long opening a volume that is in use but not mounted is retried: another process may be
/// about to open or close it.
const CLOSING_RETRY: Duration = Duration::from_secs(5);

/// Mounts a volume. In the foreground this returns when the mount has ended. Otherwise it returns
/// when the filesystem answers, and the daemon continues in a process of its own, in which this
/// never returns.
///
/// # Errors
/// The paths are unusable, the volume cannot be opened or closed, or the kernel refuses the mount.
pub(crate) fn mount(request: MountRequest, log: &Log) -> Result<(), UserError> {
    if request.options.remount {
        return remount(&request.dir, &request.options);
    }
    if request.new_identity && request.options.read_only == Some(true) {
        return Err(
            UserError::usage("--new-identity writes to the volume, and -o ro forbids it")
                .with_hint("leave -o ro out; or look at the copy as it is, without --new-identity"),
        );
    }
    let request = MountRequest {
        volume: absolute(&request.volume)?,
        dir: absolute(&request.dir)?,
        ..request
    };
    // Before this process opens anything. The daemon outlives its caller, which may wait for the
    // end of a pipe that the daemon would keep open.
    process::close_inherited_descriptors(request.passphrase_descriptor())
        .map_err(|error| UserError::io("cannot close inherited descriptors", &error))?;
    if let Some(path) = &request.options.log_file {
        let doing = || format!("cannot log to {}", path.display());
        let opened = log.to_file(path);
        opened
            .map_err(|error| UserError::io(doing(), &error))
            .inspect_err(|error| record_refusal(&request, error))?;
    }
    if request.foreground {
        return daemon(&request, log, &mut Readiness::foreground(log.clone()));
    }
    in_background(log, |readiness| daemon(&request, log, readiness))
}

/// Replaces the limits and the priority of the caller's session, which the daemon outlives.
fn reset_session_limits() {
    limits::raise_limits();
    limits::restore_priority();
}

fn daemon(request: &MountRequest, log: &Log, readiness: &mut Readiness) -> Result<(), UserError> {
    reset_session_limits();
    let mut is_ready = false;
    let mut ready = || {
        is_ready = true;
        readiness.ready();
    };
    audit::set_volume(&request.volume);
    audit::set_mount_point(&request.dir);
    let served = mount_and_serve(request, log, &mut ready);
    if let Err(error) = &served
        && !is_ready
    {
        record_refusal(request, error);
    }
    served
}

/// Records that a volume was not mounted.
fn record_refusal(request: &MountRequest, error: &UserError) {
    audit::set_volume(&request.volume);
    audit::set_mount_point(&request.dir);
    let store = DirectoryStore::open(&request.volume);
    let claimed = store.ok().and_then(|store| volume::claimed_id(&store));
    Record::new("mount").volume(claimed).refused(&error.message);
}

fn mount_and_serve(
    request: &MountRequest,
    log: &Log,
    ready: &mut dyn FnMut(),
) -> Result<(), UserError> {
    let directories = prepare_directories(request)?;
    audit::set_volume(&directories.volume);
    audit::set_mount_point(&directories.dir);
    let doing = || directories.doing();
    let failed = |error| UserError::volume(doing(), &error);
    if !request.changes_identity() {
        let opened = open_volume(request, &directories.volume, &doing)?;
        if matches!(opened, Err(VolumeError::ReadOnlyMedium)) && request.may_become_read_only() {
            return serve_read_only(request, &directories, log, ready);
        }
        let volume = opened.map_err(failed)?;
        return serve(request, volume, &directories, log, ready);
    }
    fuse::check_mountable(&directories.dir).map_err(|error| explain(&error, doing()))?;
    let volume = open_volume(request, &directories.volume, &doing)?.map_err(failed)?;
    let former = FormerIdentity::of(&volume);
    let mut is_ready = false;
    let mut ready = || {
        is_ready = true;
        ready();
    };
    let served = change_identity(request, volume, &directories.volume, &doing)
        .and_then(|volume| serve(request, volume, &directories, log, &mut ready));
    served.map_err(|error| match is_ready {
        true => error,
        false => former.explain(error),
    })
}

/// Mounts a volume on a read-only medium read-only, with a warning on standard error and in the
/// log.
fn serve_read_only(
    request: &MountRequest,
    directories: &MountDirectories,
    log: &Log,
    ready: &mut dyn FnMut(),
) -> Result<(), UserError> {
    let mut request = request.clone();
    request.options.read_only = Some(true);
    let doing = || directories.doing();
    let path = &*directories.volume;
    let volume =
        open_volume(&request, path, &doing)?.map_err(|error| UserError::volume(doing(), &error))?;
    let warning = format!(
        "{} is write-protected, since its filesystem is mounted read-only: mounted read-only",
        path.display()
    );
    let is_log_elsewhere = !request.foreground || request.options.log_file.is_some();
    serve(&request, volume, directories, log, &mut || {
        if is_log_elsewhere {
            notice(format_args!("warning: {warning}"));
        }
        ready();
        tracing::warn!("{warning}");
    })
}

/// Mounts an open volume and returns when the mount has ended. `ready` is called when it answers.
fn serve(
    request: &MountRequest,
    volume: Volume,
    directories: &MountDirectories,
    log: &Log,
    ready: &mut dyn FnMut(),
) -> Result<(), UserError> {
    let doing = || directories.doing();
    let (path, dir) = (&*directories.volume, &*directories.dir);
    if let Some(descriptor) = request.passphrase_descriptor() {
        process::close_inherited_descriptor(descriptor);
    }
    // The working directory would keep its filesystem busy.
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "the working directory stays where it was");
    }
    let has_user = request.foreground && has_terminal();
    // All later threads inherit the mask. Under nohup(1) the end of the terminal must not end the
    // mount. Without a terminal a hangup reopens the log.
    let end = match has_user && process::is_hangup_ignored() {
        true => EndSignals::block_but_hangup(),
        false => EndSignals::block(),
    };
    let end = end.map_err(|error| UserError::io(doing(), &error))?;
    let is_serving = Arc::new(AtomicBool::new(false));
    let mounted_on = MountedOn::default();
    let on_hangup = match has_user {
        true => Ok(Box::new(|| false) as _),
        false => log_reopener(log, &mounted_on, &is_serving),
    };
    let on_hangup = on_hangup.map_err(|error| UserError::io(doing(), &error))?;
    let signals = Signals { end, on_hangup };
    if let Err(error) = process::set_io_flusher() {
        tracing::debug!(%error, "not marked as one that serves writeback");
    }
    let report = report::report_open(path, &volume);
    let id = volume.header().volume_id();
    let read_only = request.options.read_only.unwrap_or(false);
    let options = fuse_options(request, path, volume.header().is_foreign());
    let filesystem = Filesystem::open(volume, filesystem_options(request))
        .map_err(|error| UserError::filesystem(doing(), &error))?;
    filesystem.warn_of_hidden();
    let key_check = KeyCheck::default();
    let reports = Reports {
        at_mount: report,
        read_only,
        key_check: Arc::clone(&key_check),
    };
    let control = start_control_server(path, &filesystem, reports, &mounted_on);
    let mut recorded = None;
    let served = fuse::mount(
        Arc::clone(&filesystem),
        dir,
        &options,
        Some(signals),
        |device| {
            tracing::info!(volume = %path.display(), dir = %dir.display(), "mounted");
            recorded = record_in_background(|| mount_record(id, read_only, &options));
            is_serving.store(true, Ordering::SeqCst);
            if let Some(device) = device {
                let entry = utab::Entry {
                    volume: path.to_owned(),
                    dir: dir.to_owned(),
                    device,
                    process: std::process::id(),
                };
                entry.add();
                *mounted_on.lock() = Some(entry);
                publish_mount_name(control.as_ref(), device);
            }
            if !read_only {
                watch_platform_keys(&filesystem);
                let interval = request.options.key_check.unwrap_or(customer_key::INTERVAL);
                let passphrase = request.passphrase();
                watch_customer_key(&filesystem, &passphrase, interval, &key_check);
            }
            ready();
        },
    );
    let ended = mounted_on.lock().take();
    if let Some(control) = &control {
        control.withdraw_mount_name();
    }
    let closed = filesystem.close();
    // Before the volume's lock is released: the next mount adds its own line.
    if let Some(entry) = ended {
        entry.remove();
    }
    drop(filesystem);
    if is_serving.load(Ordering::SeqCst) {
        if let Some(thread) = recorded {
            // If it panicked, the unmount is recorded all the same.
            let _ = thread.join();
        }
        audit_unmount(id, control.as_ref(), &closed);
    }
    finish(control, served, closed, &doing)
}

/// Opens the volume. The outer error is a failure to reach the directory, the inner one of opening
/// the volume in it.
fn open_volume(
    request: &MountRequest,
    path: &Path,
    doing: &impl Fn() -> String,
) -> Result<Result<Volume, VolumeError>, UserError> {
    let failed = |error| UserError::io(doing(), &error);
    let location = Location::open(path).map_err(failed)?;
    let directory = VolumeDirectory::at(&location).map_err(failed)?;
    let store = DirectoryStore::open(&directory.access_path()).map_err(failed)?;
    let options = OpenOptions {
        customer_key: request.options.customer_key.clone(),
        keystore: request.keystore.clone(),
        path: Some(path.to_owned()),
        named: possible_paths(&request.volume),
        passphrase: request.passphrase(),
        read_only: request.options.read_only.unwrap_or(false),
        fingerprint: request.options.fingerprint.clone(),
        accept_restored: request.accept_restored,
        new_identity: request.new_identity,
    };
    Ok(open_with_retry(
        Some(&directory),
        &Arc::new(store),
        &options,
    ))
}

/// Changes the identity as `--accept-restored` or `--new-identity` requests.
fn change_identity(
    request: &MountRequest,
    volume: Volume,
    path: &Path,
    doing: &impl Fn() -> String,
) -> Result<Volume, UserError> {
    let volume = accept_restored(request, volume, doing)?;
    make_separate(request, volume, path, doing)
}

fn accept_restored(
    request: &MountRequest,
    volume: Volume,
    doing: &impl Fn() -> String,
) -> Result<Volume, UserError> {
    if !request.accept_restored || request.options.read_only == Some(true) {
        return Ok(volume);
    }
    let cache = filesystem_options(request).meta_cache_bytes;
    Filesystem::accept_restored(volume, cache)
        .map_err(|error| UserError::filesystem(doing(), &error))
}

fn make_separate(
    request: &MountRequest,
    volume: Volume,
    path: &Path,
    doing: &impl Fn() -> String,
) -> Result<Volume, UserError> {
    if !request.new_identity {
        return Ok(volume);
    }
    let before = volume.header().volume_id();
    let cache = filesystem_options(request).meta_cache_bytes;
    let volume = Filesystem::separate(volume, cache)
        .map_err(|error| UserError::filesystem(doing(), &error))?;
    tracing::info!(
        volume = %path.display(),
        id = %volume.header().volume_id(),
        copy_of = %before,
        "the copy is a volume of its own now"
    );
    Ok(volume)
}

/// Opens a volume, and retries for a moment while it is in use: it may be about to be unmounted or
/// closed. `directory` is used to see whether it is mounted.
///
/// # Errors
/// The last attempt to open the volume has failed.
pub(crate) fn open_with_retry(
    directory: Option<&VolumeDirectory>,
    store: &Arc<DirectoryStore>,
    options: &OpenOptions,
) -> Result<Volume, VolumeError> {
    let begin = Instant::now();
    let store: Arc<dyn Store> = Arc::clone(store) as _;
    volume::open_with_retry(store, options, &mut |error| {
        let patience = match error {
            VolumeError::WriterElsewhere { .. } => MOUNTED_RETRY,
            VolumeError::InUse { .. } => {
                // A hint is enough to decide how long to wait.
                let mounted = directory.is_some_and(|dir| !locate::hinted_mounts(dir).is_empty());
                if mounted {
                    MOUNTED_RETRY
                } else {
                    CLOSING_RETRY
                }
            }
            _ => return false,
        };
        let again = begin.elapsed() <= patience;
        if again {
            thread::sleep(Duration::from_millis(20));
        }
        again
    })
}

/// Sends the outcome to waiting commands and returns it.
fn finish(
    control: Option<ControlServer>,
    served: Result<(), FuseError>,
    closed: Result<(), FsError>,
    doing: &impl Fn() -> String,
) -> Result<(), UserError> {
    if let Some(control) = control {
        let error = closed.as_ref().err();
        control.announce(&Closed {
            is_on_disk: error.is_none_or(FsError::is_all_on_disk),
            error: error.map(ToString::to_string),
        });
    }
    served.map_err(|error| explain(&error, doing()))?;
    closed.map_err(|error| match error.is_all_on_disk() {
        true => UserError::filesystem("the volume was closed", &error),
        false => UserError::new(
            ExitCode::System,
            format!("the volume was not closed cleanly: {error}"),
        )
        .with_hint("the volume recovers at the next mount; then: bilayer check VOLUME"),
    })?;
    tracing::info!("unmounted; everything is on disk");
    Ok(())
}

const OPEN_DEVICE: &str = "let users open the device: chmod 666 /dev/fuse, as is usual";

fn explain(error: &FuseError, doing: String) -> UserError {
    let failure = UserError::new(ExitCode::Mount, format!("{doing}: {error}"));
    match error {
        FuseError::Device(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            failure.with_hint(OPEN_DEVICE)
        }
        FuseError::Device(_) => failure.with_hint("load the kernel's module: modprobe fuse"),
        FuseError::Mount(cause) if cause.to_string().contains("/dev/fuse: Permission") => {
            failure.with_hint(OPEN_DEVICE)
        }
        FuseError::Mount(cause) if cause.to_string().contains("user_allow_other") => {
            failure.with_hint("put user_allow_other into /etc/fuse.conf, or leave allow_other off")
        }
        _ => failure,
    }
}
