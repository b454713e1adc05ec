//! Volumes through the real program, with a key of each provider.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use bilayer_test_support::real::{Outcome, Place, run};

use crate::keys::{KEYS, write};
use crate::programs::Example;

const LIMIT: Duration = Duration::from_secs(240);
/// Exit code of a mount that failed.
const MOUNT_FAILED: i32 = 32;

/// Creates a volume under this key, and reads back after another mount what was written.
#[track_caller]
fn create_write_and_read(place: &Place, uri: &str) {
    let mut create = place.bilayer(["create", "vol", "--customer-key", uri]);
    run(&mut create).done();
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "contents").unwrap();
    mounted.unmount();
    read_back(place);
}

/// Mounts with the key that the keystore remembers.
#[track_caller]
fn read_back(place: &Place) {
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"contents");
    mounted.unmount();
}

/// A mount is refused, with a message and a hint that contain these.
#[track_caller]
fn refused(place: &Place, message: &str, hint: &str) -> Outcome {
    place.dir("mnt");
    let outcome = run(&mut place.bilayer(["mount", "vol", "mnt"]));
    assert_eq!(outcome.code, MOUNT_FAILED, "{}", outcome.stderr);
    for part in [message, hint] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    outcome
}

/// How often these bytes are in the memory of a process.
fn count_in_memory(pid: i32, text: &str) -> usize {
    let mappings = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut count = 0;
    for line in mappings.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            let mut parts = bytes.windows(text.len());
            count += parts
                .by_ref()
                .filter(|part| *part == text.as_bytes())
                .count();
        }
    }
    count
}

/// The daemon keeps nothing of what the holder of the key was sent and has answered.
#[track_caller]
fn assert_forgotten(pid: i32, kept: &str, secrets: &[&str]) {
    assert!(count_in_memory(pid, kept) > 0, "memory was not searched");
    for secret in secrets {
        assert_eq!(count_in_memory(pid, secret), 0, "{secret} is in memory");
    }
}

#[test]
fn a_key_file_with_versions() {
    let Some(place) = Place::new("a_key_file_with_versions", LIMIT) else {
        return;
    };
    let at = |name: &str| -> PathBuf { place.dir("keys").join(name) };
    write(&at("volume.v1.pem"), &KEYS[0], 0o600);
    create_write_and_read(&place, &format!("file:{}", at("volume").display()));
    let marker = at("volume.v1.disabled");
    write(&marker, "", 0o600);
    refused(&place, "version 1", "disabled");
    fs::remove_file(&marker).unwrap();
    write(
        &at("volume.v1.toml"),
        "expires = 2020-01-01T00:00:00Z",
        0o600,
    );
    refused(&place, "expired at 2020-01-01", "volume.v1.toml");
    fs::remove_file(at("volume.v1.toml")).unwrap();
    // Another version does not lock the volume out, and a rotation follows it.
    write(&at("volume.v2.pem"), &KEYS[1], 0o600);
    read_back(&place);
    place.run("key rotate vol").done();
    write(&marker, "", 0o600);
    read_back(&place);
    fs::rename(at("volume.v2.pem"), at("elsewhere")).unwrap();
    refused(&place, "volume.v2.pem", "deleted");
    fs::rename(at("elsewhere"), at("volume.v2.pem")).unwrap();
    fs::remove_file(at("volume.v1.pem")).unwrap();
    read_back(&place);
    fs::remove_file(at("volume.v2.pem")).unwrap();
    place.dir("mnt");
    let outcome = run(&mut place.bilayer(["mount", "vol", "mnt"]));
    assert_eq!(outcome.code, MOUNT_FAILED, "{}", outcome.stderr);
}

#[test]
fn a_key_behind_a_program() {
    let Some(place) = Place::new("a_key_behind_a_program", LIMIT) else {
        return;
    };
    let example = Example::new();
    example.add("1.pem", &KEYS[0]);
    create_write_and_read(&place, &example.uri());
    let mounted = place.mount("vol", "mnt", "");
    // As the example writes its answer.
    assert_forgotten(mounted.pid, "key=accounts", &["\"plaintext\": \""]);
    mounted.unmount();
    let marker = example.add("1.disabled", "");
    refused(&place, "version 1", "is disabled");
    fs::remove_file(marker).unwrap();
    example.add("2.pem", &KEYS[1]);
    read_back(&place);
    place.run("key rotate vol").done();
    example.add("1.disabled", "");
    read_back(&place);
}

#[cfg(feature = "openbao")]
#[test]
fn a_key_in_openbao() {
    use crate::server::Server;
    let Some(place) = Place::new("a_key_in_openbao", LIMIT) else {
        return;
    };
    let Some(mut server) = Server::start("a_key_in_openbao") else {
        return;
    };
    server.make_key("k", "rsa-2048");
    create_write_and_read(&place, &server.uri_with_token("k"));
    server.run("delete transit/keys/k/soft-delete");
    refused(&place, "soft-deleted", "soft-delete-restore");
    server.run("write -f transit/keys/k/soft-delete-restore");
    server.run("write -f transit/keys/k/rotate");
    read_back(&place);
    // What ureq sends and receives is not logged, however much is asked for.
    let token = fs::read_to_string(server.path("token")).unwrap();
    let log = place.path("log");
    let mut mount = place.bilayer(["mount", "vol", "mnt", "-o"]);
    mount.arg(format!("log_file={}", log.display()));
    let outcome = run(mount.env("BILAYER_LOG", "trace")).done();
    let mounted = place.mounted(&place.path("mnt"));
    let text = fs::read_to_string(&log).unwrap() + &outcome.stdout + &outcome.stderr;
    assert_forgotten(
        mounted.pid,
        "/transit/k",
        &[token.trim(), "\"plaintext\":\""],
    );
    mounted.unmount();
    assert!(text.contains("ureq"), "nothing was logged: {text}");
    // There its rows of 16 bytes would be.
    let rows = |line: &&str| line.contains("TRACE") && line.contains("ureq");
    assert_eq!(text.lines().find(rows), None);
    for secret in [token.trim(), "plaintext", "vault:v1:"] {
        assert!(!text.contains(secret), "{secret} was logged");
    }
    place.run("key rotate vol").done();
    server.run("write transit/keys/k/config min_decryption_version=2");
    read_back(&place);
    server.run("write -f transit/keys/k/rotate");
    server.run("write transit/keys/k/config min_decryption_version=3");
    refused(&place, "version 2", "min_decryption_version");
    server.run("write transit/keys/k/config min_decryption_version=2");
    let forbidden = server.run("token create -field=token -policy=default");
    server.secret_file("token", &forbidden);
    refused(&place, "forbids", "MOUNT/decrypt/KEY");
    server.secret_file("token", &token);
    server.seal();
    refused(&place, "sealed", "unseal");
    server.stop();
    refused(&place, "cannot be asked", "try again");
}

#[cfg(feature = "azure-kv")]
#[test]
fn a_key_in_azure_key_vault() {
    use crate::vault::{SECRET, Vault, name_of};
    use serde_json::json;
    let Some(place) = Place::new("a_key_in_azure_key_vault", LIMIT) else {
        return;
    };
    let Some(mut vault) = Vault::start("a_key_in_azure_key_vault") else {
        return;
    };
    vault.set_version(0, "recoveryLevel", json!("Recoverable+Purgeable"));
    let uri = vault.uri("k");
    let outcome = run(&mut place.bilayer(["create", "vol", "--customer-key", &uri]));
    assert_ne!(outcome.code, 0);
    for part in ["no purge protection", "--enable-purge-protection"] {
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
    vault.set_version(0, "recoveryLevel", json!("Recoverable"));
    create_write_and_read(&place, &uri);

    // Neither the secret nor a token or a plaintext stays in memory, or is logged.
    let token = Vault::token_of(crate::vault::CLIENT);
    let log = place.path("log");
    let mut mount = place.bilayer(["mount", "vol", "mnt", "-o"]);
    mount.arg(format!("log_file={}", log.display()));
    let outcome = run(mount.env("BILAYER_LOG", "trace")).done();
    let mounted = place.mounted(&place.path("mnt"));
    let text = fs::read_to_string(&log).unwrap() + &outcome.stdout + &outcome.stderr;
    assert_forgotten(mounted.pid, "/keys/k", &[&token, SECRET, "\"value\": \""]);
    mounted.unmount();
    assert!(text.contains("ureq"), "nothing was logged: {text}");
    for secret in [&*token, SECRET, "client_secret"] {
        assert!(!text.contains(secret), "{secret} was logged");
    }

    vault.set_version(0, "enabled", json!(false));
    refused(&place, &name_of(1), "set-attributes --enabled");
    vault.set_version(0, "enabled", json!(true));
    vault.set_version(0, "exp", json!(1_600_000_000));
    refused(&place, "has expired at 2020", "--expires");
    vault.set_version(0, "exp", json!(null));
    // Another version does not lock the volume out, and a rotation follows it.
    vault.add_version(2, 1);
    read_back(&place);
    place.run("key rotate vol").done();
    vault.set_version(0, "enabled", json!(false));
    read_back(&place);
    // A second slot, for another key of the same vault, opens the volume without the first.
    vault.set(|state| state["keys"]["spare"] = json!([crate::vault::version(3, 2)]));
    let spare = vault.uri("spare");
    run(&mut place.bilayer(["key", "add", "vol", "--customer-key", &spare])).done();
    let mounted = place.mount("vol", "mnt", "");
    let on_mount = run(&mut place.bilayer(["key", "rotate", "mnt"])).done();
    assert!(
        on_mount.stdout.contains("the newest version"),
        "{}",
        on_mount.stdout
    );
    mounted.unmount();
    vault.set(|state| state["keys"]["k"] = json!([]));
    let option = format!("customer_key={spare}");
    let mounted = place.mount("vol", "mnt", &option);
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"contents");
    mounted.unmount();
    vault.set(|state| state["forbidden"] = json!(["unwrapkey"]));
    place.dir("mnt");
    let mut mount = place.bilayer(["mount", "vol", "mnt", "-o", &option]);
    let outcome = run(&mut mount);
    assert_eq!(outcome.code, MOUNT_FAILED, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("forbids"), "{}", outcome.stderr);
}

#[cfg(feature = "azure-kv")]
#[test]
fn logins_to_azure_from_the_environment() {
    use crate::vault::{CLIENT, SECRET, TENANT, Vault};
    let Some(place) = Place::new("logins_to_azure_from_the_environment", LIMIT) else {
        return;
    };
    let Some(mut vault) = Vault::start("logins_to_azure_from_the_environment") else {
        return;
    };
    let authority = format!("authority=127.0.0.1:{}", vault.port);
    let create = |name: &str, query: &str| {
        let uri = vault.uri_with("k", query);
        let mut command = place.bilayer(["create", name, "--customer-key", &uri]);
        for name in ["TENANT_ID", "CLIENT_ID", "FEDERATED_TOKEN_FILE"] {
            command.env_remove(format!("AZURE_{name}"));
        }
        command
    };
    // The ids.
    let secret = place.path("secret");
    write(&secret, SECRET, 0o600);
    let query = format!("{authority}&client-secret-file={}", secret.display());
    let missing = run(&mut create("one", &query));
    assert_ne!(missing.code, 0);
    for part in ["AZURE_TENANT_ID", "?tenant-id="] {
        assert!(missing.stderr.contains(part), "{}", missing.stderr);
    }
    let mut command = create("one", &query);
    command.env("AZURE_TENANT_ID", TENANT);
    // Another endpoint in the environment counts for nothing.
    command.env("AZURE_AUTHORITY_HOST", "https://evil.example");
    run(command.env("AZURE_CLIENT_ID", CLIENT)).done();
    // Those of a workload, as in a pod.
    let token = place.path("token");
    write(&token, "an.assertion.of-a-workload", 0o644);
    let mut command = create("two", &format!("{authority}&login=workload-identity"));
    command.env("AZURE_TENANT_ID", TENANT);
    command.env("AZURE_CLIENT_ID", CLIENT);
    run(command.env("AZURE_FEDERATED_TOKEN_FILE", &token)).done();

    // The Azure CLI.
    let programs = place.dir("programs");
    let path = format!("{}:/usr/bin:/bin", programs.display());
    let az = |script: &str| {
        write(
            &programs.join("az"),
            &format!("#!/bin/sh\n{script}\n"),
            0o755,
        );
        run(create("three", "login=azure-cli").env("PATH", &path))
    };
    let absent = run(create("three", "login=azure-cli").env("PATH", "/usr/bin:/bin"));
    assert_ne!(absent.code, 0);
    assert!(absent.stderr.contains("az not found"), "{}", absent.stderr);
    let outcome = az("echo 'Please run az login to setup account.' >&2; exit 1");
    assert_ne!(outcome.code, 0);
    assert!(
        outcome.stderr.contains("Please run az login"),
        "{}",
        outcome.stderr
    );
    let outcome = az("echo '{}'");
    assert_ne!(outcome.code, 0);
    let outcome = az("exec sleep 100");
    assert_ne!(outcome.code, 0);
    assert!(
        outcome.stderr.contains("no answer in time"),
        "{}",
        outcome.stderr
    );
    let answer = format!(
        "[ \"$*\" = 'account get-access-token -o json --scope https://vault.azure.net/.default' ] \
         || exit 7\necho '{{\"accessToken\": \"{}\", \"expires_on\": 4000000000, \"tokenType\": \
         \"Bearer\"}}'",
        Vault::token_of("system")
    );
    az(&answer).done();
    vault.stop();
}
