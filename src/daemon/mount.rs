//! `bilayer mount`, from the words of the command line to the end of the daemon.
//!
//! Order: arguments, fork, volume (this may ask for a passphrase), signals blocked, filesystem
//! (its threads begin here), control socket, mount, ready; later the mount goes, the filesystem is
//! closed, those who wait are told, the volume's lock is let go, the process ends.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::audit::{self, Record};
use crate::control::directory::VolumeDirectory;
use crate::control::locate;
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::paths::{Written, absolute, as_named, refuse_to_cover};
use crate::control::pulse::{self, Pulse};
use crate::control::report;
use crate::control::response::Closed;
use crate::control::server::ControlServer;
use crate::daemon::answers::{MountedOn, answer_for_mount, start_control};
use crate::daemon::background::{Readiness, in_background};
use crate::daemon::create::{NewVolume, create};
use crate::daemon::former_identity::FormerIdentity;
use crate::daemon::log::Log;
use crate::daemon::mount_record::{audit_end, audited, record_aside, reopen_log};
use crate::daemon::options::MountWords;
use crate::daemon::remount::remount;
use crate::daemon::utab;
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fs::{Filesystem, FilesystemOptions, FsError};
use crate::fuse::{self, FuseError, MountOptions, Signals};
use crate::keys::PassphraseSource;
use crate::store::Store;
use crate::store::directory::DirectoryStore;
use crate::sys::identity::effective_user;
use crate::sys::limits;
use crate::sys::location::Location;
use crate::sys::process::{self, EndSignals};
use crate::sys::terminal::has_terminal;
use crate::volume::{self, HEADER_NAME, OpenOptions, Volume, VolumeError};

/// How often a copy of the metadata is put beside them, unless `checkpoint=` says otherwise.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(600);

/// How long a volume may be in use that is mounted, ...
const MOUNTED_FOR: Duration = Duration::from_secs(1);
/// ... and one that is not, which somebody mounts or closes.
const CLOSING_FOR: Duration = Duration::from_secs(5);

/// What to mount where and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountRequest {
    /// The volume's directory.
    pub volume: PathBuf,
    /// Where to mount it.
    pub dir: PathBuf,
    /// Make the volume and the directory where there is none.
    pub create: bool,
    /// Take the volume as it is where it is older than the platform keystore knows it to be.
    pub accept_restored: bool,
    /// Make the copy of a volume that it is a volume of its own.
    pub new_identity: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// The words of `-o`.
    pub words: MountWords,
    /// The platform keystore.
    pub keystore: PathBuf,
}

impl MountRequest {
    /// The volume is to get another incarnation or id before it is mounted.
    fn changes_identity(&self) -> bool {
        self.new_identity || self.accept_restored
    }

    /// Discard has asked to write. mount(8) passes `rw` on whether anybody said it or not, and mounts
    /// what cannot be written to read-only itself.
    fn may_become_read_only(&self) -> bool {
        self.words.read_only.is_none() || self.words.by_mount
    }
}

/// Mounts. In the foreground it returns when the mount has gone; otherwise when the filesystem
/// answers, and then the daemon goes on in a process of its own, which ends in here.
pub(crate) fn mount(request: MountRequest, log: &Log) -> Result<(), UserError> {
    if request.words.remount {
        return remount(&request.dir, &request.words);
    }
    if request.new_identity && request.words.read_only == Some(true) {
        return Err(UserError::usage(
            "--new-identity writes to the volume, and -o ro asks that nothing is",
        )
        .with_hint("leave -o ro out; or look at the copy as it is, without --new-identity"));
    }
    let request = MountRequest {
        volume: absolute(&request.volume)?,
        dir: absolute(&request.dir)?,
        ..request
    };
    // Before anything is opened here. The daemon outlives its caller, who waits for the ends of pipes.
    process::close_inherited_descriptors(passphrase_descriptor(&request))
        .map_err(|error| UserError::io("cannot close inherited descriptors", &error))?;
    if let Some(path) = &request.words.log_file {
        log.to_file(path).map_err(|error| {
            UserError::io(format_args!("cannot log to {}", path.display()), &error)
        })?;
    }
    if request.foreground {
        return daemon(&request, log, &mut Readiness::foreground(log.clone()));
    }
    in_background(log, |readiness| daemon(&request, log, readiness))
}

/// What the caller's session allows its commands is no measure for a daemon that outlives it.
fn leave_session() {
    limits::raise_limits();
    limits::restore_priority();
}

fn daemon(request: &MountRequest, log: &Log, readiness: &mut Readiness) -> Result<(), UserError> {
    leave_session();
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
        let store = DirectoryStore::open(&request.volume);
        let claimed = store.ok().and_then(|store| volume::claimed_id(&store));
        Record::new("mount").volume(claimed).refused(&error.message);
    }
    served
}

fn mount_and_serve(
    request: &MountRequest,
    log: &Log,
    ready: &mut dyn FnMut(),
) -> Result<(), UserError> {
    let (path, dir) = prepare_places(request)?;
    audit::set_volume(&path);
    audit::set_mount_point(&dir);
    let doing = || format!("cannot mount {} on {}", path.display(), dir.display());
    let failed = |error| UserError::volume(doing(), &error);
    if !request.changes_identity() {
        let opened = open_volume(request, &path, &doing)?;
        if matches!(opened, Err(VolumeError::ReadOnlyMedium)) && request.may_become_read_only() {
            return serve_read_only(request, (&path, &dir), log, ready);
        }
        let volume = opened.map_err(failed)?;
        return serve(request, volume, (&path, &dir), log, ready);
    }
    fuse::check_mountable(&dir).map_err(|error| explain(&error, doing()))?;
    let volume = open_volume(request, &path, &doing)?.map_err(failed)?;
    let former = FormerIdentity::of(&volume);
    let mut is_ready = false;
    let mut ready = || {
        is_ready = true;
        ready();
    };
    let served = change_identity(request, volume, &path, &doing)
        .and_then(|volume| serve(request, volume, (&path, &dir), log, &mut ready));
    served.map_err(|error| match is_ready {
        true => error,
        false => former.explain(error),
    })
}

/// Mounts read-only what cannot be written to, and says so on standard error and in the log.
fn serve_read_only(
    request: &MountRequest,
    (path, dir): (&Path, &Path),
    log: &Log,
    ready: &mut dyn FnMut(),
) -> Result<(), UserError> {
    let mut request = request.clone();
    request.words.read_only = Some(true);
    let doing = || format!("cannot mount {} on {}", path.display(), dir.display());
    let volume =
        open_volume(&request, path, &doing)?.map_err(|error| UserError::volume(doing(), &error))?;
    let warning = format!(
        "{} is write-protected, since its filesystem is mounted read-only: mounted read-only",
        path.display()
    );
    let is_log_elsewhere = !request.foreground || request.words.log_file.is_some();
    serve(&request, volume, (path, dir), log, &mut || {
        if is_log_elsewhere {
            notice(format_args!("warning: {warning}"));
        }
        ready();
        tracing::warn!("{warning}");
    })
}

/// Mounts an open volume and returns when the mount has gone. `ready` is called when it answers.
fn serve(
    request: &MountRequest,
    volume: Volume,
    (path, dir): (&Path, &Path),
    log: &Log,
    ready: &mut dyn FnMut(),
) -> Result<(), UserError> {
    let doing = || format!("cannot mount {} on {}", path.display(), dir.display());
    if let Some(descriptor) = passphrase_descriptor(request) {
        process::close_inherited_descriptor(descriptor);
    }
    // Where it was started may be on a disk that somebody wants to unmount.
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "the working directory stays where it was");
    }
    let is_watched = request.foreground && has_terminal();
    // All threads that follow inherit both. Of nohup(1): the end of the terminal is not to be that
    // of the mount. Without a terminal a hangup is what has the log opened anew.
    let end = match is_watched && process::is_hangup_ignored() {
        true => EndSignals::block_but_hangup(),
        false => EndSignals::block(),
    };
    let end = end.map_err(|error| UserError::io(doing(), &error))?;
    let is_serving = Arc::new(AtomicBool::new(false));
    let mounted_on = MountedOn::default();
    let on_hangup = match is_watched {
        true => Ok(Box::new(|| false) as _),
        false => reopen_log(log, &mounted_on, &is_serving),
    };
    let on_hangup = on_hangup.map_err(|error| UserError::io(doing(), &error))?;
    let signals = Signals { end, on_hangup };
    if let Err(error) = process::set_io_flusher() {
        tracing::debug!(%error, "not marked as one that serves writeback");
    }
    let report = report::report_open(path, &volume);
    let id = volume.header.volume_id();
    let read_only = request.words.read_only.unwrap_or(false);
    let options = fuse_options(request, path, volume.header.is_foreign());
    let filesystem = Filesystem::open(volume, filesystem_options(request))
        .map_err(|error| UserError::filesystem(doing(), &error))?;
    filesystem.warn_of_hidden();
    let control = start_control(path, &filesystem, report, read_only, &mounted_on);
    let mut recorded = None;
    let served = fuse::mount(
        Arc::clone(&filesystem),
        dir,
        &options,
        Some(signals),
        |device| {
            tracing::info!(volume = %path.display(), dir = %dir.display(), "mounted");
            recorded = record_aside(|| audited(id, read_only, &options));
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
                answer_for_mount(control.as_ref(), device);
            }
            ready();
        },
    );
    let ended = mounted_on.lock().take();
    if let Some(control) = &control {
        control.answer_for_no_mount();
    }
    let closed = filesystem.close();
    // Before the volume's lock goes: whoever mounts it next makes a line of their own.
    if let Some(entry) = ended {
        entry.remove();
    }
    drop(filesystem);
    if is_serving.load(Ordering::SeqCst) {
        if let Some(thread) = recorded {
            // It does not panic, and the record of the end is due in any case.
            let _ = thread.join();
        }
        audit_end(id, control.as_ref(), &closed);
    }
    finish(control, served, closed, &doing)
}

/// Makes what `--create` asks for, resolves both paths, and refuses pairs that cannot work.
fn prepare_places(request: &MountRequest) -> Result<(PathBuf, PathBuf), UserError> {
    if request.create {
        make_missing(request)?;
    }
    let find = |path: &Path| {
        std::fs::canonicalize(path)
            .map_err(|error| UserError::io(format_args!("cannot find {}", path.display()), &error))
    };
    let volume = find(&request.volume).map_err(|error| {
        error.with_hint("make a volume first: bilayer create VOLUME (or mount with --create)")
    })?;
    let doing = || format!("cannot mount on {}", request.dir.display());
    match pulse::mount_and_pulse(&request.dir) {
        Some((mount, Pulse::Dead)) => return Err(pulse::dead(&doing(), &mount)),
        Some((_, Pulse::Silent)) => return Err(refusal(doing(), &[Obstacle::Silent])),
        _ => {}
    }
    let dir = find(&request.dir)
        .map_err(|error| error.with_hint(format!("make it: mkdir {}", request.dir.display())))?;
    let refused =
        |error: &io::Error| UserError::io(format_args!("cannot mount on {}", dir.display()), error);
    match std::fs::metadata(&dir) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(refused(&io::ErrorKind::NotADirectory.into())),
        Err(error) => return Err(refused(&error)),
    }
    if dir.starts_with(&volume) || volume.starts_with(&dir) {
        return Err(UserError::usage(format!(
            "cannot mount {} on {}: one is inside the other",
            volume.display(),
            dir.display()
        ))
        .with_hint("mount on an empty directory elsewhere"));
    }
    let written = [
        (Written::Keystore, Some(request.keystore.clone())),
        (Written::Log, request.words.log_file.clone()),
        (Written::Audit, audit::file()),
    ];
    for (what, path) in written {
        path.map_or(Ok(()), |path| refuse_to_cover(what, &path, &dir))?;
    }
    Ok((volume, dir))
}

fn make_missing(request: &MountRequest) -> Result<(), UserError> {
    if !request.volume.join(HEADER_NAME).exists() {
        let doing = || format!("cannot make {}", request.volume.display());
        let (path, named) = (without_links(&request.volume), as_named(&request.volume));
        volume::refuse_vanished(&request.keystore, &path, &named)
            .map_err(|error| UserError::volume(doing(), &error))?;
        create(&NewVolume {
            path: request.volume.clone(),
            customer_key: request.words.customer_key.clone(),
            size_bytes: None,
            keystore: request.keystore.clone(),
            passphrase: passphrase(request),
        })?;
    }
    match DirBuilder::new().mode(0o755).create(&request.dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(UserError::io(
            format_args!("cannot make {}", request.dir.display()),
            &error,
        )),
        _ => Ok(()),
    }
}

/// Where a path leads to, its last part being there or not.
fn without_links(path: &Path) -> PathBuf {
    std::fs::canonicalize(path)
        .or_else(|error| match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(std::fs::canonicalize(parent)?.join(name)),
            _ => Err(error),
        })
        .unwrap_or_else(|_| path.to_owned())
}

fn passphrase(request: &MountRequest) -> PassphraseSource {
    request
        .words
        .passphrase
        .clone()
        .unwrap_or(PassphraseSource::Prompt)
}

/// The descriptor that the caller has the passphrase come from, unless it is a standard stream, which
/// is left with the terminal.
fn passphrase_descriptor(request: &MountRequest) -> Option<RawFd> {
    match request.words.passphrase {
        Some(PassphraseSource::Descriptor(descriptor)) if descriptor > 2 => Some(descriptor),
        _ => None,
    }
}

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
        customer_key: request.words.customer_key.clone(),
        keystore: request.keystore.clone(),
        path: Some(path.to_owned()),
        named: as_named(&request.volume),
        passphrase: passphrase(request),
        read_only: request.words.read_only.unwrap_or(false),
        fingerprint: request.words.fingerprint.clone(),
        accept_restored: request.accept_restored,
        new_identity: request.new_identity,
    };
    Ok(open_when_free(Some(&directory), &Arc::new(store), &options))
}

/// Does what `--accept-restored` or `--new-identity` asks for.
fn change_identity(
    request: &MountRequest,
    volume: Volume,
    path: &Path,
    doing: &impl Fn() -> String,
) -> Result<Volume, UserError> {
    let volume = accept(request, volume, doing)?;
    separate(request, volume, path, doing)
}

fn accept(
    request: &MountRequest,
    volume: Volume,
    doing: &impl Fn() -> String,
) -> Result<Volume, UserError> {
    if !request.accept_restored || request.words.read_only == Some(true) {
        return Ok(volume);
    }
    let cache = filesystem_options(request).meta_cache_bytes;
    Filesystem::accept_restored(volume, cache)
        .map_err(|error| UserError::filesystem(doing(), &error))
}

fn separate(
    request: &MountRequest,
    volume: Volume,
    path: &Path,
    doing: &impl Fn() -> String,
) -> Result<Volume, UserError> {
    if !request.new_identity {
        return Ok(volume);
    }
    let before = volume.header.volume_id();
    let cache = filesystem_options(request).meta_cache_bytes;
    let volume = Filesystem::separate(volume, cache)
        .map_err(|error| UserError::filesystem(doing(), &error))?;
    tracing::info!(
        volume = %path.display(),
        id = %volume.header.volume_id(),
        copy_of = %before,
        "the copy is a volume of its own now"
    );
    Ok(volume)
}

/// Somebody may be about to unmount it, or has and it is being closed: waits for that a little.
pub(crate) fn open_when_free(
    directory: Option<&VolumeDirectory>,
    store: &Arc<DirectoryStore>,
    options: &OpenOptions,
) -> Result<Volume, VolumeError> {
    let begin = Instant::now();
    let store: Arc<dyn Store> = Arc::clone(store) as _;
    volume::open_with_retry(store, options, &mut |error| {
        let patience = match error {
            VolumeError::WriterElsewhere { .. } => MOUNTED_FOR,
            VolumeError::InUse { .. } => {
                // No more than a hint, at how long to wait.
                let mounted = directory.is_some_and(|dir| !locate::hinted(dir).is_empty());
                if mounted { MOUNTED_FOR } else { CLOSING_FOR }
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

/// So many objects as may be open, beside what else is: descriptors of requests under way, of the
/// socket's clients, of directories.
fn open_objects(asked: Option<usize>, default: usize) -> usize {
    const BESIDE: u64 = 128;
    /// With fewer than these small files are synced in many turns.
    const FEW: usize = 512;
    let most = limits::open_files().saturating_sub(BESIDE).max(8);
    let wanted = asked.unwrap_or(default);
    let allowed = usize::try_from(most).map_or(wanted, |most| wanted.min(most));
    if allowed < asked.unwrap_or(FEW) {
        tracing::warn!(
            wanted,
            allowed,
            "fewer files of the volume are kept open than was asked for: ulimit -n does not allow more"
        );
    }
    allowed
}

fn filesystem_options(request: &MountRequest) -> FilesystemOptions {
    let words = &request.words;
    let mut options = FilesystemOptions::default();
    options.read_only = words.read_only.unwrap_or(false);
    options.commit_interval = words.commit.unwrap_or(options.commit_interval);
    options.meta_cache_bytes = words.meta_cache_bytes.unwrap_or(options.meta_cache_bytes);
    options.open_objects = open_objects(words.open_objects, options.open_objects);
    options.pending_bytes = words.pending_bytes.unwrap_or(options.pending_bytes);
    options.access_times = words.access_times.unwrap_or_default();
    options.snapshot_dir = words.snapshot_dir.clone().unwrap_or_default();
    let checkpoint = words.checkpoint.unwrap_or(CHECKPOINT_INTERVAL);
    options.checkpoint_interval = (!checkpoint.is_zero()).then_some(checkpoint);
    options
}

/// A mount that root makes is for everybody under ordinary permissions, as any disk is.
/// One that others have filled is mounted without their set-id programs and devices.
fn fuse_options(request: &MountRequest, path: &Path, foreign: bool) -> MountOptions {
    let words = &request.words;
    let mut options = MountOptions::new(path);
    let by_root = effective_user() == 0;
    options.flags = words.flags(by_root);
    if foreign {
        let wanted = options.flags;
        options.flags = words.restrained(wanted);
        if options.flags != wanted {
            tracing::info!(
                nosuid = options.flags.nosuid,
                nodev = options.flags.nodev,
                "the volume came from elsewhere: no set-id programs and devices of others, unless \
                 suid,dev (in fstab: trusted) is asked for"
            );
        }
    }
    options.allow_other = words.allow_other.unwrap_or(by_root);
    options.writeback = words.writeback.unwrap_or(options.writeback);
    options.follow_caller = words.follow_caller.unwrap_or(options.follow_caller);
    options.nfs_export = words.nfs_export.unwrap_or(options.nfs_export);
    options.workers = words.workers.unwrap_or(options.workers);
    options.max_background = words.max_background.unwrap_or(options.max_background);
    options
}

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
    let told = UserError::new(ExitCode::Mount, format!("{doing}: {error}"));
    match error {
        FuseError::Device(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            told.with_hint(OPEN_DEVICE)
        }
        FuseError::Device(_) => told.with_hint("load the kernel's module: modprobe fuse"),
        FuseError::Mount(cause) if cause.to_string().contains("/dev/fuse: Permission") => {
            told.with_hint(OPEN_DEVICE)
        }
        FuseError::Mount(cause) if cause.to_string().contains("user_allow_other") => {
            told.with_hint("put user_allow_other into /etc/fuse.conf, or leave allow_other off")
        }
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::SnapshotDir;

    fn request(volume: &Path, dir: &Path) -> MountRequest {
        MountRequest {
            volume: volume.to_path_buf(),
            dir: dir.to_path_buf(),
            create: false,
            accept_restored: false,
            new_identity: false,
            foreground: true,
            words: MountWords::default(),
            keystore: "/no/such/keystore".into(),
        }
    }

    #[test]
    fn places_that_cannot_work_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let (volume, dir) = (top.path().join("vol"), top.path().join("mnt"));
        for path in [
            &volume,
            &dir,
            &volume.join("in"),
            &top.path().join("volume"),
        ] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(top.path().join("file"), b"").unwrap();
        let code = |dir: &Path| prepare_places(&request(&volume, dir)).unwrap_err().code;
        assert_eq!(code(&volume), ExitCode::Usage);
        assert_eq!(code(&volume.join("in")), ExitCode::Usage);
        assert_eq!(code(top.path()), ExitCode::Usage);
        assert_eq!(code(&top.path().join("file")), ExitCode::NotFound);
        assert_eq!(code(&top.path().join("gone")), ExitCode::NotFound);
        prepare_places(&request(&volume, &dir)).unwrap();
        // A name that merely begins alike is another place.
        prepare_places(&request(&volume, &top.path().join("volume"))).unwrap();
        let gone = prepare_places(&request(&top.path().join("gone"), &dir)).unwrap_err();
        assert!(gone.hint.unwrap().contains("bilayer create"));
    }

    #[test]
    fn words_reach_both_sides() {
        let mut request = request(Path::new("/v"), Path::new("/d"));
        let text = "ro,commit=7,checkpoint=8,meta_cache=2M,pending=3M,open_objects=9,workers=4,nowriteback,\
                    follow_caller=off,nfs_export=on,max_background=5,allow_other,exec,suid,nodev,\
                    snapshot_dir=off";
        request.words = MountWords::parse([text], Path::new("/")).unwrap();
        let inner = filesystem_options(&request);
        assert!(inner.read_only);
        assert_eq!(inner.commit_interval.as_secs(), 7);
        assert_eq!(inner.checkpoint_interval, Some(Duration::from_secs(8)));
        assert_eq!(inner.meta_cache_bytes, 2 << 20);
        assert_eq!(inner.pending_bytes, 3 << 20);
        assert_eq!(inner.open_objects, 9);
        assert_eq!(inner.snapshot_dir, SnapshotDir::Off);
        let outer = fuse_options(&request, Path::new("/v"), false);
        assert!(outer.allow_other && !outer.writeback && !outer.follow_caller && outer.nfs_export);
        assert!(outer.flags.read_only && outer.flags.nodev && !outer.flags.nosuid);
        assert_eq!((outer.workers, outer.max_background), (4, 5));
        assert_eq!(outer.source, Path::new("/v"));
        // `suid` was asked for.
        let foreign = fuse_options(&request, Path::new("/v"), true);
        assert_eq!(foreign.flags, outer.flags);
        request.words.suid = None;
        assert!(fuse_options(&request, Path::new("/v"), true).flags.nosuid);
    }
}
