//! Seals pages of contents into memory, for an object that is transferred before it becomes a file.

use std::ops::Range;
use std::sync::Arc;

use super::geometry::{Geometry, Slot};
use super::keys::FileKeys;
use super::run::{RunBuffer, Source, Target, run_pages};
use super::{PAGE_BYTES, PAYLOAD_BYTES, SealedError};
use crate::ids::{CryptoId, Epoch, PageIndex, Sequence};
use crate::layers::KeySet;

/// Seals pages of one object of contents.
pub struct PageSealer(FileKeys);

impl std::fmt::Debug for PageSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageSealer")
            .field("crypto", &self.0.crypto())
            .finish_non_exhaustive()
    }
}

impl PageSealer {
    /// Seals under this key set, in the key domain of this crypto id.
    pub fn new(keys: &Arc<KeySet>, crypto: CryptoId) -> Self {
        Self(FileKeys::new(Arc::clone(keys), crypto))
    }

    /// Number of the key set.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch()
    }

    /// Seals whole pages. `plain` holds one payload for each of `pages`; `out` receives one page
    /// for each.
    ///
    /// # Errors
    /// [`SealedError::OutOfRange`] if a buffer has the wrong length, [`SealedError::Nonce`], and
    /// failures of key derivation or of a cipher. `out` is worthless then and holds no plaintext.
    pub fn seal(
        &self,
        pages: Range<PageIndex>,
        plain: &[u8],
        sequence: Sequence,
        out: &mut [u8],
    ) -> Result<(), SealedError> {
        let count = pages.end.0.saturating_sub(pages.start.0);
        let fits =
            |bytes: &[u8], page: usize| count.checked_mul(page as u64) == Some(bytes.len() as u64);
        if !fits(plain, PAYLOAD_BYTES) || !fits(out, PAGE_BYTES) {
            return Err(SealedError::OutOfRange);
        }
        let (mut next, mut plain, mut out) = (pages.start, plain, out);
        while next < pages.end {
            let count = run_pages(next, pages.end);
            let (payloads, later_plain) = plain.split_at(count * PAYLOAD_BYTES);
            let (now, later_out) = out.split_at_mut(count * PAGE_BYTES);
            let mut run = RunBuffer::take(Geometry::Contents, count);
            let target = Target {
                first: next,
                slot: Slot::A,
                sequence,
            };
            let sealed = run.seal(&self.0, target, |index| {
                Source::Elsewhere(&payloads[index * PAYLOAD_BYTES..][..PAYLOAD_BYTES])
            })?;
            now.copy_from_slice(sealed.bytes());
            next.0 += count as u64;
            (plain, out) = (later_plain, later_out);
        }
        Ok(())
    }
}
