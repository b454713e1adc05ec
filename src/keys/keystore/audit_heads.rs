//! The heads of audit logs: how many records each has, and the hash of the last one. A log that
//! ends before its head was truncated.
//!
//! ```text
//! platform/audit/default.json     of audit.log in this directory
//! platform/audit/<digits>.json    of another file: the first half of the SHA-256 of its path
//!   {"format":"bilayer-audit-head","version":1,"log":…,"chain":…,"count":…,"head":…}
//! ```

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{self, Replace};
use crate::audit::{ChainId, Head, HeadStore};
use crate::keys::encoding::hex_array;
use crate::keys::error::KeyError;

/// Directory of the heads.
const AUDIT: &str = "audit";
const FORMAT: &str = "bilayer-audit-head";
/// Name of the log that is in the keystore's directory.
const DEFAULT_LOG: &str = "audit.log";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadFile {
    format: String,
    version: u32,
    /// Path of the log, for people.
    log: String,
    #[serde(with = "hex_array")]
    chain: [u8; 16],
    count: u64,
    #[serde(with = "hex_array")]
    head: [u8; 32],
}

/// Keeps the heads of logs in the directory of a platform keystore. A directory that is no keystore
/// keeps none and stays unchanged.
#[derive(Debug)]
pub struct AuditHeads {
    directory: PathBuf,
}

impl AuditHeads {
    /// In that directory, which need not exist.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    fn path_of(&self, log: &Path) -> PathBuf {
        let name = match log == self.directory.join(DEFAULT_LOG) {
            true => "default".to_owned(),
            false => hex::encode(&Sha256::digest(log.as_os_str().as_bytes())[..16]),
        };
        self.directory.join(AUDIT).join(format!("{name}.json"))
    }

    fn read(&self, log: &Path) -> Result<Option<Head>, KeyError> {
        let path = self.path_of(log);
        let Some(text) = files::read_file(&path)? else {
            return Ok(None);
        };
        let file: HeadFile = serde_json::from_slice(&text)
            .map_err(|error| super::damaged(&path, &format!("cannot be read ({error})")))?;
        files::check_format(&path, &file.format, FORMAT, file.version)?;
        Ok(Some(Head {
            chain: ChainId(file.chain),
            count: file.count,
            hash: file.head,
        }))
    }

    fn write(&self, log: &Path, head: &Head) -> Result<(), KeyError> {
        if files::read_identity(&self.directory)?.is_none() {
            return Ok(());
        }
        let path = self.path_of(log);
        let file = HeadFile {
            format: FORMAT.to_owned(),
            version: 1,
            log: log.to_string_lossy().into_owned(),
            chain: head.chain.0,
            count: head.count,
            head: head.hash,
        };
        let mut text = serde_json::to_vec(&file)
            .map_err(|error| super::damaged(&path, &format!("cannot be written ({error})")))?;
        text.push(b'\n');
        files::make_directory(&self.directory.join(AUDIT))?;
        files::write_file(&path, &text, Replace::Always).map(|_| ())
    }
}

impl HeadStore for AuditHeads {
    fn load(&self, log: &Path) -> io::Result<Option<Head>> {
        self.read(log).map_err(KeyError::into_io)
    }

    fn store(&self, log: &Path, head: &Head) -> io::Result<()> {
        self.write(log, head).map_err(KeyError::into_io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PlatformKeystore;

    const HEAD: Head = Head {
        chain: ChainId([1; 16]),
        count: 7,
        hash: [2; 32],
    };

    #[test]
    fn each_log_has_a_head_of_its_own() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("keystore");
        let heads = AuditHeads::new(&directory);
        let (own, other) = (directory.join("audit.log"), Path::new("/elsewhere"));
        // No keystore: nothing is created.
        heads.store(&own, &HEAD).unwrap();
        assert!(!directory.exists());
        PlatformKeystore::open_or_create(&directory).unwrap();
        assert_eq!(heads.load(&own).unwrap(), None);
        heads.store(&own, &HEAD).unwrap();
        assert_eq!(heads.load(&own).unwrap(), Some(HEAD));
        assert_eq!(heads.load(other).unwrap(), None);
        let second = Head { count: 8, ..HEAD };
        heads.store(other, &second).unwrap();
        assert_eq!(heads.load(&own).unwrap(), Some(HEAD));
        assert_eq!(heads.load(other).unwrap(), Some(second));
        PlatformKeystore::open(&directory).unwrap();
    }

    #[test]
    fn a_damaged_head_is_no_missing_one() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("keystore");
        PlatformKeystore::open_or_create(&directory).unwrap();
        let heads = AuditHeads::new(&directory);
        let log = directory.join("audit.log");
        heads.store(&log, &HEAD).unwrap();
        let path = directory.join("audit/default.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            "",
            "{}",
            &text[..40],
            &text.replace("version\":1", "version\":2"),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = heads.load(&log).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{damaged}");
        }
    }
}
