//! What a command asks of the daemon that has a volume mounted.
//!
//! | request | response |
//! |---|---|
//! | `Prove` | `Proof`, and two descriptors ([`super::proof`]) |
//! | `Ping` | `Alive`, whatever else the daemon does |
//! | `Status` | `Status` |
//! | `Remount` | `Done` when the mount is as asked and, for read-only, everything is on disk |
//! | `Sync` | `Done` when everything so far is on disk |
//! | `Wait` | `Waiting` at once, and `Closed` when the volume is closed |
//! | `Stays`, after `Wait` | none: the mount was not taken away, and whoever waited leaves |
//! | `Operation` | `View`, `Change`, `Finding`, `Progress`, `Bytes`, and at last `Done` |
//!
//! Any of them may be answered with `Failed` ([`super::response`]). How both are written is in
//! [`super::wire`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fs::AccessTimes;
use crate::fs::snapshots::ViewKind;
use crate::keys::PassphraseSource;

/// One request. A connection may carry several, one after the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Show that this process has the volume.
    Prove,
    /// Show a sign of life.
    Ping,
    /// What is known of the volume and the mount.
    Status,
    /// Put everything on disk.
    Sync,
    /// Change the mount.
    Remount(Remount),
    /// Say when the volume is closed, and how that went.
    Wait,
    /// The mount stays; whoever waited leaves.
    Stays,
    /// Do something with the volume.
    Operation(Operation),
}

/// What the daemon has to know of a mount that changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Remount {
    /// Nothing may be written from now on.
    pub(crate) read_only: bool,
    /// When times of access change.
    pub(crate) access_times: AccessTimes,
}

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

/// Something to be done with a volume: by its daemon, or by a command that has opened it itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub(crate) enum Operation {
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

impl Operation {
    /// True for what changes nothing in the volume.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::List { .. } | Self::Diff { .. } | Self::Export { .. } | Self::Check { .. }
        )
    }

    /// The operation for people: `cannot …`.
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
