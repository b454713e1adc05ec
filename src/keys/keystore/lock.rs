//! The lock of a keystore: held while versions are made, dropped or restored.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use super::files;
use crate::keys::error::{ErrorKind, KeyError, while_writing};

/// Name of the file that is locked.
const NAME: &str = "keystore.lock";
/// How long another process may hold the lock. It never does for long.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The exclusive right to change the versions of a keystore.
#[derive(Debug)]
pub(super) struct KeystoreLock {
    #[expect(dead_code, reason = "held, never read")]
    file: File,
}

impl KeystoreLock {
    /// Takes the lock, and waits for another process.
    pub(super) fn take(directory: &Path) -> Result<Self, KeyError> {
        let path = directory.join(NAME);
        let file =
            files::open_or_make(directory, NAME).map_err(while_writing("cannot lock", &path))?;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => {
                    std::thread::sleep(POLL_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => return Err(busy(directory)),
                Err(TryLockError::Error(error)) => {
                    return Err(while_writing("cannot lock", &path)(error));
                }
            }
        }
    }
}

fn busy(directory: &Path) -> KeyError {
    KeyError::new(
        ErrorKind::InUse,
        format!(
            "another process changes the platform keystore {}",
            directory.display()
        ),
    )
    .with_hint(format!(
        "see which one: fuser -v {}",
        directory.join(NAME).display()
    ))
}
