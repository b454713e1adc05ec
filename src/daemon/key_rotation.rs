//! The platform keys of a mounted volume: replacing keys that are old, and following a rotation
//! that could not reach this daemon.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::control::known_volumes::rewrap_mounted;
use crate::fs::Filesystem;
use crate::keys::PlatformKeystore;
use crate::keys::keystore::ROTATION_AGE_DAYS;
use crate::sys::clock::coarse_time;

/// How often the keystore is looked at.
const INTERVAL: Duration = Duration::from_secs(600);

/// Starts the thread that looks at the keystore. It ends with the filesystem.
pub(super) fn watch_platform_keys(filesystem: &Arc<Filesystem>) {
    let filesystem = Arc::downgrade(filesystem);
    let thread = std::thread::Builder::new().name("platform-keys".to_owned());
    let started = thread.spawn(move || {
        let mut last_error = None;
        while let Some(error) = look_once(&filesystem) {
            if error != last_error
                && let Some(error) = &error
            {
                tracing::warn!(%error, "the platform keys are not rotated");
            }
            last_error = error;
            std::thread::sleep(INTERVAL);
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "the age of the platform keys is not watched");
    }
}

/// Does what is due. `None` when the filesystem has ended; otherwise the error, if there was one.
fn look_once(filesystem: &Weak<Filesystem>) -> Option<Option<String>> {
    let open = filesystem.upgrade()?;
    if open.is_read_only() {
        return Some(None);
    }
    let directory = open.volume().keystore().directory().to_owned();
    // Looked at in memory first, since reading the keystore may take the TPM.
    let is_due = open.volume().keystore().is_due(coarse_time().secs);
    let rotated = match is_due {
        true => PlatformKeystore::rotate_if_due(&directory),
        false => Ok(None),
    };
    let mut error = open.rewrap_platform().err().map(|error| error.to_string());
    // The others may take long to answer, and this volume may be unmounted meanwhile.
    drop(open);
    match rotated {
        Ok(None) => {}
        Ok(Some(keystore)) => rotated_by_age(&directory, &keystore),
        Err(failed) => error = Some(failed.to_string()),
    }
    Some(error)
}

fn rotated_by_age(directory: &Path, keystore: &PlatformKeystore) {
    tracing::warn!(
        keystore = %directory.display(),
        version = keystore.current_version(),
        "the platform key was {ROTATION_AGE_DAYS} days old and was replaced: older backups of the \
         keystore lack the new one; make another: bilayer keystore backup FILE"
    );
    match rewrap_mounted(keystore) {
        Ok(volumes) => {
            for volume in volumes {
                if let Some(Err(error)) = volume.rewrapped {
                    tracing::warn!(volume = %volume.volume, error = %error.message,
                        "a mounted volume is not wrapped with the new platform key yet");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "mounted volumes could not be asked to re-wrap"),
    }
    if let Err(error) = keystore.drop_unneeded_versions() {
        tracing::warn!(%error, "platform key versions that nothing needs stay for now");
    }
}
