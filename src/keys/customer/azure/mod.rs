//! `azure-kv:` keys: RSA keys in Azure Key Vault, or in a Managed HSM, which never leave it.
//!
//! Wraps are made here with the public half; only the vault unwraps (`unwrapKey`, RSA-OAEP-256).
//! The version is looked up before each use, so one that was disabled or has expired is noticed at
//! the next one. The vault itself would unwrap with a version that has expired.
//!
//! Microsoft's crates build the requests, log in and answer challenges; [`transport`] sends. They
//! run on this thread alone, and everything is made for one operation and dropped after it. So all
//! buffers with a token or a plaintext are wiped when they are freed (`with_secrets`).

mod answers;
mod login;
mod session;
mod transport;
mod version;

use std::fmt;

use ureq::tls::RootCerts;
use zeroize::Zeroizing;

use self::session::Session;
use self::version::{Listed, Version};
use super::remote::http;
use super::{CustomerKeyProvider, KeyVersion, WrapAlgorithm, does_not_decrypt, not_this_key};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{AzureKey, KeyUri, parse_azure_version};
use crate::sys::wipe::with_secrets;

/// A key in a vault.
pub(super) struct VaultKey {
    uri: KeyUri,
    target: Target,
}

/// A key, and what is needed to ask for it.
struct Target {
    key: AzureKey,
    /// How errors name it: without the query.
    shown: String,
    roots: RootCerts,
}

impl VaultKey {
    /// The key that `uri` names. The vault is not asked yet.
    pub(super) fn open(uri: &KeyUri, key: &AzureKey) -> Result<Self, KeyError> {
        let shown = uri.to_string();
        let shown = shown.split('?').next().unwrap_or_default().to_owned();
        Ok(Self {
            uri: uri.clone(),
            target: Target {
                key: key.clone(),
                shown,
                roots: http::roots(key.ca_file.as_deref())?,
            },
        })
    }

    /// The newest version that may be used; why the newest may not be, if there is none.
    fn newest(&self, session: &Session<'_>) -> Result<String, KeyError> {
        let versions = self.list(session)?;
        let usable = versions.iter().find(|listed| listed.state.may_be_used());
        match (usable, versions.first()) {
            (Some(listed), _) => Ok(listed.name.clone()),
            (None, Some(newest)) => {
                newest.state.check(&self.target.shown, &newest.name)?;
                Ok(newest.name.clone())
            }
            (None, None) => Err(answers::deleted(&self.target.shown, None)),
        }
    }

    /// All versions, the newest first.
    fn list(&self, session: &Session<'_>) -> Result<Vec<Listed>, KeyError> {
        let mut versions = session.list()?;
        versions.sort_by(|one, other| {
            let age = |listed: &Listed| (listed.created, listed.name.clone());
            age(other).cmp(&age(one))
        });
        Ok(versions)
    }

    /// The version with this public half.
    fn find(&self, session: &Session<'_>, wanted: &KeyVersion) -> Result<Version, KeyError> {
        let is_it = |version: &Version| version.key.is_same_key(&wanted.key);
        // The name comes from the superblock. It only saves requests.
        let named = wanted.name.as_deref().and_then(parse_azure_version);
        if let Some(name) = &named {
            match session.get(name) {
                Ok(version) if is_it(&version) => return Ok(version),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::KeyDeleted => {}
                Err(error) => return Err(error),
            }
        }
        let versions = self.list(session)?;
        if versions.is_empty() {
            return Err(answers::deleted(&self.target.shown, None));
        }
        for listed in versions
            .iter()
            .filter(|it| Some(&it.name) != named.as_ref())
        {
            let version = session.get(&listed.name)?;
            if is_it(&version) {
                return Ok(version);
            }
        }
        Err(not_this_key(&self.uri, wanted))
    }
}

impl CustomerKeyProvider for VaultKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        // The token is a secret.
        with_secrets(|| {
            let session = Session::start(&self.target)?;
            let name = match &self.target.key.version {
                Some(name) => name.clone(),
                None => self.newest(&session)?,
            };
            let version = session.get(&name)?;
            version.state.check(&self.target.shown, &version.name)?;
            version.check_for_new_wraps(&self.target.shown)?;
            Ok(KeyVersion {
                name: Some(version.name),
                key: version.key,
            })
        })
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        with_secrets(|| {
            let session = Session::start(&self.target)?;
            let found = self.find(&session, version)?;
            found.state.check(&self.target.shown, &found.name)?;
            if version.key.algorithm() != WrapAlgorithm::RsaOaepSha256 {
                let shown = &self.target.shown;
                return Err(KeyError::new(
                    ErrorKind::KeyUnavailable,
                    format!("{shown} cannot unwrap {}", version.key.algorithm()),
                ));
            }
            if ciphertext.len() != version.key.ciphertext_bytes(0) {
                return Err(does_not_decrypt(&self.uri));
            }
            session.unwrap(&found.name, ciphertext)
        })
    }
}

impl fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultKey")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
