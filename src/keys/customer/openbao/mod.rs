//! `openbao:` keys: RSA keys of the transit engine of OpenBao (or Vault), which never leave it.
//!
//! Wraps are made here with the public half, in the form that the engine itself makes: an
//! RSA-OAEP-256 ciphertext, sent as `vault:vN:` and base64. Only the server unwraps. The key is
//! looked up before each use, so a version that was disabled (`min_decryption_version`) or a key
//! that was deleted is noticed at the next one.

mod answers;
mod client;
mod login;
mod socket;
mod token;

use std::fmt;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::answers::KeyInfo;
use self::client::{Server, Session};
use self::login::Credentials;
use super::{
    CustomerKeyProvider, KeyVersion, WrapAlgorithm, WrappingKey, does_not_decrypt, not_this_key,
};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{KeyUri, OpenBaoKey};
use crate::sys::wipe::with_secrets;

/// A key of a transit engine.
pub(super) struct TransitKey {
    uri: KeyUri,
    /// How errors name it: without the query.
    shown: String,
    key: OpenBaoKey,
    server: Server,
    credentials: Credentials,
}

#[derive(Serialize)]
struct DecryptRequest {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    data: Plaintext,
}

#[derive(Deserialize)]
struct Plaintext {
    plaintext: String,
}

impl TransitKey {
    /// The key that `uri` names. The server is not asked yet.
    pub(super) fn open(uri: &KeyUri, key: &OpenBaoKey) -> Result<Self, KeyError> {
        let shown = uri.to_string();
        let shown = shown.split('?').next().unwrap_or_default().to_owned();
        Ok(Self {
            uri: uri.clone(),
            shown,
            key: key.clone(),
            server: Server::new(key)?,
            credentials: Credentials::new(key)?,
        })
    }

    /// Looks the key up.
    fn look_up(&self, session: &Session<'_>) -> Result<KeyInfo, KeyError> {
        let path = format!("{}/keys/{}", self.key.mount, self.key.key);
        let answer = self
            .credentials
            .with_token(session, |token| session.get(&path, token))?;
        if answer.status != 200 {
            return Err(answers::refused(&self.shown, &answer));
        }
        let info = KeyInfo::parse(&answer.body)?;
        if info.soft_deleted {
            // Its public half can still be read.
            return Err(self
                .error(ErrorKind::KeyDeleted, "is deleted (soft-deleted)")
                .with_hint("restore it: bao write -f MOUNT/keys/KEY/soft-delete-restore"));
        }
        if !info.kind.starts_with("rsa-") {
            let why = format!(
                "is of type {}, and not an RSA key",
                super::printable(&info.kind)
            );
            return Err(self
                .error(ErrorKind::Usage, why)
                .with_hint("make one: bao write -f MOUNT/keys/KEY type=rsa-3072"));
        }
        Ok(info)
    }

    fn error(&self, kind: ErrorKind, why: impl fmt::Display) -> KeyError {
        KeyError::new(kind, format!("{} {why}", self.shown))
    }

    /// Why a version cannot be used, if it cannot.
    fn check(&self, info: &KeyInfo, version: u32, smallest: u32) -> Result<(), KeyError> {
        if version < info.min_available_version || version > info.latest_version || version == 0 {
            let why = format!("has no version {version}: it was deleted, or never was");
            return Err(self.error(ErrorKind::KeyDeleted, why));
        }
        if version < smallest {
            let why =
                format!("has disabled version {version}: versions from {smallest} are allowed");
            return Err(self.error(ErrorKind::KeyDisabled, why).with_hint(
                "allow it: bao write MOUNT/keys/KEY/config min_decryption_version=N (for new \
                 wraps also min_encryption_version)",
            ));
        }
        Ok(())
    }

    /// The version with this public half.
    fn find(&self, info: &KeyInfo, wanted: &KeyVersion) -> Result<u32, KeyError> {
        for number in info.versions() {
            let key = info.public_half(number)?;
            if key.is_some_and(|key: WrappingKey| key.is_same_key(&wanted.key)) {
                self.check(info, number, info.min_decryption_version)?;
                return Ok(number);
            }
        }
        // Public halves of disabled versions are not listed. The name comes from the superblock, so
        // it decides the kind of error alone.
        let named = wanted.name.as_deref().and_then(parse_version);
        if let Some(number) = named
            && number < info.min_decryption_version.max(info.min_available_version)
        {
            self.check(info, number, info.min_decryption_version)?;
        }
        Err(not_this_key(&self.uri, wanted))
    }

    fn decrypt(
        &self,
        session: &Session<'_>,
        number: u32,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let path = format!("{}/decrypt/{}", self.key.mount, self.key.key);
        let request = DecryptRequest {
            ciphertext: format!("vault:v{number}:{}", Base64::encode_string(ciphertext)),
        };
        let unexpected = || answers::unexpected("a request to decrypt");
        let body = serde_json::to_vec(&request).map_err(|_| unexpected())?;
        let answer = self
            .credentials
            .with_token(session, |token| session.post(&path, token, body.clone()))?;
        if answer.status != 200 {
            return Err(answers::refused(&self.shown, &answer));
        }
        let answer: Decrypted = serde_json::from_slice(&answer.body).map_err(|_| unexpected())?;
        let plain = Zeroizing::new(answer.data.plaintext);
        let plain = Base64::decode_vec(&plain).map_err(|_| unexpected())?;
        Ok(Zeroizing::new(plain))
    }
}

fn parse_version(name: &str) -> Option<u32> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| is_plain)
}

impl CustomerKeyProvider for TransitKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        // The token is a secret.
        with_secrets(|| {
            let info = self.look_up(&self.server.session())?;
            let number = self.key.version.unwrap_or(info.latest_version);
            let smallest = info.min_decryption_version.max(info.min_encryption_version);
            self.check(&info, number, smallest)?;
            let key = info.public_half(number)?;
            let key = key.ok_or_else(|| answers::unexpected("a request for the key"))?;
            Ok(KeyVersion {
                name: Some(number.to_string()),
                key,
            })
        })
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        with_secrets(|| {
            let session = self.server.session();
            let info = self.look_up(&session)?;
            let number = self.find(&info, version)?;
            if version.key.algorithm() != WrapAlgorithm::RsaOaepSha256 {
                let why = format!("cannot unwrap {}", version.key.algorithm());
                return Err(self.error(ErrorKind::KeyUnavailable, why));
            }
            if ciphertext.len() != version.key.ciphertext_bytes(0) {
                return Err(does_not_decrypt(&self.uri));
            }
            self.decrypt(&session, number, ciphertext)
        })
    }
}

impl fmt::Debug for TransitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransitKey")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
