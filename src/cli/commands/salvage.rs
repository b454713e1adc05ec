//! `bilayer salvage`: copies the readable data of a damaged volume to plain files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use crate::audit;
use crate::cli::args::OpenArgs;
use crate::cli::output::format::{self, size};
use crate::cli::output::progress::Progress;
use crate::cli::output::{print, print_json};
use crate::control::locate::{Holder, Located, find};
use crate::control::paths;
use crate::daemon::options;
use crate::diagnostics::{ExitCode, UserError};
use crate::salvage::output::{OutputDir, OutputRefused};
use crate::salvage::{self, Options, REPORT_NAME, SalvageError, Summary};
use crate::store::directory::DirectoryStore;
use crate::volume::{self, OpenOptions, Rescue, VolumeError};

#[derive(Args, Debug)]
pub(in crate::cli) struct SalvageArgs {
    /// Directory of the volume; not mounted, and nothing is written to it
    volume: PathBuf,
    /// Directory that everything is written to: made if missing, empty otherwise
    out: PathBuf,
    /// This snapshot or image, instead of the present; may be given several times
    #[arg(long, value_name = "NAME", conflicts_with = "all_views")]
    view: Vec<String>,
    /// The present, all snapshots and all images
    #[arg(long)]
    all_views: bool,
    /// A copy of the volume's volume.json
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,
    /// The customer key, where it is not the one that the platform keystore remembers
    #[arg(long, value_name = "URI")]
    customer_key: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Say nothing of what was taken, and show no bar
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    open: OpenArgs,
}

pub(in crate::cli) const HELP: &str = "\
The output is PLAINTEXT: choose a place that may hold it. Only its owner can read it.

OUT/files                   the live contents
OUT/snapshots, OUT/images   the snapshots and images that were asked for
OUT/lost+found              files that have no name any more
OUT/salvage-report.json     what was read from, and everything that was lost

Exit code 5: something was lost, and the report names it. 0: nothing was lost.

Example:
  bilayer salvage /srv/vault /mnt/rescue";

/// A progress bar, shown once the total size is known.
struct Bar {
    quiet: bool,
    shown: Mutex<Option<Progress>>,
}

impl salvage::Progress for Bar {
    fn begin(&self, total_bytes: Option<u64>) {
        if !self.quiet {
            *self.shown.lock() = Some(Progress::start("taking out", total_bytes));
        }
    }

    fn add(&self, bytes: u64) {
        if let Some(progress) = &*self.shown.lock() {
            progress.add(bytes);
        }
    }
}

/// Salvages a volume and reports what was lost.
///
/// # Errors
/// The volume cannot be opened, the directory cannot be written, or something was lost.
pub(crate) fn run(args: &SalvageArgs) -> Result<(), UserError> {
    let located = find(&args.volume)?;
    let doing = || format!("cannot salvage {}", located.path.display());
    match &located.holder {
        Holder::Nobody => {}
        Holder::Unknown(error) => return Err(error.clone()),
        Holder::Daemon { .. } | Holder::Mount(_) => {
            let failure = UserError::new(ExitCode::InUse, format!("{}: it is mounted", doing()));
            return Err(failure.with_hint("unmount it first: umount MOUNTPOINT"));
        }
    }
    let to = output_path(&args.out, &located.path)?;
    let rescue = open(&located, args, &doing)?;
    let path = located.access_path()?;
    let out = OutputDir::prepare(&to, Some(&path)).map_err(|error| refuse_output(&to, &error))?;
    let bar = Bar {
        quiet: args.quiet || args.json,
        shown: Mutex::default(),
    };
    let wanted = Options {
        views: args.view.clone(),
        all_views: args.all_views,
    };
    let summary = salvage::salvage(&rescue, &out, &wanted, &bar);
    let shown = bar.shown.lock().take();
    let summary = summary.map_err(|error| explain(&error, &to))?;
    let took = shown.map(|progress| progress.finish(summary.counts.bytes).to_string());
    report_outcome(args, &to, &summary, took)
}

/// The output directory without symbolic links.
///
/// # Errors
/// It is inside the volume.
fn output_path(out: &Path, volume: &Path) -> Result<PathBuf, UserError> {
    let to = paths::without_links(&paths::absolute(out)?);
    if to.starts_with(volume) {
        let failure = format!("{} is within the volume", to.display());
        return Err(UserError::usage(failure).with_hint("choose a directory elsewhere"));
    }
    Ok(to)
}

fn refuse_output(to: &Path, refused: &OutputRefused) -> UserError {
    let doing = format!("cannot write to {}", to.display());
    let usage = || UserError::usage(format!("{doing}: {refused}"));
    match refused {
        OutputRefused::System(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            usage().with_hint("choose a directory that is empty, or not there yet")
        }
        OutputRefused::System(error) => UserError::io(doing, error),
        OutputRefused::Foreign { .. } => {
            usage().with_hint("choose a directory of your own, or one that is not there yet")
        }
        OutputRefused::Shared(_) => usage().with_hint(format!("chmod go-w {}", to.display())),
        OutputRefused::WithinVolume => usage().with_hint("choose a directory elsewhere"),
    }
}

fn open(
    located: &Located,
    args: &SalvageArgs,
    doing: &impl Fn() -> String,
) -> Result<Rescue, UserError> {
    let keys = args.open.keys()?;
    let directory = paths::working_directory()?;
    let customer_key = args.customer_key.as_deref();
    let header = args.header.as_ref().map(std::fs::read).transpose();
    let header = header.map_err(|error| {
        let file = args.header.as_deref().unwrap_or(&located.path);
        UserError::io(format_args!("cannot read {}", file.display()), &error)
    })?;
    let options = OpenOptions {
        customer_key: customer_key
            .map(|uri| options::key_uri(uri, &directory))
            .transpose()?,
        keystore: keys.keystore,
        path: Some(located.path.clone()),
        named: located.named.clone(),
        passphrase: keys.passphrase,
        read_only: true,
        ..OpenOptions::default()
    };
    audit::set_volume(&located.path);
    let path = located.access_path()?;
    let store = DirectoryStore::open(&path).map_err(|error| UserError::io(doing(), &error))?;
    volume::rescue(Arc::new(store), header, &options).map_err(|error| {
        let failure = UserError::volume(doing(), &error);
        match error {
            // Hints that do not ask to mount: a damaged volume may not be mountable.
            VolumeError::CustomerKeyNeeded { claimed } => failure.with_hint(format!(
                "name it: --customer-key URI (unverified: the superblock names {claimed:?})"
            )),
            VolumeError::RememberedKeyGone { .. } => {
                failure.with_hint("name the file that has it now: --customer-key URI")
            }
            VolumeError::WrongCustomerKey { .. } => {
                failure.with_hint("name the right key: --customer-key URI")
            }
            _ => failure,
        }
    })
}

fn explain(error: &SalvageError, to: &Path) -> UserError {
    match error {
        SalvageError::NoSuchView(_) => UserError::new(ExitCode::NotFound, error.to_string())
            .with_hint("the names that can be read are in the report of a run without --view"),
        SalvageError::Output(cause) => UserError::io(format_args!("in {}", to.display()), cause)
            .with_hint("make space there or choose another place, then start again"),
    }
}

fn report_outcome(
    args: &SalvageArgs,
    to: &Path,
    summary: &Summary,
    took: Option<String>,
) -> Result<(), UserError> {
    let counts = summary.counts;
    let report = to.join(REPORT_NAME);
    if args.json {
        print_json(&json!({
            "out": to.to_string_lossy(),
            "report": report.to_string_lossy(),
            "counts": counts,
            "source": summary.source,
        }))?;
    } else if !args.quiet {
        print(&summary_text(to, summary, took))?;
    }
    if counts.lost + counts.older + counts.unset == 0 {
        return Ok(());
    }
    let losses = [
        (counts.lost, "lost"),
        (counts.older, "as it was at an earlier time"),
        (counts.unset, "that could not be set here"),
    ];
    let losses = losses.iter().filter(|(count, _)| *count > 0);
    let losses: Vec<String> = losses
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    let bytes = match counts.bytes_lost {
        0 => String::new(),
        bytes => format!("; {} of contents are zeros", size(bytes)),
    };
    let failure = format!(
        "not everything could be taken out: {}{bytes}",
        losses.join(", ")
    );
    Err(UserError::new(ExitCode::Integrity, failure)
        .with_hint(format!("{} names each of them", report.display())))
}

fn summary_text(to: &Path, summary: &Summary, took: Option<String>) -> String {
    let counts = &summary.counts;
    let took = took.unwrap_or_else(|| size(counts.bytes));
    let mut text = format!(
        "{} in {} taken to {}: {took}\n",
        format::count(counts.files, "file", "files"),
        format::count(counts.directories, "directory", "directories"),
        to.display()
    );
    for (count, one, several) in [
        (counts.symlinks, "symbolic link", "symbolic links"),
        (
            counts.special,
            "pipe, socket or device",
            "pipes, sockets and devices",
        ),
        (
            counts.links,
            "further name of a file",
            "further names of files",
        ),
        (
            counts.without_name,
            "without a name, in lost+found/inodes",
            "without a name, in lost+found/inodes",
        ),
        (
            counts.objects,
            "object that nothing names, in lost+found/objects",
            "objects that nothing names, in lost+found/objects",
        ),
    ] {
        if count > 0 {
            text += &format!("{}\n", format::count(count, one, several));
        }
    }
    if summary.source["owners_set"] == false {
        text += "owners are not set: that needs root\n";
    }
    text
}
