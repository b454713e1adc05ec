//! `file:` keys: an RSA key in a PEM file.
//!
//! A key with versions is several files (`versions`); all else here is about one file.
//!
//! The public half is enough to create a volume; opening it needs the private half. The `rsa` crate
//! handles PEM, generation and wrapping. AWS-LC handles private-key operations, because those of
//! `rsa` are not constant in time (RUSTSEC-2023-0071). A `pure-rust` build uses `rsa` with
//! blinding.

mod change_passphrase;
mod versioned;
mod versions;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use pkcs8::LineEnding;
use pkcs8::pkcs5::{pbes2, scrypt};
use rsa::RsaPrivateKey;
use rsa::pkcs8::EncodePrivateKey;
use rsa::rand_core::OsRng;
use zeroize::Zeroizing;

use super::pem::{self, PemKey};
use super::{
    CustomerKeyProvider, KeyVersion, RSA_BITS, WrapAlgorithm, WrappingKey, does_not_decrypt,
    not_this_key,
};
use crate::keys::error::{ErrorKind, KeyError, while_doing};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::secret::Passphrase;
use crate::keys::uri::KeyUri;
use crate::sys::identity::effective_user;
use crate::sys::wipe::with_secrets;

pub use change_passphrase::change_passphrase;

/// Length limit of a key file, in bytes.
pub const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

/// Opens the key at `path`, which `uri` names: a file, or, if there is none, files of its versions.
///
/// # Errors
/// The errors of [`open`](super::open).
pub(super) fn open_key(
    uri: &KeyUri,
    path: &Path,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    if is_absent(path)
        && let Some(key) = versioned::VersionedKey::find(uri, path, passphrase)?
    {
        return Ok(Box::new(key));
    }
    Ok(Box::new(FileKey::open(uri, path, passphrase)?))
}

/// True if a URI with this path names neither a file nor a key with versions.
pub(crate) fn is_missing(uri: &KeyUri, path: &Path) -> bool {
    let has_versions = || {
        let versions = versions::Place::of(uri, path).map(|place| place.list());
        versions.is_some_and(|versions| versions.map_or(true, |them| !them.is_empty()))
    };
    is_absent(path) && !has_versions()
}

fn is_absent(path: &Path) -> bool {
    let metadata = path.symlink_metadata();
    metadata.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// A key in a PEM file.
pub struct FileKey {
    uri: KeyUri,
    key: WrappingKey,
    private: Option<PrivateKey>,
}

impl FileKey {
    /// Reads the key file at `path`, which `uri` names.
    fn open(uri: &KeyUri, path: &Path, passphrase: &PassphraseSource) -> Result<Self, KeyError> {
        let file = open(path)?;
        let text = read_bounded(&file, path)?;
        // Before the user types a passphrase.
        if pem::is_private(&text) {
            refuse_shared(&file, path)?;
        }
        Self::parse(uri, &text, path, passphrase)
    }

    /// The key in `text`, the contents of the file at `path`.
    fn parse(
        uri: &KeyUri,
        text: &[u8],
        path: &Path,
        passphrase: &PassphraseSource,
    ) -> Result<Self, KeyError> {
        let key = pem::parse(text, path, passphrase)?;
        let public = pem::wrapping_key(key.public(), path)?;
        let private = match key {
            PemKey::Private(key) => Some(PrivateKey::new(*key)?),
            PemKey::Public(_) => None,
        };
        Ok(Self {
            uri: uri.clone(),
            key: public,
            private,
        })
    }
}

impl CustomerKeyProvider for FileKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        Ok(KeyVersion {
            name: None,
            key: self.key.clone(),
        })
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if !version.key.is_same_key(&self.key) {
            return Err(not_this_key(&self.uri, version));
        }
        let Some(private) = &self.private else {
            return Err(KeyError::new(
                ErrorKind::KeyUnavailable,
                format!("{} is only the public half of the key", self.uri),
            )
            .with_hint("name the private key: file:/path/to/private.pem"));
        };
        if ciphertext.len() != self.key.ciphertext_bytes(0) {
            return Err(does_not_decrypt(&self.uri));
        }
        with_secrets(|| private.decrypt(version.key.algorithm(), ciphertext))
            .ok_or_else(|| does_not_decrypt(&self.uri))
    }

    fn can_unwrap(&self) -> bool {
        self.private.is_some()
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileKey")
            .field("uri", &self.uri)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// The private half, held by AWS-LC.
#[cfg(feature = "aws-lc")]
struct PrivateKey(aws_lc_rs::rsa::OaepPrivateDecryptingKey);

#[cfg(feature = "aws-lc")]
impl PrivateKey {
    fn new(key: RsaPrivateKey) -> Result<Self, KeyError> {
        let refused = || KeyError::new(ErrorKind::Usage, "the RSA private key is not consistent");
        let der = key.to_pkcs8_der().map_err(|_| refused())?;
        aws_lc_rs::rsa::PrivateDecryptingKey::from_pkcs8(der.as_bytes())
            .map_err(|_| refused())
            .and_then(|key| {
                aws_lc_rs::rsa::OaepPrivateDecryptingKey::new(key).map_err(|_| refused())
            })
            .map(Self)
    }

    fn decrypt(&self, algorithm: WrapAlgorithm, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(vec![0; self.0.min_output_size()]);
        let algorithm = match algorithm {
            WrapAlgorithm::RsaOaepSha256 => &aws_lc_rs::rsa::OAEP_SHA256_MGF1SHA256,
            WrapAlgorithm::RsaOaepSha1 => &aws_lc_rs::rsa::OAEP_SHA1_MGF1SHA1,
            WrapAlgorithm::HpkeX25519 => return None,
        };
        let len = self
            .0
            .decrypt(algorithm, wrapped, &mut out, None)
            .ok()?
            .len();
        out.truncate(len);
        Some(out)
    }
}

/// The private half, held by `rsa`.
#[cfg(not(feature = "aws-lc"))]
struct PrivateKey(RsaPrivateKey);

#[cfg(not(feature = "aws-lc"))]
impl PrivateKey {
    fn new(key: RsaPrivateKey) -> Result<Self, KeyError> {
        Ok(Self(key))
    }

    fn decrypt(&self, algorithm: WrapAlgorithm, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let padding = algorithm.padding()?;
        let plain = self.0.decrypt_blinded(&mut OsRng, padding, wrapped).ok()?;
        Some(Zeroizing::new(plain))
    }
}

/// Generates an RSA key and writes it to `path` as PKCS#8 PEM with mode 0600, encrypted if a
/// passphrase is given. Returns its public half.
///
/// The file is complete only once this returns. An existing file is never overwritten, but is an
/// error. File and directory are durable on return.
///
/// # Errors
/// Kind `Usage` for a size that is not accepted or a file that exists, `Io` and `NoSpace` for
/// failures of the operating system.
pub fn generate(
    path: &Path,
    bits: usize,
    passphrase: Option<&Passphrase>,
) -> Result<WrappingKey, KeyError> {
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::new(
            ErrorKind::Usage,
            format!("cannot make an RSA key of {bits} bits"),
        )
        .with_hint("choose 2048, 3072 or 4096"));
    }
    // A path that no URI can name would make the key useless.
    KeyUri::from_file(path)?;
    // Tried first, so that nobody waits for a key that cannot be written. The file is removed while
    // the key is generated, so that an interrupted command leaves nothing behind.
    drop(create_new(path)?);
    std::fs::remove_file(path).map_err(while_doing("cannot create key file", path))?;
    let key = with_secrets(|| RsaPrivateKey::new(&mut OsRng, bits))
        .map_err(|_| KeyError::new(ErrorKind::Io, "cannot make an RSA key"))?;
    let file = create_new(path)?;
    let written = with_secrets(|| write_key(&file, path, &key, passphrase));
    match written {
        Ok(()) => pem::wrapping_key(key.to_public_key(), path),
        Err(error) => {
            // A partial key is worthless. A failure to remove it matters less than the first error.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

fn write_key(
    mut file: &File,
    path: &Path,
    key: &RsaPrivateKey,
    passphrase: Option<&Passphrase>,
) -> Result<(), KeyError> {
    let failed = || KeyError::new(ErrorKind::Io, "cannot make an RSA key");
    let text = match passphrase {
        None => key.to_pkcs8_pem(LineEnding::LF).map_err(|_| failed())?,
        Some(passphrase) => encrypted_pem(key, passphrase)?,
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(while_doing("cannot write key file", path))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(while_doing("cannot sync directory", directory))
}

/// PKCS#8 under PBES2: scrypt (RFC 7914; 16 MiB, five lanes: what OWASP recommends and OpenSSL's
/// default memory limit can read) and AES-256-CBC.
fn encrypted_pem(
    key: &RsaPrivateKey,
    passphrase: &Passphrase,
) -> Result<Zeroizing<String>, KeyError> {
    let failed = || KeyError::new(ErrorKind::Io, "cannot encrypt the RSA key");
    let (mut salt, mut iv) = ([0u8; 16], [0u8; 16]);
    for random in [&mut salt, &mut iv] {
        getrandom::fill(random)
            .map_err(|error| KeyError::random(std::io::Error::other(error.to_string())))?;
    }
    let cost = scrypt::Params::new(14, 8, 5, 32).map_err(|_| failed())?;
    let parameters = pbes2::Parameters::scrypt_aes256cbc(cost, &salt, &iv).map_err(|_| failed())?;
    let plain = key.to_pkcs8_der().map_err(|_| failed())?;
    let info = pkcs8::PrivateKeyInfo::try_from(plain.as_bytes()).map_err(|_| failed())?;
    let sealed = info
        .encrypt_with_params(parameters, passphrase.expose())
        .map_err(|_| failed())?;
    sealed
        .to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF)
        .map_err(|_| failed())
}

fn create_new(path: &Path) -> Result<File, KeyError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                KeyError::new(
                    ErrorKind::Usage,
                    format!("{} exists already", path.display()),
                )
                .with_hint("keys are never overwritten; choose another path")
            } else {
                KeyError::io("cannot create key file", path, error)
            }
        })
}

fn unavailable(path: &Path, why: impl fmt::Display) -> KeyError {
    KeyError::new(
        ErrorKind::KeyUnavailable,
        format!(
            "cannot read the customer key file {}: {why}",
            path.display()
        ),
    )
}

fn open(path: &Path) -> Result<File, KeyError> {
    File::open(path).map_err(|error| unavailable(path, error))
}

fn read_bounded(file: &File, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    // Allocated at full size: a growing buffer leaves copies of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_BYTES as usize + 2));
    file.take(MAX_KEY_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| unavailable(path, error))?;
    if text.len() as u64 > MAX_KEY_FILE_BYTES {
        let why = format!("it is longer than {MAX_KEY_FILE_BYTES} bytes");
        return Err(unavailable(path, why));
    }
    Ok(text)
}

/// Refuses a private key that other users can read, as for the files of the keystore. Something
/// that is no plain file, such as a pipe, cannot be opened by others to read the same bytes.
fn refuse_shared(file: &File, path: &Path) -> Result<(), KeyError> {
    let metadata = file.metadata().map_err(|error| unavailable(path, error))?;
    if !metadata.is_file() {
        return Ok(());
    }
    let shown = path.display();
    let refused = |why: String, hint: String| {
        let message = format!("the private key {shown} {why}");
        Err(KeyError::new(ErrorKind::KeyUnavailable, message).with_hint(hint))
    };
    let (owner, user) = (metadata.uid(), effective_user());
    if owner != user {
        return refused(
            format!("belongs to user {owner}, not to user {user}"),
            format!("run as its owner, or: chown {user} {shown}"),
        );
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return refused(
            format!("is open to other users (mode {mode:04o})"),
            format!("chmod 600 {shown}"),
        );
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
