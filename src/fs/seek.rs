//! `lseek(2)` with `SEEK_DATA` and `SEEK_HOLE`, in blocks of 4096 bytes as on other filesystems.
//!
//! Contents are known page by page, and a page holds 4032 bytes, so a block at the edge of a hole
//! can be data in part. Such a block counts as data unless it is all zeros. It is read to determine
//! that, so that holes which programs made in whole blocks are found where they were made. A hole
//! of a single block can have none of its pages missing; a seek for data from within it goes past
//! it.

use super::Filesystem;
use super::types::{self, Handle, NodeId, SeekWhence};
use crate::errno::Errno;
use crate::object::File;

const BLOCK_BYTES: u64 = types::BLOCK_BYTES as u64;

impl Filesystem {
    /// The next data or hole from `offset` on. The end of the file is a hole.
    ///
    /// # Errors
    /// `ENXIO`: `offset` is not within the file, or no data follows.
    pub fn seek(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64, Errno> {
        let file = self.file(node, handle)?;
        let hole = whence == SeekWhence::Hole;
        let size = file.size();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let mut at = offset;
        while at < size {
            let block = at - at % BLOCK_BYTES;
            let skipped = !hole && at == offset && self.is_zero(&file, block)?;
            if !skipped && self.is_hole(&file, block)? == hole {
                return Ok(at);
            }
            let next = block + BLOCK_BYTES;
            let found = self.contents.seek(&file, next, whence)?;
            at = found.map_or(size, |found| (found - found % BLOCK_BYTES).max(next));
        }
        if hole { Ok(size) } else { Err(Errno::ENXIO) }
    }

    /// True for a block without data, or with some data that is all zero.
    fn is_hole(&self, file: &File, block: u64) -> Result<bool, Errno> {
        let end = (block + BLOCK_BYTES).min(file.size());
        let whole = |whence| match self.contents.seek(file, block, whence) {
            Ok(next) => Ok(next.is_none_or(|next| next >= end)),
            Err(error) => Err(Errno::from(error)),
        };
        if whole(SeekWhence::Hole)? {
            return Ok(false);
        }
        if whole(SeekWhence::Data)? {
            return Ok(true);
        }
        self.is_zero(file, block)
    }

    fn is_zero(&self, file: &File, block: u64) -> Result<bool, Errno> {
        let mut bytes = [0; BLOCK_BYTES as usize];
        let len = self.contents.read(file, block, &mut bytes)?;
        Ok(bytes[..len].iter().all(|&byte| byte == 0))
    }
}
