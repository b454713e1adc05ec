//! Secrets that must not be visible: keys and passphrases in output, in `/proc`, in core dumps.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use bilayer::keys::{KeyUri, PassphraseSource};
use bilayer::store::directory::DirectoryStore;
use bilayer::volume::{self, OpenOptions};
use serde_json::Value;

use crate::real::{Place, run};
use crate::{Victim, fails};

const PASSPHRASE: &str = "correct horse battery staple 7391";

fn write_passphrase(place: &Place, name: &str, passphrase: &str) {
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(place.path(name))
        .unwrap();
    writeln!(file, "{passphrase}").unwrap();
}

/// Every spelling of the secrets of a volume that a text might contain.
fn spellings(place: &Place) -> Vec<String> {
    let options = OpenOptions {
        customer_key: Some(KeyUri::from_file(&place.path("key.pem")).unwrap()),
        keystore: place.path("keystore"),
        passphrase: PassphraseSource::File(place.path("passphrase")),
        read_only: true,
        ..OpenOptions::default()
    };
    let store = DirectoryStore::open(&place.path("vol")).unwrap();
    let volume = volume::open(Arc::new(store), &options).unwrap();
    let active = volume.keys.active();
    let deks: [&[u8]; 2] = [active.customer.expose(), active.infrastructure.expose()];
    let mut spellings = vec![
        PASSPHRASE.to_owned(),
        "PRIVATE KEY".to_owned(),
        "-----BEGIN".to_owned(),
    ];
    for dek in deks {
        for part in dek.chunks_exact(8) {
            spellings.push(hex::encode(part));
            spellings.push(hex::encode_upper(part));
            let numbers: Vec<String> = part.iter().map(u8::to_string).collect();
            spellings.push(numbers.join(","));
            spellings.push(numbers.join(", "));
        }
    }
    // Both platform keys, as stored in the keystore.
    let before = spellings.len();
    for version in fs::read_dir(place.path("keystore/versions")).unwrap() {
        let text = fs::read(version.unwrap().path()).unwrap();
        let version: Value = serde_json::from_slice(&text).unwrap();
        let fields = version.as_object().unwrap().values();
        let keys = fields
            .filter_map(Value::as_str)
            .filter(|text| text.len() >= 40);
        spellings.extend(keys.map(str::to_owned));
    }
    assert!(spellings.len() >= before + 2);
    let pem = fs::read_to_string(place.path("key.pem")).unwrap();
    spellings.extend(
        pem.lines()
            .skip(1)
            .map(|line| line.chars().take(24).collect()),
    );
    spellings
}

#[track_caller]
fn shows_nothing(text: &str, secrets: &[String], what: &str) {
    for secret in secrets {
        assert!(!text.contains(secret.as_str()), "{what} shows {secret:?}");
    }
}

#[test]
fn secrets_are_shown_nowhere() {
    let Some(place) = Place::new("cli-secrets", std::time::Duration::from_secs(100)) else {
        return;
    };
    write_passphrase(&place, "passphrase", PASSPHRASE);
    place
        .run("keygen key.pem --bits 2048 --passphrase-file passphrase")
        .done();
    place
        .run("create vol --customer-key file:key.pem --passphrase-file passphrase")
        .done();
    let secrets = spellings(&place);
    let texts = RefCell::new(Vec::new());
    let shown = |words: &str| {
        let outcome = place.run(words);
        texts
            .borrow_mut()
            .push((words.to_owned(), outcome.stdout.clone() + &outcome.stderr));
        outcome
    };
    shown("status vol").done();
    let json = shown("status vol --json").done().stdout;
    assert_eq!(
        serde_json::from_str::<Value>(&json).unwrap()["verified"],
        false
    );
    let json = shown("inspect vol --json").done().stdout;
    let inspected: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(inspected["header"]["key_mode"], "platform-and-customer");
    assert!(inspected["fingerprint"].is_null());
    shown("inspect vol").done();

    let mut mount = place.bilayer(["mount", "vol", "mnt", "-o"]);
    mount
        .arg("passphrase_file=passphrase,log_file=log")
        .env("BILAYER_LOG", "trace");
    place.dir("mnt");
    let outcome = run(&mut mount).done();
    texts
        .borrow_mut()
        .push(("mount".to_owned(), outcome.stdout + &outcome.stderr));
    let mounted = place.mounted(&place.path("mnt"));
    fs::write(mounted.path("file"), "x").unwrap();
    let json = shown("status mnt --json").done().stdout;
    let status: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["verified"], true);
    assert_eq!(status["daemon"]["pid"], mounted.pid);
    assert!(status["fingerprint"].as_str().unwrap().len() >= 16);
    assert_eq!(status["layers"].as_array().unwrap().len(), 2);
    assert!(status["usage"]["inodes"].as_u64().unwrap() >= 2);
    shown("status mnt").done();
    for file in ["cmdline", "environ", "comm", "maps", "status"] {
        let bytes = fs::read(format!("/proc/{}/{file}", mounted.pid)).unwrap();
        texts.borrow_mut().push((
            file.to_owned(),
            String::from_utf8_lossy(&bytes).into_owned(),
        ));
    }
    mounted.unmount();
    texts.borrow_mut().push((
        "log".to_owned(),
        fs::read_to_string(place.path("log")).unwrap(),
    ));
    for file in [
        "vol/volume.json",
        "keystore/keystore.json",
        "keystore/audit.log",
    ] {
        let text = fs::read_to_string(place.path(file)).unwrap();
        texts.borrow_mut().push((file.to_owned(), text));
    }
    for (what, text) in &*texts.borrow() {
        shows_nothing(text, &secrets, what);
    }
    // A passphrase is not accepted on a command line, and the error does not repeat it.
    let refused = place.run("mount vol mnt -o passphrase=hunter2hunter2");
    fails(&refused, 1, "passphrase");
    assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    // Wrong, missing.
    write_passphrase(&place, "wrong", "not this one");
    fails(
        &place.run("mount vol mnt -o passphrase_file=wrong"),
        32,
        "passphrase",
    );
    fails(
        &place.run("mount vol mnt -o passphrase_file=gone"),
        32,
        "gone",
    );
    // No question without a terminal.
    fails(&place.run("mount vol mnt"), 32, "passphrase");
}

#[test]
fn a_daemon_leaves_no_core_and_keeps_its_keys_out_of_swap() {
    let Some(victim) = Victim::new("cli-core", true) else {
        return;
    };
    let mounted = victim.place.mount("vol", "mnt", "");
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", mounted.pid)).unwrap();
    let limits = proc("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
    let status = proc("status");
    let locked = status
        .lines()
        .find(|line| line.starts_with("VmLck:"))
        .unwrap();
    let kilobytes: u64 = locked.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes > 0, "{locked}");
    mounted.unmount();
}
