//! What checkpoints of the metadata cost: time, bytes, and what others have less meanwhile.
//!
//! ```text
//! cargo run --release -p bilayer-bench --bin checkpoints -- --dir /srv/tmp
//! ```
//! The filesystem is used without a mount: what is measured is the daemon's own work. Nothing is
//! asserted about time.

#![allow(clippy::print_stdout)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bilayer::fs::types::{Caller, NodeId};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::store::directory::DirectoryStore;
use bilayer::volume::{self, CreateOptions, OpenOptions};
use bilayer_bench::Outcome;
use clap::Parser;

const FILES_PER_DIRECTORY: u64 = 500;
const SMALL_BYTES: usize = 200;
const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// Measure checkpoints.
#[derive(Parser, Debug)]
#[command(name = "bilayer-checkpoints", version)]
struct Arguments {
    /// Where everything is made, in a directory of its own that is removed at the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Files in the volume
    #[arg(long, default_values_t = [100_000, 500_000])]
    files: Vec<u64>,
    /// How often each is repeated
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = arguments
        .files
        .iter()
        .try_for_each(|files| measure(&arguments, *files));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn open(dir: &Path, interval: Option<Duration>) -> Outcome<Arc<Filesystem>> {
    let store = Arc::new(DirectoryStore::open_or_create(&dir.join("volume"))?);
    let options = OpenOptions {
        keystore: dir.join("keystore"),
        ..OpenOptions::default()
    };
    let volume = volume::open(store, &options)?;
    let options = FilesystemOptions {
        checkpoint_interval: interval,
        ..FilesystemOptions::default()
    };
    Ok(Filesystem::open(volume, options)?)
}

/// Makes small files; files per second.
fn make(filesystem: &Filesystem, name: &str, files: u64) -> Outcome<f64> {
    let contents = [7; SMALL_BYTES];
    let begin = Instant::now();
    let told = |errno| format!("making files: {errno:?}");
    let mut directory = NodeId::ROOT;
    for number in 0..files {
        if number % FILES_PER_DIRECTORY == 0 {
            let name = format!("{name}-{number}");
            let made = filesystem.mkdir(&ROOT, NodeId::ROOT, name.as_bytes(), 0o755);
            directory = made.map_err(told)?.node;
        }
        let file = format!("a-file-of-some-length-{number}");
        let flags = 2;
        let made = filesystem.create(&ROOT, directory, file.as_bytes(), 0o644, flags);
        let (attr, handle) = made.map_err(told)?;
        let written = filesystem.write(attr.node, handle, 0, &contents, false, false);
        written.map_err(told)?;
        filesystem.release(attr.node, handle);
        filesystem.forget(attr.node, 1);
    }
    Ok(files as f64 / begin.elapsed().as_secs_f64())
}

/// Of this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn newest(dir: &Path) -> Outcome<Option<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("volume/checkpoints"))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if entry.file_name() != "volume.json" {
            found.push((
                metadata.modified()?,
                metadata.len(),
                metadata.blocks() * 512,
            ));
        }
    }
    found.sort();
    Ok(found.last().map(|(_, len, allocated)| (*len, *allocated)))
}

fn measure(arguments: &Arguments, files: u64) -> Outcome<()> {
    let place = tempfile::tempdir_in(&arguments.dir)?;
    measure_in(place.path(), arguments.rounds, files)
}

fn measure_in(dir: &Path, rounds: u32, files: u64) -> Outcome<()> {
    let store = Arc::new(DirectoryStore::open_or_create(&dir.join("volume"))?);
    let options = CreateOptions {
        keystore: dir.join("keystore"),
        ..CreateOptions::default()
    };
    volume::create(store, &options, &mut |fresh| {
        Filesystem::format(fresh, (0, 0)).map_err(Into::into)
    })?;
    let filesystem = open(dir, None)?;
    make(&filesystem, "first", files)?;
    filesystem.sync()?;
    let meta = std::fs::metadata(dir.join("volume/meta"))?.blocks() * 512;
    let (mut times, mut works) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (begin, worked) = (Instant::now(), processor_time());
        filesystem.checkpoint_now()?;
        times.push(begin.elapsed().as_secs_f64());
        works.push((processor_time() - worked).as_secs_f64());
    }
    for times in [&mut times, &mut works] {
        times.sort_by(f64::total_cmp);
    }
    let (length, allocated) = newest(dir)?.ok_or("no checkpoint was made")?;
    println!(
        "{files} files: {:.2} s ({:.2} to {:.2}), {:.2} s of a processor; {:.1} MiB on disk (length {:.1}), meta {:.1} MiB",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1],
        works[works.len() / 2],
        allocated as f64 / 1_048_576.0,
        length as f64 / 1_048_576.0,
        meta as f64 / 1_048_576.0,
    );
    beside(&filesystem, rounds)?;
    filesystem.close()?;
    Ok(())
}

/// Files made per second with nothing beside it, and beside checkpoints in the pace of the
/// background, one after the other.
fn beside(filesystem: &Arc<Filesystem>, rounds: u32) -> Outcome<()> {
    const FILES: u64 = 60_000;
    let (mut alone, mut with, mut made) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        alone.push(make(filesystem, &format!("alone-{round}"), FILES)?);
        let (other, stop) = (Arc::clone(filesystem), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&stop);
        let maker = std::thread::spawn(move || {
            let mut made = 0;
            while !told.load(Ordering::Relaxed) {
                let stop = || told.load(Ordering::Relaxed);
                made += u32::from(other.checkpoint_in_turns(&stop).is_ok());
            }
            made
        });
        with.push(make(filesystem, &format!("with-{round}"), FILES)?);
        stop.store(true, Ordering::Relaxed);
        made += maker
            .join()
            .map_err(|_| "the maker of checkpoints panicked")?;
    }
    for rates in [&mut alone, &mut with] {
        rates.sort_by(f64::total_cmp);
    }
    let middle = |rates: &[f64]| rates[rates.len() / 2];
    println!(
        "  files made per second: {:.0} alone ({:.0} to {:.0}), {:.0} beside ({:.0} to {:.0}) {made} checkpoints",
        middle(&alone),
        alone[0],
        alone[alone.len() - 1],
        middle(&with),
        with[0],
        with[with.len() - 1],
    );
    Ok(())
}
