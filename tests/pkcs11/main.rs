//! Customer keys on PKCS#11 tokens: SoftHSM, which does RSA-OAEP with SHA-1 only; kryoptic, which
//! does it with SHA-256 and locks after wrong PINs; and SoftHSM behind a service of p11-kit, which
//! can be stopped and ended. Tests that cannot run say so.
//!
//! A module is initialised once in a process, and finds its tokens then. So each test runs in a
//! process of its own: the test program starts itself again for this one test, with the module's
//! configuration in the environment.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod faults;
mod keys;
mod mounts;
mod pins;
mod token;

use bilayer_test_support::real;

use std::path::Path;

use bilayer::keys::customer::{self, CustomerKeyProvider, KeyVersion};
use bilayer::keys::{ErrorKind, KeyError, KeyUri, PassphraseSource};

use token::{PIN, Token};

/// Opens a key with the right PIN.
fn open(token: &Token, uri: &str) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    let file = token.directory.join("right");
    if !file.exists() {
        token.secret("right", PIN);
    }
    open_with(uri, &PassphraseSource::File(file))
}

fn open_with(
    uri: &str,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    customer::open(&KeyUri::parse(uri).unwrap(), passphrase)
}

/// Fails the test unless the result is an error of that kind, with a text that contains `part` and
/// with a hint. Returns both.
#[track_caller]
fn refused<T>(result: Result<T, KeyError>, kind: ErrorKind, part: &str) -> String {
    let Err(error) = result else {
        panic!("nothing was refused, though {kind:?} was expected");
    };
    let hint = error.hint().unwrap_or_default();
    let text = format!("{error}; {hint}");
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(part), "{part:?} is not in: {text}");
    assert!(hint.len() > 10, "no hint: {text}");
    assert!(!text.contains(PIN), "the PIN is in: {text}");
    text
}

/// Fails the test unless the key opens what is wrapped to that version.
#[track_caller]
fn round_trip(key: &dyn CustomerKeyProvider, version: &KeyVersion) {
    let plain = [0x5A; 120];
    let wrapped = version.key.wrap(&plain).unwrap();
    assert_eq!(*key.unwrap(version, &wrapped).unwrap(), plain);
}

/// A copy of a file, with another mode.
fn copy_with_mode(from: &Path, to: &Path, mode: u32) {
    std::fs::copy(from, to).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(to, permissions).unwrap();
}
