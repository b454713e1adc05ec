//! Tokens: where they come from, and when a new one is needed.
//!
//! A server answers 403 to a token that has expired as it does to one that may not do what it
//! asked for. So after a 403 the token is looked up: if the server does not know it any more, a
//! role logs in again, and the request is repeated once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answers::{self, Errors};
use super::client::{Answer, Session};
use super::token::Token;
use crate::keys::customer::remote::files;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{Login, OpenBaoKey};
use crate::sys::identity::{effective_user, home_of};

/// How to get a token, and the one that a role has got.
#[derive(Debug)]
pub(super) struct Credentials {
    source: Source,
    lease: Mutex<Option<Lease>>,
}

#[derive(Debug)]
enum Source {
    /// The agent adds its own.
    Agent,
    File(PathBuf),
    Role {
        role_id: PathBuf,
        secret_id: PathBuf,
        path: String,
    },
}

/// A token and its end.
#[derive(Clone, Debug)]
struct Lease {
    token: Arc<Token>,
    end: Option<Instant>,
}

/// What a login sends.
#[derive(Serialize)]
struct RoleLogin<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

/// What a login returns.
#[derive(Deserialize)]
struct LoggedIn {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    /// 0: it does not end.
    #[serde(default)]
    lease_duration: u64,
}

impl Credentials {
    pub(super) fn new(key: &OpenBaoKey) -> Result<Self, KeyError> {
        let source = match (&key.login, &key.agent) {
            (Login::Default, Some(_)) => Source::Agent,
            (Login::Default, None) => Source::File(default_token_file()?),
            (Login::TokenFile(path), _) => Source::File(path.clone()),
            (
                Login::AppRole {
                    role_id_file,
                    secret_id_file,
                    mount,
                },
                _,
            ) => Source::Role {
                role_id: role_id_file.clone(),
                secret_id: secret_id_file.clone(),
                path: format!("auth/{}/login", mount.as_deref().unwrap_or("approle")),
            },
        };
        Ok(Self {
            source,
            lease: Mutex::new(None),
        })
    }

    /// Runs a request with a token. It may run twice.
    pub(super) fn with_token(
        &self,
        session: &Session<'_>,
        request: impl Fn(Option<&Token>) -> Result<Answer, KeyError>,
    ) -> Result<Answer, KeyError> {
        let (token, is_fresh) = self.token(session)?;
        let answer = request(token.as_deref())?;
        if answer.status != 403 {
            return Ok(answer);
        }
        let denied = Errors::of(&answer);
        let is_known = || -> Result<bool, KeyError> {
            let answer = session.get("auth/token/lookup-self", token.as_deref())?;
            Ok(answer.status == 200)
        };
        match &self.source {
            Source::Role { .. } if !is_fresh && !is_known()? => {
                *self.lease.lock() = None;
                let (token, _) = self.token(session)?;
                let again = request(token.as_deref())?;
                match again.status {
                    403 => Err(forbidden(&denied)),
                    _ => Ok(again),
                }
            }
            Source::File(path) if !is_known()? => Err(KeyError::new(
                ErrorKind::KeyForbidden,
                format!(
                    "the server does not accept the token in {}: it has expired or was revoked",
                    path.display()
                ),
            )
            .with_hint("write a new token to that file, or log in by AppRole or an agent")),
            _ => Err(forbidden(&denied)),
        }
    }

    /// A token, and whether it was made just now.
    fn token(&self, session: &Session<'_>) -> Result<(Option<Arc<Token>>, bool), KeyError> {
        match &self.source {
            Source::Agent => Ok((None, false)),
            // Read every time: whoever renews it replaces the file.
            Source::File(path) => {
                let token = Token::new(files::read_secret(path)?);
                Ok((Some(Arc::new(token)), false))
            }
            Source::Role {
                role_id,
                secret_id,
                path,
            } => {
                let mut lease = self.lease.lock();
                let now = Instant::now();
                if let Some(Lease { token, end }) = &*lease
                    && end.is_none_or(|end| now < end)
                {
                    return Ok((Some(token.clone()), false));
                }
                let role_id = files::read_secret(role_id)?;
                let secret_id = files::read_secret(secret_id)?;
                let new = log_in(session, path, &role_id, &secret_id)?;
                *lease = Some(new.clone());
                Ok((Some(new.token), true))
            }
        }
    }
}

fn log_in(
    session: &Session<'_>,
    path: &str,
    role_id: &str,
    secret_id: &str,
) -> Result<Lease, KeyError> {
    let body = serde_json::to_vec(&RoleLogin { role_id, secret_id });
    let body = body.map_err(|_| answers::unexpected("the login"))?;
    let start = Instant::now();
    let answer = session.post(path, None, body)?;
    let errors = Errors::of(&answer);
    match answer.status {
        200 => {}
        // The role or its secret is wrong or has ended, it may not log in from here, or (403 or
        // 404) there is no such login.
        400 | 403 | 404 => {
            let message =
                format!("the server refuses the role or its secret id at {path}: {errors}");
            return Err(KeyError::new(ErrorKind::KeyForbidden, message).with_hint(
                "write a new secret id to the file that the URI names; if AppRole is mounted \
                 elsewhere, name the place: approle-mount=NAME",
            ));
        }
        status => return Err(answers::not_now(status, &errors)),
    }
    let LoggedIn { auth } =
        serde_json::from_slice(&answer.body).map_err(|_| answers::unexpected("the login"))?;
    let end = (auth.lease_duration > 0).then(|| start + Duration::from_secs(auth.lease_duration));
    let token = Arc::new(Token::new(Zeroizing::new(auth.client_token)));
    Ok(Lease { token, end })
}

fn forbidden(errors: &Errors) -> KeyError {
    KeyError::new(
        ErrorKind::KeyForbidden,
        format!("the server forbids it: {errors}"),
    )
    .with_hint(
        "the policy needs: path \"MOUNT/keys/KEY\" { capabilities = [\"read\"] } and \
         path \"MOUNT/decrypt/KEY\" { capabilities = [\"update\"] }",
    )
}

/// Where `bao login` leaves its token.
fn default_token_file() -> Result<PathBuf, KeyError> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let home = home.filter(|home| home.is_absolute());
    let home = home.or_else(|| home_of(effective_user()));
    let home = home.ok_or_else(|| {
        KeyError::new(
            ErrorKind::KeyUnavailable,
            "there is no home directory with a token of the server",
        )
        .with_hint("name a file with a token: ?token-file=/path in the URI")
    })?;
    Ok(home.join(".vault-token"))
}
