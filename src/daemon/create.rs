//! `bilayer create` and `bilayer keygen`.

use std::fs::Permissions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audit::{self, Record};
use crate::diagnostics::UserError;
use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::Owner;
use crate::ids::VolumeId;
use crate::keys::{KeyUri, PassphraseSource};
use crate::store::Store;
use crate::store::directory::DirectoryStore;
use crate::sys::identity::effective_user;
use crate::sys::process::effective_gid;
use crate::volume::create::refuse_occupied_directory;
use crate::volume::{self, CreateOptions};

/// What to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NewVolume {
    /// Its directory, absolute; made where missing, empty otherwise.
    pub path: PathBuf,
    /// The customer key; `None` for a platform-managed volume.
    pub customer_key: Option<KeyUri>,
    /// Largest size of the contents.
    pub size_bytes: Option<u64>,
    /// The platform keystore.
    pub keystore: PathBuf,
    /// Where the customer key's passphrase comes from.
    pub passphrase: PassphraseSource,
}

/// Makes a volume with an empty filesystem, whose root belongs to who makes it.
pub(crate) fn create(new: &NewVolume) -> Result<VolumeId, UserError> {
    let doing = || format!("cannot make the volume {}", new.path.display());
    let _about = audit::for_volume(&new.path);
    let place = Place::take(&new.path, doing())
        .inspect_err(|error| Record::new("create-volume").refused(&error.message))?;
    let options = CreateOptions {
        customer_key: new.customer_key.clone(),
        size_bytes: new.size_bytes,
        keystore: new.keystore.clone(),
        passphrase: new.passphrase.clone(),
    };
    let owner = Owner {
        uid: effective_user(),
        gid: effective_gid(),
    };
    let made = volume::create_empty(place.store(), &options, &mut |fresh| {
        Filesystem::format(fresh, owner).map_err(|error| match error.errno() {
            // By whatever way it came: so that it is told as what it is.
            Errno::ENOSPC => io::Error::from_raw_os_error(Errno::ENOSPC.code()).into(),
            _ => error.into(),
        })
    });
    let id = made.map_err(|error| UserError::volume(doing(), &error))?;
    place.keep();
    Ok(id)
}

/// The directory of a volume that is being made. Unless it is kept it is left as it was found.
pub(crate) struct Place {
    path: PathBuf,
    store: Arc<DirectoryStore>,
    /// It was made for this, and goes if nothing comes of it.
    fresh: bool,
    /// The mode that it had when others could open it.
    before: Option<Permissions>,
}

impl Place {
    /// An absolute path at which there is nothing, or a directory with nothing in it.
    pub(crate) fn take(path: &Path, doing: String) -> Result<Self, UserError> {
        if let Err(error) = refuse_occupied_directory(path) {
            return Err(UserError::volume(doing, &error));
        }
        let fresh = !path.exists();
        match DirectoryStore::open_or_create(path) {
            Ok(store) => Ok(Self {
                path: path.to_path_buf(),
                before: store.restrict_to_owner(),
                store: Arc::new(store),
                fresh,
            }),
            Err(error) => Err(UserError::io(doing, &error)),
        }
    }

    /// The directory as a store.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    /// The volume was made.
    pub(crate) fn keep(mut self) {
        self.fresh = false;
        self.before = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = self.store.set_permissions(before);
        }
        if self.fresh {
            // Goes only if it is empty.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}
