//! SQLite with both kinds of journal: its locks, its shared memory, and its acknowledged
//! transactions after the writer or the daemon was killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::real::{Place, command, run_within};
use crate::script::{SCRIPT_LIMIT, TEST_LIMIT, equipped, script};

const PROGRAM: &str = include_str!("sqlite.py");
/// Number of times that a writer is killed.
const ROUNDS: usize = 4;

type Numbers = BTreeSet<u64>;

fn python(arguments: &[&str], file: &Path) -> Command {
    let mut python = command("python3", ["-c", PROGRAM]);
    let (verb, rest) = arguments.split_first().unwrap();
    python.arg(verb).arg(file).args(rest);
    python
}

/// A process that commits one transaction after the other and prints each.
struct Writer {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(file: &Path, journal: &str, synchronous: &str, committed: &Numbers) -> Self {
        // Committed beyond the last one that was printed.
        let first = (committed.last().unwrap_or(&0) + 1000).to_string();
        let mut writer = python(&["write", journal, synchronous, &first], file);
        let mut child = writer
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Notes the next transactions committed; fewer if the writer has ended.
    fn note(&mut self, count: usize, committed: &mut Numbers) -> usize {
        for noted in 0..count {
            let mut line = String::new();
            if self.said.read_line(&mut line).unwrap_or(0) == 0 || !line.ends_with('\n') {
                return noted;
            }
            committed.insert(line.trim().parse().unwrap());
        }
        count
    }

    /// Ends it unless it has ended, and notes the rest.
    fn end(mut self, committed: &mut Numbers) {
        let _ = self.child.kill();
        self.note(usize::MAX, committed);
        let _ = self.child.wait();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The database is whole, and has all acknowledged transactions and at most `unsaid` others.
#[track_caller]
fn check(file: &Path, committed: &Numbers, unsaid: usize) {
    let printed = run_within(&mut python(&["check"], file), SCRIPT_LIMIT).done();
    let printed: Numbers = printed.stdout.lines().map(|n| n.parse().unwrap()).collect();
    let lost: Vec<_> = committed.difference(&printed).collect();
    assert!(lost.is_empty(), "committed and lost: {lost:?}");
    let more: Vec<_> = printed.difference(committed).collect();
    assert!(more.len() <= unsaid, "never said to be committed: {more:?}");
}

fn a_writer_is_killed(place: &Place, journal: &str) {
    let mounted = place.mount("vol", "mnt", "");
    let file = mounted.path(journal);
    let mut committed = Numbers::new();
    for round in 1..=ROUNDS {
        let mut writer = Writer::start(&file, journal, "FULL", &committed);
        assert_eq!(writer.note(5 + round * 13, &mut committed), 5 + round * 13);
        writer.end(&mut committed);
        check(&file, &committed, round);
    }
    // Several threads that add, a writer, and one that is killed while it may hold the lock.
    script(
        place,
        mounted.dir(),
        &format!("sqlite3 {journal} 'INSERT INTO counters VALUES (0)'"),
    );
    let mut writer = Writer::start(&file, journal, "FULL", &committed);
    let adders: Vec<Child> = (0..3)
        .map(|_| python(&["count", "20"], &file).spawn().unwrap())
        .collect();
    writer.note(8, &mut committed);
    writer.end(&mut committed);
    let ended: Vec<_> = adders.into_iter().map(|mut adder| adder.wait()).collect();
    assert!(
        ended.iter().all(|end| end.as_ref().unwrap().success()),
        "{ended:?}"
    );
    let total = run_within(&mut python(&["total"], &file), SCRIPT_LIMIT).done();
    assert_eq!(total.stdout, "60\n");
    check(&file, &committed, ROUNDS + 1);
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    check(&file, &committed, ROUNDS + 1);
    mounted.unmount();
}

/// With a rollback journal a transaction ends with the journal's removal. `FULL` does not make that
/// durable: SQLite guarantees it for `EXTRA` alone, on any filesystem. Even with `EXTRA`, if the
/// daemon is dead and the directory cannot be opened, SQLite assumes that it needs no fsync and
/// reports the transaction as committed. So the last one reported after the kill proves nothing.
fn the_daemon_is_killed(place: &Place, journal: &str, synchronous: &str) {
    let mut committed = Numbers::new();
    for round in 1..=ROUNDS {
        let mounted = place.mount("vol", "mnt", "commit=1");
        let file = mounted.path(&format!("{journal} and a killed daemon"));
        if round > 1 {
            check(&file, &committed, 2 * round);
        }
        let mut writer = Writer::start(&file, journal, synchronous, &committed);
        assert_eq!(writer.note(3 + round * 9, &mut committed), 3 + round * 9);
        std::thread::sleep(Duration::from_millis(7 * round as u64));
        mounted.kill();
        let mut after = Numbers::new();
        writer.end(&mut after);
        if journal == "delete" {
            after.pop_last();
        }
        committed.append(&mut after);
        mounted.take_away();
    }
    let mounted = place.mount("vol", "mnt", "");
    let file = mounted.path(&format!("{journal} and a killed daemon"));
    check(&file, &committed, 2 * ROUNDS);
    mounted.unmount();
}

fn equipped_place(test: &'static str) -> Option<Place> {
    let programs = [("python3", "python3"), ("sqlite3", "sqlite3")];
    let place = equipped(test, &programs).then(|| Place::new(test, TEST_LIMIT))??;
    place.run("create vol").done();
    Some(place)
}

#[test]
fn transactions_survive_a_killed_writer() {
    if let Some(place) = equipped_place("sqlite-writer") {
        a_writer_is_killed(&place, "wal");
        a_writer_is_killed(&place, "delete");
    }
}

#[test]
fn transactions_survive_a_killed_daemon() {
    if let Some(place) = equipped_place("sqlite-daemon") {
        the_daemon_is_killed(&place, "wal", "FULL");
        the_daemon_is_killed(&place, "delete", "EXTRA");
    }
}
