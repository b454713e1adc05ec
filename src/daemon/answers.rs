//! What the daemon of a mount answers over its control socket ([`crate::control`]).

use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::control::directory::DirectoryId;
use crate::control::obstacle::Obstacle;
use crate::control::proof;
use crate::control::report::{self, Report};
use crate::control::request::{Operation, Request};
use crate::control::response::{Outcome, Receiver, Response};
use crate::control::server::{Answer, ControlServer};
use crate::control::wire::{self, Lines};
use crate::daemon::remount::handle_request;
use crate::daemon::serve::serve;
use crate::daemon::utab;
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::{Filesystem, FsError};

/// The mount, while it is there: its device number may be given to another one afterwards.
pub(crate) type MountedOn = Arc<Mutex<Option<utab::Entry>>>;

/// What this process answers other commands with.
struct Daemon {
    /// Held weakly: the volume's lock goes when the filesystem does.
    filesystem: Weak<Filesystem>,
    report: Report,
    read_only: bool,
    directory: DirectoryId,
    mounted_on: MountedOn,
}

impl Answer for Daemon {
    fn respond(&self, request: &Request, to: &mut dyn Write) -> io::Result<()> {
        let open = self.filesystem.upgrade();
        if matches!(request, Request::Status) {
            let report = answer_status(&self.report, self.read_only, open.as_deref());
            return to.write_all(&wire::encode(&Response::Status(Box::new(report)))?);
        }
        match open {
            Some(open) => answer(request, &open, to),
            None => to.write_all(&wire::encode(&Response::Failed(ending(request).into()))?),
        }
    }

    fn prove(&self, to: &UnixStream) -> io::Result<()> {
        let open = self.filesystem.upgrade();
        let volume = open.as_deref().map(Filesystem::volume);
        let device = self.mounted_on.lock().as_ref().map(|entry| entry.device);
        proof::prove(to, volume, self.directory, device)
    }
}

pub(crate) fn start_control(
    path: &Path,
    filesystem: &Arc<Filesystem>,
    report: Report,
    read_only: bool,
    mounted_on: &MountedOn,
) -> Option<ControlServer> {
    let directory = match filesystem.volume().held_lock() {
        Some(held) => DirectoryId::of_descriptor(held.directory),
        None => DirectoryId::of_path(path),
    };
    let daemon = |directory| Daemon {
        filesystem: Arc::downgrade(filesystem),
        report,
        read_only,
        directory,
        mounted_on: Arc::clone(mounted_on),
    };
    // The mount is none the less a mount: somebody who made a directory where this one's was to be
    // must not keep a volume from being used. Commands refuse what they cannot be sure of.
    let started = directory.and_then(|id| ControlServer::start(id, daemon(id)));
    match started {
        Ok(control) => Some(control),
        Err(error) => {
            tracing::warn!(
                %error,
                "there is no control socket: commands cannot ask this mount, and will say so"
            );
            None
        }
    }
}

pub(crate) fn answer_for_mount(control: Option<&ControlServer>, device: u64) {
    let answering = control.map(|control| control.answer_for_mount(device));
    if let Some(Err(error)) = answering {
        tracing::warn!(%error, "commands that name the mount cannot ask it, and will say so");
    }
}

fn answer_status(report: &Report, read_only: bool, filesystem: Option<&Filesystem>) -> Report {
    match filesystem {
        Some(open) => report::report_mounted(report.clone(), read_only, open),
        None => report.clone(),
    }
}

/// The volume has been let go.
fn ending(request: &Request) -> UserError {
    let message = Obstacle::Closing.to_string();
    let message = match request {
        Request::Operation(operation) => format!("{}: {message}", operation.doing()),
        _ => message,
    };
    UserError::new(ExitCode::System, message).with_hint(Obstacle::Closing.hint())
}

/// Answers a line of a connection as the daemon of a mount does; what only a daemon can show or
/// wait for is refused.
///
/// # Errors
/// The responses cannot be written.
pub fn answer_line(line: &str, filesystem: &Arc<Filesystem>, to: &mut dyn Write) -> io::Result<()> {
    match wire::decode(line.as_bytes()) {
        Ok(request) => answer(&request, filesystem, to),
        Err(error) => {
            let refused = UserError::new(ExitCode::System, error.to_string());
            to.write_all(&wire::encode(&Response::Failed(refused.into()))?)
        }
    }
}

/// Does what is asked of the filesystem and writes the responses.
fn answer(request: &Request, filesystem: &Arc<Filesystem>, to: &mut dyn Write) -> io::Result<()> {
    let mut lines = Lines(BufWriter::new(to));
    let last = match request {
        Request::Sync => done(filesystem.sync()),
        Request::Remount(remount) => done(handle_request(*remount, filesystem)),
        Request::Operation(operation) => perform(operation, filesystem, &mut lines),
        Request::Prove | Request::Ping | Request::Status | Request::Wait | Request::Stays => {
            let message = "it is not for the filesystem to answer";
            Response::Failed(UserError::new(ExitCode::System, message).into())
        }
    };
    lines.send(&last)?;
    lines.0.flush()
}

fn done(result: Result<(), FsError>) -> Response {
    match result {
        Ok(()) => Response::Done(Outcome::Nothing),
        Err(error) => Response::Failed(UserError::new(ExitCode::System, error.to_string()).into()),
    }
}

fn perform(operation: &Operation, filesystem: &Arc<Filesystem>, to: &mut dyn Receiver) -> Response {
    match serve(filesystem, operation, to) {
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
