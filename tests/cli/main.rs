//! Commands on snapshots and images, without a mount: their output and effects. How commands fail:
//! one line that says what failed, with what and why; perhaps one that says what to do; the
//! documented exit code; and an unchanged volume. And what must never be visible: secrets on
//! command lines, in environments, in JSON, in core dumps.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod failures;
mod header;
mod hints;
mod images;
mod interrupts;
mod keys;
mod prompts;
mod rollback;
mod secrets;
mod snapshots;
mod units;

use bilayer_test_support::real;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use real::{Outcome, Place};

/// Fails unless the command failed as commands should: with that code, nothing on standard output,
/// one line `bilayer: …` that contains `says`, and at most one line `hint: …`.
#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    let what = format!("{}\n{}", outcome.what, outcome.stderr);
    assert_eq!(outcome.code, code, "{what}");
    assert_eq!(outcome.stdout, "", "{what}");
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(lines[0].starts_with("bilayer: "), "{what}");
    assert!(lines[0].contains(says), "{says:?} is not said: {what}");
    match lines[1..] {
        [] => {}
        [hint] => assert!(hint.starts_with("hint: "), "{what}"),
        _ => panic!("more than two lines: {what}"),
    }
}

/// A volume with one file in it, and its customer key.
struct Victim {
    place: Place,
}

impl Victim {
    fn new(test: &'static str, customer: bool) -> Option<Self> {
        let place = Place::new(test, Duration::from_secs(100))?;
        let create = if customer {
            place.run("keygen key.pem --bits 2048").done();
            "--customer-key file:key.pem"
        } else {
            ""
        };
        let mounted = place.fresh(create, "");
        fs::write(mounted.path("file"), "as it was").unwrap();
        mounted.unmount();
        Some(Self { place })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// The command fails in that way, and the volume mounts and reads back afterwards.
    #[track_caller]
    fn refuses(&self, words: &str, code: i32, says: &str) {
        fails(&self.place.run(words), code, says);
        assert!(!real::is_mount_point(&self.path("mnt")), "{words}");
    }

    /// The volume is unchanged.
    #[track_caller]
    fn is_unharmed(&self) {
        let mounted = self.place.mount("vol", "mnt", "");
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
        mounted.unmount();
    }
}
