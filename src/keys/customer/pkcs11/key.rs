//! The provider: a key on a token, by way of a session that stays open.
//!
//! If the session is lost (the token was removed, or the service behind its module restarted), the
//! next call opens another, once. It logs in again if the PIN is in a file; a PIN that somebody
//! typed is not kept.

use std::fmt;

use cryptoki::session::Session;
use zeroize::Zeroizing;

use super::super::{
    CustomerKeyProvider, KeyVersion, WrapAlgorithm, does_not_decrypt, not_this_key,
};
use super::failure::Failure;
use super::locate::locate;
use super::login::open_session;
use super::module::ModuleUser;
use super::oaep::{self, Undecrypted};
use super::objects::{self, PrivateKey};
use super::token;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::{KeyUri, TokenUri};

/// A key on a token.
pub(super) struct TokenKey {
    uri: KeyUri,
    wanted: TokenUri,
    passphrase: PassphraseSource,
    user: ModuleUser,
}

/// What a decryption comes to.
enum Outcome {
    Plain(Zeroizing<Vec<u8>>),
    BadCiphertext,
    NotThisKey,
}

impl TokenKey {
    /// Opens a session with the token, and logs in.
    pub(super) fn open(
        uri: &KeyUri,
        wanted: &TokenUri,
        passphrase: &PassphraseSource,
    ) -> Result<Self, KeyError> {
        let module = locate(uri, &wanted.module)?;
        let user = ModuleUser::new(&module).map_err(|failure| failure.into_error(uri))?;
        open_session(&user, uri, wanted, passphrase).map_err(|failure| failure.into_error(uri))?;
        Ok(Self {
            uri: uri.clone(),
            wanted: wanted.clone(),
            passphrase: passphrase.clone(),
            user,
        })
    }

    /// Runs `work` with the private keys that match the URI; if the session turns out to be lost,
    /// once more with another session.
    fn with_keys<T, W>(&self, work: W) -> Result<T, KeyError>
    where
        T: Send + 'static,
        W: Fn(&Session, &[PrivateKey], &KeyUri) -> Result<T, Failure> + Clone + Send + 'static,
    {
        let result = match self.attempt(work.clone()) {
            Err(failure) if failure.session_is_lost() => {
                let error = failure.into_error(&self.uri);
                tracing::warn!(%error, "the token is asked once more");
                self.reopen()?;
                self.attempt(work)
            }
            result => result,
        };
        result.map_err(|failure| failure.into_error(&self.uri))
    }

    fn attempt<T: Send + 'static>(
        &self,
        work: impl Fn(&Session, &[PrivateKey], &KeyUri) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (uri, wanted) = (self.uri.clone(), self.wanted.clone());
        self.user.call(move |tokens, id| {
            let (session, library, reader) = tokens.session_and_library(id)?;
            let keys = objects::private_keys(session, &wanted)?;
            if keys.is_empty() {
                let slot = session.get_session_info()?.slot_id();
                if !token::is_there(library, reader, slot, &wanted) {
                    return Err(removed(&uri));
                }
                return Err(objects::none_found(session, &uri, &wanted));
            }
            work(session, &keys, &uri)
        })
    }

    fn reopen(&self) -> Result<(), KeyError> {
        let ended = self.user.call(|tokens, id| {
            tokens.end_session(id);
            Ok(())
        });
        let opened = ended
            .and_then(|()| open_session(&self.user, &self.uri, &self.wanted, &self.passphrase));
        let error = match opened {
            Ok(()) => return Ok(()),
            Err(failure) => failure.into_error(&self.uri),
        };
        if error.kind() != ErrorKind::KeyUnavailable {
            return Err(error);
        }
        // The PIN is not at hand, which says nothing about the key.
        Err(KeyError::new(
            ErrorKind::KeyUnreachable,
            format!(
                "{}: the session with the token has ended, and {error}",
                self.uri
            ),
        )
        .with_hint("mount again with the PIN, or name a file with it: ...?pin-source=file:/path"))
    }
}

fn removed(uri: &KeyUri) -> Failure {
    Failure::TokenGone(
        KeyError::new(
            ErrorKind::KeyUnreachable,
            format!("{uri}: the token was removed"),
        )
        .with_hint("insert it again, and see that it is listed: pkcs11-tool -L"),
    )
}

impl CustomerKeyProvider for TokenKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        let current = self.with_keys(|session, keys, uri| {
            let private = objects::current(keys, uri)?;
            let public = private.public(uri)?;
            let algorithm = oaep::algorithm(session, private.handle, public)?;
            Ok(KeyVersion {
                name: private.version_name(),
                key: public.clone().with_algorithm(algorithm),
            })
        })?;
        if current.key.algorithm() == WrapAlgorithm::RsaOaepSha1 {
            tracing::info!(uri = %self.uri, "the token does RSA-OAEP with SHA-1 only");
        }
        Ok(current)
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (key, ciphertext) = (version.key.clone(), ciphertext.to_vec());
        let outcome = self.with_keys(move |session, keys, uri| {
            let Some(private) = keys.iter().find(|private| private.is_half_of(&key)) else {
                return Ok(Outcome::NotThisKey);
            };
            private.check_unwraps(uri)?;
            if ciphertext.len() != key.ciphertext_bytes(0) {
                return Ok(Outcome::BadCiphertext);
            }
            match oaep::decrypt(session, private.handle, &key, &ciphertext) {
                Ok(plain) => Ok(Outcome::Plain(plain)),
                Err(Undecrypted::Ciphertext) => Ok(Outcome::BadCiphertext),
                Err(Undecrypted::Token(failure)) => Err(failure),
            }
        })?;
        match outcome {
            Outcome::Plain(plain) => Ok(plain),
            Outcome::BadCiphertext => Err(does_not_decrypt(&self.uri)),
            Outcome::NotThisKey => Err(not_this_key(&self.uri, version)),
        }
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
