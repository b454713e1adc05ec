//! The filesystems that are measured: how each is created, mounted and unmounted.
//!
//! Daemons stay in the foreground as children of this program, so that it sees when they end and
//! how much CPU time they took.

use std::error::Error;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;

/// How long a daemon may take to mount or to end.
const PATIENCE: Duration = Duration::from_secs(120);
const GLANCE: Duration = Duration::from_millis(2);
/// Both programs get the same passphrase, from a file.
const PASSPHRASE: &str = "a passphrase for a benchmark\n";

/// The filesystems to compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// A directory of the backing filesystem
    Plain,
    /// gocryptfs with its defaults
    Gocryptfs,
    /// bilayer, a platform-managed volume
    Bilayer,
    /// bilayer, a volume with a customer key
    BilayerCustomer,
    /// Another version of bilayer, a platform-managed volume
    Before,
}

impl Kind {
    /// The filesystems that are compared by default.
    pub const ALL: [Self; 4] = [
        Self::Plain,
        Self::Gocryptfs,
        Self::Bilayer,
        Self::BilayerCustomer,
    ];

    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gocryptfs => "gocryptfs",
            Self::Bilayer => "bilayer",
            Self::BilayerCustomer => "bilayer+key",
            Self::Before => "before",
        }
    }
}

/// The programs that are measured.
#[derive(Debug)]
pub struct Programs {
    bilayer: PathBuf,
    before: Option<PathBuf>,
    gocryptfs_version: Option<String>,
}

impl Programs {
    /// `bilayer`: the program beside this one by default. `before`: the other version.
    ///
    /// # Errors
    /// A program does not exist.
    pub fn find(bilayer: Option<PathBuf>, before: Option<PathBuf>) -> Outcome<Self> {
        let bilayer = match bilayer {
            Some(path) => fs::canonicalize(path)?,
            None => std::env::current_exe()?.with_file_name("bilayer"),
        };
        if !bilayer.exists() {
            let path = bilayer.display();
            return Err(format!("no {path}: cargo build --release, or --bilayer FILE").into());
        }
        Ok(Self {
            bilayer,
            before: before.map(fs::canonicalize).transpose()?,
            gocryptfs_version: first_line(Command::new("gocryptfs").arg("-version")),
        })
    }

    /// The filesystems of `only` whose program is installed, each once, and `before` if it was
    /// given.
    pub fn kinds_to_compare(&self, only: &[Kind]) -> Vec<Kind> {
        let before = self.before.is_some().then_some(&Kind::Before);
        let mut kinds = Vec::new();
        for kind in only.iter().chain(before) {
            if *kind == Kind::Gocryptfs && self.gocryptfs_version.is_none() {
                eprintln!("gocryptfs is not installed: left out");
            } else if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    }

    /// Their versions.
    pub fn describe(&self, kinds: &[Kind]) -> String {
        let mut text = first_line(Command::new(&self.bilayer).arg("--version")).unwrap_or_default();
        if let Some(version) = &self.gocryptfs_version
            && kinds.contains(&Kind::Gocryptfs)
        {
            text = format!("{text}\n{version}");
        }
        text
    }
}

/// One filesystem, empty at first. Dropping it unmounts.
#[derive(Debug)]
pub struct Filesystem {
    kind: Kind,
    bilayer: PathBuf,
    /// Directory that contains everything else.
    place: PathBuf,
    /// Prefix of the names of this filesystem's files and directories in `dir`.
    prefix: String,
    /// Its root directory as a user sees it.
    root: PathBuf,
    daemon: Option<Child>,
}

impl Filesystem {
    /// Creates a filesystem in an empty directory and mounts it.
    ///
    /// # Errors
    /// A program fails, or does not answer for too long.
    pub fn make(kind: Kind, programs: &Programs, place: &Path) -> Outcome<Self> {
        let bilayer = match (kind, &programs.before) {
            (Kind::Before, Some(before)) => before,
            (Kind::Before, None) => return Err("there is no other version of bilayer".into()),
            _ => &programs.bilayer,
        };
        let mut filesystem = Self {
            kind,
            bilayer: bilayer.clone(),
            place: place.to_path_buf(),
            prefix: String::new(),
            root: place.join("root"),
            daemon: None,
        };
        fs::create_dir(&filesystem.root)?;
        fs::create_dir(filesystem.sealed())?;
        fs::write(filesystem.passphrase(), PASSPHRASE)?;
        fs::set_permissions(filesystem.passphrase(), Permissions::from_mode(0o600))?;
        filesystem.format()?;
        filesystem.mount()?;
        Ok(filesystem)
    }

    /// Another volume under the same keys, in directories beside those of this one. It is not
    /// mounted, and its directory is not created.
    ///
    /// # Errors
    /// The directory to mount it in could not be made.
    pub fn beside(&self, prefix: &str) -> Outcome<Self> {
        let root = self.place.join(format!("{prefix}root"));
        fs::create_dir(&root)?;
        Ok(Self {
            kind: self.kind,
            bilayer: self.bilayer.clone(),
            place: self.place.clone(),
            prefix: prefix.to_owned(),
            root,
            daemon: None,
        })
    }

    /// A bilayer command with the common options, to which the caller adds its own arguments.
    pub fn bilayer(&self) -> Command {
        let mut command = Command::new(&self.bilayer);
        command.env("BILAYER_PLATFORM_KEYSTORE", self.place.join("keystore"));
        command
    }

    /// Its root directory as a user sees it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that holds what the daemon writes.
    pub fn sealed(&self) -> PathBuf {
        self.place.join(format!("{}sealed", self.prefix))
    }

    fn passphrase(&self) -> PathBuf {
        self.place.join("passphrase")
    }

    fn key(&self) -> PathBuf {
        self.place.join("key.pem")
    }

    fn log(&self) -> PathBuf {
        self.place.join(format!("{}log", self.prefix))
    }

    fn format(&self) -> Outcome<()> {
        match self.kind {
            Kind::Plain => return Ok(()),
            Kind::Gocryptfs => {
                let mut init = Command::new("gocryptfs");
                init.args(["-init", "-q", "-passfile"]);
                return done(init.arg(self.passphrase()).arg(self.sealed()));
            }
            Kind::Bilayer | Kind::Before => {}
            Kind::BilayerCustomer => {
                let mut keygen = Command::new(&self.bilayer);
                keygen.arg("keygen").arg(self.key());
                done(keygen.arg("--passphrase-file").arg(self.passphrase()))?;
            }
        }
        let keystore = self.place.join("keystore");
        DirBuilder::new().mode(0o700).create(&keystore)?;
        let mut create = Command::new(&self.bilayer);
        create.arg("create").arg(self.sealed());
        create.arg("--platform-keystore").arg(keystore);
        if self.kind == Kind::BilayerCustomer {
            let uri = format!("file:{}", self.key().display());
            create.args(["--customer-key", &uri]);
            create.arg("--passphrase-file").arg(self.passphrase());
        }
        done(&mut create)
    }

    fn daemon_command(&self) -> Option<Command> {
        let mut command = match self.kind {
            Kind::Plain => return None,
            Kind::Gocryptfs => {
                let mut command = Command::new("gocryptfs");
                command.args(["-q", "-fg", "-nosyslog", "-passfile"]);
                command.arg(self.passphrase());
                command
            }
            Kind::Bilayer | Kind::BilayerCustomer | Kind::Before => {
                let mut command = Command::new(&self.bilayer);
                command.args(["mount", "--foreground", "--platform-keystore"]);
                command.arg(self.place.join("keystore"));
                if self.kind == Kind::BilayerCustomer {
                    let passphrase = self.passphrase();
                    let words = format!("passphrase_file={}", passphrase.display());
                    command.args(["-o", &words]);
                }
                command
            }
        };
        command.arg(self.sealed()).arg(&self.root);
        Some(command)
    }

    /// Starts the daemon and waits for the mount.
    fn mount(&mut self) -> Outcome<()> {
        let Some(mut command) = self.daemon_command() else {
            return Ok(());
        };
        let log = File::create(self.log())?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log);
        let daemon = self.daemon.insert(command.spawn()?);
        let until = Instant::now() + PATIENCE;
        while fs::metadata(&self.root)?.dev() == fs::metadata(&self.place)?.dev() {
            if let Some(status) = daemon.try_wait()? {
                return Err(self.ended(status));
            }
            if Instant::now() > until {
                return Err(format!("{} does not mount", self.kind.label()).into());
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Unmounts, and returns when the daemon has ended.
    ///
    /// # Errors
    /// The daemon failed.
    pub fn unmount(&mut self) -> Outcome<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        if let Err(error) = self.unmount_command(&[]) {
            self.daemon = Some(daemon);
            return Err(error);
        }
        let status = daemon.wait()?;
        if !status.success() {
            return Err(self.ended(status));
        }
        Ok(())
    }

    /// An error with the daemon's output.
    fn ended(&self, status: ExitStatus) -> Box<dyn Error> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        format!("{}: its daemon ended: {status}\n{log}", self.kind.label()).into()
    }

    fn unmount_command(&self, options: &[&str]) -> Outcome<()> {
        let mut command = if rustix::process::geteuid().is_root() {
            Command::new("umount")
        } else {
            let mut command = Command::new("fusermount3");
            command.arg("-u");
            command
        };
        done(command.args(options).arg(&self.root))
    }

    /// Unmounts and waits until all of it is on disk.
    ///
    /// # Errors
    /// The daemon failed, or the disk.
    pub fn settle(&mut self) -> Outcome<()> {
        self.unmount()?;
        sync_backing(&self.place)
    }

    /// Mounts again, with cold caches where that is permitted.
    ///
    /// # Errors
    /// The daemon does not mount.
    pub fn mount_cold(&mut self) -> Outcome<()> {
        drop_caches();
        self.mount()
    }

    /// Processor time of the daemon so far.
    pub fn daemon_time(&self) -> Duration {
        let text = self.daemon.as_ref().and_then(|daemon| {
            let path = format!("/proc/{}/stat", daemon.id());
            fs::read_to_string(path).ok()
        });
        // proc_pid_stat(5): fields 14 and 15, and the second ends with the last parenthesis.
        let ticks: u64 = text
            .as_deref()
            .and_then(|text| text.rsplit_once(')'))
            .map(|(_, rest)| rest.split_ascii_whitespace().skip(11).take(2))
            .map_or(0, |fields| fields.flat_map(str::parse::<u64>).sum());
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        // Detached even if a test inside failed; the daemon then ends by itself.
        if self.unmount_command(&["-l"]).is_err() && self.unmount_command(&["-z"]).is_err() {
            let _ = daemon.kill();
        }
        let _ = daemon.wait();
    }
}

/// Drops the kernel's caches.
pub fn drop_caches() {
    // Where that is not permitted, `caches_can_be_dropped` has reported it.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

/// True if the caches can be dropped where that is intended.
pub fn caches_can_be_dropped() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Waits until everything on the backing filesystem is on disk.
///
/// # Errors
/// The disk failed.
pub fn sync_backing(place: &Path) -> Outcome<()> {
    Ok(rustix::fs::syncfs(File::open(place)?)?)
}

/// Runs a command that must succeed. Its output is shown only if it does not.
///
/// # Errors
/// It does not run, or fails.
pub fn done(command: &mut Command) -> Outcome<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{text}", output.status).into())
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
