//! Deploys an image of large files. Then both volumes are written to at random, at the same time,
//! and every block of both is compared with what was written.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{Filesystem, Programs, done, sync_backing};
use bilayer_bench::spread::Spread;
use bilayer_bench::tree::Bytes;

use crate::data::BLOCK_BYTES;
use crate::{Arguments, volume};

pub(crate) const FILE_BYTES: u64 = 128 << 20;
const CALL_BLOCKS: usize = 256;
/// The last writer of a block: both volumes share it at first, one of them writes it later.
const COMMON: u32 = 0;

/// Called with the number of a file, an offset, and the expected bytes there.
type Visitor<'a> = dyn FnMut(usize, u64, &[u8]) -> Outcome<()> + 'a;

/// The expected contents of a volume: for each block of each file a number that no two writes have
/// in common.
#[derive(Clone)]
pub(crate) struct Contents {
    files: Vec<Vec<u32>>,
}

pub(crate) fn run(programs: &Programs, backing: &Path, arguments: &Arguments) -> Outcome<()> {
    let mut source = volume(programs, backing, "image")?;
    let files = ((arguments.deploy_gib << 30) / FILE_BYTES).max(1) as usize;
    let mut original = Contents::common(files);
    original.make(source.root())?;
    sync_backing(backing)?;
    let command = |words: &[&str]| {
        let mut command = source.bilayer();
        command.arg("image").args(words).arg(source.root());
        command
    };
    done(command(&["create"]).arg("base"))?;
    let mut times = Vec::new();
    for round in 0..arguments.rounds {
        let copy = source.beside(&format!("copy-{round}-"))?;
        let before = used(backing)?;
        let mut deploy = command(&["deploy"]);
        deploy.arg("base").arg(copy.sealed());
        let begin = Instant::now();
        done(&mut deploy)?;
        times.push(begin.elapsed().as_secs_f64());
        sync_backing(backing)?;
        let growth = used(backing)?.saturating_sub(before);
        println!(
            "  {} MiB in {files} files deployed in {:.2} s; the disk has {} MiB less",
            (files as u64 * FILE_BYTES) >> 20,
            begin.elapsed().as_secs_f64(),
            growth >> 20
        );
        if round + 1 < arguments.rounds {
            fs::remove_dir_all(copy.sealed())?;
            continue;
        }
        let mut copy = copy;
        copy.mount_cold()?;
        check_both(&mut source, &mut copy, &mut original, arguments)?;
        copy.unmount()?;
        break;
    }
    if let Some(spread) = Spread::of(times) {
        println!("  deploying: {spread} s");
    }
    Ok(())
}

/// Writes to both volumes at the same time, and compares both with what was written.
fn check_both(
    source: &mut Filesystem,
    copy: &mut Filesystem,
    original: &mut Contents,
    arguments: &Arguments,
) -> Outcome<()> {
    let mut copied = original.clone();
    let time = Duration::from_secs(arguments.deploy_seconds);
    let (writes, copy_writes) = thread::scope(|scope| {
        let (root, copy_root) = (source.root(), copy.root());
        let other = &mut copied;
        let writer =
            scope.spawn(move || other.write(copy_root, 2, time).map_err(|e| e.to_string()));
        let writes = original.write(root, 1, time)?;
        let copy_writes = writer.join().map_err(|_| "a writer panicked")??;
        Ok::<_, Box<dyn std::error::Error>>((writes, copy_writes))
    })?;
    source.settle()?;
    copy.settle()?;
    for (filesystem, contents) in [(source, &*original), (copy, &copied)] {
        filesystem.mount_cold()?;
        contents.check(filesystem.root())?;
    }
    println!(
        "  after {writes} random writes of 4 KiB to the source and {copy_writes} to the copy in \
         {} s, unmounting and mounting, every block of every file of both is right",
        arguments.deploy_seconds
    );
    Ok(())
}

impl Contents {
    /// Of this many files that were not changed yet.
    pub(crate) fn common(files: usize) -> Self {
        let blocks = FILE_BYTES as usize / BLOCK_BYTES;
        Self {
            files: vec![vec![COMMON; blocks]; files],
        }
    }

    fn path(root: &Path, file: usize) -> PathBuf {
        root.join(format!("file-{file}"))
    }

    fn fill(&self, file: usize, block: usize, out: &mut [u8]) {
        let written = u64::from(self.files[file][block]);
        let place = (file as u64) << 20 | block as u64;
        Bytes::new(place << 32 ^ written).fill(out);
    }

    pub(crate) fn make(&self, root: &Path) -> Outcome<()> {
        self.visit(&mut |file, at, call| {
            let path = Self::path(root, file);
            let mut options = File::options();
            let file = options
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)?;
            file.write_all_at(call, at)?;
            Ok(())
        })
    }

    pub(crate) fn check(&self, root: &Path) -> Outcome<()> {
        let mut read = vec![0; CALL_BLOCKS * BLOCK_BYTES];
        self.visit(&mut |file, at, call| {
            let path = Self::path(root, file);
            File::open(&path)?.read_exact_at(&mut read, at)?;
            if read == call {
                return Ok(());
            }
            Err(format!("{}: not what was written after {at}", path.display()).into())
        })?;
        let count = fs::read_dir(root)?.count();
        if count != self.files.len() {
            return Err(format!("{}: {count} files", root.display()).into());
        }
        Ok(())
    }

    /// The contents of every file, in calls of 1 MiB.
    fn visit(&self, visit: &mut Visitor<'_>) -> Outcome<()> {
        let mut call = vec![0; CALL_BLOCKS * BLOCK_BYTES];
        for (file, blocks) in self.files.iter().enumerate() {
            for first in (0..blocks.len()).step_by(CALL_BLOCKS) {
                for (at, block) in call.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                    self.fill(file, first + at, block);
                }
                visit(file, (first * BLOCK_BYTES) as u64, &call)?;
            }
        }
        Ok(())
    }

    /// Writes blocks at random, with an fsync now and then. Returns the number of blocks.
    fn write(&mut self, root: &Path, who: u32, time: Duration) -> Outcome<u32> {
        const SYNC_EVERY: u32 = 1024;
        let mut options = File::options();
        let files = (0..self.files.len())
            .map(|file| options.write(true).open(Self::path(root, file)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut random = Bytes::new(u64::from(who));
        let mut data = vec![0; BLOCK_BYTES];
        let begin = Instant::now();
        let mut count = 0;
        while begin.elapsed() < time {
            count += 1;
            let file = random.below(files.len());
            let block = random.below(self.files[file].len());
            self.files[file][block] = count << 2 | who;
            self.fill(file, block, &mut data);
            files[file].write_all_at(&data, (block * BLOCK_BYTES) as u64)?;
            if count % SYNC_EVERY == 0 {
                files[file].sync_data()?;
            }
        }
        for file in &files {
            file.sync_all()?;
        }
        Ok(count)
    }
}

/// Bytes that are used of the filesystem.
fn used(place: &Path) -> Outcome<u64> {
    let all = rustix::fs::statvfs(place)?;
    Ok((all.f_blocks - all.f_bfree) * all.f_frsize)
}
