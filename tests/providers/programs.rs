//! A key behind a program: the example of docs/KEYS.md, with the real `openssl`.

use std::fs;
use std::path::PathBuf;

use bilayer::keys::{CustomerKeyProvider, ErrorKind, KeyError, KeyVersion, WrapAlgorithm};
use tempfile::TempDir;

use crate::keys::{KEYS, assert_error, open, round_trip, set_mode, unwrap_error, write};

/// The example program, with a directory of keys of its own.
pub(crate) struct Example(TempDir);

impl Example {
    pub(crate) fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let text = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/openssl-key");
        let text = fs::read_to_string(text).unwrap();
        let standard = "/etc/bilayer/openssl-keys";
        assert!(text.contains(&format!("KEYS = \"{standard}\"")));
        let text = text.replace(standard, this.0.path().to_str().unwrap());
        // Not executed, but read by its interpreter, so that it is never busy.
        write(&this.path("program.py"), &text, 0o644);
        let start = format!(
            "#!/bin/sh\nexec /usr/bin/python3 -I {}\n",
            this.path("program.py").display()
        );
        let copied = std::process::Command::new("sh")
            .args([
                "-c",
                "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"",
                "sh",
                &start,
            ])
            .arg(this.path("program"))
            .status();
        assert!(copied.unwrap().success());
        fs::create_dir(this.path("accounts")).unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn uri(&self) -> String {
        format!("exec:{}?key=accounts", self.path("program").display())
    }

    pub(crate) fn add(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path("accounts").join(name);
        write(&path, text, 0o600);
        path
    }

    fn open(&self) -> Box<dyn CustomerKeyProvider> {
        open(&self.uri()).unwrap()
    }
}

#[test]
fn the_example_wraps_rotates_and_disables() {
    let example = Example::new();
    example.add("1.pem", &KEYS[0]);
    let key = example.open();
    let old = round_trip(&*key);
    assert_eq!(old.name.as_deref(), Some("1"));
    let new_file = example.add("10.pem", &KEYS[1]);
    let new = round_trip(&*key);
    assert_eq!(new.name.as_deref(), Some("10"));
    let wrapped = old.key.wrap(b"kept").unwrap();
    for name in ["1", "10", "-pass", "../1", ""] {
        let name = Some(name.to_owned());
        let version = KeyVersion {
            name,
            ..old.clone()
        };
        assert_eq!(key.unwrap(&version, &wrapped).unwrap()[..], *b"kept");
    }
    let pinned = open(&format!("{}&version=1", example.uri())).unwrap();
    assert_eq!(round_trip(&*pinned), old);
    let unknown = open(&format!("{}&version=7", example.uri())).unwrap();
    assert_error(
        &unknown.current().expect_err("7"),
        ErrorKind::KeyDeleted,
        "no such version",
    );
    let marker = example.add("10.disabled", "");
    assert_eq!(round_trip(&*key), old);
    assert_error(
        &unwrap_error(&*key, &new),
        ErrorKind::KeyDisabled,
        "version 10",
    );
    let marker_of_old = example.add("1.disabled", "");
    assert_error(
        &key.current().expect_err("none"),
        ErrorKind::KeyDisabled,
        "version 10",
    );
    fs::remove_file(marker).unwrap();
    fs::remove_file(marker_of_old).unwrap();
    fs::remove_file(new_file).unwrap();
    assert_error(
        &unwrap_error(&*key, &new),
        ErrorKind::WrongKey,
        "no version",
    );
    assert_eq!(round_trip(&*key), old);
}

#[test]
fn wraps_of_both_algorithms_are_opened_and_damaged_ones_are_not() {
    let example = Example::new();
    example.add("1.pem", &KEYS[0]);
    let key = example.open();
    let version = key.current().unwrap();
    let with_sha1 = KeyVersion {
        key: version
            .key
            .clone()
            .with_algorithm(WrapAlgorithm::RsaOaepSha1),
        ..version.clone()
    };
    let wrapped = with_sha1.key.wrap(b"plain").unwrap();
    assert_eq!(key.unwrap(&with_sha1, &wrapped).unwrap()[..], *b"plain");
    let refused = |version: &KeyVersion, wrapped: &[u8]| -> KeyError {
        key.unwrap(version, wrapped).expect_err("refused")
    };
    assert_error(&refused(&version, &wrapped), ErrorKind::Tampered, "decrypt");
    for bad in [&wrapped[1..], &[0xFF; 256], &[]] {
        assert_error(&refused(&with_sha1, bad), ErrorKind::Tampered, "decrypt");
    }
}

#[test]
fn a_key_that_is_not_there_is_named() {
    let example = Example::new();
    let other = open(&example.uri().replace("accounts", "others")).unwrap();
    assert_error(
        &other.current().expect_err("none"),
        ErrorKind::KeyDeleted,
        "no key others",
    );
    let odd = open(&example.uri().replace("accounts", "../x")).unwrap();
    assert_error(
        &odd.current().expect_err("odd"),
        ErrorKind::KeyUnavailable,
        "?key=NAME",
    );
    example.add("1.pem", "no key");
    let error = example.open().current().expect_err("damaged");
    assert_error(&error, ErrorKind::KeyUnavailable, "version 1");
    fs::remove_dir_all(example.path("accounts")).unwrap();
    let error = example.open().current().expect_err("deleted");
    assert_error(&error, ErrorKind::KeyDeleted, "no key accounts");
    // A directory of the program that others can change.
    set_mode(example.0.path(), 0o777);
    let error = open(&example.uri()).expect_err("loose");
    let shown = example.0.path().to_str().unwrap();
    assert_error(&error, ErrorKind::KeyUnavailable, shown);
}
