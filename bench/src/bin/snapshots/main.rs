//! Times snapshots and images.
//!
//! ```text
//! cargo build --release
//! cargo run --release -p bilayer-bench --bin snapshots -- --dir /srv/tmp --ext4
//! ```
//! Variants that are compared are measured in one run, alternately, so that other activity of the
//! machine affects all of them alike. Figures are medians, with the smallest and the largest value
//! beside them. Times are not asserted; contents are. `bench/README.md` explains the figures.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bilayer_bench::filesystems::{Filesystem, Kind, Programs};
use bilayer_bench::image::in_fresh_backing;
use bilayer_bench::{Outcome, exit_code, load};
use clap::{Parser, ValueEnum};

mod data;
mod deploying;
mod many;
mod resealing;
mod stalls;
mod taking;
mod writing;

/// The measurements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// The cost of taking one, by size of the volume, and how long writers are delayed
    Taking,
    /// Random writes before and after a snapshot
    Writing,
    /// A volume with many snapshots beside one with none
    Many,
    /// Deploying an image, and both volumes after random writes
    Deploying,
    /// Deploying an image to another customer key, exporting and importing it, beside links
    Resealing,
}

/// Measure snapshots and images.
#[derive(Parser, Debug)]
#[command(name = "bilayer-snapshots", version)]
struct Arguments {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Directory in which everything is created; the files are removed at the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Small amounts: shows that it works, not how fast
    #[arg(long)]
    quick: bool,
    /// A fresh ext4 for each part, in an image file of this size below DIR; for root only
    #[arg(long, value_name = "GIB", num_args = 0..=1, default_missing_value = "12")]
    ext4: Option<u64>,
    /// The program to measure [default: `bilayer` beside this program]
    #[arg(long, value_name = "FILE")]
    bilayer: Option<PathBuf>,
    /// Number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Taking: files of the volumes
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 50_000, 500_000])]
    files: Vec<u64>,
    /// Taking: bytes in large files of the largest volume; the others have proportionally less
    #[arg(long, value_name = "GIB", default_value_t = 4)]
    gib: u64,
    /// Taking: snapshots of each volume
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Writing: size of the file
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    write_mib: u64,
    /// Writing: how long each rate is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    write_seconds: u64,
    /// Many: number of snapshots
    #[arg(long, default_value_t = 1_000)]
    snapshots: u32,
    /// Deploying: size of the image
    #[arg(long, value_name = "GIB", default_value_t = 4)]
    deploy_gib: u64,
    /// Deploying: how long both volumes are written to
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    deploy_seconds: u64,
    /// Resealing: size of the image
    #[arg(long, value_name = "GIB", default_value_t = 2)]
    reseal_gib: u64,
}

impl Arguments {
    fn made_quick(mut self) -> Self {
        if self.quick {
            self.files = vec![100, 1_000];
            (self.gib, self.deploy_gib, self.reseal_gib) = (0, 0, 0);
            (self.times, self.rounds, self.snapshots) = (3, 1, 20);
            self.write_mib = 64;
            (self.write_seconds, self.deploy_seconds) = (1, 2);
        }
        self
    }
}

fn main() -> ExitCode {
    exit_code("snapshots", run(&Arguments::parse().made_quick()))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let programs = Programs::find(arguments.bilayer.clone(), None)?;
    println!("{}", programs.describe(&[Kind::Bilayer]));
    let top = tempfile::Builder::new()
        .prefix("bilayer-snapshots-")
        .tempdir_in(&arguments.dir)?;
    for part in Part::value_variants() {
        if !arguments.parts.is_empty() && !arguments.parts.contains(part) {
            continue;
        }
        let name = part.to_possible_value();
        let name = name.as_ref().map_or("", |name| name.get_name());
        println!("\n{name} (load {})", load());
        let run_part = match part {
            Part::Taking => taking::run,
            Part::Writing => writing::run,
            Part::Many => many::run,
            Part::Deploying => deploying::run,
            Part::Resealing => resealing::run,
        };
        let ext4_bytes = arguments.ext4.map(|gib| gib << 30);
        in_fresh_backing(top.path(), ext4_bytes, |backing| {
            run_part(&programs, backing, arguments)
        })?;
    }
    Ok(())
}

/// An empty volume in a directory of its own, mounted.
fn volume(programs: &Programs, backing: &Path, name: &str) -> Outcome<Filesystem> {
    let place = backing.join(name);
    std::fs::create_dir(&place)?;
    Filesystem::make(Kind::Bilayer, programs, &place)
}
