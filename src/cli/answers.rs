//! What the daemon of a mount answers over its control socket ([`super::control`]).

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::control::{Answer, ControlServer, Done};
use super::proof::{self, DirectoryId};
use super::remount::obey;
use super::status::{self, Report};
use super::utab;
use crate::fs::Filesystem;

/// The mount, while it is there: its device number may be given to another one afterwards.
pub(super) type MountedOn = Arc<Mutex<Option<utab::Entry>>>;

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
                return super::wire::answer(request, &open, to);
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

pub(super) fn start_control(
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

pub(super) fn answer_for_mount(control: Option<&ControlServer>, device: u64) {
    let answering = control.map(|control| control.answer_for_mount(device));
    if let Some(Err(error)) = answering {
        tracing::warn!(%error, "commands that name the mount cannot ask it, and will say so");
    }
}

fn answer_status(report: &Report, read_only: bool, filesystem: Option<&Filesystem>) -> String {
    let report = match filesystem {
        Some(open) => status::report_mounted(report.clone(), read_only, open),
        None => report.clone(),
    };
    status::to_json(&report).unwrap_or_default()
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
