//! A vault of our own for a test, which answers as Azure Key Vault does, over TLS:
//! `azure_server.py`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bilayer_test_support::real::need;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificates::{make_authority, make_certificate};
use crate::keys::{KEYS, write};

/// An application that may log in.
pub(crate) const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
pub(crate) const TENANT: &str = "contoso.example";
pub(crate) const SECRET: &str = "7Qc~a-secret-of-the-application";

/// A vault that runs.
pub(crate) struct Vault {
    dir: TempDir,
    child: Child,
    pub(crate) port: u16,
    metadata_port: u16,
    state: Value,
}

/// A version of a key, as the vault has it, with this number and the key of that one.
pub(crate) fn version(number: usize, key: usize) -> Value {
    json!({
        "name": name_of(number),
        "pem": KEYS[key],
        "kty": "RSA",
        "ops": ["wrapKey", "unwrapKey"],
        "enabled": true,
        "created": number,
        "recoveryLevel": "Recoverable",
    })
}

/// The name of a version. Later ones come first in a list.
pub(crate) fn name_of(number: usize) -> String {
    format!("{:032x}", 0xFFFF_FFFF_usize - number)
}

fn python() -> Option<PathBuf> {
    let python = std::env::var("BILAYER_TESTS_PYTHON");
    let python = python.unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python").to_owned()
    });
    let mut probe = Command::new(&python);
    let output = probe.args(["-c", "import cryptography"]).output();
    let works = output.is_ok_and(|output| output.status.success());
    works.then(|| python.into())
}

impl Vault {
    /// Starts one with one key `k`; `None`, after a message, if there is no Python.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_with(test, "IP:127.0.0.1,DNS:localhost")
    }

    /// Starts one whose certificate has these names.
    pub(crate) fn start_with(test: &str, names: &str) -> Option<Self> {
        let python = python();
        let missing = "there is no Python with `cryptography`; tests/run installs it into \
                       target/venv";
        if !need(python.is_some(), test, missing) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        make_authority(dir.path(), "ca");
        make_authority(dir.path(), "other-ca");
        make_certificate(dir.path(), names);
        let state = json!({
            "keys": {"k": [version(1, 0)]},
            "applications": {CLIENT: {
                "tenant": TENANT,
                "client_secret": SECRET,
                "client_assertion": "an.assertion.of-a-workload",
            }},
            "identities": ["system"],
        });
        write(&dir.path().join("state.json"), &state.to_string(), 0o600);
        write(&dir.path().join("secret"), SECRET, 0o600);
        write(&dir.path().join("requests"), "", 0o600);
        let mut child = Command::new(python.unwrap())
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/providers/azure_server.py"
            ))
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mut ports = line.split_whitespace().map(|port| port.parse().unwrap());
        let (port, metadata_port) = (ports.next().unwrap(), ports.next().unwrap());
        Some(Self {
            dir,
            child,
            port,
            metadata_port,
            state,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes what the vault knows from the next request on.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.state);
        let path = self.path("state.new");
        write(&path, &self.state.to_string(), 0o600);
        fs::rename(path, self.path("state.json")).unwrap();
    }

    /// Changes a version of the key `k`, by its place in the list.
    pub(crate) fn set_version(&mut self, at: usize, name: &str, value: Value) {
        self.set(|state| state["keys"]["k"][at][name] = value);
    }

    /// Adds a version to the key `k`.
    pub(crate) fn add_version(&mut self, number: usize, key: usize) {
        self.set(|state| {
            let versions = state["keys"]["k"].as_array_mut().unwrap();
            versions.push(version(number, key));
        });
    }

    /// What goes wrong from the next request on; null for nothing.
    pub(crate) fn set_fault(&mut self, mut fault: Value) {
        if fault.is_object() {
            // Counted anew.
            let id = format!("{:?}", std::time::Instant::now());
            fault["id"] = id.into();
        }
        self.set(|state| state["fault"] = fault);
    }

    /// What was asked for, and forgets it.
    pub(crate) fn take_requests(&self) -> String {
        let text = fs::read_to_string(self.path("requests")).unwrap();
        fs::write(self.path("requests"), "").unwrap();
        text
    }

    /// The URI of a key, with this query.
    pub(crate) fn uri_with(&self, key: &str, query: &str) -> String {
        let port = self.port;
        format!(
            "azure-kv:https://127.0.0.1:{port}/keys/{key}?ca-file={}&resource=https://vault.azure.net\
             &{query}",
            self.path("ca.pem").display()
        )
    }

    /// The URI of a key for the application with the secret.
    pub(crate) fn uri(&self, key: &str) -> String {
        self.uri_with(key, &self.secret_query(&self.path("secret")))
    }

    /// A query that logs in with the secret in a file.
    pub(crate) fn secret_query(&self, file: &Path) -> String {
        let file = file.display();
        let ids = format!("tenant-id={TENANT}&client-id={CLIENT}");
        let port = self.port;
        format!("authority=127.0.0.1:{port}&{ids}&client-secret-file={file}")
    }

    /// A query that names the metadata service.
    pub(crate) fn metadata_query(&self) -> String {
        format!("metadata-address=127.0.0.1:{}", self.metadata_port)
    }

    /// The token that this identity gets.
    pub(crate) fn token_of(who: &str) -> String {
        use sha2::{Digest, Sha256};
        format!("token-{}", hex::encode(Sha256::digest(who)))
    }

    /// Ends the server.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.stop();
    }
}
