//! The audit as a reader sees it: which records there are, that they have all fields, and where
//! they are written. Needs root and /dev/fuse; tests that cannot run say so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod actions;
mod chain;
mod destinations;
mod requesters;
mod system_log;

use bilayer_test_support::{namespace, real};

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use real::Place;

/// Time limit of one test.
const LIMIT: Duration = Duration::from_secs(120);

/// The fields of every record.
const FIELDS: [&str; 11] = [
    "time",
    "action",
    "outcome",
    "volume",
    "path",
    "mount_point",
    "uid",
    "pid",
    "version",
    "seq",
    "previous",
];

/// The records of a file, each complete and with every field.
#[track_caller]
fn records_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    // A reader that mistakes a record being written for a torn one leaves an empty line.
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(parse).collect()
}

#[track_caller]
fn parse(line: &str) -> Value {
    let record: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for field in FIELDS {
        assert!(record.get(field).is_some(), "no {field}: {line}");
    }
    let time = record["time"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok());
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    record
}

/// The records of a place, unless another file was requested.
#[track_caller]
fn records(place: &Place) -> Vec<Value> {
    records_in(&place.path("keystore/audit.log"))
}

/// The records of one action.
#[track_caller]
fn of_action(place: &Place, action: &str) -> Vec<Value> {
    let mut records = records(place);
    records.retain(|record| record["action"] == action);
    records
}

/// Removes all records.
fn clear_records(place: &Place) {
    let _ = fs::remove_file(place.path("keystore/audit.log"));
}
