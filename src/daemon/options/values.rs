//! Parsers of single options' values, and the errors for wrong ones.

use std::path::{Path, PathBuf};

use crate::audit::Destination;
use crate::daemon::size::parse_size;
use crate::diagnostics::UserError;
use crate::fs::SnapshotDir;
use crate::keys::KeyUri;

const LISTED: &str = "bilayer mount --help lists the options";

/// The error for an unknown option. It names the option without its value: the value may be a
/// secret, and the message may end up in a log.
pub(super) fn unknown_option(word: &str) -> UserError {
    let name = match word.split_once('=') {
        Some((name, _)) => format!("{name}=..."),
        None => word.to_owned(),
    };
    UserError::usage(format!("unknown mount option {name:?}")).with_hint(LISTED)
}

/// The error for a wrong value, which it prints; so not for an option whose value may be a secret.
fn bad_value(name: &str, value: &str, wanted: &str) -> UserError {
    wrong_value(name, value, &format!("{wanted} is wanted"))
}

fn wrong_value(name: &str, value: &str, why: &str) -> UserError {
    UserError::usage(format!("mount option {name}={value}: {why}")).with_hint(LISTED)
}

/// Splits at commas. `\,` and `\\` stand for a comma and a backslash; a backslash before any other
/// character is kept.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = characters
            .peek()
            .copied()
            .filter(|next| matches!(next, ',' | '\\'));
        match (character, escaped, words.last_mut()) {
            (',', ..) => words.push(String::new()),
            ('\\', Some(next), Some(word)) => {
                word.push(next);
                characters.next();
            }
            (plain, _, Some(word)) => word.push(plain),
            (_, _, None) => {}
        }
    }
    words
}

/// Parses the URI of a customer key from the command line. A relative path starts at `directory`.
///
/// # Errors
/// The URI is malformed or of an unknown scheme. The error does not show it: URIs of other programs
/// may contain a password or a PIN.
pub(crate) fn key_uri(value: &str, directory: &Path) -> Result<KeyUri, UserError> {
    KeyUri::parse_at(value, directory)
        .map_err(|error| UserError::key("cannot use that customer key", &error))
}

/// Parses the destination of the audit from the command line. A relative path starts at
/// `directory`.
///
/// # Errors
/// The path is empty.
pub(crate) fn audit_log(value: &Path, directory: &Path) -> Result<Destination, UserError> {
    match value.to_str() {
        Some("") => Err(bad_value("audit_log", "", "a path, or syslog,")),
        Some("syslog") => Ok(Destination::SystemLog),
        _ => Ok(Destination::File(directory.join(value))),
    }
}

pub(super) fn path(name: &str, value: &str, directory: &Path) -> Result<PathBuf, UserError> {
    if value.is_empty() {
        return Err(bad_value(name, value, "a path"));
    }
    Ok(directory.join(value))
}

pub(super) fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, UserError> {
    let parsed = value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number));
    parsed.ok_or_else(|| bad_value(name, value, &format!("a number from {least} to {most}")))
}

/// A descriptor from which a passphrase is read. The error does not show the value: it may be the
/// passphrase itself, given by mistake.
pub(super) fn passphrase_descriptor(name: &str, value: &str) -> Result<i32, UserError> {
    value
        .parse()
        .ok()
        .filter(|descriptor| *descriptor >= 0)
        .ok_or_else(|| bad_value(name, "...", "the number of an open descriptor"))
}

pub(super) fn snapshot_dir(name: &str, value: &str) -> Result<SnapshotDir, UserError> {
    SnapshotDir::parse(value).map_err(|why| wrong_value(name, value, why))
}

pub(super) fn on_or_off(name: &str, value: &str) -> Result<bool, UserError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(bad_value(name, value, "on or off")),
    }
}

pub(super) fn memory(name: &str, value: &str) -> Result<usize, UserError> {
    const LEAST_BYTES: u64 = 1 << 20;
    parse_size(value)
        .ok()
        .filter(|bytes| *bytes >= LEAST_BYTES)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| bad_value(name, value, "a size from 1M to less than 8E"))
}

/// Accepts hexadecimal digits, also in groups separated by `:` or `-`.
pub(super) fn fingerprint(value: &str) -> Result<String, UserError> {
    let digits = value.chars().filter(char::is_ascii_hexdigit).count();
    let plain = value
        .chars()
        .all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '-'));
    if plain && digits >= 16 {
        Ok(value.to_owned())
    } else {
        Err(bad_value(
            "fingerprint",
            value,
            "the hexadecimal digits that `bilayer status` shows",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_and_backslashes_can_be_escaped() {
        assert_eq!(split("a\\,b,c\\\\,d\\e"), ["a,b", "c\\", "d\\e"]);
        assert_eq!(split(""), [""]);
        assert_eq!(split("\\"), ["\\"]);
    }
}
