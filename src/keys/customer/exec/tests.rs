use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

/// A program whose text is a shell script, and the key behind it.
struct Program(tempfile::TempDir);

impl Program {
    fn new(script: &str) -> Self {
        let this = Self(tempfile::tempdir().expect("tempdir"));
        let text = format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n");
        // A fork of another test may have inherited a descriptor that is open for writing, so that
        // the file would be busy; `tee` is none of its parents.
        let mut tee = Command::new("tee");
        let tee = tee.arg(this.path()).stdin(Stdio::piped());
        let mut tee = tee.stdout(Stdio::null()).spawn().expect("tee");
        let mut pipe = tee.stdin.take().expect("pipe");
        pipe.write_all(text.as_bytes()).expect("write");
        drop(pipe);
        tee.wait().expect("tee");
        this.set_mode(0o755);
        this
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("program")
    }

    fn set_mode(&self, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path(), permissions).expect("chmod");
    }

    fn key(&self) -> Result<ExecKey, KeyError> {
        let uri = format!("exec:{}?key=name", self.path().display());
        let uri = KeyUri::parse(&uri).expect("uri");
        let crate::keys::uri::Scheme::Exec(program) = uri.scheme() else {
            panic!("another scheme");
        };
        ExecKey::open(&uri, program)
    }
}

#[track_caller]
fn assert_refused(script: &str, kind: ErrorKind, part: &str) {
    let program = Program::new(script);
    let error = program.key().expect("key").current().expect_err(part);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error} / {part}");
}

#[test]
fn what_is_no_answer_is_refused_and_not_shown() {
    let said = |text: &str| format!("echo '{text}'");
    for script in [
        "true".to_owned(),
        said("{\"plaintext\":\"c2VjcmV0\"}"),
        said("{\"versions\":[]} {}"),
        said("{\"versions\":[],\"more\":1}"),
        said("{\"versions\":[{\"name\":\"1\",\"state\":\"on\"}]}"),
        said("{\"versions\":[]}\n{\"versions\":[]}"),
    ] {
        let unavailable = ErrorKind::KeyUnavailable;
        assert_refused(&script, unavailable, "one line of JSON");
        let program = Program::new(&script);
        let error = program.key().expect("key").current().expect_err("refused");
        assert!(!error.to_string().contains("c2VjcmV0"), "{error}");
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("docs/KEYS.md"))
        );
    }
    for (name, key, part) in [
        ("1", "", "has no public key"),
        ("", "", "the name of a version"),
        ("a\\nb", "", "the name of a version"),
        ("1", ",\"public_key\":\"x\"", "no RSA key in PEM"),
    ] {
        let version = format!("{{\"name\":\"{name}\",\"state\":\"enabled\"{key}}}");
        let script = format!("cat <<'E'\n{{\"versions\":[{version}]}}\nE");
        assert_refused(&script, ErrorKind::KeyUnavailable, part);
    }
    assert_refused(
        &said("{\"versions\":[]}"),
        ErrorKind::KeyDeleted,
        "no such version",
    );
    assert_refused(
        "yes | tr -d '\\n'",
        ErrorKind::KeyUnavailable,
        "longer than",
    );
}

#[test]
fn errors_of_the_program_have_their_kinds() {
    let error = |kind: &str| {
        let error = format!("{{\"kind\":\"{kind}\",\"message\":\"because\\tof it\"}}");
        format!("cat <<'E'\n{{\"error\":{error}}}\nE")
    };
    for kind in [
        ErrorKind::KeyUnavailable,
        ErrorKind::KeyDisabled,
        ErrorKind::KeyExpired,
        ErrorKind::KeyDeleted,
        ErrorKind::KeyForbidden,
        ErrorKind::KeyUnreachable,
        ErrorKind::WrongKey,
        ErrorKind::Tampered,
    ] {
        assert_refused(&error(kind.name()), kind, "because of it");
    }
    for kind in ["", "io", "no-space", "disabled"] {
        assert_refused(&error(kind), ErrorKind::KeyUnavailable, "unknown kind");
    }
}

#[test]
fn a_program_that_fails_says_why_by_its_error_output() {
    let unreachable = ErrorKind::KeyUnreachable;
    let script = "echo >&2; echo 'no route  to host' >&2; exit 3";
    assert_refused(script, unreachable, "exit code 3: no route  to host");
    assert_refused("kill -KILL $$", unreachable, "signal 9");
    let program = Program::new("sleep 60");
    let mut key = program.key().expect("key");
    key.limits.time = Duration::from_millis(200);
    let start = Instant::now();
    let error = key.current().expect_err("slow");
    assert_eq!(error.kind(), unreachable);
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_program_that_others_can_change_is_not_started() {
    let program = Program::new("touch started; echo '{\"versions\":[]}'");
    let key = program.key().expect("key");
    let shown = program.path().display().to_string();
    for mode in [0o775, 0o757] {
        program.set_mode(mode);
        for error in [program.key().map(drop), key.current().map(drop)] {
            let error = error.expect_err("loose");
            assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
            assert!(
                error.to_string().contains(&format!("{shown} is writable")),
                "{error}"
            );
        }
    }
    program.set_mode(0o644);
    let error = key.current().expect_err("not executable");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
    std::fs::remove_file(program.path()).expect("remove");
    let error = program.key().expect_err("missing");
    assert!(error.to_string().contains(&shown), "{error}");
}
