//! The real parts: the built programs, mounts through the kernel, child processes.
//!
//! A [`Place`] is where one test works: a directory on a disk, with a home and a platform keystore
//! of its own. It has a time limit, after which all its daemons are killed: processes that wait for
//! a daemon get an error, and the test fails with a message instead of hanging. On drop, also
//! during a panic, its mounts are removed and its daemons are ended.
//!
//! A test that cannot run here prints a message that the test harness does not capture, or fails if
//! `BILAYER_TESTS_REQUIRE_ALL=1`.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::ops::Deref;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

/// Time limit of one child process, unless the call gives another one.
pub const CHILD_LIMIT: Duration = Duration::from_secs(60);

/// The program under test, built by cargo beside the test programs.
pub const BILAYER: Program = Program;

/// A built program: its path, also as text.
#[derive(Clone, Copy, Debug)]
pub struct Program;

impl Deref for Program {
    type Target = str;

    fn deref(&self) -> &str {
        static PATH: LazyLock<String> = LazyLock::new(|| {
            let path = build_directory().join("bilayer");
            assert!(path.is_file(), "{} is missing", path.display());
            path.into_os_string().into_string().unwrap()
        });
        &PATH
    }
}

impl AsRef<OsStr> for Program {
    fn as_ref(&self) -> &OsStr {
        OsStr::new(&**self)
    }
}

impl AsRef<Path> for Program {
    fn as_ref(&self) -> &Path {
        Path::new(&**self)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// The directory of the programs: the running test program is in its folder `deps`. Cargo sets its
/// own variable (`CARGO_BIN_EXE_bilayer`) only for the crates of the test programs.
fn build_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).unwrap().to_owned()
}

/// The directory in which tests work, on the disk of the build.
pub fn scratch_directory() -> PathBuf {
    let path = build_directory().with_file_name("tmp");
    fs::create_dir_all(&path).unwrap();
    path
}

// ---- what a test needs --------------------------------------------------------------------------

/// True if `found`; otherwise prints what is missing, or fails if everything is required.
pub fn need(found: bool, test: &str, missing: &str) -> bool {
    if !found {
        assert!(
            std::env::var_os("BILAYER_TESTS_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "{test}: {missing}"
        );
        // Not by a macro: the test harness would capture it.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}");
    }
    found
}

/// True if the program is on the search path.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// The programs that mount(8) calls, built by the package `bilayer-mount-helper`.
pub fn helper(name: &str) -> PathBuf {
    let path = build_directory().join(name);
    assert!(
        path.is_file(),
        "{} is missing; build it: cargo build --workspace",
        path.display()
    );
    path
}

// ---- child processes ----------------------------------------------------------------------------

/// How a child process ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command, for messages of failed tests.
    pub what: String,
    /// Exit code; 128 and more for a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Fails the test unless the process succeeded.
    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(
            self.code, 0,
            "{}\n{}{}",
            self.what, self.stdout, self.stderr
        );
        self
    }

    /// Fails the test unless the process succeeded and printed nothing.
    #[track_caller]
    pub fn silent(self) -> Self {
        let this = self.done();
        assert_eq!(this.stdout, "", "{}", this.what);
        assert_eq!(this.stderr, "", "{}", this.what);
        this
    }
}

/// Runs a child to its end, for [`CHILD_LIMIT`] at most.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    run_within(command, CHILD_LIMIT)
}

/// Runs a child to its end. If it takes longer than `limit`, it and its children are killed, and
/// the test fails.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Outcome {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = kill_process_group(pid_of(&child), Signal::KILL);
            panic!("{what}: has not ended after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let text = |from: mpsc::Receiver<Vec<u8>>| {
        let bytes = from.recv_timeout(Duration::from_secs(10));
        let bytes = bytes.unwrap_or_else(|_| panic!("{what}: somebody holds its output open"));
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Outcome {
        code: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: text(stdout),
        stderr: text(stderr),
        what: what.clone(),
    }
}

/// Runs a command that unmounts. Tests run concurrently in one process: a child of another test has
/// this one's open files until it executes its program, and for that moment nothing can be
/// unmounted.
#[track_caller]
pub fn run_when_free(command: &mut Command) -> Outcome {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let outcome = run(command);
        if !outcome.stderr.contains("in use") || Instant::now() > end {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A child's process id.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A command with arguments.
pub fn command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A command that runs the program and arguments that are added to it as another user.
pub fn as_user(user: u32) -> Command {
    let id = user.to_string();
    let words = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
    command("setpriv", words)
}

/// True if a test can use [`as_user`].
pub fn can_switch_users(test: &str) -> bool {
    need(
        have("setpriv"),
        test,
        "setpriv is missing; install util-linux",
    )
}

/// True while there is such a process, and it is no zombie.
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            let (_, rest) = stat.rsplit_once(')')?;
            Some(!matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
        })
        .unwrap_or(false)
}

/// True if a process has ended with all its threads: after the first one has, the others may still
/// be in a system call, and the files they share are open.
fn has_ended(pid: i32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !is_alive(pid) && threads() <= 1
}

/// Waits until `condition` holds; false after the time limit.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

// ---- where a test works -------------------------------------------------------------------------

type Daemons = Arc<Mutex<Vec<i32>>>;

/// Where one test works.
pub struct Place {
    root: Option<tempfile::TempDir>,
    daemons: Daemons,
    timed_out: Arc<AtomicBool>,
    finished: Option<Sender<()>>,
    watchdog: Option<JoinHandle<()>>,
}

impl Place {
    /// A place for a test that mounts; `None`, after a message, if nothing can be mounted.
    pub fn new(test: &'static str, limit: Duration) -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        let possible = need(
            root,
            test,
            "only root can mount directly; run the tests as root",
        ) && need(
            fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .is_ok(),
            test,
            "/dev/fuse cannot be opened; load the kernel's module: modprobe fuse",
        );
        possible.then(|| Self::at(test, limit, &scratch_directory()))
    }

    /// A place in this directory.
    pub fn at(test: &'static str, limit: Duration, parent: &Path) -> Self {
        let root = tempfile::Builder::new()
            .prefix(&format!("{test}-"))
            .tempdir_in(parent)
            .unwrap();
        let daemons = Daemons::default();
        let timed_out = Arc::new(AtomicBool::new(false));
        let (finished, on_finish) = mpsc::channel::<()>();
        let (watched, over) = (Arc::clone(&daemons), Arc::clone(&timed_out));
        let watchdog = std::thread::spawn(move || {
            if on_finish.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            over.store(true, Ordering::SeqCst);
            let _ = writeln!(
                std::io::stderr(),
                "{test}: not done after {limit:?}; its daemons are killed"
            );
            for pid in watched.lock().unwrap().iter() {
                kill(*pid, Signal::KILL);
            }
            if on_finish.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
                let _ = writeln!(std::io::stderr(), "{test}: still not done; giving up");
                std::process::exit(101);
            }
        });
        let place = Self {
            root: Some(root),
            daemons,
            timed_out,
            finished: Some(finished),
            watchdog: Some(watchdog),
        };
        fs::create_dir(place.path("home")).unwrap();
        place
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.as_ref().unwrap().path().join(name)
    }

    /// Creates a directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// `bilayer` with these arguments, with this place's home and keystore.
    pub fn bilayer<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = command(BILAYER, arguments);
        self.environment(&mut command);
        command
    }

    /// Gives a command this place's home and keystore, and nothing of the user's environment.
    pub fn environment(&self, command: &mut Command) {
        command
            .env("HOME", self.path("home"))
            .env("BILAYER_PLATFORM_KEYSTORE", self.path("keystore"))
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("BILAYER_LOG")
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.path(""));
    }

    /// Runs `bilayer` with these words.
    #[track_caller]
    pub fn run(&self, words: &str) -> Outcome {
        run(&mut self.bilayer(words.split_whitespace()))
    }

    /// The output of `bilayer status --json` for a volume or a mount.
    #[track_caller]
    pub fn status(&self, path: &Path) -> Value {
        let mut command = self.bilayer(["status", "--json"]);
        let outcome = run(command.arg(path)).done();
        serde_json::from_str(&outcome.stdout).unwrap()
    }

    /// Creates a volume with these arguments and mounts it on `mnt`.
    #[track_caller]
    pub fn fresh(&self, create: &str, options: &str) -> Mounted<'_> {
        self.run(&format!("create vol {create}")).done();
        self.mount("vol", "mnt", options)
    }

    /// Mounts a volume of this place.
    #[track_caller]
    pub fn mount(&self, volume: &str, dir: &str, options: &str) -> Mounted<'_> {
        self.dir(dir);
        let mut words = vec!["mount", volume, dir];
        if !options.is_empty() {
            words.extend(["-o", options]);
        }
        run(&mut self.bilayer(words)).done();
        self.mounted(&self.path(dir))
    }

    /// Takes charge of a mount that another command has made.
    #[track_caller]
    pub fn mounted(&self, dir: &Path) -> Mounted<'_> {
        let status = self.status(dir);
        let pid = status["daemon"]["pid"].as_i64();
        let pid = pid.unwrap_or_else(|| panic!("no daemon answers: {status}")) as i32;
        self.take_charge(pid);
        Mounted {
            place: self,
            dir: dir.to_owned(),
            pid,
        }
    }

    /// Ends this process at the end of the test.
    pub fn take_charge(&self, pid: i32) {
        self.daemons.lock().unwrap().push(pid);
    }

    /// Removes all mounts in this place, the newest first.
    fn detach_all(&self) {
        let root = self.path("");
        let root = root.to_str().unwrap().trim_end_matches('/').to_owned() + "/";
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let inside = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut inside: Vec<&str> = inside.filter(|dir| dir.starts_with(&root)).collect();
        inside.reverse();
        for dir in inside {
            let _ = Command::new("umount").args(["-i", "-l", dir]).status();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.detach_all();
        for pid in self.daemons.lock().unwrap().iter() {
            // Its mount is gone; the daemon may take a moment to write its data.
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let ours = program.to_string_lossy().contains("bilayer");
            if ours && !wait_until(Duration::from_secs(10), || !is_alive(*pid)) {
                kill(*pid, Signal::KILL);
            }
        }
        drop(self.finished.take());
        let watched = self.watchdog.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(watched.is_none_or(|result| result.is_ok()));
            assert!(
                !self.timed_out.load(Ordering::SeqCst),
                "the test took too long"
            );
        }
    }
}

/// A mount; removed on drop.
pub struct Mounted<'a> {
    place: &'a Place,
    dir: PathBuf,
    /// The daemon.
    pub pid: i32,
}

impl Mounted<'_> {
    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Unmounts; the daemon must be gone afterwards.
    #[track_caller]
    pub fn unmount(self) {
        let mut command = self.place.bilayer(["unmount"]);
        run_when_free(command.arg(&self.dir)).silent();
        assert!(!is_alive(self.pid), "the daemon outlived `unmount`");
    }

    /// Kills the daemon, as a crash would. The dead mount stays, so that processes that use it get
    /// errors and do not write to the directory below.
    #[track_caller]
    pub fn kill(&self) {
        kill(self.pid, Signal::KILL);
        assert!(wait_until(Duration::from_secs(20), || has_ended(self.pid)));
    }

    /// Removes a mount whose daemon was killed.
    #[track_caller]
    pub fn take_away(self) {
        run(command("umount", ["-i", "-l"]).arg(&self.dir)).silent();
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal);
    }

    /// True if something is mounted there.
    pub fn is_there(&self) -> bool {
        is_mount_point(&self.dir)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if is_alive(self.pid) || self.is_there() {
            let _ = Command::new("umount")
                .args(["-i", "-l"])
                .arg(&self.dir)
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// True if something is mounted there, whether it answers or not.
pub fn is_mount_point(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut dirs = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    dirs.any(|mounted| Path::new(mounted) == dir)
}

// ---- contents -----------------------------------------------------------------------------------

/// `len` bytes that depend on `seed` alone and look random (SplitMix64).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file and syncs it.
pub fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
