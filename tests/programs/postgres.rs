//! PostgreSQL with page checksums, by an ordinary user: whole after a clean stop, after a killed
//! server, and after a killed daemon, with everything that was committed.
//!
//! The server is this test's own, on a socket of its own; the machine's clusters are not touched.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::real::{Outcome, Place, command, is_alive, need, run_within, wait_until};
use crate::script::{SCRIPT_LIMIT, TEST_LIMIT, equipped};

/// Any user will do that is not root: the server refuses to be root's.
const USER: u32 = 65_534;
const CLIENTS: &str = "--client=3";

/// Where the newest of Debian's versions has its programs.
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

/// A cluster in the mount; its server is ended when this goes.
struct Cluster<'a> {
    place: &'a Place,
    programs: PathBuf,
    data: PathBuf,
}

impl Cluster<'_> {
    /// One of the programs as the cluster's user.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let id = USER.to_string();
        let mut as_user = command(
            "setpriv",
            ["--reuid", &id, "--regid", &id, "--clear-groups"],
        );
        as_user.arg(self.programs.join(program)).args(arguments);
        self.place.environment(&mut as_user);
        as_user
            .env("PGDATA", &self.data)
            .env("PGHOST", self.place.path("socket"))
            .env("PGUSER", "owner")
            .env("PGDATABASE", "postgres");
        as_user
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

    /// Makes the cluster, with segments of the log small enough for several to be written.
    fn make(&self) {
        let options = ["--data-checksums", "--auth=trust", "--username=owner"];
        self.run(
            "initdb",
            &[&options[..], &["--wal-segsize=1", "--no-instructions"]].concat(),
        );
        let socket = self.place.path("socket");
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\n\
             shared_buffers = 4MB\nmax_wal_size = 8MB\nmin_wal_size = 2MB\n\
             checkpoint_timeout = 30s\nrestart_after_crash = off\n",
            socket.display()
        );
        let file = self.data.join("postgresql.auto.conf");
        fs::write(&file, settings).unwrap();
    }

    #[track_caller]
    fn start(&self) {
        let log = self.place.path("socket/log");
        let log = log.to_str().unwrap();
        let options = ["--silent", "--wait", "--timeout=60", "--log", log, "start"];
        let outcome = run_within(&mut self.command("pg_ctl", &options), SCRIPT_LIMIT);
        let said = fs::read_to_string(log).unwrap_or_default();
        assert_eq!(outcome.code, 0, "{}\n{said}", outcome.stderr);
    }

    #[track_caller]
    fn stop(&self) {
        self.run("pg_ctl", &["--silent", "--wait", "--mode=fast", "stop"]);
        self.run("pg_checksums", &["--check"]);
    }

    /// The server's process.
    fn server(&self) -> Option<i32> {
        // The socket's lock file is not in the mount, which may be dead.
        let lock = self.place.path("socket/.s.PGSQL.5432.lock");
        fs::read_to_string(lock).ok()?.lines().next()?.parse().ok()
    }

    /// Kills the server as a crash would; its children notice and go.
    fn kill(&self) {
        let Some(pid) = self.server().filter(|&pid| is_ours(pid)) else {
            return;
        };
        let server = Pid::from_raw(pid).unwrap();
        let _ = kill_process(server, Signal::KILL);
        assert!(wait_until(Duration::from_secs(20), || !is_alive(pid)));
        // pg_ctl made the server a session of its own; the children have groups of their own, and
        // hold the log until they are gone.
        let _ = kill_process_group(server, Signal::KILL);
    }

    /// Transactions run until somebody ends them; say how many they were.
    fn bench(&self) -> Child {
        let options = [CLIENTS, "--no-vacuum", "--time=60"];
        let mut pgbench = self.command("pgbench", &options);
        pgbench
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        pgbench.spawn().unwrap()
    }

    /// Everything is whole, and the transactions are all there or not at all.
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
        let count = self
            .sql("SELECT count(*) FROM pgbench_history")
            .parse()
            .unwrap();
        assert!(count >= at_least, "{count} transactions of {at_least}");
        count
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A number in a stale lock file may by now be another process's.
fn is_ours(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "postgres")
}

/// Waits for the clients, whose connections are gone; returns how many transactions the server told
/// them were committed.
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

#[test]
fn a_cluster_is_whole_after_every_crash() {
    let test = "postgres";
    let Some(found) = programs() else {
        need(
            false,
            test,
            "initdb, pgbench or pg_amcheck is missing; install postgresql",
        );
        return;
    };
    if !equipped(test, &[("setpriv", "util-linux")]) || Place::new(test, TEST_LIMIT).is_none() {
        return;
    }
    // Where an ordinary user may go.
    let place = Place::at(test, TEST_LIMIT, Path::new("/var/tmp"));
    fs::set_permissions(place.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    chown(place.dir("socket"), Some(USER), Some(USER)).unwrap();
    place.run("create vol").done();
    let cluster = Cluster {
        place: &place,
        programs: found,
        data: place.path("mnt/data"),
    };

    let mounted = place.mount("vol", "mnt", "");
    fs::create_dir(&cluster.data).unwrap();
    chown(&cluster.data, Some(USER), Some(USER)).unwrap();
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
    cluster.sql("VACUUM FULL");
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

    cluster.start();
    let bench = cluster.bench();
    std::thread::sleep(Duration::from_millis(1500));
    mounted.kill();
    cluster.kill();
    let count = count + committed(bench);
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
