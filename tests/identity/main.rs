//! One identity, one writer: copies of a volume, moved volumes, and a platform keystore that cannot
//! be written.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod copies;
mod cuts;
mod hidden;
mod keystore;
mod matrix;
mod refused;
mod replaced;
mod silent;
mod unmounted;

use bilayer_test_support as support;
use bilayer_test_support::real;

use std::time::Duration;

use real::{Mounted, Outcome, command, is_alive, run_when_free, wait_until};

/// Fails unless the command failed as commands should: with that code, and one line that contains
/// `says`.
#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    let what = format!("{}\n{}", outcome.what, outcome.stderr);
    assert_eq!(outcome.code, code, "{what}");
    assert!(
        outcome.stderr.contains(says),
        "{says:?} is not said: {what}"
    );
}

/// Unmounts by the mount alone, whatever happened to the volume's path, and waits for the daemon.
#[track_caller]
fn end(mounted: Mounted<'_>) {
    run_when_free(command("umount", ["-i"]).arg(mounted.dir())).done();
    let gone = wait_until(Duration::from_secs(30), || !is_alive(mounted.pid));
    assert!(gone, "the daemon outlived its mount");
}
