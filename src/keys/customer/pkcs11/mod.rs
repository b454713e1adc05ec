//! `pkcs11:` keys: an RSA key on a token that never leaves it.
//!
//! A token is whatever a PKCS#11 module presents: a smart card, a USB key, a network HSM, or
//! software. The token decrypts (`C_Decrypt`); wrapping needs the public half alone and is done by
//! [`WrappingKey`](super::WrappingKey).
//!
//! **Versions.** PKCS#11 knows none. All private keys that match the URI are versions of the key:
//! with `object=` alone there may be several, with `id=` there is one. They are ordered by
//! `CKA_START_DATE`, then by `CKA_ID` as a number, and the highest that can be used is the current
//! one. A version is disabled if its `CKA_DECRYPT` is false, or if only its public half is on the
//! token. `CKA_START_DATE` and `CKA_END_DATE` limit what is wrapped anew, not what is unwrapped: a
//! key that protected data in its time must still process them (NIST SP 800-57 part 1, section
//! 5.3.5). Where a token cannot read the dates of a private key (SoftHSM), those of its public half
//! count.
//!
//! **Hashes.** RSA-OAEP with SHA-256, or with SHA-1 where the token does no other. What tokens say
//! about their mechanisms does not tell the two apart, so a random probe is wrapped and has to
//! decrypt.
//!
//! **PINs.** A token locks after a few wrong PINs. So a PIN is tried once and never in a loop, a
//! PIN that was refused is not tried by the same process again, and with one try left only
//! somebody at a terminal may use it. The login is that of the process: while one provider is
//! logged in, others on the same token need no PIN.
//!
//! **Threads.** A module is foreign code that may hang. Each has a thread of its own, which makes
//! all calls, and callers stop waiting for it after a while. A module is loaded by the process that
//! uses it, never inherited through a fork.

use super::CustomerKeyProvider;
use crate::keys::error::KeyError;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::{KeyUri, TokenUri};

#[cfg(feature = "pkcs11")]
mod failure;
#[cfg(feature = "pkcs11")]
mod key;
#[cfg(feature = "pkcs11")]
mod locate;
#[cfg(feature = "pkcs11")]
mod login;
#[cfg(feature = "pkcs11")]
mod module;
#[cfg(feature = "pkcs11")]
mod oaep;
#[cfg(feature = "pkcs11")]
mod objects;
#[cfg(feature = "pkcs11")]
mod token;

/// Opens a session with the token that `name` describes, which is what `uri` says.
#[cfg(feature = "pkcs11")]
pub(super) fn open(
    uri: &KeyUri,
    name: &TokenUri,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    let key = key::TokenKey::open(uri, name, passphrase)?;
    Ok(Box::new(key))
}

/// The error of a build that has no keys on tokens.
#[cfg(not(feature = "pkcs11"))]
pub(super) fn open(
    uri: &KeyUri,
    _: &TokenUri,
    _: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    Err(KeyError::new(
        crate::keys::error::ErrorKind::Usage,
        format!("{uri}: this bilayer was built without keys on tokens"),
    )
    .with_hint("build it with the feature that has them: cargo build --features pkcs11"))
}

#[cfg(all(test, not(feature = "pkcs11")))]
mod tests {
    use super::*;
    use crate::keys::customer;
    use crate::keys::error::ErrorKind;

    #[test]
    fn a_build_without_keys_on_tokens_names_the_feature() {
        let uri = KeyUri::parse("pkcs11:object=k").expect("it parses all the same");
        let opened = customer::open(&uri, &PassphraseSource::None);
        let error = opened.expect_err("not built in");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("--features pkcs11"))
        );
    }
}
