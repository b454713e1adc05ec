//! RSA keys for tests, and what every provider has to do with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::LazyLock;

use bilayer::keys::customer::{self, file};
use bilayer::keys::secret::Passphrase;
use bilayer::keys::{
    CustomerKeyProvider, ErrorKind, KeyError, KeyUri, KeyVersion, PassphraseSource,
};

/// What is wrapped.
pub(crate) const PLAIN: [u8; 93] = [0xA5; 93];

/// Private keys, as PEM. Making one takes long.
pub(crate) static KEYS: LazyLock<[String; 3]> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    [0, 1, 2].map(|number| {
        let path = directory.path().join(number.to_string());
        file::generate(&path, 2048, None).unwrap();
        fs::read_to_string(path).unwrap()
    })
});

/// An encrypted private key and its public half, as PEM.
pub(crate) fn encrypted_key(passphrase: &str) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let passphrase = Passphrase::from_bytes(passphrase.as_bytes()).unwrap();
    let public = file::generate(&path, 2048, Some(&passphrase)).unwrap();
    (fs::read_to_string(path).unwrap(), public_pem(public.spki()))
}

/// A public key as PEM.
pub(crate) fn public_pem(spki: &[u8]) -> String {
    use base64ct::{Base64, Encoding};
    let text = Base64::encode_string(spki);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n")
}

/// Writes a file with a mode.
pub(crate) fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    set_mode(path, mode);
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Opens a key that needs no passphrase.
pub(crate) fn open(uri: &str) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    customer::open(&KeyUri::parse(uri)?, &PassphraseSource::None)
}

/// What is wrapped to the current version comes back.
#[track_caller]
pub(crate) fn round_trip(key: &dyn CustomerKeyProvider) -> KeyVersion {
    let version = key.current().unwrap();
    let ciphertext = version.key.wrap(&PLAIN).unwrap();
    assert_eq!(key.unwrap(&version, &ciphertext).unwrap()[..], PLAIN);
    version
}

/// The error of unwrapping something that was wrapped to this version.
#[track_caller]
pub(crate) fn unwrap_error(key: &dyn CustomerKeyProvider, version: &KeyVersion) -> KeyError {
    let ciphertext = version.key.wrap(&PLAIN).unwrap();
    key.unwrap(version, &ciphertext).expect_err("refused")
}

/// Checks the kind of an error, and that it names something and says what to do.
#[track_caller]
pub(crate) fn assert_error(error: &KeyError, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error} / {part}");
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
}
