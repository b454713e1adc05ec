//! Reads the files that a URI names: tokens, ids and certificates.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::keys::error::{ErrorKind, KeyError};
use crate::sys::identity::effective_user;

/// Limit on a token or an id, in bytes.
const MAX_SECRET_BYTES: usize = 8192;

/// The one line of a file with a secret, which only its owner may read.
pub(in crate::keys::customer) fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    line_of(path, &read(path, MAX_SECRET_BYTES, 0o077)?)
}

/// The one line of a file with a token for a short time, which Kubernetes lets every user of the
/// container read.
#[cfg(feature = "azure-kv")]
pub(in crate::keys::customer) fn read_token(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    line_of(path, &read(path, MAX_SECRET_BYTES, 0o022)?)
}

fn line_of(path: &Path, text: &[u8]) -> Result<Zeroizing<String>, KeyError> {
    let line = std::str::from_utf8(text).unwrap_or_default().trim();
    let is_good = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_good {
        return Err(unavailable(path, "it is not one line of text"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// A file that others may read but not change.
pub(in crate::keys::customer) fn read_public(
    path: &Path,
    limit_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    read(path, limit_bytes, 0o022)
}

fn read(path: &Path, limit_bytes: usize, refused: u32) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = opened.map_err(|error| unavailable(path, error))?;
    check(&file, path, refused)?;
    // At full size: a growing buffer leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(limit_bytes + 2));
    file.take(limit_bytes as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| unavailable(path, error))?;
    if text.len() > limit_bytes {
        return Err(unavailable(
            path,
            format!("it is longer than {limit_bytes} bytes"),
        ));
    }
    Ok(text)
}

fn check(file: &File, path: &Path, refused: u32) -> Result<(), KeyError> {
    let metadata = file.metadata().map_err(|error| unavailable(path, error))?;
    if !metadata.is_file() {
        return Err(unavailable(path, "it is no plain file"));
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let shown = path.display();
    if owner != 0 && owner != effective_user() {
        return Err(unavailable(path, format!("it belongs to user {owner}"))
            .with_hint(format!("chown {} {shown}", effective_user())));
    }
    if mode & refused != 0 {
        let bits = if refused == 0o022 { "go-w" } else { "go=" };
        return Err(
            unavailable(path, format!("it is open to other users (mode {mode:04o})"))
                .with_hint(format!("chmod {bits} {shown}")),
        );
    }
    Ok(())
}

fn unavailable(path: &Path, why: impl std::fmt::Display) -> KeyError {
    KeyError::new(
        ErrorKind::KeyUnavailable,
        format!("cannot use the file {}: {why}", path.display()),
    )
    .with_hint("the URI of the key names it; see docs/KEYS.md")
}
