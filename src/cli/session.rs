//! Where a request about snapshots and images goes.
//!
//! | the volume is | it goes to |
//! |---|---|
//! | mounted, and its daemon answers this user | the daemon, over the control socket |
//! | mounted by somebody else | `mkdir`, `rmdir`, `rename` and `readdir` in the mount, as far as they go; the daemon decides who may |
//! | not mounted | the volume, opened by this process under its lock |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control::ControlClient;
use super::error::{CliError, ExitCode};
use super::mount::open_when_free;
use super::paths::mount_point;
use super::request::{self, Kind, Outcome, Passphrase, Receiver, Request, ViewReport, Views};
use super::serve::serve;
use super::status::volume_of;
use super::wire;
use crate::fs::views::ViewError;
use crate::fs::{Filesystem, FilesystemOptions};
use crate::fuse::mountinfo::{MountInfo, mounts_of};
use crate::keys::PassphraseSource;
use crate::store::directory::DirectoryStore;
use crate::sys::identity::effective_user;
use crate::volume::{OpenOptions, Volume};

/// What it takes to open a volume that is not mounted.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// The platform keystore.
    pub keystore: PathBuf,
    /// Where the customer key's passphrase comes from.
    pub passphrase: PassphraseSource,
}

/// A volume that requests can be made of.
pub(super) struct Session {
    /// The volume's directory.
    pub volume: PathBuf,
    way: Way,
}

/// Who uses a volume.
pub(super) enum Used {
    /// A daemon that answers this user.
    Daemon(ControlClient),
    /// Somebody else, who has it mounted there.
    Mount(PathBuf),
    /// Nobody, as far as can be seen.
    No,
}

/// Finds a volume by its directory or by where it is mounted, and who uses it.
pub(super) fn find(path: &Path) -> Result<(PathBuf, Used), CliError> {
    let volume = volume_of(path)?;
    let named = MountInfo::at(&mount_point(path)).ok().flatten();
    let named = named.filter(MountInfo::is_ours);
    let mounts: Vec<MountInfo> = named
        .into_iter()
        .chain(mounts_of(&volume).unwrap_or_default())
        .collect();
    let owners = mounts.iter().filter_map(MountInfo::owner);
    let daemon = owners
        .chain([effective_user()])
        .find_map(|uid| ControlClient::connect(&volume, uid));
    let used = match (daemon, mounts.first()) {
        (Some(daemon), _) => Used::Daemon(daemon),
        (None, Some(mount)) => Used::Mount(mount.dir.clone()),
        (None, None) => Used::No,
    };
    Ok((volume, used))
}

/// Opens the volume below a filesystem.
pub(super) fn open_volume(path: &Path, writes: bool, keys: &Keys) -> Result<Volume, CliError> {
    let doing = || format!("cannot open the volume {}", path.display());
    let store = DirectoryStore::open(path).map_err(|error| CliError::io(doing(), &error))?;
    let options = OpenOptions {
        keystore: keys.keystore.clone(),
        passphrase: keys.passphrase.clone(),
        read_only: !writes,
        ..OpenOptions::default()
    };
    open_when_free(path, &Arc::new(store), &options)
        .map_err(|error| CliError::volume(doing(), &error))
}

enum Way {
    Daemon(ControlClient),
    Mount(PathBuf),
    Own(Arc<Filesystem>),
}

impl Session {
    /// Finds the way to a volume by its directory or by where it is mounted. `writes`: what will be
    /// asked changes the volume.
    pub(super) fn open(path: &Path, writes: bool, keys: &Keys) -> Result<Self, CliError> {
        let (volume, used) = find(path)?;
        let way = match used {
            Used::Daemon(daemon) => Way::Daemon(daemon),
            Used::Mount(dir) => Way::Mount(dir),
            Used::No => Way::Own(open_here(&volume, writes, keys)?),
        };
        Ok(Self { volume, way })
    }

    /// Asks, and hands on what is answered before the outcome.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        to: &mut dyn Receiver,
    ) -> Result<Outcome, CliError> {
        match &mut self.way {
            Way::Own(filesystem) => serve(filesystem, request, to),
            Way::Mount(dir) => in_mount(dir, request, to),
            Way::Daemon(daemon) => wire::ask(daemon, &for_daemon(request)?, None, to),
        }
    }

    /// All views of a kind, oldest first.
    pub(super) fn list(&mut self, kind: Kind) -> Result<Vec<ViewReport>, CliError> {
        let mut views = Views::default();
        self.ask(&Request::List { kind }, &mut views)?;
        Ok(views.0)
    }

    /// Lets go of the volume; what was changed is on disk when this returns.
    pub(super) fn close(self) -> Result<(), CliError> {
        match self.way {
            Way::Own(filesystem) => filesystem.close().map_err(|error| {
                let doing = format!("cannot close the volume {}", self.volume.display());
                CliError::filesystem(doing, &error)
            }),
            Way::Daemon(_) | Way::Mount(_) => Ok(()),
        }
    }
}

fn open_here(path: &Path, writes: bool, keys: &Keys) -> Result<Arc<Filesystem>, CliError> {
    let doing = || format!("cannot open the volume {}", path.display());
    let volume = open_volume(path, writes, keys)?;
    let options = FilesystemOptions {
        read_only: !writes,
        ..FilesystemOptions::default()
    };
    Filesystem::open(volume, options).map_err(|error| CliError::filesystem(doing(), &error))
}

/// The request as another process can do it: it has no terminal of this user's, and none of the
/// files that only this process has open.
fn for_daemon(request: &Request) -> Result<Request, CliError> {
    let mut request = request.clone();
    let file = match &mut request {
        Request::Deploy { passphrase, .. } => {
            if *passphrase == Passphrase::Prompt {
                *passphrase = Passphrase::None;
            }
            match passphrase {
                Passphrase::File(path) => Some(path.path()),
                _ => None,
            }
        }
        Request::Export {
            passphrase_file, ..
        } => passphrase_file.as_ref().map(request::PathBytes::path),
        _ => None,
    };
    match file {
        Some(path) if fs::metadata(&path).is_ok_and(|found| !found.is_file()) => {
            Err(CliError::new(
                ExitCode::Key,
                format!(
                    "{}: the passphrase file {} is no plain file",
                    request.doing(),
                    path.display()
                ),
            )
            .with_hint("the daemon that has the volume mounted reads it: name a plain file"))
        }
        _ => Ok(request),
    }
}

/// What plain calls can do in a mount whose daemon does not answer this user.
fn in_mount(dir: &Path, request: &Request, to: &mut dyn Receiver) -> Result<Outcome, CliError> {
    let place = |kind: Kind, name: &str| dir.join(kind.directory()).join(name);
    let refused = |kind: Kind, name: &str, error: io::Error| explain(request, kind, name, &error);
    match request {
        Request::Create {
            kind,
            name,
            from: None,
            description,
        } if description.is_empty() => {
            check_name(request, *kind, name)?;
            fs::create_dir(place(*kind, name)).map_err(|error| refused(*kind, name, error))?;
            Ok(Outcome::Created(only_named(*kind, name.clone())))
        }
        Request::Delete { kind, name } => {
            check_name(request, *kind, name)?;
            fs::remove_dir(place(*kind, name)).map_err(|error| refused(*kind, name, error))?;
            Ok(Outcome::Nothing)
        }
        Request::Rename {
            kind,
            name,
            to: new,
        } => {
            check_name(request, *kind, name)?;
            check_name(request, *kind, new)?;
            if fs::symlink_metadata(place(*kind, new)).is_ok() {
                return Err(refused(*kind, new, io::ErrorKind::AlreadyExists.into()));
            }
            fs::rename(place(*kind, name), place(*kind, new))
                .map_err(|error| refused(*kind, name, error))?;
            Ok(Outcome::Nothing)
        }
        Request::List { kind } => {
            let listed = fs::read_dir(dir.join(kind.directory()));
            for entry in listed.map_err(|error| refused(*kind, "", error))? {
                let entry = entry.map_err(|error| refused(*kind, "", error))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                to.view(only_named(*kind, name))
                    .map_err(|error| CliError::io(request.doing(), &error))?;
            }
            Ok(Outcome::Nothing)
        }
        _ => Err(CliError::new(
            ExitCode::System,
            format!("{}: its daemon does not answer this user", request.doing()),
        )
        .with_hint(WHO_MAY)),
    }
}

const WHO_MAY: &str = "root and the user who mounted it may; the owner of its root directory may \
                       make, delete, rename and list";

fn only_named(kind: Kind, name: String) -> ViewReport {
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

/// A name that would lead out of the directory is none.
fn check_name(request: &Request, kind: Kind, name: &str) -> Result<(), CliError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(CliError::usage(format!(
            "{}: {name:?} is no name for a {}",
            request.doing(),
            kind.name()
        )));
    }
    Ok(())
}

/// The same errors as those of the daemon, as far as the operating system carries them.
fn explain(request: &Request, kind: Kind, name: &str, error: &io::Error) -> CliError {
    let (kind, name) = (kind.into(), name.to_owned());
    let told = match error.raw_os_error() {
        Some(libc::ENOENT) => ViewError::NotFound { kind, name },
        Some(libc::EEXIST) => ViewError::Exists { kind, name },
        Some(libc::EBUSY) => ViewError::Busy { kind, name },
        Some(libc::EROFS) => ViewError::ReadOnly,
        Some(libc::EACCES | libc::EPERM) => {
            return CliError::io(request.doing(), error).with_hint(WHO_MAY);
        }
        _ if error.kind() == io::ErrorKind::AlreadyExists => ViewError::Exists { kind, name },
        _ => return CliError::io(request.doing(), error),
    };
    CliError::view(request.doing(), &told)
}
