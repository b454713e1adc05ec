//! The requests of a command to the daemon that has a volume mounted.
//!
//! | request | response |
//! |---|---|
//! | `Prove` | `Proof`, and two descriptors ([`super::proof`]) |
//! | `Ping` | `Alive`, whatever else the daemon does |
//! | `Status` | `Status` |
//! | `Remount` | `Done` when the mount is as asked and, for read-only, everything is on disk |
//! | `Sync` | `Done` when everything so far is on disk |
//! | `Wait` | `Waiting` at once, and `Closed` when the volume is closed |
//! | `Stays`, after `Wait` | none: the mount was not unmounted, and the command stops waiting |
//! | `Operation` | `View`, `Change`, `Finding`, `Progress`, `Bytes`, and at last `Done` |
//!
//! The response to any of them may be `Failed` ([`super::response`]). [`super::wire`] encodes
//! requests and responses.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fs::AccessTimes;
use crate::fs::snapshots::ViewKind;
use crate::keys::PassphraseSource;
use crate::volume::{Consent, SlotChange};

/// One request. A connection may carry several, one after the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Prove that this process holds the volume.
    Prove,
    /// Answer that the daemon is alive.
    Ping,
    /// Report the volume and the mount.
    Status,
    /// Put everything on disk.
    Sync,
    /// Change the mount.
    Remount(Remount),
    /// Respond when the volume is closed, with the outcome.
    Wait,
    /// The mount was not unmounted; the command stops waiting.
    Stays,
    /// Do something with the volume.
    Operation(Operation),
}

/// The state of a mount that a remount asks of the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Remount {
    /// Nothing may be written.
    pub(crate) read_only: bool,
    /// When access times change.
    pub(crate) access_times: AccessTimes,
}

/// The two kinds of kept views.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A snapshot.
    Snapshot,
    /// An image.
    Image,
}

impl Kind {
    /// The kind's name.
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

/// A path, which need not be UTF-8; hexadecimal digits in JSON.
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

/// An operation on a volume: by its daemon, or by a command that has opened the volume itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// Lists all views of a kind, oldest first.
    List {
        /// Snapshots or images.
        kind: Kind,
    },
    /// Creates a view of the live view or of a snapshot.
    Create {
        /// Snapshots or images.
        kind: Kind,
        /// The name of the view.
        name: String,
        /// The view to start from; `None`: the live view.
        from: Option<String>,
        /// A description for people.
        description: String,
    },
    /// Deletes a view.
    Delete {
        /// Snapshots or images.
        kind: Kind,
        /// The name of the view.
        name: String,
    },
    /// Renames a view.
    Rename {
        /// Snapshots or images.
        kind: Kind,
        /// The name of the view.
        name: String,
        /// The new name.
        to: String,
    },
    /// Lists the differences between two snapshots, or a snapshot and the live view.
    Diff {
        /// The earlier snapshot.
        from: String,
        /// The later snapshot; `None`: the live view.
        to: Option<String>,
    },
    /// Returns the live view, or one path of it, to a snapshot.
    Restore {
        /// The snapshot.
        snapshot: String,
        /// Only this path of the volume.
        path: Option<PathBytes>,
    },
    /// Makes a new volume from an image.
    Deploy {
        /// The image.
        image: String,
        /// The directory of the new volume.
        target: PathBytes,
        /// The receiver's customer key; `None`: the key of the source.
        customer_key: Option<String>,
        /// The passphrase of that key.
        passphrase: Passphrase,
        /// Largest size of the contents; `None`: that of the source.
        size_bytes: Option<u64>,
        /// The new volume's keystore; `None`: that of the source.
        keystore: Option<PathBytes>,
    },
    /// Streams an image.
    Export {
        /// The image.
        image: String,
        /// The file with the passphrase that wraps the platform key in the stream; `None`: the
        /// receiver must have the platform keystore.
        passphrase_file: Option<PathBytes>,
        /// The receiver's customer key; `None`: the key of the source.
        customer_key: Option<String>,
        /// The passphrase of that key.
        passphrase: Passphrase,
    },
    /// Changes the slots.
    ChangeSlots {
        /// The change.
        change: SlotChange,
        /// The proof that the asker has a customer key.
        consent: Consent,
    },
    /// Checks everything.
    Check {
        /// Threads; 0: one for each CPU.
        jobs: usize,
        /// Checks metadata only.
        quick: bool,
    },
    /// Wraps the data keys with the newest platform keys.
    RewrapPlatform {
        /// Id of the keystore that was rotated.
        keystore: String,
        /// Its current version.
        version: u32,
    },
}

impl Operation {
    /// True if the operation changes nothing in the volume.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::List { .. } | Self::Diff { .. } | Self::Export { .. } | Self::Check { .. }
        )
    }

    /// The beginning of an error message about the operation: "cannot …".
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
            Self::ChangeSlots { .. } => "cannot change the slots".to_owned(),
            Self::Check { .. } => "cannot check the volume".to_owned(),
            Self::RewrapPlatform { version, .. } => {
                format!("cannot wrap the data keys with platform key version {version}")
            }
        }
    }
}

/// Where the passphrase of an encrypted customer key comes from: a [`PassphraseSource`] without the
/// variants that only work within one process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Passphrase {
    /// The key has no passphrase.
    None,
    /// A prompt on the terminal, which a daemon does not have.
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
