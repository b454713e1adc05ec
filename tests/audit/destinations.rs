//! Destinations of records: a private file that is rotated, that several daemons share, or that
//! cannot be written.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::namespace::Namespace;
use crate::real::{BILAYER, Place, command, have, is_alive, is_mount_point, need, run, wait_until};
use crate::{LIMIT, clear_records, of_action, records, records_in};

#[test]
fn only_the_owner_may_read_the_file() {
    let Some(place) = Place::new("audit-mode", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    let mode = fs::metadata(place.path("keystore/audit.log"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Another file, relative to the working directory of the command.
    let before = records(&place).len();
    place.run("create vol2 --audit-log elsewhere").done();
    let mounted = place.mount("vol2", "mnt", "audit_log=elsewhere2");
    fs::create_dir(mounted.path(".snapshots/one")).unwrap();
    mounted.unmount();
    assert_eq!(records(&place).len(), before);
    let actions = |file: &str| {
        let records = records_in(&place.path(file)).into_iter();
        let names = records.map(|record| record["action"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert!(actions("elsewhere").contains(&"create-volume".to_owned()));
    let of_mount = actions("elsewhere2");
    for action in ["mount", "create-snapshot", "unmount"] {
        assert!(of_mount.contains(&action.to_owned()), "{of_mount:?}");
    }
}

#[test]
fn links_and_files_of_others_are_not_written_to() {
    let Some(place) = Place::new("audit-links", LIMIT) else {
        return;
    };
    fs::write(place.path("prize"), "kept").unwrap();
    symlink(place.path("prize"), place.path("link")).unwrap();
    fs::write(place.path("foreign"), "kept").unwrap();
    chown(place.path("foreign"), Some(4711), None).unwrap();
    for (file, why) in [
        ("link", "symbolic link"),
        ("foreign", "belongs to user 4711"),
    ] {
        let outcome = place.run(&format!("create vol --audit-log {file}"));
        assert_ne!(outcome.code, 0);
        let stderr = outcome.stderr;
        assert!(stderr.contains("audit cannot be written to"), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
        assert!(!place.path("vol").exists());
    }
    for file in ["prize", "foreign"] {
        assert_eq!(fs::read(place.path(file)).unwrap(), b"kept");
    }
}

/// Keys are not used. Actions of a volume that is mounted already are recorded elsewhere, and the
/// failure is reported once.
#[test]
fn a_state_directory_that_cannot_be_written() {
    let Some(place) = Place::new("audit-unwritable", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    let mounted = place.mount("vol", "mnt", "log_file=log");
    let audit = place.path("keystore/audit.log");
    fs::rename(&audit, place.path("keystore/audit.log.1")).unwrap();
    fs::create_dir(&audit).unwrap();
    let outcome = place.run("create vol2");
    assert_eq!(outcome.code, 6, "{}", outcome.stderr);
    for words in [
        "audit cannot be written to",
        "keys are not used",
        "--audit-log",
    ] {
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    assert!(!place.path("vol2").exists());
    if !std::path::Path::new("/dev/log").exists() {
        let mut lines = outcome.stderr.lines();
        let refused = lines
            .find(|line| line.contains("\"create-volume\""))
            .unwrap();
        assert!(refused.contains("refused"), "{refused}");
    }
    fs::create_dir(mounted.path(".snapshots/one")).unwrap();
    fs::create_dir(mounted.path(".snapshots/two")).unwrap();
    // Each record tries the file again, and is written there as soon as that works.
    fs::remove_dir(&audit).unwrap();
    fs::create_dir(mounted.path(".snapshots/three")).unwrap();
    mounted.unmount();
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert_eq!(
        log.matches("the audit cannot be written to").count(),
        1,
        "{log}"
    );
    assert_eq!(of_action(&place, "create-snapshot").len(), 1);
}

/// A user without a keystore has no audit file, and a mistyped path does not create one.
#[test]
fn no_platform_keystore_at_all() {
    let Some(place) = Place::new("audit-none", LIMIT) else {
        return;
    };
    place.dir("mnt");
    let outcome = place.run("mount vol mnt --platform-keystore none");
    assert_eq!(outcome.code, 32);
    assert!(
        outcome.stderr.contains("cannot find") && !outcome.stderr.contains("the audit"),
        "{}",
        outcome.stderr
    );
    let is_record = |line: &str| line.starts_with('{');
    assert!(!outcome.stderr.lines().any(is_record), "{}", outcome.stderr);
    assert!(!place.path("none").exists());
}

/// A hangup ends commands that are running.
#[test]
fn the_example_of_rotation_signals_daemons_alone() {
    let test = "audit-example";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !need(
        have("findmnt") && have("jq"),
        test,
        "findmnt or jq is missing",
    ) {
        return;
    }
    let mounted = place.fresh("", "log_file=log");
    let text = include_str!("../../docs/OPERATIONS.md");
    let example = text.split_once("postrotate\n").unwrap().1;
    let example = example.split_once("endscript").unwrap().0;
    assert!(!example.contains("pkill"), "{example}");
    // Others may have mounts of their own here: this test signals none of them.
    let script = format!("set -e\nkill() {{ echo \"$@\"; }}\n{example}");
    let programs = Path::new(&BILAYER).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let outcome = run(command("sh", ["-c", &script]).env("PATH", path)).done();
    let signalled = format!("-HUP {}", mounted.pid);
    let is_it = |line: &&str| **line == signalled;
    let count = outcome.stdout.lines().filter(is_it).count();
    assert_eq!(count, 1, "{}{}", outcome.stdout, outcome.stderr);
    mounted.unmount();
}

#[test]
fn a_hangup_reopens_the_files() {
    let Some(place) = Place::new("audit-rotate", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "log_file=log");
    let audit = place.path("keystore/audit.log");
    let rotated = place.path("keystore/audit.log.1");
    fs::rename(&audit, &rotated).unwrap();
    fs::rename(place.path("log"), place.path("log.1")).unwrap();
    mounted.signal(Signal::HUP);
    let is_new =
        || fs::read_to_string(place.path("log")).is_ok_and(|log| log.contains("was reopened"));
    assert!(wait_until(LIMIT, is_new));
    fs::create_dir(mounted.path(".snapshots/one")).unwrap();
    assert_eq!(of_action(&place, "create-snapshot").len(), 1);
    let mode = fs::metadata(&audit).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let of_before = records_in(&rotated);
    assert!(of_before.iter().any(|record| record["action"] == "mount"));
    assert!(
        !of_before
            .iter()
            .any(|record| record["action"] == "create-snapshot")
    );
    // Removed, and a log that cannot be reopened.
    fs::remove_file(&audit).unwrap();
    fs::rename(place.path("log"), place.path("log.2")).unwrap();
    fs::create_dir(place.path("log")).unwrap();
    mounted.signal(Signal::HUP);
    let log = || fs::read_to_string(place.path("log.2")).unwrap();
    assert!(wait_until(LIMIT, || log().contains("cannot be reopened")));
    fs::create_dir(mounted.path(".snapshots/two")).unwrap();
    assert_eq!(of_action(&place, "create-snapshot").len(), 1);
    assert!(is_alive(mounted.pid) && mounted.is_there());
    mounted.unmount();
    assert!(log().contains("everything is on disk"));
}

/// The files could be written only through the mount, by the daemon that would have to serve it.
#[test]
fn files_that_the_mount_would_cover() {
    let Some(place) = Place::new("audit-covered", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    place.dir("mnt");
    for option in ["audit_log", "log_file"] {
        let outcome = place.run(&format!("mount vol mnt -o {option}=mnt/file"));
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(option), "{}", outcome.stderr);
    }
    // A link in the mount point that leads elsewhere while nothing is mounted.
    symlink(place.path("keystore"), place.path("mnt/ks")).unwrap();
    let outcome = place.run("mount vol mnt --platform-keystore mnt/ks");
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(!is_mount_point(&place.path("mnt")));
}

/// The path of the audit file seems to lead elsewhere, but the mount is made there as well.
#[test]
fn an_audit_file_in_the_mount_does_not_hang() {
    let test = "audit-inside";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(namespace) = Namespace::new(&place, test) else {
        return;
    };
    place.run("create vol").done();
    let (shared, other) = (place.dir("shared"), place.dir("other"));
    place.dir("shared/mnt");
    let script =
        "mount --bind \"$0\" \"$0\" && mount --make-shared \"$0\" && mount --bind \"$0\" \"$1\"";
    let mut bind = command("sh", ["-ec", script]);
    run(&mut namespace.inside(bind.arg(&shared).arg(&other))).silent();
    let mut mount = place.bilayer(["mount", "vol", "shared/mnt"]);
    mount.args(["-o", "audit_log=other/mnt/audit.log"]);
    run(&mut namespace.inside(&mount)).done();
    let pid = place.status(&place.path("vol"))["daemon"]["pid"].as_i64();
    place.take_charge(pid.unwrap() as i32);
    let inside = namespace.see(&place.path("shared/mnt/audit.log"));
    let is_there = || {
        records_in(&inside)
            .iter()
            .any(|record| record["action"] == "mount")
    };
    assert!(wait_until(LIMIT / 4, is_there));
    run(&mut namespace.inside(&place.bilayer(["unmount", "shared/mnt"]))).done();
    let below = records_in(&inside);
    assert_eq!(below.last().unwrap()["action"], "unmount");
}

/// A pipe that nobody reads, and a file in the mount itself, which would keep it busy.
#[test]
fn a_hangup_keeps_the_log_if_the_new_file_is_unusable() {
    let Some(place) = Place::new("audit-reopen", LIMIT) else {
        return;
    };
    place.dir("logs");
    let mounted = place.fresh("", "log_file=logs/log");
    fs::rename(place.path("logs/log"), place.path("logs/log.1")).unwrap();
    run(command("mkfifo", ["-m", "600"]).arg(place.path("logs/log"))).silent();
    mounted.signal(Signal::HUP);
    let refused = |dir: &str, why: &str| {
        let log = || fs::read_to_string(place.path(dir).join("log.1")).unwrap();
        assert!(wait_until(LIMIT, || log().contains(why)), "{}", log());
    };
    refused("logs", "no plain file");
    fs::rename(place.path("logs"), place.path("away")).unwrap();
    symlink(mounted.dir(), place.path("logs")).unwrap();
    mounted.signal(Signal::HUP);
    refused("away", "it is in the mount");
    mounted.unmount();
    let outcome = place.run("mount vol mnt -o log_file=away/log");
    assert_eq!(outcome.code, 2);
    assert!(
        outcome.stderr.contains("no plain file"),
        "{}",
        outcome.stderr
    );
}

/// The terminal from which it was started is closed.
#[test]
fn nohup_outlives_a_terminal() {
    let test = "audit-nohup";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !need(
        have("script") && have("nohup"),
        test,
        "script or nohup is missing",
    ) {
        return;
    }
    place.run("create vol").done();
    let dir = place.dir("mnt");
    for (before, outlives) in [("nohup ", true), ("", false)] {
        let words = format!("{before}{BILAYER} mount --foreground vol mnt");
        let mut script = command("script", ["-qec", &words, "/dev/null"]);
        place.environment(&mut script);
        let script = script.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut script = script.spawn().unwrap();
        assert!(wait_until(LIMIT / 4, || is_mount_point(&dir)));
        let mounted = place.mounted(&dir);
        mounted.signal(Signal::HUP);
        if outlives {
            thread::sleep(Duration::from_millis(500));
            assert!(is_alive(mounted.pid) && mounted.is_there());
            mounted.unmount();
        } else {
            assert!(wait_until(LIMIT / 4, || !is_alive(mounted.pid)));
        }
        script.wait().unwrap();
    }
}

/// The directory of the log is on a filesystem that does not answer.
#[test]
fn a_log_that_cannot_be_opened_does_not_block_unmount() {
    let Some(place) = Place::new("audit-stuck", LIMIT) else {
        return;
    };
    place.dir("logs");
    let mounted = place.fresh("", "log_file=logs/log");
    place.run("create other").done();
    let other = place.mount("other", "mnt2", "");
    fs::rename(place.path("logs"), place.path("away")).unwrap();
    symlink(other.dir(), place.path("logs")).unwrap();
    other.signal(Signal::STOP);
    mounted.signal(Signal::HUP);
    thread::sleep(Duration::from_millis(300));
    mounted.signal(Signal::TERM);
    let has_ended = wait_until(LIMIT / 4, || !is_alive(mounted.pid));
    other.signal(Signal::CONT);
    assert!(has_ended, "the daemon has not unmounted");
    other.unmount();
}

#[test]
fn two_daemons_share_a_file() {
    let Some(place) = Place::new("audit-shared", LIMIT) else {
        return;
    };
    place.run("create one").done();
    place.run("create two").done();
    let mounts = [
        place.mount("one", "mnt1", ""),
        place.mount("two", "mnt2", ""),
    ];
    clear_records(&place);
    thread::scope(|scope| {
        for mounted in &mounts {
            let dir = mounted.path(".snapshots");
            scope.spawn(move || {
                // Long names make long records.
                let name = "n".repeat(200);
                for number in 0..40 {
                    fs::create_dir(dir.join(format!("{name}{number}"))).unwrap();
                }
            });
        }
    });
    let recorded = of_action(&place, "create-snapshot");
    for dir in ["mnt1", "mnt2"] {
        let dir = place.path(dir);
        let of_mount = recorded
            .iter()
            .filter(|record| record["mount_point"] == dir.to_str().unwrap());
        assert_eq!(of_mount.count(), 40);
    }
    mounts.into_iter().for_each(|mounted| mounted.unmount());
}
