//! Random writes of 4 KiB to one file: before a snapshot, right after it, and later.
//!
//! Each round has a fresh file. Its rate is measured twice before the snapshot, which shows how
//! much the rates vary on this machine without one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{Programs, sync_backing};
use bilayer_bench::spread::Spread;
use bilayer_bench::tree::Bytes;

use crate::data::{Manner, make_large, write_randomly};
use crate::{Arguments, volume};

/// Writes per second.
#[derive(Clone, Copy)]
struct Round {
    first: f64,
    before: f64,
    after: f64,
    later: f64,
}

pub(crate) fn run(programs: &Programs, backing: &Path, arguments: &Arguments) -> Outcome<()> {
    let filesystem = volume(programs, backing, "written")?;
    let root = filesystem.root();
    let (path, snapshot) = (root.join("file"), root.join(".snapshots/one"));
    let time = Duration::from_secs(arguments.write_seconds);
    println!(
        "  4 KiB at random places of {} MiB, {} s each; writes per second",
        arguments.write_mib, arguments.write_seconds
    );
    for manner in Manner::ALL {
        let mut rounds = Vec::new();
        for round in 0..arguments.rounds {
            drop(make_large(&path, arguments.write_mib << 20)?);
            sync_backing(backing)?;
            let mut random = Bytes::new(u64::from(round) + 10);
            let mut rate = || write_randomly(&path, manner, &mut random, time);
            let (first, before) = (rate()?, rate()?);
            fs::create_dir(&snapshot)?;
            rounds.push(Round {
                first,
                before,
                after: rate()?,
                later: rate()?,
            });
            fs::remove_file(&path)?;
            fs::remove_dir(&snapshot)?;
        }
        report(manner, &rounds);
    }
    Ok(())
}

fn report(manner: Manner, rounds: &[Round]) {
    let spread = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect());
    let median = |of: &dyn Fn(&Round) -> f64| spread(of).map_or(f64::NAN, |s| s.median);
    let ratio = |of: &dyn Fn(&Round) -> f64| spread(of).map_or(String::new(), |s| s.to_string());
    println!(
        "  {:<27} before {:>7.0} {:>7.0}, after {:>7.0}, later {:>7.0}; after / before {}, \
         before / before {}, later / before {}",
        manner.label(),
        median(&|r| r.first),
        median(&|r| r.before),
        median(&|r| r.after),
        median(&|r| r.later),
        ratio(&|r| r.after / r.before),
        ratio(&|r| r.before / r.first),
        ratio(&|r| r.later / r.before),
    );
}
