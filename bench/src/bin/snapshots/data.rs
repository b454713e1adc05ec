//! The data that is written, and the check that what is read is the data of that writer.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use bilayer_bench::Outcome;
use bilayer_bench::tree::Bytes;
use rustix::fs::{Advice, OFlags};

/// Bytes of a random read or write.
pub(crate) const BLOCK_BYTES: usize = 4096;
const CALL_BYTES: usize = 1 << 20;
const SMALL_BYTES: usize = 200;
const FILES_PER_DIRECTORY: u64 = 500;
/// Few enough that hardly any block is rewritten before it is on disk, so that the daemon is
/// measured and not the kernel's cache.
const CACHED_WRITES: u32 = 1024;

/// Creates small files in directories below `root`, numbered from `from` on.
pub(crate) fn make_small(root: &Path, files: u64) -> Outcome<()> {
    let mut contents = [0; SMALL_BYTES];
    Bytes::new(files).fill(&mut contents);
    for number in 0..files {
        let directory = root.join(format!("small-{}", number / FILES_PER_DIRECTORY));
        if number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir(&directory)?;
        }
        fs::write(directory.join(format!("file-{number}")), contents)?;
    }
    Ok(())
}

/// Creates a file of incompressible bytes, which is durable on return.
pub(crate) fn make_large(path: &Path, length: u64) -> Outcome<File> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).open(path)?;
    let mut random = Bytes::new(length);
    let mut call = vec![0; CALL_BYTES];
    random.fill(&mut call);
    let mut left = length;
    while left > 0 {
        call[..8].copy_from_slice(&random.word().to_le_bytes());
        let piece = (left as usize).min(CALL_BYTES);
        file.write_all(&call[..piece])?;
        left -= piece as u64;
    }
    file.sync_all()?;
    Ok(file)
}

/// How random writes reach the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// Through the kernel's cache, with an fdatasync now and then.
    Cached,
    /// `O_DIRECT`: each write waits for the daemon; one fsync at the end.
    Direct,
    /// With an fdatasync after each write.
    Synced,
}

impl Manner {
    pub(crate) const ALL: [Self; 3] = [Self::Cached, Self::Direct, Self::Synced];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Cached => "cached, 1024 a fdatasync",
            Self::Direct => "O_DIRECT, fsync at the end",
            Self::Synced => "fdatasync after each",
        }
    }

    pub(crate) fn open(self, path: &Path) -> Outcome<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if self == Self::Direct {
            options.custom_flags(OFlags::DIRECT.bits().cast_signed());
        }
        Ok(options.open(path)?)
    }
}

/// Writes blocks at random offsets of a file for a while. Returns writes per second, until the last
/// one is on disk.
pub(crate) fn write_randomly(
    path: &Path,
    manner: Manner,
    random: &mut Bytes,
    time: Duration,
) -> Outcome<f64> {
    let file = manner.open(path)?;
    let blocks = blocks_of(&file)?;
    let mut block = vec![0; BLOCK_BYTES];
    random.fill(&mut block);
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < time {
        block[..8].copy_from_slice(&random.word().to_le_bytes());
        let at = random.below(blocks) as u64;
        file.write_all_at(&block, at * BLOCK_BYTES as u64)?;
        count += 1;
        if manner == Manner::Synced
            || manner == Manner::Cached && count.is_multiple_of(CACHED_WRITES)
        {
            file.sync_data()?;
        }
    }
    file.sync_all()?;
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

pub(crate) fn blocks_of(file: &File) -> Outcome<usize> {
    Ok(file.metadata()?.len() as usize / BLOCK_BYTES)
}

/// Reads a file, sequentially in large calls or at random in small ones, from the daemon and not
/// from the kernel's cache. Returns bytes per second.
pub(crate) fn read_uncached(path: &Path, randomly: Option<(&mut Bytes, u32)>) -> Outcome<f64> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    let begin = Instant::now();
    let bytes = if let Some((random, count)) = randomly {
        rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
        let mut block = vec![0; BLOCK_BYTES];
        for _ in 0..count {
            let at = random.below(length as usize / BLOCK_BYTES) as u64;
            file.read_exact_at(&mut block, at * BLOCK_BYTES as u64)?;
        }
        u64::from(count) * BLOCK_BYTES as u64
    } else {
        let mut call = vec![0; CALL_BYTES];
        for at in (0..length).step_by(CALL_BYTES) {
            let piece = ((length - at) as usize).min(CALL_BYTES);
            file.read_exact_at(&mut call[..piece], at)?;
        }
        length
    };
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

/// Bytes that a tree takes on its filesystem.
pub(crate) fn allocated(top: &Path) -> Outcome<u64> {
    let mut bytes = fs::symlink_metadata(top)?.blocks() * 512;
    for entry in fs::read_dir(top)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Removed by the daemon in the meantime.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        };
        bytes += if metadata.is_dir() {
            allocated(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}
