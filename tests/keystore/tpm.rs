//! Versions that are sealed to a TPM 2.0, which is an emulated one (swtpm).

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::passphrase;
use crate::real::{Outcome, Place, command, have, need, run, wait_until};

/// An emulated TPM, and a systemd-creds that first frees what the last one left in it: without a
/// kernel's resource manager the sessions stay.
struct Tpm<'a> {
    place: &'a Place,
    emulator: Child,
    tcti: String,
}

impl<'a> Tpm<'a> {
    fn start(place: &'a Place) -> Self {
        // The library expects the control channel at the next port.
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let drawn = || {
            TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
        };
        let mut ports = std::iter::repeat_with(drawn);
        let port = ports
            .find(|port| *port < u16::MAX && free(port + 1))
            .unwrap();
        let control = port + 1;
        let emulator = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", place.dir("tpm").display()))
            .args(["--server", &format!("type=tcp,port={port}")])
            .args(["--ctrl", &format!("type=tcp,port={control}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tcti = format!("swtpm:host=127.0.0.1,port={port}");
        let tpm = Self {
            place,
            emulator,
            tcti,
        };
        let real = place.path("systemd-creds.real");
        fs::copy("/usr/bin/systemd-creds", &real).unwrap();
        let wrapper = format!(
            "#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin TPM2TOOLS_TCTI='{}'\n\
             for kind in -l -s -t; do tpm2_flushcontext $kind >/dev/null 2>&1; done\n\
             exec {} \"$@\"\n",
            tpm.tcti,
            real.display()
        );
        let path = place.path("systemd-creds");
        fs::write(&path, wrapper).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let answers = || {
            tpm.tool("tpm2_getcap")
                .arg("properties-fixed")
                .output()
                .is_ok_and(|o| o.status.success())
        };
        assert!(
            wait_until(Duration::from_secs(20), answers),
            "swtpm does not answer"
        );
        tpm
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("TPM2TOOLS_TCTI", &self.tcti);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Changes what the firmware has measured. A register that nothing was measured into would
    /// protect nothing.
    fn change_firmware(&self) {
        let digest = "11".repeat(32);
        let extended = self
            .tool("tpm2_pcrextend")
            .arg(format!("7:sha256={digest}"))
            .status();
        assert!(extended.unwrap().success());
    }

    /// Runs `bilayer` with the wrapper in the place of systemd-creds.
    #[track_caller]
    fn bilayer(&self, words: &str) -> Outcome {
        let script = "mount --bind systemd-creds /usr/bin/systemd-creds && exec \"$@\"";
        let program = self.place.bilayer([""; 0]).get_program().to_owned();
        let mut inside = command("unshare", ["-m", "sh", "-c", script, "sh"]);
        inside.arg(program).args(words.split(' '));
        self.place.environment(&mut inside);
        run(&mut inside)
    }

    #[track_caller]
    fn json(&self, words: &str) -> Value {
        let outcome = self.bilayer(&format!("{words} --json")).done();
        serde_json::from_str(&outcome.stdout).unwrap()
    }
}

impl Drop for Tpm<'_> {
    fn drop(&mut self) {
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

/// Makes a keystore's directory with a setting.
fn prepare(place: &Place, name: &str, device: &Value) {
    let directory = place.dir(name);
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let setting = json!({"format": "bilayer-keystore-tpm", "version": 1, "device": device});
    fs::write(directory.join("tpm.json"), setting.to_string()).unwrap();
}

#[test]
fn a_change_of_the_firmware_is_recovered_from_by_the_backup() {
    let test = "keystore-tpm";
    let Some(place) = Place::new(test, Duration::from_secs(300)) else {
        return;
    };
    for (program, package) in [
        ("swtpm", "swtpm"),
        ("tpm2_pcrextend", "tpm2-tools"),
        ("systemd-creds", "systemd"),
    ] {
        if !need(
            have(program),
            test,
            &format!("{program} is missing; install {package}"),
        ) {
            return;
        }
    }
    let tpm = Tpm::start(&place);
    tpm.change_firmware();
    prepare(&place, "keystore", &json!(tpm.tcti));
    passphrase(&place, "passphrase", "correct horse\n");
    tpm.bilayer("create vol").done();
    let text = |number: u32| {
        let path = place.path(&format!("keystore/versions/{number:08}.json"));
        fs::read_to_string(path).unwrap()
    };
    let is_sealed = |number| {
        let version: Value = serde_json::from_str(&text(number)).unwrap();
        version["sealed"].is_string()
            && version.get("infrastructure").is_none()
            && version.get("customer").is_none()
    };
    assert!(is_sealed(1), "{}", text(1));
    assert_eq!(tpm.json("status vol")["verified"], true);
    assert_eq!(tpm.json("keystore rotate")["current_version"], 2);
    assert!(is_sealed(2));
    assert_eq!(tpm.json("keystore status")["versions"][1]["sealed"], true);
    tpm.json("keystore backup b --passphrase-file passphrase");

    // Nothing opens any more, and the error says what to do.
    tpm.change_firmware();
    assert_eq!(tpm.json("status vol")["verified"], false);
    let refused = tpm.bilayer("keystore status");
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("does not unseal"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("bilayer keystore restore FILE"),
        "{}",
        refused.stderr
    );
    let restored = tpm.json("keystore restore b --passphrase-file passphrase");
    assert_eq!(restored["versions_repaired"], 2, "{restored}");
    assert!(is_sealed(1) && is_sealed(2));
    assert_eq!(tpm.json("status vol")["verified"], true);
    tpm.bilayer("snapshot create vol s").done();

    // A machine without a TPM.
    prepare(&place, "plain", &Value::Null);
    let there = "--platform-keystore plain";
    tpm.json(&format!(
        "keystore restore b --passphrase-file passphrase {there}"
    ));
    assert_eq!(
        tpm.json(&format!("keystore status {there}"))["versions"][0]["sealed"],
        false
    );
    // A copy of the sealed files is worth nothing there.
    fs::copy(
        place.path("keystore/versions/00000002.json"),
        place.path("plain/versions/00000002.json"),
    )
    .unwrap();
    let refused = place.run(&format!("keystore status {there}"));
    assert_eq!(refused.code, 4);
    assert!(
        refused.stderr.contains("does not unseal"),
        "{}",
        refused.stderr
    );
    // A setting that cannot be followed is an error, and leaves no keys in plain.
    prepare(&place, "broken", &json!("swtpm:host=127.0.0.1,port=1"));
    let refused = tpm.bilayer("create other --platform-keystore broken");
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(refused.stderr.contains("cannot seal"), "{}", refused.stderr);
    assert!(!place.path("broken/versions/00000001.json").exists());
}
