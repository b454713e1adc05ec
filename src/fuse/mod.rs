//! The way from the kernel to [`crate::fs`]: FUSE by the `fuser` crate, which no other module
//! knows.
//!
//! ```text
//! kernel ─► reading thread (adapter, dispatch, follow) ─┬─ inline ──► fs ─► replies
//!                                                       └─ workers ─► fs ─► replies
//! signals ─► unmount (mountpoint, mountinfo)
//! ```
//!
//! Order at the end: the mount goes, the reading thread ends, the workers finish what is queued,
//! [`mount`] returns; closing the filesystem is the caller's next step.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::fs::Filesystem;
use crate::sys::mounts::MountFlags;
use crate::sys::process::EndSignals;

mod adapter;
mod asker;
mod capabilities;
mod contents;
mod convert;
mod dirty;
mod dispatch;
mod follow;
mod full;
mod ioctl;
pub mod mountinfo;
mod mountpoint;
mod notify;
mod replies;
mod views;
mod workers;

pub use mountpoint::unmount;

use adapter::{Adapter, AdapterOptions};
use dirty::DirtyLimits;
use dispatch::Dispatch;
use full::FullFiles;
use mountpoint::Mounted;
use notify::Notices;
use workers::Workers;

/// Background requests (read-ahead, writeback) that the kernel may have under way: all that it may
/// hold back. Those beyond wait in the kernel, where a small file's contents queue behind
/// somebody's bulk; here they go first.
const MAX_BACKGROUND: u16 = 128;

/// Between two attempts to take away a mount that is in use.
const RETRY: Duration = Duration::from_secs(1);
/// A signal that comes sooner after the first is of the same end of a session.
const SAME_END: Duration = Duration::from_secs(1);

/// The signals that unmount.
pub struct Signals {
    /// They must have been blocked before any thread was made.
    pub end: EndSignals,
    /// Called at SIGHUP; true when it was to have files opened anew, and is no reason to end.
    pub on_hangup: Box<dyn Fn() -> bool + Send>,
}

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// What the mount shows as its source: the volume's directory, absolute.
    pub source: PathBuf,
    /// `ro`, `nodev`, ...
    pub flags: MountFlags,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// The kernel gathers writes. Off: every write reaches the filesystem at once.
    pub writeback: bool,
    /// Threads for contents and other long work.
    pub workers: usize,
    /// The reading thread stays on its caller's CPU.
    pub follow_caller: bool,
    /// File handles stay good when the kernel has forgotten the file.
    pub nfs_export: bool,
    /// Background requests that the kernel may have under way.
    pub max_background: u16,
}

impl MountOptions {
    /// The defaults: one user's mount, everything that makes it fast.
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

/// Why a mount could not be made or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// There is no FUSE device, or it cannot be opened.
    #[error("cannot open /dev/fuse: {0}")]
    Device(#[source] io::Error),
    /// The kernel or fusermount3 refused.
    #[error("{0}")]
    Mount(#[source] io::Error),
    /// The kernel and this program could not agree.
    #[error("the FUSE handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// Serving ended by an error and not by unmounting.
    #[error("serving the mount ended unexpectedly: {0}")]
    Session(#[source] io::Error),
}

/// Refuses what would make a mount on `dir` fail, as far as that can be known before: for somebody
/// who changes a volume first.
///
/// # Errors
/// The device cannot be opened, or this user may not mount there.
pub fn check_mountable(dir: &Path) -> Result<(), FuseError> {
    mountpoint::check_device().map_err(FuseError::Device)?;
    mountpoint::check_user(dir).map_err(FuseError::Mount)
}

/// Mounts and serves until the mount is gone. `ready` is called once the filesystem answers, with
/// its device number where that is known.
///
/// `dir`: absolute, without symbolic links, an existing directory. `signals`: those that unmount;
/// they must have been blocked before any thread was made, those of `filesystem` included. A mount
/// that is in use goes when it is free, or at once when another signal comes later.
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
    let limits = Arc::new(DirtyLimits::default());
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
        Arc::new(FullFiles::new(Arc::clone(&notices), Arc::clone(&limits))),
    );
    let lift = |mounted: &Mounted| {
        if let Some(folder) = mounted.limits_folder() {
            limits.lift(folder, &filesystem);
        }
    };
    let to_serve = (adapter, dir, options);
    let result = serve(to_serve, &filesystem, &notices, &lift, signals, ready);
    workers.finish();
    filesystem.detach();
    result
}

fn serve(
    (adapter, dir, options): (Adapter, &Path, &MountOptions),
    filesystem: &Arc<Filesystem>,
    notices: &Notices,
    lift_limits: &dyn Fn(&Mounted),
    signals: Option<Signals>,
    ready: impl FnOnce(Option<u64>),
) -> Result<(), FuseError> {
    let (device, mounted) = mountpoint::mount(dir, options).map_err(explain_mount)?;
    let session = match start_session(adapter, device) {
        Ok(session) => session,
        Err(error) => {
            take_away(&mounted);
            return Err(FuseError::Handshake(error));
        }
    };
    lift_limits(&mounted);
    let result = notices
        .start(session.notifier(), mounted.clone(), options.writeback)
        .and_then(|()| listen_for(signals, filesystem, &mounted))
        .map_err(FuseError::Thread)
        .and_then(|()| {
            ready(mounted.device());
            session.run().map_err(FuseError::Session)
        });
    if result.is_err() {
        // Nobody answers there any more: callers get an error at once instead of a dead mount.
        take_away(&mounted);
    }
    result
}

fn listen_for(
    signals: Option<Signals>,
    filesystem: &Arc<Filesystem>,
    mounted: &Mounted,
) -> io::Result<()> {
    let Some(signals) = signals else {
        return Ok(());
    };
    // Not held while it waits: who has mounted closes the filesystem when the mount has gone.
    let filesystem = Arc::downgrade(filesystem);
    let mounted = mounted.clone();
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || unmount_on(&signals, &filesystem, &mounted))?;
    Ok(())
}

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
    // Who may use the mount is the kernel's to check (`allow_other`). fuser's own check would
    // also refuse the kernel's own requests, which come as root, such as the times of writeback.
    let everybody = fuser::SessionACL::All;
    fuser::Session::from_fd(adapter, OwnedFd::from(device), everybody, config)
}

fn take_away(mounted: &Mounted) {
    if let Err(error) = mounted.unmount(true) {
        tracing::warn!(%error, "the mount could not be taken away");
    }
}

/// Makes everything durable at the first signal, and unmounts then, or when nobody uses the mount
/// any more. At the end of a session everybody is told to end at once, and whoever works in the
/// mount may be slower. A signal that comes later detaches it.
fn unmount_on(signals: &Signals, filesystem: &Weak<Filesystem>, mounted: &Mounted) {
    let mut asked: Option<Instant> = None;
    let mut is_told = false;
    while let Ok(signal) = signals.end.wait(asked.map(|_| RETRY)) {
        if signal == Some("SIGHUP") && (signals.on_hangup)() {
            continue;
        }
        let mut lazy = false;
        match (signal, asked) {
            (None, None) => continue,
            (None, Some(_)) => {}
            (Some(signal), None) => {
                tracing::info!(signal, "unmounting");
                asked = Some(Instant::now());
                save(filesystem, mounted);
            }
            (Some(signal), Some(then)) if then.elapsed() > SAME_END => {
                tracing::info!(signal, "detaching the mount");
                lazy = true;
            }
            (Some(_), Some(_)) => {}
        }
        match mounted.unmount(lazy) {
            Ok(()) if !mounted.is_there() => return,
            Ok(()) => {}
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!(
                    %error,
                    "still serving: the mount is in use, and goes when it is free; another signal \
                     detaches it"
                );
            }
            Err(_) => {}
        }
    }
}

fn save(filesystem: &Weak<Filesystem>, mounted: &Mounted) {
    let Some(filesystem) = filesystem.upgrade() else {
        return;
    };
    if let Err(error) = mounted.send_all() {
        tracing::debug!(%error, "the kernel may hold something back");
    }
    if let Err(error) = filesystem.sync() {
        tracing::error!(%error, "not everything could be made durable");
    }
}
