//! Times a plain directory, gocryptfs and bilayer side by side on one backing filesystem.
//!
//! ```text
//! cargo build --release && cargo run --release -p bilayer-bench --bin compare -- --dir /srv/tmp
//! ```
//! In each round every filesystem gets a fresh and empty directory and runs the same workloads.
//! Before the next one begins, the daemon has ended and everything is on disk. Each round begins
//! with another filesystem, so that other activity of the machine affects all of them alike. Times
//! are not asserted; the contents that are read back are. `bench/README.md` explains the figures.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::path::PathBuf;
use std::process::ExitCode;

use bilayer_bench::filesystems::{Filesystem, Kind, Programs};
use bilayer_bench::image::in_fresh_backing;
use bilayer_bench::{Outcome, exit_code, load};
use clap::Parser;

mod report;
mod workloads;

use report::Report;
use workloads::{Inputs, Sizes};

const IMAGE_BYTES: u64 = 6 << 30;

/// Compare a plain directory, gocryptfs and bilayer.
#[derive(Parser, Debug)]
#[command(name = "bilayer-compare", version)]
struct Arguments {
    /// Directory in which everything is created; the files are removed at the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A tenth of the data: shows that it works, not how fast
    #[arg(long)]
    quick: bool,
    /// A fresh ext4 for each, in an image file of 6 GiB below DIR; for root only
    #[arg(long)]
    ext4: bool,
    /// The program to measure [default: `bilayer` beside this program]
    #[arg(long, value_name = "FILE")]
    bilayer: Option<PathBuf>,
    /// Another version of the program, to be compared as `before`
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Filesystems to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    only: Vec<Kind>,
}

fn main() -> ExitCode {
    exit_code("compare", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let programs = Programs::find(arguments.bilayer.clone(), arguments.before.clone())?;
    let kinds = programs.kinds_to_compare(&arguments.only);
    let top = tempfile::Builder::new()
        .prefix("bilayer-compare-")
        .tempdir_in(&arguments.dir)?;
    let sizes = Sizes::new(arguments.quick);
    let inputs = Inputs::make(top.path(), sizes)?;
    println!("{}\n{}", programs.describe(&kinds), inputs.describe());
    let mut report = Report::new(kinds.clone(), sizes);
    for round in 0..arguments.rounds as usize {
        for place in 0..kinds.len() {
            let kind = kinds[(round + place) % kinds.len()];
            println!("round {}: {} (load {})", round + 1, kind.label(), load());
            let ext4_bytes = arguments.ext4.then_some(IMAGE_BYTES);
            in_fresh_backing(top.path(), ext4_bytes, |backing| {
                let mut filesystem = Filesystem::make(kind, &programs, backing)?;
                workloads::run(&mut filesystem, &inputs, &mut |workload, measured| {
                    report.add(kind, workload, measured);
                })
            })?;
        }
    }
    print!("\n{report}");
    Ok(())
}
