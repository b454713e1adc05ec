//! Creating a volume, for `bilayer create` and `bilayer mount --create`.

use std::fs::Permissions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::new_keystore::NewKeystore;
use crate::audit::{self, Record};
use crate::diagnostics::UserError;
use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::Owner;
use crate::ids::VolumeId;
use crate::keys::{KeyUri, PassphraseSource};
use crate::store::Store;
use crate::store::directory::DirectoryStore;
use crate::sys::identity::{effective_group, effective_user};
use crate::volume::create::refuse_occupied_directory;
use crate::volume::{self, CreateOptions};

/// The volume to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NewVolume {
    /// Its directory, absolute: created if missing, empty otherwise.
    pub(crate) path: PathBuf,
    /// The customer key; `None` for a platform-managed volume.
    pub(crate) customer_key: Option<KeyUri>,
    /// Largest size of the contents.
    pub(crate) size_bytes: Option<u64>,
    /// The platform keystore.
    pub(crate) keystore: PathBuf,
    /// The source of the customer key's passphrase.
    pub(crate) passphrase: PassphraseSource,
}

/// Creates a volume with an empty filesystem, whose root directory belongs to this user.
///
/// # Errors
/// The directory is occupied or cannot be used, or a key is missing or refused.
pub(crate) fn create(new: &NewVolume) -> Result<VolumeId, UserError> {
    let doing = || format!("cannot make the volume {}", new.path.display());
    let _about = audit::for_volume(&new.path);
    let new_keystore = NewKeystore::watch(&new.keystore);
    let directory = NewVolumeDirectory::claim(&new.path, doing())
        .inspect_err(|error| Record::new("create-volume").refused(&error.message))?;
    let options = CreateOptions {
        customer_key: new.customer_key.clone(),
        size_bytes: new.size_bytes,
        keystore: new.keystore.clone(),
        passphrase: new.passphrase.clone(),
    };
    let owner = Owner {
        uid: effective_user(),
        gid: effective_group(),
    };
    let made = volume::create_empty(directory.store(), &options, &mut |created| {
        Filesystem::format(created, owner).map_err(|error| match error.errno() {
            // Reported as a full disk, whichever error contains it.
            Errno::ENOSPC => io::Error::from_raw_os_error(Errno::ENOSPC.code()).into(),
            _ => error.into(),
        })
    });
    let id = made.map_err(|error| UserError::volume(doing(), &error))?;
    directory.keep();
    new_keystore.announce();
    Ok(id)
}

/// The directory of a volume that is being created. Dropping it restores the former state, unless
/// [`Self::keep`] was called.
pub(crate) struct NewVolumeDirectory {
    path: PathBuf,
    store: Arc<DirectoryStore>,
    /// The directory was created for the volume, and is removed if the volume is not created.
    created: bool,
    /// Its former permissions, if others could open it.
    former_permissions: Option<Permissions>,
}

impl NewVolumeDirectory {
    /// Claims an absolute path at which there is nothing or an empty directory. `doing` begins the
    /// message of an error.
    ///
    /// # Errors
    /// The directory is occupied, or cannot be created or opened.
    pub(crate) fn claim(path: &Path, doing: String) -> Result<Self, UserError> {
        if let Err(error) = refuse_occupied_directory(path) {
            return Err(UserError::volume(doing, &error));
        }
        let created = !path.exists();
        match DirectoryStore::open_or_create(path) {
            Ok(store) => Ok(Self {
                path: path.to_path_buf(),
                former_permissions: store.restrict_to_owner(),
                store: Arc::new(store),
                created,
            }),
            Err(error) => Err(UserError::io(doing, &error)),
        }
    }

    /// The directory as a store.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    /// Keeps the directory: the volume was created.
    pub(crate) fn keep(mut self) {
        self.created = false;
        self.former_permissions = None;
    }
}

impl Drop for NewVolumeDirectory {
    fn drop(&mut self) {
        if let Some(former_permissions) = self.former_permissions.take() {
            let _ = self.store.set_permissions(former_permissions);
        }
        if self.created {
            // Succeeds only if it is empty.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}
