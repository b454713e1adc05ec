//! Which volume a path means, and who has it.
//!
//! A path is looked up once, and what it leads to then is held open: a mount of this filesystem,
//! known by its number and its device, or a volume's directory, known by device and inode. Texts
//! decide nothing: not what `/proc/self/mountinfo` calls the source of a mount, nor what a path
//! leads to a second time.
//!
//! | the path leads to | the daemon is looked for by | it must prove that it has |
//! |---|---|---|
//! | where a mount of this filesystem begins | the device number of the mount | the lock of the directory that it hands over, and that mount |
//! | a directory | device and inode of the directory | the lock of that directory |
//!
//! Where no daemon proves itself the answer says what may be done without one ([`Holder`]).

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::address::Address;
use crate::control::client::ControlClient;
use crate::control::directory::{DirectoryId, VolumeDirectory};
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::paths::as_named;
use crate::control::proof::{self, ProvenDaemon};
use crate::control::pulse::{self, Pulse};
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fuse::mountinfo::{self, MountInfo};
use crate::sys::deadline::{Deadlines, within_notifying};
use crate::sys::identity::effective_user;
use crate::sys::location::Location;

/// How long a daemon may take to connect and prove itself.
const LIMIT: Duration = Duration::from_secs(8);
/// After how long whoever waits for that is told.
const NOTED: Duration = Duration::from_secs(2);
/// How long a volume may be locked by somebody who cannot be asked: a daemon that begins or ends.
const PASSING: Duration = Duration::from_secs(3);
/// How often it is looked again.
const INTERVAL: Duration = Duration::from_millis(50);

/// A volume that a command means.
#[derive(Debug)]
pub(crate) struct Located {
    /// Its directory, for people; of a mount whose volume is not known, the mount.
    pub(crate) path: PathBuf,
    /// Paths that it was named by, which may lead there by links.
    pub(crate) named: Vec<PathBuf>,
    /// Its directory; none of a mount whose daemon does not answer.
    pub(crate) directory: Option<VolumeDirectory>,
    pub(crate) holder: Holder,
}

/// Who has it.
#[derive(Debug)]
pub(crate) enum Holder {
    /// A daemon that has proved it.
    Daemon {
        control: ControlClient,
        /// Device number of its mount.
        mount: Option<u64>,
    },
    /// The mount that was named, root's or this user's own, whose daemon does not answer this user.
    /// What is done in it is done in the volume that was meant.
    Mount(NamedMount),
    /// Somebody, who cannot be asked. The error says why.
    Unknown(UserError),
    /// Nobody, as far as can be seen; whoever opens it finds out.
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

    /// A path by which this process reaches the volume's directory, whatever it is called now.
    pub(crate) fn access_path(&self) -> Result<PathBuf, UserError> {
        let directory = self.directory.as_ref();
        directory.map(VolumeDirectory::access_path).ok_or_else(|| {
            UserError::new(
                ExitCode::System,
                format!(
                    "cannot tell which volume is mounted on {}: its daemon does not answer this user",
                    self.path.display()
                ),
            )
            .with_hint("name the volume's directory")
        })
    }
}

/// Finds what a path means.
///
/// # Errors
/// There is nothing; or it is a mount, and it is not sure whose.
pub(crate) fn find(path: &Path) -> Result<Located, UserError> {
    let failed =
        |error: io::Error| UserError::io(format_args!("cannot find {}", path.display()), &error);
    let location = pulse::open(path)?;
    match pulse::mount_at(&location).map_err(failed)? {
        Some(info) => find_mounted(location, info),
        None => find_directory(&location, path),
    }
}

/// The volume that a mount says that it is of. That is any text: root's and this user's are believed,
/// for what only looks.
pub(crate) fn by_source(mount: &MountInfo) -> Result<Located, UserError> {
    let trusted = mount
        .owner()
        .is_some_and(|owner| owner == 0 || owner == effective_user());
    if trusted && mount.source.is_absolute() {
        find(&mount.source)
    } else {
        let dir = mount.dir.display();
        let message = format!("it is not known which volume was mounted on {dir}");
        Err(UserError::new(ExitCode::System, message).with_hint("name the volume's directory"))
    }
}

fn find_mounted(location: Location, info: MountInfo) -> Result<Located, UserError> {
    match daemon_of_mount(&location, &info) {
        Ok(daemon) => Ok(Located::proven(daemon)),
        Err(obstacles) => {
            let what = format!("it is not sure which volume is on {}", info.dir.display());
            let pulse = pulse::pulse(&location);
            if pulse == Pulse::Dead {
                Err(pulse::dead(&info.dir.display().to_string(), &info))
            } else if !may_be_worked_in(&info, &obstacles) {
                Err(refusal(what, &obstacles))
            } else if pulse == Pulse::Silent {
                Err(refusal(what, &[Obstacle::Silent]))
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

/// A mount that root or this user made is what it seems to be, also where its daemon is not to be
/// asked. One that does not answer, or does not prove itself, is not to be worked with.
fn may_be_worked_in(mount: &MountInfo, obstacles: &[Obstacle]) -> bool {
    let trusted = mount
        .owner()
        .is_some_and(|owner| owner == 0 || owner == effective_user());
    let harmless = |obstacle: &Obstacle| {
        matches!(
            obstacle,
            Obstacle::Denied(_) | Obstacle::Squatted { .. } | Obstacle::Foreign { .. }
        )
    };
    trusted && mount.root == Path::new("/") && obstacles.iter().all(harmless)
}

/// Finds the daemon of a mount.
pub(crate) fn daemon_of_mount(
    location: &Location,
    mount: &MountInfo,
) -> Result<ProvenDaemon, Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let Ok(info) = location.info() else {
        return Err(obstacles);
    };
    for user in users_of(mount) {
        if !may_ask(user) {
            obstacles.push(Obstacle::Denied(user));
            continue;
        }
        match ask(Address::Mount(info.device), user, None, &mut obstacles) {
            Some(daemon) if daemon.mount == Some(info.device) => return Ok(daemon),
            Some(_) => obstacles.push(Obstacle::Unproven("it has another mount".to_owned())),
            None => {}
        }
    }
    Err(obstacles)
}

/// Finds the daemon that serves a mount, to wait until it has closed its volume: root's or this
/// user's by what it says, anybody else's by its proof.
pub(crate) fn server_of_mount(
    location: &Location,
    mount: &MountInfo,
) -> Result<(ControlClient, DirectoryId), Vec<Obstacle>> {
    let (me, owner) = (effective_user(), mount.owner().unwrap_or_default());
    if owner != 0 && owner != me {
        let proven = daemon_of_mount(location, mount)?;
        return Ok((proven.control, proven.directory.id));
    }
    let mut obstacles = Vec::new();
    let Ok(info) = location.info() else {
        return Err(obstacles);
    };
    let device = info.device;
    for user in users_of(mount) {
        let found = reach(
            Address::Mount(device),
            user,
            &mut obstacles,
            move |control| proof::demand_mount(control, device),
        );
        if let Some(server) = found {
            return Ok(server);
        }
    }
    Err(obstacles)
}

/// The users whose daemons may serve a mount.
fn users_of(mount: &MountInfo) -> Vec<u32> {
    let mut users = vec![mount.owner().unwrap_or_default(), 0];
    users.dedup();
    users
}

/// Daemons of other users are believed by nobody but root.
fn may_ask(user: u32) -> bool {
    let me = effective_user();
    me == 0 || user == 0 || user == me
}

/// The users whose daemons are asked for a volume.
fn askable(directory: &VolumeDirectory) -> Vec<u32> {
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
        let mounts = hinted(&directory);
        let is_claimed = obstacles.iter().any(|o| matches!(o, Obstacle::Unproven(_)));
        match locked {
            Ok(false) if !is_claimed => {
                tell_squatted(&obstacles);
                break Holder::Nobody;
            }
            // Whoever opens it waits until it is free, and says that it is in use.
            _ if obstacles.is_empty() && mounts.is_empty() => break Holder::Nobody,
            Ok(_) if begin.elapsed() < PASSING && !is_silent(&obstacles) => {
                std::thread::sleep(INTERVAL);
            }
            Err(_) if mounts.is_empty() => break Holder::Nobody,
            _ => break Holder::Unknown(held(&directory, &obstacles, &mounts)),
        }
    };
    Ok(Located {
        path: directory.path.clone(),
        named: as_named(path),
        directory: Some(directory),
        holder,
    })
}

fn is_silent(obstacles: &[Obstacle]) -> bool {
    obstacles.contains(&Obstacle::Silent)
}

fn tell_squatted(obstacles: &[Obstacle]) {
    for obstacle in obstacles {
        if matches!(obstacle, Obstacle::Squatted { .. }) {
            tracing::warn!("{obstacle}");
        }
    }
}

/// Somebody has the volume, and no daemon has proved to be the one.
fn held(directory: &VolumeDirectory, obstacles: &[Obstacle], mounts: &[MountInfo]) -> UserError {
    let what = format!(
        "the volume {} is in use, and who has it cannot be asked",
        directory.path.display()
    );
    let error = refusal(what, obstacles);
    let told = UserError {
        code: ExitCode::InUse,
        ..error
    };
    match mounts {
        [mount, ..] => {
            let dir = mount.dir.display();
            told.with_hint(format!(
                "if that is the volume on {dir}, name the mount: {dir}; or ask as root"
            ))
        }
        [] => told,
    }
}

/// Where root or this user mounted what was in that directory then.
pub(crate) fn hinted(directory: &VolumeDirectory) -> Vec<MountInfo> {
    let is_it =
        |source: &Path| DirectoryId::of_path(source).is_ok_and(|found| found == directory.id);
    mountinfo::hinted(&[0, effective_user()], is_it).unwrap_or_default()
}

fn daemon_of_directory(directory: &VolumeDirectory) -> Result<ProvenDaemon, Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let address = Address::Volume(directory.id);
    let found = askable(directory)
        .into_iter()
        .find_map(|user| ask(address, user, Some(directory), &mut obstacles));
    found.ok_or(obstacles)
}

/// Connects to that user's daemon and has it prove itself.
fn ask(
    address: Address,
    user: u32,
    meant: Option<&VolumeDirectory>,
    obstacles: &mut Vec<Obstacle>,
) -> Option<ProvenDaemon> {
    let meant = match meant.map(VolumeDirectory::try_clone).transpose() {
        Ok(meant) => meant,
        Err(error) => {
            obstacles.push(Obstacle::Unproven(error.to_string()));
            return None;
        }
    };
    reach(address, user, obstacles, move |control| {
        proof::demand(control, meant.as_ref())
    })
}

/// Connects to that user's daemon and goes on with it, in a thread that is left when it takes too
/// long.
fn reach<T: Send + 'static>(
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
    let asked = within_notifying(
        Deadlines {
            note: NOTED,
            give_up: LIMIT,
        },
        note,
        move || {
            let mut met = Vec::new();
            let connected = ControlClient::connect(address, user, &mut met);
            let reached = connected
                .and_then(|control| then(control).map_err(|obstacle| met.push(obstacle)).ok());
            (reached, met)
        },
    );
    let Some((reached, met)) = asked else {
        obstacles.push(Obstacle::Silent);
        return None;
    };
    obstacles.extend(met);
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_nobody_has() {
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
    fn only_roots_and_own_mounts_are_worked_in() {
        let mount = |owner: u32, root: &str| MountInfo {
            id: 1,
            device: "0:1".to_owned(),
            root: root.into(),
            dir: "/mnt".into(),
            options: String::new(),
            filesystem: mountinfo::FILESYSTEM_TYPE.to_owned(),
            source: "/v".into(),
            super_options: format!("rw,user_id={owner}"),
        };
        let denied = [Obstacle::Denied(0)];
        let me = effective_user();
        for owner in [0, me] {
            assert!(may_be_worked_in(&mount(owner, "/"), &denied));
            assert!(!may_be_worked_in(&mount(owner, "/sub"), &denied));
            assert!(!may_be_worked_in(&mount(owner, "/"), &[Obstacle::Silent]));
            assert!(!may_be_worked_in(&mount(owner, "/"), &[Obstacle::Dead]));
            let unproven = [Obstacle::Unproven(String::new())];
            assert!(!may_be_worked_in(&mount(owner, "/"), &unproven));
        }
        assert!(!may_be_worked_in(&mount(me + 1000, "/"), &denied));
        let mut nobodys = mount(0, "/");
        nobodys.super_options.clear();
        assert!(!may_be_worked_in(&nobodys, &denied));
    }
}
