//! Customer keys: RSA keys that wrap customer DEKs, wherever they are stored.
//!
//! A provider finds the key that a URI names, and decrypts with its private half. Wrapping needs
//! only the public half and is done here ([`WrappingKey`]), the same for all providers. So a key
//! can be moved to another kind of storage without changing stored wraps, and DEKs that are drawn
//! later are wrapped without the provider.
//!
//! A key may have versions. They are told apart by their public halves; their names serve people
//! and the provider's requests.

use std::fmt;

use zeroize::Zeroizing;

use super::error::KeyError;
use super::passphrase::PassphraseSource;
use super::uri::{AzureKey, KeyUri, OpenBaoKey, Scheme};
use crate::sys::wipe::with_secrets;

#[cfg(feature = "azure-kv")]
mod azure;
mod exec;
pub mod file;
mod hpke;
#[cfg(feature = "openbao")]
mod openbao;
mod pem;
mod pkcs11;
pub mod recovery;
#[cfg(any(feature = "azure-kv", feature = "openbao"))]
mod remote;
mod wrapping_key;

pub use wrapping_key::{WrapAlgorithm, WrappingKey};

/// Accepted sizes of RSA keys, in bits.
pub const RSA_BITS: [usize; 3] = [2048, 3072, 4096];

/// One version of a customer key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyVersion {
    /// The provider's name for it; `None` for keys without versions. It may come from an
    /// unauthenticated superblock, so a provider checks its form before it is part of a request.
    pub name: Option<String>,
    /// Its public half.
    pub key: WrappingKey,
}

impl KeyVersion {
    /// Proves that the provider opens what is wrapped to this version.
    ///
    /// # Errors
    /// The key is not available, or does not open it.
    pub fn prove(&self, provider: &dyn CustomerKeyProvider) -> Result<(), KeyError> {
        let mut probe = [0; 32];
        getrandom::fill(&mut probe)
            .map_err(|error| KeyError::random(std::io::Error::other(error.to_string())))?;
        let opened = provider.unwrap(self, &self.key.wrap(&probe)?)?;
        match opened.as_slice() == probe {
            true => Ok(()),
            false => Err(does_not_decrypt(provider.uri())),
        }
    }
}

/// Finds a customer key, and decrypts with it.
pub trait CustomerKeyProvider: Send + Sync + fmt::Debug {
    /// The URI that names the key.
    fn uri(&self) -> &KeyUri;

    /// The version that new wraps are made to: the one that the URI names, otherwise the newest
    /// that is enabled.
    ///
    /// # Errors
    /// Kind `KeyDisabled`, `KeyExpired`, `KeyDeleted`, `KeyForbidden`, `KeyUnreachable` or
    /// `KeyUnavailable` if there is none.
    fn current(&self) -> Result<KeyVersion, KeyError>;

    /// Decrypts what was wrapped to `version`, with the version of this key that has its public
    /// half.
    ///
    /// # Errors
    /// Kind `WrongKey` if no version of this key has that public half, and nothing was decrypted;
    /// `Tampered` if the ciphertext does not decrypt (the reason is not stated, as that would be an
    /// oracle); otherwise as [`Self::current`].
    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError>;

    /// False if only the public half is available, so that [`Self::unwrap`] always fails.
    fn can_unwrap(&self) -> bool {
        true
    }
}

/// Opens the key that the URI names. The passphrase is requested only if it is needed.
///
/// # Errors
/// Kind `KeyUnavailable` if the key or its passphrase is not available, `WrongKey` if the
/// passphrase is wrong, `Usage` if the file contains no RSA key of an accepted size.
pub fn open(
    uri: &KeyUri,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    with_secrets(|| match uri.scheme() {
        Scheme::File(path) => file::open_key(uri, path, passphrase),
        Scheme::Recovery => {
            let key = recovery::RecoveryKey::open(uri, passphrase)?;
            Ok(Box::new(key) as _)
        }
        Scheme::Pkcs11(name) => pkcs11::open(uri, name, passphrase),
        Scheme::OpenBao(key) => open_openbao(uri, key),
        Scheme::Azure(key) => open_azure(uri, key),
        Scheme::Exec(program) => Ok(Box::new(exec::ExecKey::open(uri, program)?) as _),
    })
}

#[cfg(feature = "openbao")]
fn open_openbao(uri: &KeyUri, key: &OpenBaoKey) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    Ok(Box::new(openbao::TransitKey::open(uri, key)?))
}

#[cfg(not(feature = "openbao"))]
fn open_openbao(uri: &KeyUri, _: &OpenBaoKey) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    Err(KeyError::new(
        super::error::ErrorKind::Usage,
        format!("{uri}: this bilayer was built without the feature openbao"),
    )
    .with_hint("build it with: cargo build --features openbao"))
}

#[cfg(feature = "azure-kv")]
fn open_azure(uri: &KeyUri, key: &AzureKey) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    Ok(Box::new(azure::VaultKey::open(uri, key)?))
}

#[cfg(not(feature = "azure-kv"))]
fn open_azure(uri: &KeyUri, _: &AzureKey) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    Err(KeyError::new(
        super::error::ErrorKind::Usage,
        format!("{uri}: this bilayer was built without the feature azure-kv"),
    )
    .with_hint("build it with: cargo build --features azure-kv"))
}

/// The error for a version of which a provider has no private half.
pub(crate) fn not_this_key(uri: &KeyUri, version: &KeyVersion) -> KeyError {
    KeyError::new(
        super::error::ErrorKind::WrongKey,
        format!(
            "{uri} has no version with the public key {}",
            version.key.fingerprint()
        ),
    )
}

/// The error for a ciphertext that does not decrypt.
pub(crate) fn does_not_decrypt(uri: &KeyUri) -> KeyError {
    KeyError::new(
        super::error::ErrorKind::Tampered,
        format!("{uri} does not open what was wrapped to it"),
    )
}

/// Text of another program for an error: the first part of it, without control characters.
fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let shown = text.trim().chars().take(MAX_CHARS);
    shown
        .map(|it| if it.is_control() { ' ' } else { it })
        .collect()
}

#[cfg(all(test, not(feature = "azure-kv")))]
mod tests {
    use super::*;
    use crate::keys::ErrorKind;

    #[test]
    fn a_build_without_the_feature_names_it() {
        let uri = KeyUri::parse("azure-kv:https://v.vault.azure.net/keys/k").expect("a URI");
        let error = open(&uri, &PassphraseSource::None).expect_err("no such provider");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("without the feature azure-kv"));
    }
}
