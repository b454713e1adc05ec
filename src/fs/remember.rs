//! Telling the platform keystore where the volume's history stands.
//!
//! The record is no part of the volume: while it cannot be written the volume is used on, since it
//! was written once before the first change (see [`crate::volume::open()`]). What is lost meanwhile
//! is protection: an older copy from after the last record would not be noticed. So a failure is
//! logged, once for each kind and again when it is over, and shown in `status`; and an end that
//! could not write the record is an error.

use parking_lot::Mutex;

use super::{Filesystem, FsError};
use crate::keys::{ErrorKind, KeyError};

/// How the last attempts went.
#[derive(Debug, Default)]
pub(super) struct KeystoreState(Mutex<Attempts>);

#[derive(Debug, Default)]
struct Attempts {
    /// Why the last one failed.
    failure: Option<String>,
    /// Kinds that were logged since one succeeded.
    logged: Vec<ErrorKind>,
}

impl KeystoreState {
    /// True where this is to be logged.
    fn failed(&self, error: &KeyError) -> bool {
        let mut attempts = self.0.lock();
        attempts.failure = Some(error.to_string());
        let is_new = !attempts.logged.contains(&error.kind());
        if is_new {
            attempts.logged.push(error.kind());
        }
        is_new
    }

    /// True where others failed before it.
    fn succeeded(&self) -> bool {
        let mut attempts = self.0.lock();
        attempts.logged.clear();
        attempts.failure.take().is_some()
    }
}

impl Filesystem {
    /// Tells the keystore of the newest commit, while the volume is in use.
    pub(super) fn try_to_remember(&self, clean: bool) {
        match self.remember(clean) {
            Ok(()) if self.keystore.succeeded() => {
                tracing::info!("the platform keystore knows of the newest commit again");
            }
            Err(error) if self.keystore.failed(&error) => {
                tracing::error!(
                    %error,
                    "the platform keystore cannot be told of commits: until it can, an older copy \
                     that is put in the volume's place would not be noticed"
                );
            }
            _ => {}
        }
    }

    /// Tells the keystore of the last commit, after which nothing is told any more.
    pub(super) fn remember_at_end(&self) -> Result<(), FsError> {
        self.remember(true).map_err(FsError::NotRemembered)
    }

    /// Why the keystore does not know of the newest commit, if it does not.
    pub(super) fn keystore_failure(&self) -> Option<String> {
        self.keystore.0.lock().failure.clone()
    }

    fn remember(&self, clean: bool) -> Result<(), KeyError> {
        let (newest, tags) = self.meta.file().durable();
        self.volume.remember(newest, tags, clean)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_failure_is_logged_once_for_each_kind() {
        let state = KeystoreState::default();
        let error = |errno| {
            let error = io::Error::from_raw_os_error(errno);
            KeyError::io("cannot write", Path::new("/k"), error)
        };
        assert!(!state.succeeded());
        assert!(state.failed(&error(libc::EROFS)));
        assert!(!state.failed(&error(libc::EROFS)));
        assert!(state.failed(&error(libc::ENOSPC)));
        assert!(!state.failed(&error(libc::EROFS)));
        assert!(state.0.lock().failure.is_some());
        assert!(state.succeeded() && !state.succeeded());
        assert_eq!(state.0.lock().failure, None);
        assert!(state.failed(&error(libc::EROFS)));
    }
}
