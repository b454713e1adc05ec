//! The FUSE server: translates between the kernel and [`crate::fs`]. It uses the `fuser` crate,
//! which no other module knows.
//!
//! ```text
//! kernel ─► reading thread (adapter, dispatch, cpu_follower) ─┬─ inline ──► fs ─► replies
//!                                                             └─ workers ─► fs ─► replies
//! signals ─► unmount (mountpoint)
//! ```
//!
//! Order at the end: the mount is removed, the reading thread ends, the workers finish queued
//! requests, [`mount`] returns; then the caller closes the filesystem.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::fs::Filesystem;
use crate::sys::mounts::{Detach, MountFlags};
use crate::sys::process::EndSignals;

mod adapter;
mod capabilities;
mod contents;
mod convert;
mod cpu_follower;
mod dirty;
mod dispatch;
mod ioctl;
mod mountpoint;
mod notify;
pub mod own_mounts;
mod replies;
mod requester;
mod views;
mod workers;
mod write_refusals;

pub(crate) use mountpoint::unmount;

use adapter::Adapter;
use capabilities::AdapterOptions;
use dispatch::Dispatch;
use mountpoint::Mounted;
use notify::Notices;
use workers::Workers;
use write_refusals::WriteRefusals;

/// Maximum number of background requests (read-ahead, writeback) in flight: everything that the
/// kernel may have pending. Further ones would wait in the kernel, where the contents of a small
/// file queue behind bulk writes of others; here they are served first.
const MAX_BACKGROUND: u16 = 128;

/// Delay between two attempts to unmount a mount that is in use.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// A signal within this time after the first one is part of the same request to end.
const SAME_REQUEST_WINDOW: Duration = Duration::from_secs(1);

/// The signals that unmount.
pub struct Signals {
    /// They must have been blocked before any thread was started.
    pub end: EndSignals,
    /// Called at SIGHUP. Returns true if it has reopened log files; then the mount stays.
    pub on_hangup: Box<dyn Fn() -> bool + Send>,
}

/// Options of a mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// The source that the mount shows: the volume's directory, absolute.
    pub source: PathBuf,
    /// `ro`, `nodev`, ...
    pub flags: MountFlags,
    /// Whether users other than the one who mounts may use it.
    pub allow_other: bool,
    /// Whether the kernel buffers writes. If off, every write reaches the filesystem at once.
    pub writeback: bool,
    /// Number of threads for contents.
    pub workers: usize,
    /// Whether the reading thread stays on its caller's CPU.
    pub follow_caller: bool,
    /// Whether file handles stay valid after the kernel has forgotten the file.
    pub nfs_export: bool,
    /// Maximum number of background requests in flight.
    pub max_background: u16,
}

impl MountOptions {
    /// The defaults: a mount for one user, with all optimizations.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            flags: MountFlags::default(),
            allow_other: false,
            writeback: true,
            workers: Workers::default_count(),
            follow_caller: true,
            nfs_export: false,
            max_background: MAX_BACKGROUND,
        }
    }
}

/// Why a mount could not be made, or failed.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// There is no FUSE device, or it cannot be opened.
    #[error("cannot open /dev/fuse: {0}")]
    Device(#[source] io::Error),
    /// The kernel or fusermount3 refused.
    #[error("{0}")]
    Mount(#[source] io::Error),
    /// The FUSE handshake with the kernel failed.
    #[error("the FUSE handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// Serving ended with an error instead of an unmount.
    #[error("serving the mount ended unexpectedly: {0}")]
    Session(#[source] io::Error),
}

/// Checks whether a mount on `dir` can succeed, as far as that is known in advance. Callers that
/// change a volume before they mount it call this first.
///
/// # Errors
/// The device cannot be opened, or this user may not mount there.
pub fn check_mountable(dir: &Path) -> Result<(), FuseError> {
    mountpoint::check_device().map_err(FuseError::Device)?;
    mountpoint::check_user(dir).map_err(FuseError::Mount)
}

/// Mounts, and serves until the mount is gone. `ready` is called once the filesystem answers, with
/// its device number if that is known.
///
/// `dir` is absolute, without symbolic links, and an existing directory. `signals` unmount; they
/// must have been blocked before any thread was started, those of `filesystem` included. A mount
/// that is in use is removed when it is free, or at once after another, later signal.
///
/// # Errors
/// The mount could not be made, a thread could not be started, or serving failed.
pub fn mount(
    filesystem: Arc<Filesystem>,
    dir: &Path,
    options: &MountOptions,
    signals: Option<Signals>,
    ready: impl FnOnce(Option<u64>),
) -> Result<(), FuseError> {
    let workers = Arc::new(Workers::start(options.workers).map_err(FuseError::Thread)?);
    let notices = Arc::new(Notices::default());
    filesystem.attach(Arc::clone(&notices) as _);
    let dispatch = Dispatch::new(
        Arc::clone(&filesystem),
        Arc::clone(&workers),
        options.follow_caller,
    );
    let adapter = Adapter::new(
        dispatch,
        AdapterOptions {
            writeback: options.writeback,
            nfs_export: options.nfs_export,
            max_background: options.max_background,
        },
        Arc::clone(&notices),
        Arc::new(WriteRefusals::new(Arc::clone(&notices))),
    );
    let server = Server {
        adapter,
        dir,
        options,
    };
    let result = serve(server, &filesystem, &notices, signals, ready);
    workers.finish();
    filesystem.detach();
    result
}

/// An adapter, and where and how it is mounted.
struct Server<'a> {
    adapter: Adapter,
    dir: &'a Path,
    options: &'a MountOptions,
}

fn serve(
    server: Server<'_>,
    filesystem: &Arc<Filesystem>,
    notices: &Notices,
    signals: Option<Signals>,
    ready: impl FnOnce(Option<u64>),
) -> Result<(), FuseError> {
    let Server {
        adapter,
        dir,
        options,
    } = server;
    let (device, mounted) = mountpoint::mount(dir, options).map_err(explain_mount)?;
    let session = match start_session(adapter, device) {
        Ok(session) => session,
        Err(error) => {
            remove_mount(&mounted);
            return Err(FuseError::Handshake(error));
        }
    };
    if let Some(folder) = mounted.limits_folder() {
        dirty::set_limits(&folder);
    }
    let result = notices
        .start(session.notifier(), mounted.clone(), options.writeback)
        .and_then(|()| start_signal_thread(signals, filesystem, &mounted))
        .map_err(FuseError::Thread)
        .and_then(|()| {
            ready(mounted.device());
            session.run().map_err(FuseError::Session)
        });
    if result.is_err() {
        // No thread answers requests any more. Without the mount, callers get an error at once.
        remove_mount(&mounted);
    }
    result
}

fn start_signal_thread(
    signals: Option<Signals>,
    filesystem: &Arc<Filesystem>,
    mounted: &Mounted,
) -> io::Result<()> {
    let Some(signals) = signals else {
        return Ok(());
    };
    // A weak reference while it waits, since the caller of `mount` closes the filesystem after the
    // mount is gone.
    let filesystem = Arc::downgrade(filesystem);
    let mounted = mounted.clone();
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || unmount_on(&signals, &filesystem, &mounted))?;
    Ok(())
}

/// The error of a mount that failed: [`FuseError::Device`] if there is no FUSE device.
fn explain_mount(error: io::Error) -> FuseError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) if !Path::new("/dev/fuse").exists() => {
            FuseError::Device(error)
        }
        _ => FuseError::Mount(error),
    }
}

fn start_session(adapter: Adapter, device: File) -> io::Result<fuser::Session<Adapter>> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(1);
    // The kernel checks who may use the mount (`allow_other`). fuser's own check would also refuse
    // requests of the kernel itself, which come as root, such as those for times of writeback.
    let access = fuser::SessionACL::All;
    fuser::Session::from_fd(adapter, OwnedFd::from(device), access, config)
}

fn remove_mount(mounted: &Mounted) {
    if let Err(error) = mounted.unmount(Detach::Lazy) {
        tracing::warn!(%error, "the mount could not be removed");
    }
}

/// Makes everything durable at the first signal, and unmounts then or as soon as the mount is free.
/// At the end of a session all processes get the signal at the same time, and those that use the
/// mount may take longer to end. A later signal detaches the mount.
fn unmount_on(signals: &Signals, filesystem: &Weak<Filesystem>, mounted: &Mounted) {
    let mut first_signal: Option<Instant> = None;
    let mut is_logged = false;
    while let Ok(signal) = signals.end.wait(first_signal.map(|_| RETRY_DELAY)) {
        if signal == Some("SIGHUP") && (signals.on_hangup)() {
            continue;
        }
        let mut how = Detach::No;
        match (signal, first_signal) {
            (None, None) => continue,
            (None, Some(_)) => {}
            (Some(signal), None) => {
                tracing::info!(signal, "unmounting");
                first_signal = Some(Instant::now());
                sync_all(filesystem, mounted);
            }
            (Some(signal), Some(first)) if first.elapsed() > SAME_REQUEST_WINDOW => {
                tracing::info!(signal, "detaching the mount");
                how = Detach::Lazy;
            }
            (Some(_), Some(_)) => {}
        }
        match mounted.unmount(how) {
            Ok(()) if !mounted.is_there() => return,
            Ok(()) => {}
            Err(error) if !is_logged => {
                is_logged = true;
                tracing::warn!(
                    %error,
                    "still serving: the mount is in use, and is unmounted when it is free; \
                     another signal detaches it"
                );
            }
            Err(_) => {}
        }
    }
}

/// Makes everything durable, dirty pages of the kernel included.
fn sync_all(filesystem: &Weak<Filesystem>, mounted: &Mounted) {
    let Some(filesystem) = filesystem.upgrade() else {
        return;
    };
    if let Err(error) = mounted.send_all() {
        tracing::debug!(%error, "the kernel may still have dirty pages");
    }
    if let Err(error) = filesystem.sync() {
        tracing::error!(%error, "not everything could be made durable");
    }
}
