//! Taking files of another store: what all stores share.

use std::any::Any;
use std::io;

use super::directory::DirectoryStore;
use super::read_only::ReadOnlyStore;
use super::sub::SubStore;
use super::{OpenMode, Store, StorePath, SyncPolicy};
use crate::errno::Errno;

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// What is zero throughout stays a hole, by this unit in bytes.
const BLOCK_BYTES: usize = 4096;

/// The store that really holds a file, and its path there: views of stores are looked through.
pub(super) fn resolve<'a>(store: &'a dyn Store, path: &StorePath) -> (&'a dyn Store, StorePath) {
    let (mut store, mut path) = (store, path.clone());
    loop {
        let any = store as &dyn Any;
        if let Some(sub) = any.downcast_ref::<SubStore>() {
            (store, path) = (sub.inner(), sub.inside(&path));
        } else if let Some(read_only) = any.downcast_ref::<ReadOnlyStore>() {
            store = read_only.inner();
        } else {
            return (store, path);
        }
    }
}

/// True for errors that say "no link here" and not "no file here": another filesystem, no more
/// links of this file, a filesystem without links or a file that must not have any.
pub(super) fn cannot_link(error: &io::Error) -> bool {
    const CANNOT: [Errno; 5] = [
        Errno::EXDEV,
        Errno::EMLINK,
        Errno::EPERM,
        Errno::ENOTSUP,
        Errno::ENOSYS,
    ];
    let found = error.raw_os_error();
    CANNOT.iter().any(|errno| found == Some(errno.code()))
}

/// Copies the bytes of a file into a new one; holes stay holes. Durable where each file is synced
/// by itself. What was begun goes when it fails.
pub(super) fn copy(
    source: &dyn Store,
    from: &StorePath,
    target: &dyn Store,
    to: &StorePath,
) -> io::Result<()> {
    let old = source.open(from, OpenMode::Read)?;
    let new = target.open(to, OpenMode::CreateNew)?;
    let copied = (|| {
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        loop {
            let count = old.read_at(&mut buffer, offset)?;
            if count == 0 {
                new.set_len(offset)?;
                // Later, by another descriptor, a failed write might not be reported.
                return match target.sync_policy() {
                    SyncPolicy::AtOnce => Ok(()),
                    SyncPolicy::EachFile { .. } => new.sync(),
                };
            }
            for (start, end) in data_runs(&buffer[..count]) {
                new.write_at(&buffer[start..end], offset + start as u64)?;
            }
            offset += count as u64;
        }
    })();
    copied.inspect_err(|_| {
        let _ = target.unlink(to);
    })
}

/// Makes a second file with the same contents in one store: it shares the blocks of the first
/// until one of the two is written where the backing filesystem can, and is a copy elsewhere.
/// Neither its name nor its bytes are durable before a sync.
pub(crate) fn duplicate(store: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<()> {
    if let Some(directory) = (store as &dyn Any).downcast_ref::<DirectoryStore>()
        && directory.reflink_from(directory, from, to).is_ok()
    {
        return Ok(());
    }
    copy(store, from, store, to)
}

/// Runs of blocks that are not zero throughout: start and end.
fn data_runs(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let start = index * BLOCK_BYTES;
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end += block.len(),
            _ => runs.push((start, start + block.len())),
        }
    }
    runs
}
