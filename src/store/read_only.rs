//! A read-only view of a store, for read-only mounts.
//!
//! [`ReadOnlyStore`] opens files for reading only and refuses everything else with EROFS. The
//! database in `meta` marks its file as in use and may have to recover, so it needs a writable
//! file. [`ScratchFile`] looks like one, and keeps in memory what is written to it. The file itself
//! stays unchanged, so a volume on read-only media can be used, and a clean volume stays clean.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{
    Adopted, DirectoryIdentity, EntryInfo, EntryKind, OpenMode, SpaceInfo, Store, StoreFile,
    StoreLock, StorePath, SyncPolicy, os_error,
};
use crate::errno::Errno;

/// Unit of overwritten bytes in memory.
const BLOCK_BYTES: usize = 4096;

/// A store that refuses every change with EROFS.
#[derive(Debug)]
pub struct ReadOnlyStore(Arc<dyn Store>);

impl ReadOnlyStore {
    /// Wraps a store.
    pub fn over(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    /// The wrapped store.
    pub(super) fn inner(&self) -> &dyn Store {
        &*self.0
    }
}

fn read_only_error() -> io::Error {
    os_error(Errno::EROFS)
}

impl Store for ReadOnlyStore {
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>> {
        match mode {
            OpenMode::Read | OpenMode::ReadWrite => self.0.open(path, OpenMode::Read),
            OpenMode::CreateNew => Err(read_only_error()),
        }
    }

    fn rename(&self, _: &StorePath, _: &StorePath) -> io::Result<()> {
        Err(read_only_error())
    }

    fn link(&self, _: &StorePath, _: &StorePath) -> io::Result<()> {
        Err(read_only_error())
    }

    fn adopt(&self, _: &dyn Store, _: &StorePath, _: &StorePath) -> io::Result<Adopted> {
        Err(read_only_error())
    }

    fn unlink(&self, _: &StorePath) -> io::Result<()> {
        Err(read_only_error())
    }

    fn create_dir(&self, _: &StorePath) -> io::Result<()> {
        Err(read_only_error())
    }

    fn remove_dir(&self, _: &StorePath) -> io::Result<()> {
        Err(read_only_error())
    }

    fn directory_identity(&self) -> io::Result<Option<DirectoryIdentity>> {
        self.0.directory_identity()
    }

    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>> {
        self.0.list(dir)
    }

    fn sync_dir(&self, _: &StorePath) -> io::Result<()> {
        Ok(())
    }

    fn sync_policy(&self) -> SyncPolicy {
        self.0.sync_policy()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn info(&self, path: &StorePath) -> io::Result<EntryInfo> {
        self.0.info(path)
    }

    fn space(&self) -> io::Result<SpaceInfo> {
        self.0.space()
    }

    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.0.lock(path)
    }

    fn lock_shared(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.0.lock_shared(path)
    }

    fn lock_dir(&self, dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.0.lock_dir(dir)
    }

    fn lock_dir_shared(&self, dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.0.lock_dir_shared(dir)
    }
}

type Block = Box<[u8; BLOCK_BYTES]>;

#[derive(Debug)]
struct Written {
    /// Blocks that differ from the file's, by number.
    blocks: BTreeMap<u64, Block>,
    len_bytes: u64,
    /// End of the bytes that are still read from the file. Bytes that were truncated once are not
    /// read from it again.
    file_end: u64,
}

/// A file with overwrites in memory, which are lost when this is dropped.
#[derive(Debug)]
pub struct ScratchFile {
    file: Arc<dyn StoreFile>,
    written: RwLock<Written>,
}

impl ScratchFile {
    /// Wraps a file.
    ///
    /// # Errors
    /// When the length of the file cannot be read.
    pub fn over(file: Arc<dyn StoreFile>) -> io::Result<Self> {
        let len_bytes = file.len()?;
        let written = RwLock::new(Written {
            blocks: BTreeMap::new(),
            len_bytes,
            file_end: len_bytes,
        });
        Ok(Self { file, written })
    }

    /// Fills `out` from the file, and with zeros from `file_end` on.
    fn read_file(&self, file_end: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let in_file = file_end.saturating_sub(offset).min(out.len() as u64) as usize;
        let count = self.file.read_at(&mut out[..in_file], offset)?;
        out[count..].fill(0);
        Ok(())
    }
}

/// The part of a byte range that lies in one block.
struct Piece {
    /// Number of the block.
    block: u64,
    /// The bytes within the block.
    in_block: Range<usize>,
    /// The same bytes within the range.
    in_range: Range<usize>,
}

/// Splits a range at block boundaries.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % BLOCK_BYTES as u64) as usize;
        let count = (BLOCK_BYTES - within).min(len - done);
        let piece = Piece {
            block: at / BLOCK_BYTES as u64,
            in_block: within..within + count,
            in_range: done..done + count,
        };
        done += count;
        Some(piece)
    })
}

impl StoreFile for ScratchFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let written = self.written.read();
        let available = written.len_bytes.saturating_sub(offset);
        let len = available.min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..len];
        self.read_file(written.file_end, offset, buffer)?;
        for piece in pieces(offset, len) {
            if let Some(block) = written.blocks.get(&piece.block) {
                buffer[piece.in_range].copy_from_slice(&block[piece.in_block]);
            }
        }
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or_else(|| os_error(Errno::EFBIG))?;
        let mut written = self.written.write();
        let file_end = written.file_end;
        for piece in pieces(offset, bytes.len()) {
            let block = match written.blocks.entry(piece.block) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let mut block = Box::new([0; BLOCK_BYTES]);
                    self.read_file(file_end, piece.block * BLOCK_BYTES as u64, &mut block[..])?;
                    entry.insert(block)
                }
            };
            block[piece.in_block].copy_from_slice(&bytes[piece.in_range]);
        }
        written.len_bytes = written.len_bytes.max(end);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.written.read().len_bytes)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let mut written = self.written.write();
        if len_bytes < written.len_bytes {
            written
                .blocks
                .split_off(&len_bytes.div_ceil(BLOCK_BYTES as u64));
            let within = (len_bytes % BLOCK_BYTES as u64) as usize;
            let last = len_bytes / BLOCK_BYTES as u64;
            if let Some(block) = written.blocks.get_mut(&last) {
                block[within..].fill(0);
            }
            written.file_end = written.file_end.min(len_bytes);
        }
        written.len_bytes = len_bytes;
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn info(&self) -> io::Result<EntryInfo> {
        let info = self.file.info()?;
        Ok(EntryInfo {
            len_bytes: self.len()?,
            ..info
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn file(bytes: &[u8]) -> (Arc<dyn Store>, StorePath) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let path = StorePath::new("meta");
        let file = store.open(&path, OpenMode::CreateNew).unwrap();
        file.write_at(bytes, 0).unwrap();
        (store, path)
    }

    #[test]
    fn the_store_refuses_every_change() {
        let (inner, path) = file(b"bytes");
        let store = ReadOnlyStore::over(Arc::clone(&inner));
        let other = StorePath::new("other");
        let refused = [
            store.open(&other, OpenMode::CreateNew).map(drop),
            store.rename(&path, &other),
            store.link(&path, &other),
            store.adopt(&*inner, &path, &other).map(drop),
            store.unlink(&path),
            store.create_dir(&other),
            store.remove_dir(&other),
        ];
        for result in refused {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        let opened = store.open(&path, OpenMode::ReadWrite).unwrap();
        assert!(opened.write_at(b"x", 0).is_err());
        assert_eq!(store.list(&StorePath::root()).unwrap().len(), 1);
    }

    #[test]
    fn a_scratch_file_behaves_like_a_file_and_leaves_the_file_unchanged() {
        let start: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
        let (store, path) = file(&start);
        let own = store.open(&path, OpenMode::Read).unwrap();
        let scratch = ScratchFile::over(own).unwrap();
        let mut expected = start.clone();
        let mut seed = 1u64;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (offset, len) = ((seed >> 33) as usize % 30_000, (seed >> 20) as usize % 9000);
            if seed >> 60 == 0 {
                scratch.set_len(offset as u64).unwrap();
                expected.resize(offset, 0);
            } else {
                let bytes = vec![(seed >> 50) as u8; len];
                scratch.write_at(&bytes, offset as u64).unwrap();
                expected.resize(expected.len().max(offset + len), 0);
                expected[offset..offset + len].copy_from_slice(&bytes);
            }
            let mut read = vec![1; 50_000];
            let from = (seed >> 40) as usize % 20_000;
            let count = scratch.read_at(&mut read, from as u64).unwrap();
            assert_eq!(read[..count], expected[from.min(expected.len())..]);
            assert_eq!(scratch.len().unwrap(), expected.len() as u64);
        }
        let mut untouched = vec![0; 20_000];
        let own = store.open(&path, OpenMode::Read).unwrap();
        assert_eq!(own.read_at(&mut untouched, 0).unwrap(), 20_000);
        assert_eq!(untouched, start);
    }
}
