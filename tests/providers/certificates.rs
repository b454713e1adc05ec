//! Certificates for servers of tests, and where these are.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// Runs `openssl` in a directory.
#[track_caller]
fn openssl(dir: &Path, arguments: &str) {
    let mut openssl = Command::new("openssl");
    let openssl = openssl.args(arguments.split_whitespace()).current_dir(dir);
    let output = openssl.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {shown}");
}

/// Makes an authority `NAME.pem` that can sign.
pub(crate) fn make_authority(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -keyout {name}.key -out {name}.pem -subj /CN={name}"
        ),
    );
}

/// Makes a certificate `server.pem` for these names.
pub(crate) fn make_certificate(dir: &Path, names: &str) {
    fs::write(dir.join("names"), format!("subjectAltName={names}\n")).unwrap();
    openssl(
        dir,
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
         -keyout server.key -out server.csr -subj /CN=server",
    );
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile names -out server.pem",
    );
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
