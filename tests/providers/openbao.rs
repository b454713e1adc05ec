//! Keys in a real OpenBao server, and everything that can be wrong with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use bilayer::keys::{CustomerKeyProvider, ErrorKind, KeyError, KeyVersion, WrapAlgorithm};

use crate::certificates::free_port;
use crate::keys::{assert_error, open, round_trip, set_mode, unwrap_error, write};
use crate::server::Server;

/// Both errors: of wrapping anew, and of unwrapping.
fn errors(key: &dyn CustomerKeyProvider, version: &KeyVersion) -> [KeyError; 2] {
    [
        key.current().expect_err("refused"),
        unwrap_error(key, version),
    ]
}

#[test]
fn keys_of_all_sizes_wrap_and_unwrap() {
    let Some(server) = Server::start("keys_of_all_sizes_wrap_and_unwrap") else {
        return;
    };
    for bits in [2048, 3072, 4096] {
        let name = format!("key-{bits}");
        server.make_key(&name, &format!("rsa-{bits}"));
        let key = open(&server.uri_with_token(&name)).unwrap();
        let version = round_trip(&*key);
        assert_eq!(version.name.as_deref(), Some("1"));
        assert_eq!(version.key.bits(), bits);
        // Damaged, and of another key.
        let mut wrapped = version.key.wrap(b"plain").unwrap();
        wrapped[100] ^= 1;
        for bad in [&wrapped[..], &wrapped[1..], &vec![0xFF; bits / 8], &[]] {
            let error = key.unwrap(&version, bad).expect_err("damaged");
            assert_error(&error, ErrorKind::Tampered, "does not open");
        }
        let with_sha1 = KeyVersion {
            key: version
                .key
                .clone()
                .with_algorithm(WrapAlgorithm::RsaOaepSha1),
            ..version
        };
        assert_error(
            &unwrap_error(&*key, &with_sha1),
            ErrorKind::KeyUnavailable,
            "RSA-OAEP",
        );
    }
    server.make_key("other", "rsa-2048");
    let other = open(&server.uri_with_token("other")).unwrap();
    let version = other.current().unwrap();
    let key = open(&server.uri_with_token("key-2048")).unwrap();
    assert_error(
        &unwrap_error(&*key, &version),
        ErrorKind::WrongKey,
        "no version",
    );
    server.make_key("symmetric", "aes256-gcm96");
    let symmetric = open(&server.uri_with_token("symmetric")).unwrap();
    let error = symmetric.current().expect_err("no RSA key");
    assert_error(&error, ErrorKind::Usage, "aes256-gcm96");
    let vault = server
        .uri_with_token("key-2048")
        .replace("openbao:", "vault:");
    round_trip(&*open(&vault).unwrap());
}

#[test]
fn rotated_disabled_and_trimmed_versions() {
    let Some(server) = Server::start("rotated_disabled_and_trimmed_versions") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let uri = server.uri_with_token("k");
    let key = open(&uri).unwrap();
    let old = round_trip(&*key);
    server.run("write -f transit/keys/k/rotate");
    let new = round_trip(&*key);
    assert_eq!(new.name.as_deref(), Some("2"));
    assert!(!new.key.is_same_key(&old.key));
    // The name is only a hint; the ciphertext goes to the version with the public half.
    let wrapped = old.key.wrap(b"kept").unwrap();
    for name in [
        None,
        Some("1"),
        Some("2"),
        Some("9"),
        Some("1:x"),
        Some("-1"),
        Some(""),
    ] {
        let name = name.map(str::to_owned);
        let version = KeyVersion {
            name,
            ..old.clone()
        };
        assert_eq!(key.unwrap(&version, &wrapped).unwrap()[..], *b"kept");
    }
    let pinned = open(&uri.replace("/k?", "/k/1?")).unwrap();
    assert_eq!(round_trip(&*pinned), old);
    let missing = open(&uri.replace("/k?", "/k/3?")).unwrap();
    assert_error(
        &missing.current().expect_err("3"),
        ErrorKind::KeyDeleted,
        "no version 3",
    );

    server.run("write transit/keys/k/config min_decryption_version=2");
    round_trip(&*key);
    assert_error(
        &unwrap_error(&*key, &old),
        ErrorKind::KeyDisabled,
        "version 1",
    );
    assert_error(
        &pinned.current().expect_err("1"),
        ErrorKind::KeyDisabled,
        "version 1",
    );
    let nameless = KeyVersion {
        name: None,
        ..old.clone()
    };
    assert_error(
        &unwrap_error(&*key, &nameless),
        ErrorKind::WrongKey,
        "no version",
    );
    server.run("write transit/keys/k/config min_decryption_version=1");
    round_trip(&*pinned);
    server.run("write transit/keys/k/config min_encryption_version=2");
    assert_error(
        &pinned.current().expect_err("1"),
        ErrorKind::KeyDisabled,
        "version 1",
    );
    assert_eq!(key.unwrap(&old, &wrapped).unwrap()[..], *b"kept");

    server.run("write transit/keys/k/config min_decryption_version=2 min_encryption_version=2");
    server.run("write transit/keys/k/trim min_available_version=2");
    assert_error(
        &unwrap_error(&*key, &old),
        ErrorKind::KeyDeleted,
        "version 1",
    );
    round_trip(&*key);
}

#[test]
fn deleted_and_restored_keys() {
    let Some(server) = Server::start("deleted_and_restored_keys") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let key = open(&server.uri_with_token("k")).unwrap();
    let version = round_trip(&*key);
    server.run("delete transit/keys/k/soft-delete");
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyDeleted, "soft-deleted");
        assert!(error.hint().unwrap().contains("soft-delete-restore"));
    }
    server.run("write -f transit/keys/k/soft-delete-restore");
    assert_eq!(round_trip(&*key), version);
    server.run("write transit/keys/k/config deletion_allowed=true");
    server.run("delete transit/keys/k");
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyDeleted, "does not exist");
    }
    // Another key under the same name.
    server.make_key("k", "rsa-2048");
    assert_error(
        &unwrap_error(&*key, &version),
        ErrorKind::WrongKey,
        "no version",
    );
    server.run("secrets disable transit");
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyDeleted, "no handler for route");
    }
}

#[test]
fn what_a_policy_forbids_and_a_token_that_has_ended() {
    let Some(server) = Server::start("what_a_policy_forbids_and_a_token_that_has_ended") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let version = round_trip(&*open(&server.uri_with_token("k")).unwrap());
    let forbidden = server.token_file("forbidden", "-policy=default");
    let key = open(&server.uri("k", &format!("token-file={}", forbidden.display()))).unwrap();
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyForbidden, "permission denied");
        assert!(error.hint().unwrap().contains("MOUNT/decrypt/KEY"));
    }
    // Looking the key up, but not decrypting.
    let policy = server.path("look");
    write(
        &policy,
        "path \"transit/keys/k\" { capabilities = [\"read\"] }",
        0o600,
    );
    server.run(&format!("policy write look {}", policy.display()));
    let look = server.token_file("look-token", "-policy=look");
    let key = open(&server.uri("k", &format!("token-file={}", look.display()))).unwrap();
    assert_eq!(key.current().unwrap(), version);
    assert_error(
        &unwrap_error(&*key, &version),
        ErrorKind::KeyForbidden,
        "permission denied",
    );

    let short = server.token_file("short", "-policy=use-keys -ttl=1s -explicit-max-ttl=1s");
    let key = open(&server.uri("k", &format!("token-file={}", short.display()))).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyForbidden, short.to_str().unwrap());
        assert!(error.to_string().contains("has expired"), "{error}");
    }
    // Whoever renews it replaces the file.
    server.token_file("short", "-policy=use-keys");
    round_trip(&*key);
}

#[test]
fn a_role_logs_in_again_when_its_token_has_ended() {
    let Some(server) = Server::start("a_role_logs_in_again_when_its_token_has_ended") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let query = server.role_query("token_ttl=1s token_max_ttl=1s");
    let key = open(&server.uri("k", &query)).unwrap();
    let version = round_trip(&*key);
    std::thread::sleep(Duration::from_millis(1500));
    round_trip(&*key);
    // Revoked before its time.
    server.role_query("token_ttl=1h token_max_ttl=1h");
    std::thread::sleep(Duration::from_millis(1500));
    round_trip(&*key);
    server.run("lease revoke -force -prefix auth/approle");
    round_trip(&*key);
    // A token that works twice only: for one look-up and one decryption.
    server.run("write auth/approle/role/bilayer token_policies=use-keys token_num_uses=1");
    server.run("lease revoke -force -prefix auth/approle");
    round_trip(&*key);
    // The role may not use keys any more.
    server.run("write auth/approle/role/bilayer token_policies=default token_num_uses=0");
    server.run("lease revoke -force -prefix auth/approle");
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyForbidden, "permission denied");
    }
    server.secret_file("secret-id", "wrong");
    server.run("lease revoke -force -prefix auth/approle");
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyForbidden, "invalid role or secret ID");
    }
    let elsewhere = open(&server.uri("k", &format!("{query}&approle-mount=none"))).unwrap();
    let error = elsewhere.current().expect_err("no login");
    assert_error(&error, ErrorKind::KeyForbidden, "auth/none/login");
    assert!(error.hint().unwrap().contains("approle-mount"));
}

#[test]
fn an_agent_logs_in_for_us() {
    let Some(server) = Server::start("an_agent_logs_in_for_us") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let agent = server.start_agent();
    let uri = format!(
        "openbao:https://bao.example/transit/k?agent=unix:{}",
        agent.socket.display()
    );
    let key = open(&uri).unwrap();
    // It has a socket before it has a token.
    let end = Instant::now() + Duration::from_secs(30);
    while key.current().is_err() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
    let version = round_trip(&*key);
    server.run("delete transit/keys/k/soft-delete");
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyDeleted, "soft-deleted");
    }
    let socket = agent.socket.clone();
    drop(agent);
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyUnreachable, socket.to_str().unwrap());
    }
}

#[test]
fn an_agent_that_does_not_answer_or_is_somebody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let key = open(&format!(
        "openbao:https://b/transit/k?agent=unix:{}",
        socket.display()
    ));
    let key = key.unwrap();
    let start = Instant::now();
    let error = key.current().expect_err("silent");
    assert_error(&error, ErrorKind::KeyUnreachable, "no answer in time");
    assert!(start.elapsed() < Duration::from_secs(40));
    drop(listener);
    if !rustix::process::geteuid().is_root() {
        return;
    }
    std::fs::remove_file(&socket).unwrap();
    set_mode(dir.path(), 0o777);
    let script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); \
                  s.bind(sys.argv[1]); s.listen(); print(flush=True); time.sleep(60)";
    let mut other = std::process::Command::new("setpriv")
        .args([
            "--reuid=4711",
            "--regid=4711",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            script,
        ])
        .arg(&socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let error = key.current().expect_err("somebody else's");
    assert_error(&error, ErrorKind::KeyUnreachable, "belongs to user 4711");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_sealed_server_and_one_that_is_gone() {
    let Some(mut server) = Server::start("a_sealed_server_and_one_that_is_gone") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let key = open(&server.uri_with_token("k")).unwrap();
    let by_role = open(&server.uri("k", &server.role_query(""))).unwrap();
    let version = round_trip(&*key);
    server.seal();
    for key in [&key, &by_role] {
        for error in errors(&**key, &version) {
            assert_error(&error, ErrorKind::KeyUnreachable, "sealed");
            assert!(error.hint().unwrap().contains("unseal"));
        }
    }
    server.unseal();
    // The engine needs a moment.
    let end = Instant::now() + Duration::from_secs(20);
    while key.current().is_err() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    round_trip(&*key);
    round_trip(&*by_role);
    server.stop();
    for error in errors(&*key, &version) {
        assert_error(&error, ErrorKind::KeyUnreachable, "https://127.0.0.1");
    }
    let unknown = server
        .uri("k", "token-file=/dev/null")
        .replace("127.0.0.1", "no-host.invalid");
    // The token is read before the server is asked.
    let error = open(&unknown).unwrap().current().expect_err("no token");
    assert_error(&error, ErrorKind::KeyUnavailable, "/dev/null");
    let token = server.path("token");
    let unknown = unknown.replace("/dev/null", token.to_str().unwrap());
    let error = open(&unknown).unwrap().current().expect_err("no host");
    assert_error(&error, ErrorKind::KeyUnreachable, "no-host.invalid");
}

#[test]
fn certificates_that_are_not_accepted() {
    let Some(server) = Server::start("certificates_that_are_not_accepted") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let uri = server.uri_with_token("k");
    let other = server.path("other-ca.pem");
    let refused = |uri: &str| open(uri).unwrap().current().expect_err("refused");
    let error = refused(&uri.replace("/ca.pem", "/other-ca.pem"));
    assert_error(
        &error,
        ErrorKind::KeyUnreachable,
        "certificate is not accepted",
    );
    assert!(error.hint().unwrap().contains("ca-file"));
    // Of the system's authorities none has signed it.
    let system = uri.replace(&format!("ca-file={}&", server.path("ca.pem").display()), "");
    assert_error(
        &refused(&system),
        ErrorKind::KeyUnreachable,
        "certificate is not accepted",
    );
    for (text, mode, kind, part) in [
        ("", 0o644, ErrorKind::Usage, "no certificate"),
        (
            "-----BEGIN CERTIFICATE-----\n",
            0o644,
            ErrorKind::Usage,
            "certificates",
        ),
        ("x", 0o666, ErrorKind::KeyUnavailable, "mode 0666"),
    ] {
        write(&other, text, mode);
        let error = open(&uri.replace("/ca.pem", "/other-ca.pem")).expect_err(part);
        assert_error(&error, kind, part);
        assert_error(&error, kind, other.to_str().unwrap());
    }
    let missing = open(&uri.replace("/ca.pem", "/missing.pem")).expect_err("missing");
    assert_error(&missing, ErrorKind::KeyUnavailable, "missing.pem");
    drop(server);
    let Some(server) = Server::start_with("certificates_for_another_name", "DNS:bao.example")
    else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let error = refused(&server.uri_with_token("k"));
    assert_error(&error, ErrorKind::KeyUnreachable, "not valid for name");
}

#[test]
fn files_with_tokens_are_their_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let uri = format!(
        "openbao:https://127.0.0.1:{}/transit/k?token-file={}",
        free_port(),
        path.display()
    );
    let check = |part: &str| {
        let error = open(&uri).unwrap().current().expect_err(part);
        assert_error(&error, ErrorKind::KeyUnavailable, part);
        assert_error(&error, ErrorKind::KeyUnavailable, path.to_str().unwrap());
    };
    check("No such file");
    for mode in [0o640, 0o604, 0o620] {
        write(&path, "s.token\n", mode);
        check(&format!("mode {mode:04o}"));
    }
    for text in ["", "\n", "two words", "a\nb", "caf\u{e9}"] {
        write(&path, text, 0o600);
        check("not one line");
    }
    write(&path, &"x".repeat(9000), 0o600);
    check("longer than");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    check("no plain file");
}

/// Passes connections on, after a time.
fn slow_proxy(to: u16, wait: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                std::thread::sleep(wait);
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                let (mut one, mut two) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut one, &mut two));
                let (mut server, mut stream) = (server, stream);
                let _ = std::io::copy(&mut server, &mut stream);
            });
        }
    });
    port
}

#[test]
fn a_slow_server_is_waited_for_and_a_silent_one_is_given_up() {
    let Some(server) = Server::start("a_slow_server_is_waited_for_and_a_silent_one_is_given_up")
    else {
        return;
    };
    server.make_key("k", "rsa-2048");
    let token = server.token_file("token", "-policy=use-keys");
    let query = format!("token-file={}", token.display());
    let slow = slow_proxy(server.port, Duration::from_secs(2));
    round_trip(&*open(&server.uri_at(slow, "k", &query)).unwrap());
    let silent = slow_proxy(server.port, Duration::from_secs(120));
    let start = Instant::now();
    let error = open(&server.uri_at(silent, "k", &query)).unwrap();
    let error = error.current().expect_err("silent");
    assert_error(&error, ErrorKind::KeyUnreachable, "no answer in time");
    assert!(
        start.elapsed() < Duration::from_secs(40),
        "{:?}",
        start.elapsed()
    );
}

/// An agent that gives these answers, one a connection, and repeats the last one; the requests.
fn answering(
    dir: &tempfile::TempDir,
    answers: Vec<String>,
) -> (String, std::sync::mpsc::Receiver<String>) {
    let socket = dir.path().join("socket");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let (sender, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut answers = answers.iter().peekable();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let answer = *answers.peek().unwrap();
            if answers.len() > 1 {
                answers.next();
            }
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let _ = sender.send(String::from_utf8_lossy(&request[..count]).into_owned());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let uri = format!(
        "openbao:https://b/transit/k?agent=unix:{}",
        socket.display()
    );
    (uri, requests)
}

#[test]
fn answers_that_no_server_should_give() {
    let dir = tempfile::tempdir().unwrap();
    let http = |head: &str, body: &str| {
        let len_bytes = body.len();
        format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {len_bytes}\r\n\r\n{body}")
    };
    let unreachable = ErrorKind::KeyUnreachable;
    for (answer, part) in [
        (http("200 OK", "<html>"), "cannot be read"),
        (http("200 OK", "{\"data\":{}}"), "cannot be read"),
        (http("200 OK", &" ".repeat((1 << 20) + 1)), "too long"),
        (
            http("307 Go\r\nLocation: https://evil.example/v1?t=1", ""),
            "evil.example/v1,",
        ),
        (http("429 Wait\r\nRetry-After: 3600", ""), "wait 3600 s"),
        (http("412 Behind", ""), "status 412"),
        ("nonsense\r\n\r\n".to_owned(), "cannot be asked"),
        (String::new(), "cannot be asked"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_owned(),
            "cannot be asked",
        ),
    ] {
        let (uri, _requests) = answering(&dir, vec![answer]);
        let error = open(&uri).unwrap().current().expect_err(part);
        assert_error(&error, unreachable, part);
    }
    // A server that is busy for a moment is asked again when it says so.
    let busy = http("429 Wait\r\nRetry-After: 1", "");
    let deleted = http("404 None", "{\"errors\":[]}");
    let (uri, requests) = answering(&dir, vec![busy.clone(), busy, deleted]);
    let namespaced = open(&format!("{uri}&namespace=team/a")).unwrap();
    let start = Instant::now();
    assert_error(
        &namespaced.current().expect_err("404"),
        ErrorKind::KeyDeleted,
        "not exist",
    );
    assert!(start.elapsed() >= Duration::from_secs(2));
    let request = requests.recv().unwrap();
    assert!(
        request.starts_with("GET /v1/transit/keys/k HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains("x-vault-namespace: team/a\r\n"),
        "{request}"
    );
    assert!(!request.contains("x-vault-token"), "{request}");
}
