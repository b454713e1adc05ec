//! Changes the passphrase of a private key's file, or encrypts one that had none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use tempfile::NamedTempFile;

use super::{encrypted_pem, open, read_bounded, refuse_shared};
use crate::keys::customer::pem::{self, PemKey};
use crate::keys::error::{ErrorKind, KeyError, while_doing};
use crate::keys::passphrase::PassphraseSource;
use crate::sys::wipe::with_secrets;

/// Replaces the file at `path` by the same private key, encrypted under the passphrase of `new`.
/// The key stays the same, so volumes are not affected. `old` is asked only if the key is encrypted
/// now.
///
/// The replacement is written beside the file, read back and decrypted, and takes the file's place
/// in one step: whenever the machine fails, one of the two is there, whole. Owner and mode stay. A
/// symbolic link is followed, and stays.
///
/// # Errors
/// Kind `Usage` if the file has no private RSA key or is no plain file, `WrongKey` if the old
/// passphrase is wrong, `KeyUnavailable` if a passphrase is not available, `Io` and `NoSpace` for
/// failures of the operating system. The file is unchanged then, unless only the sync of its
/// directory failed.
pub fn change_passphrase(
    path: &Path,
    old: &PassphraseSource,
    new: &PassphraseSource,
) -> Result<(), KeyError> {
    let file = open(path)?;
    let metadata = file
        .metadata()
        .map_err(while_doing("cannot read key file", path))?;
    if !metadata.is_file() {
        return Err(refused(path, "is no plain file"));
    }
    let text = read_bounded(&file, path)?;
    if pem::is_private(&text) {
        refuse_shared(&file, path)?;
    }
    let PemKey::Private(key) = with_secrets(|| pem::parse(&text, path, old))? else {
        let why = "has only the public half of a key, which needs no passphrase";
        return Err(refused(path, why).with_hint("name the file of the private key"));
    };
    let passphrase = new.obtain_new(path)?;
    let replacement = with_secrets(|| encrypted_pem(&key, &passphrase))?;
    let read_back =
        with_secrets(|| pem::parse_encrypted(replacement.as_bytes(), path, &passphrase))?;
    if read_back != *key {
        return Err(KeyError::new(ErrorKind::Io, "cannot encrypt the RSA key"));
    }
    // A path through the descriptor names the file itself, wherever links lead meanwhile.
    let target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(while_doing("cannot find key file", path))?;
    replace(&target, &file, replacement.as_bytes())
        .map_err(while_doing("cannot replace key file", &target))
}

/// Puts a file with `text`, and the owner and mode of `former`, in the place of `target`, which is
/// the same file as `former`. Durable on return.
fn replace(target: &Path, former: &File, text: &[u8]) -> io::Result<()> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    let metadata = former.metadata()?;
    let mut replacement = NamedTempFile::with_prefix_in(".bilayer-key-", directory)?;
    replacement.write_all(text)?;
    fchown(
        replacement.as_file(),
        Some(metadata.uid()),
        Some(metadata.gid()),
    )?;
    replacement
        .as_file()
        .set_permissions(metadata.permissions())?;
    replacement.as_file().sync_all()?;
    let now = fs::symlink_metadata(target)?;
    if (now.dev(), now.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(io::Error::other("another file has taken its place"));
    }
    replacement.persist(target)?;
    File::open(directory)?.sync_all()
}

fn refused(path: &Path, why: &str) -> KeyError {
    KeyError::new(
        ErrorKind::Usage,
        format!("the customer key file {} {why}", path.display()),
    )
}
