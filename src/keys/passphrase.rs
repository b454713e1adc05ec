//! The source of the passphrase of an encrypted private key. It is requested only if a key turns
//! out to be encrypted, and never comes from a URI, the environment or the command line.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{ErrorKind, KeyError};
use super::secret::Passphrase;
use crate::sys::wipe::with_secrets;
use crate::sys::{interrupt, terminal};

/// Length limit of a passphrase, in bytes.
pub const MAX_PASSPHRASE_BYTES: usize = 4096;
/// Number of attempts on a terminal.
pub const TRIES: u32 = 3;

/// The source of a passphrase.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PassphraseSource {
    /// No passphrase: an encrypted key is an error.
    #[default]
    None,
    /// The first line of a file.
    File(PathBuf),
    /// The first line read from an open descriptor of this process.
    Descriptor(RawFd),
    /// A prompt on the terminal; an error if standard input is no terminal.
    Prompt,
}

impl PassphraseSource {
    /// Obtains the passphrase that opens `what` (a path, which the prompt shows).
    ///
    /// # Errors
    /// Kind `KeyUnavailable` if there is no passphrase, or it is empty or too long.
    pub fn obtain(&self, what: &Path) -> Result<Passphrase, KeyError> {
        with_secrets(|| self.get(what, false))
    }

    /// Obtains a passphrase that will protect `what` (a path, which the prompt shows). A user at a
    /// terminal types it twice, and once more if the two differ.
    ///
    /// # Errors
    /// Kind `KeyUnavailable` if there is no passphrase, or it is empty or too long; `Usage` if the
    /// two differ.
    pub fn obtain_new(&self, what: &Path) -> Result<Passphrase, KeyError> {
        if *self != Self::Prompt {
            return self.obtain(what);
        }
        let shown = what.display();
        for _ in 0..TRIES {
            let secret = format!("passphrase of {shown}");
            let first = with_secrets(|| ask(&secret, &format!("New {secret}: ")))?;
            let second = with_secrets(|| ask(&secret, &format!("New {secret}, again: ")))?;
            if first.expose() == second.expose() {
                return Ok(first);
            }
        }
        Err(KeyError::new(
            ErrorKind::Usage,
            "the two passphrases differ",
        ))
    }

    /// Obtains the PIN of a token, once: a token that gets a few wrong ones locks.
    ///
    /// # Errors
    /// Kind `KeyUnavailable` if there is no PIN, or it is empty or too long.
    pub fn obtain_pin(&self, token: &str) -> Result<Passphrase, KeyError> {
        let what = format!("token {token}");
        let pin = match self {
            Self::None => Err(unavailable(format!(
                "{what} needs its PIN and none was given"
            ))),
            Self::Prompt => {
                with_secrets(|| ask(&format!("PIN of {what}"), &format!("PIN of {what}: ")))
            }
            _ => self.obtain(Path::new(&what)),
        };
        pin.map_err(|error| match interrupt::arrived() {
            Some(_) => error,
            None => error.with_hint(
                "name a file that holds the PIN: --passphrase-file FILE, in the key's URI \
                 ...?pin-source=file:/path, or for a mount: -o passphrase_file=FILE",
            ),
        })
    }

    fn get(&self, what: &Path, again: bool) -> Result<Passphrase, KeyError> {
        match self {
            Self::None => Err(unavailable(format!(
                "the key {} is encrypted and no passphrase was given",
                what.display()
            ))),
            Self::File(path) => from_file(path),
            Self::Descriptor(descriptor) => {
                // Through /proc, since the descriptor is only borrowed. For a file this starts at
                // the beginning; for a pipe it takes what is there.
                let path = PathBuf::from(format!("/proc/self/fd/{descriptor}"));
                let file = File::open(&path).map_err(|error| {
                    unavailable(format!("cannot read descriptor {descriptor}: {error}"))
                })?;
                first_line(file, &format!("descriptor {descriptor}"))
            }
            Self::Prompt => {
                let wrong = if again { "Wrong passphrase. " } else { "" };
                let shown = what.display();
                ask(
                    &format!("passphrase of {shown}"),
                    &format!("{wrong}Passphrase of {shown}: "),
                )
            }
        }
    }

    /// Obtains the passphrase that `open` accepts. On a terminal the user is asked again if it is
    /// wrong, up to [`TRIES`] times in total; a file gives the same passphrase every time.
    ///
    /// # Errors
    /// The errors of [`Self::obtain`], and the last error of `open`, of kind `WrongKey` for a wrong
    /// passphrase.
    pub fn obtain_that_opens<T>(
        &self,
        what: &Path,
        mut open: impl FnMut(&Passphrase) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let mut tries = match self {
            Self::Prompt => 1..=TRIES,
            _ => 1..=1,
        };
        let mut again = false;
        loop {
            tries.next();
            let passphrase = with_secrets(|| self.get(what, again))?;
            match open(&passphrase) {
                Err(error) if error.kind() == ErrorKind::WrongKey && !tries.is_empty() => {
                    again = true;
                }
                result => return result,
            }
        }
    }
}

/// How prompts name an export.
const EXPORT: &str = "the export";

impl PassphraseSource {
    /// Obtains the passphrase for a new export, as [`Self::obtain_new`] does.
    ///
    /// # Errors
    /// The errors of [`Self::obtain_new`].
    pub fn obtain_for_export(&self) -> Result<Passphrase, KeyError> {
        self.of_export()?
            .obtain_new(Path::new(EXPORT))
            .map_err(with_file_hint)
    }

    /// Obtains the passphrase of an export and passes it to `open`, as [`Self::obtain_that_opens`]
    /// does.
    ///
    /// # Errors
    /// The errors of [`Self::obtain_that_opens`].
    pub fn obtain_for_import<T>(
        &self,
        open: impl FnMut(&Passphrase) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let source = self.of_export()?;
        source
            .obtain_that_opens(Path::new(EXPORT), open)
            .map_err(|error| match error.kind() {
                ErrorKind::KeyUnavailable => with_file_hint(error),
                _ => error,
            })
    }

    fn of_export(&self) -> Result<&Self, KeyError> {
        match self {
            Self::None => Err(with_file_hint(KeyError::new(
                ErrorKind::KeyUnavailable,
                "the export is under a passphrase and none was given",
            ))),
            source => Ok(source),
        }
    }
}

fn with_file_hint(error: KeyError) -> KeyError {
    match interrupt::arrived() {
        Some(_) => error,
        None => error.with_hint("name a file: --transport-passphrase-file FILE"),
    }
}

fn unavailable(message: String) -> KeyError {
    KeyError::new(ErrorKind::KeyUnavailable, message).with_hint(
        "name a file that holds the passphrase: --passphrase-file FILE, or for a mount: bilayer \
         mount -o passphrase_file=FILE VOLUME DIR",
    )
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
    // Stops at the newline: an open pipe is no reason to wait for more.
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

/// Asks on the terminal for a secret, such as `passphrase of key.pem`.
fn ask(secret: &str, question: &str) -> Result<Passphrase, KeyError> {
    if !io::stdin().is_terminal() {
        return Err(unavailable(format!(
            "there is no terminal to ask for the {secret}"
        )));
    }
    let line = terminal::ask_secret(question, MAX_PASSPHRASE_BYTES);
    let line = line.map_err(|error| match interrupt::arrived() {
        Some(_) => KeyError::new(ErrorKind::KeyUnavailable, "no passphrase was given"),
        None => unavailable(format!("cannot ask for the passphrase: {error}")),
    })?;
    passphrase(&line, "the terminal")
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
