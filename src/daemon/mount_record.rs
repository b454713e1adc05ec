//! The audit records of a mount, and reopening its log at a hangup. Neither may block the thread
//! that serves the mount or the one that unmounts.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::log::Log;
use super::request_handler::MountedOn;
use crate::audit::{self, Record, Requester};
use crate::control::server::ControlServer;
use crate::fs::FsError;
use crate::fuse::MountOptions;
use crate::ids::VolumeId;

/// How long a mount waits for its record before it is served.
const RECORD_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes a record in a separate thread, and waits only briefly: the audit file may be inside the
/// mount that the caller is about to serve. Normally the record is written when this returns. The
/// result is the thread, unless the record was written without one.
pub(super) fn record_in_background(record: impl Fn() -> Record) -> Option<thread::JoinHandle<()>> {
    let (written, is_written) = mpsc::channel::<()>();
    let (context, threads_record) = (audit::Context::here(), record());
    let spawned = thread::Builder::new()
        .name("audit".to_owned())
        .spawn(move || {
            let _here = context.enter();
            threads_record.done();
            drop(written);
        });
    if spawned.is_err() {
        record().done();
        return None;
    }
    let _ = is_written.recv_timeout(RECORD_TIMEOUT);
    spawned.ok()
}

/// The record of a mount.
pub(super) fn mount_record(volume: VolumeId, read_only: bool, options: &MountOptions) -> Record {
    Record::new("mount")
        .volume(volume)
        .with("read_only", read_only)
        .with("allow_other", options.allow_other)
}

/// Writes the record of an unmount. Its requester is the peer that waits for the outcome. If none
/// waits, the requester is unknown: the kernel does not name it.
pub(super) fn audit_unmount(
    volume: VolumeId,
    control: Option<&ControlServer>,
    closed: &Result<(), FsError>,
) {
    let peer = control.and_then(ControlServer::unmounting_peer);
    let requester = peer.map_or(Requester::UNKNOWN, |peer| {
        Requester::process(peer.uid, peer.pid as u32)
    });
    let _requested = audit::requested_by(requester);
    Record::new("unmount").volume(volume).outcome(closed);
}

/// The daemon's handler of a hangup, which reopens its log: the file may have been renamed. It
/// returns false while the mount is not served yet: then a hangup is the end of the terminal.
/// Opening a file may block for ever, so a separate thread does it, and not the one that unmounts.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn log_reopener(
    log: &Log,
    mounted_on: &MountedOn,
    is_serving: &Arc<AtomicBool>,
) -> io::Result<Box<dyn Fn() -> bool + Send>> {
    let (log, mounted_on) = (log.clone(), Arc::clone(mounted_on));
    let (request, requests) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            for () in requests {
                let device = mounted_on.lock().as_ref().map(|entry| entry.device);
                log.reopen(device);
            }
        })?;
    let is_serving = Arc::clone(is_serving);
    Ok(Box::new(move || {
        let reopens = is_serving.load(Ordering::SeqCst);
        if reopens {
            // If the channel is full, the thread will reopen the log once more anyway.
            let _ = request.try_send(());
        }
        reopens
    }))
}
