//! Modified superblocks: refused, and no claim in them has any effect.

use std::fs;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::{Victim, fails};

/// The line of JSON and the line with its MAC.
fn lines(bytes: &[u8]) -> (Value, String) {
    let text = std::str::from_utf8(bytes).unwrap();
    let (line, mac) = text.split_once('\n').unwrap();
    (serde_json::from_str(line).unwrap(), mac.to_owned())
}

#[test]
fn one_changed_bit_is_noticed() {
    let Some(victim) = Victim::new("cli-bits", true) else {
        return;
    };
    let header = victim.path("vol/volume.json");
    let original = fs::read(&header).unwrap();
    // Bits everywhere: names, ids, ciphertexts, the newline, the MAC. The step divides no length,
    // and each time another bit is flipped.
    let positions = (0..original.len()).step_by(original.len() / 40);
    for (number, position) in positions.chain([original.len() - 1]).enumerate() {
        let mut changed = original.clone();
        changed[position] ^= 1 << (number % 8);
        fs::write(&header, &changed).unwrap();
        let words = "mount vol mnt -o customer_key=file:key.pem";
        let outcome = victim.place.run(words);
        fails(&outcome, 32, "");
        // Nothing that is not text reaches the terminal.
        assert!(
            !outcome.stderr.chars().any(|c| c.is_control() && c != '\n'),
            "{outcome:?}"
        );
    }
    fs::write(&header, &original).unwrap();
    victim.is_unharmed();
}

#[test]
fn an_unparsable_header_is_refused_with_its_cause() {
    let Some(victim) = Victim::new("cli-parse", true) else {
        return;
    };
    let place = &victim.place;
    let header = victim.path("vol/volume.json");
    let original = fs::read(&header).unwrap();
    let (contents, mac) = lines(&original);
    let with = |name: &str, value: Value| {
        let mut changed = contents.clone();
        changed[name] = value;
        changed.to_string()
    };
    let text = contents.to_string();
    let key_set = contents["key_sets"][0].clone();
    for (line, says) in [
        (with("version", json!(2)), "newer"),
        (with("version", json!(u64::MAX)), "newer"),
        (with("version", json!(0)), "superblock"),
        (with("features", json!(["time-travel"])), "time-travel"),
        (with("features", json!(["bad\u{1b}[1m"])), "superblock"),
        (with("surprise", json!(1)), "surprise"),
        (with("format", json!("other")), "superblock"),
        (with("sequence", json!(u64::MAX)), "superblock"),
        (with("sequence", json!(-1)), "superblock"),
        (with("key_mode", json!("none")), "superblock"),
        (with("key_sets", json!([])), "superblock"),
        (
            with("key_sets", json!(vec![key_set.clone(); 65])),
            "superblock",
        ),
        (
            with("key_sets", json!([key_set.clone(), key_set])),
            "superblock",
        ),
        (text.replacen('{', "{\"version\":1,", 1), "superblock"),
        (
            text.replacen("\"sequence\":1", "\"sequence\":1e400", 1),
            "superblock",
        ),
        (
            text.replacen(
                "\"sequence\":1",
                &format!("\"sequence\":1{}", "0".repeat(1000)),
                1,
            ),
            "superblock",
        ),
        ("[".repeat(100_000), "superblock"),
        (String::new(), "superblock"),
        ("x".repeat(300_000), "superblock"),
    ] {
        fs::write(&header, format!("{line}\n{mac}")).unwrap();
        let shown: String = line.chars().take(60).collect();
        let mount = place.run("mount vol mnt");
        fails(&mount, 32, says);
        for verb in ["inspect vol", "inspect vol --json", "status vol"] {
            let outcome = place.run(verb);
            assert_eq!(outcome.code, 5, "{verb}: {shown}: {outcome:?}");
            fails(&outcome, 5, says);
        }
    }
    fs::remove_file(&header).unwrap();
    fs::create_dir(&header).unwrap();
    assert_eq!(place.run("mount vol mnt").code, 2);
    fs::remove_dir(&header).unwrap();
    fs::write(&header, &original).unwrap();
    victim.is_unharmed();
}

/// An unverified superblock cannot name anything that is run, opened or contacted: a program, a
/// file (or a fifo, whose open would block for ever), another machine.
#[test]
fn an_unverified_header_decides_nothing() {
    let Some(victim) = Victim::new("cli-obey", true) else {
        return;
    };
    let place = &victim.place;
    let header = victim.path("vol/volume.json");
    let original = fs::read(&header).unwrap();
    let (contents, mac) = lines(&original);
    let (ran, fifo) = (victim.path("ran"), victim.path("fifo"));
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    for provider in [
        format!("exec:touch {}", ran.display()),
        format!("exec:/usr/bin/touch%20{}", ran.display()),
        format!("file:{}", fifo.display()),
        "file:/dev/zero".to_owned(),
        "pkcs11:?module-path=/tmp/evil.so".to_owned(),
        "https://127.0.0.1:1/key".to_owned(),
        "x".repeat(200),
    ] {
        let mut changed = contents.clone();
        changed["slots"][0]["provider"] = json!(provider);
        fs::write(&header, format!("{changed}\n{mac}")).unwrap();
        for words in [
            "mount vol mnt",
            "mount vol mnt -o customer_key=file:key.pem",
        ] {
            fails(&place.run(words), 32, "volume.json");
        }
        // Nor if the keystore remembers nothing of the volume.
        let copy = "mount vol mnt --platform-keystore forgetful";
        run_with_forgetful_keystore(&victim);
        fails(&place.run(copy), 32, "needs its customer key");
        place.run("inspect vol").done();
        place.run("status vol").done();
        assert!(!ran.exists(), "{provider}: a program was run");
    }
    fs::write(&header, &original).unwrap();
    victim.is_unharmed();
}

/// A copy of the keystore without its records of volumes.
fn run_with_forgetful_keystore(victim: &Victim) {
    let copy = victim.path("forgetful");
    let _ = fs::remove_dir_all(&copy);
    let mut cp = crate::real::command("cp", ["-a"]);
    crate::real::run(cp.arg(victim.path("keystore")).arg(&copy)).silent();
    let records = fs::read_dir(copy.join("volumes")).unwrap();
    for record in records {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
}
