//! The requests of one operation.

use std::future::Future;
use std::time::{Duration, Instant};

use azure_core::http::ClientOptions;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientGetKeyOptions, KeyOperationParameters,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use futures::TryStreamExt;
use futures::executor::block_on;
use zeroize::Zeroizing;

use super::transport::{Failure, Peer, Transport};
use super::version::{Listed, Version};
use super::{Target, answers, login};
use crate::keys::error::KeyError;

/// For one operation, with its logins and repetitions.
const TOTAL_TIME: Duration = Duration::from_secs(20);
/// Limit on the number of versions.
const MAX_VERSIONS: usize = 1000;

/// A client for one operation.
pub(super) struct Session<'a> {
    target: &'a Target,
    client: KeyClient,
    failure: Failure,
}

impl<'a> Session<'a> {
    /// Starts an operation, and its time.
    pub(super) fn start(target: &'a Target) -> Result<Self, KeyError> {
        let failure = Failure::default();
        let end = Instant::now() + TOTAL_TIME;
        let credential = login::credential(target, end, &failure)?;
        let vault = Peer::vault(&target.key.authority)?;
        let transport = Transport::new(vault, target.roots.clone(), end, failure.clone());
        let options = KeyClientOptions {
            client_options: ClientOptions {
                transport: Some(transport.into_sdk()),
                // The transport waits when it is asked to, and knows the end.
                retry: azure_core::http::RetryOptions::none(),
                ..ClientOptions::default()
            },
            // Otherwise the credential checks it.
            verify_challenge_resource: Some(target.key.resource.is_none()),
            ..KeyClientOptions::default()
        };
        let endpoint = format!("https://{}/", target.key.authority);
        let client = KeyClient::new(&endpoint, credential, Some(options));
        let client = client.map_err(|error| answers::refused(&target.shown, &error))?;
        Ok(Self {
            target,
            client,
            failure,
        })
    }

    /// Looks a version up. The name has the form of one.
    pub(super) fn get(&self, version: &str) -> Result<Version, KeyError> {
        let options = KeyClientGetKeyOptions {
            key_version: Some(version.to_owned()),
            ..KeyClientGetKeyOptions::default()
        };
        let name = &self.target.key.name;
        let answer = self.run(async {
            let answer = self.client.get_key(name, Some(options)).await?;
            answer.into_model()
        })?;
        let found = Version::parse(&self.target.shown, answer)?;
        match found.name == version {
            true => Ok(found),
            false => Err(answers::unexpected("a request for the key")),
        }
    }

    /// Lists the versions, in no order.
    pub(super) fn list(&self) -> Result<Vec<Listed>, KeyError> {
        let name = &self.target.key.name;
        let listed = self.run(async {
            let mut pages = self.client.list_key_properties_versions(name, None)?;
            let mut listed = Vec::new();
            while let Some(properties) = pages.try_next().await? {
                listed.push(properties);
                if listed.len() > MAX_VERSIONS {
                    break;
                }
            }
            Ok(listed)
        })?;
        if listed.len() > MAX_VERSIONS {
            return Err(answers::unexpected("a request for the versions of the key"));
        }
        listed.iter().map(Listed::parse).collect()
    }

    /// Decrypts with a version.
    pub(super) fn unwrap(
        &self,
        version: &str,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let parameters = KeyOperationParameters {
            algorithm: Some(EncryptionAlgorithm::RsaOaep256),
            value: Some(ciphertext.to_vec()),
            ..KeyOperationParameters::default()
        };
        let name = &self.target.key.name;
        let answer = block_on(async {
            let parameters = parameters.try_into()?;
            let answer = self.client.unwrap_key(name, version, parameters, None);
            answer.await?.into_model()
        });
        let answer = answer.map_err(|error| {
            self.failure
                .take()
                .unwrap_or_else(|| answers::not_unwrapped(&self.target.shown, &error))
        })?;
        let plain = answer.result.map(Zeroizing::new);
        plain.ok_or_else(|| answers::unexpected("a request to unwrap"))
    }

    fn run<T>(&self, work: impl Future<Output = azure_core::Result<T>>) -> Result<T, KeyError> {
        block_on(work).map_err(|error| {
            self.failure
                .take()
                .unwrap_or_else(|| answers::refused(&self.target.shown, &error))
        })
    }
}
