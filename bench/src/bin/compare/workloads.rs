//! The workloads, which run on each filesystem in this order:
//!
//! write a large file, fsync it │ *cold* read it │ create many small files │ all of them on disk │
//! untar a tree │ all of it on disk │ *cold* list it │ *cold* read it │ remove it │ on disk.
//!
//! *Cold*: unmounted, caches dropped, mounted again, so that neither the kernel nor the daemon has
//! anything cached. The steps in between, and mounting itself, are not timed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{Filesystem, caches_can_be_dropped, done, sync_backing};
use bilayer_bench::tree::{self, Bytes, TreeSize};

/// Bytes of one read or write call on the large file.
const CALL_BYTES: usize = 1 << 20;
/// Each page of the large file begins with its number, so that no two pages are alike and a reader
/// can check them.
const STAMPED_BYTES: usize = 4096;
const SMALL_DIRECTORIES: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Workload {
    Write,
    Read,
    Create,
    CreateDurable,
    Untar,
    UntarDurable,
    List,
    ReadTree,
    Remove,
    RemoveDurable,
}

impl Workload {
    pub(crate) const ALL: [Self; 10] = [
        Self::Write,
        Self::Read,
        Self::Create,
        Self::CreateDurable,
        Self::Untar,
        Self::UntarDurable,
        Self::List,
        Self::ReadTree,
        Self::Remove,
        Self::RemoveDurable,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Write => "write a file, fsync",
            Self::Read => "read it, cold",
            Self::Create => "create small files",
            Self::CreateDurable => "... until on disk",
            Self::Untar => "untar a tree",
            Self::UntarDurable => "... until on disk",
            Self::List => "find -ls, cold",
            Self::ReadTree => "tar -c of it, cold",
            Self::Remove => "rm -rf",
            Self::RemoveDurable => "... until on disk",
        }
    }
}

/// The amounts of data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) large_bytes: u64,
    pub(crate) small_files: usize,
    pub(crate) small_bytes: usize,
    pub(crate) tree_files: usize,
}

impl Sizes {
    pub(crate) fn new(quick: bool) -> Self {
        let part = if quick { 10 } else { 1 };
        Self {
            large_bytes: (1 << 30) / part / CALL_BYTES as u64 * CALL_BYTES as u64,
            small_files: 20_000 / part as usize,
            small_bytes: 200,
            tree_files: 10_000 / part as usize,
        }
    }
}

/// The source of the data of all workloads. It is on the backing filesystem.
pub(crate) struct Inputs {
    sizes: Sizes,
    tree: TreeSize,
    archive: PathBuf,
    cold: bool,
}

impl Inputs {
    pub(crate) fn make(top: &Path, sizes: Sizes) -> Outcome<Self> {
        let archive = top.join("tree.tar");
        let tree = tree::make(&top.join("tree"), sizes.tree_files)?;
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-C").arg(top).arg("tree");
        done(&mut tar)?;
        fs::remove_dir_all(top.join("tree"))?;
        sync_backing(top)?;
        Ok(Self {
            sizes,
            tree,
            archive,
            cold: caches_can_be_dropped(),
        })
    }

    pub(crate) fn describe(&self) -> String {
        let Sizes {
            large_bytes,
            small_files,
            small_bytes,
            ..
        } = self.sizes;
        format!(
            "file: {} MiB; small: {small_files} files of {small_bytes} bytes in \
             {SMALL_DIRECTORIES} directories; tree: {} files, {} directories, {} MiB{}",
            large_bytes >> 20,
            self.tree.files,
            self.tree.directories,
            self.tree.bytes >> 20,
            if self.cold {
                ""
            } else {
                "\nthe kernel's caches cannot be dropped (not root): \
                 \"cold\" is warm on the backing side"
            }
        )
    }
}

/// The result of one run of a workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) time: Duration,
    /// CPU time of the daemon; `None` if the daemon ended during the workload.
    pub(crate) daemon: Option<Duration>,
}

pub(crate) fn run(
    filesystem: &mut Filesystem,
    inputs: &Inputs,
    report: &mut dyn FnMut(Workload, Measured),
) -> Outcome<()> {
    let mut timed =
        |filesystem: &Filesystem, workload, work: &mut dyn FnMut(&Path) -> Outcome<()>| {
            let daemon = filesystem.daemon_time();
            let begin = Instant::now();
            work(filesystem.root())?;
            let measured = Measured {
                time: begin.elapsed(),
                daemon: Some(filesystem.daemon_time().saturating_sub(daemon)),
            };
            report(workload, measured);
            Ok::<_, Box<dyn std::error::Error>>(measured.time)
        };
    let sizes = inputs.sizes;
    let until_durable = |filesystem: &mut Filesystem, so_far: Duration| {
        let begin = Instant::now();
        filesystem.settle()?;
        Ok::<_, Box<dyn std::error::Error>>(Measured {
            time: so_far + begin.elapsed(),
            daemon: None,
        })
    };

    timed(filesystem, Workload::Write, &mut |root| {
        write_large(&root.join("large"), sizes.large_bytes)
    })?;
    cold(filesystem)?;
    timed(filesystem, Workload::Read, &mut |root| {
        read_large(&root.join("large"), sizes.large_bytes)
    })?;
    fs::remove_file(filesystem.root().join("large"))?;
    cold(filesystem)?;
    let time = timed(filesystem, Workload::Create, &mut |root| {
        create_small(root, sizes)
    })?;
    let created = until_durable(filesystem, time)?;
    filesystem.mount_cold()?;
    read_whole(&inputs.archive)?;
    let time = timed(filesystem, Workload::Untar, &mut |root| {
        untar(&inputs.archive, root)
    })?;
    let unpacked = until_durable(filesystem, time)?;
    filesystem.mount_cold()?;
    timed(filesystem, Workload::List, &mut |root| {
        list(&root.join("tree"), inputs.tree)
    })?;
    cold(filesystem)?;
    timed(filesystem, Workload::ReadTree, &mut |root| {
        read_tree(&root.join("tree"), inputs.tree)
    })?;
    let time = timed(filesystem, Workload::Remove, &mut |root| {
        done(Command::new("rm").arg("-rf").arg(root.join("tree")))
    })?;
    let removed = until_durable(filesystem, time)?;
    report(Workload::RemoveDurable, removed);
    report(Workload::CreateDurable, created);
    report(Workload::UntarDurable, unpacked);
    Ok(())
}

fn cold(filesystem: &mut Filesystem) -> Outcome<()> {
    filesystem.settle()?;
    filesystem.mount_cold()
}

fn write_large(path: &Path, length: u64) -> Outcome<()> {
    let mut call = vec![0; CALL_BYTES];
    Bytes::new(2).fill(&mut call);
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    for number in 0..length / CALL_BYTES as u64 {
        stamp(&mut call, number);
        file.write_all(&call)?;
    }
    Ok(file.sync_all()?)
}

fn stamp(call: &mut [u8], number: u64) {
    for (index, page) in call.chunks_exact_mut(STAMPED_BYTES).enumerate() {
        page[..8].copy_from_slice(&stamp_of(number, index));
    }
}

/// Not small, so that no run of pages resembles another.
fn stamp_of(call: u64, page: usize) -> [u8; 8] {
    let number = call * (CALL_BYTES / STAMPED_BYTES) as u64 + page as u64;
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn read_large(path: &Path, length: u64) -> Outcome<()> {
    let mut call = vec![0; CALL_BYTES];
    let mut file = File::open(path)?;
    for number in 0..length / CALL_BYTES as u64 {
        file.read_exact(&mut call)?;
        for (index, page) in call.chunks_exact(STAMPED_BYTES).enumerate() {
            if page[..8] != stamp_of(number, index) {
                return Err(format!("{}: not what was written", path.display()).into());
            }
        }
    }
    Ok(())
}

fn create_small(root: &Path, sizes: Sizes) -> Outcome<()> {
    let mut contents = vec![0; sizes.small_bytes];
    Bytes::new(3).fill(&mut contents);
    let top = root.join("small");
    fs::create_dir(&top)?;
    for directory in 0..SMALL_DIRECTORIES {
        let path = top.join(directory.to_string());
        fs::create_dir(&path)?;
        for file in 0..sizes.small_files / SMALL_DIRECTORIES {
            fs::write(path.join(format!("file-{file}")), &contents)?;
        }
    }
    Ok(())
}

fn untar(archive: &Path, root: &Path) -> Outcome<()> {
    let mut tar = Command::new("tar");
    done(tar.arg("-xf").arg(archive).arg("-C").arg(root))
}

/// So that unpacking does not wait for the archive to be read.
fn read_whole(path: &Path) -> Outcome<()> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

fn list(tree: &Path, size: TreeSize) -> Outcome<()> {
    let output = Command::new("find").arg(tree).arg("-ls").output()?;
    let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
    if !output.status.success() || lines != size.files + size.directories {
        return Err(format!("{}: find -ls shows {lines} lines", tree.display()).into());
    }
    Ok(())
}

/// Through a pipe: tar reads no file when its output is the null device.
fn read_tree(tree: &Path, size: TreeSize) -> Outcome<()> {
    let mut command = Command::new("tar");
    command.arg("-cf-").arg("-C").arg(tree).arg(".");
    let mut tar = command.stdout(Stdio::piped()).spawn()?;
    let mut output = tar.stdout.take().ok_or("no pipe")?;
    let mut buffer = vec![0; CALL_BYTES];
    let mut bytes = 0;
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    if !tar.wait()?.success() || bytes < size.bytes {
        return Err(format!("{}: tar read {bytes} bytes", tree.display()).into());
    }
    Ok(())
}
