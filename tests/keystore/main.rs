//! The platform keystore with real mounts: rotation while volumes are in use, backups that are
//! restored elsewhere, and how its commands fail. Needs root and /dev/fuse; tests that cannot run
//! say so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod failures;
mod machines;
mod rotation;
mod tpm;

use bilayer_test_support::real;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use real::Place;

/// Time limit of one test.
const LIMIT: Duration = Duration::from_secs(180);

/// The JSON that a command prints.
#[track_caller]
fn json(place: &Place, words: &str) -> Value {
    let outcome = place.run(&format!("{words} --json")).done();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// A passphrase file that only its owner may read.
fn passphrase(place: &Place, name: &str, passphrase: &str) {
    let path = place.path(name);
    fs::write(&path, passphrase).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The platform key versions that the superblock of a volume names.
#[track_caller]
fn versions_of(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let mut versions = Vec::new();
    for set in header["key_sets"].as_array().unwrap() {
        let wraps = set["infrastructure"].as_array().unwrap().iter();
        let wraps = wraps.chain(set["customer"].as_array().unwrap());
        let platform = |wrap: &&Value| wrap["provider"].as_str().unwrap().starts_with("platform:");
        versions.extend(
            wraps
                .filter(platform)
                .map(|wrap| wrap["key_version"].as_str().unwrap().to_owned()),
        );
    }
    versions.sort();
    versions.dedup();
    versions
}

/// The entry of a volume in `keystore list`.
#[track_caller]
fn listed(place: &Place, directory: &Path) -> Value {
    let list = json(place, "keystore list");
    let volumes = list["volumes"].as_array().unwrap();
    let entry = volumes
        .iter()
        .find(|entry| entry["directory"] == directory.to_str().unwrap());
    entry
        .unwrap_or_else(|| panic!("{} is not in {list}", directory.display()))
        .clone()
}
