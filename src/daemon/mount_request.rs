//! The request of `bilayer mount` and of the mount helper.

use std::os::fd::RawFd;
use std::path::PathBuf;

use super::options::RequestedOptions;
use crate::keys::PassphraseSource;

/// A request to mount a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountRequest {
    /// The volume's directory.
    pub(crate) volume: PathBuf,
    /// Where to mount it.
    pub(crate) dir: PathBuf,
    /// Create the volume and the directory if they are missing.
    pub(crate) create: bool,
    /// Accept a volume that is older than the platform keystore's record of it.
    pub(crate) accept_restored: bool,
    /// Turn a copy into a volume of its own.
    pub(crate) new_identity: bool,
    /// Stay in the foreground.
    pub(crate) foreground: bool,
    /// The options of `-o`.
    pub(crate) options: RequestedOptions,
    /// The platform keystore.
    pub(crate) keystore: PathBuf,
}

impl MountRequest {
    /// True if the volume gets another incarnation or id before it is mounted.
    pub(super) fn changes_identity(&self) -> bool {
        self.new_identity || self.accept_restored
    }

    /// True unless `rw` was explicitly requested. mount(8) passes `rw` even if the user did not ask
    /// for it, and mounts write-protected disks read-only itself.
    pub(super) fn may_become_read_only(&self) -> bool {
        self.options.read_only.is_none() || self.options.by_mount
    }

    /// The source of the customer key's passphrase: the terminal unless an option names another.
    pub(super) fn passphrase(&self) -> PassphraseSource {
        let chosen = self.options.passphrase.clone();
        chosen.unwrap_or(PassphraseSource::Prompt)
    }

    /// The descriptor from which the passphrase is read, if it must be closed afterwards; `None`
    /// for a standard stream, which is replaced when the daemon leaves the terminal.
    pub(super) fn passphrase_descriptor(&self) -> Option<RawFd> {
        match self.options.passphrase {
            Some(PassphraseSource::Descriptor(descriptor)) if descriptor > 2 => Some(descriptor),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::path::Path;

    /// A request to mount a volume, without options.
    pub(in crate::daemon) fn request(volume: &Path, dir: &Path) -> MountRequest {
        MountRequest {
            volume: volume.to_path_buf(),
            dir: dir.to_path_buf(),
            create: false,
            accept_restored: false,
            new_identity: false,
            foreground: true,
            options: RequestedOptions::default(),
            keystore: "/no/such/keystore".into(),
        }
    }
}
