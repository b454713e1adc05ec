//! A platform keystore that cannot be written, because it is on a read-only or a full filesystem or
//! in a directory without permission: when a volume is mounted, while it is mounted, and when it is
//! unmounted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::fails;
use crate::real::{
    CHILD_LIMIT, Mounted, Place, command, helper, is_alive, run, run_when_free, wait_until,
};

const LIMIT: Duration = Duration::from_secs(200);

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

/// How the keystore is made unwritable, and how that is undone.
struct Ailment {
    name: &'static str,
    begin: &'static str,
    end: &'static str,
    says: &'static str,
}

const AILMENTS: [Ailment; 2] = [
    Ailment {
        name: "read-only",
        begin: "mount -o remount,ro keystore",
        end: "mount -o remount,rw keystore",
        says: "Read-only file system",
    },
    Ailment {
        name: "full",
        begin: "dd if=/dev/zero of=keystore/fill bs=4k 2>/dev/null || true",
        end: "rm keystore/fill",
        says: "No space left on device",
    },
];

/// A place whose keystore is a small filesystem of its own, with a volume that has one file.
fn place(test: &'static str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    place.dir("keystore");
    sh(
        &place,
        "mount -t tmpfs -o size=256k,mode=700 tmpfs keystore",
    );
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    Some(place)
}

/// Names, lengths and times of everything below a directory.
fn state(dir: &Path) -> String {
    let mut find = command("find", ["."]);
    find.args(["-printf", "%p %s %T@ %C@\\n"]).current_dir(dir);
    let mut lines: Vec<String> = run(&mut find)
        .done()
        .stdout
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines.join("\n")
}

fn failure(place: &Place, mounted: &Mounted<'_>) -> Option<String> {
    let status = place.status(mounted.dir());
    status["usage"]["keystore_failure"]
        .as_str()
        .map(str::to_owned)
}

#[test]
fn nothing_is_written_before_the_keystore_has_a_record() {
    for ailment in &AILMENTS {
        let Some(place) = place("keystore-at-mount") else {
            return;
        };
        sh(&place, ailment.begin);
        let before = state(&place.path("vol"));
        for (command, code) in [
            ("mount vol mnt -o audit_log=elsewhere.log", 2),
            ("snapshot create vol s --audit-log elsewhere.log", 6),
            ("check vol --repair --audit-log elsewhere.log", 8),
        ] {
            let refused = place.run(command);
            fails(
                &refused,
                code,
                "the platform keystore's record of the volume cannot be written",
            );
            fails(&refused, code, ailment.says);
            assert!(
                refused.stderr.contains("hint: make the keystore's"),
                "{}",
                refused.stderr
            );
        }
        assert_eq!(state(&place.path("vol")), before, "{}", ailment.name);
        // Looking at it requires no record.
        let mounted = place.mount("vol", "mnt", "ro,audit_log=elsewhere.log");
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
        mounted.unmount();
        sh(&place, ailment.end);
        let mounted = place.mount("vol", "mnt", "");
        fs::write(mounted.path("file"), "goes on").unwrap();
        mounted.unmount();
    }
}

/// Also if the record does not change: it is written anyway.
#[test]
fn the_record_is_written_whenever_the_volume_is_opened_for_writing() {
    let Some(place) = place("keystore-record") else {
        return;
    };
    let record = || {
        let paths = fs::read_dir(place.path("keystore/volumes")).unwrap();
        let mut paths = paths.map(|entry| entry.unwrap().path());
        let json = paths.find(|path| path.extension().is_some_and(|it| it == "json"));
        fs::metadata(json.unwrap()).unwrap().modified().unwrap()
    };
    let before = record();
    let mounted = place.mount("vol", "mnt", "ro");
    mounted.unmount();
    assert_eq!(record(), before);
    let mounted = place.mount("vol", "mnt", "commit=3600");
    mounted.kill();
    mounted.take_away();
    assert!(record() > before);
}

#[test]
fn a_failure_while_it_is_mounted_is_logged_once_and_shown() {
    for ailment in &AILMENTS {
        let Some(place) = place("keystore-mounted") else {
            return;
        };
        let log = place.path("log");
        let mounted = place.mount(
            "vol",
            "mnt",
            &format!("commit=1,log_file={}", log.display()),
        );
        assert_eq!(failure(&place, &mounted), None);
        sh(&place, ailment.begin);
        let shown = |wanted: bool| {
            wait_until(Duration::from_secs(20), || {
                fs::write(mounted.path("file"), "more").unwrap();
                std::thread::sleep(Duration::from_millis(300));
                failure(&place, &mounted).is_some() == wanted
            })
        };
        assert!(shown(true), "{}", ailment.name);
        // Several more commits.
        for round in 0..3 {
            fs::write(mounted.path("file"), format!("round {round}")).unwrap();
            std::thread::sleep(Duration::from_millis(1300));
        }
        let why = failure(&place, &mounted).unwrap();
        assert!(why.contains(ailment.says), "{why}");
        let text = run(place.bilayer(["status"]).arg(mounted.dir()))
            .done()
            .stdout;
        assert!(
            text.contains("keystore failure") && text.contains(ailment.says),
            "{text}"
        );
        let said = fs::read_to_string(&log).unwrap();
        let lines = said
            .matches("the platform keystore cannot record commits")
            .count();
        assert_eq!(lines, 1, "{}: {said}", ailment.name);
        sh(&place, ailment.end);
        assert!(shown(false), "{}", ailment.name);
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("has the newest commit again"), "{said}");
        mounted.unmount();
    }
}

#[test]
fn an_unmount_that_cannot_write_the_record_says_so() {
    for ailment in &AILMENTS {
        let Some(place) = place("keystore-unmount") else {
            return;
        };
        let umount = helper("umount-bilayer");
        for way in ["unmount", "umount.bilayer"] {
            let mounted = place.mount("vol", "mnt", "");
            fs::write(mounted.path("file"), way).unwrap();
            sh(&place, ailment.begin);
            let (mut end, code) = match way {
                "unmount" => (place.bilayer(["unmount"]), 6),
                _ => (command(&umount, [""; 0]), 2),
            };
            place.environment(&mut end);
            let outcome = run_when_free(end.arg(mounted.dir()));
            fails(
                &outcome,
                code,
                "everything is on disk, but the platform keystore",
            );
            fails(&outcome, code, ailment.says);
            assert!(
                outcome.stderr.contains("hint: make the keystore's"),
                "{}",
                outcome.stderr
            );
            assert!(!is_alive(mounted.pid) && !mounted.is_there());
            sh(&place, ailment.end);
            let mounted = place.mount("vol", "mnt", "");
            assert_eq!(fs::read(mounted.path("file")).unwrap(), way.as_bytes());
            mounted.unmount();
        }
    }
}

/// The daemon's own exit code, which systemd or a supervisor sees.
#[test]
fn the_daemon_ends_with_a_failure_too() {
    let Some(place) = place("keystore-daemon") else {
        return;
    };
    let mut daemon = place.bilayer(["mount", "--foreground", "vol", "mnt"]);
    let log = fs::File::create(place.path("said")).unwrap();
    let mut daemon = daemon.stderr(log).spawn().unwrap();
    let mounted = || crate::real::is_mount_point(&place.path("mnt"));
    assert!(wait_until(CHILD_LIMIT, mounted));
    place.take_charge(daemon.id() as i32);
    fs::write(place.path("mnt/file"), "more").unwrap();
    sh(&place, AILMENTS[0].begin);
    let outcome = run_when_free(place.bilayer(["unmount"]).arg(place.path("mnt")));
    fails(&outcome, 6, "everything is on disk");
    assert_eq!(daemon.wait().unwrap().code(), Some(2));
    let said = fs::read_to_string(place.path("said")).unwrap();
    assert!(
        said.contains("the platform keystore could not record it"),
        "{said}"
    );
    sh(&place, AILMENTS[0].end);
}

/// As a user to whom modes apply.
#[test]
fn a_keystore_without_write_permission_allows_no_writing() {
    let Some(place) = Place::new("keystore-mode", LIMIT) else {
        return;
    };
    let user = |words: &str| {
        let mut command = crate::real::as_user(65_534);
        command.arg(crate::real::BILAYER).args(words.split(' '));
        place.environment(&mut command);
        // Only root may be able to enter the directories above the test's own.
        command
            .current_dir("/")
            .env("BILAYER_PLATFORM_KEYSTORE", "/proc/self/cwd");
        command
    };
    let top = tempfile::Builder::new()
        .prefix("keystore-mode-")
        .tempdir_in("/tmp")
        .unwrap();
    let (vol, keystore) = (top.path().join("vol"), top.path().join("keystore"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    sh(
        &place,
        &format!("chown 65534:65534 {0}; chmod 755 {0}", text(top.path())),
    );
    let options = format!("--platform-keystore {}", text(&keystore));
    if run(&mut user(&format!("create {} {options}", text(&vol)))).code != 0 {
        // Only root may be able to reach the program.
        crate::real::need(
            false,
            "keystore-mode",
            "another user cannot run the built program",
        );
        return;
    }
    let snapshot = |name: &str| {
        run(&mut user(&format!(
            "snapshot create {} {name} {options}",
            text(&vol)
        )))
    };
    snapshot("one").done();
    sh(&place, &format!("chmod 500 {}/volumes", text(&keystore)));
    let refused = snapshot("two");
    fails(
        &refused,
        6,
        "the platform keystore's record of the volume cannot be written",
    );
    fails(&refused, 6, "Permission denied");
    sh(&place, &format!("chmod 700 {}/volumes", text(&keystore)));
    snapshot("two").done();
}

/// A new volume, and a copy that becomes one, are recorded before they exist.
#[test]
fn no_volume_is_created_that_the_keystore_cannot_record() {
    for ailment in &AILMENTS {
        let Some(place) = place("keystore-begin") else {
            return;
        };
        sh(&place, "cp -a vol copy; mkdir there");
        sh(&place, ailment.begin);
        for (command, code) in [
            (
                "mount copy mnt --new-identity -o audit_log=elsewhere.log",
                2,
            ),
            ("create new --audit-log elsewhere.log", 6),
            ("create there --audit-log elsewhere.log", 6),
        ] {
            let refused = place.run(command);
            fails(&refused, code, ailment.says);
            assert!(
                refused.stderr.contains("hint: make the keystore's"),
                "{}",
                refused.stderr
            );
        }
        assert!(!place.path("new").exists(), "{}", ailment.name);
        let left = fs::read_dir(place.path("there")).unwrap().count();
        assert_eq!(left, 0, "{}", ailment.name);
        sh(&place, ailment.end);
        place.run("create new").done();
        place.run("mount copy mnt --new-identity").done();
        place.mounted(&place.path("mnt")).unmount();
    }
}
