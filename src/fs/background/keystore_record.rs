//! Recording the volume's newest commit in the platform keystore.
//!
//! The record is not part of the volume. While it cannot be written, the volume stays in use, since
//! it was written once before the first change (see [`crate::volume::open()`]). Until it is written
//! again, an older copy from after the last record would not be noticed. So a failure is logged,
//! once for each kind, and shown in `status`; the end of the failure is logged too; and closing
//! without writing the record is an error.

use parking_lot::Mutex;

use crate::fs::{Filesystem, FsError};
use crate::keys::{ErrorKind, KeyError};

/// Outcome of the last attempts.
#[derive(Debug, Default)]
pub(in crate::fs) struct KeystoreState(Mutex<Attempts>);

#[derive(Debug, Default)]
struct Attempts {
    /// Why the last one failed.
    failure: Option<String>,
    /// Kinds of failure that were logged since the last success.
    logged: Vec<ErrorKind>,
}

impl KeystoreState {
    /// Notes a failure. True if it is to be logged.
    fn failed(&self, error: &KeyError) -> bool {
        let mut attempts = self.0.lock();
        attempts.failure = Some(error.to_string());
        let is_new = !attempts.logged.contains(&error.kind());
        if is_new {
            attempts.logged.push(error.kind());
        }
        is_new
    }

    /// Notes a success. True if attempts before it failed.
    fn succeeded(&self) -> bool {
        let mut attempts = self.0.lock();
        attempts.logged.clear();
        attempts.failure.take().is_some()
    }
}

impl Filesystem {
    /// Records the newest commit in the keystore while the volume is in use. A failure is logged.
    pub(in crate::fs) fn record_in_keystore(&self, clean: bool) {
        match self.write_keystore_record(clean) {
            Ok(()) if self.keystore.succeeded() => {
                tracing::info!("the platform keystore has the newest commit again");
            }
            Err(error) if self.keystore.failed(&error) => {
                tracing::error!(
                    %error,
                    "the platform keystore cannot record commits: until it can, an older copy \
                     that is put in the volume's place would not be noticed"
                );
            }
            _ => {}
        }
    }

    /// Records the last commit in the keystore, after which nothing is recorded any more.
    pub(in crate::fs) fn record_close_in_keystore(&self) -> Result<(), FsError> {
        self.write_keystore_record(true)
            .map_err(FsError::NotRemembered)
    }

    /// Why the keystore does not have the newest commit, if that is so.
    pub(in crate::fs) fn keystore_failure(&self) -> Option<String> {
        self.keystore.0.lock().failure.clone()
    }

    fn write_keystore_record(&self, clean: bool) -> Result<(), KeyError> {
        let durable = self.meta.file().durable();
        self.volume
            .remember(durable.sequence, durable.outer_tags, clean)
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
