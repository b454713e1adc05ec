//! What a mount leaves in the audit, and its log, which is opened anew at a hangup. None of it may
//! keep the thread that serves the mount, or the one that unmounts.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::audit::{self, Record, Requester};
use crate::control::server::ControlServer;
use crate::daemon::answers::MountedOn;
use crate::daemon::log::Log;
use crate::fs::FsError;
use crate::fuse::MountOptions;
use crate::ids::VolumeId;

/// How long a mount waits for its record before it is served.
const RECORD_FOR: Duration = Duration::from_millis(500);

/// Writes a record in a thread of its own, since the caller must not wait for it for long: the file
/// may lead into the mount that the caller is to serve next. As a rule it is written when this
/// returns.
pub(crate) fn record_aside(record: impl Fn() -> Record) -> Option<thread::JoinHandle<()>> {
    let (written, is_written) = mpsc::channel::<()>();
    let (context, taken_along) = (audit::Context::here(), record());
    let spawned = thread::Builder::new()
        .name("audit".to_owned())
        .spawn(move || {
            let _here = context.enter();
            taken_along.done();
            drop(written);
        });
    if spawned.is_err() {
        record().done();
        return None;
    }
    let _ = is_written.recv_timeout(RECORD_FOR);
    spawned.ok()
}

/// The record of a mount.
pub(crate) fn audited(volume: VolumeId, read_only: bool, options: &MountOptions) -> Record {
    Record::new("mount")
        .volume(volume)
        .with("read_only", read_only)
        .with("allow_other", options.allow_other)
}

/// Whoever unmounts waits for the answer; of those who do not the kernel says nothing.
pub(crate) fn audit_end(
    volume: VolumeId,
    control: Option<&ControlServer>,
    closed: &Result<(), FsError>,
) {
    let waits = control.and_then(ControlServer::waits);
    let asker = waits.map_or(Requester::UNKNOWN, |peer| {
        Requester::process(peer.uid, peer.pid as u32)
    });
    let _asked = audit::requested_by(asker);
    Record::new("unmount").volume(volume).outcome(closed);
}

/// What a hangup means to a daemon: its log was renamed. (To a process that a person watches, or
/// one that is not ready yet, it is the end of the terminal.) Opening a file may take for ever, so
/// a thread does it that does nothing else, and not the one that unmounts.
pub(crate) fn reopen_log(
    log: &Log,
    mounted_on: &MountedOn,
    is_serving: &Arc<AtomicBool>,
) -> io::Result<Box<dyn Fn() -> bool + Send>> {
    let (log, mounted_on) = (log.clone(), Arc::clone(mounted_on));
    let (ask, asked) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            for () in asked {
                let device = mounted_on.lock().as_ref().map(|entry| entry.device);
                log.reopen(device);
            }
        })?;
    let is_serving = Arc::clone(is_serving);
    Ok(Box::new(move || {
        let reopens = is_serving.load(Ordering::SeqCst);
        if reopens {
            // Full: it will be opened anew after this, whatever it is doing now.
            let _ = ask.try_send(());
        }
        reopens
    }))
}
