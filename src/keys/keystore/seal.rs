//! Versions that are sealed to the machine: by systemd-creds(1) and the TPM 2.0.
//!
//! What is sealed opens only on this machine, and only as long as PCR 7 is the same: the state of
//! Secure Boot, with its keys. After a change of it, or on another machine, a backup of the
//! keystore brings the versions back, and seals them anew.
//!
//! `tpm.json` in the keystore's directory chooses the TPM (`{"format":"bilayer-keystore-tpm",
//! "version":1,"device":TEXT or null}`); null seals nothing. Without the file, root's keystores are
//! sealed where `/dev/tpmrm0` is there and systemd-creds can use it. The keys go to the child by
//! pipes only.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::files;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::secret::PLATFORM_KEY_BYTES;
use crate::keys::wrap::PlatformVersion;
use crate::sys::identity::effective_user;

const PROGRAM: &str = "/usr/bin/systemd-creds";
const DEVICE: &str = "/dev/tpmrm0";
const PCRS: &str = "7";
const SETTING: &str = "tpm.json";
const FORMAT: &str = "bilayer-keystore-tpm";
/// Bytes of both keys.
pub(super) const BOTH_BYTES: usize = 2 * PLATFORM_KEY_BYTES;
/// Limit on what the child may print, in bytes.
const OUTPUT_BYTES_MAX: u64 = 16 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingFile {
    format: String,
    version: u32,
    device: Option<String>,
}

/// Whether versions are sealed, and by which TPM.
pub(super) struct Sealing {
    /// The device for systemd-creds.
    device: String,
    /// New versions are sealed.
    is_on: bool,
    /// The setting asks for it: a failure is an error.
    is_required: bool,
}

impl Sealing {
    /// What the keystore's setting says, else what the machine offers.
    pub(super) fn of(directory: &Path) -> Result<Self, KeyError> {
        let path = directory.join(SETTING);
        let Some(text) = files::read_file(&path)? else {
            return Ok(Self {
                device: DEVICE.to_owned(),
                is_on: effective_user() == 0 && Path::new(DEVICE).exists() && has_tpm2(),
                is_required: false,
            });
        };
        let setting: SettingFile = serde_json::from_slice(&text)
            .map_err(|error| super::damaged(&path, &format!("cannot be read ({error})")))?;
        files::check_format(&path, &setting.format, FORMAT, setting.version)?;
        let is_on = setting.device.is_some();
        Ok(Self {
            device: setting.device.unwrap_or_else(|| DEVICE.to_owned()),
            is_on,
            is_required: is_on,
        })
    }

    /// Seals both keys of a version and opens them again; `None` if they are not to be sealed.
    pub(super) fn seal(
        &self,
        name: PlatformVersion,
        keys: &Zeroizing<[u8; BOTH_BYTES]>,
    ) -> Result<Option<String>, KeyError> {
        if !self.is_on {
            return Ok(None);
        }
        let sealed = self.seal_and_prove(name, keys).map_err(|error| {
            let message = format!("the TPM cannot seal platform key version {name}: {error}");
            KeyError::new(ErrorKind::Io, message)
                .with_hint("see: systemd-creds has-tpm2; or choose in the keystore's tpm.json")
        });
        match sealed {
            Err(error) if !self.is_required => {
                tracing::warn!(%error, "the platform key is protected by file modes alone");
                Ok(None)
            }
            sealed => sealed.map(Some),
        }
    }

    fn seal_and_prove(
        &self,
        name: PlatformVersion,
        keys: &Zeroizing<[u8; BOTH_BYTES]>,
    ) -> io::Result<String> {
        let arguments = ["encrypt", "--with-key=tpm2", &format!("--tpm2-pcrs={PCRS}")];
        let text = self.run(&arguments, name, &keys[..])?;
        let sealed: String = String::from_utf8_lossy(&text)
            .chars()
            .filter(|c| !c.is_ascii_whitespace())
            .collect();
        match self.open(name, &sealed)?.as_slice() == &keys[..] {
            true => Ok(sealed),
            false => Err(io::Error::other("it did not unseal to what was sealed")),
        }
    }

    /// Unseals both keys of a version.
    pub(super) fn unseal(
        &self,
        name: PlatformVersion,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let opened = self.open(name, sealed).and_then(|keys| match keys.len() {
            BOTH_BYTES => Ok(keys),
            _ => Err(io::Error::other("it has another length")),
        });
        opened.map_err(|error| {
            KeyError::new(
                ErrorKind::KeystoreInvalid,
                format!("the TPM does not unseal platform key version {name}: {error}"),
            )
            .with_hint(
                "if the firmware's keys changed, or this is another machine, restore a backup: \
                 bilayer keystore restore FILE",
            )
        })
    }

    fn open(&self, name: PlatformVersion, sealed: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        let is_base64 = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=');
        if !sealed.bytes().all(is_base64) {
            return Err(io::Error::other("it is not in base64"));
        }
        self.run(&["decrypt"], name, sealed.as_bytes())
    }

    /// Runs systemd-creds with this input and returns its output.
    fn run(
        &self,
        arguments: &[&str],
        name: PlatformVersion,
        input: &[u8],
    ) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .arg(format!("--tpm2-device={}", self.device))
            .arg(format!(
                "--name=bilayer-{}-{}",
                hex::encode(name.keystore),
                name.version
            ))
            .args(["-", "-"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A child that fails early says why.
            let _ = stdin.write_all(input);
        }
        // Allocated at full size: a growing buffer leaves copies of keys behind.
        let limit = usize::try_from(OUTPUT_BYTES_MAX).unwrap_or_default();
        let mut output = Zeroizing::new(Vec::with_capacity(limit + 32));
        if let Some(stdout) = child.stdout.take() {
            stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output)?;
        }
        let mut errors = String::new();
        if let Some(stderr) = child.stderr.take() {
            stderr.take(OUTPUT_BYTES_MAX).read_to_string(&mut errors)?;
        }
        match child.wait()?.success() {
            true => Ok(output),
            false => Err(io::Error::other(
                errors.lines().last().unwrap_or("it failed").to_owned(),
            )),
        }
    }
}

fn has_tpm2() -> bool {
    let asked = Command::new(PROGRAM)
        .args(["--quiet", "has-tpm2"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}
