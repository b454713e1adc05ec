//! How long the creation of small files takes beside a program that writes a large one.
//!
//! ```text
//! cargo build --release
//! cargo run --release -p bilayer-bench --bin stalls -- --dir /srv/tmp --ext4
//! ```
//! One thread writes a large file and syncs it. Until it is done another thread creates small
//! files, writes and closes them as fast as it can, and each file is timed. A round does so on
//! every filesystem in turn; percentiles are over all files of all rounds. Times are not asserted.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bilayer_bench::filesystems::{Filesystem, Kind, Programs};
use bilayer_bench::image::in_fresh_backing;
use bilayer_bench::spread::Spread;
use bilayer_bench::{Outcome, exit_code};
use clap::Parser;

const FILES_PER_DIRECTORY: usize = 500;
const CALL_BYTES: usize = 1 << 20;

/// Time the creation of small files beside a program that writes a large one.
#[derive(Parser, Debug)]
#[command(name = "bilayer-stalls", version)]
struct Arguments {
    /// Directory in which everything is created; the files are removed at the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Size of the large file in GiB
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    gib: u64,
    /// Sizes of small files in bytes
    #[arg(long, value_delimiter = ',', default_values_t = [200, 16_384])]
    small_bytes: Vec<usize>,
    /// Number of rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A fresh ext4 for each, in an image file below DIR; for root only
    #[arg(long)]
    ext4: bool,
    /// The program to measure [default: `bilayer` beside this program]
    #[arg(long, value_name = "FILE")]
    bilayer: Option<PathBuf>,
    /// Another version of the program, to be compared as `before`
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Filesystems to compare
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [Kind::Plain, Kind::Gocryptfs, Kind::Bilayer]
    )]
    only: Vec<Kind>,
}

/// The measurements on one filesystem with small files of one size.
#[derive(Default)]
struct Measured {
    /// Duration for each small file.
    latencies: Vec<Duration>,
    /// Small files per second, for each round.
    creates: Vec<f64>,
    /// MiB per second until the large file was written, for each round.
    written: Vec<f64>,
    /// MiB per second until the large file was on disk, for each round.
    synced: Vec<f64>,
}

impl Measured {
    /// This many of a thousand took no longer.
    fn percentile(&self, per_mille: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (self.latencies.len() * per_mille / 1000).min(last);
        self.latencies
            .get(at)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    }
}

fn main() -> ExitCode {
    exit_code("stalls", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let programs = Programs::find(arguments.bilayer.clone(), arguments.before.clone())?;
    let kinds = programs.kinds_to_compare(&arguments.only);
    println!("{}", programs.describe(&kinds));
    let top = tempfile::Builder::new()
        .prefix("bilayer-stalls-")
        .tempdir_in(&arguments.dir)?;
    for &small_bytes in &arguments.small_bytes {
        let mut all: Vec<Measured> = kinds.iter().map(|_| Measured::default()).collect();
        for round in 0..arguments.rounds as usize {
            for place in 0..kinds.len() {
                let at = (round + place) % kinds.len();
                let ext4_bytes = arguments.ext4.then(|| (arguments.gib + 16) << 30);
                in_fresh_backing(top.path(), ext4_bytes, |backing| {
                    let measured = &mut all[at];
                    one(
                        kinds[at],
                        &programs,
                        backing,
                        arguments,
                        small_bytes,
                        measured,
                    )
                })?;
            }
        }
        report(small_bytes, arguments.gib, &kinds, &mut all);
    }
    Ok(())
}

fn report(small_bytes: usize, gib: u64, kinds: &[Kind], all: &mut [Measured]) {
    println!("\nfiles of {small_bytes} bytes, created beside a writer of {gib} GiB");
    println!(
        "{:12} {:>8} {:>8} {:>8} {:>8} {:>24} {:>24} {:>24}",
        "", "50 % ms", "99 %", "99.9 %", "longest", "creates/s", "MiB/s written", "MiB/s on disk"
    );
    for (kind, measured) in kinds.iter().zip(all) {
        measured.latencies.sort_unstable();
        let text = |samples: &[f64]| {
            let spread = Spread::of(samples.to_vec());
            spread.map_or_else(String::new, |spread| {
                format!(
                    "{:.0} [{:.0}, {:.0}]",
                    spread.median, spread.smallest, spread.largest
                )
            })
        };
        println!(
            "{:12} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>24} {:>24} {:>24}",
            kind.label(),
            measured.percentile(500),
            measured.percentile(990),
            measured.percentile(999),
            measured.percentile(1000),
            text(&measured.creates),
            text(&measured.written),
            text(&measured.synced)
        );
    }
}

/// One round on one filesystem, which is created in `backing` and unmounted afterwards.
fn one(
    kind: Kind,
    programs: &Programs,
    backing: &Path,
    arguments: &Arguments,
    small_bytes: usize,
    measured: &mut Measured,
) -> Outcome<()> {
    let mut filesystem = Filesystem::make(kind, programs, backing)?;
    let root = filesystem.root().to_path_buf();
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    let (large, small) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let result = write_large(&root, arguments.gib << 30);
            done.store(true, Ordering::Release);
            result.map_err(|error| error.to_string())
        });
        let small = create_small(&root, small_bytes, &done);
        (writer.join(), small)
    });
    let (written, synced) = large.map_err(|_| "the writer panicked")??;
    let latencies = small?;
    let mib = (arguments.gib << 10) as f64;
    measured.written.push(mib / written.as_secs_f64());
    measured.synced.push(mib / synced.as_secs_f64());
    measured
        .creates
        .push(latencies.len() as f64 / begin.elapsed().as_secs_f64());
    measured.latencies.extend(latencies);
    filesystem.settle()
}

/// Returns the time until the file was written and closed, and until it was on disk.
fn write_large(root: &Path, bytes: u64) -> Outcome<(Duration, Duration)> {
    let path = root.join("large");
    let mut block = vec![0; CALL_BYTES];
    for (at, byte) in block.iter_mut().enumerate() {
        *byte = ((at * 167) >> 3) as u8;
    }
    let begin = Instant::now();
    let mut file = File::create(&path)?;
    for call in 0..bytes / CALL_BYTES as u64 {
        block[..8].copy_from_slice(&call.to_le_bytes());
        file.write_all(&block)?;
    }
    let synced = file.try_clone()?;
    drop(file);
    let written = begin.elapsed();
    synced.sync_all()?;
    Ok((written, begin.elapsed()))
}

/// Creates files until `done` is set. Returns how long each took.
fn create_small(root: &Path, bytes: usize, done: &AtomicBool) -> Outcome<Vec<Duration>> {
    let contents = vec![7; bytes];
    let mut latencies = Vec::new();
    let mut directory = PathBuf::new();
    while !done.load(Ordering::Acquire) {
        let number = latencies.len();
        if number % FILES_PER_DIRECTORY == 0 {
            directory = root.join(format!("small-{number}"));
            fs::create_dir(&directory)?;
        }
        let path = directory.join(number.to_string());
        let begin = Instant::now();
        let mut file = File::create(path)?;
        file.write_all(&contents)?;
        drop(file);
        latencies.push(begin.elapsed());
    }
    Ok(latencies)
}
