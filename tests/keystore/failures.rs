//! How the commands fail.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::real::{Outcome, Place, as_user, can_switch_users, run};
use crate::{LIMIT, json, passphrase};

/// One line that says what failed, and one that says what to do.
#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    let what = format!("{}\n{}", outcome.what, outcome.stderr);
    assert_eq!(outcome.code, code, "{what}");
    assert_eq!(outcome.stdout, "", "{what}");
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(lines[0].starts_with("bilayer: "), "{what}");
    assert!(lines[0].contains(says), "{says:?} is not said: {what}");
    assert!(lines[1].starts_with("hint: ") && lines.len() == 2, "{what}");
}

#[test]
fn commands_say_what_is_wrong_and_what_to_do() {
    let Some(place) = Place::new("keystore-failures", LIMIT) else {
        return;
    };
    passphrase(&place, "right", "correct horse\n");
    passphrase(&place, "wrong", "battery staple\n");
    for words in ["keystore status", "keystore list", "keystore rotate"] {
        fails(&place.run(words), 4, "does not exist");
    }
    fails(
        &place.run("keystore backup b --passphrase-file right"),
        4,
        "does not exist",
    );
    assert!(!place.path("keystore").exists());
    place.run("create vol").done();
    // No terminal: no question.
    fails(&place.run("keystore backup b"), 4, "no terminal");
    fails(
        &place.run("keystore backup b --passphrase-file none"),
        4,
        "none",
    );
    assert!(!place.path("b").exists());
    place
        .run("keystore backup b --passphrase-file right")
        .done();
    let good = fs::read(place.path("b")).unwrap();
    fails(
        &place.run("keystore backup b --passphrase-file right"),
        3,
        "exists",
    );
    assert_eq!(fs::read(place.path("b")).unwrap(), good);
    place
        .run("keystore backup b --force --passphrase-file right")
        .done();
    assert_ne!(fs::read(place.path("b")).unwrap(), good);
    fails(
        &place.run("keystore restore b --passphrase-file wrong"),
        4,
        "does not open",
    );
    fails(&place.run("keystore restore b"), 4, "no terminal");
    fails(
        &place.run("keystore restore none --passphrase-file right"),
        4,
        "none",
    );
    fails(
        &place.run("keystore restore right --passphrase-file right"),
        1,
        "no backup",
    );
    fs::write(place.path("cut"), &good[..good.len() / 2]).unwrap();
    fails(
        &place.run("keystore restore cut --passphrase-file right"),
        5,
        "incomplete",
    );
    for inside in ["keystore/b", "keystore/versions/b", "vol/b"] {
        let words = format!("keystore backup {inside} --passphrase-file right");
        fails(&place.run(&words), 1, "would be inside");
    }
    symlink("keystore", place.path("link")).unwrap();
    fails(
        &place.run("keystore backup link/b --passphrase-file right"),
        1,
        "would be inside",
    );
    let mounted = place.mount("vol", "mnt", "");
    fails(
        &place.run("keystore backup mnt/b --passphrase-file right"),
        1,
        "would be inside",
    );
    fails(
        &place.run("keystore restore b --passphrase-file right --platform-keystore mnt/keys"),
        1,
        "would be inside the volume",
    );
    fails(
        &place.run("create new --platform-keystore mnt/keys"),
        1,
        "would be inside the volume",
    );
    mounted.unmount();

    let mode = |path: &str, mode| {
        fs::set_permissions(place.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("keystore", 0o750);
    for words in [
        "keystore status",
        "keystore list",
        "keystore rotate",
        "mount vol mnt",
    ] {
        let outcome = place.run(words);
        assert!(
            outcome.stderr.contains("is open to other users"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains("chmod"), "{}", outcome.stderr);
    }
    mode("keystore", 0o700);
    mode("keystore/versions/00000001.json", 0o644);
    fails(&place.run("keystore rotate"), 4, "is open to other users");
    mode("keystore/versions/00000001.json", 0o600);
    assert_eq!(json(&place, "keystore rotate")["current_version"], 2);
}

#[test]
fn another_user_can_neither_rotate_nor_back_up() {
    let test = "keystore-user";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !can_switch_users(test) {
        return;
    }
    place.run("create vol").done();
    passphrase(&place, "passphrase", "correct horse\n");
    // The user may reach the directory, but not enter it; or it is open to them.
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.bilayer([""; 0]).get_program().to_owned();
    for mode in [0o700, 0o777] {
        fs::set_permissions(place.path("keystore"), fs::Permissions::from_mode(mode)).unwrap();
        for words in [
            "rotate",
            "list",
            "status",
            "backup /tmp/none --passphrase-file passphrase",
        ] {
            let mut command = as_user(65534);
            command.arg(&program).arg("keystore").args(words.split(' '));
            place.environment(&mut command);
            let outcome = run(&mut command);
            assert!([4, 6].contains(&outcome.code), "{}", outcome.stderr);
            assert_eq!(outcome.stdout, "");
        }
    }
    fs::set_permissions(place.path("keystore"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(json(&place, "keystore status")["current_version"], 1);
    // Nor does root use the keystore of a user.
    let versions = place.path("keystore/versions/00000001.json");
    std::os::unix::fs::chown(&versions, Some(65534), None).unwrap();
    fails(&place.run("keystore rotate"), 4, "belongs to user 65534");
}

#[test]
fn secrets_are_in_no_output_and_no_audit() {
    let Some(place) = Place::new("keystore-secrets", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    passphrase(&place, "passphrase", "correct horse battery\n");
    let mut printed = String::new();
    for words in [
        "keystore status",
        "keystore list",
        "keystore rotate",
        "keystore backup b --passphrase-file passphrase",
        "keystore restore b --passphrase-file passphrase",
        "keystore restore b --passphrase-file passphrase --platform-keystore other --json",
    ] {
        let outcome = place.run(words).done();
        printed += &outcome.stdout;
        printed += &outcome.stderr;
    }
    let audit = fs::read_to_string(place.path("keystore/audit.log")).unwrap();
    let backup = String::from_utf8_lossy(&fs::read(place.path("b")).unwrap()).into_owned();
    for number in [1, 2] {
        let file = place.path(&format!("keystore/versions/{number:08}.json"));
        let version: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for name in ["infrastructure", "customer"] {
            let key = version[name].as_str().unwrap();
            for text in [&printed, &audit, &backup] {
                assert!(!text.contains(key), "{name} of {number}");
            }
        }
    }
    for text in [&printed, &audit, &backup] {
        assert!(!text.contains("correct horse"));
    }
    for action in [
        "create-platform-key",
        "rotate-platform-key",
        "backup-keystore",
        "restore-keystore",
    ] {
        assert!(
            audit.contains(&format!("\"action\":\"{action}\"")),
            "{action}: {audit}"
        );
    }
}
