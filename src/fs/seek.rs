//! `lseek(2)` with `SEEK_DATA` and `SEEK_HOLE`, in blocks of 4096 bytes as on other filesystems.
//!
//! Contents are known page by page, and a page holds 4032 bytes, so a block at the edge of a hole
//! can be data in part. Such a block is read, and counts as data unless it is all zeros. So a hole
//! that a program made in whole blocks is reported where the program made it. A hole of a single
//! block may cover no whole page, so that no page is missing; a seek for data that starts within
//! such a block skips it.

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
            let candidate = self.contents.seek(&file, next, whence)?;
            at = candidate.map_or(size, |at| (at - at % BLOCK_BYTES).max(next));
        }
        if hole { Ok(size) } else { Err(Errno::ENXIO) }
    }

    /// True for a block without data, or with some data that is all zero.
    fn is_hole(&self, file: &File, block: u64) -> Result<bool, Errno> {
        let end = (block + BLOCK_BYTES).min(file.size());
        let contains_none = |whence| match self.contents.seek(file, block, whence) {
            Ok(next) => Ok(next.is_none_or(|next| next >= end)),
            Err(error) => Err(Errno::from(error)),
        };
        if contains_none(SeekWhence::Hole)? {
            return Ok(false);
        }
        if contains_none(SeekWhence::Data)? {
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
