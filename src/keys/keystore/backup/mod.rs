//! The backup of a keystore: one file under a passphrase.
//!
//! ```text
//! {"format":"bilayer-keystore-backup","version":1,…}\n     one line of JSON
//! <56 lower-case hexadecimal digits>\n                     seals nothing: tells a wrong passphrase
//!                                                          from a damaged file
//! nonce, ciphertext, tag                                   the body, to the end of the file
//! ```
//! The header has the backup's id, the keystore's id, the time, and cost and salt of Argon2id. The
//! passphrase gives a key for each role, as for an export ([`crate::keys::transport`]). The body is
//! JSON under the key of the infrastructure role: all versions, own and adopted, and the records of
//! volumes. In it the customer keys are sealed once more, under the key of the customer role, so
//! that neither implementation alone protects both keys of a version.
//!
//! [`restore`](super::restore) merges a backup with what is there.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::backup_note::BackupNote;
use super::version::Version;
use super::{PlatformKeystore, volume_around};
use crate::audit::Record;
use crate::ids::ExportId;
use crate::keys::encoding::{hex_array, hex_id};
use crate::keys::error::{ErrorKind, KeyError, while_doing};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::transport::{Argon2idCost, TransportKeys};
use crate::keys::wrap::Role;
use crate::sys::clock::coarse_time;
use crate::sys::wipe::with_secrets;
use serde::{Deserialize, Serialize};

mod body;

pub(super) use body::{BackupBody, BackupVersion, Origin};

const FORMAT: &str = "bilayer-keystore-backup";
/// First bytes of additional data.
const LABEL: &[u8; 25] = b"bilayer keystore backup 1";
/// Length limit of the header, in bytes.
const HEADER_BYTES_MAX: usize = 4096;
/// Length limit of a backup, in bytes: more than ten thousand volumes.
const BACKUP_BYTES_MAX: u64 = 256 << 20;
/// Digits of the second line: nonce and tag.
const CHECK_DIGITS: usize = 2 * (12 + 16);

/// What a backup contains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupSummary {
    /// The keystore's id.
    pub keystore: String,
    /// The current version.
    pub current_version: u32,
    /// The number of versions, with adopted ones.
    pub versions: usize,
    /// The number of records.
    pub volumes: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    #[serde(with = "hex_id")]
    backup: ExportId,
    #[serde(with = "hex_array")]
    keystore: [u8; 16],
    created: i64,
    argon2id: Argon2idCost,
    #[serde(with = "hex_array")]
    salt: [u8; 16],
}

/// A backup that was read and opened.
pub(super) struct OpenedBackup {
    /// Id of the keystore.
    pub(super) keystore: [u8; 16],
    /// When it was made.
    pub(super) created: i64,
    /// The versions and records.
    pub(super) body: BackupBody,
}

impl PlatformKeystore {
    /// Writes a backup of the keystore under a new passphrase. An existing file is replaced only if
    /// `replace` is set.
    ///
    /// # Errors
    /// Kind `InUse` if the file exists, `Usage` if it would be inside the keystore or a volume,
    /// the errors of [`Self::open`], and failures of the passphrase and of the operating system. An
    /// existing file is unchanged then.
    pub fn backup(
        directory: &Path,
        file: &Path,
        passphrase: &PassphraseSource,
        replace: bool,
    ) -> Result<BackupSummary, KeyError> {
        let keystore = Self::open(directory)?;
        let made = keystore.write_backup(file, passphrase, replace);
        let audited = Record::new("backup-keystore")
            .with("keystore", keystore.id())
            .with("key_version", keystore.current_version())
            .with("file", file.to_string_lossy().into_owned());
        audited.outcome(&made);
        made
    }

    fn write_backup(
        &self,
        file: &Path,
        passphrase: &PassphraseSource,
        replace: bool,
    ) -> Result<BackupSummary, KeyError> {
        let target = backup_target(&self.directory, file, replace)?;
        let passphrase = passphrase.obtain_new(file)?;
        with_secrets(|| {
            let body = BackupBody::of(self)?;
            let summary = BackupSummary {
                keystore: self.id(),
                current_version: self.current_version(),
                versions: body.versions.len(),
                volumes: body.records.len(),
            };
            let (header, keys) = new_header(self.id, &passphrase)?;
            let bytes = seal(&header, &keys, &body)?;
            write_file(&target, file, &bytes, replace, |written| {
                let opened = open_with(written, file, &keys)?;
                opened.check_same(&body, file)
            })?;
            let note = BackupNote::new(coarse_time().secs, self.current_name());
            if let Err(error) = note.write(&self.directory) {
                tracing::warn!(%error, "the keystore cannot note that a backup was made");
            }
            Ok(summary)
        })
    }
}

/// The directory that gets the file.
fn backup_target(keystore: &Path, file: &Path, replace: bool) -> Result<PathBuf, KeyError> {
    let usage = |why: String, hint: &str| KeyError::new(ErrorKind::Usage, why).with_hint(hint);
    let shown = file.display();
    let parent = file.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    let at = std::fs::canonicalize(parent).map_err(while_doing("cannot find", parent))?;
    if file.file_name().is_none() {
        return Err(usage(
            format!("{shown} is no name for a file"),
            "name a file",
        ));
    }
    match std::fs::symlink_metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(while_doing("cannot look for", file)(error)),
        Ok(there) if !there.is_file() => {
            return Err(usage(
                format!("{shown} is no plain file"),
                "choose another name",
            ));
        }
        Ok(_) if !replace => {
            return Err(KeyError::new(ErrorKind::InUse, format!("{shown} exists"))
                .with_hint("choose another name, or replace it: --force"));
        }
        Ok(_) => {}
    }
    let own = std::fs::canonicalize(keystore).map_err(while_doing("cannot find", keystore))?;
    let elsewhere = "keep it on another disk, away from this machine";
    if at.starts_with(&own) {
        return Err(usage(
            format!("{shown} would be inside the keystore"),
            elsewhere,
        ));
    }
    if let Some(volume) = volume_around(&at) {
        let volume = volume.display();
        let why = format!("{shown} would be inside the volume {volume}, which needs it");
        return Err(usage(why, elsewhere));
    }
    Ok(at)
}

/// Writes the file beside its name, has it read back, and gives it its name. Durable on return.
fn write_file(
    directory: &Path,
    file: &Path,
    bytes: &[u8],
    replace: bool,
    check: impl FnOnce(&[u8]) -> Result<(), KeyError>,
) -> Result<(), KeyError> {
    let failed = |error| while_doing("cannot write", file)(error);
    // Mode 0600.
    let mut aside = tempfile::Builder::new()
        .prefix(".bilayer-backup-")
        .tempfile_in(directory)
        .map_err(failed)?;
    aside.write_all(bytes).map_err(failed)?;
    aside.as_file().sync_all().map_err(failed)?;
    check(&std::fs::read(aside.path()).map_err(failed)?)?;
    let named = directory.join(file.file_name().unwrap_or_default());
    let persisted = match replace {
        true => aside.persist(&named),
        false => aside.persist_noclobber(&named),
    };
    persisted.map_err(|error| failed(error.error))?;
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)
}

fn new_header(
    keystore: [u8; 16],
    passphrase: &crate::keys::secret::Passphrase,
) -> Result<(Vec<u8>, TransportKeys), KeyError> {
    let backup = ExportId::random().map_err(KeyError::random)?;
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)
        .map_err(|error| KeyError::random(std::io::Error::other(error.to_string())))?;
    let argon2id = Argon2idCost::DEFAULT;
    let header = Header {
        format: FORMAT.to_owned(),
        version: 1,
        backup,
        keystore,
        created: coarse_time().secs,
        argon2id,
        salt,
    };
    let line = serde_json::to_vec(&header)
        .map_err(|error| KeyError::new(ErrorKind::Io, format!("cannot write JSON: {error}")))?;
    let keys = TransportKeys::from_passphrase(passphrase, argon2id, &salt, backup)?;
    Ok((line, keys))
}

fn seal(header: &[u8], keys: &TransportKeys, body: &BackupBody) -> Result<Vec<u8>, KeyError> {
    let role = Role::Infrastructure;
    let check = keys.seal_part(role, &additional_data(b"check", header), Vec::new().into())?;
    let text = body.to_text(keys, header)?;
    let sealed = keys.seal_part(role, &additional_data(b"body", header), text)?;
    Ok([header, b"\n", hex::encode(check).as_bytes(), b"\n", &sealed].concat())
}

/// Binds a part to its backup.
pub(super) fn additional_data(part: &[u8], header: &[u8]) -> Vec<u8> {
    let len = [u8::try_from(part.len()).unwrap_or(u8::MAX)];
    [&LABEL[..], &len, part, header].concat()
}

/// Reads a backup and opens it with the passphrase.
pub(super) fn open(file: &Path, passphrase: &PassphraseSource) -> Result<OpenedBackup, KeyError> {
    let bytes = read_bounded(file)?;
    let header = parse_header(&bytes, file)?;
    let cost = header.argon2id;
    passphrase.obtain_that_opens(file, |passphrase| {
        let keys = TransportKeys::from_passphrase(passphrase, cost, &header.salt, header.backup)?;
        with_secrets(|| open_with(&bytes, file, &keys))
    })
}

fn read_bounded(file: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => KeyError::new(
            ErrorKind::KeyUnavailable,
            format!("cannot read {}: {error}", file.display()),
        ),
        _ => while_doing("cannot read", file)(error),
    };
    // Before it is opened: a pipe would block.
    if !std::fs::metadata(file).map_err(failed)?.is_file() {
        return Err(not_a_backup(file, "is no plain file"));
    }
    let opened = std::fs::File::open(file).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut bounded = opened.take(BACKUP_BYTES_MAX + 1);
    bounded.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > BACKUP_BYTES_MAX {
        return Err(not_a_backup(file, "is too long for a backup of a keystore"));
    }
    Ok(bytes)
}

/// The three parts of a file: header, check, body.
fn parts<'a>(bytes: &'a [u8], file: &Path) -> Result<[&'a [u8]; 3], KeyError> {
    let (header, rest) = split_line(bytes, HEADER_BYTES_MAX)
        .ok_or_else(|| not_a_backup(file, "is no backup of a keystore"))?;
    let (check, body) =
        split_line(rest, CHECK_DIGITS).ok_or_else(|| damaged(file, "is incomplete"))?;
    Ok([header, check, body])
}

fn split_line(bytes: &[u8], limit: usize) -> Option<(&[u8], &[u8])> {
    let end = bytes
        .iter()
        .take(limit + 1)
        .position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn parse_header(bytes: &[u8], file: &Path) -> Result<Header, KeyError> {
    /// The fields that identify a newer format, whose other fields are unknown.
    #[derive(Deserialize)]
    struct Peek {
        format: String,
        version: u64,
    }
    let line = split_line(bytes, HEADER_BYTES_MAX).map(|(line, _)| line);
    let peek = line.and_then(|line| serde_json::from_slice::<Peek>(line).ok());
    let Some(peek) = peek.filter(|peek| peek.format == FORMAT) else {
        return Err(not_a_backup(file, "is no backup of a keystore"));
    };
    if peek.version != 1 {
        let version = peek.version;
        return Err(KeyError::new(
            ErrorKind::NewerFormat,
            format!(
                "{} has format {version}; this version reads 1",
                file.display()
            ),
        ));
    }
    let [line, ..] = parts(bytes, file)?;
    let header: Header =
        serde_json::from_slice(line).map_err(|_| damaged(file, "has a damaged header"))?;
    if !header.argon2id.is_within_limits() {
        return Err(damaged(
            file,
            "requests a cost of Argon2id beyond the limits",
        ));
    }
    Ok(header)
}

fn open_with(bytes: &[u8], file: &Path, keys: &TransportKeys) -> Result<OpenedBackup, KeyError> {
    let header = parse_header(bytes, file)?;
    let [line, check, sealed] = parts(bytes, file)?;
    let role = Role::Infrastructure;
    let check = std::str::from_utf8(check)
        .ok()
        .and_then(crate::keys::encoding::strict);
    let check = check.ok_or_else(|| damaged(file, "has a damaged second line"))?;
    let check_data = additional_data(b"check", line);
    if keys.open_part(role, &check_data, &check).is_none() {
        return Err(KeyError::new(
            ErrorKind::WrongKey,
            format!("the passphrase does not open {}", file.display()),
        )
        .with_hint("try again with the right passphrase; or the file was changed"));
    }
    let text = keys.open_part(role, &additional_data(b"body", line), sealed);
    let text = text.ok_or_else(|| damaged(file, "is incomplete or was changed"))?;
    let body = BackupBody::parse(&text, keys, line, file)?;
    Ok(OpenedBackup {
        keystore: header.keystore,
        created: header.created,
        body,
    })
}

impl OpenedBackup {
    /// Compares a backup that was read back with what was written.
    fn check_same(&self, written: &BackupBody, file: &Path) -> Result<(), KeyError> {
        let names = |body: &BackupBody| body.versions.iter().map(|v| v.name).collect::<Vec<_>>();
        let same_keys = self.body.versions.iter().zip(&written.versions);
        let same_keys = same_keys.fold(true, |same, (one, other)| {
            same & one.keys.has_same_keys(&other.keys)
        });
        match names(&self.body) == names(written)
            && same_keys
            && self.body.records.len() == written.records.len()
        {
            true => Ok(()),
            false => Err(damaged(file, "did not read back as it was written")),
        }
    }
}

impl Version {
    /// Compares both keys in constant time.
    pub(super) fn has_same_keys(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        let infrastructure = self
            .infrastructure
            .expose()
            .ct_eq(other.infrastructure.expose());
        let customer = self.customer.expose().ct_eq(other.customer.expose());
        (infrastructure & customer).into()
    }
}

fn not_a_backup(file: &Path, what: &str) -> KeyError {
    KeyError::new(ErrorKind::Usage, format!("{} {what}", file.display()))
        .with_hint("name a file that was made by: bilayer keystore backup FILE")
}

pub(super) fn damaged(file: &Path, what: &str) -> KeyError {
    KeyError::new(
        ErrorKind::Tampered,
        format!("the backup {} {what}", file.display()),
    )
    .with_hint("nothing was restored; take another copy of the backup")
}
