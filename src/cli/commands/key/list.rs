//! `bilayer key list`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::output::status_text::slot_lines;
use crate::cli::output::{print, print_json};
use crate::control::client::ControlClient;
use crate::control::line::RESPONSE_TIMEOUT;
use crate::control::locate::{Holder, find};
use crate::control::report::{HeaderReport, SlotReport, report_claims};
use crate::control::request::Request;
use crate::control::response::Response;
use crate::diagnostics::{ExitCode, UserError};
use crate::store::directory::DirectoryStore;

#[derive(Args, Debug)]
pub(in crate::cli) struct ListArgs {
    /// Directory of the volume, or where it is mounted
    #[arg(value_name = "VOLUME|DIR")]
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// The list as JSON.
#[derive(serde::Serialize)]
struct SlotList<'a> {
    volume: String,
    key_mode: &'a str,
    /// The daemon of the mount has verified it.
    verified: bool,
    slots: &'a [SlotReport],
}

/// Lists the slots.
///
/// # Errors
/// There is no volume, or its superblock cannot be read.
pub(super) fn run(args: &ListArgs) -> Result<(), UserError> {
    let mut located = find(&args.path)?;
    let doing = || format!("cannot list the keys of {}", located.path.display());
    let daemon = match std::mem::replace(&mut located.holder, Holder::Nobody) {
        Holder::Daemon { control, .. } => Some(control),
        _ => None,
    };
    let verified = daemon.is_some();
    let header = match daemon {
        Some(daemon) => header_of(daemon, &doing())?,
        None => {
            let store = DirectoryStore::open(&located.access_path()?)
                .map_err(|error| UserError::io(doing(), &error))?;
            report_claims(&located.path, &store)?.header
        }
    };
    if args.json {
        return print_json(&SlotList {
            volume: located.path.display().to_string(),
            key_mode: &header.key_mode,
            verified,
            slots: &header.slots,
        });
    }
    let mut text = String::new();
    for slot in &header.slots {
        for line in slot_lines(slot) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    if header.slots.is_empty() {
        text.push_str("no slots: the volume is platform-managed\n");
    }
    if !verified {
        text.push_str("(not verified: the volume is not mounted; bilayer key test proves a key)\n");
    }
    print(&text)
}

fn header_of(mut daemon: ControlClient, doing: &str) -> Result<HeaderReport, UserError> {
    match daemon.ask(&Request::Status, Some(RESPONSE_TIMEOUT)) {
        Ok(Response::Status(report)) => Ok(report.header),
        Ok(Response::Failed(failure)) => Err(failure.into()),
        Ok(_) => Err(UserError::new(
            ExitCode::System,
            format!("{doing}: the daemon gave an answer that does not belong to the question"),
        )),
        Err(error) => Err(UserError::io(doing, &error)),
    }
}
