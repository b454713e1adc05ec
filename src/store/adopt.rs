//! Adopting files of another store: code shared by all stores.

use std::any::Any;
use std::io;
use std::ops::Range;

use super::read_only::ReadOnlyStore;
use super::sub::SubStore;
use super::{OpenMode, Store, StorePath, SyncPolicy};
use crate::errno::Errno;

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Blocks of this many bytes that are all zero stay holes.
const BLOCK_BYTES: usize = 4096;

/// The store that actually holds a file, below all wrappers, and the file's path in that store.
pub(super) fn resolve<'a>(store: &'a dyn Store, path: &StorePath) -> (&'a dyn Store, StorePath) {
    let (mut store, mut path) = (store, path.clone());
    loop {
        let any = store as &dyn Any;
        if let Some(sub) = any.downcast_ref::<SubStore>() {
            (store, path) = (sub.inner(), sub.inner_path(&path));
        } else if let Some(read_only) = any.downcast_ref::<ReadOnlyStore>() {
            store = read_only.inner();
        } else {
            return (store, path);
        }
    }
}

/// True for errors that mean that this file cannot be linked: it is on another filesystem, has too
/// many links, or must not have any, or the filesystem has no links.
pub(super) fn cannot_link(error: &io::Error) -> bool {
    const CANNOT: [Errno; 5] = [
        Errno::EXDEV,
        Errno::EMLINK,
        Errno::EPERM,
        Errno::ENOTSUP,
        Errno::ENOSYS,
    ];
    let code = error.raw_os_error();
    CANNOT.iter().any(|errno| code == Some(errno.code()))
}

/// Copies the bytes of a file into a new one; holes stay holes. Durable on return if each file is
/// synced separately. A partial copy is removed on failure.
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
                // A later sync through another descriptor might not report a failed write.
                return match target.sync_policy() {
                    SyncPolicy::AtOnce => Ok(()),
                    SyncPolicy::EachFile { .. } => new.sync(),
                };
            }
            for run in data_runs(&buffer[..count]) {
                new.write_at(&buffer[run.clone()], offset + run.start as u64)?;
            }
            offset += count as u64;
        }
    })();
    copied.inspect_err(|_| {
        let _ = target.unlink(to);
    })
}

/// Runs of blocks that are not all zero, as byte ranges.
fn data_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let start = index * BLOCK_BYTES;
        match runs.last_mut() {
            Some(last) if last.end == start => last.end += block.len(),
            _ => runs.push(start..start + block.len()),
        }
    }
    runs
}
