//! Lines that a peer sends over the control socket of a mounted volume.

use bilayer::daemon;
use bilayer::fs::Filesystem;
use serde_json::Value;

use super::{hostile, sample};

/// Maximum number of lines of one case.
const LINES_MAX: usize = 16;

/// The bytes are lines, each of which gets a response. Requests that create volumes or read files
/// elsewhere on the machine are skipped.
pub fn target(data: &[u8]) {
    let sample = hostile::sample();
    let volume = sample.open(&sample.store.snapshot()).unwrap();
    let fs = Filesystem::open(volume, sample::options()).unwrap();
    for line in String::from_utf8_lossy(data).lines().take(LINES_MAX) {
        if leaves_the_volume(line) {
            continue;
        }
        let mut answer = Vec::new();
        daemon::answer_line(line, &fs, &mut answer).unwrap();
        check(&answer);
    }
    fs.close().unwrap();
}

fn leaves_the_volume(line: &str) -> bool {
    let Ok(request) = serde_json::from_str::<Value>(line) else {
        return false;
    };
    let operation = &request["body"]["operation"];
    operation["verb"] == "deploy" || !operation["passphrase_file"].is_null()
}

/// Responses with raw bytes between them; only the last one is the outcome.
fn check(mut answer: &[u8]) {
    loop {
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = answer.split_at(end + 1);
        let response: Value = serde_json::from_slice(line).unwrap();
        let response = &response["body"];
        answer = rest;
        if let Some(count) = response.get("bytes").and_then(Value::as_u64) {
            answer = &answer[count as usize..];
        }
        if response.get("done").is_some() || response.get("failed").is_some() {
            assert!(answer.is_empty());
            return;
        }
    }
}
