//! Setting space aside (`fallocate(2)` without a hole).

use std::ops::Range;

use super::file::File;
use super::{Contents, INLINE_BYTES, ObjectError, chunk_pieces};
use crate::meta::page_set::pages_touching;
use crate::sealed::PAGE_BYTES;

impl Contents {
    /// Sets space aside for a range, so that writing it later does not meet a full disk, where the
    /// backing filesystem can promise that. Pages stay absent: they read as zeros.
    pub fn reserve(&self, file: &File, bytes: Range<u64>) -> Result<(), ObjectError> {
        let len = bytes.end.saturating_sub(bytes.start);
        if bytes.end > super::FILE_BYTES_MAX {
            return Err(ObjectError::TooLarge);
        }
        if bytes.end <= INLINE_BYTES && file.size() <= INLINE_BYTES {
            return Ok(());
        }
        let pages = len.div_ceil(PAGE_BYTES as u64).cast_signed();
        self.check_room(pages)?;
        // A promise that cannot be kept is refused before thousands of objects are made for it.
        if self.objects.store().space()?.available_bytes < len {
            return Err(ObjectError::Full);
        }
        for (index, piece) in chunk_pieces(bytes.start, len) {
            let id = self.part_for(file, index)?;
            let pages = pages_touching(piece);
            let start = u64::from(pages.start) * PAGE_BYTES as u64;
            let len = u64::from(pages.end - pages.start) * PAGE_BYTES as u64;
            self.objects.open(id)?.file().reserve(start, len)?;
        }
        Ok(())
    }
}
