//! `openbao:` and `vault:` URIs: a key of a transit engine, and how to log in.
//!
//! ```text
//! openbao:https://HOST[:PORT]/MOUNT/KEY[/VERSION][?NAME=VALUE&...]
//! ```
//!
//! A last name of digits alone, after at least two others, is the version. MOUNT may have several
//! names. The query names files; there are no secrets in it:
//!
//! | name | value |
//! |---|---|
//! | `token-file` | a file with a token; without any other way to log in it is `~/.vault-token` |
//! | `role-id-file`, `secret-id-file` | files for a login by AppRole |
//! | `approle-mount` | where AppRole is mounted, in place of `approle` |
//! | `agent` | `unix:/path`: the socket of an agent, which knows how to log in |
//! | `ca-file` | the certificates to trust, as PEM, in place of the system's |
//! | `namespace` | the namespace of the key |

use std::fmt;
use std::path::{Path, PathBuf};

use super::query::{self, Query};
use super::{KeyError, authority, file, usage};

/// A key of a transit engine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct OpenBaoKey {
    /// `HOST` or `HOST:PORT`, of ASCII letters, digits, `.`, `-`, and `[` `:` `]` of an IPv6
    /// address.
    pub(crate) authority: String,
    /// Names separated by `/`, of letters, digits, `.`, `-` and `_`.
    pub(crate) mount: String,
    /// A name of the same characters.
    pub(crate) key: String,
    /// The version that new wraps are made to, in place of the newest.
    pub(crate) version: Option<u32>,
    /// How to log in.
    pub(crate) login: Login,
    /// The socket of an agent; absolute.
    pub(crate) agent: Option<PathBuf>,
    /// The certificates to trust; absolute.
    pub(crate) ca_file: Option<PathBuf>,
    /// Names separated by `/`, as in `mount`.
    pub(crate) namespace: Option<String>,
}

/// How to log in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Login {
    /// As the agent does, or with the token that `bao login` leaves in the home directory.
    Default,
    /// With the token in a file; absolute.
    TokenFile(PathBuf),
    /// With a role and its secret in files; absolute.
    AppRole {
        /// The file with the role's id.
        role_id_file: PathBuf,
        /// The file with the secret id.
        secret_id_file: PathBuf,
        /// Where the method is mounted, if not at `approle`.
        mount: Option<String>,
    },
}

const NAMES: &[&str] = &[
    "token-file",
    "role-id-file",
    "secret-id-file",
    "approle-mount",
    "agent",
    "ca-file",
    "namespace",
];
const FORM: &str = "an OpenBao URI has the form openbao:https://HOST[:PORT]/MOUNT/KEY[/VERSION]";
const MAX_NAME_BYTES: usize = 255;

/// Parses what follows `openbao:`. Relative paths of files are resolved against `directory`.
pub(super) fn parse(rest: &str, directory: Option<&Path>) -> Result<OpenBaoKey, KeyError> {
    let (address, mut query) = Query::split(rest, NAMES)?;
    let scheme = address.get(..8).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("https://") {
        return Err(usage(format!("{FORM}; there is no access without TLS")));
    }
    let (authority, path) = address[8..].split_once('/').ok_or_else(|| usage(FORM))?;
    let mut names: Vec<&str> = path.split('/').collect();
    let version = match names.as_slice() {
        [_, _, .., last] if !last.is_empty() && last.bytes().all(|it| it.is_ascii_digit()) => {
            let version = last.parse().ok().filter(|number| *number > 0);
            names.pop();
            Some(version.ok_or_else(|| usage("the version in the URI is no number from 1"))?)
        }
        _ => None,
    };
    let key = names.pop().filter(|key| !names.is_empty() && is_path(key));
    let key = key.ok_or_else(|| usage(FORM))?.to_owned();
    let mount = names.join("/");
    if !is_path(&mount) {
        return Err(usage(FORM));
    }
    let path_of = |value: String| -> Result<PathBuf, KeyError> {
        file::absolute(Path::new(&value), directory)
    };
    let name_of = |name: &str, value: Option<String>| match value {
        Some(value) if !is_path(&value) => Err(usage(format!("the {name} in the URI is no name"))),
        value => Ok(value),
    };
    let agent = query.take("agent").map(|agent| {
        let path = agent
            .strip_prefix("unix:")
            .ok_or_else(|| usage("the agent in the URI is no unix:/path/to/socket"))?;
        path_of(path.to_owned())
    });
    let uri = OpenBaoKey {
        authority: authority::parse(authority)?,
        mount,
        key,
        version,
        login: parse_login(&mut query, &path_of, &name_of)?,
        agent: agent.transpose()?,
        ca_file: query.take("ca-file").map(path_of).transpose()?,
        namespace: name_of("namespace", query.take("namespace"))?,
    };
    if uri.agent.is_some() && uri.ca_file.is_some() {
        return Err(usage(
            "with an agent the URI has no ca-file: the agent speaks TLS",
        ));
    }
    Ok(uri)
}

fn parse_login(
    query: &mut Query,
    path_of: &impl Fn(String) -> Result<PathBuf, KeyError>,
    name_of: &impl Fn(&str, Option<String>) -> Result<Option<String>, KeyError>,
) -> Result<Login, KeyError> {
    let token = query.take("token-file");
    let role = query.take("role-id-file");
    let secret = query.take("secret-id-file");
    let mount = name_of("approle-mount", query.take("approle-mount"))?;
    match (token, role, secret, mount) {
        (None, None, None, None) => Ok(Login::Default),
        (Some(token), None, None, None) => Ok(Login::TokenFile(path_of(token)?)),
        (None, Some(role), Some(secret), mount) => Ok(Login::AppRole {
            role_id_file: path_of(role)?,
            secret_id_file: path_of(secret)?,
            mount,
        }),
        _ => Err(usage(
            "the URI has either a token-file, or a role-id-file and a secret-id-file",
        )),
    }
}

/// True for names that need no encoding in a URL, separated by `/`.
fn is_path(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= MAX_NAME_BYTES
        && text.split('/').all(|name| {
            !name.is_empty() && !matches!(name, "." | "..") && name.bytes().all(allowed)
        })
}

/// Writes the URI.
pub(super) fn write(uri: &OpenBaoKey, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "openbao:https://{}/{}/{}",
        uri.authority, uri.mount, uri.key
    )?;
    if let Some(version) = uri.version {
        write!(f, "/{version}")?;
    }
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let (mut token, mut role, mut secret, mut approle) = (None, None, None, None);
    match &uri.login {
        Login::Default => {}
        Login::TokenFile(path) => token = Some(text(path)),
        Login::AppRole {
            role_id_file,
            secret_id_file,
            mount,
        } => {
            role = Some(text(role_id_file));
            secret = Some(text(secret_id_file));
            approle.clone_from(mount);
        }
    }
    let agent = uri.agent.as_ref();
    let agent = agent.map(|path| format!("unix:{}", path.display()));
    let ca_file = uri.ca_file.as_ref().map(text);
    let values = [
        token.as_deref(),
        role.as_deref(),
        secret.as_deref(),
        approle.as_deref(),
        agent.as_deref(),
        ca_file.as_deref(),
        uri.namespace.as_deref(),
    ];
    let pairs: Vec<_> = NAMES.iter().copied().zip(values).collect();
    query::write(&pairs, f)
}

#[cfg(test)]
mod tests {
    use super::super::{KeyUri, Scheme};
    use super::*;
    use crate::keys::ErrorKind;

    fn parsed(text: &str) -> OpenBaoKey {
        let uri = KeyUri::parse(text).expect(text);
        match uri.scheme() {
            Scheme::OpenBao(key) => OpenBaoKey::clone(key),
            other => panic!("another scheme: {other:?}"),
        }
    }

    #[test]
    fn mount_key_and_version_are_told_apart() {
        for (path, mount, key, version) in [
            ("transit/k", "transit", "k", None),
            ("transit/k/3", "transit", "k", Some(3)),
            ("a/b/transit/k", "a/b/transit", "k", None),
            ("a/b/k/12", "a/b", "k", Some(12)),
            ("transit/7", "transit", "7", None),
            ("transit/7/7", "transit", "7", Some(7)),
            ("transit/v3", "transit", "v3", None),
        ] {
            let text = format!("openbao:https://bao.example:8200/{path}");
            let uri = parsed(&text);
            assert_eq!(uri.authority, "bao.example:8200");
            assert_eq!(
                (&*uri.mount, &*uri.key, uri.version),
                (mount, key, version),
                "{path}"
            );
            assert_eq!(KeyUri::parse(&text).expect("uri").to_string(), text);
        }
    }

    #[test]
    fn spellings_of_one_key_are_equal() {
        let one = parsed("openbao:https://bao.example/transit/k?ca-file=/etc/ca.pem&namespace=a/b");
        for other in [
            "vault:https://bao.example/transit/k?ca-file=/etc/ca.pem&namespace=a/b",
            "VAULT:HTTPS://BAO.example:443/transit/k?namespace=a%2fb&ca-file=//etc/./ca.pem",
        ] {
            assert_eq!(parsed(other), one, "{other}");
        }
        let address = parsed("openbao:https://[::1]:8200/transit/k");
        assert_eq!(address.authority, "[::1]:8200");
    }

    #[test]
    fn a_printed_uri_parses_to_the_same_uri() {
        for query in [
            "token-file=/run/secrets/a%20token%2c1",
            "role-id-file=/r&secret-id-file=/s&approle-mount=auth/role&namespace=team",
            "agent=unix:/run/bao/agent.sock&token-file=/t",
        ] {
            let text = format!("openbao:https://bao.example/transit/k/2?{query}");
            let uri = KeyUri::parse(&text).expect(query);
            assert_eq!(KeyUri::parse(&uri.to_string()).expect("again"), uri);
            assert!(!uri.to_string().contains([',', ' ']), "{uri}");
        }
        let directory = Path::new("/etc/keys");
        let relative = "openbao:https://b/t/k?token-file=token";
        let uri = KeyUri::parse_at(relative, directory).expect("relative");
        assert_eq!(
            uri.to_string(),
            "openbao:https://b/t/k?token-file=/etc/keys/token"
        );
        assert!(KeyUri::parse(relative).is_err());
    }

    #[test]
    fn other_forms_are_refused_and_not_shown() {
        for rest in [
            "",
            "https:",
            "https://",
            "https://b",
            "https://b/",
            "https://b/k",
            "https://b/transit/",
            "https://b//k",
            "https://b/transit/../k",
            "https://b/transit/hunter2%2fk",
            "https://b/transit/k k",
            "https://b/transit/k/0",
            "https://b/transit/k/99999999999",
            "http://b/transit/k",
            "http://127.0.0.1:8200/transit/k",
            "b/transit/k",
            "https://user:hunter2@b/transit/k",
            "https://b:/transit/k",
            "https://b:0/transit/k",
            "https://b:65536/transit/k",
            "https://b:80:80/transit/k",
            "https://[::g]/transit/k",
            "https://[::1/transit/k",
            "https://[::1]8/transit/k",
            "https:///transit/k",
            "https://b/transit/k?token=hunter2",
            "https://b/transit/k?token-file=",
            "https://b/transit/k?token-file=/t&role-id-file=/r&secret-id-file=/s",
            "https://b/transit/k?role-id-file=/r",
            "https://b/transit/k?secret-id-file=/s",
            "https://b/transit/k?approle-mount=a",
            "https://b/transit/k?namespace=..",
            "https://b/transit/k?namespace=a%20hunter2",
            "https://b/transit/k?agent=/run/hunter2.sock",
            "https://b/transit/k?agent=unix:/a&ca-file=/c",
            "https://b/transit/k?ca-file=/c&ca-file=/d",
            "https://b/transit/k#hunter2",
        ] {
            let error = KeyUri::parse(&format!("openbao:{rest}")).expect_err(rest);
            assert_eq!(error.kind(), ErrorKind::Usage, "{rest}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
