//! Code shared by the benchmarks of bilayer.

use std::error::Error;
use std::process::ExitCode;

pub mod filesystems;
pub mod image;
pub mod spread;
pub mod tree;

/// A benchmark that cannot continue says why and ends.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The exit code of a benchmark, after printing why it failed.
pub fn exit_code(benchmark: &str, outcome: Outcome<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bilayer-{benchmark}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Average number of running processes during the last minute.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
