//! The body of a backup.
//!
//! ```text
//! {"machine": TEXT | null, "directory": HEX,
//!  "versions": [{"keystore","number","created","exported","infrastructure","customer"}, …],
//!  "records": [{"volume","record"}, …]}
//! ```
//! `infrastructure` is a key, `customer` a sealed key and `record` the text of a record, all in
//! hexadecimal digits. `machine` and `directory` say whose keystore it is: only on that machine, in
//! that directory, do the directories in the records mean anything.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{additional_data, damaged};
use crate::ids::VolumeId;
use crate::keys::encoding::strict;
use crate::keys::error::KeyError;
use crate::keys::keystore::version::Version;
use crate::keys::keystore::{PlatformKeystore, VolumeRecord, files, record, version_file};
use crate::keys::secret::{PLATFORM_KEY_BYTES, PlatformCustomerKey, PlatformKey};
use crate::keys::transport::TransportKeys;
use crate::keys::wrap::{PlatformVersion, Role};

/// One version in a backup.
pub(in crate::keys::keystore) struct BackupVersion {
    pub(in crate::keys::keystore) name: PlatformVersion,
    pub(in crate::keys::keystore) keys: Version,
    /// An export was made for it.
    pub(in crate::keys::keystore) is_exported: bool,
}

/// The versions and records of a keystore.
pub(in crate::keys::keystore) struct BackupBody {
    /// The machine and the directory of the keystore.
    pub(in crate::keys::keystore) origin: Origin,
    pub(in crate::keys::keystore) versions: Vec<BackupVersion>,
    pub(in crate::keys::keystore) records: Vec<(VolumeId, VolumeRecord)>,
}

/// Where a keystore is.
#[derive(PartialEq, Eq)]
pub(in crate::keys::keystore) struct Origin {
    machine: Option<String>,
    directory: Vec<u8>,
}

impl Origin {
    pub(in crate::keys::keystore) fn of(directory: &Path) -> Self {
        let machine = std::fs::read_to_string("/etc/machine-id").ok();
        let machine = machine.map(|text| text.trim().to_owned());
        let directory = std::fs::canonicalize(directory);
        Self {
            machine: machine.filter(|id| id.len() == 32 && strict(id).is_some()),
            directory: directory
                .map_or_else(|_| Vec::new(), |path| path.as_os_str().as_bytes().to_vec()),
        }
    }

    /// True if both are known to be the same.
    pub(in crate::keys::keystore) fn is_same(&self, other: &Self) -> bool {
        self.machine.is_some() && !self.directory.is_empty() && self == other
    }
}

/// Borrows from the text, so that no other copy of the keys exists.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyText<'a> {
    #[serde(borrow)]
    machine: Option<&'a str>,
    directory: &'a str,
    #[serde(borrow)]
    versions: Vec<VersionText<'a>>,
    #[serde(borrow)]
    records: Vec<RecordText<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionText<'a> {
    keystore: &'a str,
    number: u32,
    created: Option<i64>,
    exported: bool,
    infrastructure: &'a str,
    customer: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordText<'a> {
    volume: &'a str,
    record: &'a str,
}

impl BackupBody {
    /// Reads everything that belongs into a backup of the keystore.
    pub(super) fn of(keystore: &PlatformKeystore) -> Result<Self, KeyError> {
        let mut versions = Vec::new();
        for (name, version) in keystore.versions.names(keystore.id) {
            versions.push(BackupVersion {
                name,
                keys: version.try_clone()?,
                is_exported: keystore.is_exported(name),
            });
        }
        let mut records = Vec::new();
        for known in keystore.volumes()? {
            match known.record {
                Ok(record) => records.push((known.volume, record)),
                // A backup without it is better than none.
                Err(error) => tracing::warn!(%error, "a record is not in the backup"),
            }
        }
        Ok(Self {
            origin: Origin::of(&keystore.directory),
            versions,
            records,
        })
    }

    /// The body's text.
    pub(super) fn to_text(
        &self,
        keys: &TransportKeys,
        header: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let mut parts: Vec<Zeroizing<String>> = Vec::new();
        let machine = self.origin.machine.as_deref();
        let machine = machine.map_or("null".to_owned(), |machine| format!("\"{machine}\""));
        let directory = hex::encode(&self.origin.directory);
        parts.push(format!("{{\"machine\":{machine},\"directory\":\"{directory}\"").into());
        parts.push(",\"versions\":[".to_owned().into());
        for (number, version) in self.versions.iter().enumerate() {
            let name = version.name;
            let customer = Zeroizing::new(version.keys.customer.expose().to_vec());
            let customer =
                keys.seal_part(Role::Customer, &customer_data(name, header), customer)?;
            let created = version.keys.created;
            let created = created.map_or("null".to_owned(), |created| created.to_string());
            parts.push(
                format!(
                    "{}{{\"keystore\":\"{}\",\"number\":{},\"created\":{created},\"exported\":{},\
                 \"customer\":\"{}\",\"infrastructure\":\"",
                    comma(number),
                    hex::encode(name.keystore),
                    name.version,
                    version.is_exported,
                    hex::encode(customer),
                )
                .into(),
            );
            parts.push(hex::encode(version.keys.infrastructure.expose()).into());
            parts.push("\"}".to_owned().into());
        }
        parts.push("],\"records\":[".to_owned().into());
        for (number, (volume, known)) in self.records.iter().enumerate() {
            let text = record::to_text(Path::new(""), *volume, known)?;
            parts.push(format!("{}{{\"volume\":\"{volume}\",\"record\":\"", comma(number)).into());
            parts.push(hex::encode(&*text).into());
            parts.push("\"}".to_owned().into());
        }
        parts.push("]}".to_owned().into());
        // Allocated at full size: a growing buffer leaves copies of keys behind.
        let len = parts.iter().map(|part| part.len()).sum();
        let mut text = Zeroizing::new(Vec::with_capacity(len));
        parts
            .iter()
            .for_each(|part| text.extend_from_slice(part.as_bytes()));
        Ok(text)
    }

    /// Parses the body's text strictly.
    pub(super) fn parse(
        text: &[u8],
        keys: &TransportKeys,
        header: &[u8],
        file: &Path,
    ) -> Result<Self, KeyError> {
        let bad = |what: &str| damaged(file, what);
        // The message of serde could quote a key.
        let body: BodyText<'_> =
            serde_json::from_slice(text).map_err(|_| bad("has a body that cannot be read"))?;
        let mut seen = BTreeSet::new();
        let mut versions = Vec::with_capacity(body.versions.len());
        for entry in &body.versions {
            let version = entry.open(keys, header);
            let version = version.ok_or_else(|| bad("has a version that cannot be read"))??;
            if !seen.insert(version.name) {
                return Err(bad("has a version twice"));
            }
            versions.push(version);
        }
        let mut records = Vec::with_capacity(body.records.len());
        for entry in &body.records {
            let volume = VolumeId::from_hex(entry.volume);
            let volume = volume.ok_or_else(|| bad("has a record that cannot be read"))?;
            let text = strict(entry.record).map(Zeroizing::new);
            let text = text.ok_or_else(|| bad("has a record that cannot be read"))?;
            let record = record::parse(Path::new(""), volume, &text)
                .map_err(|_| bad("has a record that cannot be read"))?;
            records.push((volume, record));
        }
        Ok(Self {
            origin: Origin {
                machine: body.machine.map(str::to_owned),
                directory: strict(body.directory).ok_or_else(|| bad("has no directory"))?,
            },
            versions,
            records,
        })
    }
}

impl VersionText<'_> {
    /// `None` if it is malformed or does not open.
    fn open(&self, keys: &TransportKeys, header: &[u8]) -> Option<Result<BackupVersion, KeyError>> {
        let name = PlatformVersion {
            keystore: strict(self.keystore)?.try_into().ok()?,
            version: self.number,
        };
        if !files::is_version_number(name.version) {
            return None;
        }
        let infrastructure = version_file::key_bytes(self.infrastructure)?;
        let sealed = strict(self.customer)?;
        let customer = keys.open_part(Role::Customer, &customer_data(name, header), &sealed)?;
        let customer: &[u8; PLATFORM_KEY_BYTES] = customer.as_slice().try_into().ok()?;
        if *infrastructure == *customer {
            return None;
        }
        let made = || {
            Ok(BackupVersion {
                name,
                keys: Version {
                    infrastructure: PlatformKey::from_bytes(&infrastructure)?,
                    customer: PlatformCustomerKey::from_bytes(customer)?,
                    created: self.created,
                    restored: None,
                    is_sealed: false,
                },
                is_exported: self.exported,
            })
        };
        Some(made().map_err(KeyError::memory))
    }
}

fn customer_data(name: PlatformVersion, header: &[u8]) -> Vec<u8> {
    let part = [&name.keystore[..], &name.version.to_le_bytes()].concat();
    additional_data(&part, header)
}

const fn comma(number: usize) -> &'static str {
    match number {
        0 => "",
        _ => ",",
    }
}
