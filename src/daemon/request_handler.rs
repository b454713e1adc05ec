//! The daemon's answers to requests on its control socket ([`crate::control`]).

use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::customer_key::KeyCheck;
use super::operations::perform;
use super::remount::apply_remount;
use super::utab;
use crate::control::directory::DirectoryId;
use crate::control::obstacle::Obstacle;
use crate::control::proof;
use crate::control::report::{self, Report};
use crate::control::request::{Operation, Request};
use crate::control::response::{Outcome, Receiver, Response};
use crate::control::server::{ControlServer, RequestHandler};
use crate::control::wire::{self, ResponseWriter};
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::{Filesystem, FsError};

/// The mount; `None` before and after it exists, since the kernel reuses its device number.
pub(super) type MountedOn = Arc<Mutex<Option<utab::Entry>>>;

/// The state of the daemon that answers requests.
struct Daemon {
    /// Held weakly: the volume's lock is released with the filesystem.
    filesystem: Weak<Filesystem>,
    reports: Reports,
    directory: DirectoryId,
    mounted_on: MountedOn,
}

impl RequestHandler for Daemon {
    fn respond(&self, request: &Request, to: &mut dyn Write) -> io::Result<()> {
        let open = self.filesystem.upgrade();
        if matches!(request, Request::Status) {
            let report = self.reports.now(open.as_deref());
            return to.write_all(&wire::encode(&Response::Status(Box::new(report)))?);
        }
        match open {
            Some(open) => respond_to(request, &open, to),
            None => to.write_all(&wire::encode(&Response::Failed(
                closing_error(request).into(),
            ))?),
        }
    }

    fn prove(&self, to: &UnixStream) -> io::Result<()> {
        let open = self.filesystem.upgrade();
        let volume = open.as_deref().map(Filesystem::volume);
        let device = self.mounted_on.lock().as_ref().map(|entry| entry.device);
        proof::prove(to, volume, self.directory, device)
    }
}

pub(super) fn start_control_server(
    path: &Path,
    filesystem: &Arc<Filesystem>,
    reports: Reports,
    mounted_on: &MountedOn,
) -> Option<ControlServer> {
    let directory = match filesystem.volume().held_lock() {
        Some(held) => DirectoryId::of_descriptor(held.directory),
        None => DirectoryId::of_path(path),
    };
    let daemon = |directory| Daemon {
        filesystem: Arc::downgrade(filesystem),
        reports,
        directory,
        mounted_on: Arc::clone(mounted_on),
    };
    // The mount works without a socket: another user who created a directory in its place must not
    // prevent the use of a volume. Commands refuse to use a daemon that they cannot verify.
    let started = directory.and_then(|id| ControlServer::start(id, daemon(id)));
    match started {
        Ok(control) => Some(control),
        Err(error) => {
            tracing::warn!(
                %error,
                "there is no control socket: commands cannot reach this daemon, and will say so"
            );
            None
        }
    }
}

pub(crate) fn publish_mount_name(control: Option<&ControlServer>, device: u64) {
    let published = control.map(|control| control.publish_mount_name(device));
    if let Some(Err(error)) = published {
        tracing::warn!(
            %error,
            "commands that name the mount cannot reach this daemon, and will say so"
        );
    }
}

/// What `status` reports of the mount.
pub(super) struct Reports {
    /// The report as it was when the volume was mounted.
    pub(super) at_mount: Report,
    /// It was mounted read-only.
    pub(super) read_only: bool,
    /// How the last look at the customer key went.
    pub(super) key_check: KeyCheck,
}

impl Reports {
    fn now(&self, filesystem: Option<&Filesystem>) -> Report {
        let mut report = self.at_mount.clone();
        if let Some(open) = filesystem {
            report = report::report_mounted(report, self.read_only, open);
        }
        report.key_check = self.key_check.lock().clone();
        report
    }
}

/// The error of a request after the volume was closed.
fn closing_error(request: &Request) -> UserError {
    let message = Obstacle::Closing.to_string();
    let message = match request {
        Request::Operation(operation) => format!("{}: {message}", operation.doing()),
        _ => message,
    };
    UserError::new(ExitCode::System, message).with_hint(Obstacle::Closing.hint())
}

/// Answers one line of a connection as the daemon of a mount does. Requests that need the daemon
/// itself (proof, status, waiting) are refused.
///
/// # Errors
/// The responses cannot be written.
pub fn answer_line(line: &str, filesystem: &Arc<Filesystem>, to: &mut dyn Write) -> io::Result<()> {
    match wire::decode(line.as_bytes()) {
        Ok(request) => respond_to(&request, filesystem, to),
        Err(error) => {
            let refused = UserError::new(ExitCode::System, error.to_string());
            to.write_all(&wire::encode(&Response::Failed(refused.into()))?)
        }
    }
}

/// Handles a request to the filesystem and writes the responses.
fn respond_to(
    request: &Request,
    filesystem: &Arc<Filesystem>,
    to: &mut dyn Write,
) -> io::Result<()> {
    let mut responses = ResponseWriter(BufWriter::new(to));
    let last = match request {
        Request::Sync => done(filesystem.sync()),
        Request::Remount(remount) => done(apply_remount(*remount, filesystem)),
        Request::Operation(operation) => perform_and_log(operation, filesystem, &mut responses),
        Request::Prove | Request::Ping | Request::Status | Request::Wait | Request::Stays => {
            let message = "the filesystem alone cannot answer this request";
            Response::Failed(UserError::new(ExitCode::System, message).into())
        }
    };
    responses.send(&last)?;
    responses.0.flush()
}

fn done(result: Result<(), FsError>) -> Response {
    match result {
        Ok(()) => Response::Done(Outcome::Nothing),
        Err(error) => Response::Failed(UserError::new(ExitCode::System, error.to_string()).into()),
    }
}

fn perform_and_log(
    operation: &Operation,
    filesystem: &Arc<Filesystem>,
    to: &mut dyn Receiver,
) -> Response {
    match perform(filesystem, operation, to) {
        Ok(outcome) => {
            if !operation.only_reads() {
                tracing::debug!(?operation, "done");
            }
            Response::Done(outcome)
        }
        Err(error) => {
            tracing::debug!(?operation, error = %error.message, "refused");
            Response::Failed(error.into())
        }
    }
}
