//! Keys in a vault that answers as Azure Key Vault does, and everything that can be wrong with it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bilayer::keys::{CustomerKeyProvider, ErrorKind, KeyError, KeyVersion, WrapAlgorithm};
use serde_json::{Value, json};

use crate::keys::{assert_error, open, round_trip, unwrap_error, write};
use crate::vault::{CLIENT, SECRET, TENANT, Vault, name_of, version};

/// Both errors: of wrapping anew, and of unwrapping.
fn errors(key: &dyn CustomerKeyProvider, version: &KeyVersion) -> [KeyError; 2] {
    [
        key.current().expect_err("refused"),
        unwrap_error(key, version),
    ]
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

#[test]
fn a_vault_unwraps_what_was_wrapped_here() {
    let Some(mut vault) = Vault::start("a_vault_unwraps_what_was_wrapped_here") else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let first = round_trip(&*key);
    assert_eq!(first.name.as_deref(), Some(&*name_of(1)));
    let mut wrapped = first.key.wrap(b"plain").unwrap();
    wrapped[100] ^= 1;
    for bad in [&wrapped[..], &wrapped[1..], &[0x01; 256], &[]] {
        let error = key.unwrap(&first, bad).expect_err("damaged");
        assert_error(&error, ErrorKind::Tampered, "does not open");
    }
    let with_sha1 = KeyVersion {
        key: first.key.clone().with_algorithm(WrapAlgorithm::RsaOaepSha1),
        ..first.clone()
    };
    assert_error(
        &unwrap_error(&*key, &with_sha1),
        ErrorKind::KeyUnavailable,
        "RSA-OAEP",
    );
    let mut hsm = version(1, 1);
    hsm["kty"] = "RSA-HSM".into();
    let mut curve = version(1, 0);
    curve["kty"] = "EC".into();
    let mut no_unwrap = version(1, 0);
    no_unwrap["ops"] = json!(["sign"]);
    vault.set(|state| {
        state["keys"]["hsm"] = json!([hsm]);
        state["keys"]["curve"] = json!([curve]);
        state["keys"]["sign"] = json!([no_unwrap]);
    });
    round_trip(&*open(&vault.uri("hsm")).unwrap());
    let other = open(&vault.uri("hsm")).unwrap();
    assert_error(
        &unwrap_error(&*other, &first),
        ErrorKind::WrongKey,
        "no version",
    );
    let curve = open(&vault.uri("curve")).unwrap();
    let error = curve.current().expect_err("no RSA key");
    assert_error(&error, ErrorKind::Usage, "type EC");
    let sign = open(&vault.uri("sign")).unwrap();
    let error = sign.current().expect_err("cannot unwrap");
    assert_error(&error, ErrorKind::KeyForbidden, "may not unwrap");
}

#[test]
fn names_of_versions_are_checked_before_they_are_sent() {
    let Some(mut vault) = Vault::start("names_of_versions_are_checked_before_they_are_sent") else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let old = round_trip(&*key);
    vault.add_version(2, 1);
    let wrapped = old.key.wrap(b"kept").unwrap();
    let upper = name_of(1).to_uppercase();
    let (second, missing) = (name_of(2), name_of(9));
    vault.take_requests();
    for name in [
        None,
        Some(&*upper),
        Some(&*second),
        Some(&*missing),
        Some("../secrets/x"),
        Some("evil?api-version=1&x="),
        Some("0123456789abcdef0123456789abcde/"),
        Some(""),
    ] {
        let version = KeyVersion {
            name: name.map(str::to_owned),
            key: old.key.clone(),
        };
        assert_eq!(key.unwrap(&version, &wrapped).unwrap()[..], *b"kept");
    }
    let requests = vault.take_requests();
    assert!(
        requests.contains(&format!("/keys/k/{missing}")),
        "{requests}"
    );
    for line in requests.lines() {
        let request: Value = serde_json::from_str(line).unwrap();
        let Some(path) = request["path"].as_str() else {
            continue;
        };
        let known = [name_of(1), name_of(2), name_of(9), "versions".to_owned()];
        let name = path.split('/').nth(3).unwrap();
        assert!(known.iter().any(|it| it == name), "{path}");
    }
}

#[test]
fn rotated_disabled_and_expired_versions() {
    let Some(mut vault) = Vault::start("rotated_disabled_and_expired_versions") else {
        return;
    };
    let uri = vault.uri("k");
    let key = open(&uri).unwrap();
    let old = round_trip(&*key);
    vault.add_version(2, 1);
    let new = round_trip(&*key);
    assert_eq!(new.name.as_deref(), Some(&*name_of(2)));
    assert!(!new.key.is_same_key(&old.key));
    let wrapped = old.key.wrap(b"kept").unwrap();
    assert_eq!(key.unwrap(&old, &wrapped).unwrap()[..], *b"kept");
    let pin = |number| uri.replace("/k?", &format!("/k/{}?", name_of(number)));
    let pinned = open(&pin(1)).unwrap();
    assert_eq!(round_trip(&*pinned), old);
    let missing = open(&pin(7)).unwrap();
    assert_error(
        &missing.current().expect_err("7"),
        ErrorKind::KeyDeleted,
        &name_of(7),
    );

    // Rotated, and the old one disabled.
    vault.set_version(0, "enabled", false.into());
    assert_eq!(round_trip(&*key), new);
    assert_error(
        &unwrap_error(&*key, &old),
        ErrorKind::KeyDisabled,
        &name_of(1),
    );
    for error in errors(&*pinned, &old) {
        assert_error(&error, ErrorKind::KeyDisabled, "is disabled");
        assert!(error.hint().unwrap().contains("set-attributes --enabled"));
    }
    // The newest that is enabled is followed, and neither one that has expired.
    vault.set_version(0, "enabled", true.into());
    vault.set_version(1, "enabled", false.into());
    assert_eq!(key.current().unwrap(), old);
    assert_error(
        &unwrap_error(&*key, &new),
        ErrorKind::KeyDisabled,
        &name_of(2),
    );
    vault.set_version(1, "enabled", true.into());
    vault.set_version(1, "exp", (now() - 10).into());
    assert_eq!(key.current().unwrap(), old);
    assert_error(
        &unwrap_error(&*key, &new),
        ErrorKind::KeyExpired,
        "has expired at 20",
    );
    vault.set_version(0, "nbf", (now() + 3600).into());
    for error in errors(&*pinned, &old) {
        assert_error(&error, ErrorKind::KeyExpired, "is not valid before 20");
    }
    // Of none that may be used the newest says why.
    assert_error(
        &key.current().expect_err("none"),
        ErrorKind::KeyExpired,
        &name_of(2),
    );
    vault.set_version(0, "enabled", false.into());
    vault.set_version(1, "enabled", false.into());
    for error in errors(&*key, &new) {
        assert_error(&error, ErrorKind::KeyDisabled, &name_of(2));
    }
}

#[test]
fn lists_of_versions_have_pages() {
    let Some(mut vault) = Vault::start("lists_of_versions_have_pages") else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let old = round_trip(&*key);
    // By its name the newest is on the first page, the one before it on the last.
    for number in 2..=6 {
        vault.add_version(number, 1 + number % 2);
    }
    vault.set_version(0, "created", 100.into());
    assert_eq!(key.current().unwrap(), old);
    let nameless = KeyVersion {
        name: None,
        key: old.key.clone(),
    };
    let wrapped = old.key.wrap(b"kept").unwrap();
    assert_eq!(key.unwrap(&nameless, &wrapped).unwrap()[..], *b"kept");
    // No token goes to a server that a page names.
    vault.set(|state| state["next_host"] = "evil.example".into());
    let error = key.current().expect_err("elsewhere");
    assert_error(&error, ErrorKind::KeyUnreachable, "evil.example");
}

#[test]
fn vaults_without_purge_protection_get_no_new_wraps() {
    let Some(mut vault) = Vault::start("vaults_without_purge_protection_get_no_new_wraps") else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let old = round_trip(&*key);
    for level in [
        json!("Purgeable"),
        json!("Recoverable+Purgeable"),
        json!("CustomizedRecoverable+Purgeable"),
        Value::Null,
    ] {
        vault.set_version(0, "recoveryLevel", level);
        let error = key.current().expect_err("purgeable");
        assert_error(&error, ErrorKind::KeyUnavailable, "no purge protection");
        assert!(error.hint().unwrap().contains("--enable-purge-protection"));
        let wrapped = old.key.wrap(b"kept").unwrap();
        assert_eq!(key.unwrap(&old, &wrapped).unwrap()[..], *b"kept");
    }
    for level in [
        "Recoverable+ProtectedSubscription",
        "CustomizedRecoverable",
        "CustomizedRecoverable+ProtectedSubscription",
    ] {
        vault.set_version(0, "recoveryLevel", level.into());
        round_trip(&*key);
    }
}

#[test]
fn forbidden_and_missing_keys() {
    let Some(mut vault) = Vault::start("forbidden_and_missing_keys") else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let old = round_trip(&*key);
    vault.set(|state| state["forbidden"] = json!(["get"]));
    for error in errors(&*key, &old) {
        assert_error(&error, ErrorKind::KeyForbidden, "not allowed to get");
        assert!(error.hint().unwrap().contains("unwrapKey"));
    }
    vault.set(|state| state["forbidden"] = json!(["unwrapkey"]));
    let error = unwrap_error(&*key, &old);
    assert_error(&error, ErrorKind::KeyForbidden, "not allowed to unwrapkey");
    // With a version in the URI and in the header nothing is listed.
    vault.set(|state| state["forbidden"] = json!(["versions"]));
    let error = key.current().expect_err("not listed");
    assert_error(&error, ErrorKind::KeyForbidden, "not allowed to versions");
    let pinned = vault
        .uri("k")
        .replace("/k?", &format!("/k/{}?", name_of(1)));
    round_trip(&*open(&pinned).unwrap());
    vault.set(|state| {
        state["forbidden"] = json!([]);
        state["keys"] = json!({});
    });
    for error in errors(&*key, &old) {
        assert_error(&error, ErrorKind::KeyDeleted, "was deleted");
        assert!(error.hint().unwrap().contains("key recover"));
    }
    let conflict = json!({"error": {
        "code": "Conflict", "message": "m", "innererror": {"code": "ObjectIsDeletedButRecoverable"}
    }});
    vault.set_fault(json!({
        "in": "/keys/", "authorized": true, "status": 409, "body": conflict.to_string()
    }));
    for error in errors(&*key, &old) {
        assert_error(&error, ErrorKind::KeyDeleted, "Conflict");
    }
}

#[test]
fn busy_and_broken_servers() {
    let Some(mut vault) = Vault::start("busy_and_broken_servers") else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let old = round_trip(&*key);
    // It is asked again when it says so.
    vault.set_fault(json!({
        "in": "/keys/", "status": 429, "times": 2, "headers": [["Retry-After", "1"]]
    }));
    let start = Instant::now();
    round_trip(&*key);
    assert!(start.elapsed() >= Duration::from_secs(2));
    for (fault, part) in [
        (
            json!({"in": "/keys/", "status": 429, "headers": [["Retry-After", "3600"]]}),
            "wait 3600 s",
        ),
        (
            json!({"in": "/oauth2/", "status": 429, "headers": [["Retry-After", "99999999999"]]}),
            "token endpoint",
        ),
        (json!({"in": "/keys/", "status": 500}), "status 500"),
        (
            json!({"in": "/keys/", "authorized": true, "status": 503, "body": "<html>"}),
            "status 503",
        ),
        (json!({"in": "/oauth2/", "status": 502}), "status 502"),
        (
            json!({"in": "/keys/", "status": 307, "headers": [["Location", "https://evil.example/a?t=1"]]}),
            "evil.example/a,",
        ),
        (
            json!({"in": "/oauth2/", "status": 302, "headers": [["Location", "https://evil.example"]]}),
            "evil.example,",
        ),
        (
            json!({"in": "/keys/", "authorized": true, "status": 200, "body": "{\"key\""}),
            "cannot be read",
        ),
        (
            json!({"in": "/keys/", "authorized": true, "status": 200, "body": "{}"}),
            "",
        ),
        (
            json!({"in": "/keys/", "status": 200, "body": " ".repeat((1 << 20) + 1)}),
            "too long",
        ),
        (
            json!({"in": "/oauth2/", "status": 200, "body": " ".repeat((1 << 20) + 1)}),
            "too long",
        ),
    ] {
        let shown = fault["status"].to_string() + part;
        vault.set_fault(fault);
        vault.take_requests();
        let error = unwrap_error(&*key, &old);
        assert_error(&error, ErrorKind::KeyUnreachable, part);
        // Only a server that says when is asked again.
        let faults = vault.take_requests().matches("\"fault\"").count();
        assert_eq!(faults, 1, "{shown}");
    }
    vault.set_fault(Value::Null);
    round_trip(&*key);
    // It asks for a token for another service.
    vault.set(|state| state["resource"] = "https://graph.microsoft.com".into());
    for error in errors(&*key, &old) {
        assert_error(&error, ErrorKind::KeyUnreachable, "graph.microsoft.com");
    }
    let by_domain = vault
        .uri("k")
        .replace("&resource=https://vault.azure.net", "");
    vault.set(|state| state["resource"] = "https://vault.azure.net".into());
    vault.take_requests();
    let error = open(&by_domain).unwrap().current().expect_err("another");
    assert_error(&error, ErrorKind::KeyUnreachable, "vault.azure.net");
    assert!(error.hint().unwrap().contains("?resource="));
    assert!(!vault.take_requests().contains("login"));
    vault.stop();
    for error in errors(&*key, &old) {
        assert_error(&error, ErrorKind::KeyUnreachable, "127.0.0.1");
    }
}

#[test]
fn a_slow_vault_is_waited_for_and_a_silent_one_is_given_up() {
    let Some(mut vault) = Vault::start("a_slow_vault_is_waited_for_and_a_silent_one_is_given_up")
    else {
        return;
    };
    let key = open(&vault.uri("k")).unwrap();
    let old = round_trip(&*key);
    vault.set_fault(json!({"in": "/keys/", "delay": 2, "times": 1}));
    let start = Instant::now();
    round_trip(&*key);
    assert!(start.elapsed() >= Duration::from_secs(2));
    for place in ["/unwrapkey", "/oauth2/"] {
        vault.set_fault(json!({"in": place, "delay": 100}));
        let start = Instant::now();
        let error = unwrap_error(&*key, &old);
        assert_error(&error, ErrorKind::KeyUnreachable, "no answer in time");
        assert!(start.elapsed() < Duration::from_secs(40));
    }
}

#[test]
fn certificates_that_a_vault_cannot_have() {
    let Some(vault) = Vault::start("certificates_that_a_vault_cannot_have") else {
        return;
    };
    let refused = |uri: &str| open(uri).unwrap().current().expect_err("refused");
    let uri = vault.uri("k");
    let system = uri.replace(&format!("ca-file={}&", vault.path("ca.pem").display()), "");
    for uri in [uri.replace("/ca.pem", "/other-ca.pem"), system] {
        let error = refused(&uri);
        assert_error(
            &error,
            ErrorKind::KeyUnreachable,
            "certificate is not accepted",
        );
        assert!(error.hint().unwrap().contains("ca-file"));
    }
    assert!(!vault.take_requests().contains("login"));
    drop(vault);
    let name = "DNS:vault.example";
    let Some(vault) = Vault::start_with("certificates_for_another_vault", name) else {
        return;
    };
    let error = refused(&vault.uri("k"));
    assert_error(&error, ErrorKind::KeyUnreachable, "not valid for name");
}

#[test]
fn applications_log_in_with_a_secret_or_an_assertion() {
    let Some(mut vault) = Vault::start("applications_log_in_with_a_secret_or_an_assertion") else {
        return;
    };
    let file = vault.path("mine");
    let key = open(&vault.uri_with("k", &vault.secret_query(&file))).unwrap();
    assert_error(
        &key.current().expect_err("no file"),
        ErrorKind::KeyUnavailable,
        "mine",
    );
    write(&file, SECRET, 0o644);
    let error = key.current().expect_err("readable");
    assert_error(&error, ErrorKind::KeyUnavailable, "mode 0644");
    write(&file, "wrong", 0o600);
    let error = key.current().expect_err("wrong");
    assert_error(&error, ErrorKind::KeyForbidden, "AADSTS7000215");
    assert!(!error.to_string().contains("wrong"), "{error}");
    // Whoever renews the secret replaces the file.
    write(&file, SECRET, 0o600);
    round_trip(&*key);
    let other = vault.uri("k").replace(TENANT, "other.example");
    let error = open(&other).unwrap().current().expect_err("no tenant");
    assert_error(&error, ErrorKind::KeyForbidden, "token endpoint");

    let query = format!(
        "authority=127.0.0.1:{}&tenant-id={TENANT}&client-id={CLIENT}&federated-token-file={}",
        vault.port,
        file.display()
    );
    let workload = open(&vault.uri_with("k", &query)).unwrap();
    // As Kubernetes writes it.
    write(&file, "an.assertion.of-a-workload", 0o644);
    let old = round_trip(&*workload);
    write(&file, "an.assertion.of-a-workload", 0o666);
    let error = workload.current().expect_err("writable");
    assert_error(&error, ErrorKind::KeyUnavailable, "mode 0666");
    write(&file, "another", 0o600);
    for error in errors(&*workload, &old) {
        assert_error(&error, ErrorKind::KeyForbidden, "invalid_client");
    }
    // The vault does not know the token any more.
    vault.set(|state| state["applications"] = json!({}));
    let error = open(&vault.uri("k")).unwrap().current().expect_err("gone");
    assert_error(&error, ErrorKind::KeyForbidden, "refuses the login");
}

#[test]
fn machines_have_an_identity() {
    let Some(mut vault) = Vault::start("machines_have_an_identity") else {
        return;
    };
    let query = vault.metadata_query();
    let key = open(&vault.uri_with("k", &query)).unwrap();
    let old = round_trip(&*key);
    assert!(
        vault
            .take_requests()
            .contains("/metadata/identity/oauth2/token")
    );
    let mine = format!("{query}&client-id={CLIENT}");
    let mine = open(&vault.uri_with("k", &mine)).unwrap();
    let error = mine.current().expect_err("not assigned");
    assert_error(&error, ErrorKind::KeyForbidden, "metadata service");
    vault.set(|state| state["identities"] = json!([CLIENT]));
    round_trip(&*mine);
    for error in errors(&*key, &old) {
        assert_error(&error, ErrorKind::KeyForbidden, "Identity not found");
    }
    for status in [404, 410, 500] {
        vault.set_fault(json!({"in": "/metadata/", "status": status}));
        let start = Instant::now();
        let error = mine.current().expect_err("broken");
        let kind = match status {
            404 => ErrorKind::KeyForbidden,
            _ => ErrorKind::KeyUnreachable,
        };
        assert_error(&error, kind, &format!("status {status}"));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    vault.stop();
    let error = mine.current().expect_err("no machine");
    assert_error(&error, ErrorKind::KeyUnreachable, "127.0.0.1");
}
