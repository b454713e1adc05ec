//! The chain of records: `bilayer audit` shows whether any is missing, and a key operation that
//! cannot be recorded is refused.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::real::{Outcome, Place, command, is_alive, run, wait_until};
use crate::{LIMIT, of_action, records};

/// A volume with some records about it, not mounted.
fn used(test: &'static str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    let mounted = place.fresh("", "");
    fs::create_dir(mounted.path(".snapshots/one")).unwrap();
    mounted.unmount();
    Some(place)
}

#[track_caller]
fn whole(place: &Place) {
    place.run("audit").done();
}

#[track_caller]
fn broken(outcome: Outcome, words: &[&str]) {
    assert_eq!(outcome.code, 5, "{}{}", outcome.stdout, outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
    }
    assert!(outcome.stderr.contains("hint: "), "{}", outcome.stderr);
}

fn lines(place: &Place) -> Vec<String> {
    let text = fs::read_to_string(place.path("keystore/audit.log")).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn put(place: &Place, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(place.path("keystore/audit.log"), text).unwrap();
}

#[test]
fn the_log_is_shown_and_verified() {
    let Some(place) = used("audit-shown") else {
        return;
    };
    let all = records(&place);
    let shown = place.run("audit --json").done();
    assert_eq!(shown.stdout.lines().collect::<Vec<_>>(), lines(&place));
    let human = place.run("audit").done().stdout;
    assert_eq!(human.lines().count(), all.len());
    assert!(
        human.contains("create-snapshot") && human.contains("name=one"),
        "{human}"
    );
    let unwrapped = of_action(&place, "unwrap");
    for record in &unwrapped {
        assert_eq!(record["provider"], "platform");
        assert!(record["key"].as_str().unwrap().starts_with("platform:"));
        assert_eq!(record["key_version"], "1");
        assert!(record["duration_ms"].is_u64() && record["pid"].is_u64());
    }
    assert_eq!(
        place.run("audit --since 2h --json").done().stdout,
        shown.stdout
    );
    assert_eq!(place.run("audit --since 2100-01-01").done().stdout, "");
    assert_eq!(place.run("audit --since soon").code, 1);
    place.run("create other").done();
    let id = of_action(&place, "mount")[0]["volume"]
        .as_str()
        .unwrap()
        .to_owned();
    let of_volume = |words: &str| {
        let outcome = place.run(words).done();
        let records = outcome
            .stdout
            .lines()
            .map(crate::parse)
            .collect::<Vec<Value>>();
        // The platform key was made before the volume had an id.
        let path = place.path("vol");
        let of_path = |record: &Value| {
            record["volume"].is_null() && record["path"] == *path.to_str().unwrap()
        };
        let is_it = |record: &Value| record["volume"] == *id || of_path(record);
        assert!(records.iter().all(is_it), "{records:#?}");
        records.len()
    };
    let count = of_volume(&format!("audit --json --volume {id}"));
    assert!(count > 4 && count < records(&place).len());
    // Opening the volume, to compare, is recorded too.
    assert!(of_volume("audit --json --volume vol") > count);
    let mounted = place.mount("vol", "mnt", "");
    assert!(of_volume("audit --json --volume mnt") > count);
    mounted.unmount();
    let outcome = place.run("audit --volume nowhere");
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert_eq!(place.run("audit --audit-log syslog").code, 1);
    assert_eq!(place.run("audit --audit-log none").code, 2);
}

#[test]
fn changed_lines_are_named() {
    let Some(place) = used("audit-changed") else {
        return;
    };
    whole(&place);
    let before = lines(&place);
    let mut changed = before.clone();
    changed[2] = changed[2].replace("\"pid\":", "\"pid\":1");
    put(&place, &changed);
    let outcome = place.run("audit --json");
    assert_eq!(outcome.stdout.lines().count(), before.len() - 1);
    broken(outcome, &["audit.log, line 3", "was changed"]);
    let mut removed = before;
    removed.remove(4);
    put(&place, &removed);
    broken(
        place.run("audit"),
        &["audit.log, line 5", "records 5 to 5", "missing"],
    );
    // Later records hide nothing.
    place.run("create other").done();
    broken(
        place.run("audit"),
        &["audit.log, line 5", "records 5 to 5", "missing"],
    );
}

#[test]
fn a_truncated_log_shows_against_the_keystore() {
    let Some(place) = used("audit-truncated") else {
        return;
    };
    let before = lines(&place);
    put(&place, &before[..before.len() - 3]);
    broken(
        place.run("audit"),
        &["missing at the end", "the platform keystore knows"],
    );
    place.run("create other").done();
    broken(place.run("audit"), &["ended with record"]);
    let Some(place) = used("audit-removed") else {
        return;
    };
    fs::remove_file(place.path("keystore/audit.log")).unwrap();
    broken(place.run("audit"), &["missing at the end"]);
    place.run("create other").done();
    broken(place.run("audit"), &["audit.log, line 1", "missing"]);
}

/// Whoever truncates the log, and removes the keystore's head, cannot change the metadata.
#[test]
fn a_truncated_log_shows_against_the_volume() {
    for is_mounted in [false, true] {
        let Some(place) = used("audit-volume") else {
            return;
        };
        let mounted = is_mounted.then(|| place.mount("vol", "mnt", ""));
        if let Some(mounted) = &mounted {
            fs::create_dir(mounted.path(".snapshots/two")).unwrap();
            fs::create_dir(mounted.path(".snapshots/three")).unwrap();
        }
        let before = lines(&place);
        put(&place, &before[..3]);
        fs::remove_dir_all(place.path("keystore/audit")).unwrap();
        place.run("audit").done();
        broken(
            place.run("audit --volume vol"),
            &["the volume", "/vol knows"],
        );
        if let Some(mounted) = mounted {
            mounted.unmount();
        }
    }
}

#[test]
fn a_log_that_is_renamed_stays_one_chain() {
    let Some(place) = used("audit-renamed") else {
        return;
    };
    let log = place.path("keystore/audit.log");
    let count = records(&place).len();
    fs::rename(&log, place.path("keystore/audit.log.1")).unwrap();
    place.run("create other").done();
    let shown = place.run("audit --json").done();
    assert_eq!(shown.stdout.lines().count(), count + records(&place).len());
    // It was compressed.
    fs::rename(
        place.path("keystore/audit.log.1"),
        place.path("keystore/audit.log.2.gz"),
    )
    .unwrap();
    let outcome = place.run("audit").done();
    assert!(
        outcome.stderr.contains(&format!("records 1 to {count}")),
        "{}",
        outcome.stderr
    );
}

#[test]
fn follow_prints_what_is_recorded_later() {
    let Some(place) = used("audit-follow") else {
        return;
    };
    let mut follow = place.bilayer(["audit", "--follow", "--json", "--since", "2100-01-01"]);
    let mut ended = follow.stdout(Stdio::null()).spawn().unwrap();
    let mut follow = place.bilayer(["audit", "--follow", "--json"]);
    let mut child = follow.stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let lines = output.lines().map_while(Result::ok);
        lines.for_each(|line| drop(send.send(line)));
    });
    let until = |action: &str, name: &str| loop {
        let line = receive.recv_timeout(Duration::from_secs(20));
        let record: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if record["action"] == *action && (name.is_empty() || record["name"] == *name) {
            break;
        }
    };
    until("create-snapshot", "one");
    place.run("snapshot create vol two").done();
    until("create-snapshot", "two");
    fs::rename(
        place.path("keystore/audit.log"),
        place.path("keystore/audit.log.1"),
    )
    .unwrap();
    place.run("snapshot create vol three").done();
    until("audit-begin", "");
    until("create-snapshot", "three");
    for child in [&mut child, &mut ended] {
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// One line for each directory that is made and removed.
fn take_snapshots(dir: &Path, pairs: usize, ends: &AtomicBool) {
    for _ in 0..pairs {
        let made = fs::create_dir(dir.join("s")).and_then(|()| fs::remove_dir(dir.join("s")));
        if ends.load(Ordering::SeqCst) {
            return;
        }
        made.unwrap();
    }
}

#[test]
fn two_processes_make_one_chain() {
    let Some(place) = Place::new("audit-two", LIMIT) else {
        return;
    };
    place.run("create one").done();
    place.run("create two").done();
    let mounts = [
        place.mount("one", "mnt1", ""),
        place.mount("two", "mnt2", ""),
    ];
    let before = records(&place).len();
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        for mounted in &mounts {
            let dir = mounted.path(".snapshots");
            scope.spawn(|| take_snapshots(&{ dir }, 500, &ends));
        }
    });
    let outcome = place.run("audit --json").done();
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.stdout.lines().count(), before + 2000);
    mounts.into_iter().for_each(|mounted| mounted.unmount());
}

#[test]
fn a_writer_that_is_killed_leaves_a_whole_chain() {
    let Some(place) = Place::new("audit-killed", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    for round in 0..8 {
        let mounted = place.mount("vol", "mnt", "");
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| take_snapshots(&mounted.path(".snapshots"), 10_000, &ends));
            thread::sleep(Duration::from_millis(300 + 37 * round));
            ends.store(true, Ordering::SeqCst);
            let pid = rustix::process::Pid::from_raw(mounted.pid).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        });
        assert!(wait_until(LIMIT, || !is_alive(mounted.pid)));
        run(place.bilayer(["unmount"]).arg(place.path("mnt"))).done();
        // As a power cut might leave it.
        if round % 2 == 1 {
            let log = place.path("keystore/audit.log");
            let mut log = OpenOptions::new().append(true).open(log).unwrap();
            std::io::Write::write_all(&mut log, b"{\"seq\":99,\"prev").unwrap();
        }
        place.run("snapshot list vol").done();
        whole(&place);
        let removed = place.run("snapshot delete vol s");
        assert!(removed.code == 0 || removed.code == 2, "{}", removed.stderr);
    }
    assert_eq!(of_torn(&place), 4);
}

fn of_torn(place: &Place) -> usize {
    let lines = lines(place);
    let torn = |line: &&String| line.contains("\"action\":\"audit-torn\"");
    lines.iter().filter(torn).count()
}

/// The disk of the log is full.
#[test]
fn keys_are_not_used_without_space_for_the_record() {
    let Some(place) = used("audit-full") else {
        return;
    };
    let disk = place.dir("disk");
    run(command("mount", ["-t", "tmpfs", "-o", "size=64k,mode=700", "none"]).arg(&disk)).silent();
    let log = "--audit-log disk/audit";
    place.run(&format!("create first {log}")).done();
    let full = || {
        let _ = fs::write(disk.join("filler"), vec![0; 1 << 20]);
    };
    full();
    place.dir("mnt2");
    for (words, code) in [
        (format!("create second {log}"), 6),
        (format!("mount first mnt2 {log}"), 2),
        (
            format!(
                "mount first mnt2 -o audit_log={}",
                disk.join("audit").display()
            ),
            2,
        ),
        (format!("snapshot create first s {log}"), 6),
        (format!("check first {log}"), 8),
    ] {
        let outcome = place.run(&words);
        assert_eq!(outcome.code, code, "{words}: {}", outcome.stderr);
        for text in [
            "audit cannot be written",
            "No space left",
            "hint: make it writable",
        ] {
            assert!(outcome.stderr.contains(text), "{words}: {}", outcome.stderr);
        }
    }
    assert!(!place.path("second").exists());
    // The setting for those who want no audit, or another one.
    place.run("create second --audit-log /dev/null").done();
    place.run("create third").done();
    let mounted = place.mount("first", "mnt2", "audit_log=/dev/null");
    mounted.unmount();
    fs::remove_file(disk.join("filler")).unwrap();
    place.run(&format!("create fourth {log}")).done();
    // A line that did not fit was not left behind.
    let outcome = place.run(&format!("audit {log}")).done();
    assert_eq!(outcome.stderr, "");
    run(command("umount", ["-l"]).arg(&disk)).silent();
}
