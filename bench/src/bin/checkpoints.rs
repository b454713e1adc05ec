//! The cost of checkpoints of the metadata: time, bytes, and how much they slow down other work.
//!
//! ```text
//! cargo run --release -p bilayer-bench --bin checkpoints -- --dir /srv/tmp
//! ```
//! The filesystem is used without a mount, so the daemon's own work is measured. Times are not
//! asserted.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bilayer::fs::types::{Caller, NodeId, Owner, WriteFlags};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::meta::keys::Table;
use bilayer::meta::raw::{RawTables, Visited};
use bilayer::sealed::{META_PAYLOAD_BYTES, META_STRIDE_BYTES, MetaFile};
use bilayer::store::directory::DirectoryStore;
use bilayer::store::{OpenMode, StorePath};
use bilayer::volume::{self, CreateOptions, META_NAME, OpenOptions};
use bilayer_bench::{Outcome, exit_code};
use clap::Parser;

const FILES_PER_DIRECTORY: u64 = 500;
const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// Measure checkpoints.
#[derive(Parser, Debug)]
#[command(name = "bilayer-checkpoints", version)]
struct Arguments {
    /// Directory in which everything is created; the files are removed at the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Files in the volume
    #[arg(long, default_values_t = [100_000, 500_000])]
    files: Vec<u64>,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Bytes of each file
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Files that are created beside a checkpoint, each time
    #[arg(long, default_value_t = 60_000)]
    beside: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = arguments
        .files
        .iter()
        .try_for_each(|files| measure(&arguments, *files));
    exit_code("checkpoints", done)
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

/// Creates small files. Returns files per second.
fn make(filesystem: &Filesystem, name: &str, files: u64, bytes: usize) -> Outcome<f64> {
    let contents = vec![7; bytes];
    let begin = Instant::now();
    let describe = |errno| format!("making files: {errno:?}");
    let mut directory = NodeId::ROOT;
    for number in 0..files {
        if number % FILES_PER_DIRECTORY == 0 {
            let name = format!("{name}-{number}");
            let made = filesystem.mkdir(&ROOT, NodeId::ROOT, name.as_bytes(), 0o755);
            directory = made.map_err(describe)?.node;
        }
        let file = format!("a-file-of-some-length-{number}");
        let flags = 2;
        let made = filesystem.create(&ROOT, directory, file.as_bytes(), 0o644, flags);
        let (attr, handle) = made.map_err(describe)?;
        let written = filesystem.write(attr.node, handle, 0, &contents, WriteFlags::default());
        written.map_err(describe)?;
        filesystem.release(attr.node, handle);
        filesystem.forget(attr.node, 1);
    }
    Ok(files as f64 / begin.elapsed().as_secs_f64())
}

/// CPU time of this thread.
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
    measure_in(place.path(), arguments, files)
}

fn measure_in(dir: &Path, arguments: &Arguments, files: u64) -> Outcome<()> {
    let Arguments { rounds, bytes, .. } = *arguments;
    let store = Arc::new(DirectoryStore::open_or_create(&dir.join("volume"))?);
    let options = CreateOptions {
        keystore: dir.join("keystore"),
        ..CreateOptions::default()
    };
    volume::create_empty(store, &options, &mut |fresh| {
        Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
    })?;
    let filesystem = open(dir, None)?;
    make(&filesystem, "first", files, bytes)?;
    filesystem.sync()?;
    let meta = meta_bytes(dir)?;
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
        "{files} files: {:.2} s ({:.2} to {:.2}), {:.2} s of a processor; \
         {:.1} MiB on disk (length {:.1}), meta {:.1} MiB",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1],
        works[works.len() / 2],
        allocated as f64 / 1_048_576.0,
        length as f64 / 1_048_576.0,
        meta as f64 / 1_048_576.0,
    );
    beside(dir, &filesystem, arguments)?;
    filesystem.close()?;
    drop(filesystem);
    in_short_uses(dir)?;
    tables(dir, files, bytes)
}

/// Bytes that the metadata takes on the disk.
fn meta_bytes(dir: &Path) -> Outcome<u64> {
    Ok(std::fs::metadata(dir.join("volume/meta"))?.blocks() * 512)
}

/// How many short uses it takes until a checkpoint is finished, and what the end of each use costs.
fn in_short_uses(dir: &Path) -> Outcome<()> {
    let mut ends = Vec::new();
    let mut is_made = false;
    while !is_made && ends.len() < 100 {
        let filesystem = open(dir, Some(Duration::from_secs(100_000)))?;
        make(&filesystem, &format!("use-{}", ends.len()), 100, 100)?;
        let begin = Instant::now();
        filesystem.close()?;
        drop(filesystem);
        ends.push(format!("{:.1}", begin.elapsed().as_secs_f64()));
        let mut names = std::fs::read_dir(dir.join("volume/checkpoints"))?;
        is_made = !names.any(|name| {
            name.is_ok_and(|name| name.file_name().to_string_lossy().ends_with(".new"))
        });
    }
    println!(
        "  uses that end at once until there is one: {}; their ends took {} s",
        ends.len(),
        ends.join(", ")
    );
    Ok(())
}

/// How the bytes of the metadata are distributed.
fn tables(dir: &Path, files: u64, bytes: usize) -> Outcome<()> {
    let store = Arc::new(DirectoryStore::open_or_create(&dir.join("volume"))?);
    let options = OpenOptions {
        keystore: dir.join("keystore"),
        read_only: true,
        ..OpenOptions::default()
    };
    let volume = volume::open(store, &options)?;
    let file = volume
        .store
        .open(&StorePath::new(META_NAME), OpenMode::Read)?;
    let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto())?;
    let file = Arc::new(file);
    let commits = RawTables::all(&file);
    let rows = commits.first().ok_or("no commit can be read")?;
    println!("  {files} files of {bytes} bytes and those made beside:");
    println!("  table        rows  key bytes  value bytes   leaf pages  branch pages  filled");
    let mut pages = 0;
    for table in Table::ALL {
        let (mut count, mut keys, mut values) = (0u64, 0u64, 0u64);
        rows.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |found| {
            if let Visited::Row(key, value) = found {
                count += 1;
                keys += key.len() as u64;
                values += value.len() as u64;
            }
            true
        });
        let (leaves, branches) = rows.pages_of(table).ok_or("a table cannot be read")?;
        pages += leaves + branches;
        println!(
            "  {:<9} {count:>8} {keys:>10} {values:>12} {leaves:>12} {branches:>13} {:>6.0}%",
            table.name(),
            (keys + values + 8 * count) as f64 / (leaves.max(1) * 4096) as f64 * 100.0,
        );
    }
    let allocated = meta_bytes(dir)? / META_STRIDE_BYTES as u64;
    println!(
        "  {pages} pages of 4096 bytes in tables, {allocated} on the disk, {} in the file; \
         4608 bytes each",
        file.len()? / META_PAYLOAD_BYTES as u64,
    );
    Ok(())
}

/// Files created per second, alternately with and without checkpoints at the pace of the background
/// thread.
fn beside(dir: &Path, filesystem: &Arc<Filesystem>, arguments: &Arguments) -> Outcome<()> {
    let Arguments {
        rounds,
        bytes,
        beside: files,
        ..
    } = *arguments;
    let (mut grown_alone, mut grown_with) = (0, 0);
    let (mut alone, mut with, mut made) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        let before = meta_bytes(dir)?;
        alone.push(make(filesystem, &format!("alone-{round}"), files, bytes)?);
        let between = meta_bytes(dir)?;
        grown_alone += between - before;
        let (other, stop) = (Arc::clone(filesystem), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let maker = std::thread::spawn(move || {
            let mut made = 0;
            while !stopped.load(Ordering::Relaxed) {
                let stop = || stopped.load(Ordering::Relaxed);
                made += u32::from(other.checkpoint_throttled(&stop).is_ok());
            }
            made
        });
        with.push(make(filesystem, &format!("with-{round}"), files, bytes)?);
        grown_with += meta_bytes(dir)? - between;
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
        "  files made per second: {:.0} alone ({:.0} to {:.0}), \
         {:.0} beside ({:.0} to {:.0}), {made} checkpoints; \
         meta grew by {:.1} MiB alone, {:.1} MiB beside",
        middle(&alone),
        alone[0],
        alone[alone.len() - 1],
        middle(&with),
        with[0],
        with[with.len() - 1],
        grown_alone as f64 / 1_048_576.0,
        grown_with as f64 / 1_048_576.0,
    );
    Ok(())
}
