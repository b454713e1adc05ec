//! A key whose versions are files of one directory.
//!
//! `file:DIR/NAME` names such a key if `DIR/NAME` itself does not exist. New wraps are made to the
//! highest version that is enabled and whose time has come. An unwrap takes the version that has
//! the right public half. Of several candidates those are tried first that need no passphrase.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::versions::{self, Files, Number, Place, Versions};
use super::{FileKey, read_bounded, refuse_shared};
use crate::keys::customer::{CustomerKeyProvider, KeyVersion, WrappingKey, not_this_key, pem};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::KeyUri;
use crate::sys::wipe::with_secrets;

/// A key with versions.
pub(super) struct VersionedKey {
    uri: KeyUri,
    place: Place,
    passphrase: PassphraseSource,
    can_unwrap: bool,
    /// Files that were read, so that nobody is asked for a passphrase twice.
    opened: Mutex<BTreeMap<Number, Opened>>,
}

/// A file that was read, and the version in it.
struct Opened {
    stamp: Stamp,
    key: Arc<FileKey>,
}

/// Tells a changed or replaced file from the one that was read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len_bytes: u64,
    changed: (i64, i64),
}

impl VersionedKey {
    /// The key at `path`, which `uri` names; `None` if it has no version.
    pub(super) fn find(
        uri: &KeyUri,
        path: &Path,
        passphrase: &PassphraseSource,
    ) -> Result<Option<Self>, KeyError> {
        let Some(place) = Place::of(uri, path) else {
            return Ok(None);
        };
        let versions = place.list()?;
        let mut key = Self {
            uri: uri.clone(),
            place,
            passphrase: passphrase.clone(),
            can_unwrap: false,
            opened: Mutex::default(),
        };
        // A file that cannot be read counts as a private key, so that its error is seen.
        key.can_unwrap = versions.keys().any(|number| {
            let text = key.read(*number);
            text.map_or(true, |(text, _)| pem::is_private(&text))
        });
        Ok((!versions.is_empty()).then_some(key))
    }

    /// Contents of the file of a version, and which file that is.
    fn read(&self, number: Number) -> Result<(Zeroizing<Vec<u8>>, Stamp), KeyError> {
        let path = self.place.path(number, "pem");
        let file = versions::open(&path)?;
        let metadata = file
            .metadata()
            .map_err(|error| super::unavailable(&path, error))?;
        let text = read_bounded(&file, &path)?;
        if pem::is_private(&text) {
            refuse_shared(&file, &path)?;
        }
        let stamp = Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            len_bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        Ok((text, stamp))
    }

    /// The version in its file. With `may_ask`, a passphrase is requested if it is needed;
    /// otherwise the result is `None` then.
    fn load(&self, number: Number, may_ask: bool) -> Result<Option<Arc<FileKey>>, KeyError> {
        let (text, stamp) = self.read(number)?;
        if let Some(opened) = self.opened.lock().get(&number)
            && opened.stamp == stamp
        {
            return Ok(Some(opened.key.clone()));
        }
        if !may_ask && pem::is_encrypted(&text) {
            return Ok(None);
        }
        let path = self.place.path(number, "pem");
        let key = Arc::new(FileKey::parse(&self.uri, &text, &path, &self.passphrase)?);
        let opened = Opened {
            stamp,
            key: key.clone(),
        };
        self.opened.lock().insert(number, opened);
        Ok(Some(key))
    }

    /// As [`Self::load`], with a passphrase if needed. The public half beside must be its own.
    fn load_private(&self, number: Number, files: Files) -> Result<Arc<FileKey>, KeyError> {
        let key = self
            .load(number, true)?
            .ok_or_else(|| self.deleted(number))?;
        if files.has_public && !self.read_public(number)?.is_same_key(&key.key) {
            let path = self.place.path(number, "pub.pem");
            return Err(KeyError::new(
                ErrorKind::Usage,
                format!(
                    "{} is not the public half of version {number} of {}",
                    path.display(),
                    self.uri
                ),
            )
            .with_hint("make it anew: openssl pkey -in NAME.vN.pem -pubout -out NAME.vN.pub.pem"));
        }
        Ok(key)
    }

    fn read_public(&self, number: Number) -> Result<WrappingKey, KeyError> {
        let path = self.place.path(number, "pub.pem");
        let text = read_bounded(&versions::open(&path)?, &path)?;
        let key = pem::parse(&text, &path, &PassphraseSource::None)?;
        pem::wrapping_key(key.public(), &path)
    }

    /// The public half, if that needs no passphrase.
    fn public_half(&self, number: Number, files: Files) -> Result<Option<WrappingKey>, KeyError> {
        match self.load(number, false)? {
            Some(key) => Ok(Some(key.key.clone())),
            None if files.has_public => self.read_public(number).map(Some),
            None => Ok(None),
        }
    }

    /// The version that has the public half of `wanted`. Its name comes from the superblock, so it
    /// decides only which file is looked at first, and the kind of error.
    fn find_version(&self, versions: &Versions, wanted: &KeyVersion) -> Result<Number, KeyError> {
        let named = wanted.name.as_deref().and_then(Number::parse);
        let mut order: Vec<Number> = versions.keys().rev().copied().collect();
        order.sort_by_key(|number| Some(*number) != named);
        let mut first_error = None;
        let mut encrypted = Vec::new();
        for number in order {
            match self.public_half(number, versions[&number]) {
                Ok(Some(key)) if key.is_same_key(&wanted.key) => return Ok(number),
                Ok(Some(_)) => {}
                Ok(None) => encrypted.push(number),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        if let Some(named) = named
            && !versions.contains_key(&named)
        {
            return Err(self.deleted(named));
        }
        for number in encrypted {
            if let Err(error) = self
                .place
                .check(number, versions[&number], Timestamp::now())
            {
                first_error = first_error.or(Some(error));
                continue;
            }
            let key = self.load_private(number, versions[&number])?;
            if key.key.is_same_key(&wanted.key) {
                return Ok(number);
            }
        }
        Err(first_error.unwrap_or_else(|| not_this_key(&self.uri, wanted)))
    }

    fn deleted(&self, number: Number) -> KeyError {
        let path = self.place.path(number, "pem");
        KeyError::new(
            ErrorKind::KeyDeleted,
            format!(
                "version {number} of {} was deleted: there is no {}",
                self.uri,
                path.display()
            ),
        )
    }

    fn list(&self) -> Result<Versions, KeyError> {
        let versions = self.place.list()?;
        if versions.is_empty() {
            return Err(KeyError::new(
                ErrorKind::KeyDeleted,
                format!("{} has no version any more", self.uri),
            ));
        }
        Ok(versions)
    }
}

impl CustomerKeyProvider for VersionedKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        let versions = self.list()?;
        let now = Timestamp::now();
        let mut refused = None;
        for (&number, &files) in versions.iter().rev() {
            match self.place.check_for_new(number, files, now) {
                Ok(None) => {
                    let error = self.place.check(number, files, now).err();
                    refused = refused.or(error);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::KeyDisabled => {
                    refused = refused.or(Some(error));
                    continue;
                }
                checked => checked?,
            };
            let key = match self.public_half(number, files)? {
                Some(key) => key,
                None => with_secrets(|| self.load_private(number, files))?
                    .key
                    .clone(),
            };
            return Ok(KeyVersion {
                name: Some(number.to_string()),
                key,
            });
        }
        Err(refused.unwrap_or_else(|| {
            KeyError::new(
                ErrorKind::KeyDisabled,
                format!("{} has no version that is enabled", self.uri),
            )
        }))
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        with_secrets(|| {
            let versions = self.list()?;
            let number = self.find_version(&versions, version)?;
            let files = versions[&number];
            self.place.check(number, files, Timestamp::now())?;
            self.load_private(number, files)?
                .unwrap(version, ciphertext)
        })
    }

    fn can_unwrap(&self) -> bool {
        self.can_unwrap
    }
}

impl fmt::Debug for VersionedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VersionedKey")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
