//! Where the passphrase of an encrypted private key comes from. It is asked for only when a key
//! turns out to be encrypted, and never comes from a URI, the environment or the command line.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{ErrorKind, KeyError};
use super::secret::Passphrase;
use crate::sys::wipe::with_secrets;

/// Longest passphrase, in bytes.
pub const MAX_PASSPHRASE_BYTES: usize = 4096;

/// Where a passphrase comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PassphraseSource {
    /// There is none: an encrypted key is an error.
    #[default]
    None,
    /// The first line of a file.
    File(PathBuf),
    /// The first line that an open descriptor of this process gives.
    Descriptor(RawFd),
    /// The terminal is asked; an error when standard input is no terminal.
    Prompt,
}

impl PassphraseSource {
    /// Gets the passphrase that opens `what` (a path, shown to whoever is asked).
    ///
    /// # Errors
    /// Kind `KeyUnavailable` when there is none to be had, it is empty or too long.
    pub fn obtain(&self, what: &Path) -> Result<Passphrase, KeyError> {
        with_secrets(|| self.get(what))
    }

    fn get(&self, what: &Path) -> Result<Passphrase, KeyError> {
        match self {
            Self::None => Err(unavailable(format!(
                "the key {} is encrypted and no passphrase was given",
                what.display()
            ))),
            Self::File(path) => from_file(path),
            Self::Descriptor(descriptor) => {
                // Through /proc, since only a borrowed descriptor is known; for a file it starts
                // at the beginning, for a pipe it takes what is there.
                let path = PathBuf::from(format!("/proc/self/fd/{descriptor}"));
                let file = File::open(&path).map_err(|error| {
                    unavailable(format!("cannot read descriptor {descriptor}: {error}"))
                })?;
                first_line(file, &format!("descriptor {descriptor}"))
            }
            Self::Prompt => prompt(what),
        }
    }
}

impl PassphraseSource {
    /// Gets the passphrase that the keys of an export are under. `twice`: it is a new one, and
    /// whoever is asked for it on a terminal is asked again.
    ///
    /// # Errors
    /// Kind `KeyUnavailable` when there is none to be had, it is empty or too long, `Usage` when
    /// the two differ.
    pub fn obtain_for_export(&self, twice: bool) -> Result<Passphrase, KeyError> {
        const ASKED: &str = "the export";
        let hint = |error: KeyError| {
            error.with_hint("name a file whose first line is the passphrase of the export")
        };
        match self {
            Self::None => Err(hint(KeyError::new(
                ErrorKind::KeyUnavailable,
                "the export is under a passphrase and none was given",
            ))),
            Self::File(_) | Self::Descriptor(_) => self.obtain(Path::new(ASKED)).map_err(hint),
            Self::Prompt => {
                let first = self.obtain(Path::new(ASKED)).map_err(hint)?;
                if twice && self.obtain(Path::new("the export, again"))?.expose() != first.expose()
                {
                    return Err(KeyError::new(
                        ErrorKind::Usage,
                        "the two passphrases differ",
                    ));
                }
                Ok(first)
            }
        }
    }
}

fn unavailable(message: String) -> KeyError {
    KeyError::new(ErrorKind::KeyUnavailable, message)
        .with_hint("name a file that holds the passphrase: -o passphrase_file=PATH")
}

fn from_file(path: &Path) -> Result<Passphrase, KeyError> {
    let named = path.display().to_string();
    let file = File::open(path)
        .map_err(|error| unavailable(format!("cannot read passphrase file {named}: {error}")))?;
    if let Ok(metadata) = file.metadata()
        && metadata.is_file()
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(path = %named, "others may read the passphrase file; chmod 600 it");
    }
    first_line(file, &named)
}

fn first_line(mut from: impl Read, named: &str) -> Result<Passphrase, KeyError> {
    let mut bytes = Zeroizing::new(vec![0u8; MAX_PASSPHRASE_BYTES + 2]);
    let mut filled = 0;
    // Stops at the newline: a pipe that stays open is no reason to wait for more.
    while filled < bytes.len() && !bytes[..filled].contains(&b'\n') {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unavailable(format!("cannot read {named}: {error}"))),
        }
    }
    let line = bytes[..filled].split(|b| *b == b'\n').next().unwrap_or(&[]);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    passphrase(line, named)
}

fn prompt(what: &Path) -> Result<Passphrase, KeyError> {
    if !io::stdin().is_terminal() {
        return Err(unavailable(format!(
            "the key {} is encrypted, and there is no terminal to ask for its passphrase",
            what.display()
        )));
    }
    let text = rpassword::prompt_password(format!("Passphrase of {}: ", what.display()))
        .map_err(|error| unavailable(format!("cannot ask for the passphrase: {error}")))?;
    passphrase(Zeroizing::new(text).as_bytes(), "the terminal")
}

fn passphrase(bytes: &[u8], named: &str) -> Result<Passphrase, KeyError> {
    if bytes.is_empty() {
        return Err(unavailable(format!("the passphrase from {named} is empty")));
    }
    if bytes.len() > MAX_PASSPHRASE_BYTES {
        return Err(unavailable(format!(
            "the passphrase from {named} is longer than {MAX_PASSPHRASE_BYTES} bytes"
        )));
    }
    Passphrase::from_bytes(bytes).map_err(|error| {
        KeyError::new(
            ErrorKind::Io,
            format!("no memory for a passphrase: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_without_its_end() {
        for (text, expected) in [
            (&b"secret\n"[..], &b"secret"[..]),
            (b"secret\r\nmore", b"secret"),
            (b"secret", b"secret"),
            (b" two words \n", b" two words "),
        ] {
            assert_eq!(first_line(text, "test").expect("line").expose(), expected);
        }
        let long = vec![b'x'; MAX_PASSPHRASE_BYTES + 1];
        for bad in [&b""[..], b"\nsecret", &long] {
            let error = first_line(bad, "test").expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
        }
        assert_eq!(
            first_line(&long[1..], "test")
                .expect("longest")
                .expose()
                .len(),
            MAX_PASSPHRASE_BYTES
        );
    }

    #[test]
    fn without_a_source_the_key_is_named() {
        let error = PassphraseSource::None
            .obtain(Path::new("/k.pem"))
            .expect_err("none");
        assert!(error.to_string().contains("/k.pem"));
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("passphrase_file"))
        );
    }

    #[test]
    fn a_descriptor_gives_its_first_line_while_it_stays_open() {
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        std::io::Write::write_all(&mut writer, b"from a pipe\n").expect("write");
        // As the program does at its start; /proc/self changes its owner then.
        crate::sys::memory::disable_core_dumps().expect("allowed");
        let source = PassphraseSource::Descriptor(std::os::fd::AsRawFd::as_raw_fd(&reader));
        let passphrase = source.obtain(Path::new("/k.pem")).expect("passphrase");
        assert_eq!(passphrase.expose(), b"from a pipe");
        let closed = PassphraseSource::Descriptor(1_000_000);
        assert!(closed.obtain(Path::new("/k.pem")).is_err());
    }
}
