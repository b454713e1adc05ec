//! Modules that are not there or not trustworthy, tokens that go away, services that hang.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bilayer::keys::{ErrorKind, PassphraseSource};
use rustix::process::{Signal, kill_process_group};

use super::real::{have, need, pid_of, wait_until};
use super::token::{Kind, NewKey, PIN, Token, alone};
use super::{copy_with_mode, open, open_with, refused, round_trip};

#[test]
fn modules_that_are_missing_or_not_trustworthy_are_not_loaded() {
    let name = "faults::modules_that_are_missing_or_not_trustworthy_are_not_loaded";
    alone(Kind::SoftHsm, name, |token| {
        token.generate(NewKey::default());
        let pin = PassphraseSource::File(token.secret("pin", PIN));
        // Each a file of its own: one that is loaded must not be written to.
        let copy = |name: &str, mode: u32| {
            let copy = token.directory.join(name);
            copy_with_mode(&token.module, &copy, mode);
            copy
        };
        let with = |module: &str| open_with(&format!("pkcs11:id=%01?{module}"), &pin);
        let by_path = |path: &Path| with(&format!("module-path={}", path.display()));
        round_trip_of(by_path(&copy("good.so", 0o755)));
        for (name, mode, part) in [("a.so", 0o777, "mode 0777"), ("b.so", 0o575, "mode 0575")] {
            let opened = by_path(&copy(name, mode));
            refused(opened, ErrorKind::KeyUnavailable, part);
        }
        if rustix::process::geteuid().is_root() {
            let foreign = copy("foreign.so", 0o755);
            chown(&foreign, Some(12345), None).unwrap();
            let opened = by_path(&foreign);
            refused(opened, ErrorKind::KeyUnavailable, "belongs to user 12345");
        }
        for (module, part) in [
            (
                "module-path=/nonexistent/module.so",
                "/nonexistent/module.so",
            ),
            ("module-path=/usr", "is no file"),
            ("module-path=/etc/passwd", "cannot be loaded"),
            ("module-name=nonexistent", "no PKCS#11 module of that name"),
        ] {
            refused(with(module), ErrorKind::KeyUnavailable, part);
        }
        // A library, but no module.
        let libm = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib/aarch64-linux-gnu/libm.so.6",
        ];
        if let Some(libm) = libm.iter().find(|path| fs::metadata(path).is_ok()) {
            let module = format!("module-path={libm}");
            refused(
                with(&module),
                ErrorKind::KeyUnavailable,
                "no PKCS#11 module",
            );
        }
    });
}

#[track_caller]
fn round_trip_of(
    key: Result<Box<dyn bilayer::keys::CustomerKeyProvider>, bilayer::keys::KeyError>,
) {
    let key = key.unwrap();
    round_trip(&*key, &key.current().unwrap());
}

#[test]
fn a_module_is_found_by_its_name_and_by_way_of_p11_kit() {
    let name = "faults::a_module_is_found_by_its_name_and_by_way_of_p11_kit";
    alone(Kind::SoftHsm, name, |token| {
        let proxy = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
        let proxy = proxy
            .map(|entry| entry.path().join("p11-kit-proxy.so"))
            .chain([PathBuf::from("/usr/lib64/p11-kit-proxy.so")])
            .any(|path| path.is_file());
        if !need(
            proxy,
            name,
            "p11-kit's proxy is missing; install p11-kit-modules",
        ) {
            return;
        }
        token.generate(NewKey::default());
        let pin = PassphraseSource::File(token.secret("pin", PIN));
        for module in ["?module-name=softhsm2", "?module-name=SoftHSM2", ""] {
            let uri = format!("pkcs11:token=token%201;object=key%201{module}");
            round_trip_of(open_with(&uri, &pin));
        }
    });
}

#[test]
fn a_token_that_vanishes_is_no_deleted_key() {
    let name = "faults::a_token_that_vanishes_is_no_deleted_key";
    alone(Kind::SoftHsm, name, |token| {
        token.generate(NewKey::default());
        let key = open(token, &token.uri("id=%01")).unwrap();
        let version = key.current().unwrap();
        let wrapped = version.key.wrap(b"something").unwrap();
        let (tokens, away) = (token.directory.join("tokens"), token.directory.join("away"));
        for _ in 0..2 {
            fs::rename(&tokens, &away).unwrap();
            fs::create_dir(&tokens).unwrap();
            refused(
                key.unwrap(&version, &wrapped),
                ErrorKind::KeyUnreachable,
                "token",
            );
            refused(key.current(), ErrorKind::KeyUnreachable, "token");
            fs::remove_dir(&tokens).unwrap();
            fs::rename(&away, &tokens).unwrap();
            assert_eq!(*key.unwrap(&version, &wrapped).unwrap(), b"something");
        }
    });
}

/// SoftHSM in other processes, which p11-kit's own module speaks to.
struct Service(Child);

impl Service {
    fn start(token: &Token) -> Self {
        let socket = token.directory.join("p11-kit.sock");
        let _ = fs::remove_file(&socket);
        let child = Command::new("p11-kit")
            .args(["server", "--foreground", "--provider"])
            .arg(&token.module)
            .arg("--name")
            .arg(&socket)
            .arg("pkcs11:")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let this = Self(child);
        assert!(wait_until(Duration::from_secs(20), || socket.exists()));
        this
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(pid_of(&self.0), signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = kill_process_group(pid_of(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Runs a test with p11-kit's client module.
fn with_service(name: &'static str, body: impl FnOnce(&Token, &str)) {
    alone(Kind::SoftHsm, name, |token| {
        let clients = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
        let client = clients
            .map(|entry| entry.path().join("pkcs11/p11-kit-client.so"))
            .chain([PathBuf::from("/usr/lib64/pkcs11/p11-kit-client.so")])
            .find(|path| path.is_file());
        let missing = "p11-kit is missing; install p11-kit and p11-kit-modules";
        if !need(have("p11-kit") && client.is_some(), name, missing) {
            return;
        }
        token.generate(NewKey::default());
        let module = client.unwrap();
        let uri = format!(
            "pkcs11:token=token%201;id=%01?module-path={}",
            module.display()
        );
        body(token, &uri);
    });
}

#[test]
fn a_service_that_ends_is_unreachable_until_it_is_back() {
    let name = "faults::a_service_that_ends_is_unreachable_until_it_is_back";
    with_service(name, |token, uri| {
        let service = Service::start(token);
        let key = open(token, uri).unwrap();
        let version = key.current().unwrap();
        let wrapped = version.key.wrap(b"something").unwrap();
        assert_eq!(*key.unwrap(&version, &wrapped).unwrap(), b"something");
        drop(service);
        for _ in 0..2 {
            refused(
                key.unwrap(&version, &wrapped),
                ErrorKind::KeyUnreachable,
                "token",
            );
        }
        let service = Service::start(token);
        assert_eq!(*key.unwrap(&version, &wrapped).unwrap(), b"something");
        drop(key);

        // A PIN that somebody typed is not kept for another session.
        let key = open(token, uri).unwrap();
        let typed = open_with(uri, &PassphraseSource::None).unwrap();
        drop(key);
        drop(service);
        let _service = Service::start(token);
        let lost = typed.unwrap(&version, &wrapped);
        refused(
            lost,
            ErrorKind::KeyUnreachable,
            "session with the token has ended",
        );
    });
}

#[test]
fn a_service_that_hangs_does_not_hang_its_users() {
    let name = "faults::a_service_that_hangs_does_not_hang_its_users";
    with_service(name, |token, uri| {
        let service = Service::start(token);
        let key = open(token, uri).unwrap();
        let version = key.current().unwrap();
        let wrapped = version.key.wrap(b"something").unwrap();
        service.signal(Signal::STOP);
        let start = Instant::now();
        refused(
            key.unwrap(&version, &wrapped),
            ErrorKind::KeyUnreachable,
            "did not answer",
        );
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(40), "{waited:?}");
        refused(
            key.current(),
            ErrorKind::KeyUnreachable,
            "still does not answer",
        );
        refused(
            open(token, uri),
            ErrorKind::KeyUnreachable,
            "still does not answer",
        );
        assert!(start.elapsed() < waited + Duration::from_secs(5));
        service.signal(Signal::CONT);
        let works = || {
            key.unwrap(&version, &wrapped)
                .is_ok_and(|plain| *plain == b"something")
        };
        assert!(wait_until(Duration::from_secs(30), works));
    });
}
