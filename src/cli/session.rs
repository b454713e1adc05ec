//! Performs operations on snapshots and images: where the volume is held.
//!
//! - The volume is mounted, and its daemon proves it ([`crate::control::locate`]): the daemon
//!   performs the operation, over the control socket.
//! - The command named a mount of root or of this user, and its daemon does not answer this user:
//!   this process uses `mkdir`, `rmdir`, `rename` and `readdir` in that mount, if they suffice. The
//!   daemon decides whether the user may.
//! - A process that cannot be asked holds the volume: the operation is refused.
//! - The volume is not mounted: this process opens it under its lock.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audit;
use crate::control::client::ControlClient;
use crate::control::directory::DirectoryId;
use crate::control::locate::{Holder, Located, NamedMount, find};
use crate::control::report::ViewReport;
use crate::control::request::{self, Kind, Operation, Passphrase};
use crate::control::response::{Outcome, Receiver, Views};
use crate::control::wire::VERSION_HINT;
use crate::daemon::mount::open_with_retry;
use crate::daemon::operations::perform;
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::snapshots::{self, ReadOnlyBecause, ViewError};
use crate::fs::{Filesystem, FilesystemOptions};
use crate::keys::PassphraseSource;
use crate::store::directory::DirectoryStore;
use crate::sys::location::Location;
use crate::volume::{OpenOptions, Volume};

/// The sources of the keys that open a volume that is not mounted.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// The platform keystore.
    pub(crate) keystore: PathBuf,
    /// Where the customer key's passphrase comes from.
    pub(crate) passphrase: PassphraseSource,
}

/// A volume on which operations can be performed.
pub(crate) struct Session {
    /// The volume's directory, for people.
    pub(crate) volume: PathBuf,
    /// The id of that directory, if it is known.
    pub(crate) directory: Option<DirectoryId>,
    /// Device number of its mount, if a daemon has proved that it serves it.
    pub(crate) mount: Option<u64>,
    backend: Backend,
}

/// What the operations of a command do to the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// They only read it.
    Read,
    /// They may change it.
    Write,
}

/// Opens a volume without its filesystem.
///
/// # Errors
/// The volume is in use, a key is missing or refused, or the volume is not authentic.
pub(crate) fn open_volume(
    located: &Located,
    access: Access,
    keys: &Keys,
) -> Result<Volume, UserError> {
    let doing = || format!("cannot open the volume {}", located.path.display());
    audit::set_volume(&located.path);
    let store = DirectoryStore::open(&located.access_path()?)
        .map_err(|error| UserError::io(doing(), &error))?;
    let options = OpenOptions {
        keystore: keys.keystore.clone(),
        path: Some(located.path.clone()),
        named: located.named.clone(),
        passphrase: keys.passphrase.clone(),
        read_only: access == Access::Read,
        ..OpenOptions::default()
    };
    open_with_retry(located.directory.as_ref(), &Arc::new(store), &options)
        .map_err(|error| UserError::volume(doing(), &error))
}

/// The process or interface that performs the operations.
enum Backend {
    Daemon(ControlClient),
    Mount(NamedMount),
    Own(Arc<Filesystem>),
}

impl Session {
    /// Finds a volume by its directory or by where it is mounted.
    ///
    /// # Errors
    /// There is no volume, it cannot be opened, or its holder cannot be asked.
    pub(crate) fn open(path: &Path, access: Access, keys: &Keys) -> Result<Self, UserError> {
        let mut located = find(path)?;
        let mut mounted_on = None;
        let holder = std::mem::replace(&mut located.holder, Holder::Nobody);
        let backend = match holder {
            Holder::Daemon { control, mount } => {
                mounted_on = mount;
                Backend::Daemon(control)
            }
            Holder::Mount(mount) => Backend::Mount(mount),
            Holder::Unknown(error) => return Err(error),
            Holder::Nobody => Backend::Own(open_here(&located, access, keys)?),
        };
        Ok(Self {
            volume: located.path,
            directory: located.directory.map(|directory| directory.id),
            mount: mounted_on,
            backend,
        })
    }

    /// Performs an operation and passes intermediate responses to `to`.
    ///
    /// # Errors
    /// The operation fails, or the daemon does not answer.
    pub(crate) fn ask(
        &mut self,
        operation: &Operation,
        to: &mut dyn Receiver,
    ) -> Result<Outcome, UserError> {
        match &mut self.backend {
            Backend::Own(filesystem) => perform(filesystem, operation, to),
            Backend::Mount(mount) => perform_in_mount(mount, operation, to),
            Backend::Daemon(daemon) => daemon.perform(&for_daemon(operation)?, None, to),
        }
    }

    /// All views of a kind, oldest first.
    ///
    /// # Errors
    /// The views cannot be read, or the daemon does not answer.
    pub(crate) fn list(&mut self, kind: Kind) -> Result<Vec<ViewReport>, UserError> {
        let mut views = Views::default();
        self.ask(&Operation::List { kind }, &mut views)?;
        Ok(views.0)
    }

    /// Releases the volume. All changes are on disk when this returns.
    ///
    /// # Errors
    /// The filesystem cannot be closed cleanly.
    pub(crate) fn close(self) -> Result<(), UserError> {
        match self.backend {
            Backend::Own(filesystem) => filesystem.close().map_err(|error| {
                let doing = format!("cannot close the volume {}", self.volume.display());
                UserError::filesystem(doing, &error)
            }),
            Backend::Daemon(_) | Backend::Mount(_) => Ok(()),
        }
    }
}

/// The error for an outcome that does not belong to the operation.
pub(crate) fn unexpected_outcome(operation: &Operation, outcome: &Outcome) -> UserError {
    UserError::new(
        ExitCode::System,
        format!("{}: unexpected answer {outcome:?}", operation.doing()),
    )
    .with_hint(VERSION_HINT)
}

fn open_here(located: &Located, access: Access, keys: &Keys) -> Result<Arc<Filesystem>, UserError> {
    let doing = || format!("cannot open the volume {}", located.path.display());
    let volume = open_volume(located, access, keys)?;
    let options = FilesystemOptions {
        read_only: access == Access::Read,
        ..FilesystemOptions::default()
    };
    Filesystem::open(volume, options).map_err(|error| UserError::filesystem(doing(), &error))
}

/// Changes an operation so that the daemon can perform it: the daemon has neither this user's
/// terminal nor the files that only this process has open.
///
/// # Errors
/// A passphrase file is no plain file, such as a pipe of this process.
fn for_daemon(operation: &Operation) -> Result<Operation, UserError> {
    let mut operation = operation.clone();
    let files = match &mut operation {
        Operation::Deploy { passphrase, .. } => [without_terminal(passphrase), None],
        Operation::Export {
            passphrase_file,
            passphrase,
            ..
        } => {
            let transport = passphrase_file.as_ref().map(request::PathBytes::path);
            [without_terminal(passphrase), transport]
        }
        _ => [None, None],
    };
    let is_special = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    match files.into_iter().flatten().find(is_special) {
        Some(path) => Err(UserError::new(
            ExitCode::Key,
            format!(
                "{}: the passphrase file {} is no plain file",
                operation.doing(),
                path.display()
            ),
        )
        .with_hint("the daemon that has the volume mounted reads it: name a plain file")),
        None => Ok(operation),
    }
}

/// Turns a prompt into no passphrase, for a process without a terminal. Returns the passphrase's
/// file, if there is one.
fn without_terminal(passphrase: &mut Passphrase) -> Option<PathBuf> {
    if *passphrase == Passphrase::Prompt {
        *passphrase = Passphrase::None;
    }
    match passphrase {
        Passphrase::File(path) => Some(path.path()),
        _ => None,
    }
}

/// Performs an operation by system calls, in a mount whose daemon does not answer this user.
fn perform_in_mount(
    mount: &NamedMount,
    operation: &Operation,
    to: &mut dyn Receiver,
) -> Result<Outcome, UserError> {
    let kind = match operation {
        Operation::Create { kind, .. }
        | Operation::Delete { kind, .. }
        | Operation::Rename { kind, .. }
        | Operation::List { kind } => *kind,
        _ => Kind::Snapshot,
    };
    // Opened relative to the named mount, which is held open, and verified to be in it: mounts and
    // renames in the meantime cannot redirect it.
    let dir = Location::open_at(&mount.location, Path::new(kind.directory()))
        .and_then(|dir| check_in_mount(mount, kind, dir))
        .map_err(|error| missing_views_directory(operation, kind, &error))?;
    let dir = dir.fixed_path();
    let path_of = |name: &str| dir.join(name);
    let refused = |name: &str, error: io::Error| explain(operation, kind, name, &error);
    match operation {
        Operation::Create {
            name,
            from: None,
            description,
            ..
        } if description.is_empty() => {
            check_new_name(operation, name)?;
            fs::create_dir(path_of(name)).map_err(|error| refused(name, error))?;
            Ok(Outcome::Created(view_with_name(kind, name.clone())))
        }
        Operation::Delete { name, .. } => {
            check_name(operation, kind, name)?;
            fs::remove_dir(path_of(name)).map_err(|error| refused(name, error))?;
            Ok(Outcome::Nothing)
        }
        Operation::Rename { name, to: new, .. } => {
            check_name(operation, kind, name)?;
            check_new_name(operation, new)?;
            if fs::symlink_metadata(path_of(new)).is_ok() {
                return Err(refused(new, io::ErrorKind::AlreadyExists.into()));
            }
            fs::rename(path_of(name), path_of(new)).map_err(|error| refused(name, error))?;
            Ok(Outcome::Nothing)
        }
        Operation::List { .. } => {
            for entry in fs::read_dir(&dir).map_err(|error| refused("", error))? {
                let entry = entry.map_err(|error| refused("", error))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                to.view(view_with_name(kind, name))
                    .map_err(|error| UserError::io(operation.doing(), &error))?;
            }
            Ok(Outcome::Nothing)
        }
        _ => Err(UserError::new(
            ExitCode::System,
            format!(
                "{}: its daemon does not answer this user",
                operation.doing()
            ),
        )
        .with_hint(PERMITTED_HINT)),
    }
}

/// Refuses another filesystem mounted over the directory, and an ordinary directory of that name:
/// a directory created in there would be no snapshot.
fn check_in_mount(mount: &NamedMount, kind: Kind, dir: Location) -> io::Result<Location> {
    if dir.info()?.mount_id != mount.info.id {
        Err(io::Error::other("something else is mounted there"))
    } else if fs::metadata(dir.fixed_path())?.ino()
        != crate::fs::types::NodeId::of_views(kind.into()).0
    {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(dir)
    }
}

/// The error if the directory of views cannot be opened: then only the daemon could help.
fn missing_views_directory(operation: &Operation, kind: Kind, error: &io::Error) -> UserError {
    if error.kind() != io::ErrorKind::NotFound {
        return explain(operation, kind, "", error);
    }
    let message = format!(
        "{}: its daemon does not answer this user, and there is no {} in the mount",
        operation.doing(),
        kind.directory()
    );
    UserError::new(ExitCode::System, message).with_hint(PERMITTED_HINT)
}

const PERMITTED_HINT: &str = "root and the user who mounted it may; the owner of its root \
                       directory may make, delete, rename and list";

fn view_with_name(kind: Kind, name: String) -> ViewReport {
    ViewReport {
        kind,
        name,
        created: None,
        generation: None,
        used_bytes: None,
        refers_bytes: None,
        inodes: None,
        from: None,
        description: String::new(),
    }
}

/// Refuses an invalid new name with its reason, which the kernel would not give.
fn check_new_name(operation: &Operation, name: &str) -> Result<(), UserError> {
    snapshots::check_name(name).map_err(|error| UserError::view(operation.doing(), &error))
}

/// Refuses a name that would lead out of the directory.
fn check_name(operation: &Operation, kind: Kind, name: &str) -> Result<(), UserError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(UserError::usage(format!(
            "{}: {name:?} is no name for a {}",
            operation.doing(),
            kind.name()
        ))
        .with_hint(format!(
            "see which there are: bilayer {} list VOLUME",
            kind.name()
        )));
    }
    Ok(())
}

/// Translates a failed system call into the error that the daemon would have reported, as far as
/// the error number identifies it.
fn explain(operation: &Operation, kind: Kind, name: &str, error: &io::Error) -> UserError {
    let (kind, name) = (kind.into(), name.to_owned());
    let view_error = match error.raw_os_error() {
        Some(libc::ENOENT) => ViewError::NotFound { kind, name },
        Some(libc::EEXIST) => ViewError::Exists { kind, name },
        Some(libc::EBUSY) => ViewError::Busy { kind, name },
        Some(libc::EROFS) => ViewError::ReadOnly(ReadOnlyBecause::Unknown),
        Some(libc::EACCES | libc::EPERM) => {
            return UserError::io(operation.doing(), error).with_hint(PERMITTED_HINT);
        }
        _ if error.kind() == io::ErrorKind::AlreadyExists => ViewError::Exists { kind, name },
        _ => return UserError::io(operation.doing(), error),
    };
    UserError::view(operation.doing(), &view_error)
}
