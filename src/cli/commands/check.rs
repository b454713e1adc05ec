//! `bilayer check`: verifies everything, and repairs what can be repaired.
//!
//! Exit codes are those of fsck(8), and each finding is one line on standard output:
//!
//! ```text
//! error: /a/b (inode 12): it counts 3 links and has 2 [link-count]
//! error: objects/00000001/… pages 3-5: /a/b (inode 12): chunk 0: page 3 … [page-damaged]
//! ```

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use crate::audit::{self, Record};
use crate::check::{self, CheckError, CheckOptions, Report};
use crate::cli::args::OpenArgs;
use crate::cli::output::progress::Progress;
use crate::cli::output::{format, print, print_json};
use crate::cli::session::{Access, Keys, open_volume};
use crate::control::locate::{Holder, Located, find};
use crate::control::request::Operation;
use crate::control::response::{BytesDone, CheckSummary, FindingReport, Outcome, Receiver};
use crate::control::wire;
use crate::daemon::operations::{audit_check, send_findings, with_progress};
use crate::daemon::size::parse_count;
use crate::diagnostics::{ExitCode, UserError};
use crate::ids::VolumeId;
use crate::sys::process::EndSignals;

/// Exit codes of fsck(8).
mod code {
    pub(super) const CLEAN: u8 = 0;
    pub(super) const CORRECTED: u8 = 1;
    pub(super) const UNCORRECTED: u8 = 4;
    pub(super) const OPERATIONAL: u8 = 8;
    pub(super) const USAGE: u8 = 16;
    pub(super) const CANCELLED: u8 = 32;
}

/// The help on findings, repairs, JSON and exit codes.
pub(in crate::cli) const HELP: &str = "\
Each finding is a line: error (something is lost, cannot be reached or will fail), warning (a wrong
number, space that is never freed) or note (nothing wrong); what it is about, and in brackets its
kind. Nothing is written without --repair. A mounted volume is checked while it is in
use; to be repaired it must be unmounted.

What --repair does: it corrects counts and links, removes names that lead nowhere, gives inodes
without a name one in lost+found, and removes objects that nothing refers to. Pages that do not open
are not replaced: reading them stays an error. Restore them from a snapshot or a backup, or salvage
the rest with bilayer salvage.

With --json one object: volume, mounted, result (clean, corrected, uncorrected, cancelled), inodes,
snapshots, objects, pages, bytes, seconds, omitted, and findings: an array of objects with kind,
severity, message, repaired, and where they are known file, pages (pairs: first, behind the last),
inode, paths (those that are not UTF-8 also in paths_bytes, in hexadecimal digits).

Exit codes, as fsck(8): 0 nothing wrong, 1 all that was wrong is repaired, 4 something is wrong,
8 it could not be checked, 16 usage, 32 cancelled.

Examples:
  bilayer check /srv/vault
  bilayer check /mnt --jobs 1 --json
  bilayer check /srv/vault --repair";

/// `bilayer check …`
#[derive(Args, Debug)]
pub(in crate::cli) struct CheckArgs {
    /// Directory of the volume, or where it is mounted
    #[arg(value_name = "VOLUME|DIR")]
    path: PathBuf,
    /// Repair what can be repaired without losing anything; the volume must not be mounted
    #[arg(long)]
    repair: bool,
    /// Compare metadata alone, and read no contents
    #[arg(long)]
    quick: bool,
    /// Threads that verify contents [default: one for each CPU]
    #[arg(
        long,
        short,
        default_value_t = 0,
        hide_default_value = true,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = parse_count
    )]
    jobs: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// No progress bar, and nothing to say when nothing is wrong
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// The outcome of a check.
struct Checked {
    volume: PathBuf,
    mounted: bool,
    findings: Vec<FindingReport>,
    /// `None` if the check was cancelled.
    summary: Option<CheckSummary>,
    seconds: f64,
}

/// Collects findings, shows the progress, and cancels the check when a signal arrives.
struct CheckReceiver {
    findings: Vec<FindingReport>,
    quiet: bool,
    stage: Option<ShownStage>,
    signals: Option<EndSignals>,
    interrupted: bool,
}

/// The progress display of one stage of a check. A new total begins a new stage.
struct ShownStage {
    total_bytes: Option<u64>,
    progress: Progress,
}

impl Receiver for CheckReceiver {
    fn finding(&mut self, finding: FindingReport) -> io::Result<()> {
        self.findings.push(finding);
        Ok(())
    }

    fn progress(&mut self, progress: BytesDone) -> io::Result<()> {
        if self.signals.is_some_and(|signals| signals.arrived()) {
            self.interrupted = true;
        }
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.quiet {
            return Ok(());
        }
        let total_bytes = progress.total_bytes;
        let stage = self.stage.as_ref();
        if stage.is_none_or(|stage| stage.total_bytes != total_bytes) {
            self.stage = None;
            let what = match total_bytes {
                Some(_) => "verifying contents",
                None => "comparing metadata",
            };
            self.stage = Some(ShownStage {
                total_bytes,
                progress: Progress::start(what, total_bytes),
            });
        }
        if let Some(stage) = &self.stage {
            stage.progress.set(progress.bytes);
        }
        Ok(())
    }
}

/// The exit code if the volume could not be checked.
pub(in crate::cli) fn exit_code(error: &UserError) -> u8 {
    match error.code {
        ExitCode::Usage => code::USAGE,
        _ => code::OPERATIONAL,
    }
}

/// Checks a volume, prints the findings, and returns the exit code.
///
/// # Errors
/// The volume could not be checked. Findings are no error.
pub(crate) fn run(args: &CheckArgs) -> Result<u8, UserError> {
    let checked = check(args)?;
    let code = checked.code();
    if args.json {
        print_json(&checked.json())?;
    } else {
        print(&checked.text(args.quiet))?;
    }
    Ok(code)
}

fn check(args: &CheckArgs) -> Result<Checked, UserError> {
    let keys = args.open.keys()?;
    let mut located = find(&args.path)?;
    let holder = std::mem::replace(&mut located.holder, Holder::Nobody);
    let mut receiver = CheckReceiver {
        findings: Vec::new(),
        quiet: args.quiet,
        stage: None,
        signals: None,
        interrupted: false,
    };
    let begin = Instant::now();
    let (mounted, outcome) = match holder {
        Holder::Unknown(error) => return Err(error),
        Holder::Daemon { .. } | Holder::Mount(_) if args.repair => {
            let path = located.path.display();
            let message = format!("cannot repair {path}: it is mounted");
            audit::set_volume(&located.path);
            Record::new("repair").refused(&message);
            return Err(UserError::new(ExitCode::InUse, message)
                .with_hint("unmount it first: bilayer unmount DIR"));
        }
        Holder::Daemon { mut control, .. } => {
            receiver.signals = EndSignals::block().ok();
            let operation = Operation::Check {
                jobs: args.jobs,
                quick: args.quick,
            };
            (true, control.perform(&operation, None, &mut receiver))
        }
        Holder::Mount(mount) => {
            return Err(UserError::new(
                ExitCode::System,
                format!(
                    "cannot check the volume mounted on {}: its daemon does not answer this user",
                    mount.info.dir.display()
                ),
            )
            .with_hint("root and the user who mounted it may"));
        }
        Holder::Nobody => (false, offline(&located, args, &keys, &mut receiver)),
    };
    drop(receiver.stage.take());
    let summary = match outcome {
        Ok(Outcome::Checked(summary)) => Some(summary),
        _ if receiver.interrupted => None,
        Ok(other) => {
            let message = format!("cannot check the volume: unexpected answer {other:?}");
            return Err(UserError::new(ExitCode::System, message).with_hint(wire::VERSION_HINT));
        }
        Err(error) => return Err(error),
    };
    Ok(Checked {
        volume: located.path,
        mounted,
        findings: receiver.findings,
        summary,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn offline(
    located: &Located,
    args: &CheckArgs,
    keys: &Keys,
    receiver: &mut CheckReceiver,
) -> Result<Outcome, UserError> {
    let access = match args.repair {
        true => Access::Write,
        false => Access::Read,
    };
    let volume = open_volume(located, access, keys)?;
    receiver.signals = EndSignals::block().ok();
    let begin = Instant::now();
    let options = CheckOptions {
        jobs: args.jobs,
        contents: !args.quick,
        ..CheckOptions::default()
    };
    let report = with_progress(receiver, &|state| match args.repair {
        true => check::repair(&volume, &options, state),
        false => check::check(&volume, &options, state),
    });
    let report = report.unwrap_or(Err(CheckError::Fault));
    match args.repair {
        true => audit_repair(volume.header().volume_id(), begin, &report),
        false => audit_check(volume.header().volume_id(), begin, &report),
    }
    let report = report.map_err(|error: CheckError| {
        let doing = if args.repair { "repair" } else { "check" };
        let path = located.path.display();
        UserError::check(format_args!("cannot {doing} the volume {path}"), &error)
    })?;
    send_findings(report, receiver)
}

/// Writes the audit record of a repair: how many faults were repaired, and how many remain.
fn audit_repair(volume: VolumeId, begin: Instant, report: &Result<Report, CheckError>) {
    let mut audited = Record::new("repair").volume(volume).since(begin);
    if let Ok(report) = report {
        let repaired = report.faults().filter(|fault| fault.repaired).count() as u64;
        let left = report.faults().count() as u64 - repaired + report.omitted_faults;
        audited = audited.with("repaired", repaired).with("left", left);
    }
    audited.outcome(report);
}

impl Checked {
    fn faults(&self) -> impl Iterator<Item = &FindingReport> {
        self.findings.iter().filter(|f| f.severity != "note")
    }

    fn repaired_faults(&self) -> u64 {
        self.faults().filter(|fault| fault.repaired).count() as u64
    }

    /// Faults that were not repaired, also those that are not listed.
    fn remaining_faults(&self) -> u64 {
        let listed = self.faults().filter(|fault| !fault.repaired).count() as u64;
        listed + self.summary.as_ref().map_or(0, |s| s.omitted_faults)
    }

    fn code(&self) -> u8 {
        if self.summary.is_none() {
            return code::CANCELLED;
        }
        if self.remaining_faults() > 0 {
            return code::UNCORRECTED;
        }
        match self.repaired_faults() {
            0 => code::CLEAN,
            _ => code::CORRECTED,
        }
    }

    fn result(&self) -> &'static str {
        match self.code() {
            code::CLEAN => "clean",
            code::CORRECTED => "corrected",
            code::CANCELLED => "cancelled",
            _ => "uncorrected",
        }
    }

    fn json(&self) -> serde_json::Value {
        let findings: Vec<_> = self.findings.iter().map(finding_json).collect();
        let mut object = json!({
            "volume": self.volume.to_string_lossy(),
            "mounted": self.mounted,
            "result": self.result(),
            "seconds": self.seconds,
            "findings": findings,
        });
        if let Some(summary) = &self.summary {
            object["inodes"] = summary.inodes.into();
            object["snapshots"] = summary.snapshots.into();
            object["objects"] = summary.objects.into();
            object["pages"] = summary.pages.into();
            object["bytes"] = summary.bytes.into();
            object["omitted"] = summary.omitted.into();
        }
        object
    }

    fn text(&self, quiet: bool) -> String {
        let mut text: String = self.findings.iter().map(line).collect();
        let Some(summary) = &self.summary else {
            return text + "cancelled\n";
        };
        if summary.omitted > 0 {
            text += &format!("and {} more\n", summary.omitted);
        }
        if quiet {
            return text;
        }
        let rate = format::size((summary.bytes as f64 / self.seconds.max(0.001)) as u64);
        let left = self.remaining_faults();
        let repaired = match self.repaired_faults() {
            0 => String::new(),
            repaired => format!("{repaired} repaired, "),
        };
        text += &match left {
            0 => format!("{}: {repaired}", self.result()),
            left => format!("{repaired}{left} left: "),
        };
        text += &format!(
            "{}, {}, {} read in {:.1} s, {rate}/s\n",
            format::count(summary.inodes, "inode", "inodes"),
            format::count(summary.objects, "object", "objects"),
            format::size(summary.bytes),
            self.seconds
        );
        text
    }
}

/// JSON has no bytes: paths that are not UTF-8 appear a second time, in hexadecimal digits.
fn finding_json(finding: &FindingReport) -> serde_json::Value {
    let mut object = json!({
        "kind": finding.kind,
        "severity": finding.severity,
        "message": finding.message,
        "repaired": finding.repaired,
    });
    if let Some(file) = &finding.file {
        object["file"] = file.as_str().into();
    }
    if !finding.pages.is_empty() {
        object["pages"] = json!(finding.pages);
    }
    if let Some(inode) = finding.inode {
        object["inode"] = inode.into();
    }
    if !finding.paths.is_empty() {
        let paths = finding.paths.iter();
        let paths: Vec<_> = paths.map(|path| String::from_utf8_lossy(&path.0)).collect();
        object["paths"] = json!(paths);
        if finding
            .paths
            .iter()
            .any(|path| std::str::from_utf8(&path.0).is_err())
        {
            let bytes: Vec<_> = finding
                .paths
                .iter()
                .map(|path| hex::encode(&path.0))
                .collect();
            object["paths_bytes"] = json!(bytes);
        }
    }
    object
}

fn line(finding: &FindingReport) -> String {
    let mut about = Vec::new();
    if let Some(file) = &finding.file {
        let runs = finding.pages.iter().map(|&(first, end)| match end - first {
            1 => first.to_string(),
            _ => format!("{first}-{}", end - 1),
        });
        let runs: Vec<String> = runs.collect();
        let single = matches!(finding.pages[..], [(first, end)] if end - first == 1);
        about.push(match runs.len() {
            0 => file.clone(),
            _ if single => format!("{file} page {}", runs.join(",")),
            _ => format!("{file} pages {}", runs.join(",")),
        });
    }
    if let Some(inode) = finding.inode {
        let mut what = match finding.paths.as_slice() {
            [] => format!("inode {inode}"),
            [first, ..] => format!("{} (inode {inode})", format::path(&first.0)),
        };
        if finding.paths.len() > 1 {
            what += &format!(" and {} more", finding.paths.len() - 1);
        }
        about.push(what);
    } else {
        about.extend(finding.paths.first().map(|path| format::path(&path.0)));
    }
    about.push(format::printable(&finding.message));
    let repaired = if finding.repaired { ", repaired" } else { "" };
    format!(
        "{}: {} [{}]{repaired}\n",
        finding.severity,
        about.join(": "),
        finding.kind
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::request::PathBytes;

    fn finding(severity: &str, repaired: bool) -> FindingReport {
        FindingReport {
            kind: "page-damaged".to_owned(),
            severity: severity.to_owned(),
            message: "it is\nbad".to_owned(),
            file: Some("objects/00000001/ab".to_owned()),
            pages: vec![(3, 4), (7, 10)],
            inode: Some(12),
            paths: vec![PathBytes(b"/a\xff".to_vec()), PathBytes(b"/b".to_vec())],
            repaired,
        }
    }

    fn checked(findings: Vec<FindingReport>, ended: bool) -> Checked {
        let summary = CheckSummary {
            inodes: 1,
            snapshots: 0,
            objects: 2,
            pages: 3,
            bytes: 4096,
            omitted: 0,
            omitted_faults: 0,
        };
        Checked {
            volume: PathBuf::from("/v"),
            mounted: false,
            findings,
            summary: ended.then_some(summary),
            seconds: 2.0,
        }
    }

    #[test]
    fn findings_are_lines() {
        assert_eq!(
            line(&finding("error", true)),
            "error: objects/00000001/ab pages 3,7-9: /a\\377 (inode 12) and 1 more: it is bad \
             [page-damaged], repaired\n"
        );
        let plain = FindingReport {
            file: None,
            inode: None,
            paths: Vec::new(),
            ..finding("note", false)
        };
        assert_eq!(line(&plain), "note: it is bad [page-damaged]\n");
    }

    #[test]
    fn exit_codes_are_those_of_fsck() {
        for (findings, ended, code, result) in [
            (vec![], true, 0, "clean"),
            (vec![finding("note", false)], true, 0, "clean"),
            (vec![finding("warning", true)], true, 1, "corrected"),
            (
                vec![finding("error", true), finding("warning", false)],
                true,
                4,
                "uncorrected",
            ),
            (vec![finding("error", false)], false, 32, "cancelled"),
        ] {
            let checked = checked(findings, ended);
            assert_eq!((checked.code(), checked.result()), (code, result));
        }
        let more = CheckSummary {
            omitted: 2,
            omitted_faults: 1,
            ..checked(vec![], true).summary.unwrap()
        };
        let more = Checked {
            summary: Some(more),
            ..checked(vec![], true)
        };
        assert_eq!(more.code(), 4);
        assert!(more.text(true).contains("and 2 more"));
    }

    #[test]
    fn json_has_every_field() {
        let json = checked(vec![finding("error", false)], true).json();
        assert_eq!(json["findings"][0]["pages"], json!([[3, 4], [7, 10]]));
        assert_eq!(
            json["findings"][0]["paths_bytes"],
            json!(["2f61ff", "2f62"])
        );
        assert_eq!(json["result"], "uncorrected");
        assert_eq!(json["bytes"], 4096);
    }
}
