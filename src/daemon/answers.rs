//! What the daemon of a mount answers over its control socket ([`crate::control`]).

use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::control::directory::DirectoryId;
use crate::control::line::Done;
use crate::control::proof;
use crate::control::report::{self, Report};
use crate::control::request::Request;
use crate::control::server::{Answer, ControlServer};
use crate::control::wire::{Lines, Message};
use crate::daemon::remount::obey;
use crate::daemon::serve::serve;
use crate::daemon::utab;
use crate::fs::Filesystem;

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
    fn respond(&self, request: &str, to: &mut dyn io::Write) -> Option<io::Result<()>> {
        let line = match (request, self.filesystem.upgrade()) {
            ("status", open) => answer_status(&self.report, self.read_only, open.as_deref()),
            (_, Some(open)) if request.starts_with('{') => {
                return answer(request, &open, to);
            }
            (_, Some(open)) => answer_order(request, &open)?,
            (_, None) => return None,
        };
        Some(to.write_all((line + "\n").as_bytes()))
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

fn answer_status(report: &Report, read_only: bool, filesystem: Option<&Filesystem>) -> String {
    let report = match filesystem {
        Some(open) => report::report_mounted(report.clone(), read_only, open),
        None => report.clone(),
    };
    report::to_json(&report).unwrap_or_default()
}

/// Does what was asked and says how it went; `None` to what is unknown.
fn answer_order(request: &str, filesystem: &Arc<Filesystem>) -> Option<String> {
    let result = match request {
        "sync" => filesystem.sync(),
        _ => obey(request, filesystem)?,
    };
    serde_json::to_string(&Done {
        done: result.is_ok(),
        error: result.err().map(|error| error.to_string()),
    })
    .ok()
}

/// The daemon's side: serves a line of a connection, if it is a request of this kind.
pub fn answer(
    line: &str,
    filesystem: &Arc<Filesystem>,
    to: &mut dyn Write,
) -> Option<io::Result<()>> {
    let request: Request = serde_json::from_str(line).ok()?;
    let mut lines = Lines(BufWriter::new(to));
    let last = match serve(filesystem, &request, &mut lines) {
        Ok(outcome) => {
            if !request.only_reads() {
                tracing::debug!(?request, "done");
            }
            Message::Done(outcome)
        }
        Err(error) => {
            tracing::debug!(?request, error = %error.message, "refused");
            Message::Failed(error.into())
        }
    };
    Some(lines.send(&last).and_then(|()| lines.0.flush()))
}
