//! Records, their context, and chains of them in files.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use super::append::{ROTATION_BYTES, append};
use super::chain::Linked;
use super::*;

/// The time of test records.
pub(super) const TIME: &str = "2027-01-31T08:00:00.000000Z";

/// Heads that are kept in memory.
#[derive(Clone, Default)]
pub(super) struct Heads(Arc<Mutex<HashMap<PathBuf, Head>>>);

impl HeadStore for Heads {
    fn load(&self, log: &Path) -> io::Result<Option<Head>> {
        Ok(self.0.lock().get(log).copied())
    }

    fn store(&self, log: &Path, head: &Head) -> io::Result<()> {
        self.0.lock().insert(log.to_owned(), *head);
        Ok(())
    }
}

/// What verification of a log has come upon.
#[derive(Default, Debug)]
struct Report {
    actions: Vec<String>,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    fn add(&mut self, event: Event<'_>) {
        match event {
            Event::Record(line) => self.actions.push(Linked::parse(line).unwrap().action),
            Event::Problem(text) => self.problems.push(text),
            Event::Note(text) => self.notes.push(text),
        }
    }

    /// Exactly one problem, with these words.
    #[track_caller]
    fn names(&self, words: &[&str]) {
        assert_eq!(self.problems.len(), 1, "{self:#?}");
        for word in words {
            assert!(self.problems[0].contains(word), "{word}: {self:#?}");
        }
    }
}

/// A log file.
pub(super) struct LogFile(pub(super) PathBuf);

impl LogFile {
    fn add_limited(&self, heads: &Heads, action: &str, rotation_bytes: u64) {
        let body = format!("{{\"time\":\"{TIME}\",\"action\":\"{action}\"}}");
        append(&self.0, heads, &[body.into_bytes()], TIME, rotation_bytes).unwrap();
    }

    fn add(&self, heads: &Heads, action: &str) {
        self.add_limited(heads, action, ROTATION_BYTES);
    }

    fn report(&self, heads: &Heads) -> Report {
        self.report_with(heads, Vec::new())
    }

    fn report_with(&self, heads: &Heads, others: Vec<KeptHead>) -> Report {
        let mut report = Report::default();
        let mut reader = LogReader::open(&self.0, heads, others).unwrap();
        let verified = reader.verify(&mut |event| report.add(event)).unwrap();
        assert_eq!(verified.problems, report.problems.len() as u64);
        report
    }

    /// The actions of a log that must be whole.
    #[track_caller]
    pub(super) fn verified(&self, heads: &Heads) -> Vec<String> {
        let report = self.report(heads);
        assert!(report.problems.is_empty(), "{report:#?}");
        report.actions
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn put(&self, lines: &[String]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&self.0, text).unwrap();
    }
}

/// A log of the records `begin`, `r2`, … in its lines 1 to `count`.
fn log_of(count: usize) -> (tempfile::TempDir, LogFile, Heads) {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile(dir.path().join("audit.log"));
    let heads = Heads::default();
    for number in 2..=count {
        log.add(&heads, &format!("r{number}"));
    }
    (dir, log, heads)
}

#[test]
fn every_change_of_a_line_is_noticed_with_its_place() {
    let (_dir, log, heads) = log_of(9);
    let whole = log.lines();
    assert_eq!(log.verified(&heads).len(), 9);
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = whole.clone();
        change(&mut lines);
        log.put(&lines);
        log.report(&heads)
    };
    for at in 0..whole.len() {
        let line = format!("line {}", at + 1);
        let flipped = changed(&|lines| lines[at] = lines[at].replace("T08:", "T09:"));
        match at + 1 == whole.len() {
            // Nothing but the kept head names the last line.
            true => flipped.names(&["record 9", "platform keystore"]),
            false => flipped.names(&[&line, "was changed"]),
        }
        assert_eq!(flipped.actions.len(), 8, "the changed one is not verified");
        let garbage = changed(&|lines| lines[at] = "{".to_owned());
        assert!(garbage.problems[0].contains(&line), "{garbage:#?}");
        let deleted = changed(&|lines| drop(lines.remove(at)));
        match at {
            0 => deleted.names(&["line 1", "records 1 to 1", "missing"]),
            8 => deleted.names(&["records 9 to 9 are missing at the end"]),
            _ => deleted.names(&[&line, "missing"]),
        }
        let inserted = changed(&|lines| lines.insert(at, whole[at].clone()));
        let place = format!("line {}", at + 2);
        assert!(inserted.problems[0].contains(&place), "{inserted:#?}");
        let cut = changed(&|lines| lines.truncate(at));
        cut.names(&[&format!("records {} to 9 are missing at the end", at + 1)]);
    }
    let swapped = changed(&|lines| lines.swap(3, 4));
    assert!(swapped.problems[0].contains("line 4"), "{swapped:#?}");
    // A forged record that has the right number and hash of the one before.
    let forged = changed(&|lines| {
        let line = lines[4].replace("\"r5\"", "\"r0\"");
        lines[4] = line;
    });
    forged.names(&["line 5", "was changed"]);
    log.put(&whole);
    assert_eq!(log.verified(&heads).len(), 9);
    fs::remove_file(&log.0).unwrap();
    log.report(&heads).names(&["records 1 to 9 are missing"]);
}

/// A later record must not make the chain look whole again.
#[test]
fn a_writer_does_not_hide_a_truncation() {
    for (kept, replace) in [(6, false), (0, false), (9, true)] {
        let (_dir, log, heads) = log_of(9);
        let mut lines = log.lines();
        lines.truncate(kept);
        if replace {
            lines[8] = lines[8].replace("\"r9\"", "\"r0\"");
        }
        match kept {
            0 => fs::remove_file(&log.0).unwrap(),
            _ => log.put(&lines),
        }
        log.add(&heads, "later");
        log.add(&heads, "latest");
        let report = log.report(&heads);
        assert!(!report.problems.is_empty(), "{kept}");
        assert!(report.actions.contains(&"latest".to_owned()));
        assert_eq!(heads.load(&log.0).unwrap().unwrap().count, 12);
    }
}

/// Somebody who knows how the chain is made adds lines to a truncated log.
#[test]
fn forged_lines_that_outrun_the_head_are_noticed() {
    let (_dir, log, heads) = log_of(9);
    let mut lines = log.lines();
    lines.truncate(5);
    let mut link = chain::Link {
        seq: 5,
        hash: chain::hash_of(lines[4].as_bytes()),
    };
    for _ in 0..7 {
        let (line, next) = link.next(b"{\"action\":\"forged\"}");
        lines.push(String::from_utf8(line).unwrap());
        link = next;
    }
    log.put(&lines);
    log.add(&heads, "later");
    let report = log.report(&heads);
    assert!(
        report.problems.iter().any(|it| it.contains("record 9")),
        "{report:#?}"
    );
}

#[test]
fn a_head_that_is_older_than_the_log_is_fine() {
    let (_dir, log, heads) = log_of(5);
    let old = heads.load(&log.0).unwrap().unwrap();
    log.add(&heads, "r6");
    log.add(&heads, "r7");
    heads.store(&log.0, &old).unwrap();
    assert_eq!(log.verified(&heads).len(), 7);
    log.add(&heads, "r8");
    assert_eq!(log.verified(&heads).last().unwrap(), "r8");
}

/// The writer was killed, or the machine lost power.
#[test]
fn remains_of_a_write_stay_apart() {
    for remains in [
        "{\"seq\":4,\"prev",
        "\0\0\0\0",
        "{\"seq\":4}",
        &"x".repeat(3 << 20),
    ] {
        let (_dir, log, heads) = log_of(3);
        let mut file = OpenOptions::new().append(true).open(&log.0).unwrap();
        file.write_all(remains.as_bytes()).unwrap();
        let report = log.report(&heads);
        assert!(report.problems.is_empty() && report.notes.len() == 1);
        assert!(report.notes[0].contains("line 4"), "{report:#?}");
        log.add(&heads, "later");
        let report = log.report(&heads);
        assert!(report.problems.is_empty(), "{report:#?}");
        assert_eq!(report.actions[3..], ["audit-torn", "later"]);
        // No other line may pass as remains.
        let mut lines = log.lines();
        lines[3].push('x');
        log.put(&lines);
        log.report(&heads).names(&["line 4"]);
    }
    // The very first write.
    let (_dir, log, heads) = log_of(1);
    fs::write(&log.0, "{\"seq\"").unwrap();
    log.add(&heads, "later");
    assert_eq!(log.verified(&heads), ["audit-torn", "later"]);
    log.add(&heads, "latest");
    assert_eq!(log.verified(&heads).len(), 3);
}

#[test]
fn a_long_log_is_rotated_and_stays_one_chain() {
    let (dir, log, heads) = log_of(1);
    for number in 0..40 {
        log.add_limited(&heads, &format!("r{number}"), 2000);
    }
    let mut rotated: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|it| it.unwrap())
        .collect();
    rotated.retain(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("audit.log.")
    });
    rotated.retain(|entry| entry.file_name() != "audit.log.lock");
    assert!(rotated.len() > 2, "{rotated:?}");
    let mut actions = log.verified(&heads);
    actions.retain(|action| action != "audit-begin");
    let expected: Vec<_> = (0..40).map(|number| format!("r{number}")).collect();
    assert_eq!(actions, expected);
    // An administrator may remove the oldest file, and only that one.
    fs::remove_file(dir.path().join("audit.log.1")).unwrap();
    let report = log.report(&heads);
    assert!(
        report.problems.is_empty() && report.notes.len() == 1,
        "{report:#?}"
    );
    let number = |entry: &fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        name.trim_start_matches("audit.log.")
            .parse::<u64>()
            .unwrap()
    };
    rotated.sort_by_key(number);
    fs::remove_file(rotated.last().unwrap().path()).unwrap();
    log.report(&heads).names(&["missing"]);
}

/// What is copied and then truncated loses the records in between, and only those.
#[test]
fn other_rotations() {
    let (dir, log, heads) = log_of(5);
    fs::copy(&log.0, dir.path().join("audit.log.1")).unwrap();
    File::create(&log.0).unwrap();
    log.add(&heads, "later");
    assert_eq!(log.verified(&heads).len(), 7);
    let (dir, log, heads) = log_of(5);
    fs::copy(&log.0, dir.path().join("audit.log-20270101")).unwrap();
    log.add(&heads, "between");
    File::create(&log.0).unwrap();
    log.add(&heads, "later");
    log.report(&heads)
        .names(&["audit.log, line 1", "records 6 to 6", "missing"]);
    // Compressed and put away: the file says where the earlier records were.
    let (dir, log, heads) = log_of(5);
    fs::rename(&log.0, dir.path().join("audit.log.1")).unwrap();
    log.add(&heads, "later");
    fs::rename(
        dir.path().join("audit.log.1"),
        dir.path().join("audit.log.2.gz"),
    )
    .unwrap();
    let report = log.report(&heads);
    assert!(
        report.problems.is_empty() && report.notes[0].contains("1 to 5"),
        "{report:#?}"
    );
}

#[test]
fn heads_of_other_keepers_are_compared() {
    let (_dir, log, heads) = log_of(9);
    let head = heads.load(&log.0).unwrap().unwrap();
    let keeper = || "the volume".to_owned();
    let kept = |head| {
        vec![KeptHead {
            keeper: keeper(),
            head,
        }]
    };
    assert!(log.report_with(&heads, kept(head)).problems.is_empty());
    let mut lines = log.lines();
    lines.truncate(7);
    log.put(&lines);
    // Whoever truncates the log can remove the keystore's head, too.
    heads.0.lock().clear();
    assert!(log.report(&heads).problems.is_empty());
    log.report_with(&heads, kept(head))
        .names(&["the volume", "records 8 to 9"]);
    let other = Head {
        hash: [1; 32],
        count: 5,
        ..head
    };
    log.report_with(&heads, kept(other))
        .names(&["the volume", "record 5"]);
    let another = Head {
        chain: ChainId([9; 16]),
        ..head
    };
    let report = log.report_with(&heads, kept(another));
    assert!(report.problems.is_empty() && report.notes[0].contains("another log"));
}

#[test]
fn a_reader_follows_a_log_through_rotations() {
    let (dir, log, heads) = log_of(3);
    let mut report = Report::default();
    let mut reader = LogReader::open(&log.0, &heads, Vec::new()).unwrap();
    reader.verify(&mut |event| report.add(event)).unwrap();
    log.add(&heads, "r4");
    reader.poll(&mut |event| report.add(event)).unwrap();
    log.add(&heads, "r5");
    fs::rename(&log.0, dir.path().join("audit.log.1")).unwrap();
    reader.poll(&mut |event| report.add(event)).unwrap();
    log.add(&heads, "r7");
    let mut file = OpenOptions::new().append(true).open(&log.0).unwrap();
    file.write_all(b"{\"half").unwrap();
    reader.poll(&mut |event| report.add(event)).unwrap();
    // The writer removes what does not fit.
    let whole = file.metadata().unwrap().len() - 6;
    file.set_len(whole).unwrap();
    log.add(&heads, "r8");
    reader.poll(&mut |event| report.add(event)).unwrap();
    assert!(report.problems.is_empty(), "{report:#?}");
    let expected = [
        "audit-begin",
        "r2",
        "r3",
        "r4",
        "r5",
        "audit-begin",
        "r7",
        "r8",
    ];
    assert_eq!(report.actions, expected);
    File::create(&log.0).unwrap();
    reader.poll(&mut |event| report.add(event)).unwrap();
    report.names(&["truncated"]);
}

#[test]
fn writers_in_many_threads_make_one_chain() {
    let (_dir, log, heads) = log_of(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| log.add(&heads, "r")));
        }
    });
    assert_eq!(log.verified(&heads).len(), 201);
}

/// Bytes of any kind, whatever they are, are read without a panic.
#[test]
fn noise_is_no_log() {
    let (_dir, log, heads) = log_of(4);
    let text = fs::read(&log.0).unwrap();
    for at in 0..text.len() {
        let mut noise = text.clone();
        noise[at] ^= 0x80;
        fs::write(&log.0, &noise).unwrap();
        assert!(!log.report(&heads).problems.is_empty(), "{at}");
    }
    for noise in [
        b"\n\n\n".to_vec(),
        vec![b'x'; 3 << 20],
        vec![b'\n'; 1000],
        vec![0xFF; 9],
    ] {
        fs::write(&log.0, &noise).unwrap();
        assert!(!log.report(&heads).problems.is_empty());
        log.add(&heads, "later");
        assert!(!log.report(&heads).problems.is_empty());
        log.add(&heads, "latest");
        assert_eq!(log.report(&heads).actions.last().unwrap(), "latest");
        log.0.with_file_name("audit.log.lock").metadata().unwrap();
        heads.0.lock().clear();
        log.put(&[]);
        fs::remove_file(&log.0).unwrap();
        (2..=4).for_each(|number| log.add(&heads, &format!("r{number}")));
    }
}

fn parsed(record: &Record, context: Context) -> Value {
    let line = record.body(DONE, &now(), context);
    assert!(!line.contains(&b'\n'));
    serde_json::from_slice(&line).unwrap()
}

#[test]
fn a_record_is_one_line_with_all_fields() {
    let record = Record::new("test")
        .volume(VolumeId([7; 16]))
        .with("name", "two\nlines")
        .with("count", 3u64);
    let line = parsed(&record, Context::EMPTY);
    for field in [
        "time",
        "volume",
        "path",
        "mount_point",
        "uid",
        "pid",
        "version",
    ] {
        assert!(line.get(field).is_some(), "{field} in {line}");
    }
    assert_eq!(line["volume"], VolumeId([7; 16]).to_string());
    assert_eq!(
        (&line["name"], &line["count"]),
        (&"two\nlines".into(), &3.into())
    );
    let time: jiff::Timestamp = line["time"].as_str().unwrap().parse().unwrap();
    assert!(time.duration_until(jiff::Timestamp::now()).as_secs() < 60);
}

#[test]
fn several_attempts_leave_each_record_once() {
    let record = |epoch: u64| Record::new("unwrap").with("epoch", epoch);
    let is_repeated = |record: Record, outcome| {
        let is_repeated = record.is_repeated(outcome);
        record.note_written(outcome);
        is_repeated
    };
    assert!(!is_repeated(record(1), DONE) && !is_repeated(record(1), DONE));
    let once = deduplicate();
    assert!(!is_repeated(record(1), DONE));
    // How long it took does not matter.
    assert!(is_repeated(record(1).since(Instant::now()), DONE));
    assert!(!is_repeated(record(2), DONE) && !is_repeated(record(1), REFUSED));
    drop(once);
    assert!(!is_repeated(record(1), DONE) && !is_repeated(record(1), DONE));
}

#[test]
fn no_secret_of_a_uri_is_recorded() {
    for (uri, provider, key) in [
        (
            "file:/keys/a?b;pin-value=1.pem",
            "file",
            "file:/keys/a?b;pin-value=1.pem",
        ),
        ("platform:00ff", "platform", "platform:00ff"),
        (
            "pkcs11:token=t;object=k?pin-value=1234",
            "pkcs11",
            "pkcs11:token=t;object=k",
        ),
        (
            "pkcs11:token=t;pin-value=1234;object=k",
            "pkcs11",
            "pkcs11:token=t;object=k",
        ),
        (
            "https://user:word@host/key?token=abc",
            "https",
            "https://host/key",
        ),
    ] {
        let line = parsed(&Record::new("unwrap").key(uri).slot(3), Context::EMPTY);
        assert_eq!(
            (&line["provider"], &line["key"]),
            (&provider.into(), &key.into())
        );
        assert_eq!(line["slot"], 3);
    }
}

#[test]
fn scopes_end_and_can_be_passed_to_other_threads() {
    let context = || {
        let line = parsed(&Record::new("test"), Context::here());
        (
            line["uid"].clone(),
            line["pid"].clone(),
            line["path"].clone(),
        )
    };
    let nothing = (Value::Null, Value::Null, Value::Null);
    assert_eq!(context(), nothing);
    {
        let _requester = requested_by(Requester::process(7, 8));
        let both = (7.into(), 8.into(), "/v".into());
        {
            let _volume = for_volume(Path::new("/v"));
            assert_eq!(context(), both);
            let here = Context::here();
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(context(), nothing));
                scope.spawn(|| {
                    let _here = here.enter();
                    assert_eq!(context(), both);
                });
            });
        }
        assert_eq!(context(), (7.into(), 8.into(), Value::Null));
        let _other_requester = requested_by(Requester::process(9, 0));
        assert_eq!(context(), (9.into(), Value::Null, Value::Null));
    }
    assert_eq!(context(), nothing);
}
