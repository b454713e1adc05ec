//! What a server's answers mean.
//!
//! | answer | kind |
//! |---|---|
//! | 400 `refusing to use soft-deleted key`, `encryption key not found`; 404 | `KeyDeleted` |
//! | 400 `... (too old)` | `KeyDisabled` |
//! | 400 `invalid ciphertext ...`; 500 `... decryption error` | `Tampered` |
//! | 403 with a token that the server knows | `KeyForbidden` |
//! | 412, 429 that lasts, 5xx (503: sealed) | `KeyUnreachable` |
//!
//! Seen with OpenBao 2.7; the texts are those of Vault.

use std::collections::BTreeMap;
use std::fmt;

use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey;
use serde::Deserialize;

use super::client::Answer;
use crate::keys::customer::{WrapAlgorithm, WrappingKey, printable};
use crate::keys::error::{ErrorKind, KeyError};

/// The texts of an error.
pub(super) struct Errors(Vec<String>);

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<String>,
}

impl Errors {
    /// Of an answer that is an error; otherwise there are none.
    pub(super) fn of(answer: &Answer) -> Self {
        let body = (answer.status >= 400).then(|| serde_json::from_slice(&answer.body));
        let texts = body.and_then(Result::ok).map(|body: ErrorBody| body.errors);
        Self(texts.unwrap_or_default())
    }

    fn contain(&self, part: &str) -> bool {
        self.0.iter().any(|text| text.contains(part))
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `1 error occurred:\n\t* permission denied\n\n`
        let shown = |text: &String| {
            let text = text
                .split_once("\n\t* ")
                .map_or(text.as_str(), |(_, rest)| rest);
            printable(text)
        };
        let texts: Vec<String> = self.0.iter().map(shown).collect();
        match texts.is_empty() {
            true => f.write_str("it gives no reason"),
            false => f.write_str(&texts.join("; ")),
        }
    }
}

/// The error for an answer that is no success.
pub(super) fn refused(uri: &str, answer: &Answer) -> KeyError {
    let errors = Errors::of(answer);
    let kind = match answer.status {
        400 if errors.contain("soft-deleted") || errors.contain("not found") => {
            ErrorKind::KeyDeleted
        }
        400 if errors.contain("too old") => ErrorKind::KeyDisabled,
        400 if errors.contain("invalid ciphertext") => ErrorKind::Tampered,
        500 if errors.contain("decryption error") => ErrorKind::Tampered,
        404 => ErrorKind::KeyDeleted,
        412 | 429 | 472 | 473 | 500..=599 => return not_now(answer.status, &errors),
        _ => ErrorKind::KeyUnavailable,
    };
    let message = match kind {
        ErrorKind::KeyDeleted if errors.0.is_empty() => format!("{uri} does not exist"),
        // What is wrong with a ciphertext is not said.
        ErrorKind::Tampered => format!("{uri} does not open what was wrapped to it"),
        _ => format!("{uri}: {errors}"),
    };
    KeyError::new(kind, message)
}

/// The error for a server that cannot answer now.
pub(super) fn not_now(status: u16, errors: &Errors) -> KeyError {
    let error = KeyError::new(
        ErrorKind::KeyUnreachable,
        format!("the server cannot answer now (status {status}): {errors}"),
    );
    match errors.contain("sealed") {
        true => error.with_hint("unseal it: bao operator unseal"),
        false => error,
    }
}

/// The error for a success whose body is not as it should be.
pub(super) fn unexpected(what: &str) -> KeyError {
    KeyError::new(
        ErrorKind::KeyUnreachable,
        format!("the server's answer to {what} cannot be read"),
    )
    .with_hint("see that the URI names an OpenBao or Vault server, and a transit engine")
}

/// A key of the transit engine.
#[derive(Deserialize)]
pub(super) struct KeyInfo {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) latest_version: u32,
    #[serde(default)]
    pub(super) min_available_version: u32,
    #[serde(default)]
    pub(super) min_decryption_version: u32,
    #[serde(default)]
    pub(super) min_encryption_version: u32,
    #[serde(default)]
    pub(super) soft_deleted: bool,
    /// By number: those from `min_decryption_version`. What is there depends on the type.
    keys: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct KeyBody {
    data: KeyInfo,
}

impl KeyInfo {
    pub(super) fn parse(body: &[u8]) -> Result<Self, KeyError> {
        let body: Result<KeyBody, _> = serde_json::from_slice(body);
        body.map(|body| body.data)
            .map_err(|_| unexpected("a request for the key"))
    }

    /// The public half of a version; `None` if the server does not list it.
    pub(super) fn public_half(&self, version: u32) -> Result<Option<WrappingKey>, KeyError> {
        let Some(entry) = self.keys.get(&version.to_string()) else {
            return Ok(None);
        };
        let pem = entry.get("public_key").and_then(serde_json::Value::as_str);
        let key = pem.and_then(|pem| RsaPublicKey::from_public_key_pem(pem).ok());
        let key = key.ok_or_else(|| unexpected("a request for the key"))?;
        WrappingKey::new(key, WrapAlgorithm::RsaOaepSha256).map(Some)
    }

    /// The versions that the server lists.
    pub(super) fn versions(&self) -> impl Iterator<Item = u32> + '_ {
        self.keys.keys().filter_map(|number| number.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> (ErrorKind, String) {
        let body = zeroize::Zeroizing::new(body.as_bytes().to_vec());
        let error = refused("openbao:https://b/transit/k", &Answer { status, body });
        (error.kind(), error.to_string())
    }

    #[test]
    fn answers_have_their_kinds() {
        let errors = |text: &str| format!("{{\"errors\":[{text:?}]}}");
        for (status, text, expected) in [
            (
                400,
                "refusing to use soft-deleted key",
                ErrorKind::KeyDeleted,
            ),
            (400, "encryption key not found", ErrorKind::KeyDeleted),
            (
                400,
                "ciphertext or signature version is disallowed by policy (too old)",
                ErrorKind::KeyDisabled,
            ),
            (400, "invalid ciphertext: no prefix", ErrorKind::Tampered),
            (400, "something else", ErrorKind::KeyUnavailable),
            (404, "no handler for route", ErrorKind::KeyDeleted),
            (405, "unsupported operation", ErrorKind::KeyUnavailable),
            (
                412,
                "required index state not present",
                ErrorKind::KeyUnreachable,
            ),
            (500, "crypto/rsa: decryption error", ErrorKind::Tampered),
            (500, "internal error", ErrorKind::KeyUnreachable),
            (502, "bad gateway", ErrorKind::KeyUnreachable),
            (503, "Vault is sealed", ErrorKind::KeyUnreachable),
        ] {
            let (kind, message) = kind(status, &errors(text));
            assert_eq!(kind, expected, "{status} {text}");
            assert_eq!(
                message.contains(text),
                kind != ErrorKind::Tampered,
                "{message}"
            );
        }
        for body in ["", "<html>", "{\"errors\":[]}", "{\"errors\":{}}"] {
            assert_eq!(kind(404, body).0, ErrorKind::KeyDeleted);
            assert!(kind(503, body).1.contains("no reason"));
        }
        let listed =
            serde_json::json!({"errors": ["1 error occurred:\n\t* no\u{1b}such\n\n"]}).to_string();
        let shown = kind(418, &listed).1;
        assert!(shown.ends_with(": no such"), "{shown}");
    }

    #[test]
    fn other_bodies_are_no_key() {
        for body in [
            "",
            "{}",
            "{\"data\":{}}",
            "{\"data\":{\"type\":\"rsa-2048\",\"keys\":[]}}",
        ] {
            assert!(KeyInfo::parse(body.as_bytes()).is_err());
        }
        let symmetric = "{\"data\":{\"type\":\"aes\",\"latest_version\":1,\"keys\":{\"1\":17}}}";
        let info = KeyInfo::parse(symmetric.as_bytes()).expect("a key");
        assert!(info.public_half(1).is_err());
        assert_eq!(info.public_half(2).expect("none"), None);
    }
}
