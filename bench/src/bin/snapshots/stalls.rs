//! How long other work waits while snapshots are taken: one thread writes and fsyncs, one creates
//! files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bilayer_bench::Outcome;
use bilayer_bench::spread::Spread;
use bilayer_bench::tree::Bytes;

use crate::data::{BLOCK_BYTES, Manner, blocks_of};

/// Start and duration of each call.
type Calls = Vec<(Instant, Duration)>;

/// In every other second a snapshot is taken in the middle of the second.
const SECOND: Duration = Duration::from_secs(1);

/// Prints the longest call of each second, for seconds with and without a snapshot.
///
/// Writes go to the file; new files are created in the directory.
pub(crate) fn measure(
    file: &Path,
    directory: &Path,
    seconds: u32,
    take: &mut dyn FnMut(u32) -> Outcome<()>,
) -> Outcome<()> {
    fs::create_dir(directory)?;
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    let (writes, creates) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_and_sync(file, &stop).map_err(|e| e.to_string()));
        let maker = scope.spawn(|| make_files(directory, &stop).map_err(|e| e.to_string()));
        let taken = take_in_turns(begin, seconds, take);
        stop.store(true, Ordering::Relaxed);
        let ended = |name: &'static str| format!("the thread that {name} panicked");
        let writes = writer.join().map_err(|_| ended("writes"))??;
        let creates = maker.join().map_err(|_| ended("makes files"))??;
        taken.map(|()| (writes, creates))
    })?;
    for (label, calls) in [("pwrite + fsync", &writes), ("create a file", &creates)] {
        let of = |odd: bool| Spread::of(longest(begin, seconds, calls, odd));
        let (Some(without), Some(with)) = (of(false), of(true)) else {
            continue;
        };
        println!(
            "  longest {label:<15} in a second, ms: without {without}, with a snapshot {with} \
             ({} calls)",
            calls.len()
        );
    }
    Ok(())
}

fn take_in_turns(
    begin: Instant,
    seconds: u32,
    take: &mut dyn FnMut(u32) -> Outcome<()>,
) -> Outcome<()> {
    for second in (1..seconds).step_by(2) {
        let middle = begin + SECOND * second + SECOND / 2;
        thread::sleep(middle.saturating_duration_since(Instant::now()));
        take(second)?;
    }
    let end = begin + SECOND * seconds;
    thread::sleep(end.saturating_duration_since(Instant::now()));
    Ok(())
}

/// Duration of the longest call of every other second, in milliseconds.
fn longest(begin: Instant, seconds: u32, calls: &Calls, odd: bool) -> Vec<f64> {
    let every_other = (u32::from(odd)..seconds).step_by(2);
    every_other
        .filter_map(|second| {
            let (from, to) = (begin + SECOND * second, begin + SECOND * (second + 1));
            let within = calls
                .iter()
                .filter(|(at, _)| (from..to).contains(at))
                .map(|(_, time)| time.as_secs_f64() * 1e3);
            within.max_by(f64::total_cmp)
        })
        .collect()
}

fn write_and_sync(path: &Path, stop: &AtomicBool) -> Outcome<Calls> {
    let file = Manner::Synced.open(path)?;
    let blocks = blocks_of(&file)?;
    let mut random = Bytes::new(4);
    let mut block = vec![0; BLOCK_BYTES];
    random.fill(&mut block);
    timed(stop, &mut |_| {
        let at = random.below(blocks) as u64;
        file.write_all_at(&block, at * BLOCK_BYTES as u64)?;
        Ok(file.sync_data()?)
    })
}

fn make_files(directory: &Path, stop: &AtomicBool) -> Outcome<Calls> {
    timed(stop, &mut |number| {
        let path = directory.join(format!("new-{number}"));
        Ok(fs::write(path, "new")?)
    })
}

fn timed(stop: &AtomicBool, call: &mut dyn FnMut(u64) -> Outcome<()>) -> Outcome<Calls> {
    let mut calls = Calls::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        call(number)?;
        calls.push((begin, begin.elapsed()));
        // Less than a CPU can do, so that neither thread has to wait for the other.
        thread::sleep(Duration::from_micros(500));
    }
    Ok(calls)
}
