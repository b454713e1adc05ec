//! The power-cut simulator: random lives of a volume beside a model of it, each with power cuts and
//! kills at random moments.
//!
//! What must hold afterwards: the volume opens by itself, however often the power fails meanwhile, and
//! whether or not the platform keystore remembers the newest of it; names and attributes are as they
//! were after some operation no older than the last commit that was reported done; every page of every
//! file is as some operation since the file's last reported fsync left it; everything reads; nothing
//! is left over that nothing names; and a kept view whose taking was reported done is there and whole,
//! byte for byte. On a device that tears pages, a page that was being overwritten may be lost, which
//! is reported, and nothing else may.
//!
//! `tests/crash --help` says how to run more of it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![allow(unreachable_pub, reason = "a program of its own")]

#[path = "../support/mod.rs"]
mod support;

mod history;
mod life;
mod machine;
mod panics;
mod plan;
mod shrink;
mod stats;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use plan::Plan;
use shrink::{attempt, report, shrink};
use stats::Stats;

/// Power cuts, faults and kills at random moments of random work
#[derive(Parser, Debug)]
#[command(
    name = "tests/crash",
    after_help = "Exit: 0 when nothing was found (with --bug: when it was), 1 otherwise."
)]
struct Options {
    /// How many lives with power cuts
    #[arg(long, value_name = "N", default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// This life alone, told step by step
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// What cargo passes on to every test program
    #[arg(hide = true)]
    filters: Vec<String>,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let wanted = |filter: &String| "simulator".contains(filter.as_str());
    if options.list || !(options.filters.is_empty() || options.filters.iter().any(wanted)) {
        return ExitCode::SUCCESS;
    }
    panics::install();
    let passed = match options.seed {
        Some(seed) => tell(seed),
        None => lives(&options),
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One life, step by step.
fn tell(seed: u64) -> bool {
    let plan = Plan::new(seed);
    let outcome = attempt(&plan, true);
    println!("{}", outcome.lived.trace.join("\n"));
    println!("{}", outcome.lived.stats);
    if outcome.failure.is_some() {
        println!("{}", report(&plan, &shrink(&plan, &outcome)));
    }
    outcome.failure.is_none()
}

fn lives(options: &Options) -> bool {
    let begin = Instant::now();
    let (stats, failed) = search(options.first..options.first + options.seeds);
    let failures = failed.len();
    for seed in failed.iter().take(3) {
        let plan = Plan::new(*seed);
        let outcome = attempt(&plan, false);
        println!("{}", report(&plan, &shrink(&plan, &outcome)));
    }
    let secs = begin.elapsed().as_secs();
    println!("simulator: {stats}: {failures} failures, {secs} s");
    failed.is_empty()
}

/// Lives these seeds on all cores. Returns the counts and those that failed, in order; after some
/// failures it stops.
fn search(seeds: std::ops::Range<u64>) -> (Stats, Vec<u64>) {
    const ENOUGH: usize = 5;
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let found = Mutex::new((Stats::default(), Vec::new()));
    let lane = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let outcome = attempt(&Plan::new(seed), false);
            let found = &mut *found.lock().unwrap();
            found.0 += outcome.lived.stats;
            if let Some(failure) = outcome.failure {
                println!("seed {seed}: {}: {}", failure.place, failure.message);
                found.1.push(seed);
                stop.store(found.1.len() >= ENOUGH, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..lanes() {
            scope.spawn(lane);
        }
    });
    let (stats, mut failed) = found.into_inner().unwrap();
    failed.sort_unstable();
    (stats, failed)
}

/// More than there are cores: taking a view waits for the clock.
fn lanes() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}
