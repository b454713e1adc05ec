//! The power-cut simulator: random scenarios of a volume beside a model of it, each with power cuts
//! and kills at random moments.
//!
//! What must hold afterwards: the volume opens without help, however often the power fails
//! meanwhile, and whether or not the platform keystore has its newest record. Names and attributes
//! are as they were after some operation no older than the last commit that was reported complete.
//! Every page of every file is as some operation since the file's last reported fsync left it.
//! Everything reads. No object is left over that nothing names. A kept view that was reported
//! complete exists and is intact, byte for byte. On a device that tears pages, a page that was
//! being overwritten may be lost, which is reported, and nothing else may.
//!
//! `tests/crash --help` has the options for longer runs.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is how a test fails, and this one is run by hand, too"
)]
#![allow(unreachable_pub, reason = "a program of its own")]

mod bugs;
mod faults;
mod forged;
mod history;
mod machine;
mod panics;
mod plan;
mod scenario;
mod script;
mod shrink;
mod stats;
mod threads;

use bilayer_test_support as support;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use panics::Failure;
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
    /// How many scenarios with power cuts
    #[arg(long, value_name = "N", default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// This scenario alone, printed step by step
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// How many scenarios with users that work at the same time
    #[arg(long, value_name = "N", default_value_t = 200)]
    threads: u64,
    /// Single faults in a scripted scenario
    #[arg(long, value_enum, default_value_t = Faults::Some)]
    faults: Faults,
    /// Plants this bug, or each ("all"), and prints at which seed it was found
    #[arg(long, value_name = "NAME")]
    bug: Option<String>,
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

/// How many of the single faults.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    /// None
    None,
    /// A cut and EIO at every sixth call, ENOSPC and short writes at fewer
    Some,
    /// All of them at every call
    Full,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let wanted = |filter: &String| "simulator".contains(filter.as_str());
    if options.list || !(options.filters.is_empty() || options.filters.iter().any(wanted)) {
        return ExitCode::SUCCESS;
    }
    panics::install();
    if passes(&options) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn passes(options: &Options) -> bool {
    let seeds = options.first..options.first + options.seeds;
    if let Some(seed) = options.seed {
        return tell(seed);
    }
    if let Some(name) = &options.bug {
        return bugs::find(name, seeds);
    }
    machine::prepare();
    let run = seeds.is_empty() || run_scenarios(seeds);
    let faults = match options.faults {
        Faults::None => true,
        Faults::Some => faults::run(24),
        Faults::Full => faults::run(1),
    };
    run & faults & (options.threads == 0 || threads::run(options.threads))
}

/// Runs one scenario, printed step by step.
fn tell(seed: u64) -> bool {
    let plan = Plan::new(seed);
    let outcome = attempt(&plan, true);
    println!("{}", outcome.run.trace.join("\n"));
    println!("{}", outcome.run.stats);
    if outcome.failure.is_some() {
        println!("{}", report(&plan, &shrink(&plan, &outcome)));
    }
    outcome.failure.is_none()
}

fn run_scenarios(seeds: Range<u64>) -> bool {
    let begin = Instant::now();
    let Searched { stats, failed } = search(seeds, 5, true);
    for (seed, _) in failed.iter().take(3) {
        let plan = Plan::new(*seed);
        let outcome = attempt(&plan, false);
        println!("{}", report(&plan, &shrink(&plan, &outcome)));
    }
    let (failures, secs) = (failed.len(), begin.elapsed().as_secs());
    println!("simulator: {stats}: {failures} failures, {secs} s");
    failed.is_empty()
}

/// Result of many scenarios.
struct Searched {
    stats: Stats,
    /// Seeds that failed, in order.
    failed: Vec<(u64, Failure)>,
}

/// Runs these seeds on all cores, until `enough` have failed.
fn search(seeds: Range<u64>, enough: usize, tells: bool) -> Searched {
    let searched = Mutex::new(Searched {
        stats: Stats::default(),
        failed: Vec::new(),
    });
    on_lanes(lanes(), seeds, |seed| {
        let outcome = attempt(&Plan::new(seed), false);
        let searched = &mut *searched.lock().unwrap();
        searched.stats += outcome.run.stats;
        if let Some(failure) = outcome.failure {
            if tells {
                println!("seed {seed}: {}: {}", failure.place, failure.message);
            }
            searched.failed.push((seed, failure));
        }
        searched.failed.len() < enough
    });
    let mut searched = searched.into_inner().unwrap();
    searched.failed.sort_by_key(|(seed, _)| *seed);
    searched
}

/// Runs the work for each number, several at a time, until it returns false.
fn on_lanes(lanes: usize, numbers: Range<u64>, work: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(numbers.start);
    let stop = AtomicBool::new(false);
    let lane = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                break;
            }
            if !work(number) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(lane);
        }
    });
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// More than there are cores, since taking a view waits for the clock.
fn lanes() -> usize {
    2 * cores()
}

/// Number of concurrent scenarios that have threads of their own.
fn threaded_lanes() -> usize {
    cores()
}
