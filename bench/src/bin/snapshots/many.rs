//! A volume with many snapshots, beside one that was changed in the same way and has none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{Filesystem, Programs, done, drop_caches, sync_backing};
use bilayer_bench::spread::Spread;
use bilayer_bench::tree::Bytes;

use crate::data::{
    BLOCK_BYTES, Manner, allocated, make_large, make_small, read_uncached, write_randomly,
};
use crate::{Arguments, volume};

const FILE_BYTES: u64 = 256 << 20;
const QUICK_FILE_BYTES: u64 = 16 << 20;
const SMALL_FILES: u64 = 2_000;
/// Blocks of the large file that change between two snapshots.
const CHANGED_BLOCKS: u32 = 8;
/// Small files that are rewritten between two snapshots.
const CHANGED_FILES: u64 = 4;
const RANDOM_READS: u32 = 20_000;
const MADE_FILES: u32 = 2_000;
const WRITE_TIME: Duration = Duration::from_secs(3);
/// Snapshots whose changed contents are all read back.
const READ_BACK: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(600);

struct Volumes {
    many: Filesystem,
    none: Filesystem,
    rounds: u32,
}

pub(crate) fn run(programs: &Programs, backing: &Path, arguments: &Arguments) -> Outcome<()> {
    let mut volumes = Volumes {
        many: volume(programs, backing, "many")?,
        none: volume(programs, backing, "none")?,
        rounds: arguments.rounds,
    };
    let bytes = if arguments.quick {
        QUICK_FILE_BYTES
    } else {
        FILE_BYTES
    };
    for root in [volumes.many.root(), volumes.none.root()] {
        make_small(root, SMALL_FILES)?;
        make_large(&root.join("large"), bytes)?;
    }
    println!("  before any snapshot:");
    volumes.compare()?;
    volumes.take(arguments.snapshots)?;
    println!("  with {} snapshots and with none:", arguments.snapshots);
    volumes.compare()?;
    volumes.list()?;
    volumes.read_back(arguments.snapshots)?;
    volumes.delete(arguments.snapshots)?;
    println!("  after all of them were deleted:");
    volumes.compare()
}

/// What the snapshot of this number shows in the file that differs in each snapshot.
fn stamp(number: u32) -> String {
    format!("before snapshot {number}")
}

impl Volumes {
    fn snapshot(&self, number: u32) -> PathBuf {
        self.many.root().join(format!(".snapshots/n-{number}"))
    }

    /// Makes the same changes in both, and takes snapshots in one.
    fn take(&mut self, count: u32) -> Outcome<()> {
        let mut times = Vec::new();
        let mut random = Bytes::new(7);
        let mut block = vec![0; BLOCK_BYTES];
        for number in 0..count {
            random.fill(&mut block);
            let seed = random.word();
            for root in [self.many.root(), self.none.root()] {
                change(root, number, &block, &mut Bytes::new(seed))?;
            }
            let begin = Instant::now();
            fs::create_dir(self.snapshot(number))?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let part = times.len().div_ceil(10);
        let median = |times: &[f64]| Spread::of(times.to_vec()).map_or(f64::NAN, |s| s.median);
        println!(
            "  {count} taken, ms: the first tenth {:.2}, the last {:.2}, longest {:.2}",
            median(&times[..part]),
            median(&times[times.len() - part..]),
            times.iter().copied().fold(0.0, f64::max)
        );
        Ok(())
    }

    fn list(&self) -> Outcome<()> {
        let seconds = |work: &mut dyn FnMut() -> Outcome<()>| {
            let begin = Instant::now();
            work()?;
            Ok::<_, Box<dyn std::error::Error>>(begin.elapsed().as_secs_f64())
        };
        let directory = self.many.root().join(".snapshots");
        let ls = seconds(&mut || done(std::process::Command::new("ls").arg("-l").arg(&directory)))?;
        let mut command = self.many.bilayer();
        command.args(["snapshot", "list"]).arg(self.many.root());
        let list = seconds(&mut || done(&mut command))?;
        println!("  ls -l {ls:.2} s, snapshot list {list:.2} s");
        Ok(())
    }

    /// Reads from some snapshots, in random order.
    fn read_back(&self, count: u32) -> Outcome<()> {
        let mut random = Bytes::new(8);
        let mut times = Vec::new();
        let mut block = vec![0; BLOCK_BYTES];
        for _ in 0..READ_BACK.min(count) {
            let number = random.below(count as usize) as u32;
            let snapshot = self.snapshot(number);
            let begin = Instant::now();
            let seen = fs::read_to_string(snapshot.join("stamp"))?;
            let file = fs::File::open(snapshot.join("large"))?;
            for _ in 0..CHANGED_BLOCKS {
                let blocks = file.metadata()?.len() as usize / BLOCK_BYTES;
                let at = random.below(blocks) as u64 * BLOCK_BYTES as u64;
                file.read_exact_at(&mut block, at)?;
            }
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            if seen != stamp(number) {
                return Err(format!("{}: {seen:?}", snapshot.display()).into());
            }
        }
        if let Some(spread) = Spread::of(times) {
            println!("  a small file and {CHANGED_BLOCKS} blocks of one of them, ms: {spread}");
        }
        Ok(())
    }

    /// Deletes all snapshots in random order, and waits until their space is free.
    fn delete(&mut self, count: u32) -> Outcome<()> {
        let held = allocated(&self.many.sealed())?;
        let mut order: Vec<u32> = (0..count).collect();
        let mut random = Bytes::new(9);
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last + 1));
        }
        let processor = self.many.daemon_time();
        let begin = Instant::now();
        let mut times = Vec::new();
        for number in order {
            let begin = Instant::now();
            fs::remove_dir(self.snapshot(number))?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let deleted = begin.elapsed();
        let left = self.wait_until_purged()?;
        if let Some(spread) = Spread::of(times) {
            println!(
                "  deleted in random order, ms each: {spread}, all in {:.1} s; what they held was \
                 free after {:.1} s, {:.1} s of the daemon's processor time; {} MiB before, {} \
                 after, {} in the other volume",
                deleted.as_secs_f64(),
                begin.elapsed().as_secs_f64(),
                self.many
                    .daemon_time()
                    .saturating_sub(processor)
                    .as_secs_f64(),
                held >> 20,
                left >> 20,
                allocated(&self.none.sealed())? >> 20,
            );
        }
        Ok(())
    }

    /// Waits until the volume's directory has stopped shrinking. Returns the bytes that it takes.
    fn wait_until_purged(&self) -> Outcome<u64> {
        const STILL: u32 = 3;
        let until = Instant::now() + PATIENCE;
        let (mut least, mut still) = (u64::MAX, 0);
        while still < STILL && Instant::now() < until {
            let bytes = allocated(&self.many.sealed())?;
            still = if bytes < least { 0 } else { still + 1 };
            least = least.min(bytes);
            std::thread::sleep(Duration::from_secs(2));
        }
        Ok(least)
    }

    /// Rates of both volumes, alternately, and their ratios within a round.
    fn compare(&self) -> Outcome<()> {
        let mut ratios: BTreeMap<usize, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for round in 0..=self.rounds {
            for (at, workload) in WORKLOADS.iter().enumerate() {
                let mut rates = [0.0; 2];
                for turn in 0..2 {
                    // Every round begins with the other volume.
                    let which = (turn + round as usize) % 2;
                    let filesystem = [&self.many, &self.none][which];
                    rates[which] = (workload.rate)(filesystem.root(), round)?;
                    sync_backing(&filesystem.sealed())?;
                }
                // The first round includes work that is done once after a snapshot.
                let samples = ratios.entry(at).or_default();
                if round > 0 {
                    samples.0.push(rates[0] / rates[1]);
                    samples.1.push(rates[0]);
                }
            }
        }
        for (at, (ratios, rates)) in ratios {
            if let (Some(ratio), Some(rate)) = (Spread::of(ratios), Spread::of(rates)) {
                let Workload { label, unit, .. } = &WORKLOADS[at];
                println!("    {label:<22} {:>10.0} {unit:<9} x {ratio}", rate.median);
            }
        }
        Ok(())
    }
}

fn change(root: &Path, number: u32, block: &[u8], random: &mut Bytes) -> Outcome<()> {
    let file = fs::File::options().write(true).open(root.join("large"))?;
    let blocks = file.metadata()?.len() as usize / BLOCK_BYTES;
    for _ in 0..CHANGED_BLOCKS {
        file.write_all_at(block, random.below(blocks) as u64 * BLOCK_BYTES as u64)?;
    }
    for _ in 0..CHANGED_FILES {
        let file = random.below(SMALL_FILES as usize);
        fs::write(
            root.join(format!("small-{}/file-{file}", file / 500)),
            &block[..200],
        )?;
    }
    Ok(fs::write(root.join("stamp"), stamp(number))?)
}

struct Workload {
    label: &'static str,
    unit: &'static str,
    rate: fn(&Path, u32) -> Outcome<f64>,
}

const WORKLOADS: [Workload; 7] = [
    Workload {
        label: "read, in order",
        unit: "MiB/s",
        rate: |root, _| Ok(read_uncached(&root.join("large"), None)? / f64::from(1 << 20)),
    },
    Workload {
        label: "read 4 KiB at random",
        unit: "reads/s",
        rate: |root, round| {
            let random = Some((&mut Bytes::new(u64::from(round)), RANDOM_READS));
            Ok(read_uncached(&root.join("large"), random)? / BLOCK_BYTES as f64)
        },
    },
    Workload {
        label: "write 4 KiB at random",
        unit: "writes/s",
        rate: |root, round| {
            let random = &mut Bytes::new(u64::from(round));
            write_randomly(&root.join("large"), Manner::Cached, random, WRITE_TIME)
        },
    },
    Workload {
        label: "... with fdatasync each",
        unit: "writes/s",
        rate: |root, round| {
            let random = &mut Bytes::new(u64::from(round));
            write_randomly(&root.join("large"), Manner::Synced, random, WRITE_TIME)
        },
    },
    Workload {
        label: "create a file",
        unit: "files/s",
        rate: create,
    },
    Workload {
        label: "stat a file, uncached",
        unit: "files/s",
        rate: stat,
    },
    Workload {
        label: "remove a file",
        unit: "files/s",
        rate: |root, round| {
            let directory = root.join(format!("made-{round}"));
            let begin = Instant::now();
            fs::remove_dir_all(directory)?;
            Ok(f64::from(MADE_FILES) / begin.elapsed().as_secs_f64())
        },
    },
];

fn create(root: &Path, round: u32) -> Outcome<f64> {
    let directory = root.join(format!("made-{round}"));
    fs::create_dir(&directory)?;
    let begin = Instant::now();
    for number in 0..MADE_FILES {
        fs::write(directory.join(number.to_string()), "contents")?;
    }
    Ok(f64::from(MADE_FILES) / begin.elapsed().as_secs_f64())
}

/// Of the files that existed before the first snapshot.
fn stat(root: &Path, _: u32) -> Outcome<f64> {
    drop_caches();
    let begin = Instant::now();
    for number in 0..SMALL_FILES {
        fs::metadata(root.join(format!("small-{}/file-{number}", number / 500)))?;
    }
    Ok(SMALL_FILES as f64 / begin.elapsed().as_secs_f64())
}
