//! Logins: the credentials of Microsoft's crates, with our files, transport and time.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::http::{ClientMethodOptions, ClientOptions, RetryOptions};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertion, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    Executor, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use zeroize::Zeroizing;

use super::transport::{Failure, Peer, Transport};
use super::{Target, answers};
use crate::keys::customer::printable;
use crate::keys::customer::remote::files;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{AzureIds, AzureLogin};
use crate::sys::program::{self, Ended, Limits};

/// Where tokens come from, unless the URI says otherwise.
const PUBLIC_AUTHORITY: &str = "login.microsoftonline.com";
const TOKEN_FILE_VARIABLE: &str = "AZURE_FEDERATED_TOKEN_FILE";
/// What the Azure CLI may write.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;
const MAX_ERROR_BYTES: usize = 4096;
/// What the Azure CLI needs to know: where its programs and its logins are.
const CLI_VARIABLES: [&str; 3] = ["PATH", "HOME", "AZURE_CONFIG_DIR"];

/// The credential for one operation that is over at `end`.
pub(super) fn credential(
    target: &Target,
    end: Instant,
    failure: &Failure,
) -> Result<Arc<dyn TokenCredential>, KeyError> {
    let key = &target.key;
    let options = |peer: Peer| {
        let transport = Transport::new(peer, target.roots.clone(), end, failure.clone());
        ClientOptions {
            transport: Some(transport.into_sdk()),
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        }
    };
    let at_authority = || -> Result<ClientOptions, KeyError> {
        let host = key.token_authority.as_deref().unwrap_or(PUBLIC_AUTHORITY);
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = format!("https://{host}");
        // Named here, so that the environment does not name another one.
        Ok(ClientOptions {
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            ..options(Peer::authority(host)?)
        })
    };
    let made: azure_core::Result<Arc<dyn TokenCredential>> = match &key.login {
        AzureLogin::ManagedIdentity {
            client_id,
            metadata,
        } => ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
            user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
            client_options: options(Peer::Metadata(*metadata)),
        }))
        .map(|it| it as _),
        AzureLogin::WorkloadIdentity { ids, token_file } => {
            let (tenant, client) = application(ids)?;
            let path = match token_file {
                Some(path) => path.clone(),
                None => PathBuf::from(variable(TOKEN_FILE_VARIABLE, "federated-token-file")?),
            };
            let options = ClientAssertionCredentialOptions {
                client_options: at_authority()?,
            };
            let token = Assertion(files::read_token(&path)?);
            ClientAssertionCredential::new(tenant, client, token, Some(options)).map(|it| it as _)
        }
        AzureLogin::ClientSecret { ids, secret_file } => {
            let (tenant, client) = application(ids)?;
            let secret = files::read_secret(secret_file)?;
            let options = ClientSecretCredentialOptions {
                client_options: at_authority()?,
            };
            let secret = Secret::new(secret.as_str().to_owned());
            ClientSecretCredential::new(&tenant, client, secret, Some(options)).map(|it| it as _)
        }
        AzureLogin::AzureCli { tenant_id } => {
            let executor = CliExecutor {
                end,
                failure: failure.clone(),
            };
            let mut options = AzureCliCredentialOptions::default();
            options.tenant_id.clone_from(tenant_id);
            options.executor = Some(Arc::new(executor));
            AzureCliCredential::new(Some(options)).map(|it| it as _)
        }
    };
    let credential = made.map_err(|error| answers::refused(&target.shown, &error))?;
    Ok(match &key.resource {
        None => credential,
        Some(resource) => Arc::new(ForOneResource {
            scope: format!("{resource}/.default"),
            credential,
            failure: failure.clone(),
        }),
    })
}

/// The ids of the tenant and of the client, from the URI or else from the environment.
fn application(ids: &AzureIds) -> Result<(String, String), KeyError> {
    let tenant = match &ids.tenant_id {
        Some(id) => id.clone(),
        None => variable("AZURE_TENANT_ID", "tenant-id")?,
    };
    let client = match &ids.client_id {
        Some(id) => id.clone(),
        None => variable("AZURE_CLIENT_ID", "client-id")?,
    };
    Ok((tenant, client))
}

fn variable(name: &str, in_uri: &str) -> Result<String, KeyError> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.ok_or_else(|| {
        KeyError::new(
            ErrorKind::KeyUnavailable,
            format!("the URI of the key has no {in_uri}, and the environment no {name}"),
        )
        .with_hint(format!("name it in the URI of the key: ?{in_uri}=..."))
    })
}

/// The token of a workload.
struct Assertion(Zeroizing<String>);

impl std::fmt::Debug for Assertion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Assertion(secret)")
    }
}

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        Ok(self.0.as_str().to_owned())
    }
}

/// A credential that gives tokens for one resource. The vault says what they should be for, and
/// could name another service.
#[derive(Debug)]
struct ForOneResource {
    scope: String,
    credential: Arc<dyn TokenCredential>,
    failure: Failure,
}

#[async_trait]
impl TokenCredential for ForOneResource {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        if scopes != [self.scope.as_str()] {
            let asked = printable(&scopes.join(" "));
            return Err(self.failure.keep(
                KeyError::new(
                    ErrorKind::KeyUnreachable,
                    format!(
                        "the vault asks for a token for {asked}, and the URI of the key permits \
                         {}",
                        self.scope
                    ),
                )
                .with_hint("correct the resource in the URI of the key, or leave it out"),
            ));
        }
        self.credential.get_token(scopes, options).await
    }
}

/// Runs the Azure CLI, within the time of the operation.
#[derive(Debug)]
struct CliExecutor {
    end: Instant,
    failure: Failure,
}

#[async_trait]
impl Executor for CliExecutor {
    async fn run(&self, program: &OsStr, args: &[&OsStr]) -> std::io::Result<std::process::Output> {
        let limits = Limits {
            time: self.end.saturating_duration_since(Instant::now()),
            output_bytes: MAX_OUTPUT_BYTES,
            error_bytes: MAX_ERROR_BYTES,
        };
        let mut command = std::process::Command::new(Path::new(program));
        command.args(args).env_clear();
        for name in CLI_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let output = program::run_command(command, b"", &limits)?;
        let status = match output.ended {
            Ended::Exited(code) => ExitStatus::from_raw((code & 0xff) << 8),
            Ended::Signalled(signal) => ExitStatus::from_raw(signal),
            Ended::TimedOut | Ended::TooLong => {
                let why = match output.ended {
                    Ended::TimedOut => "it gives no answer in time",
                    _ => "its answer is too long",
                };
                let error = KeyError::new(
                    ErrorKind::KeyUnreachable,
                    format!("the Azure CLI (az) was ended: {why}"),
                );
                return Err(std::io::Error::other(self.failure.keep(error)));
            }
        };
        Ok(std::process::Output {
            status,
            stdout: output.output.to_vec(),
            stderr: output.errors,
        })
    }
}
