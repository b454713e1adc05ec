//! `azure-kv:` URIs: a key in Azure Key Vault, and how to log in.
//!
//! ```text
//! azure-kv:https://VAULT[:PORT]/keys/NAME[/VERSION][?NAME=VALUE&...]
//! ```
//!
//! VERSION has 32 hexadecimal digits. The query names files; there are no secrets in it:
//!
//! | name | value |
//! |---|---|
//! | `login` | `managed-identity` (the usual), `workload-identity`, `client-secret`, `azure-cli` |
//! | `tenant-id`, `client-id` | who logs in; without them `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` |
//! | `client-secret-file` | a file with the secret of an application |
//! | `federated-token-file` | in place of `AZURE_FEDERATED_TOKEN_FILE` |
//! | `authority` | `HOST[:PORT]` of the token endpoint, in place of `login.microsoftonline.com` |
//! | `resource` | what tokens are for, in place of the domain of the vault: `https://HOST` |
//! | `metadata-address` | a proxy of the metadata service on the loopback interface: `IP:PORT` |
//! | `ca-file` | the certificates to trust, as PEM, in place of the system's |

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::query::{self, Query};
use super::{KeyError, authority, file, usage};

/// A key in Azure Key Vault.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct AzureKey {
    /// `HOST` or `HOST:PORT`.
    pub(crate) authority: String,
    /// Letters, digits and `-`.
    pub(crate) name: String,
    /// The version that new wraps are made to, in place of the newest: 32 hexadecimal digits.
    pub(crate) version: Option<String>,
    /// How to log in.
    pub(crate) login: AzureLogin,
    /// `HOST` or `HOST:PORT` of the token endpoint.
    pub(crate) token_authority: Option<String>,
    /// What tokens are for: `https://HOST`.
    pub(crate) resource: Option<String>,
    /// The certificates to trust; absolute.
    pub(crate) ca_file: Option<PathBuf>,
}

/// How to log in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum AzureLogin {
    /// As the machine.
    ManagedIdentity {
        /// The identity, if the machine has several.
        client_id: Option<String>,
        /// The metadata service, on the loopback interface, in place of `169.254.169.254`.
        metadata: Option<SocketAddr>,
    },
    /// As an application, with a token of Kubernetes.
    WorkloadIdentity {
        /// Who logs in.
        ids: AzureIds,
        /// The file with the token; absolute.
        token_file: Option<PathBuf>,
    },
    /// As an application, with the secret in a file.
    ClientSecret {
        /// Who logs in.
        ids: AzureIds,
        /// The file with the secret; absolute.
        secret_file: PathBuf,
    },
    /// As the user that `az login` has logged in.
    AzureCli {
        /// A tenant that is not the usual one of that user.
        tenant_id: Option<String>,
    },
}

/// An application. What is missing is in the environment.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct AzureIds {
    /// The directory that it is registered in.
    pub(crate) tenant_id: Option<String>,
    /// Its id there.
    pub(crate) client_id: Option<String>,
}

const NAMES: &[&str] = &[
    "login",
    "tenant-id",
    "client-id",
    "client-secret-file",
    "federated-token-file",
    "authority",
    "resource",
    "metadata-address",
    "ca-file",
];
const FORM: &str = "an Azure Key Vault URI has the form azure-kv:https://VAULT/keys/NAME[/VERSION]";
const LOGINS: &str =
    "the login in the URI is managed-identity, workload-identity, client-secret or azure-cli";
/// Length limit of the name of a key, as in the vault.
const MAX_NAME_BYTES: usize = 127;
/// Length of the name of a version.
const VERSION_DIGITS: usize = 32;

/// Parses what follows `azure-kv:`. Relative paths of files are resolved against `directory`.
pub(super) fn parse(rest: &str, directory: Option<&Path>) -> Result<AzureKey, KeyError> {
    let (address, mut query) = Query::split(rest, NAMES)?;
    let Some((host, path)) = after_https(address).and_then(|rest| rest.split_once('/')) else {
        return Err(usage(format!("{FORM}; there is no access without TLS")));
    };
    let names: Vec<&str> = path.split('/').collect();
    let (name, version) = match names.as_slice() {
        ["keys", name] => (*name, None),
        ["keys", name, version] => (*name, Some(*version)),
        _ => return Err(usage(FORM)),
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(usage(FORM));
    }
    let version = version.map(|text| {
        parse_version(text).ok_or_else(|| {
            usage("the version in the URI is not the 32 hexadecimal digits of a version")
        })
    });
    let path_of = |value: String| file::absolute(Path::new(&value), directory);
    let resource = query.take("resource").map(|text| {
        let host = after_https(&text).map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let host = host.ok_or_else(|| usage("the resource in the URI is no https://HOST"))?;
        Ok(format!("https://{}", authority::parse(host)?))
    });
    let token_authority = query.take("authority");
    Ok(AzureKey {
        authority: authority::parse(host)?,
        name: name.to_owned(),
        version: version.transpose()?,
        login: parse_login(&mut query, &path_of)?,
        token_authority: token_authority
            .map(|text| authority::parse(&text))
            .transpose()?,
        resource: resource.transpose()?,
        ca_file: query.take("ca-file").map(path_of).transpose()?,
    })
}

/// What follows `https://`.
fn after_https(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_at_checked(8)?;
    scheme.eq_ignore_ascii_case("https://").then_some(rest)
}

/// The name of a version, if that is what it is. A request may contain it.
pub(crate) fn parse_version(text: &str) -> Option<String> {
    let is_good = text.len() == VERSION_DIGITS && text.bytes().all(|it| it.is_ascii_hexdigit());
    is_good.then(|| text.to_ascii_lowercase())
}

fn parse_login(
    query: &mut Query,
    path_of: &impl Fn(String) -> Result<PathBuf, KeyError>,
) -> Result<AzureLogin, KeyError> {
    let login = query.take("login");
    let ids = AzureIds {
        tenant_id: take_id(query, "tenant-id")?,
        client_id: take_id(query, "client-id")?,
    };
    let secret_file = query.take("client-secret-file").map(path_of).transpose()?;
    let token_file = query
        .take("federated-token-file")
        .map(path_of)
        .transpose()?;
    let metadata = query.take("metadata-address").map(|text| {
        let address = text.parse().ok();
        let address = address.filter(|address: &SocketAddr| address.ip().is_loopback());
        address.ok_or_else(|| {
            usage("the metadata-address in the URI is no IP:PORT of the loopback interface")
        })
    });
    let metadata = metadata.transpose()?;
    // What a file is for says how to log in.
    let implied = match (&secret_file, &token_file) {
        (Some(_), None) => "client-secret",
        (None, Some(_)) => "workload-identity",
        _ => "managed-identity",
    };
    match (
        login.as_deref().unwrap_or(implied),
        ids,
        secret_file,
        token_file,
        metadata,
    ) {
        (
            "managed-identity",
            AzureIds {
                tenant_id: None,
                client_id,
            },
            None,
            None,
            metadata,
        ) => Ok(AzureLogin::ManagedIdentity {
            client_id,
            metadata,
        }),
        ("workload-identity", ids, None, token_file, None) => {
            Ok(AzureLogin::WorkloadIdentity { ids, token_file })
        }
        ("client-secret", ids, Some(secret_file), None, None) => {
            Ok(AzureLogin::ClientSecret { ids, secret_file })
        }
        (
            "azure-cli",
            AzureIds {
                tenant_id,
                client_id: None,
            },
            None,
            None,
            None,
        ) => Ok(AzureLogin::AzureCli { tenant_id }),
        ("managed-identity", ..) => Err(usage(
            "a managed identity may have a client-id and a metadata-address in the URI, and no \
             tenant-id or file",
        )),
        ("workload-identity", ..) => Err(usage(
            "a workload identity may have a tenant-id, a client-id and a federated-token-file in \
             the URI",
        )),
        ("client-secret", ..) => Err(usage(
            "a client secret needs a client-secret-file, and may have a tenant-id and a \
             client-id, in the URI",
        )),
        ("azure-cli", ..) => Err(usage("the Azure CLI may have a tenant-id in the URI")),
        _ => Err(usage(LOGINS)),
    }
}

/// An id, or the domain that stands for a tenant.
fn take_id(query: &mut Query, name: &str) -> Result<Option<String>, KeyError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    match query.take(name) {
        Some(id) if !id.bytes().all(allowed) || id.starts_with('-') => {
            Err(usage(format!("the {name} in the URI is no id")))
        }
        id => Ok(id),
    }
}

/// Writes the URI.
pub(super) fn write(uri: &AzureKey, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "azure-kv:https://{}/keys/{}", uri.authority, uri.name)?;
    if let Some(version) = &uri.version {
        write!(f, "/{version}")?;
    }
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let (mut login, mut tenant, mut client) = (None, None, None);
    let (mut secret, mut token, mut metadata) = (None, None, None);
    match &uri.login {
        AzureLogin::ManagedIdentity {
            client_id,
            metadata: address,
        } => {
            client = client_id.as_deref();
            metadata = address.map(|address| address.to_string());
        }
        AzureLogin::WorkloadIdentity { ids, token_file } => {
            login = token_file.is_none().then_some("workload-identity");
            (tenant, client) = (ids.tenant_id.as_deref(), ids.client_id.as_deref());
            token = token_file.as_ref().map(text);
        }
        AzureLogin::ClientSecret { ids, secret_file } => {
            (tenant, client) = (ids.tenant_id.as_deref(), ids.client_id.as_deref());
            secret = Some(text(secret_file));
        }
        AzureLogin::AzureCli { tenant_id } => {
            login = Some("azure-cli");
            tenant = tenant_id.as_deref();
        }
    }
    let ca_file = uri.ca_file.as_ref().map(text);
    let values = [
        login,
        tenant,
        client,
        secret.as_deref(),
        token.as_deref(),
        uri.token_authority.as_deref(),
        uri.resource.as_deref(),
        metadata.as_deref(),
        ca_file.as_deref(),
    ];
    let pairs: Vec<_> = NAMES.iter().copied().zip(values).collect();
    query::write(&pairs, f)
}

#[cfg(test)]
mod tests {
    use super::super::{KeyUri, Scheme};
    use super::*;
    use crate::keys::ErrorKind;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn parsed(text: &str) -> AzureKey {
        let uri = KeyUri::parse(text).expect(text);
        match uri.scheme() {
            Scheme::Azure(key) => AzureKey::clone(key),
            other => panic!("another scheme: {other:?}"),
        }
    }

    #[test]
    fn vault_name_and_version() {
        for version in [None, Some(VERSION)] {
            let path = version.map_or(String::new(), |version| format!("/{version}"));
            let text = format!("azure-kv:https://v.vault.azure.net/keys/data-1{path}");
            let uri = parsed(&text);
            assert_eq!(uri.authority, "v.vault.azure.net");
            assert_eq!((&*uri.name, uri.version.as_deref()), ("data-1", version));
            assert_eq!(
                uri.login,
                AzureLogin::ManagedIdentity {
                    client_id: None,
                    metadata: None
                }
            );
            assert_eq!(KeyUri::parse(&text).expect("uri").to_string(), text);
        }
    }

    #[test]
    fn spellings_of_one_key_are_equal() {
        let one = parsed(&format!("azure-kv:https://v.example/keys/k/{VERSION}"));
        let other = format!(
            "AZURE-KV:HTTPS://V.example:443/keys/k/{}?login=managed-identity",
            VERSION.to_uppercase()
        );
        assert_eq!(parsed(&other), one);
        let implied = "azure-kv:https://v/keys/k?tenant-id=t&client-id=c&client-secret-file=/s";
        assert_eq!(
            parsed(implied),
            parsed(&format!("{implied}&login=client-secret"))
        );
    }

    #[test]
    fn a_printed_uri_parses_to_the_same_uri() {
        for query in [
            "client-id=11111111-2222-3333-4444-555555555555&metadata-address=127.0.0.1:80",
            "metadata-address=[::1]:8080",
            "login=workload-identity",
            "federated-token-file=/var/run/token,1&tenant-id=t&client-id=c",
            "client-secret-file=/s%20s&authority=login.microsoftonline.us",
            "login=azure-cli&tenant-id=contoso.example",
            "resource=https://vault.azure.cn&ca-file=/etc/ca.pem&authority=127.0.0.1:8443",
        ] {
            let text = format!("azure-kv:https://v.example/keys/k?{query}");
            let uri = KeyUri::parse(&text).expect(query);
            assert_eq!(KeyUri::parse(&uri.to_string()).expect("again"), uri);
            assert!(!uri.to_string().contains([',', ' ']), "{uri}");
        }
        let relative = "azure-kv:https://v/keys/k?client-secret-file=secret";
        let uri = KeyUri::parse_at(relative, Path::new("/etc/keys")).expect("relative");
        assert_eq!(
            uri.to_string(),
            "azure-kv:https://v/keys/k?client-secret-file=/etc/keys/secret"
        );
        assert!(KeyUri::parse(relative).is_err());
    }

    #[test]
    fn other_forms_are_refused_and_not_shown() {
        for rest in [
            "",
            "https:",
            "https://",
            "https://v",
            "https://v/",
            "https://v/keys",
            "https://v/keys/",
            "https://v/secrets/k",
            "https://v/keys/..",
            "https://v/keys/hunter2%2fk",
            "https://v/keys/k_1",
            "https://v/keys/k/",
            "https://v/keys/k/hunter2",
            "https://v/keys/k/0123456789abcdef0123456789abcdeg",
            "https://v/keys/k/0123456789abcdef0123456789abcdef/x",
            "http://v/keys/k",
            "v/keys/k",
            "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}/keys/k",
            "https://user:hunter2@v/keys/k",
            "https://v:0/keys/k",
            "https://v/keys/k?client-secret=hunter2",
            "https://v/keys/k?login=hunter2",
            "https://v/keys/k?login=client-secret",
            "https://v/keys/k?login=azure-cli&client-id=c",
            "https://v/keys/k?login=managed-identity&client-secret-file=/s",
            "https://v/keys/k?tenant-id=t",
            "https://v/keys/k?client-secret-file=/s&federated-token-file=/t",
            "https://v/keys/k?client-secret-file=/s&metadata-address=127.0.0.1:80",
            "https://v/keys/k?client-id=hunter2%20x",
            "https://v/keys/k?login=azure-cli&tenant-id=-hunter2",
            "https://v/keys/k?metadata-address=10.0.0.1:80",
            "https://v/keys/k?metadata-address=localhost:80",
            "https://v/keys/k?resource=http://vault.azure.net",
            "https://v/keys/k?resource=https://vault.azure.net/hunter2",
            "https://v/keys/k?authority=https://login.example",
            "https://v/keys/k?ca-file=/c&ca-file=/d",
            "https://v/keys/k#hunter2",
        ] {
            let error = KeyUri::parse(&format!("azure-kv:{rest}")).expect_err(rest);
            assert_eq!(error.kind(), ErrorKind::Usage, "{rest}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
