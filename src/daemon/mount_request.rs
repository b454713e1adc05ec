//! What `bilayer mount` and the mount helper ask for.

use std::os::fd::RawFd;
use std::path::PathBuf;

use super::options::RequestedOptions;
use crate::keys::PassphraseSource;

/// What to mount where and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountRequest {
    /// The volume's directory.
    pub(crate) volume: PathBuf,
    /// Where to mount it.
    pub(crate) dir: PathBuf,
    /// Make the volume and the directory where there is none.
    pub(crate) create: bool,
    /// Take the volume as it is where it is older than the platform keystore knows it to be.
    pub(crate) accept_restored: bool,
    /// Make the copy of a volume that it is a volume of its own.
    pub(crate) new_identity: bool,
    /// Stay in the foreground.
    pub(crate) foreground: bool,
    /// The words of `-o`.
    pub(crate) options: RequestedOptions,
    /// The platform keystore.
    pub(crate) keystore: PathBuf,
}

impl MountRequest {
    /// The volume is to get another incarnation or id before it is mounted.
    pub(super) fn changes_identity(&self) -> bool {
        self.new_identity || self.accept_restored
    }

    /// Discard has asked to write. mount(8) passes `rw` on whether anybody said it or not, and mounts
    /// what cannot be written to read-only itself.
    pub(super) fn may_become_read_only(&self) -> bool {
        self.options.read_only.is_none() || self.options.by_mount
    }

    /// Where the customer key's passphrase comes from; the terminal unless an option says so.
    pub(super) fn passphrase(&self) -> PassphraseSource {
        let chosen = self.options.passphrase.clone();
        chosen.unwrap_or(PassphraseSource::Prompt)
    }

    /// The descriptor that the caller passed the passphrase on. A standard stream does not count: it
    /// is left with the terminal.
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
