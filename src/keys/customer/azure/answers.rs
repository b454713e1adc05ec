//! What the answers of a vault and of a token endpoint mean.
//!
//! | answer of the vault | kind |
//! |---|---|
//! | 400 to `unwrapKey` | `Tampered` |
//! | 401, 403 | `KeyForbidden` |
//! | 403 with the code `KeyDisabled` | `KeyDisabled` |
//! | 403 with the code `KeyExpired` or `KeyNotYetValid` | `KeyExpired` |
//! | 404; 409 for a key that is deleted and can be recovered | `KeyDeleted` |
//! | 408, 429 that lasts, 5xx | `KeyUnreachable` |
//!
//! Source: <https://learn.microsoft.com/rest/api/keyvault/keys>.

use azure_core::error::ErrorKind as SdkKind;
use serde::Deserialize;

use crate::keys::customer::printable;
use crate::keys::error::{ErrorKind, KeyError};

#[derive(Deserialize)]
struct ErrorBody {
    error: VaultError,
}

/// The error in an answer of a vault.
#[derive(Default, Deserialize)]
struct VaultError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    innererror: Option<InnerError>,
}

#[derive(Deserialize)]
struct InnerError {
    #[serde(default)]
    code: String,
}

impl VaultError {
    fn parse(body: &[u8]) -> Self {
        let body: Result<ErrorBody, _> = serde_json::from_slice(body);
        body.map(|body| body.error).unwrap_or_default()
    }

    fn has_code(&self, code: &str) -> bool {
        self.code == code || self.innererror.as_ref().is_some_and(|it| it.code == code)
    }

    fn shown(&self) -> String {
        match (&*self.code, &*self.message) {
            ("", "") => "it gives no reason".to_owned(),
            (code, "") => printable(code),
            ("", message) => printable(message),
            (code, message) => printable(&format!("{code}: {message}")),
        }
    }
}

/// The error for what Microsoft's crates return.
pub(super) fn refused(shown: &str, error: &azure_core::Error) -> KeyError {
    match error.kind() {
        SdkKind::HttpResponse {
            status,
            raw_response,
            ..
        } => {
            let body = raw_response.as_ref().map(|answer| answer.body().as_ref());
            of_status(shown, u16::from(*status), body.unwrap_or_default())
        }
        SdkKind::Credential => KeyError::new(
            ErrorKind::KeyUnavailable,
            format!(
                "cannot log in for {shown}: {}",
                printable(&error.to_string())
            ),
        )
        .with_hint("see \"A key in Azure Key Vault\" in docs/KEYS.md for the ways to log in"),
        // What the answer is may be a secret.
        SdkKind::DataConversion => unexpected("a request"),
        _ => KeyError::new(
            ErrorKind::KeyUnreachable,
            format!("{shown}: {}", printable(&error.to_string())),
        )
        .with_hint(
            "see that the URI names a vault; in a private cloud it also names what tokens are \
             for: ?resource=https://HOST",
        ),
    }
}

/// The error for a request to unwrap that has failed.
pub(super) fn not_unwrapped(shown: &str, error: &azure_core::Error) -> KeyError {
    match error.kind() {
        // What is wrong with a ciphertext is not said.
        SdkKind::HttpResponse { status, .. } if u16::from(*status) == 400 => KeyError::new(
            ErrorKind::Tampered,
            format!("{shown} does not open what was wrapped to it"),
        ),
        _ => refused(shown, error),
    }
}

fn of_status(shown: &str, status: u16, body: &[u8]) -> KeyError {
    let reason = VaultError::parse(body);
    let kind = match status {
        403 if reason.has_code("KeyDisabled") => ErrorKind::KeyDisabled,
        403 if reason.has_code("KeyExpired") => ErrorKind::KeyExpired,
        403 if reason.has_code("KeyNotYetValid") => ErrorKind::KeyExpired,
        401 | 403 => ErrorKind::KeyForbidden,
        404 => return deleted(shown, Some(&reason.shown())),
        409 if reason.has_code("ObjectIsDeletedButRecoverable") => {
            return deleted(shown, Some(&reason.shown()));
        }
        408 | 429 | 500..=599 => ErrorKind::KeyUnreachable,
        _ => ErrorKind::KeyUnavailable,
    };
    let why = reason.shown();
    match kind {
        ErrorKind::KeyForbidden => KeyError::new(kind, format!("the vault forbids {shown}: {why}"))
            .with_hint(
                "give this identity the role \"Key Vault Crypto Service Encryption User\" for \
                 the key, or the permissions get, list and unwrapKey",
            ),
        ErrorKind::KeyUnreachable => KeyError::new(
            kind,
            format!("the vault of {shown} cannot answer now (status {status}): {why}"),
        ),
        _ => KeyError::new(kind, format!("{shown}: {why}")),
    }
}

/// The error for a key that is not there.
pub(super) fn deleted(shown: &str, why: Option<&str>) -> KeyError {
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    KeyError::new(
        ErrorKind::KeyDeleted,
        format!("{shown} was deleted, or never existed{why}"),
    )
    .with_hint("restore it: az keyvault key recover --vault-name VAULT --name NAME")
}

/// The error for a success whose body is not as it should be.
pub(super) fn unexpected(what: &str) -> KeyError {
    KeyError::new(
        ErrorKind::KeyUnreachable,
        format!("the vault's answer to {what} cannot be read"),
    )
    .with_hint("see that the URI names a vault of Azure Key Vault or a Managed HSM")
}

/// What a token endpoint, or the metadata service, says when it gives no token.
#[derive(Default, Deserialize)]
struct TokenError {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

/// The error for a login that was refused.
pub(super) fn no_token(shown: &str, status: u16, body: &[u8]) -> KeyError {
    let reason: TokenError = serde_json::from_slice(body).unwrap_or_default();
    let why = match (&*reason.error, &*reason.error_description) {
        ("", "") => "it gives no reason".to_owned(),
        (error, why) => printable(&format!("{error} {why}")),
    };
    match status {
        408 | 410 | 429 | 500..=599 => KeyError::new(
            ErrorKind::KeyUnreachable,
            format!("{shown} cannot answer now (status {status}): {why}"),
        ),
        _ => KeyError::new(
            ErrorKind::KeyForbidden,
            format!("{shown} refuses the login (status {status}): {why}"),
        )
        .with_hint(
            "see that the identity exists, and that the tenant, the client and the secret or \
             token in the file that the URI names are right and have not expired",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_their_kinds() {
        let body = |code: &str, inner: &str| {
            serde_json::json!({"error": {
                "code": code, "message": "words\u{1b}", "innererror": {"code": inner}
            }})
            .to_string()
        };
        for (status, body, kind, part) in [
            (
                400,
                body("BadParameter", ""),
                ErrorKind::KeyUnavailable,
                "BadParameter: words",
            ),
            (
                401,
                body("Unauthorized", ""),
                ErrorKind::KeyForbidden,
                "Unauthorized",
            ),
            (
                403,
                body("Forbidden", "ForbiddenByRbac"),
                ErrorKind::KeyForbidden,
                "words",
            ),
            (
                403,
                body("Forbidden", "KeyDisabled"),
                ErrorKind::KeyDisabled,
                "words",
            ),
            (
                403,
                body("Forbidden", "KeyExpired"),
                ErrorKind::KeyExpired,
                "words",
            ),
            (
                403,
                body("Forbidden", "KeyNotYetValid"),
                ErrorKind::KeyExpired,
                "words",
            ),
            (
                404,
                body("KeyNotFound", ""),
                ErrorKind::KeyDeleted,
                "KeyNotFound",
            ),
            (404, String::new(), ErrorKind::KeyDeleted, "no reason"),
            (
                409,
                body("Conflict", "ObjectIsDeletedButRecoverable"),
                ErrorKind::KeyDeleted,
                "Conflict",
            ),
            (
                409,
                body("Conflict", ""),
                ErrorKind::KeyUnavailable,
                "Conflict",
            ),
            (
                408,
                "<html>".to_owned(),
                ErrorKind::KeyUnreachable,
                "no reason",
            ),
            (
                503,
                body("ServerBusy", ""),
                ErrorKind::KeyUnreachable,
                "status 503",
            ),
        ] {
            let error = of_status("azure-kv:https://v/keys/k", status, body.as_bytes());
            assert_eq!(error.kind(), kind, "{status} {body}");
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
    }

    #[test]
    fn logins_are_refused_or_not_possible_now() {
        let refused = br#"{"error":"invalid_client","error_description":"AADSTS7000215"}"#;
        let error = no_token("it", 401, refused);
        assert_eq!(error.kind(), ErrorKind::KeyForbidden);
        assert!(error.to_string().contains("invalid_client AADSTS7000215"));
        for status in [429, 500, 503] {
            let kind = no_token("it", status, b"<html>").kind();
            assert_eq!(kind, ErrorKind::KeyUnreachable);
        }
    }
}
