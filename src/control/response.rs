//! The daemon's responses to a request, and how a command receives them.

use std::io;

use serde::{Deserialize, Serialize};

use super::directory::DirectoryId;
use super::report::{Report, ViewReport};
use super::request::PathBytes;
use crate::check::{self, Finding};
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::snapshots::{Change, ChangeKind};

/// One line of a response.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    /// The claim that accompanies the descriptors of a proof.
    Proof(Claim),
    /// The daemon lives.
    Alive,
    /// The report of the volume and the mount.
    Status(Box<Report>),
    /// The daemon will send `Closed` on this connection.
    Waiting,
    /// The volume is closed, or could not be closed cleanly.
    Closed(Closed),
    /// One view of a list.
    View(ViewReport),
    /// One path that differs.
    Change(ChangeReport),
    /// One finding of a check.
    Finding(FindingReport),
    /// The progress of an operation.
    Progress(BytesDone),
    /// The number of raw bytes that follow.
    Bytes(usize),
    /// The operation succeeded.
    Done(Outcome),
    /// The operation failed.
    Failed(Failure),
}

/// The daemon's statement that accompanies its proof.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// Device number of its mount; `None` before it has mounted.
    pub(super) mount: Option<u64>,
    /// The volume's directory, which is the daemon's address. Only the descriptors prove that the
    /// daemon holds this volume.
    pub(super) volume: Option<DirectoryId>,
    /// The lock is exclusive.
    pub(super) exclusive: bool,
    /// It no longer holds the volume.
    pub(super) closing: bool,
    /// Why there is no proof.
    pub(super) error: Option<String>,
}

/// How closing a volume went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Closed {
    /// Everything is on disk.
    pub(crate) is_on_disk: bool,
    /// The error, if there was one.
    pub(crate) error: Option<String>,
}

/// A [`UserError`] on the socket. A command ends in the same way whether the daemon or the command
/// itself did the work.
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
pub(crate) enum Difference {
    /// Only the later view has the path.
    Added,
    /// Only the earlier view has the path.
    Removed,
    /// Contents or attributes differ.
    Changed,
    /// The path was renamed.
    Renamed,
}

/// One path that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ChangeReport {
    /// How the path differs.
    pub(crate) change: Difference,
    /// The path.
    pub(crate) path: PathBytes,
    /// The former path, if it was renamed.
    pub(crate) from: Option<PathBytes>,
    /// It is a directory.
    pub(crate) directory: bool,
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

/// A volume that was made from an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DeployReport {
    /// The new volume's id.
    pub(crate) volume: String,
    /// Inodes in the new volume.
    pub(crate) inodes: u64,
    /// Objects in the new volume.
    pub(crate) objects: u64,
    /// Objects that are hard links to the source's objects.
    pub(crate) linked: u64,
    /// Objects that are reflinks of the source's objects.
    pub(crate) reflinked: u64,
    /// Objects that are copies of the source's objects.
    pub(crate) copied: u64,
    /// Objects that were sealed anew, for another key holder.
    pub(crate) resealed: u64,
    /// Total size of the sealed objects.
    pub(crate) bytes: u64,
}

/// An image that was exported.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ExportReport {
    /// The export's id.
    pub(crate) export: String,
    /// Objects in the stream.
    pub(crate) objects: u64,
    /// Length of the stream.
    pub(crate) bytes: u64,
}

/// A finding of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct FindingReport {
    /// The kind of finding, as `bilayer check` prints it in brackets.
    pub(crate) kind: String,
    /// `error`, `warning` or `note`.
    pub(crate) severity: String,
    /// What is wrong, for people.
    pub(crate) message: String,
    /// The file in the volume's directory.
    pub(crate) file: Option<String>,
    /// Ranges of its pages: the first page, and the page behind the last one.
    pub(crate) pages: Vec<(u64, u64)>,
    /// The inode concerned.
    pub(crate) inode: Option<u64>,
    /// Paths of that inode.
    pub(crate) paths: Vec<PathBytes>,
    /// The fault was repaired.
    pub(crate) repaired: bool,
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

/// Progress in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct BytesDone {
    /// Bytes done so far.
    pub(crate) bytes: u64,
    /// Total number of bytes; `None` while it is not known, and while metadata is compared.
    pub(crate) total_bytes: Option<u64>,
}

/// The result of a check without its findings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CheckSummary {
    /// Inodes checked.
    pub(crate) inodes: u64,
    /// Snapshots checked.
    pub(crate) snapshots: u64,
    /// Objects checked.
    pub(crate) objects: u64,
    /// Pages verified.
    pub(crate) pages: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Findings beyond the limit, which are not listed.
    pub(crate) omitted: u64,
    /// How many of the findings beyond the limit are faults.
    pub(crate) omitted_faults: u64,
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

/// The result of a successful operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// There is nothing to report.
    Nothing,
    /// Nothing was changed, since the volume is mounted read-only.
    ReadOnly,
    /// The view that was created.
    Created(ViewReport),
    /// The volume that was made from an image.
    Deployed(DeployReport),
    /// The stream that was written.
    Exported(ExportReport),
    /// The number of the slot that was changed.
    Slot(u8),
    /// The result of a check.
    Checked(CheckSummary),
}

/// Receives the intermediate responses of an operation, and ignores those that it does not
/// implement. An error here ends the operation if that is possible.
pub(crate) trait Receiver {
    /// A view of a list.
    fn view(&mut self, _: ViewReport) -> io::Result<()> {
        Ok(())
    }
    /// A path that differs.
    fn change(&mut self, _: ChangeReport) -> io::Result<()> {
        Ok(())
    }
    /// A piece of a stream.
    fn bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    /// A finding of a check.
    fn finding(&mut self, _: FindingReport) -> io::Result<()> {
        Ok(())
    }
    /// Progress, several times a second.
    fn progress(&mut self, _: BytesDone) -> io::Result<()> {
        Ok(())
    }
}

/// For operations without intermediate responses.
#[derive(Debug)]
pub(crate) struct Discard;

impl Receiver for Discard {}

/// Collects a list of views.
#[derive(Debug, Default)]
pub(crate) struct Views(pub(crate) Vec<ViewReport>);

impl Receiver for Views {
    fn view(&mut self, view: ViewReport) -> io::Result<()> {
        self.0.push(view);
        Ok(())
    }
}
