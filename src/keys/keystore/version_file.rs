//! The file of a version: strict reading, and writing, sealed to the machine where that is on.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::damaged;
use super::files::{self, Replace, check_format, read_file, version_path};
use super::seal::{BOTH_BYTES, Sealing};
use super::version::Version;
use crate::keys::encoding::strict;
use crate::keys::error::{ErrorKind, KeyError, while_doing};
use crate::keys::secret::{PLATFORM_KEY_BYTES, PlatformCustomerKey, PlatformKey};
use crate::keys::wrap::PlatformVersion;
use crate::sys::identity::effective_user;
use crate::sys::wipe::with_secrets;

const VERSION_FORMAT: &str = "bilayer-platform-key";
/// More than the text of a version ever has, in bytes.
const VERSION_TEXT_BYTES: usize = 20 << 10;

/// Borrows from the buffer that it is read from, so that no other copy of the keys exists as text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionFile<'a> {
    format: &'a str,
    version: u32,
    keystore: &'a str,
    number: u32,
    #[serde(default)]
    created: Option<i64>,
    #[serde(default)]
    restored: Option<i64>,
    #[serde(default, borrow)]
    infrastructure: Option<&'a str>,
    #[serde(default, borrow)]
    customer: Option<&'a str>,
    /// Both keys, sealed to the machine.
    #[serde(default, borrow)]
    sealed: Option<&'a str>,
}

/// A version; `None` if there is no such file.
pub(super) fn read_version(
    folder: &Path,
    keystore: [u8; 16],
    number: u32,
    sealing: &Sealing,
) -> Result<Option<Version>, KeyError> {
    with_secrets(|| read_keys(folder, keystore, number, sealing))
}

fn read_keys(
    folder: &Path,
    keystore: [u8; 16],
    number: u32,
    sealing: &Sealing,
) -> Result<Option<Version>, KeyError> {
    let path = version_path(folder, number);
    let Some(text) = read_file(&path)? else {
        return Ok(None);
    };
    refuse_open_to_others(&path)?;
    // The message of serde could quote a key.
    let file: VersionFile<'_> =
        serde_json::from_slice(&text).map_err(|_| damaged(&path, "cannot be read"))?;
    check_format(&path, file.format, VERSION_FORMAT, file.version)?;
    if file.keystore != hex::encode(keystore) {
        return Err(damaged(&path, "belongs to another keystore"));
    }
    if file.number != number {
        return Err(damaged(&path, "has another number than its name"));
    }
    let name = PlatformVersion {
        keystore,
        version: number,
    };
    let keys = match (file.infrastructure, file.customer, file.sealed) {
        (Some(infrastructure), Some(customer), None) => {
            key_bytes(infrastructure).zip(key_bytes(customer))
        }
        (None, None, Some(sealed)) => both_keys(&sealing.unseal(name, sealed)?),
        _ => None,
    };
    let (infrastructure, customer) = keys.ok_or_else(|| damaged(&path, "is bad"))?;
    if *infrastructure == *customer {
        return Err(damaged(&path, "holds one key twice"));
    }
    let no_memory = |error| KeyError::io("no memory for", &path, error);
    Ok(Some(Version {
        infrastructure: PlatformKey::from_bytes(&infrastructure).map_err(no_memory)?,
        customer: PlatformCustomerKey::from_bytes(&customer).map_err(no_memory)?,
        created: file.created,
        restored: file.restored,
        is_sealed: file.sealed.is_some(),
    }))
}

/// The two keys of an unsealed version.
fn both_keys(bytes: &[u8]) -> Option<(KeyBytes, KeyBytes)> {
    let (infrastructure, customer) = bytes.split_first_chunk::<PLATFORM_KEY_BYTES>()?;
    let customer: &[u8; PLATFORM_KEY_BYTES] = customer.try_into().ok()?;
    Some((Zeroizing::new(*infrastructure), Zeroizing::new(*customer)))
}

/// Writes a version. False if it exists and may not be replaced.
pub(super) fn write_version(
    folder: &Path,
    keystore: [u8; 16],
    number: u32,
    version: &Version,
    replace: Replace,
    sealing: &Sealing,
) -> Result<bool, KeyError> {
    let path = version_path(folder, number);
    let mut both = Zeroizing::new([0; BOTH_BYTES]);
    both[..PLATFORM_KEY_BYTES].copy_from_slice(version.infrastructure.expose());
    both[PLATFORM_KEY_BYTES..].copy_from_slice(version.customer.expose());
    let name = PlatformVersion {
        keystore,
        version: number,
    };
    let sealed = sealing.seal(name, &both)?;
    let time = |name, time: Option<i64>| {
        time.map_or_else(String::new, |time| format!("\"{name}\":{time},"))
    };
    with_secrets(|| {
        // Allocated at full size: a growing buffer leaves copies of keys behind.
        let mut text = Zeroizing::new(String::with_capacity(VERSION_TEXT_BYTES));
        let digits = |key: &[u8]| Zeroizing::new(hex::encode(key));
        text.push_str(&format!(
            "{{\"format\":\"{VERSION_FORMAT}\",\"version\":1,\"keystore\":\"{}\",\
             \"number\":{number},{}{}",
            hex::encode(keystore),
            time("created", version.created),
            time("restored", version.restored),
        ));
        if let Some(sealed) = &sealed {
            text.push_str(&format!("\"sealed\":\"{sealed}\"}}\n"));
        } else {
            text.push_str("\"infrastructure\":\"");
            text.push_str(&digits(version.infrastructure.expose()));
            text.push_str("\",\"customer\":\"");
            text.push_str(&digits(version.customer.expose()));
            text.push_str("\"}\n");
        }
        files::write_file(&path, text.as_bytes(), replace)
    })
}

/// Refuses a file with keys that does not belong to this user alone.
fn refuse_open_to_others(path: &Path) -> Result<(), KeyError> {
    let metadata = std::fs::symlink_metadata(path).map_err(while_doing("cannot read", path))?;
    let (mode, user) = (metadata.mode() & 0o7777, effective_user());
    let shown = path.display();
    let problem = match metadata.uid() {
        owner if owner != user => format!("belongs to user {owner}, not to user {user}"),
        _ if mode & 0o077 != 0 => format!("is open to other users (mode {mode:04o})"),
        _ => return Ok(()),
    };
    Err(KeyError::new(
        ErrorKind::KeystoreInvalid,
        format!("the platform key in {shown} {problem}"),
    )
    .with_hint(format!("chown {user} {shown}; chmod 600 {shown}")))
}

/// One key of a version.
type KeyBytes = Zeroizing<[u8; PLATFORM_KEY_BYTES]>;

pub(super) fn key_bytes(digits: &str) -> Option<KeyBytes> {
    let bytes = Zeroizing::new(strict(digits)?);
    let mut key = Zeroizing::new([0; PLATFORM_KEY_BYTES]);
    (bytes.len() == key.len()).then(|| key.copy_from_slice(&bytes))?;
    Some(key)
}
