//! `exec:` keys: a program that asks any key management service.
//!
//! The program is started for each request and answers once ([`protocol`]). What it says about the
//! versions is read afresh every time. It is started only if root and this user alone can change
//! it, and it inherits nothing (`sys::program`).

mod protocol;

use std::fmt;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use self::protocol::{
    Description, Failure, PROTOCOL, Reason, Request, State, UnwrapRequest, Unwrapped, Version,
};
use super::{CustomerKeyProvider, KeyVersion, WrappingKey, not_this_key, printable};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{KeyUri, ProgramKey};
use crate::sys::owned;
use crate::sys::program::{self, Ended, Limits, Output};
use crate::sys::wipe::with_secrets;

/// What a program may use for one request.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(30),
    output_bytes: 256 * 1024,
    error_bytes: 4096,
};
/// Limit on the name of a version, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// Limit on a plaintext, in bytes: that of the largest key.
const MAX_PLAIN_BYTES: usize = 512;
const SEE_PROTOCOL: &str = "the protocol is in docs/KEYS.md, with a program as an example";

/// A key behind a program.
#[derive(Debug)]
pub(super) struct ExecKey {
    uri: KeyUri,
    program: ProgramKey,
    limits: Limits,
}

impl ExecKey {
    /// The key that `uri` names. The program is checked, and not started yet.
    pub(super) fn open(uri: &KeyUri, program: &ProgramKey) -> Result<Self, KeyError> {
        let this = Self {
            uri: uri.clone(),
            program: program.clone(),
            limits: LIMITS,
        };
        this.refuse_exposed()?;
        Ok(this)
    }

    fn refuse_exposed(&self) -> Result<(), KeyError> {
        let program = &self.program.program;
        let exposed = owned::find_exposed(program)
            .map_err(|error| self.failed(ErrorKind::KeyUnavailable, error))?;
        let Some(exposed) = exposed else {
            return Ok(());
        };
        let shown = exposed.path.display();
        let error = self.failed(
            ErrorKind::KeyUnavailable,
            format!("{shown} {}", exposed.why),
        );
        Err(error.with_hint(format!(
            "other users could replace the program: chown root {shown}; chmod go-w {shown}"
        )))
    }

    fn failed(&self, kind: ErrorKind, why: impl fmt::Display) -> KeyError {
        let program = self.program.program.display();
        KeyError::new(kind, format!("the key program {program} failed: {why}"))
    }

    /// Asks the program once.
    fn ask<T: DeserializeOwned>(
        &self,
        request: &'static str,
        unwrap: Option<UnwrapRequest<'_>>,
    ) -> Result<T, KeyError> {
        self.refuse_exposed()?;
        let request = Request {
            protocol: PROTOCOL,
            request,
            key: self.program.key.as_deref(),
            unwrap,
        };
        let mut line = serde_json::to_vec(&request)
            .map_err(|_| self.failed(ErrorKind::KeyUnavailable, "the request has no JSON"))?;
        line.push(b'\n');
        let output = program::run(&self.program.program, &line, &self.limits)
            .map_err(|error| self.failed(ErrorKind::KeyUnavailable, error))?;
        self.check_end(&output)?;
        self.parse(&output.output)
    }

    fn check_end(&self, output: &Output) -> Result<(), KeyError> {
        let why = match output.ended {
            Ended::Exited(0) => return Ok(()),
            Ended::Exited(code) => format!("it ended with exit code {code}"),
            Ended::Signalled(signal) => format!("it was killed by signal {signal}"),
            Ended::TimedOut => format!("no answer within {} s", self.limits.time.as_secs()),
            Ended::TooLong => {
                let limit = self.limits.output_bytes;
                let why = format!("its answer is longer than {limit} bytes");
                let error = self.failed(ErrorKind::KeyUnavailable, why);
                return Err(error.with_hint(SEE_PROTOCOL));
            }
        };
        let errors = String::from_utf8_lossy(&output.errors);
        let why = match errors.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("{why}: {}", printable(line)),
            None => why,
        };
        Err(self.failed(ErrorKind::KeyUnreachable, why))
    }

    /// Reads the one line of an answer.
    fn parse<T: DeserializeOwned>(&self, output: &[u8]) -> Result<T, KeyError> {
        let line = output.strip_suffix(b"\n").unwrap_or(output);
        if let Ok(answer) = serde_json::from_slice(line) {
            return Ok(answer);
        }
        match serde_json::from_slice(line) {
            Ok(Failure { error }) => Err(self.refused(&error)),
            // What the answer is may be a secret.
            Err(_) => {
                Err(self.bad_answer("its answer is not the one line of JSON that it should be"))
            }
        }
    }

    fn bad_answer(&self, why: impl fmt::Display) -> KeyError {
        self.failed(ErrorKind::KeyUnavailable, why)
            .with_hint(SEE_PROTOCOL)
    }

    /// The error that the program has reported.
    fn refused(&self, reason: &Reason) -> KeyError {
        let message = printable(&reason.message);
        match reason.kind() {
            Some(kind) => KeyError::new(kind, format!("{}: {message}", self.uri)),
            None => self.bad_answer(format!(
                "it reports an error of the unknown kind {:?}: {message}",
                printable(&reason.kind)
            )),
        }
    }

    fn describe(&self) -> Result<Vec<Version>, KeyError> {
        let description: Description = self.ask("describe", None)?;
        for version in &description.versions {
            let name = &version.name;
            let is_good = !name.is_empty()
                && name.len() <= MAX_NAME_BYTES
                && !name.contains(char::is_control);
            if !is_good {
                return Err(self.bad_answer("the name of a version is empty, too long or no text"));
            }
        }
        Ok(description.versions)
    }

    fn public_half(&self, version: &Version) -> Result<Option<WrappingKey>, KeyError> {
        let Some(pem) = &version.public_key else {
            return match version.state {
                State::Enabled => Err(self.bad_answer(format!(
                    "version {} is enabled and has no public key",
                    version.name
                ))),
                _ => Ok(None),
            };
        };
        let refused = |why: &dyn fmt::Display| {
            self.bad_answer(format!(
                "the public key of version {} is not accepted: {why}",
                version.name
            ))
        };
        let key = RsaPublicKey::from_public_key_pem(pem)
            .map_err(|_| refused(&"it is no RSA key in PEM (BEGIN PUBLIC KEY)"))?;
        let key = WrappingKey::new(key, version.algorithm).map_err(|error| refused(&error))?;
        Ok(Some(key))
    }

    /// The error for a version that may not be used.
    fn check_state(&self, version: &Version) -> Result<(), KeyError> {
        match version.state.refusal() {
            None => Ok(()),
            Some((kind, why)) => Err(KeyError::new(
                kind,
                format!("version {} of {} {why}", version.name, self.uri),
            )),
        }
    }
}

impl CustomerKeyProvider for ExecKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        let versions = self.describe()?;
        let chosen = match &self.program.version {
            Some(name) => versions.iter().find(|version| version.name == *name),
            None => versions
                .iter()
                .find(|version| version.state == State::Enabled)
                .or(versions.first()),
        };
        let version = chosen.ok_or_else(|| {
            KeyError::new(
                ErrorKind::KeyDeleted,
                format!("the program knows no such version of {}", self.uri),
            )
        })?;
        self.check_state(version)?;
        let key = self.public_half(version)?;
        let key = key.ok_or_else(|| self.bad_answer("a version has no public key"))?;
        Ok(KeyVersion {
            name: Some(version.name.clone()),
            key,
        })
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let versions = self.describe()?;
        let mut found = None;
        for candidate in &versions {
            let key = self.public_half(candidate)?;
            if key.is_some_and(|key| key.is_same_key(&version.key)) {
                found = Some(candidate);
                break;
            }
        }
        // The name comes from the superblock; it decides the kind of error alone.
        let named = || {
            let unknown = versions.iter().filter(|other| other.public_key.is_none());
            unknown.filter(|other| Some(&other.name) == version.name.as_ref())
        };
        let candidate = found
            .or_else(|| named().next())
            .ok_or_else(|| not_this_key(&self.uri, version))?;
        self.check_state(candidate)?;
        with_secrets(|| {
            let answer: Unwrapped = self.ask(
                "unwrap",
                Some(UnwrapRequest {
                    version: &candidate.name,
                    algorithm: version.key.algorithm(),
                    ciphertext: Base64::encode_string(ciphertext),
                }),
            )?;
            let plain = Zeroizing::new(answer.plaintext);
            Base64::decode_vec(&plain)
                .ok()
                .map(Zeroizing::new)
                .filter(|plain| plain.len() <= MAX_PLAIN_BYTES)
                .ok_or_else(|| self.bad_answer("the plaintext is not in base64, or too long"))
        })
    }
}

#[cfg(test)]
mod tests;
