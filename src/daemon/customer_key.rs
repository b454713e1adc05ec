//! The customer key of a mounted volume: following it to its newest version.
//!
//! A URI without a version is looked at when the volume is mounted, and at intervals
//! (`key_check=`). After a failure the intervals double, up to an hour, and all are drawn within a
//! quarter of their length: mounts that lost the same provider do not all come back at once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::audit::Record;
use crate::control::report::{KeyCheckReport, utc};
use crate::fs::Filesystem;
use crate::keys::uri::Scheme;
use crate::keys::{KeyUri, PassphraseSource, customer};
use crate::sys::clock::coarse_time;
use crate::volume::follow_key::Followed;

/// How often the key is looked at, unless `key_check=` says otherwise.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// The longest interval after failures.
const LONGEST: Duration = Duration::from_secs(3600);

/// How the last look at the key went; `None` if the key is not looked at.
pub(super) type KeyCheck = Arc<Mutex<Option<KeyCheckReport>>>;

/// Starts the thread that looks at the customer key. It ends with the filesystem.
pub(super) fn watch_customer_key(
    filesystem: &Arc<Filesystem>,
    passphrase: &PassphraseSource,
    interval: Duration,
    check: &KeyCheck,
) {
    if filesystem.volume().opened_by.is_none() {
        return;
    }
    let watch = Watch {
        filesystem: Arc::downgrade(filesystem),
        // Nobody is at the terminal any more, and a descriptor has been read.
        passphrase: match passphrase {
            PassphraseSource::File(path) => PassphraseSource::File(path.clone()),
            _ => PassphraseSource::None,
        },
        interval,
        check: Arc::clone(check),
    };
    let thread = std::thread::Builder::new().name("customer-key".to_owned());
    if let Err(error) = thread.spawn(move || watch.run()) {
        tracing::warn!(%error, "the customer key is not followed to new versions");
    }
}

/// False for a key that is one file, and for a code on paper.
fn may_have_versions(uri: &KeyUri) -> bool {
    match uri.scheme() {
        Scheme::File(path) => !path.is_file(),
        Scheme::Recovery => false,
        _ => true,
    }
}

struct Watch {
    filesystem: Weak<Filesystem>,
    passphrase: PassphraseSource,
    interval: Duration,
    check: KeyCheck,
}

impl Watch {
    fn run(self) {
        let mut failures = 0u32;
        while let Some(open) = self.filesystem.upgrade() {
            // The slot may have been rotated to another URI.
            let uri = open.volume().customer_uri();
            if let Some(uri) = uri.filter(may_have_versions) {
                let looked = self.look_once(&open, &uri);
                failures = match looked {
                    Ok(()) => 0,
                    Err(_) => failures.saturating_add(1),
                };
                self.note(&open, &uri, looked.err());
            }
            drop(open);
            std::thread::sleep(wait(self.interval, failures));
        }
    }

    fn look_once(&self, open: &Filesystem, uri: &KeyUri) -> Result<(), String> {
        if open.is_read_only() {
            return Ok(());
        }
        let provider = customer::open(uri, &self.passphrase).map_err(|error| error.to_string())?;
        match open.follow_customer_key(&*provider) {
            Ok(Followed::Rotated(version)) => {
                let name = version.name.as_deref().unwrap_or_default();
                tracing::info!(
                    %uri,
                    version = name,
                    fingerprint = version.key.fingerprint(),
                    "the data keys are wrapped with a new version of the customer key"
                );
                Ok(())
            }
            Ok(Followed::Current(_) | Followed::NotOurs) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Notes how it went, for `status`. The log and the audit get what is new.
    fn note(&self, open: &Filesystem, uri: &KeyUri, error: Option<String>) {
        let mut check = self.check.lock();
        let before = check.as_ref().and_then(|before| before.error.clone());
        if before != error {
            let audited = Record::new("check-key")
                .volume(open.volume().header().volume_id())
                .key(&uri.to_string());
            match &error {
                Some(error) => {
                    tracing::warn!(%uri, %error, "the customer key cannot be checked");
                    audited.refused(error);
                }
                None => {
                    tracing::info!(%uri, "the customer key can be checked again");
                    audited.done();
                }
            }
        }
        *check = Some(KeyCheckReport {
            uri: uri.to_string(),
            checked: utc(coarse_time().secs),
            error,
        });
    }
}

/// How long to wait: the interval, doubled for each failure in a row, give or take a quarter.
fn wait(interval: Duration, failures: u32) -> Duration {
    let longest = LONGEST.max(interval);
    let wait = interval.saturating_mul(1 << failures.min(12)).min(longest);
    let mut random = [0u8; 2];
    // Without randomness all wait equally long, which is no failure.
    let _ = getrandom::fill(&mut random);
    let share = f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
    wait.mul_f64(0.75 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_grow_to_an_hour_and_differ() {
        let minute = Duration::from_secs(60);
        let mut seen = Vec::new();
        for failures in 0..40 {
            let wait = wait(minute, failures);
            let middle = minute.saturating_mul(1 << failures.min(12)).min(LONGEST);
            assert!(wait >= middle.mul_f64(0.74) && wait <= middle.mul_f64(1.26));
            seen.push(wait);
        }
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 20);
        let day = Duration::from_secs(24 * 3600);
        assert!(wait(day, 9) > Duration::from_secs(12 * 3600));
    }

    #[test]
    fn one_file_and_a_code_have_no_versions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k.pem");
        let uri = KeyUri::from_file(&path).unwrap();
        assert!(may_have_versions(&uri));
        std::fs::write(&path, "").unwrap();
        assert!(!may_have_versions(&uri));
        assert!(!may_have_versions(&KeyUri::recovery()));
    }
}
