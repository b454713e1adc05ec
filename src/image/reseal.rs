//! Re-sealing: contents of an image are sealed again under a fresh key set, for another holder.
//!
//! No holder but the source's may get both a data key of the source and bytes that are sealed under
//! it. So each chunk of the image is opened through both layers and sealed again, in both layers,
//! under the receiver's key set and a crypto id drawn for the chunk. This is done in runs of pages,
//! in the memory of one worker. The parts of a chunk become one. Pages that a newer part hides are
//! left out, holes stay holes, and bytes beyond the file's end (which truncation leaves in the last
//! page) become zeros. Plaintext is only in memory.
//!
//! Two operations use this: [`deploy`](super::deploy()) writes the pages to objects, in any order;
//! [`export`](super::export()) writes them to a stream, in its order.

use std::ops::Range;
use std::sync::Arc;

use super::ImageError;
use super::workers::Scratch;
use crate::ids::{CryptoId, Epoch, FolderNumber, ObjectId, Sequence};
use crate::meta::copy::CopiedChunk;
use crate::meta::page_set::PageSet;
use crate::meta::records::{ObjectName, Part, PartId};
use crate::object::{Objects, RUN_PAGES, page_range, page_runs, visible_parts};
use crate::sealed::PAYLOAD_BYTES;
use crate::store::read_only::ReadOnlyStore;
use crate::volume::Volume;

/// Sequence number for pages that no commit has named yet: that of the first commit.
pub(super) const FIRST_SEQUENCE: Sequence = Sequence(1);
/// Maximum number of objects of the source kept open.
const OPEN_OBJECTS_MAX: usize = 64;

/// Allocates names for the objects of a new volume: folders from 1 on, each with as many objects as
/// in a volume in use. The name of an object is its crypto id, as in every volume.
#[derive(Debug)]
pub(super) struct FreshNames {
    epoch: Epoch,
    /// Number of names allocated so far.
    allocated: u64,
}

impl FreshNames {
    /// Names for objects sealed under the key set with this number.
    pub(super) const fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            allocated: 0,
        }
    }

    /// Allocates a name for an object, and returns the part that will contain all pages of `parts`.
    pub(super) fn part_for(&mut self, parts: &[Part]) -> Result<Part, ImageError> {
        let crypto = CryptoId::random().map_err(ImageError::io("cannot name an object"))?;
        let folder = FolderNumber(1 + self.allocated / u64::from(Objects::FOLDER_OBJECTS));
        self.allocated += 1;
        let mut pages = PageSet::new();
        parts.iter().for_each(|part| pages.union(&part.pages));
        Ok(Part {
            id: PartId {
                name: ObjectName {
                    folder,
                    object: ObjectId(crypto.0),
                },
                crypto,
                epoch: self.epoch,
            },
            pages,
        })
    }
}

/// The pages of one chunk that an image sees.
#[derive(Debug)]
pub(super) struct VisibleChunk {
    /// The parts, each with its visible pages only.
    parts: Vec<Part>,
    /// Number of bytes of the file in the chunk.
    len_bytes: u64,
}

impl VisibleChunk {
    /// The visible pages of a chunk's parts, newest first.
    pub(super) fn of(chunk: &CopiedChunk, parts: &[Part]) -> Self {
        Self {
            parts: visible_parts(parts.to_vec()),
            len_bytes: chunk.len_bytes,
        }
    }
}

/// The objects of a source, read-only.
pub(super) struct SourceObjects(Objects);

impl SourceObjects {
    pub(super) fn of(volume: &Volume) -> Self {
        let store = Arc::new(ReadOnlyStore::over(Arc::clone(&volume.store)));
        Self(Objects::new(
            store,
            Arc::clone(&volume.keys),
            OPEN_OBJECTS_MAX,
        ))
    }

    /// Starts reading a chunk ahead. Errors are not reported here: [`Self::read`] reports them.
    pub(super) fn will_need(&self, chunk: &VisibleChunk) {
        for part in &chunk.parts {
            let first = part.pages.runs().next().map_or(0, |run| run.start);
            if let Ok(object) = self.0.open(part.id) {
                object.will_need(&page_range(&(first..part.pages.end())));
            }
        }
    }

    /// Reads a run of visible pages, one payload for each.
    ///
    /// # Errors
    /// An object is missing, or a page of it does not open. The error names it.
    pub(super) fn read<'a>(
        &self,
        chunk: &VisibleChunk,
        run: &Range<u32>,
        scratch: &'a mut Scratch,
    ) -> Result<&'a [u8], ImageError> {
        if scratch.is_empty() {
            // Allocated in full at once: a buffer that grows leaves copies of plaintext behind.
            **scratch = vec![0; RUN_PAGES as usize * PAYLOAD_BYTES];
        }
        let plain = &mut scratch[..run.len() * PAYLOAD_BYTES];
        for part in &chunk.parts {
            for piece in page_runs(&part.pages, run.clone()) {
                let at = (piece.start - run.start) as usize * PAYLOAD_BYTES;
                let out = &mut plain[at..at + piece.len() * PAYLOAD_BYTES];
                self.read_piece(part.id, &piece, out)?;
            }
        }
        let base = u64::from(run.start) * PAYLOAD_BYTES as u64;
        let file_bytes = chunk.len_bytes.saturating_sub(base).min(plain.len() as u64);
        plain[file_bytes as usize..].fill(0);
        Ok(plain)
    }

    fn read_piece(&self, id: PartId, piece: &Range<u32>, out: &mut [u8]) -> Result<(), ImageError> {
        let name = id.name;
        let object = self.0.open(id);
        let object = object.map_err(|error| ImageError::from_object_error(name, error))?;
        let guard = object.lock_shared(page_range(piece));
        let offset = u64::from(piece.start) * PAYLOAD_BYTES as u64;
        let read = object.read_at(&guard, offset, out);
        read.map_err(|source| ImageError::Page {
            object: name,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::meta::page_set::CHUNK_PAGES;
    use proptest::prelude::*;

    fn set_of(ranges: impl IntoIterator<Item = Range<u32>>) -> PageSet {
        let mut set = PageSet::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }

    #[test]
    fn runs_are_bounded() {
        let set = set_of([0..3, 10..11, 300..700]);
        let runs = page_runs(&set, 0..CHUNK_PAGES);
        assert_eq!(runs, [0..3, 10..11, 300..556, 556..700]);
        assert_eq!(page_runs(&PageSet::new(), 0..CHUNK_PAGES), []);
        let runs = page_runs(&set, 2..301);
        assert_eq!(runs, [2..3, 10..11, 300..301]);
    }

    #[test]
    fn folders_fill_up() {
        let mut names = FreshNames::new(Epoch(3));
        let full = u64::from(Objects::FOLDER_OBJECTS);
        let parts: Vec<Part> = (0..=full).map(|_| names.part_for(&[]).unwrap()).collect();
        let folder = |index: u64| parts[index as usize].id.name.folder.0;
        assert_eq!([folder(0), folder(full - 1), folder(full)], [1, 1, 2]);
        for part in &parts {
            assert_eq!(part.id.name.object.0, part.id.crypto.0);
            assert_eq!(part.id.epoch, Epoch(3));
        }
        let mut ids: Vec<CryptoId> = parts.iter().map(|part| part.id.crypto).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), parts.len());
    }

    proptest! {
        /// Each page comes from the newest part that has it, and from no other.
        #[test]
        fn visible_pages_are_those_of_the_newest_part(
            ranges in prop::collection::vec((0..CHUNK_PAGES, 1u32..400), 1..6),
        ) {
            let mut names = FreshNames::new(Epoch(1));
            let parts: Vec<Part> = ranges
                .iter()
                .map(|(start, len)| Part {
                    pages: set_of(iter::once(*start..(start + len).min(CHUNK_PAGES))),
                    ..names.part_for(&[]).unwrap()
                })
                .collect();
            let chunk = CopiedChunk { len_bytes: 1, ..CopiedChunk::default() };
            let visible = VisibleChunk::of(&chunk, &parts);
            for page in 0..CHUNK_PAGES {
                let newest = parts.iter().find(|part| part.pages.contains(page));
                let from = visible.parts.iter().filter(|part| part.pages.contains(page));
                let from: Vec<PartId> = from.map(|part| part.id).collect();
                prop_assert_eq!(from, newest.map(|part| part.id).into_iter().collect::<Vec<_>>());
            }
            let whole = names.part_for(&parts).unwrap().pages;
            let some = |page| parts.iter().any(|part| part.pages.contains(page));
            let same = (0..CHUNK_PAGES).all(|page| whole.contains(page) == some(page));
            prop_assert!(same);
        }
    }
}
