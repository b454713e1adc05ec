//! Shell scripts that a test runs, and the programs that they need.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::real::{Outcome, Place, command, have, need, run_within};

/// Time for one script. Most take a second; a loaded machine takes many times as long.
pub(crate) const SCRIPT_LIMIT: Duration = Duration::from_secs(100);
/// Time for one test.
pub(crate) const TEST_LIMIT: Duration = Duration::from_secs(200);

/// True if all of these programs exist, each given with the package that contains it.
pub(crate) fn equipped(test: &str, programs: &[(&str, &str)]) -> bool {
    programs.iter().all(|(program, package)| {
        let missing = format!("{program} is missing; install {package}");
        need(have(program), test, &missing)
    })
}

/// `errexit` ignores failures before `&&` or after `!`: scripts have one command after the other,
/// and use `not`.
const PROLOGUE: &str = r#"set -Eeuo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
not() { ! "$@"; }
PATH=$PATH:/usr/sbin:/sbin
"#;

/// The command that runs a bash script in a directory. The script ends at the first command that
/// fails, and prints that command.
pub(crate) fn bash(place: &Place, dir: &Path, text: &str) -> Command {
    let mut bash = command("bash", ["-c", &format!("{PROLOGUE}{text}")]);
    place.environment(&mut bash);
    bash.current_dir(dir);
    bash
}

/// Runs a script; fails the test unless it succeeds.
#[track_caller]
pub(crate) fn script(place: &Place, dir: &Path, text: &str) -> Outcome {
    run_within(&mut bash(place, dir, text), SCRIPT_LIMIT).done()
}
