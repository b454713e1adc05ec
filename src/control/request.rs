//! What can be asked about snapshots and images, and how it is answered: plain values, which
//! [`crate::daemon::serve`] acts on and [`crate::control::wire`] carries.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::check::{Finding, Report};
use crate::fs::types::Timespec;
use crate::fs::views::{Change, ChangeKind, ViewInfo, ViewKind};
use crate::keys::PassphraseSource;

/// The two kinds of kept views.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Kind {
    Snapshot,
    Image,
}

impl Kind {
    /// The word for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
    }

    /// The directory in the root of a mount that holds them.
    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Self::Snapshot => ".snapshots",
            Self::Image => ".images",
        }
    }
}

impl From<Kind> for ViewKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Snapshot => Self::Snapshot,
            Kind::Image => Self::Image,
        }
    }
}

impl From<ViewKind> for Kind {
    fn from(kind: ViewKind) -> Self {
        match kind {
            ViewKind::Snapshot => Self::Snapshot,
            ViewKind::Image => Self::Image,
        }
    }
}

/// A path, which need not be UTF-8: hexadecimal digits in JSON.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PathBytes(pub Vec<u8>);

impl PathBytes {
    /// The bytes of a path.
    pub(crate) fn of(path: &Path) -> Self {
        Self(path.as_os_str().as_encoded_bytes().to_vec())
    }

    /// The path.
    pub(crate) fn path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt;
        std::ffi::OsString::from_vec(self.0.clone()).into()
    }
}

impl Serialize for PathBytes {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for PathBytes {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(from)?;
        let bytes = hex::decode(digits).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub(crate) enum Request {
    /// All views of a kind, oldest first.
    List {
        kind: Kind,
    },
    /// A new one, of the live view or of a snapshot.
    Create {
        kind: Kind,
        name: String,
        from: Option<String>,
        description: String,
    },
    Delete {
        kind: Kind,
        name: String,
    },
    Rename {
        kind: Kind,
        name: String,
        to: String,
    },
    /// What differs between two snapshots, or a snapshot and the live view.
    Diff {
        from: String,
        to: Option<String>,
    },
    /// Takes the live view, or one path of it, back.
    Restore {
        snapshot: String,
        path: Option<PathBytes>,
    },
    /// Makes a volume of an image.
    Deploy {
        image: String,
        target: PathBytes,
        customer_key: Option<String>,
        passphrase: Passphrase,
        size_bytes: Option<u64>,
        keystore: Option<PathBytes>,
    },
    /// Streams an image.
    Export {
        image: String,
        passphrase_file: Option<PathBytes>,
        customer_key: Option<String>,
        passphrase: Passphrase,
    },
    /// Checks everything.
    Check {
        jobs: usize,
        /// Metadata alone.
        quick: bool,
    },
}

impl Request {
    /// True for what changes nothing in the volume.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::List { .. } | Self::Diff { .. } | Self::Export { .. } | Self::Check { .. }
        )
    }

    /// The request for people: `cannot …`.
    pub(crate) fn doing(&self) -> String {
        match self {
            Self::List { kind } => format!("cannot list the {}s", kind.name()),
            Self::Create { kind, name, .. } => format!("cannot make the {} {name}", kind.name()),
            Self::Delete { kind, name } => format!("cannot delete the {} {name}", kind.name()),
            Self::Rename { kind, name, to } => {
                format!("cannot rename the {} {name} to {to}", kind.name())
            }
            Self::Diff { from, .. } => format!("cannot compare the snapshot {from}"),
            Self::Restore { snapshot, .. } => format!("cannot restore the snapshot {snapshot}"),
            Self::Deploy { image, target, .. } => {
                let target = target.path();
                format!("cannot deploy the image {image} to {}", target.display())
            }
            Self::Export { image, .. } => format!("cannot export the image {image}"),
            Self::Check { .. } => "cannot check the volume".to_owned(),
        }
    }
}

/// Where the passphrase of an encrypted customer key comes from: as [`PassphraseSource`], without
/// what belongs to one process alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Passphrase {
    /// There is none.
    None,
    /// The terminal is asked; a daemon has none.
    Prompt,
    /// The first line of a file.
    File(PathBytes),
}

impl Passphrase {
    pub(crate) fn source(&self) -> PassphraseSource {
        match self {
            Self::None => PassphraseSource::None,
            Self::Prompt => PassphraseSource::Prompt,
            Self::File(path) => PassphraseSource::File(path.path()),
        }
    }
}

/// A snapshot or an image, as `--json` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ViewReport {
    /// Snapshot or image.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// When it was made, in UTC.
    pub created: Option<Timestamp>,
    /// The generation that it shows.
    pub generation: Option<u64>,
    /// Bytes of sealed pages that it holds alone: what deleting it gives back.
    pub used_bytes: Option<u64>,
    /// Bytes of sealed pages that it shows.
    pub refers_bytes: Option<u64>,
    /// Inodes in it.
    pub inodes: Option<u64>,
    /// The snapshot that an image was made from; none for the live view.
    pub from: Option<String>,
    /// What it was said to be.
    pub description: String,
}

impl From<ViewInfo> for ViewReport {
    fn from(view: ViewInfo) -> Self {
        Self {
            kind: view.kind.into(),
            name: view.name,
            created: timestamp(view.created),
            generation: Some(view.generation),
            used_bytes: Some(view.used_bytes),
            refers_bytes: Some(view.refers_bytes),
            inodes: Some(view.inodes),
            from: Some(view.from).filter(|from| !from.is_empty()),
            description: view.description,
        }
    }
}

fn timestamp(time: Timespec) -> Option<Timestamp> {
    let nanos = i32::try_from(time.nanos).ok()?;
    Timestamp::new(time.secs, nanos).ok()
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

impl From<&Report> for CheckSummary {
    fn from(report: &Report) -> Self {
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
pub(crate) struct Nobody;

impl Receiver for Nobody {
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
