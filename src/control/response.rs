//! What the daemon answers to a request, and what a command makes of it.

use std::io;

use serde::{Deserialize, Serialize};

use super::directory::DirectoryId;
use super::report::{Report, ViewReport};
use super::request::PathBytes;
use crate::check::{self, Finding};
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::snapshots::{Change, ChangeKind};

/// One line of an answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    /// What is claimed beside the descriptors that come with it.
    Proof(Claim),
    /// The daemon lives.
    Alive,
    /// What is known of the volume and the mount.
    Status(Box<Report>),
    /// Whoever asked to be told of the end will be.
    Waiting,
    /// The volume is closed, or could not be closed cleanly.
    Closed(Closed),
    /// One of a list.
    View(ViewReport),
    /// One path that differs.
    Change(ChangeReport),
    /// One thing that a check has found.
    Finding(FindingReport),
    /// How far an operation is.
    Progress(BytesDone),
    /// So many raw bytes follow.
    Bytes(usize),
    /// It is done.
    Done(Outcome),
    /// It could not be done.
    Failed(Failure),
}

/// What the daemon says beside what it hands over.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// Device number of its mount; none before it has mounted.
    pub(super) mount: Option<u64>,
    /// The directory that it is looked for by. That it has it, what is handed over must show.
    pub(super) volume: Option<DirectoryId>,
    /// Nobody else can have the lock.
    pub(super) exclusive: bool,
    /// It has the volume no more.
    pub(super) closing: bool,
    /// Why there is no proof.
    pub(super) error: Option<String>,
}

/// How closing a volume went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Closed {
    /// Everything is on disk.
    pub(crate) is_on_disk: bool,
    /// What went wrong.
    pub(crate) error: Option<String>,
}

/// A [`UserError`] on its way: the command ends the same whoever did the work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    code: u8,
    pub(crate) message: String,
    hint: Option<String>,
}

impl From<UserError> for Failure {
    fn from(error: UserError) -> Self {
        Self {
            code: error.code as u8,
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<Failure> for UserError {
    fn from(failure: Failure) -> Self {
        Self {
            code: ExitCode::of_number(failure.code),
            message: failure.message,
            hint: failure.hint,
        }
    }
}

/// How a path differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub(crate) enum Difference {
    Added,
    Removed,
    Changed,
    Renamed,
}

/// One path that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct ChangeReport {
    pub change: Difference,
    pub path: PathBytes,
    /// Where it was, of what was renamed.
    pub from: Option<PathBytes>,
    pub directory: bool,
}

impl From<Change> for ChangeReport {
    fn from(change: Change) -> Self {
        Self {
            change: match change.kind {
                ChangeKind::Added => Difference::Added,
                ChangeKind::Removed => Difference::Removed,
                ChangeKind::Changed => Difference::Changed,
                ChangeKind::Renamed => Difference::Renamed,
            },
            path: PathBytes(change.path),
            from: change.from.map(PathBytes),
            directory: change.is_directory,
        }
    }
}

/// A volume that was made of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct DeployReport {
    pub volume: String,
    pub inodes: u64,
    pub objects: u64,
    /// Objects that have the source's bytes by a hard link, ...
    pub linked: u64,
    /// ... by a reflink, ...
    pub reflinked: u64,
    /// ... or a copy of them,
    pub copied: u64,
    /// and objects that were sealed anew, for another holder.
    pub resealed: u64,
    pub bytes: u64,
}

/// An image that was streamed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct ExportReport {
    pub export: String,
    pub objects: u64,
    /// Length of the stream.
    pub bytes: u64,
}

/// Something that a check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct FindingReport {
    pub kind: String,
    pub severity: String,
    /// What is wrong, for people.
    pub message: String,
    /// The file in the volume's directory.
    pub file: Option<String>,
    /// Ranges of its pages: first, and the one behind the last.
    pub pages: Vec<(u64, u64)>,
    pub inode: Option<u64>,
    pub paths: Vec<PathBytes>,
    pub repaired: bool,
}

impl From<Finding> for FindingReport {
    fn from(finding: Finding) -> Self {
        Self {
            kind: finding.kind.name().to_owned(),
            severity: finding.severity.name().to_owned(),
            file: finding.file(),
            message: finding.message,
            pages: finding
                .pages
                .into_iter()
                .map(|r| (r.start, r.end))
                .collect(),
            inode: finding.ino.map(|ino| ino.0),
            paths: finding.paths.into_iter().map(PathBytes).collect(),
            repaired: finding.repaired,
        }
    }
}

/// How far something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct BytesDone {
    pub bytes: u64,
    /// Of so many; none while that is not known, or metadata alone are looked at.
    pub total_bytes: Option<u64>,
}

/// What a check came to, beside its findings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct CheckSummary {
    pub inodes: u64,
    pub snapshots: u64,
    pub objects: u64,
    pub pages: u64,
    pub bytes: u64,
    /// Findings that there was no room to tell, and how many of them are faults.
    pub omitted: u64,
    pub omitted_faults: u64,
}

impl From<&check::Report> for CheckSummary {
    fn from(report: &check::Report) -> Self {
        Self {
            inodes: report.inodes,
            snapshots: report.views,
            objects: report.objects,
            pages: report.pages,
            bytes: report.bytes,
            omitted: report.omitted,
            omitted_faults: report.omitted_faults,
        }
    }
}

/// How a request ended that went well.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub(crate) enum Outcome {
    Nothing,
    Created(ViewReport),
    Deployed(DeployReport),
    Exported(ExportReport),
    Checked(CheckSummary),
}

/// Who gets what comes before the outcome. What fails here ends the request where that is
/// possible.
pub(crate) trait Receiver {
    /// A view of a list.
    fn view(&mut self, view: ViewReport) -> io::Result<()>;
    /// A path that differs.
    fn change(&mut self, change: ChangeReport) -> io::Result<()>;
    /// Some of a stream.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Something that a check found.
    fn finding(&mut self, _: FindingReport) -> io::Result<()> {
        Ok(())
    }
    /// How far it is, several times a second.
    fn progress(&mut self, _: BytesDone) -> io::Result<()> {
        Ok(())
    }
}

/// For requests that answer with nothing but their outcome.
#[derive(Debug)]
pub(crate) struct Discard;

impl Receiver for Discard {
    fn view(&mut self, _: ViewReport) -> io::Result<()> {
        Ok(())
    }

    fn change(&mut self, _: ChangeReport) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps a list.
#[derive(Debug, Default)]
pub(crate) struct Views(pub(crate) Vec<ViewReport>);

impl Receiver for Views {
    fn view(&mut self, view: ViewReport) -> io::Result<()> {
        self.0.push(view);
        Ok(())
    }

    fn change(&mut self, _: ChangeReport) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
