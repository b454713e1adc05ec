//! Where secrets must not be.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::real::Place;

#[test]
fn none_leaves_the_process() {
    let Some(place) = Place::new("secrets", Duration::from_secs(120)) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    let pem = fs::read_to_string(place.path("key.pem")).unwrap();
    let secret = pem.lines().nth(5).unwrap().to_owned();
    let mode = fs::metadata(place.path("key.pem")).unwrap().permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    let mounted = place.fresh("--customer-key file:key.pem", "log_file=log");
    let keystore = fs::read_dir(place.path("keystore/versions")).unwrap();
    let mut secrets = vec![secret];
    for version in keystore {
        let text = fs::read_to_string(version.unwrap().path()).unwrap();
        let parsed: Value = serde_json::from_str(&text).unwrap();
        let fields = parsed.as_object().unwrap().values();
        let keys = fields
            .filter_map(Value::as_str)
            .filter(|text| text.len() >= 40);
        secrets.extend(keys.map(str::to_owned));
    }
    assert!(
        secrets.len() >= 3,
        "two platform keys and a line of the customer's"
    );

    let pid = mounted.pid;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let mut seen = vec![
        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(),
        place.run("status vol --json").done().stdout,
        place.run("status vol").done().stdout,
        place.run("inspect vol --json").done().stdout,
        place.run("inspect vol").done().stdout,
    ];
    for json in [&seen[1], &seen[3]] {
        let parsed: Value = serde_json::from_str(json).unwrap();
        assert!(parsed.is_object());
    }
    mounted.unmount();
    seen.push(fs::read_to_string(place.path("log")).unwrap());
    seen.push(fs::read_to_string(place.path("vol/volume.json")).unwrap());
    for text in &seen {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "a secret is in: {text}");
        }
        assert!(!text.contains("PRIVATE KEY"), "{text}");
    }
}
