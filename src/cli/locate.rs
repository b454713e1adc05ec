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

use super::control::{Address, ControlClient, Obstacle, PATIENCE};
use super::error::{CliError, ExitCode};
use super::health::{self, Pulse};
use super::paths::as_named;
use super::proof::{self, DirectoryId, ProvenDaemon, VolumeDirectory};
use crate::fuse::mountinfo::{self, MountInfo};
use crate::sys::deadline::{Deadlines, within, within_notifying};
use crate::sys::identity::effective_user;
use crate::sys::location::Location;
use crate::sys::probe;

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
pub(super) struct Located {
    /// Its directory, for people; of a mount whose volume is not known, the mount.
    pub(super) path: PathBuf,
    /// Paths that it was named by, which may lead there by links.
    pub(super) named: Vec<PathBuf>,
    /// Its directory; none of a mount whose daemon does not answer.
    pub(super) directory: Option<VolumeDirectory>,
    pub(super) holder: Holder,
}

/// Who has it.
#[derive(Debug)]
pub(super) enum Holder {
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
    Unknown(CliError),
    /// Nobody, as far as can be seen; whoever opens it finds out.
    Nobody,
}

/// A mount that was named, held open.
#[derive(Debug)]
pub(super) struct NamedMount {
    pub(super) location: Location,
    pub(super) info: MountInfo,
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
    pub(super) fn access_path(&self) -> Result<PathBuf, CliError> {
        let directory = self.directory.as_ref();
        directory.map(VolumeDirectory::access_path).ok_or_else(|| {
            CliError::new(
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

/// The mount of this filesystem that a path leads to the beginning of.
pub(super) fn mount_at(location: &Location) -> io::Result<Option<MountInfo>> {
    Ok(MountInfo::beginning_at(location)?.filter(MountInfo::is_ours))
}

/// Walks to where a path leads.
///
/// # Errors
/// There is nothing; or the way leads through a mount that is dead or does not answer.
pub(super) fn open(path: &Path) -> Result<Location, CliError> {
    let doing = format!("cannot find {}", path.display());
    if !probe::resolves(path, LIMIT) {
        let why = "a filesystem on the way does not answer";
        return Err(
            CliError::new(ExitCode::System, format!("{doing}: {why}")).with_hint(format!(
                "see which mounts are on the way: findmnt -t {}",
                mountinfo::FILESYSTEM_TYPE
            )),
        );
    }
    Location::open(path).map_err(|error| {
        let above = path.ancestors().skip(1);
        let dead = match health::is_dead(&error) {
            true => above.filter_map(health::dead_mount).next(),
            false => None,
        };
        match dead {
            Some(mount) => health::dead(&doing, &mount),
            None => CliError::io(doing, &error),
        }
    })
}

/// Finds what a path means.
///
/// # Errors
/// There is nothing; or it is a mount, and it is not sure whose.
pub(super) fn find(path: &Path) -> Result<Located, CliError> {
    let failed =
        |error: io::Error| CliError::io(format_args!("cannot find {}", path.display()), &error);
    let location = open(path)?;
    match mount_at(&location).map_err(failed)? {
        Some(info) => find_mounted(location, info),
        None => find_directory(&location, path),
    }
}

/// The volume that a mount says that it is of. That is any text: root's and this user's are believed,
/// for what only looks.
pub(super) fn by_source(mount: &MountInfo) -> Result<Located, CliError> {
    let trusted = mount
        .owner()
        .is_some_and(|owner| owner == 0 || owner == effective_user());
    if trusted && mount.source.is_absolute() {
        find(&mount.source)
    } else {
        let dir = mount.dir.display();
        let message = format!("it is not known which volume was mounted on {dir}");
        Err(CliError::new(ExitCode::System, message).with_hint("name the volume's directory"))
    }
}

fn find_mounted(location: Location, info: MountInfo) -> Result<Located, CliError> {
    match daemon_of_mount(&location, &info) {
        Ok(daemon) => Ok(Located::proven(daemon)),
        Err(obstacles) => {
            let what = format!("it is not sure which volume is on {}", info.dir.display());
            let pulse = health::pulse(&location);
            if pulse == Pulse::Dead {
                Err(health::dead(&info.dir.display().to_string(), &info))
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
pub(super) fn daemon_of_mount(
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
pub(super) fn server_of_mount(
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

fn find_directory(location: &Location, path: &Path) -> Result<Located, CliError> {
    let directory = VolumeDirectory::at(location)
        .map_err(|error| CliError::io(format_args!("cannot open {}", path.display()), &error))?;
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
fn held(directory: &VolumeDirectory, obstacles: &[Obstacle], mounts: &[MountInfo]) -> CliError {
    let what = format!(
        "the volume {} is in use, and who has it cannot be asked",
        directory.path.display()
    );
    let error = refusal(what, obstacles);
    let told = CliError {
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

/// A command that cannot be sure is refused.
pub(super) fn refusal(what: String, obstacles: &[Obstacle]) -> CliError {
    let refused = |why: &str| CliError::new(ExitCode::System, format!("{what}: {why}"));
    // What was seen of the very daemon says more than what only was in the way.
    let rank = |obstacle: &&Obstacle| match obstacle {
        Obstacle::Unproven(_) => 0,
        Obstacle::Silent | Obstacle::Closing => 1,
        Obstacle::Squatted { .. } | Obstacle::Foreign { .. } => 2,
        Obstacle::Dead => 3,
        Obstacle::Denied(_) => 4,
    };
    match obstacles.iter().min_by_key(rank) {
        Some(obstacle) => refused(&obstacle.to_string()).with_hint(obstacle.hint()),
        None => refused("no daemon of it can be found from here")
            .with_hint("it may run where /run is another one, as in a container: ask there"),
    }
}

/// Where root or this user mounted what was in that directory then.
pub(super) fn hinted(directory: &VolumeDirectory) -> Vec<MountInfo> {
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
    let note = || eprintln!("bilayer: waiting for a daemon of user {user} to answer");
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

/// True when a daemon answers anything at all.
pub(super) fn is_alive(address: Address, user: u32) -> bool {
    let asked = within(PATIENCE, move || {
        let mut control = ControlClient::connect(address, user, &mut Vec::new())?;
        control.ask("ping", Some(PATIENCE)).ok()
    });
    asked.flatten().is_some()
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
    fn what_is_told_is_what_says_most() {
        let squatted = Obstacle::Squatted {
            dir: "/tmp/x".into(),
            wanted: 7,
            found: "belongs to user 8".to_owned(),
        };
        let all = [
            Obstacle::Denied(0),
            squatted,
            Obstacle::Unproven("it lies".to_owned()),
        ];
        let told = refusal("no".to_owned(), &all);
        assert!(told.message.ends_with("it lies") && told.hint.is_some());
        let told = refusal("no".to_owned(), &all[..2]);
        assert!(told.message.contains("/tmp/x should be user 7's alone"));
        let told = refusal("no".to_owned(), &[]);
        assert!(told.hint.unwrap().contains("container"));
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
