//! PEM files with RSA keys: the accepted forms, and the errors for all others.
//!
//! | label (RFC 7468) | content | taken as |
//! |---|---|---|
//! | `PRIVATE KEY` | PKCS#8 (RFC 5958) | private key |
//! | `ENCRYPTED PRIVATE KEY` | PKCS#8, PBES2 (RFC 8018; PBKDF2 or scrypt, AES-CBC) | private key |
//! | `RSA PRIVATE KEY` | PKCS#1 (RFC 8017) | private key |
//! | `PUBLIC KEY` | SubjectPublicKeyInfo (RFC 5280) | public key |
//! | `RSA PUBLIC KEY` | PKCS#1 | public key |

use std::path::Path;

use pkcs8::der::pem;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use rsa::pkcs8::{DecodePrivateKey, DecodePublicKey};
use rsa::{RsaPrivateKey, RsaPublicKey};
use zeroize::Zeroizing;

use super::{WrapAlgorithm, WrappingKey};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::secret::Passphrase;

/// Limit on the memory that the scrypt parameters of a key file may require, in bytes.
const MAX_SCRYPT_BYTES: u64 = 1 << 30;
/// Limit on the iterations that the PBKDF2 parameters of a key file may require.
const MAX_PBKDF2_ITERATIONS: u32 = 20_000_000;
/// The key in a file.
pub(super) enum PemKey {
    /// Both halves.
    Private(Box<RsaPrivateKey>),
    /// The public half.
    Public(RsaPublicKey),
}

impl PemKey {
    /// The public half.
    pub(super) fn public(&self) -> RsaPublicKey {
        match self {
            Self::Private(key) => key.to_public_key(),
            Self::Public(key) => key.clone(),
        }
    }
}

/// True if the first PEM block of `text` is a private key of any kind.
pub(super) fn is_private(text: &[u8]) -> bool {
    pem::decode_label(text).is_ok_and(|label| label.ends_with("PRIVATE KEY"))
}

/// True if the first PEM block of `text` is a private key that needs a passphrase.
pub(super) fn is_encrypted(text: &[u8]) -> bool {
    pem::decode_label(text).is_ok_and(|label| label == "ENCRYPTED PRIVATE KEY")
}

/// Reads the first PEM block of `text`, the contents of the file at `path`.
pub(super) fn parse(
    text: &[u8],
    path: &Path,
    passphrase: &PassphraseSource,
) -> Result<PemKey, KeyError> {
    if contains(text, b"Proc-Type: 4,ENCRYPTED") {
        return Err(
            refused(path, "is encrypted in OpenSSL's legacy format").with_hint(
                "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD.pem -out NEW.pem",
            ),
        );
    }
    let label = pem::decode_label(text)
        .map_err(|_| refused(path, "is no PEM file"))?
        .to_owned();
    let (_, der) = pem::decode_vec(text).map_err(|_| refused(path, "is a damaged PEM file"))?;
    let der = Zeroizing::new(der);
    let key = match label.as_str() {
        "PRIVATE KEY" => private(RsaPrivateKey::from_pkcs8_der(&der).ok(), path)?,
        "RSA PRIVATE KEY" => private(RsaPrivateKey::from_pkcs1_der(&der).ok(), path)?,
        "ENCRYPTED PRIVATE KEY" => {
            let plain = decrypt(&der, path, passphrase)?;
            private(RsaPrivateKey::from_pkcs8_der(plain.as_bytes()).ok(), path)?
        }
        "PUBLIC KEY" => public(RsaPublicKey::from_public_key_der(&der).ok(), path)?,
        "RSA PUBLIC KEY" => public(RsaPublicKey::from_pkcs1_der(&der).ok(), path)?,
        "CERTIFICATE" => {
            return Err(refused(path, "is a certificate").with_hint(
                "extract its public key: openssl x509 -pubkey -noout -in CERT.pem > KEY.pem",
            ));
        }
        "OPENSSH PRIVATE KEY" => {
            return Err(refused(path, "is a key of OpenSSH").with_hint(
                "convert a copy of it: ssh-keygen -p -m PKCS8 -f COPY (RSA keys only)",
            ));
        }
        other => return Err(refused(path, &format!("holds a {other:?} and no RSA key"))),
    };
    wrapping_key(key.public(), path)?;
    Ok(key)
}

/// Reads a PEM block with an encrypted private key, which that passphrase opens.
pub(super) fn parse_encrypted(
    text: &[u8],
    path: &Path,
    passphrase: &Passphrase,
) -> Result<RsaPrivateKey, KeyError> {
    let (_, der) = pem::decode_vec(text).map_err(|_| refused(path, "is a damaged PEM file"))?;
    let info = EncryptedPrivateKeyInfo::try_from(der.as_slice())
        .map_err(|_| refused(path, "holds no encrypted private key"))?;
    let plain = decrypt_with(&info, path, passphrase)?;
    RsaPrivateKey::from_pkcs8_der(plain.as_bytes())
        .map_err(|_| refused(path, "holds no usable RSA private key"))
}

fn private(key: Option<RsaPrivateKey>, path: &Path) -> Result<PemKey, KeyError> {
    key.map(|key| PemKey::Private(Box::new(key)))
        .ok_or_else(|| refused(path, "holds no usable RSA private key"))
}

fn public(key: Option<RsaPublicKey>, path: &Path) -> Result<PemKey, KeyError> {
    key.map(PemKey::Public)
        .ok_or_else(|| refused(path, "holds no usable RSA public key"))
}

/// The public half, if its size and exponent are accepted. `path` is for the error.
pub(super) fn wrapping_key(key: RsaPublicKey, path: &Path) -> Result<WrappingKey, KeyError> {
    WrappingKey::new(key, WrapAlgorithm::RsaOaepSha256).map_err(|error| {
        let hint = error.hint().map(str::to_owned).unwrap_or_default();
        refused(path, &format!("is not accepted: {error}")).with_hint(hint)
    })
}

/// Opens an encrypted PKCS#8 document. Only here is a passphrase requested.
fn decrypt(
    der: &[u8],
    path: &Path,
    passphrase: &PassphraseSource,
) -> Result<SecretDocument, KeyError> {
    let info = EncryptedPrivateKeyInfo::try_from(der)
        .map_err(|_| refused(path, "is encrypted in a way that is not supported"))?;
    check_cost(&info.encryption_algorithm, path)?;
    passphrase.obtain_that_opens(path, |passphrase| decrypt_with(&info, path, passphrase))
}

fn decrypt_with(
    info: &EncryptedPrivateKeyInfo<'_>,
    path: &Path,
    passphrase: &Passphrase,
) -> Result<SecretDocument, KeyError> {
    info.decrypt(passphrase.expose()).map_err(|error| {
        // Every other error is wrong padding or wrong DER after decryption.
        if let pkcs8::Error::EncryptedPrivateKey(
            pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }
            | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { .. },
        ) = error
        {
            refused(path, "is encrypted in a way that is not supported").with_hint(
                "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD.pem -out NEW.pem",
            )
        } else {
            KeyError::new(
                ErrorKind::WrongKey,
                format!("the passphrase does not open the key {}", path.display()),
            )
        }
    })
}

/// Refuses parameters that would exhaust the machine.
fn check_cost(scheme: &EncryptionScheme<'_>, path: &Path) -> Result<(), KeyError> {
    let modest = match scheme.pbes2().map(|parameters| &parameters.kdf) {
        Some(Kdf::Scrypt(scrypt)) => {
            u64::from(scrypt.block_size)
                .checked_mul(128)
                .and_then(|bytes| bytes.checked_mul(scrypt.cost_parameter))
                .is_some_and(|bytes| bytes <= MAX_SCRYPT_BYTES)
                && scrypt.parallelization <= 64
        }
        Some(Kdf::Pbkdf2(pbkdf2)) => pbkdf2.iteration_count <= MAX_PBKDF2_ITERATIONS,
        _ => false,
    };
    if modest {
        return Ok(());
    }
    Err(refused(path, "is encrypted in a way that is not supported"))
}

fn refused(path: &Path, why: &str) -> KeyError {
    KeyError::new(
        ErrorKind::Usage,
        format!("the customer key file {} {why}", path.display()),
    )
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
