//! Keys whose versions are files of one directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bilayer::keys::customer;
use bilayer::keys::{CustomerKeyProvider, ErrorKind, KeyUri, KeyVersion, PassphraseSource};
use tempfile::TempDir;

use crate::keys::{
    KEYS, assert_error, encrypted_key, open, public_pem, round_trip, set_mode, unwrap_error, write,
};

/// A directory for the versions of one key.
struct KeyDir(TempDir);

impl KeyDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn uri(&self) -> String {
        format!("file:{}", self.path("volume").display())
    }

    /// Adds a file `volume.vN.SUFFIX`.
    fn add(&self, number: u32, suffix: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("volume.v{number}.{suffix}"));
        write(&path, text, 0o600);
        path
    }

    fn open(&self) -> Box<dyn CustomerKeyProvider> {
        open(&self.uri()).unwrap()
    }

    fn open_with(&self, passphrase: &PassphraseSource) -> Box<dyn CustomerKeyProvider> {
        customer::open(&KeyUri::parse(&self.uri()).unwrap(), passphrase).unwrap()
    }
}

#[track_caller]
fn assert_name(version: &KeyVersion, name: &str) {
    assert_eq!(version.name.as_deref(), Some(name));
}

#[test]
fn the_highest_enabled_version_wraps_and_every_enabled_one_unwraps() {
    let dir = KeyDir::new();
    dir.add(2, "pem", &KEYS[0]);
    let key = dir.open();
    assert!(key.can_unwrap());
    let old = round_trip(&*key);
    assert_name(&old, "2");
    let wrapped = old.key.wrap(b"kept").unwrap();
    // A rotation, while the key is open.
    dir.add(10, "pem", &KEYS[1]);
    let new = round_trip(&*key);
    assert_name(&new, "10");
    assert_eq!(key.unwrap(&old, &wrapped).unwrap()[..], *b"kept");
    // The name is only a hint.
    for name in [None, Some("10"), Some("x"), Some("02"), Some("../2")] {
        let name = name.map(str::to_owned);
        let version = KeyVersion {
            name,
            ..old.clone()
        };
        assert_eq!(key.unwrap(&version, &wrapped).unwrap()[..], *b"kept");
    }
    let marker = dir.add(10, "disabled", "");
    assert_name(&round_trip(&*key), "2");
    assert_error(
        &unwrap_error(&*key, &new),
        ErrorKind::KeyDisabled,
        "version 10",
    );
    dir.add(2, "disabled", "");
    let error = key.current().expect_err("none is left");
    assert_error(&error, ErrorKind::KeyDisabled, "version 10");
    assert!(error.hint().unwrap().contains(marker.to_str().unwrap()));
    fs::remove_file(marker).unwrap();
    assert_name(&round_trip(&*key), "10");
}

#[test]
fn an_expired_version_neither_wraps_nor_unwraps() {
    let dir = KeyDir::new();
    dir.add(1, "pem", &KEYS[0]);
    let key = dir.open();
    let version = round_trip(&*key);
    let dates = dir.add(1, "toml", "expires = 2020-01-01T00:00:00Z\n");
    for error in [
        key.current().expect_err("expired"),
        unwrap_error(&*key, &version),
    ] {
        assert_error(
            &error,
            ErrorKind::KeyExpired,
            "expired at 2020-01-01T00:00:00Z",
        );
        assert!(error.hint().unwrap().contains(dates.to_str().unwrap()));
    }
    // An older version does not take its place: that would undo the rotation.
    dir.add(2, "pem", &KEYS[1]);
    dir.add(2, "toml", "expires = 2020-01-01T00:00:00Z\n");
    dir.add(1, "toml", "");
    assert_error(
        &key.current().expect_err("expired"),
        ErrorKind::KeyExpired,
        "version 2",
    );
    dir.add(
        2,
        "toml",
        "not_before = 2020-01-01T00:00:00Z\nexpires = 2999-01-01T00:00:00Z\n",
    );
    assert_name(&round_trip(&*key), "2");
}

#[test]
fn a_version_whose_time_has_not_come_is_not_used_yet() {
    let dir = KeyDir::new();
    dir.add(2, "pem", &KEYS[1]);
    let key = dir.open();
    let version = round_trip(&*key);
    dir.add(2, "toml", "not_before = 2999-01-01T00:00:00Z\n");
    for error in [
        key.current().expect_err("early"),
        unwrap_error(&*key, &version),
    ] {
        assert_error(&error, ErrorKind::KeyExpired, "not valid before 2999");
    }
    dir.add(1, "pem", &KEYS[0]);
    assert_name(&round_trip(&*key), "1");
}

#[test]
fn a_deleted_version_is_named() {
    let dir = KeyDir::new();
    dir.add(1, "pem", &KEYS[0]);
    let file = dir.add(2, "pem", &KEYS[1]);
    let key = dir.open();
    let version = round_trip(&*key);
    fs::remove_file(&file).unwrap();
    let error = unwrap_error(&*key, &version);
    assert_error(&error, ErrorKind::KeyDeleted, file.to_str().unwrap());
    let nameless = KeyVersion {
        name: None,
        ..version.clone()
    };
    assert_error(
        &unwrap_error(&*key, &nameless),
        ErrorKind::WrongKey,
        "no version",
    );
    // Another key in its place.
    dir.add(2, "pem", &KEYS[2]);
    assert_error(
        &unwrap_error(&*key, &version),
        ErrorKind::WrongKey,
        "no version",
    );
    fs::remove_file(dir.path("volume.v1.pem")).unwrap();
    fs::remove_file(&file).unwrap();
    assert_error(
        &key.current().expect_err("gone"),
        ErrorKind::KeyDeleted,
        "volume",
    );
    // Without any version it is the file itself that is missing.
    let error = open(&dir.uri()).expect_err("missing");
    assert_error(&error, ErrorKind::KeyUnavailable, "volume");
}

#[test]
fn a_file_of_that_very_name_comes_first() {
    let dir = KeyDir::new();
    dir.add(1, "pem", &KEYS[0]);
    write(&dir.path("volume"), &KEYS[1], 0o600);
    assert_eq!(round_trip(&*dir.open()).name, None);
}

#[test]
fn what_others_could_change_is_refused_by_name() {
    let dir = KeyDir::new();
    let file = dir.add(1, "pem", &KEYS[0]);
    let key = dir.open();
    let version = round_trip(&*key);
    let root = dir.path("");
    let root = Path::new(root.to_str().unwrap().trim_end_matches('/'));
    let check = |path: &Path, loose: u32, mode: u32| {
        set_mode(path, loose);
        for error in [
            key.current().expect_err("loose"),
            unwrap_error(&*key, &version),
        ] {
            assert_error(&error, ErrorKind::KeyUnavailable, path.to_str().unwrap());
        }
        set_mode(path, mode);
        round_trip(&*key);
    };
    check(root, 0o770, 0o700);
    check(root, 0o1777, 0o700);
    assert!(open(&dir.uri()).is_ok());
    set_mode(root, 0o702);
    let error = open(&dir.uri()).expect_err("loose");
    assert_error(&error, ErrorKind::KeyUnavailable, root.to_str().unwrap());
    set_mode(root, 0o700);
    for mode in [0o620, 0o602, 0o640, 0o604] {
        check(&file, mode, 0o600);
    }
    let dates = dir.add(1, "toml", "");
    check(&dates, 0o622, 0o644);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(4711), None).unwrap();
        assert_error(
            &key.current().expect_err("foreign"),
            ErrorKind::KeyUnavailable,
            "4711",
        );
    }
}

#[test]
fn links_pipes_and_damaged_files_are_refused_by_name() {
    let dir = KeyDir::new();
    let file = dir.add(1, "pem", &KEYS[0]);
    let key = dir.open();
    round_trip(&*key);
    let check = |path: &Path, kind, part: &str| {
        let error = key.current().expect_err(part);
        assert_error(&error, kind, part);
        assert_error(&error, kind, path.to_str().unwrap());
    };
    let dates = dir.path("volume.v1.toml");
    for (text, part) in [
        ("expires = tomorrow", "dates"),
        ("expires = 2030-01-01", "no offset"),
        ("enabled = false", "unknown field"),
    ] {
        write(&dates, text, 0o600);
        check(&dates, ErrorKind::Usage, part);
    }
    fs::remove_file(&dates).unwrap();
    symlink(&file, &dates).unwrap();
    check(&dates, ErrorKind::KeyUnavailable, "symbolic link");
    fs::remove_file(&dates).unwrap();
    fs::rename(&file, dir.path("elsewhere")).unwrap();
    symlink(dir.path("elsewhere"), &file).unwrap();
    check(&file, ErrorKind::KeyUnavailable, "symbolic link");
    fs::remove_file(&file).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &file, kind, mode, 0).unwrap();
    check(&file, ErrorKind::KeyUnavailable, "no plain file");
    fs::remove_file(&file).unwrap();
    dir.add(1, "pem", "no key");
    check(&file, ErrorKind::Usage, "no PEM");
    dir.add(1, "pem", &"x".repeat(70_000));
    check(&file, ErrorKind::KeyUnavailable, "longer than");
    // A damaged version does not hide the others.
    let good = dir.add(2, "pem", &KEYS[1]);
    let version = round_trip(&*key);
    assert_name(&version, "2");
    fs::remove_file(good).unwrap();
    assert_error(
        &unwrap_error(&*key, &version),
        ErrorKind::KeyDeleted,
        "version 2",
    );
}

#[test]
fn only_the_version_that_is_needed_asks_for_its_passphrase() {
    let (private, public) = encrypted_key("secret");
    let dir = KeyDir::new();
    dir.add(1, "pem", &KEYS[0]);
    let plain = round_trip(&*dir.open());
    dir.add(2, "pem", &private);
    let source = |text: &str| {
        let path = dir.path("passphrase");
        write(&path, text, 0o600);
        PassphraseSource::File(path)
    };
    // Version 1 does not need it.
    let without = dir.open();
    let wrapped = plain.key.wrap(b"kept").unwrap();
    assert_eq!(without.unwrap(&plain, &wrapped).unwrap()[..], *b"kept");
    assert_error(
        &without.current().expect_err("none"),
        ErrorKind::KeyUnavailable,
        "v2.pem",
    );
    let with = dir.open_with(&source("secret\n"));
    let version = round_trip(&*with);
    assert_name(&version, "2");
    // It was read once; nobody is asked twice.
    fs::remove_file(dir.path("passphrase")).unwrap();
    round_trip(&*with);
    let wrong = dir.open_with(&source("wrong\n"));
    assert_error(
        &unwrap_error(&*wrong, &version),
        ErrorKind::WrongKey,
        "v2.pem",
    );
    // Neither is a version that may not be used.
    let marker = dir.add(2, "disabled", "");
    let missing = PassphraseSource::File(dir.path("missing"));
    let disabled = dir.open_with(&missing);
    assert_error(
        &unwrap_error(&*disabled, &version),
        ErrorKind::KeyDisabled,
        "version 2",
    );
    fs::remove_file(marker).unwrap();
    // With the public half beside, a wrap needs none.
    dir.add(2, "pub.pem", &public);
    let version = dir.open().current().unwrap();
    assert_name(&version, "2");
    let with = dir.open_with(&source("secret\n"));
    round_trip(&*with);
    dir.add(2, "pub.pem", &public_pem(plain.key.spki()));
    let foreign = with.current().unwrap();
    assert_error(
        &unwrap_error(&*with, &version),
        ErrorKind::Usage,
        "not the public half",
    );
    assert!(
        foreign.key.is_same_key(&version.key),
        "the private key was read already"
    );
}

#[test]
fn a_version_with_its_public_half_alone_only_wraps() {
    let dir = KeyDir::new();
    dir.add(1, "pem", &KEYS[0]);
    let version = round_trip(&*dir.open());
    dir.add(1, "pem", &public_pem(version.key.spki()));
    let key = dir.open();
    assert!(!key.can_unwrap());
    assert_eq!(key.current().unwrap(), version);
    assert_error(
        &unwrap_error(&*key, &version),
        ErrorKind::KeyUnavailable,
        "public half",
    );
}
