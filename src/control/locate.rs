//! Which volume a path names, and which process holds it. A path is looked up once, and the result
//! is held open: a mount of this filesystem, known by its number and its device, or a volume's
//! directory, known by device and inode. Nothing is decided by a text, such as the source of a
//! mount in `/proc/self/mountinfo`, or by a second lookup of the path.
//!
//! | the path leads to | the daemon is looked for by | it must prove that it has |
//! |---|---|---|
//! | the root of one of our mounts | the mount's device | that mount, and its volume's lock |
//! | a directory | device and inode of the directory | the lock of that directory |
//!
//! If no daemon proves itself, [`Holder`] says what may be done without one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::address::Address;
use super::client::ControlClient;
use super::directory::{DirectoryId, VolumeDirectory};
use super::mount_state::{self, MountState};
use super::obstacle::{Obstacle, refusal};
use super::paths::possible_paths;
use super::proof::{self, MountServer, ProvenDaemon};
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fuse::own_mounts;
use crate::sys::deadline::{Deadlines, within_notifying};
use crate::sys::identity::effective_user;
use crate::sys::location::Location;
use crate::sys::mountinfo::MountInfo;

/// How long a daemon may take to connect and prove itself.
const PROOF_TIMEOUT: Duration = Duration::from_secs(8);
/// After how long a notice says what the command waits for.
const NOTICE_AFTER: Duration = Duration::from_secs(2);
/// How long a volume may be locked by a process that cannot be asked yet or any more: a daemon that
/// starts or ends.
const TRANSIENT_LOCK: Duration = Duration::from_secs(3);
/// Time between two attempts.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The volume that a path names.
#[derive(Debug)]
pub(crate) struct Located {
    /// Its directory, for messages; the mount if its volume is not known.
    pub(crate) path: PathBuf,
    /// The spellings of its path, which may contain symbolic links.
    pub(crate) named: Vec<PathBuf>,
    /// Its directory; `None` for a mount whose daemon does not answer.
    pub(crate) directory: Option<VolumeDirectory>,
    pub(crate) holder: Holder,
}

/// The process that holds a volume.
#[derive(Debug)]
pub(crate) enum Holder {
    /// A daemon that has proved that it holds the volume.
    Daemon {
        control: ControlClient,
        /// Device number of its mount.
        mount: Option<u64>,
    },
    /// A mount of root or of this user, whose daemon does not answer this user. Operations in the
    /// mount reach the right volume all the same.
    Mount(NamedMount),
    /// A process that cannot be asked. The error says why.
    Unknown(UserError),
    /// No process, as far as can be seen; opening the volume decides.
    Nobody,
}

/// A mount that was named, held open.
#[derive(Debug)]
pub(crate) struct NamedMount {
    pub(crate) location: Location,
    pub(crate) info: MountInfo,
}

impl Located {
    fn proven(daemon: ProvenDaemon) -> Self {
        Self {
            path: daemon.directory.path.clone(),
            named: Vec::new(),
            directory: Some(daemon.directory),
            holder: Holder::Daemon {
                control: daemon.control,
                mount: daemon.mount,
            },
        }
    }

    /// A path by which this process reaches the volume's directory, whatever its name is now.
    ///
    /// # Errors
    /// The volume's directory is not known, since its daemon does not answer.
    pub(crate) fn access_path(&self) -> Result<PathBuf, UserError> {
        let directory = self.directory.as_ref();
        directory.map(VolumeDirectory::access_path).ok_or_else(|| {
            UserError::new(
                ExitCode::System,
                format!(
                    "cannot tell which volume is mounted on {}: its daemon does not answer this \
                     user",
                    self.path.display()
                ),
            )
            .with_hint("name the volume's directory")
        })
    }
}

/// Finds the volume that a path names.
///
/// # Errors
/// The path leads nowhere, to no directory, or through a mount that does not answer; or it is a
/// bilayer mount that cannot be used without its daemon, and no daemon has proved that it serves
/// it.
pub(crate) fn find(path: &Path) -> Result<Located, UserError> {
    let failed =
        |error: io::Error| UserError::io(format_args!("cannot find {}", path.display()), &error);
    let location = mount_state::open_path(path)?;
    match mount_state::mount_at(&location).map_err(failed)? {
        Some(info) => find_mounted(location, info),
        None => find_directory(&location, path),
    }
}

/// The volume that a mount's source names. The source can be any text: it is trusted for mounts of
/// root and of this user, and only for operations that do not write.
///
/// # Errors
/// The source is not trusted, or [`find`] fails.
pub(crate) fn find_by_mount_source(mount: &MountInfo) -> Result<Located, UserError> {
    let trusted = mount
        .owner()
        .is_some_and(|owner| owner == 0 || owner == effective_user());
    if trusted && mount.source.is_absolute() {
        find(&mount.source)
    } else {
        let dir = mount.dir.display();
        let message = format!("cannot tell which volume was mounted on {dir}");
        Err(UserError::new(ExitCode::System, message).with_hint("name the volume's directory"))
    }
}

fn find_mounted(location: Location, info: MountInfo) -> Result<Located, UserError> {
    match daemon_of_mount(&location, &info) {
        Ok(daemon) => Ok(Located::proven(daemon)),
        Err(obstacles) => {
            let failure = format!("cannot tell which volume is on {}", info.dir.display());
            let state = mount_state::mount_state(&location);
            if state == MountState::Dead {
                Err(mount_state::dead_mount_error(
                    &info.dir.display().to_string(),
                    &info,
                ))
            } else if !can_use_without_daemon(&info, &obstacles) {
                Err(refusal(failure, &obstacles))
            } else if state == MountState::Silent {
                Err(refusal(failure, &[Obstacle::Silent]))
            } else {
                Ok(Located {
                    path: info.dir.clone(),
                    named: Vec::new(),
                    directory: None,
                    holder: Holder::Mount(NamedMount { location, info }),
                })
            }
        }
    }
}

/// True if a mount can be used although no daemon has proved that it serves it: a mount of root or
/// of this user whose daemon this user may not ask. A mount whose daemon is silent, or answers
/// without a proof, is not used.
fn can_use_without_daemon(mount: &MountInfo, obstacles: &[Obstacle]) -> bool {
    let trusted = mount
        .owner()
        .is_some_and(|owner| owner == 0 || owner == effective_user());
    let could_not_ask = |obstacle: &Obstacle| {
        matches!(
            obstacle,
            Obstacle::Denied(_) | Obstacle::UntrustedDirectory { .. } | Obstacle::Foreign { .. }
        )
    };
    trusted && mount.root == Path::new("/") && obstacles.iter().all(could_not_ask)
}

/// Finds the daemon of a mount.
///
/// # Errors
/// The reasons why no daemon could be asked; an empty list if there is no socket.
pub(crate) fn daemon_of_mount(
    location: &Location,
    mount: &MountInfo,
) -> Result<ProvenDaemon, Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let Ok(info) = location.info() else {
        return Err(obstacles);
    };
    for user in candidate_users_of_mount(mount) {
        if !may_ask(user) {
            obstacles.push(Obstacle::Denied(user));
            continue;
        }
        match connect_and_prove(Address::Mount(info.device), user, None, &mut obstacles) {
            Some(daemon) if daemon.mount == Some(info.device) => return Ok(daemon),
            Some(_) => obstacles.push(Obstacle::Unproven("it has another mount".to_owned())),
            None => {}
        }
    }
    Err(obstacles)
}

/// Finds the daemon that serves a mount, to wait until it has closed its volume. The claim of a
/// daemon of root or of this user suffices; any other daemon must prove it.
///
/// # Errors
/// The reasons why no daemon could be asked; an empty list if there is no socket.
pub(crate) fn server_of_mount(
    location: &Location,
    mount: &MountInfo,
) -> Result<MountServer, Vec<Obstacle>> {
    let (me, owner) = (effective_user(), mount.owner().unwrap_or_default());
    if owner != 0 && owner != me {
        let proven = daemon_of_mount(location, mount)?;
        return Ok(MountServer {
            control: proven.control,
            directory: proven.directory.id,
        });
    }
    let mut obstacles = Vec::new();
    let Ok(info) = location.info() else {
        return Err(obstacles);
    };
    let device = info.device;
    for user in candidate_users_of_mount(mount) {
        let server = with_connection(
            Address::Mount(device),
            user,
            &mut obstacles,
            move |control| proof::request_mount_claim(control, device),
        );
        if let Some(server) = server {
            return Ok(server);
        }
    }
    Err(obstacles)
}

/// The users whose daemons may serve a mount.
fn candidate_users_of_mount(mount: &MountInfo) -> Vec<u32> {
    let mut users = vec![mount.owner().unwrap_or_default(), 0];
    users.dedup();
    users
}

/// Only root trusts daemons of other users.
fn may_ask(user: u32) -> bool {
    let me = effective_user();
    me == 0 || user == 0 || user == me
}

/// The users whose daemons are asked for a volume.
fn candidate_users(directory: &VolumeDirectory) -> Vec<u32> {
    let me = effective_user();
    let mut users = vec![me, 0];
    if me == 0 {
        users = vec![0, directory.owner];
    }
    users.dedup();
    users
}

fn find_directory(location: &Location, path: &Path) -> Result<Located, UserError> {
    let directory = VolumeDirectory::at(location)
        .map_err(|error| UserError::io(format_args!("cannot open {}", path.display()), &error))?;
    let begin = Instant::now();
    let holder = loop {
        let obstacles = match daemon_of_directory(&directory) {
            Ok(daemon) => return Ok(Located::proven(daemon)),
            Err(obstacles) => obstacles,
        };
        let locked = directory.is_locked();
        let mounts = hinted_mounts(&directory);
        let is_claimed = obstacles.iter().any(|o| matches!(o, Obstacle::Unproven(_)));
        match locked {
            Ok(false) if !is_claimed => {
                warn_of_untrusted_directories(&obstacles);
                break Holder::Nobody;
            }
            // Opening the volume waits until it is free, or reports that it is in use.
            _ if obstacles.is_empty() && mounts.is_empty() => break Holder::Nobody,
            Ok(_) if begin.elapsed() < TRANSIENT_LOCK && !is_silent(&obstacles) => {
                std::thread::sleep(POLL_INTERVAL);
            }
            Err(_) if mounts.is_empty() => break Holder::Nobody,
            _ => break Holder::Unknown(in_use_error(&directory, &obstacles, &mounts)),
        }
    };
    Ok(Located {
        path: directory.path.clone(),
        named: possible_paths(path),
        directory: Some(directory),
        holder,
    })
}

fn is_silent(obstacles: &[Obstacle]) -> bool {
    obstacles.contains(&Obstacle::Silent)
}

fn warn_of_untrusted_directories(obstacles: &[Obstacle]) {
    for obstacle in obstacles {
        if matches!(obstacle, Obstacle::UntrustedDirectory { .. }) {
            tracing::warn!("{obstacle}");
        }
    }
}

/// The error if a volume is held and no daemon has proved that it is the holder.
fn in_use_error(
    directory: &VolumeDirectory,
    obstacles: &[Obstacle],
    mounts: &[MountInfo],
) -> UserError {
    let failure = format!(
        "the volume {} is in use by a process that cannot be asked",
        directory.path.display()
    );
    let error = refusal(failure, obstacles);
    let error = UserError {
        code: ExitCode::InUse,
        ..error
    };
    match mounts {
        [mount, ..] => {
            let dir = mount.dir.display();
            error.with_hint(format!(
                "if that is the volume on {dir}, name the mount: {dir}; or ask as root"
            ))
        }
        [] => error,
    }
}

/// Mounts of root and of this user whose source is this directory. They are only a hint: a source
/// can be any text.
pub(crate) fn hinted_mounts(directory: &VolumeDirectory) -> Vec<MountInfo> {
    let is_directory =
        |source: &Path| DirectoryId::of_path(source).is_ok_and(|id| id == directory.id);
    own_mounts::with_source(&[0, effective_user()], is_directory).unwrap_or_default()
}

fn daemon_of_directory(directory: &VolumeDirectory) -> Result<ProvenDaemon, Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let address = Address::Volume(directory.id);
    candidate_users(directory)
        .into_iter()
        .find_map(|user| connect_and_prove(address, user, Some(directory), &mut obstacles))
        .ok_or(obstacles)
}

/// Connects to a daemon of `user` and requests its proof. Adds the reasons for a failure to
/// `obstacles`.
fn connect_and_prove(
    address: Address,
    user: u32,
    expected: Option<&VolumeDirectory>,
    obstacles: &mut Vec<Obstacle>,
) -> Option<ProvenDaemon> {
    let expected = match expected.map(VolumeDirectory::try_clone).transpose() {
        Ok(expected) => expected,
        Err(error) => {
            obstacles.push(Obstacle::Unproven(error.to_string()));
            return None;
        }
    };
    with_connection(address, user, obstacles, move |control| {
        proof::request_proof(control, expected.as_ref())
    })
}

/// Connects to a daemon of `user` and runs `then`, in a thread that is abandoned at the timeout.
/// Adds the reasons for a failure to `obstacles`.
fn with_connection<T: Send + 'static>(
    address: Address,
    user: u32,
    obstacles: &mut Vec<Obstacle>,
    then: impl FnOnce(ControlClient) -> Result<T, Obstacle> + Send + 'static,
) -> Option<T> {
    let note = || {
        notice(format_args!(
            "waiting for a daemon of user {user} to answer"
        ));
    };
    let answered = within_notifying(
        Deadlines {
            note: NOTICE_AFTER,
            give_up: PROOF_TIMEOUT,
        },
        note,
        move || {
            let mut encountered = Vec::new();
            let connected = ControlClient::connect(address, user, &mut encountered);
            let reached = connected.and_then(|control| {
                then(control)
                    .map_err(|obstacle| encountered.push(obstacle))
                    .ok()
            });
            (reached, encountered)
        },
    );
    let Some((reached, encountered)) = answered else {
        obstacles.push(Obstacle::Silent);
        return None;
    };
    obstacles.extend(encountered);
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_a_holder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), b"").unwrap();
        let located = find(dir.path()).unwrap();
        assert!(matches!(located.holder, Holder::Nobody));
        assert_eq!(located.path, dir.path().canonicalize().unwrap());
        let gone = find(&dir.path().join("gone")).unwrap_err();
        assert_eq!(gone.code, ExitCode::NotFound);
        let file = find(&dir.path().join("lock")).unwrap_err();
        assert_eq!(file.code, ExitCode::NotFound);
    }

    #[test]
    fn only_roots_and_own_mounts_are_used_without_a_daemon() {
        let mount = |owner: u32, root: &str| MountInfo {
            id: 1,
            device: "0:1".to_owned(),
            root: root.into(),
            dir: "/mnt".into(),
            options: String::new(),
            filesystem: own_mounts::FILESYSTEM_TYPE.to_owned(),
            source: "/v".into(),
            super_options: format!("rw,user_id={owner}"),
        };
        let denied = [Obstacle::Denied(0)];
        let me = effective_user();
        for owner in [0, me] {
            assert!(can_use_without_daemon(&mount(owner, "/"), &denied));
            assert!(!can_use_without_daemon(&mount(owner, "/sub"), &denied));
            assert!(!can_use_without_daemon(
                &mount(owner, "/"),
                &[Obstacle::Silent]
            ));
            assert!(!can_use_without_daemon(
                &mount(owner, "/"),
                &[Obstacle::Dead]
            ));
            let unproven = [Obstacle::Unproven(String::new())];
            assert!(!can_use_without_daemon(&mount(owner, "/"), &unproven));
        }
        assert!(!can_use_without_daemon(&mount(me + 1000, "/"), &denied));
        let mut nobodys = mount(0, "/");
        nobodys.super_options.clear();
        assert!(!can_use_without_daemon(&nobodys, &denied));
    }
}
