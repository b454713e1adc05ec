//! The versions of a key in a directory, and which of them may be used.
//!
//! | file | meaning |
//! |---|---|
//! | `NAME.vN.pem` | version N: a private key (or a public one, which only wraps) |
//! | `NAME.vN.pub.pem` | its public half, so that an encrypted private key need not be decrypted |
//! | `NAME.vN.disabled` | version N is disabled; the contents do not matter |
//! | `NAME.vN.toml` | `not_before` and `expires`: TOML date-times with an offset (RFC 3339) |
//!
//! N is a decimal number from 1 without leading zeros. A version exists if its `NAME.vN.pem` does.
//!
//! Invariants: only root and this user can change the directory, the directories that lead to it,
//! and the files; none of the files is a symbolic link. Everything is read afresh every time, so
//! a version that is disabled, deleted or expired is noticed at the next use.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Deserialize;
use toml::value::Datetime;

use super::{read_bounded, unavailable};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::KeyUri;
use crate::sys::identity::effective_user;
use crate::sys::owned;

/// Limit on the versions of a key.
const VERSIONS_MAX: usize = 1000;
/// Length limit of a file with dates, in bytes.
const MAX_DATES_BYTES: usize = 4096;

/// The number of a version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Number(u32);

impl Number {
    /// The number that these digits stand for, if it is written in the one accepted way.
    pub(super) fn parse(digits: &str) -> Option<Self> {
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().map(Self)?;
        (is_plain && !digits.starts_with('0')).then_some(number)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a key with versions: a directory, and the first part of the names in it.
#[derive(Debug)]
pub(super) struct Place {
    uri: KeyUri,
    directory: PathBuf,
    name: OsString,
}

/// The files of one version.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Files {
    has_key: bool,
    /// `NAME.vN.pub.pem` exists.
    pub(super) has_public: bool,
    is_disabled: bool,
    has_dates: bool,
}

/// The versions that exist, by number.
pub(super) type Versions = BTreeMap<Number, Files>;

impl Place {
    /// The place that the path of a URI names; `None` for a path without a last name.
    pub(super) fn of(uri: &KeyUri, path: &Path) -> Option<Self> {
        Some(Self {
            uri: uri.clone(),
            directory: path.parent()?.to_owned(),
            name: path.file_name()?.to_owned(),
        })
    }

    /// The file of a version with this suffix.
    pub(super) fn path(&self, number: Number, suffix: &str) -> PathBuf {
        let mut name = self.name.clone();
        name.push(format!(".v{number}.{suffix}"));
        self.directory.join(name)
    }

    /// The versions that exist. None if the directory does not exist, either.
    pub(super) fn list(&self) -> Result<Versions, KeyError> {
        let failed = |error: io::Error| {
            let shown = self.directory.display();
            KeyError::new(
                ErrorKind::KeyUnavailable,
                format!("cannot list the directory of the key, {shown}: {error}"),
            )
        };
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Versions::new()),
            entries => entries.map_err(failed)?,
        };
        let mut versions = Versions::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some((number, suffix)) = self.split(&name) else {
                continue;
            };
            let files: &mut Files = versions.entry(number).or_default();
            match suffix {
                b"pem" => files.has_key = true,
                b"pub.pem" => files.has_public = true,
                b"disabled" => files.is_disabled = true,
                b"toml" => files.has_dates = true,
                _ => {}
            }
        }
        versions.retain(|_, files| files.has_key);
        if versions.len() > VERSIONS_MAX {
            return Err(KeyError::new(
                ErrorKind::Usage,
                format!("{} has more than {VERSIONS_MAX} versions", self.uri),
            ));
        }
        if !versions.is_empty() {
            self.refuse_exposed()?;
        }
        Ok(versions)
    }

    /// Splits `NAME.vN.SUFFIX`.
    fn split<'a>(&self, entry: &'a OsStr) -> Option<(Number, &'a [u8])> {
        let rest = entry.as_bytes().strip_prefix(self.name.as_bytes())?;
        let rest = rest.strip_prefix(b".v")?;
        let dot = rest.iter().position(|byte| *byte == b'.')?;
        let number = Number::parse(std::str::from_utf8(&rest[..dot]).ok()?)?;
        Some((number, &rest[dot + 1..]))
    }

    /// Refuses a directory in which others could add or replace a version.
    fn refuse_exposed(&self) -> Result<(), KeyError> {
        let exposed = owned::find_exposed(&self.directory)
            .map_err(|error| unavailable(&self.directory, error))?;
        let Some(exposed) = exposed else {
            return Ok(());
        };
        let shown = exposed.path.display();
        Err(KeyError::new(
            ErrorKind::KeyUnavailable,
            format!("{shown}, which leads to the key, {}", exposed.why),
        )
        .with_hint(format!(
            "other users could replace the key; let its owner alone change it: \
             chown root {shown}; chmod go-w {shown}"
        )))
    }

    /// Checks that a version may be used at this time.
    pub(super) fn check(
        &self,
        number: Number,
        files: Files,
        now: Timestamp,
    ) -> Result<(), KeyError> {
        let uri = &self.uri;
        if files.is_disabled {
            let marker = self.path(number, "disabled");
            return Err(KeyError::new(
                ErrorKind::KeyDisabled,
                format!("version {number} of {uri} is disabled"),
            )
            .with_hint(format!(
                "to enable it, remove the marker {}; or name another slot's key",
                marker.display()
            )));
        }
        if !files.has_dates {
            return Ok(());
        }
        let path = self.path(number, "toml");
        let dates = Dates::read(&path)?;
        let refused = |what: String| {
            KeyError::new(
                ErrorKind::KeyExpired,
                format!("version {number} of {uri} {what}"),
            )
            .with_hint(format!(
                "change its dates in {}, or add a version",
                path.display()
            ))
        };
        match dates {
            Dates { expires, .. } if expires.is_some_and(|end| now >= end) => {
                let end = expires.unwrap_or_default();
                Err(refused(format!("expired at {end}")))
            }
            Dates { not_before, .. } if not_before.is_some_and(|start| now < start) => {
                let start = not_before.unwrap_or_default();
                Err(refused(format!("is not valid before {start}")))
            }
            _ => Ok(()),
        }
    }

    /// Checks a version of which new wraps are to be made. `None`: its time has not come.
    pub(super) fn check_for_new(
        &self,
        number: Number,
        files: Files,
        now: Timestamp,
    ) -> Result<Option<()>, KeyError> {
        if files.has_dates && !files.is_disabled {
            let dates = Dates::read(&self.path(number, "toml"))?;
            if dates.not_before.is_some_and(|start| now < start) {
                return Ok(None);
            }
        }
        self.check(number, files, now).map(Some)
    }
}

/// Opens a file of a version: a plain file, not by way of a symbolic link, that only root and this
/// user can change.
pub(super) fn open(path: &Path) -> Result<File, KeyError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => unavailable(path, "it is a symbolic link"),
        _ => unavailable(path, error),
    })?;
    let metadata = file.metadata().map_err(|error| unavailable(path, error))?;
    if !metadata.is_file() {
        return Err(unavailable(path, "it is no plain file"));
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let why = if owner != 0 && owner != effective_user() {
        format!("it belongs to user {owner}")
    } else if mode & 0o022 != 0 {
        format!("other users can change it (mode {mode:04o})")
    } else {
        return Ok(file);
    };
    let shown = path.display();
    Err(unavailable(path, why).with_hint(format!("chown root {shown}; chmod go-w {shown}")))
}

/// When a version may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Dates {
    not_before: Option<Timestamp>,
    expires: Option<Timestamp>,
}

/// The form of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatesFile {
    not_before: Option<Datetime>,
    expires: Option<Datetime>,
}

impl Dates {
    fn read(path: &Path) -> Result<Self, KeyError> {
        let text = read_bounded(&open(path)?, path)?;
        Self::parse(&text).map_err(|why| {
            KeyError::new(
                ErrorKind::Usage,
                format!("the dates of a key version, {}: {why}", path.display()),
            )
            .with_hint("it has lines such as: expires = 2027-01-31T00:00:00Z")
        })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_DATES_BYTES {
            return Err(format!("longer than {MAX_DATES_BYTES} bytes"));
        }
        let text = std::str::from_utf8(text).map_err(|_| "not UTF-8".to_owned())?;
        let file: DatesFile = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let dates = Self {
            not_before: file.not_before.map(timestamp).transpose()?,
            expires: file.expires.map(timestamp).transpose()?,
        };
        if let (Some(start), Some(end)) = (dates.not_before, dates.expires)
            && start >= end
        {
            return Err("it expires before it is valid".to_owned());
        }
        Ok(dates)
    }
}

/// A local time would mean another time on another machine.
fn timestamp(datetime: Datetime) -> Result<Timestamp, String> {
    let text = datetime.to_string();
    match datetime.offset {
        None => Err(format!(
            "{text} has no offset from UTC, such as a Z at its end"
        )),
        Some(_) => text
            .parse()
            .map_err(|_| format!("{text} is no time that can be used")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_one_way() {
        assert_eq!(Number::parse("12"), Some(Number(12)));
        for text in [
            "",
            "0",
            "01",
            "+1",
            "-1",
            " 1",
            "1 ",
            "4294967296",
            "a",
            "٣",
        ] {
            assert_eq!(Number::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn dates_have_an_offset_and_an_order() {
        let parse = |text: &str| Dates::parse(text.as_bytes());
        let time = |text: &str| Some(text.parse::<Timestamp>().expect("time"));
        let both = "not_before = 2026-01-01T00:00:00+01:00\nexpires = 2027-01-01 00:00:00.5Z\n";
        let expected = Dates {
            not_before: time("2025-12-31T23:00:00Z"),
            expires: time("2027-01-01T00:00:00.5Z"),
        };
        assert_eq!(parse(both), Ok(expected));
        assert_eq!(parse("# nothing\n").map(|dates| dates.expires), Ok(None));
        for (text, why) in [
            ("expires = 2027-01-01", "no offset"),
            ("expires = 2027-01-01T00:00:00", "no offset"),
            ("expires = 00:00:00", "no offset"),
            ("expires = \"soon\"", "datetime"),
            ("expires = 2027-13-01T00:00:00Z", ""),
            ("expire = 2027-01-01T00:00:00Z", "unknown field"),
            ("expires", ""),
            (
                "not_before = 2027-01-01T00:00:00Z\nexpires = 2026-01-01T00:00:00Z",
                "before",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse(&" ".repeat(MAX_DATES_BYTES + 1)).is_err());
        assert!(Dates::parse(b"# \xff").is_err());
    }
}
