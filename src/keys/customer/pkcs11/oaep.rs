//! RSA-OAEP on a token (PKCS#11 section 6.1.8), and which hash it does.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::keys::customer::{WrapAlgorithm, WrappingKey};
use crate::keys::error::{ErrorKind, KeyError};
use crate::sys::wipe::with_secrets;

const PROBE_BYTES: usize = 32;

/// A decryption that did not succeed.
pub(super) enum Undecrypted {
    /// The ciphertext was not made to this key with this algorithm.
    Ciphertext,
    /// The token failed, or refused.
    Token(Failure),
}

/// Decrypts with a private key of the token.
///
/// Tokens report a ciphertext that is not theirs by different codes, some by those of a broken
/// device. So after a code that may mean either, the key has to open a probe: if it does, the
/// ciphertext was at fault.
pub(super) fn decrypt(
    session: &Session,
    private: ObjectHandle,
    key: &WrappingKey,
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Undecrypted> {
    let error = match decrypt_once(session, private, key.algorithm(), ciphertext) {
        Ok(plain) => return Ok(plain),
        Err(error) => error,
    };
    if !is_ambiguous(&error) {
        return Err(Undecrypted::Token(error.into()));
    }
    match opens_probe(session, private, key) {
        Ok(Ok(true)) => Err(Undecrypted::Ciphertext),
        Ok(Ok(false)) => Err(Undecrypted::Token(error.into())),
        Ok(Err(error)) => Err(Undecrypted::Token(error.into())),
        Err(error) => Err(Undecrypted::Token(error.into())),
    }
}

/// The algorithm that the token does with this key: SHA-256 if it can.
pub(super) fn algorithm(
    session: &Session,
    private: ObjectHandle,
    key: &WrappingKey,
) -> Result<WrapAlgorithm, Failure> {
    let mut refused = Error::NotSupported;
    for algorithm in [WrapAlgorithm::RsaOaepSha256, WrapAlgorithm::RsaOaepSha1] {
        match opens_probe(session, private, &key.clone().with_algorithm(algorithm))? {
            Ok(true) => return Ok(algorithm),
            // It took the request for another algorithm.
            Ok(false) => {}
            Err(error) if is_ambiguous(&error) => refused = error,
            Err(error) => return Err(error.into()),
        }
    }
    match refused {
        Error::NotSupported => Err(KeyError::new(
            ErrorKind::KeyUnavailable,
            "the token does not open what is wrapped to the public half of its key",
        )
        .with_hint("see that both halves of the key on the token belong together")
        .into()),
        error => Err(error.into()),
    }
}

/// True if the token opens something random that was wrapped to the key.
fn opens_probe(
    session: &Session,
    private: ObjectHandle,
    key: &WrappingKey,
) -> Result<Result<bool, Error>, KeyError> {
    let mut probe = [0; PROBE_BYTES];
    getrandom::fill(&mut probe)
        .map_err(|error| KeyError::random(std::io::Error::other(error.to_string())))?;
    let wrapped = key.wrap(&probe)?;
    Ok(decrypt_once(session, private, key.algorithm(), &wrapped).map(|plain| *plain == probe))
}

fn decrypt_once(
    session: &Session,
    private: ObjectHandle,
    algorithm: WrapAlgorithm,
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (hash, mask) = match algorithm {
        WrapAlgorithm::RsaOaepSha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        WrapAlgorithm::RsaOaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        WrapAlgorithm::HpkeX25519 => return Err(Error::NotSupported),
    };
    let parameters = PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty());
    let mechanism = Mechanism::RsaPkcsOaep(parameters);
    with_secrets(|| {
        session
            .decrypt(&mechanism, private, ciphertext)
            .map(Zeroizing::new)
    })
}

/// True for codes with which a token may mean the ciphertext or the parameters, though some mean
/// something else by the standard.
fn is_ambiguous(error: &Error) -> bool {
    match error {
        Error::Pkcs11(code, _) => matches!(
            code,
            RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::ArgumentsBad
                | RvError::MechanismInvalid
                | RvError::MechanismParamInvalid
                | RvError::FunctionNotSupported
                | RvError::FunctionFailed
                | RvError::GeneralError
                | RvError::DeviceError
                | RvError::VendorDefined(_)
                | RvError::UnknownErrorCode(_)
        ),
        _ => false,
    }
}
