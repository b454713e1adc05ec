//! The cost of taking a snapshot, for volumes of several sizes that are all mounted at once.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{Filesystem, Programs, done, sync_backing};
use bilayer_bench::spread::Spread;

use crate::data::{allocated, make_large, make_small};
use crate::{Arguments, stalls, volume};

const LARGE_BYTES: u64 = 256 << 20;
const CHANGED_BYTES: u64 = 4 << 20;
/// Longer than the commit interval.
const QUIET: Duration = Duration::from_secs(6);

struct Volume {
    filesystem: Filesystem,
    files: u64,
    by_mkdir: Vec<f64>,
    by_command: Vec<f64>,
    growth: Vec<f64>,
}

pub(crate) fn run(programs: &Programs, backing: &Path, arguments: &Arguments) -> Outcome<()> {
    let most = arguments.files.iter().copied().max().unwrap_or(1).max(1);
    let mut volumes = Vec::new();
    for &files in &arguments.files {
        let filesystem = volume(programs, backing, &format!("files-{files}"))?;
        let bytes = (arguments.gib << 30) / most * files;
        let begin = Instant::now();
        fill(filesystem.root(), files, bytes)?;
        println!(
            "  {files} files and {} MiB in large ones made in {:.0} s",
            bytes >> 20,
            begin.elapsed().as_secs_f64()
        );
        volumes.push(Volume {
            filesystem,
            files,
            by_mkdir: Vec::new(),
            by_command: Vec::new(),
            growth: Vec::new(),
        });
    }
    std::thread::sleep(QUIET);
    for turn in 0..arguments.times {
        for volume in &mut volumes {
            volume.take(turn)?;
        }
    }
    report(&volumes);
    for volume in &volumes {
        println!("  {} files, while others write:", volume.files);
        volume.hold_up(2 * arguments.times)?;
    }
    Ok(())
}

fn fill(root: &Path, files: u64, large: u64) -> Outcome<()> {
    make_small(root, files)?;
    let mut left = large;
    while left > 0 {
        let bytes = left.min(LARGE_BYTES);
        make_large(&root.join(format!("large-{left}")), bytes)?;
        left -= bytes;
    }
    make_large(&root.join("changed"), CHANGED_BYTES)?;
    Ok(())
}

impl Volume {
    /// Two snapshots, each after a small change, which taking the snapshot first makes durable.
    fn take(&mut self, turn: u32) -> Outcome<()> {
        let root = self.filesystem.root().to_path_buf();
        let name = format!("by-mkdir-{turn}");
        let by_mkdir =
            self.one(&mut || Ok(fs::create_dir(root.join(".snapshots").join(&name))?))?;
        self.by_mkdir.push(by_mkdir);
        let mut command = self.filesystem.bilayer();
        command.args(["snapshot", "create"]).arg(&root);
        command.arg(format!("by-command-{turn}"));
        let by_command = self.one(&mut || done(&mut command))?;
        self.by_command.push(by_command);
        Ok(())
    }

    /// Duration of taking one, in milliseconds.
    fn one(&mut self, take: &mut dyn FnMut() -> Outcome<()>) -> Outcome<f64> {
        let root = self.filesystem.root();
        let file = fs::File::options().write(true).open(root.join("changed"))?;
        file.write_all_at(b"a change", 0)?;
        file.sync_all()?;
        sync_backing(&self.filesystem.sealed())?;
        let before = allocated(&self.filesystem.sealed())?;
        let begin = Instant::now();
        take()?;
        let time = begin.elapsed();
        sync_backing(&self.filesystem.sealed())?;
        let after = allocated(&self.filesystem.sealed())?;
        self.growth.push((after as f64 - before as f64) / 1024.0);
        Ok(time.as_secs_f64() * 1e3)
    }

    fn hold_up(&self, seconds: u32) -> Outcome<()> {
        let root = self.filesystem.root();
        let file = root.join("written");
        make_large(&file, LARGE_BYTES)?;
        stalls::measure(&file, &root.join("made"), seconds, &mut |second| {
            let name = format!("in-second-{second}");
            Ok(fs::create_dir(root.join(".snapshots").join(name))?)
        })
    }
}

fn report(volumes: &[Volume]) {
    let columns = ["files", "mkdir, ms", "snapshot create, ms", "growth, KiB"];
    println!(
        "  {:>8} {:>24} {:>24} {:>26}",
        columns[0], columns[1], columns[2], columns[3]
    );
    for volume in volumes {
        let cell = |samples: &Vec<f64>| {
            Spread::of(samples.clone()).map_or(String::new(), |spread| spread.to_string())
        };
        println!(
            "  {:>8} {:>24} {:>24} {:>26}",
            volume.files,
            cell(&volume.by_mkdir),
            cell(&volume.by_command),
            cell(&volume.growth)
        );
    }
    if let [first, .., last] = volumes {
        let ratio = |of: &dyn Fn(&Volume) -> &Vec<f64>| {
            let median = |v| Spread::of(of(v).clone()).map_or(f64::NAN, |spread| spread.median);
            median(last) / median(first)
        };
        println!(
            "  {} files to {}: mkdir x {:.2}, snapshot create x {:.2}",
            last.files,
            first.files,
            ratio(&|v| &v.by_mkdir),
            ratio(&|v| &v.by_command)
        );
    }
}
