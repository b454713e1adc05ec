//! `bilayer snapshot` on volumes that are not mounted: its output, its results, and its failures.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::real::{BILAYER, Place, command, run};
use crate::{Victim, fails};

fn place(test: &'static str) -> Option<Place> {
    let place = Place::new(test, Duration::from_secs(100))?;
    place.run("create vol").done();
    Some(place)
}

/// The JSON output of a command.
#[track_caller]
fn json(place: &Place, words: &str) -> Value {
    let outcome = place.run(&format!("{words} --json")).done();
    assert_eq!(outcome.stderr, "", "{}", outcome.what);
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[track_caller]
fn names(place: &Place) -> Vec<String> {
    let list = json(place, "snapshot list vol");
    let views = list.as_array().unwrap().iter();
    views
        .map(|view| view["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn snapshots_are_taken_listed_renamed_and_deleted() {
    let Some(place) = place("cli-snapshots") else {
        return;
    };
    place.run("snapshot list vol").silent();
    assert_eq!(json(&place, "snapshot list vol"), Value::Array(Vec::new()));
    for name in ["monday", "tuesday", "\u{e9}-3"] {
        let taken = place.run(&format!("snapshot create vol {name}")).done();
        assert_eq!(taken.stdout, format!("snapshot {name} taken\n"));
        assert_eq!(taken.stderr, "");
    }
    let list = place.run("snapshot list vol").done().stdout;
    let mut lines = list.lines().map(|line| {
        let words = line.split_whitespace();
        words.collect::<Vec<_>>()
    });
    assert_eq!(lines.next().unwrap(), ["NAME", "CREATED", "USED", "REFERS"]);
    let first = lines.next().unwrap();
    assert_eq!(
        (first[0], &first[2..]),
        ("monday", &["0", "B", "0", "B"][..])
    );
    assert_eq!(
        first[1].len(),
        "2026-11-22T04:30:00+00:00".len(),
        "{first:?}"
    );
    assert_eq!(lines.count(), 2);

    place.run("snapshot rename vol tuesday wednesday").silent();
    assert_eq!(names(&place), ["monday", "wednesday", "\u{e9}-3"]);
    place.run("snapshot delete vol monday \u{e9}-3").silent();
    let views = json(&place, "snapshot list vol");
    let view = &views[0];
    assert_eq!(view["name"], "wednesday");
    assert_eq!(view["kind"], "snapshot");
    assert_eq!(view["inodes"], 1);
    assert!(view["created"].as_str().unwrap().ends_with('Z'), "{view}");
    assert!(view["used_bytes"].is_u64() && view["refers_bytes"].is_u64());
    assert_eq!(views.as_array().unwrap().len(), 1);
}

#[test]
fn status_shows_a_snapshot() {
    let Some(place) = place("cli-snapshot-status") else {
        return;
    };
    place.run("snapshot create vol monday").done();
    let status = place.status(&place.path("vol"));
    assert_eq!(
        (&status["snapshots"], &status["images"]),
        (&1.into(), &0.into())
    );
    assert!(status["view"].is_null());
    for named in [
        "vol@monday",
        "vol/.snapshots/monday",
        "./vol/.snapshots/monday/",
    ] {
        let status = json(&place, &format!("status {named}"));
        assert_eq!(status["view"]["name"], "monday", "{named}");
        assert_eq!(status["view"]["kind"], "snapshot");
        assert_eq!(status["header"]["key_mode"], "platform-managed");
        assert_eq!(status["header"]["key_sets"][0]["epoch"], 1);
    }
    let text = place.run("status vol@monday").done().stdout;
    let has = |name: &str| {
        text.lines()
            .any(|line| line.starts_with(&format!("{name} ")))
    };
    for name in [
        "snapshot", "created", "refers", "used", "key mode", "key set",
    ] {
        assert!(has(name), "{name}: {text}");
    }
    for (words, code, says) in [
        ("status vol@gone", 2, "no snapshot or image gone"),
        ("status vol/.images/monday", 2, "no image monday"),
        ("status gone@monday", 2, "cannot find"),
        (
            "status vol@monday --platform-keystore nowhere --audit-log audit",
            4,
            "cannot show the snapshot or image monday",
        ),
    ] {
        fails(&place.run(words), code, says);
    }
}

#[test]
fn unnamed_snapshots_are_named_after_the_time() {
    let Some(place) = place("cli-snapshot-prefix") else {
        return;
    };
    for _ in 0..4 {
        let made = json(&place, "snapshot create vol --prefix auto");
        assert_eq!(made["deleted"], Value::Array(Vec::new()));
        let name = made["snapshot"]["name"].as_str().unwrap();
        let time = name.strip_prefix("auto-").unwrap();
        let (time, number) = time.split_at("2026-11-22T04-30-00Z".len());
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00T00-00-00Z");
        assert!(number.is_empty() || number.starts_with('-'), "{name}");
    }
    assert_eq!(names(&place).len(), 4);
    let made = json(
        &place,
        "snapshot create vol --prefix auto --prune --keep-last 2",
    );
    assert_eq!(made["deleted"].as_array().unwrap().len(), 3);
    assert_eq!(names(&place).len(), 2);
}

#[test]
fn snapshots_are_pruned() {
    let Some(place) = place("cli-snapshot-prune") else {
        return;
    };
    for name in ["auto-1", "other", "auto-2", "automatic-1", "auto-3"] {
        place.run(&format!("snapshot create vol {name}")).done();
    }
    let all = names(&place);
    let pruned = place.run("snapshot prune vol --prefix auto --keep-last 1 --dry-run");
    let lines = "snapshot auto-1 would be deleted\nsnapshot auto-2 would be deleted\n";
    assert_eq!(pruned.done().stdout, lines);
    assert_eq!(names(&place), all);
    let report = json(&place, "snapshot prune vol --prefix auto --keep-last 1");
    assert_eq!(report["deleted"], serde_json::json!(["auto-1", "auto-2"]));
    assert_eq!(report["kept"], serde_json::json!(["auto-3"]));
    assert_eq!(report["dry_run"], false);
    assert_eq!(names(&place), ["other", "automatic-1", "auto-3"]);
    // All are within the last year that has one: the newest stays.
    let pruned = place.run("snapshot prune vol --keep-yearly 1 --keep-daily 0");
    let lines = "snapshot other deleted\nsnapshot automatic-1 deleted\n";
    assert_eq!(pruned.done().stdout, lines);
    // A prune without any rule is an error: keeping none must be stated.
    fails(
        &place.run("snapshot prune vol"),
        1,
        "which snapshots to keep",
    );
    fails(
        &place.run("snapshot create vol new --keep-last 1"),
        1,
        "--prune",
    );
    for words in ["new --prune --keep-last 1", "--prefix auto --prune"] {
        fails(
            &place.run(&format!("snapshot create vol {words}")),
            1,
            "--prefix",
        );
    }
    assert_eq!(names(&place), ["auto-3"]);
    place.run("snapshot prune vol --keep-last 0").done();
    assert_eq!(names(&place), [""; 0]);
}

#[test]
fn snapshots_are_compared_and_restored() {
    let Some(place) = place("cli-snapshot-diff") else {
        return;
    };
    let mounted = place.mount("vol", "mnt", "");
    for name in ["changed", "removed", "old"] {
        fs::write(mounted.path(name), "before").unwrap();
    }
    fs::create_dir(mounted.path("dir")).unwrap();
    place.run("snapshot create mnt monday").done();
    fs::write(mounted.path("changed"), "after").unwrap();
    fs::write(mounted.path("dir/a b"), "after").unwrap();
    fs::remove_file(mounted.path("removed")).unwrap();
    fs::rename(mounted.path("old"), mounted.path("new")).unwrap();
    place.run("snapshot create mnt tuesday").done();
    mounted.unmount();

    let diff = place.run("snapshot diff vol monday").done().stdout;
    for line in ["M changed", "- removed", "+ dir/a b", "R old -> new"] {
        assert!(diff.lines().any(|found| found == line), "{line}: {diff}");
    }
    assert_eq!(
        place.run("snapshot diff vol monday tuesday").done().stdout,
        diff
    );
    let lines = place.run("snapshot diff vol monday --json").done().stdout;
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let renamed = serde_json::json!(
        {"change": "renamed", "directory": false, "path": "new", "from": "old"}
    );
    assert!(lines.collect::<Vec<Value>>().contains(&renamed));
    place.run("snapshot diff vol tuesday").silent();

    place
        .run("snapshot restore vol monday --path changed")
        .silent();
    let diff = place.run("snapshot diff vol tuesday").done().stdout;
    assert!(diff.lines().any(|line| line == "M changed"), "{diff}");
    place.run("snapshot restore vol monday --yes").silent();
    let mounted = place.mount("vol", "mnt", "");
    for name in ["changed", "removed", "old"] {
        assert_eq!(fs::read(mounted.path(name)).unwrap(), b"before", "{name}");
    }
    assert!(!mounted.path("new").exists());
    mounted.unmount();
}

/// The output of a command does not depend on whether it or the daemon opens the volume.
#[test]
fn results_are_the_same_mounted_or_not() {
    let Some(place) = place("cli-snapshot-mounted") else {
        return;
    };
    let commands = [
        "snapshot create vol monday",
        "snapshot create vol monday",
        "snapshot create vol a/b",
        "snapshot rename vol monday tuesday",
        "snapshot rename vol monday tuesday",
        "snapshot diff vol gone",
        "snapshot diff vol tuesday",
        "snapshot restore vol gone --yes",
        "snapshot restore vol tuesday --path gone",
        "snapshot restore vol tuesday --yes",
        "image create vol base --from tuesday --description d",
        "image create vol base",
        "image deploy vol gone new",
        "image deploy vol base vol",
        "image deploy vol base new --customer-key file:gone.pem",
        "image export vol gone out",
        "image export vol base out --transport-passphrase-file gone",
        "image delete vol base",
        "image delete vol base",
        "snapshot prune vol --keep-last 0",
        "snapshot list vol",
    ];
    let say = || {
        let outcomes = commands.map(|words| place.run(words));
        outcomes.map(|outcome| (outcome.code, outcome.stdout, outcome.stderr))
    };
    let alone = say();
    let mounted = place.mount("vol", "mnt", "");
    let by_daemon = say();
    mounted.unmount();
    for (words, (alone, by_daemon)) in commands.iter().zip(alone.iter().zip(&by_daemon)) {
        assert_eq!(alone, by_daemon, "{words}");
    }
}

#[test]
fn failures_are_explained() {
    let Some(place) = place("cli-snapshot-failures") else {
        return;
    };
    place.dir("empty");
    for name in ["monday", "tuesday"] {
        place.run(&format!("snapshot create vol {name}")).done();
    }
    let long = "n".repeat(256);
    for (words, code, says) in [
        ("create vol monday", 3, "a snapshot \"monday\" already"),
        ("create vol a/b", 1, "a/b"),
        ("create vol ..", 1, "no name"),
        (&format!("create vol {long}"), 1, "255 bytes"),
        ("create gone monday", 2, "cannot find gone"),
        ("create empty monday", 2, "no bilayer volume"),
        ("list empty", 2, "no bilayer volume"),
        ("delete vol gone", 2, "no snapshot \"gone\""),
        ("rename vol gone new", 2, "no snapshot \"gone\""),
        ("rename vol monday tuesday", 3, "\"tuesday\" already"),
        ("rename vol monday a/b", 1, "a/b"),
        ("diff vol gone", 2, "no snapshot \"gone\""),
        ("diff vol monday gone", 2, "no snapshot \"gone\""),
        ("restore vol gone --yes", 2, "no snapshot \"gone\""),
        ("restore vol monday", 1, "--yes"),
        ("restore vol monday --path .", 1, "--yes"),
        ("restore vol monday --path gone", 2, "no \"gone\""),
        (
            "list vol --platform-keystore nowhere --audit-log audit",
            4,
            "nowhere",
        ),
    ] {
        fails(&place.run(&format!("snapshot {words}")), code, says);
    }
    // The first of several is deleted; the error names the one that does not exist.
    fails(&place.run("snapshot delete vol monday gone"), 2, "gone");
    assert_eq!(names(&place), ["tuesday"]);
    for words in ["snapshot", "snapshot create", "snapshot take vol x"] {
        let wrong = place.run(words);
        assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""), "{words}");
    }
}

#[test]
fn every_name_can_be_addressed() {
    let Some(victim) = Victim::new("cli-snapshot-names", false) else {
        return;
    };
    let place = &victim.place;
    let says = "it has an @ in it";
    for words in [
        "snapshot create vol a@b",
        "snapshot create vol --prefix a@b",
        "image create vol a@b",
    ] {
        fails(&place.run(words), 1, says);
    }
    // Without a given name it is named after the time.
    let taken = place.run("snapshot create vol --json").done().stdout;
    let taken: Value = serde_json::from_str(&taken).unwrap();
    let name = taken["snapshot"]["name"].as_str().unwrap();
    assert!(name.starts_with("20") && name.ends_with('Z'), "{name}");
    place.run(&format!("status vol@{name}")).done();
    fails(
        &place.run(&format!("snapshot rename vol {name} a@b")),
        1,
        says,
    );
    let mounted = place.mount("vol", "mnt", "");
    let snapshots = mounted.path(".snapshots");
    let made = fs::create_dir(snapshots.join("a@b")).unwrap_err();
    assert_eq!(made.kind(), std::io::ErrorKind::InvalidInput);
    let renamed = fs::rename(snapshots.join(name), snapshots.join("a@b")).unwrap_err();
    assert_eq!(renamed.kind(), std::io::ErrorKind::InvalidInput);
    mounted.unmount();
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let Some(victim) = Victim::new("cli-broken-pipe", false) else {
        return;
    };
    let place = &victim.place;
    let mounted = place.mount("vol", "mnt", "");
    place.run("snapshot create mnt before").done();
    // More than a pipe holds.
    for number in 0..3000 {
        fs::write(mounted.path(&format!("{number:060}")), "").unwrap();
    }
    place.run("snapshot create mnt after").done();
    let quiet = |volume: &str| {
        for words in [
            "snapshot diff VOLUME before",
            "snapshot diff VOLUME before after --json",
            "snapshot list VOLUME",
            "status VOLUME --json",
            "check VOLUME",
            "mount --help",
        ] {
            let words = words.replace("VOLUME", volume);
            let script = format!("{{ {BILAYER} {words}; echo $? >code; }} | true");
            let mut shell = command("sh", ["-c", &script]);
            place.environment(&mut shell);
            run(&mut shell).silent();
            assert_eq!(
                fs::read_to_string(place.path("code")).unwrap(),
                "0\n",
                "{words}"
            );
        }
    };
    quiet("mnt");
    mounted.unmount();
    quiet("vol");
}

#[test]
fn impossible_sizes_are_refused() {
    let Some(place) = Place::new("cli-sizes", Duration::from_secs(60)) else {
        return;
    };
    for (size, says) in [
        ("99999999999T", "too large"),
        ("17E", "too large"),
        ("8E", "too large"),
        ("-5", "a number of bytes"),
        ("-5G", "a number of bytes"),
        ("1.5G", "a number of bytes"),
    ] {
        for words in [
            format!("create new --size {size}"),
            format!("image deploy vol base new --size {size}"),
            format!("image import file new --size {size}"),
        ] {
            fails(&place.run(&words), 1, says);
        }
        let refused = place.run(&format!("mount vol mnt -o meta_cache={size}"));
        fails(&refused, 1, "a size from 1M");
    }
    assert!(!place.path("new").exists());
    for words in ["snapshot prune vol --keep-last -1", "check vol --jobs -1"] {
        let refused = place.run(words);
        assert!(
            refused.stderr.contains("whole number"),
            "{}",
            refused.stderr
        );
    }
}
