//! What is said to a key program and what it answers: one line of JSON each (docs/KEYS.md).
//!
//! ```text
//! {"protocol":1,"request":"describe","key":"NAME"}
//! {"versions":[{"name":"2","public_key":"-----BEGIN PUBLIC KEY-----...","state":"enabled"}]}
//!
//! {"protocol":1,"request":"unwrap","key":"NAME","version":"2","algorithm":"RSA-OAEP-256",
//!  "ciphertext":"BASE64"}
//! {"plaintext":"BASE64"}
//!
//! {"error":{"kind":"key-disabled","message":"version 2 is disabled"}}
//! ```

use serde::{Deserialize, Serialize};

use crate::keys::customer::WrapAlgorithm;
use crate::keys::error::ErrorKind;

/// The version of the protocol.
pub(super) const PROTOCOL: u32 = 1;

/// A request.
#[derive(Serialize)]
pub(super) struct Request<'a> {
    pub(super) protocol: u32,
    pub(super) request: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
    #[serde(flatten)]
    pub(super) unwrap: Option<UnwrapRequest<'a>>,
}

/// The rest of an `unwrap` request.
#[derive(Serialize)]
pub(super) struct UnwrapRequest<'a> {
    pub(super) version: &'a str,
    pub(super) algorithm: WrapAlgorithm,
    pub(super) ciphertext: String,
}

/// The answer to `describe`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    /// The newest first.
    pub(super) versions: Vec<Version>,
}

/// A version of the key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    pub(super) name: String,
    /// PEM. It may be missing if the version is not enabled.
    pub(super) public_key: Option<String>,
    pub(super) state: State,
    #[serde(default = "default_algorithm")]
    pub(super) algorithm: WrapAlgorithm,
}

fn default_algorithm() -> WrapAlgorithm {
    WrapAlgorithm::RsaOaepSha256
}

/// Whether a version may be used.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Enabled,
    Disabled,
    Expired,
    Deleted,
}

impl State {
    /// The kind of error for a version that may not be used, and a word for it.
    pub(super) fn refusal(self) -> Option<(ErrorKind, &'static str)> {
        match self {
            Self::Enabled => None,
            Self::Disabled => Some((ErrorKind::KeyDisabled, "is disabled")),
            Self::Expired => Some((ErrorKind::KeyExpired, "has expired or is not valid yet")),
            Self::Deleted => Some((ErrorKind::KeyDeleted, "was deleted")),
        }
    }
}

/// The answer to `unwrap`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unwrapped {
    pub(super) plaintext: String,
}

/// The answer to a request that cannot be met.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    pub(super) error: Reason,
}

/// Why a request cannot be met.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    pub(super) kind: String,
    pub(super) message: String,
}

impl Reason {
    /// The kind of error; `None` for one that a program does not decide.
    pub(super) fn kind(&self) -> Option<ErrorKind> {
        const KINDS: [ErrorKind; 8] = [
            ErrorKind::KeyUnavailable,
            ErrorKind::KeyDisabled,
            ErrorKind::KeyExpired,
            ErrorKind::KeyDeleted,
            ErrorKind::KeyForbidden,
            ErrorKind::KeyUnreachable,
            ErrorKind::WrongKey,
            ErrorKind::Tampered,
        ];
        KINDS.into_iter().find(|kind| kind.name() == self.kind)
    }
}
