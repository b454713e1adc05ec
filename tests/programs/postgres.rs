//! PostgreSQL with page checksums, as an ordinary user: whole after a clean stop, after a killed
//! server, and after a killed daemon, with everything that was committed. So is the cluster in a
//! snapshot that is taken at any moment.
//!
//! The server is this test's own, on a socket of its own; the machine's clusters are not touched.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::real::{Outcome, Place, as_user, command, need, pid_of, run_within};
use crate::script::{SCRIPT_LIMIT, TEST_LIMIT, equipped};

/// Any user except root: the server refuses to run as root.
const USER: u32 = 65_534;
/// Time for a server to start; it does so several times.
const START_LIMIT: Duration = Duration::from_secs(20);
const CLIENTS: &str = "--client=3";
/// How many snapshots are taken while the server is at work, unless [`ROUNDS`] says otherwise.
const SNAPSHOTS: u32 = 2;
const ROUNDS: &str = "BILAYER_TESTS_POSTGRES_SNAPSHOTS";

/// The directory of the programs of the newest version that Debian has installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut versions: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|dir| {
            ["initdb", "pgbench", "pg_amcheck"]
                .iter()
                .all(|name| dir.join(name).exists())
        })
        .collect();
    versions.sort();
    versions.pop()
}

/// A cluster in the mount; its server is stopped on drop.
struct Cluster<'a> {
    place: &'a Place,
    programs: PathBuf,
    data: PathBuf,
    /// Directory of its socket and log.
    socket: PathBuf,
    server: Option<Child>,
}

impl<'a> Cluster<'a> {
    /// A cluster to be created in a directory of the mount.
    fn new(place: &'a Place, programs: PathBuf) -> Self {
        let data = place.path("mnt/data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(USER), Some(USER)).unwrap();
        Self::of(place, programs, data, "socket")
    }

    /// The cluster in that directory.
    fn of(place: &'a Place, programs: PathBuf, data: PathBuf, socket: &str) -> Self {
        let socket = place.dir(socket);
        chown(&socket, Some(USER), Some(USER)).unwrap();
        Self {
            place,
            programs,
            data,
            socket,
            server: None,
        }
    }

    /// One of the programs as the cluster's user.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = as_user(USER);
        command.arg(self.programs.join(program)).args(arguments);
        self.place.environment(&mut command);
        command
            .env("PGDATA", &self.data)
            .env("PGHOST", &self.socket)
            .env("PGUSER", "owner")
            .env("PGDATABASE", "postgres");
        command
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        run_within(&mut self.command(program, arguments), SCRIPT_LIMIT).done()
    }

    #[track_caller]
    fn sql(&self, query: &str) -> String {
        let options = [
            "--no-psqlrc",
            "--quiet",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
        ];
        let outcome = self.run("psql", &[&options[..], &[query]].concat());
        outcome.stdout.trim().to_owned()
    }

    /// Creates the cluster, with small segments of the log, so that several are written.
    fn make(&self) {
        let options = ["--data-checksums", "--auth=trust", "--username=owner"];
        self.run(
            "initdb",
            &[&options[..], &["--wal-segsize=1", "--no-instructions"]].concat(),
        );
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\n\
             shared_buffers = 4MB\nmax_wal_size = 8MB\nmin_wal_size = 2MB\n\
             checkpoint_timeout = 30s\nrestart_after_crash = off\n",
            self.socket.display()
        );
        let file = self.data.join("postgresql.auto.conf");
        fs::write(&file, settings).unwrap();
    }

    /// The last of equal settings counts.
    fn set(&self, settings: &str) {
        let path = self.data.join("postgresql.auto.conf");
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
    }

    /// Settings for filesystems that copy on write: a new log file has neither length nor blocks on
    /// disk before it is synced, while the default reuses old log files.
    fn write_the_log_to_new_files(&self) {
        self.set("wal_recycle = off\nwal_init_zero = off\n");
    }

    /// Starts the server. The children of a killed one may still have its memory for a moment, and
    /// then it ends at once.
    #[track_caller]
    fn start(&mut self) {
        let path = self.socket.join("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        let end = Instant::now() + START_LIMIT;
        loop {
            let mut server = self.command("postgres", &[]);
            server.stdin(Stdio::null()).process_group(0);
            server
                .stdout(log.try_clone().unwrap())
                .stderr(log.try_clone().unwrap());
            self.server = Some(server.spawn().unwrap());
            while self.server.as_mut().unwrap().try_wait().unwrap().is_none() {
                if run_within(&mut self.command("pg_isready", &["--quiet"]), SCRIPT_LIMIT).code == 0
                {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let said = fs::read_to_string(&path).unwrap_or_default();
            assert!(Instant::now() < end, "the server does not start:\n{said}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Stops the server cleanly, and verifies all its pages.
    #[track_caller]
    fn stop(&mut self) {
        let mut server = self.server.take().unwrap();
        kill_process(pid_of(&server), Signal::INT).unwrap();
        assert!(server.wait().unwrap().success());
        self.run("pg_checksums", &["--check"]);
    }

    /// Kills the server and its children, as a crash would. A child that waits for a lock of one
    /// that is gone would not notice, and keep the shared memory for ever.
    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = server.id();
            // From here on it starts no other child.
            let _ = kill_process(pid_of(&server), Signal::STOP);
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            for child in children.unwrap_or_default().split_whitespace() {
                if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(child, Signal::KILL);
                }
            }
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Runs transactions until they are stopped; the output has their number.
    fn bench(&self) -> Child {
        let options = [CLIENTS, "--no-vacuum", "--time=60"];
        let mut pgbench = self.command("pgbench", &options);
        pgbench
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        pgbench.spawn().unwrap()
    }

    /// Number of transactions committed so far.
    #[track_caller]
    fn transactions(&self) -> u64 {
        let count = self.sql("SELECT count(*) FROM pgbench_history");
        count.parse().unwrap()
    }

    /// Everything is whole, and each transaction is completely there or not at all.
    #[track_caller]
    fn check(&self, at_least: u64) -> u64 {
        self.run(
            "pg_amcheck",
            &["--heapallindexed", "--parent-check", "postgres"],
        );
        let sums = self.sql(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), \
             (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), \
             (SELECT sum(delta) FROM pgbench_history)",
        );
        let mut sums = sums.split('|');
        let first = sums.next().unwrap();
        assert!(sums.all(|sum| sum == first), "{first} and others");
        let count = self.transactions();
        assert!(count >= at_least, "{count} transactions of {at_least}");
        count
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the clients, whose connections are broken; returns the number of transactions that the
/// server acknowledged.
#[track_caller]
fn committed(bench: Child) -> u64 {
    let outcome = bench.wait_with_output().unwrap();
    let said = String::from_utf8(outcome.stdout).unwrap();
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let number = line.unwrap_or_else(|| panic!("pgbench said: {said}"));
    number.split('/').next().unwrap().trim().parse().unwrap()
}

/// A directory that an ordinary user can enter, with an empty volume; and the server's programs.
fn prepared(test: &'static str, limit: Duration) -> Option<(Place, PathBuf)> {
    prepared_of(test, limit, "")
}

/// As [`prepared`], with options for the volume.
fn prepared_of(test: &'static str, limit: Duration, options: &str) -> Option<(Place, PathBuf)> {
    let Some(programs) = programs() else {
        need(
            false,
            test,
            "initdb, pgbench or pg_amcheck is missing; install postgresql",
        );
        return None;
    };
    if !equipped(test, &[("setpriv", "util-linux")]) || Place::new(test, limit).is_none() {
        return None;
    }
    let place = Place::at(test, limit, Path::new("/var/tmp"));
    fs::set_permissions(place.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    place.run(&format!("create vol {options}")).done();
    Some((place, programs))
}

#[test]
fn a_cluster_is_whole_after_every_crash() {
    let Some((place, programs)) = prepared("postgres", TEST_LIMIT) else {
        return;
    };
    let mounted = place.mount("vol", "mnt", "");
    let mut cluster = Cluster::new(&place, programs);
    cluster.make();
    cluster.start();
    cluster.run("pgbench", &["--initialize", "--quiet"]);
    cluster.sql("CREATE EXTENSION amcheck");
    cluster.run("pgbench", &[CLIENTS, "--transactions=30", "--no-vacuum"]);
    // Large values, a table rewritten, files truncated and removed.
    cluster.sql(
        "CREATE TABLE large AS SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 500) n",
    );
    cluster.sql("DELETE FROM large WHERE n > 250");
    cluster.sql("VACUUM FULL large");
    let count = cluster.check(90);
    cluster.stop();
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "");
    cluster.start();
    assert_eq!(cluster.check(count), count);
    let bench = cluster.bench();
    std::thread::sleep(Duration::from_millis(1500));
    cluster.kill();
    let count = count + committed(bench);
    cluster.start();
    let count = cluster.check(count);
    cluster.stop();

    cluster.write_the_log_to_new_files();
    cluster.start();
    let bench = cluster.bench();
    std::thread::sleep(Duration::from_millis(1500));
    mounted.kill();
    cluster.kill();
    let count = count + committed(bench);
    mounted.take_away();
    let mounted = place.mount("vol", "mnt", "");
    cluster.start();
    let count = cluster.check(count);
    cluster.stop();
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "");
    cluster.start();
    assert_eq!(cluster.check(count), count);
    cluster.stop();
    mounted.unmount();
}

/// The server refuses data that does not fit, continues with other work, and loses nothing that it
/// has committed, even if its log is what no longer fits, and it ends.
#[test]
fn a_cluster_survives_a_full_volume() {
    /// Files of 1 MiB, more than there is space for and than the kernel may hold back.
    const FILLERS: u32 = 400;
    let Some((place, programs)) = prepared_of("postgres-full", TEST_LIMIT, "--size 160M") else {
        return;
    };
    let mounted = place.mount("vol", "mnt", "");
    let mut cluster = Cluster::new(&place, programs);
    cluster.make();
    fs::write(mounted.path("ballast"), vec![1; 8 << 20]).unwrap();
    cluster.start();
    cluster.run("pgbench", &["--initialize", "--quiet"]);
    cluster.sql("CREATE EXTENSION amcheck");
    cluster.sql("CREATE TABLE filler (bytes text)");
    cluster.sql("ALTER TABLE filler ALTER bytes SET STORAGE EXTERNAL");
    let insert =
        "INSERT INTO filler SELECT repeat(md5(n::text), 1000) FROM generate_series(1, 200) n";
    let mut rows = 0;
    loop {
        let mut psql = cluster.command("psql", &["--no-psqlrc", "--quiet", "-c", insert]);
        if run_within(&mut psql, SCRIPT_LIMIT).code != 0 {
            break;
        }
        rows += 200;
        assert!(
            rows < 20_000,
            "a volume of 160 MiB holds {rows} times 32 000 bytes"
        );
    }
    let said = fs::read_to_string(cluster.socket.join("log")).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    // The refused write may have been one of the log, at which a server ends.
    cluster.kill();
    fs::remove_file(mounted.path("ballast")).unwrap();
    cluster.start();
    assert_eq!(cluster.sql("SELECT count(*) FROM filler"), rows.to_string());
    cluster.sql("DROP TABLE filler");
    cluster.sql("CHECKPOINT");
    cluster.run("pgbench", &[CLIENTS, "--transactions=30", "--no-vacuum"]);
    let count = cluster.check(90);

    // Another process fills the volume while transactions run.
    let bench = cluster.bench();
    let filled = (0..FILLERS).try_for_each(|number| {
        let file = mounted.path(&format!("other-{number}"));
        fs::write(file, vec![number as u8; 1 << 20])
    });
    assert_eq!(filled.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    std::thread::sleep(Duration::from_secs(3));
    cluster.kill();
    let count = count + committed(bench);
    for number in 0..FILLERS {
        let _ = fs::remove_file(mounted.path(&format!("other-{number}")));
    }
    cluster.start();
    let count = cluster.check(count);
    cluster.stop();
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    cluster.start();
    assert_eq!(cluster.check(count), count);
    cluster.stop();
    mounted.unmount();
    place.run("check vol").done();
}

/// A copy out of the snapshot is what a crash at that moment would have left, with everything
/// committed before, and nothing that was begun later.
#[test]
fn the_cluster_in_a_snapshot_starts() {
    let rounds = std::env::var(ROUNDS).map_or(SNAPSHOTS, |rounds| rounds.parse().unwrap());
    let limit = TEST_LIMIT + rounds * SCRIPT_LIMIT;
    let Some((place, programs)) = prepared("postgres-snapshot", limit) else {
        return;
    };
    let mounted = place.mount("vol", "mnt", "");
    let mut cluster = Cluster::new(&place, programs.clone());
    cluster.make();
    cluster.start();
    cluster.run("pgbench", &["--initialize", "--quiet"]);
    cluster.sql("CREATE EXTENSION amcheck");

    for round in 0..rounds {
        let mut bench = cluster.bench();
        // At varying moments of the server's periodic work.
        std::thread::sleep(Duration::from_millis(1000 + u64::from(round) * 137));
        let before = cluster.transactions();
        let snapshot = place.path(&format!("mnt/.snapshots/round-{round}"));
        fs::create_dir(&snapshot).unwrap();
        let after = cluster.transactions();
        std::thread::sleep(Duration::from_millis(300));

        let name = format!("copy-{round}");
        let copied = place.path(&name);
        let mut cp = command("cp", ["-a".as_ref(), snapshot.join("data").as_os_str()]);
        run_within(cp.arg(&copied), SCRIPT_LIMIT).done();
        bench.kill().unwrap();
        bench.wait().unwrap();

        // It names the running server.
        fs::remove_file(copied.join("postmaster.pid")).unwrap();
        let mut copy = Cluster::of(&place, programs.clone(), copied, &format!("socket-{name}"));
        let socket = copy.socket.display();
        copy.set(&format!("unix_socket_directories = '{socket}'\n"));
        copy.start();
        let count = copy.check(before);
        assert!(count <= after, "{count} transactions, later {after}");
        copy.stop();
        fs::remove_dir_all(&copy.data).unwrap();
        if round % 2 == 1 {
            fs::remove_dir(&snapshot).unwrap();
        }
    }
    let count = cluster.check(1);
    cluster.stop();
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "");
    cluster.start();
    assert_eq!(cluster.check(count), count);
    cluster.stop();
    mounted.unmount();
}
