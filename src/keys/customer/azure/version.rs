//! Versions of a key, and what may be done with them.

use azure_core::time::OffsetDateTime;
use azure_security_keyvault_keys::models::{Key, KeyAttributes, KeyProperties};
use rsa::{BigUint, RsaPublicKey};

use super::answers;
use crate::keys::customer::{WrapAlgorithm, WrappingKey, printable};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::parse_azure_version;

/// A version with its public half.
pub(super) struct Version {
    pub(super) name: String,
    pub(super) key: WrappingKey,
    pub(super) state: State,
    /// What is possible after somebody has deleted it.
    recovery_level: String,
    /// What it may be used for; empty if the vault does not say.
    operations: Vec<String>,
}

/// A version as a list has it.
pub(super) struct Listed {
    pub(super) name: String,
    /// In seconds of Unix time.
    pub(super) created: i64,
    pub(super) state: State,
}

/// Whether a version may be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    is_enabled: bool,
    not_before: Option<OffsetDateTime>,
    expires: Option<OffsetDateTime>,
}

impl State {
    fn new(attributes: &KeyAttributes) -> Self {
        Self {
            // Without a word it is, as when it was created so.
            is_enabled: attributes.enabled.unwrap_or(true),
            not_before: attributes.not_before,
            expires: attributes.expires,
        }
    }

    /// True if it is enabled and valid now.
    pub(super) fn may_be_used(&self) -> bool {
        self.refusal(OffsetDateTime::now_utc()).is_none()
    }

    /// Why the version of this name may not be used, if it may not.
    pub(super) fn check(&self, shown: &str, name: &str) -> Result<(), KeyError> {
        let Some((kind, why)) = self.refusal(OffsetDateTime::now_utc()) else {
            return Ok(());
        };
        let error = KeyError::new(kind, format!("version {name} of {shown} {why}"));
        Err(match kind {
            ErrorKind::KeyDisabled => error.with_hint(
                "enable it: az keyvault key set-attributes --enabled true --vault-name VAULT \
                 --name NAME --version VERSION",
            ),
            _ => error.with_hint(
                "change its dates: az keyvault key set-attributes --expires TIME --not-before \
                 TIME --vault-name VAULT --name NAME --version VERSION",
            ),
        })
    }

    fn refusal(&self, now: OffsetDateTime) -> Option<(ErrorKind, String)> {
        if !self.is_enabled {
            return Some((ErrorKind::KeyDisabled, "is disabled".to_owned()));
        }
        if let Some(start) = self.not_before.filter(|start| *start > now) {
            let why = format!("is not valid before {}", shown_time(start));
            return Some((ErrorKind::KeyExpired, why));
        }
        let end = self.expires.filter(|end| *end <= now)?;
        let why = format!("has expired at {}", shown_time(end));
        Some((ErrorKind::KeyExpired, why))
    }
}

fn shown_time(time: OffsetDateTime) -> String {
    let seconds = time.unix_timestamp();
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{seconds} s of Unix time"),
    }
}

impl Listed {
    /// What a list says of one version.
    pub(super) fn parse(properties: &KeyProperties) -> Result<Self, KeyError> {
        let attributes = properties.attributes.clone().unwrap_or_default();
        let created = attributes.created.map(OffsetDateTime::unix_timestamp);
        Ok(Self {
            name: version_in(properties.kid.as_deref())?,
            created: created.unwrap_or_default(),
            state: State::new(&attributes),
        })
    }
}

impl Version {
    /// What the vault says of one version.
    pub(super) fn parse(shown: &str, answer: Key) -> Result<Self, KeyError> {
        let unexpected = || answers::unexpected("a request for the key");
        let attributes = answer.attributes.unwrap_or_default();
        let jwk = answer.key.ok_or_else(unexpected)?;
        let kind = jwk.kty.as_ref().map_or("unknown", AsRef::as_ref);
        if !matches!(kind, "RSA" | "RSA-HSM") {
            let kind = printable(kind);
            return Err(KeyError::new(
                ErrorKind::Usage,
                format!("{shown} is of type {kind}, and not an RSA key"),
            )
            .with_hint(
                "make one: az keyvault key create --kty RSA --size 3072 --vault-name VAULT",
            ));
        }
        let (Some(modulus), Some(exponent)) = (jwk.n, jwk.e) else {
            return Err(unexpected());
        };
        let key = RsaPublicKey::new(
            BigUint::from_bytes_be(&modulus),
            BigUint::from_bytes_be(&exponent),
        );
        let key = key.map_err(|_| unexpected())?;
        Ok(Self {
            name: version_in(jwk.kid.as_deref())?,
            key: WrappingKey::new(key, WrapAlgorithm::RsaOaepSha256)?,
            state: State::new(&attributes),
            recovery_level: attributes
                .recovery_level
                .map(|level| level.as_ref().to_owned())
                .unwrap_or_default(),
            operations: jwk.key_ops.unwrap_or_default(),
        })
    }

    /// Refuses a version for new wraps that could be lost, or that could not unwrap them.
    pub(super) fn check_for_new_wraps(&self, shown: &str) -> Result<(), KeyError> {
        if !is_protected(&self.recovery_level) {
            let level = match &*printable(&self.recovery_level) {
                "" => "none".to_owned(),
                level => level.to_owned(),
            };
            return Err(KeyError::new(
                ErrorKind::KeyUnavailable,
                format!(
                    "the vault of {shown} has no purge protection (recovery level {level}): \
                     whoever purges the key destroys the data"
                ),
            )
            .with_hint(
                "turn it on: az keyvault update --name VAULT --enable-purge-protection true; \
                 existing volumes can be mounted without it",
            ));
        }
        let may_unwrap = self.operations.iter().any(|it| it == "unwrapKey");
        if !self.operations.is_empty() && !may_unwrap {
            return Err(KeyError::new(
                ErrorKind::KeyForbidden,
                format!("version {} of {shown} may not unwrap keys", self.name),
            )
            .with_hint("allow it: az keyvault key set-attributes --ops unwrapKey wrapKey"));
        }
        Ok(())
    }
}

/// True if nobody can purge what was deleted before its time.
fn is_protected(recovery_level: &str) -> bool {
    matches!(
        recovery_level,
        "Recoverable"
            | "Recoverable+ProtectedSubscription"
            | "CustomizedRecoverable"
            | "CustomizedRecoverable+ProtectedSubscription"
    )
}

/// The name of a version in the id of a key: `https://VAULT/keys/NAME/VERSION`.
fn version_in(id: Option<&str>) -> Result<String, KeyError> {
    let last = id.and_then(|id| id.rsplit('/').next());
    last.and_then(parse_azure_version)
        .ok_or_else(|| answers::unexpected("a request for the versions of the key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<OffsetDateTime> {
        Some(OffsetDateTime::from_unix_timestamp(seconds).expect("a time"))
    }

    #[test]
    fn dates_are_checked_to_the_second() {
        let state = |is_enabled, not_before, expires| State {
            is_enabled,
            not_before,
            expires,
        };
        let now = at(1000).expect("now");
        let kind = |state: &State| state.refusal(now).map(|(kind, _)| kind);
        assert_eq!(kind(&state(true, None, None)), None);
        assert_eq!(kind(&state(true, at(1000), at(1001))), None);
        assert_eq!(
            kind(&state(true, at(1001), None)),
            Some(ErrorKind::KeyExpired)
        );
        assert_eq!(
            kind(&state(true, None, at(1000))),
            Some(ErrorKind::KeyExpired)
        );
        assert_eq!(
            kind(&state(false, None, at(1000))),
            Some(ErrorKind::KeyDisabled)
        );
        let (_, why) = state(true, None, at(0)).refusal(now).expect("expired");
        assert_eq!(why, "has expired at 1970-01-01T00:00:00Z");
    }

    #[test]
    fn only_known_levels_are_protected() {
        for level in [
            "",
            "Purgeable",
            "Recoverable+Purgeable",
            "CustomizedRecoverable+Purgeable",
            "recoverable",
            "Recoverable+Other",
        ] {
            assert!(!is_protected(level), "{level}");
        }
        for level in ["Recoverable", "CustomizedRecoverable"] {
            assert!(is_protected(level));
            assert!(is_protected(&format!("{level}+ProtectedSubscription")));
        }
    }

    #[test]
    fn other_names_are_no_versions() {
        let good = "https://v/keys/k/0123456789ABCDEF0123456789abcdef";
        assert_eq!(
            version_in(Some(good)).expect("a version"),
            "0123456789abcdef0123456789abcdef"
        );
        for id in ["", "https://v/keys/k", "https://v/keys/k/..", "x/0123"] {
            assert!(version_in(Some(id)).is_err(), "{id}");
        }
        assert!(version_in(None).is_err());
    }
}
