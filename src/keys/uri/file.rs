//! `file:` URIs (RFC 8089): a path and nothing else.

use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::{KeyError, usage};

/// Parses what follows `file:`.
pub(super) fn parse(rest: &str, directory: Option<&Path>) -> Result<PathBuf, KeyError> {
    if rest.contains(['?', '#']) {
        return Err(usage(
            "a file URI has a path and nothing else (write ? as %3f and # as %23)",
        ));
    }
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(with_host) => with_host
            .strip_prefix("localhost")
            .unwrap_or(with_host)
            .starts_with('/')
            .then(|| with_host.strip_prefix("localhost").unwrap_or(with_host))
            .ok_or_else(|| usage("the URI names another host"))?,
    };
    let bytes = percent_decode(path)
        .ok_or_else(|| usage("% in the URI must be followed by two hexadecimal digits"))?;
    absolute(&path_of(&bytes)?, directory)
}

/// The path that decoded bytes stand for.
pub(super) fn path_of(bytes: &[u8]) -> Result<PathBuf, KeyError> {
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(usage("the URI has no usable path"));
    }
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

/// Writes the URI of a path.
pub(super) fn write(path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("file:")?;
    write_path(path, f)
}

/// Writes a path with percent-encoding where it is needed.
pub(super) fn write_path(path: &Path, f: &mut impl Write) -> fmt::Result {
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || "%?#,\"\\".contains(character) {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    write!(f, "%{byte:02x}")?;
                }
            } else {
                f.write_char(character)?;
            }
        }
        for byte in chunk.invalid() {
            write!(f, "%{byte:02x}")?;
        }
    }
    Ok(())
}

/// The path without `.` components and doubled slashes. `..` is kept: after a symbolic link it does
/// not mean what its text suggests.
pub(super) fn absolute(path: &Path, directory: Option<&Path>) -> Result<PathBuf, KeyError> {
    let joined = match directory {
        Some(directory) => directory.join(path),
        None => path.to_owned(),
    };
    if !joined.is_absolute() {
        return Err(usage(format!(
            "the path of the key, {}, is not absolute",
            path.display()
        )));
    }
    Ok(joined
        .components()
        .filter(|component| *component != Component::CurDir)
        .collect())
}

/// The bytes that a text with percent-encoding stands for; `None` if it is malformed.
pub(super) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        let mut value = [0u8];
        hex::decode_to_slice(digits, &mut value).ok()?;
        decoded.push(value[0]);
    }
    Some(decoded)
}
