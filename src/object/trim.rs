//! Giving back pages that no view can read any more.
//!
//! A page of an older part is *hidden* if a newer part has it too. It is needed while a kept view
//! sees the older part without the newer one; once that view is deleted, it only takes space. The
//! same holds for pages that were punched or truncated while a view needed them.
//!
//! A version of an extent *names* the pages in the lists of its parts. An extent of which a version
//! was dropped is processed in two steps; a row of `trim` records the extent until both are done.
//! 1. The pages that are hidden in a remaining version are removed from that version's lists, and
//!    from those of the chunk in memory. Readers see the same bytes as before.
//! 2. When that is durable, the pages that no version names are punched out of the objects, with
//!    the gate held exclusively. So a committed record never names a page that is not on the disk,
//!    whenever the power fails. An object that has other links (from a copy or another volume) is
//!    not changed.
//!
//! A part of which nothing is left is removed from a version only if no kept view sees that
//! version: a copy of a view relies on the objects that the view's records name.

use std::collections::BTreeSet;

use super::collect::absent_runs;
use super::file::{Extent, File};
use super::read::page_range;
use super::{Contents, ObjectError};
use crate::ids::{ChunkIndex, Ino};
use crate::meta::Batch;
use crate::meta::page_set::{CHUNK_PAGES, PageSet};
use crate::meta::records::{ExtentRecord, Part, PartId};
use crate::meta::trims::ExtentVersions;

/// Rows of `trim` that are read at a time.
const ROWS_AT_A_TIME: usize = 256;

/// Outcome of removing hidden pages from the versions of an extent.
enum HiddenPages {
    /// No version has hidden pages, or the batch removes them.
    Removed,
    /// The older parts of the chunk in memory differ from the record. They agree after the next
    /// sync.
    AwaitSync,
}

impl Contents {
    /// Gives back pages of extents with a row in `trim`, until `enough` returns true. True if some
    /// extents are left, for which the next commit or another call is needed.
    ///
    /// # Errors
    /// The metadata cannot be read. A failure for one extent is logged and does not stop the
    /// others.
    pub fn trim_some(&self, enough: &dyn Fn() -> bool) -> Result<bool, ObjectError> {
        let mut after = None;
        let mut left = false;
        loop {
            let rows = self.meta.trims(after, ROWS_AT_A_TIME)?;
            for (ino, chunk) in &rows {
                if enough() {
                    return Ok(true);
                }
                match self.trim_extent(*ino, *chunk) {
                    Ok(done) => left |= !done,
                    Err(error) => {
                        let (ino, chunk) = (ino.0, chunk.0);
                        tracing::warn!(ino, chunk, %error, "pages could not be given back");
                    }
                }
                self.forget(*ino);
            }
            match rows.last() {
                Some(last) => after = Some(*last),
                None => return Ok(left),
            }
        }
    }

    /// Runs the step that is due for one extent. True if the second one is done.
    fn trim_extent(&self, ino: Ino, chunk: ChunkIndex) -> Result<bool, ObjectError> {
        let _permit = self.meta.permit();
        let file = match self.file(ino) {
            Ok(file) => Some(file),
            // Only kept views have the file.
            Err(ObjectError::Removed) => None,
            Err(error) => return Err(error),
        };
        let _gate = file.as_ref().map(|file| file.gate.write());
        if let Some(file) = &file {
            self.load_chunk(file, chunk)?;
        }
        let _inode = self.meta.lock_inode(ino);
        let versions = self.meta.extent_versions(ino, chunk)?;
        let mut batch = Batch::new();
        match self.remove_hidden_pages(ino, chunk, file.as_deref(), &versions, &mut batch)? {
            HiddenPages::Removed => {}
            HiddenPages::AwaitSync => return Ok(false),
        }
        if !batch.is_empty() {
            self.meta.apply(batch)?;
            return Ok(false);
        }
        let mut named = NamedPages::default();
        named.add_versions(&versions);
        let named_now = named.0.clone();
        named.add_versions(&self.meta.committed_versions(ino, chunk)?);
        // After a power cut the committed versions are read again, so their pages must stay.
        if named_now
            .iter()
            .any(|(id, pages)| named.pages(*id) != *pages)
        {
            return Ok(false);
        }
        if let Some(file) = &file
            && let Some(chunk) = file.state.lock().chunks.get(&chunk)
            && let Extent::Parts { parts, .. } = &chunk.extent
        {
            named.add(parts, &chunk.reserved);
        }
        for (id, _) in named_now {
            self.punch_absent(id, &named.pages(id))?;
        }
        self.meta.remove_trim(&mut batch, ino, chunk);
        self.meta.apply(batch)?;
        Ok(true)
    }

    /// Removes hidden pages from every version, as part of the batch, and from the chunk in memory.
    fn remove_hidden_pages(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
        file: Option<&File>,
        versions: &ExtentVersions,
        batch: &mut Batch,
    ) -> Result<HiddenPages, ObjectError> {
        let shared_up_to = self.meta.newest_shared();
        let mut objects_before = BTreeSet::new();
        let mut objects_after = BTreeSet::new();
        let last = versions.len().saturating_sub(1);
        for (position, (at, record)) in versions.iter().enumerate() {
            let Some(record) = record else {
                continue;
            };
            let empty_parts = if *at <= shared_up_to || position != last {
                EmptyParts::Keep
            } else {
                EmptyParts::Remove
            };
            objects_before.extend(record.names());
            let Some(trimmed) = without_hidden_pages(record, empty_parts) else {
                objects_after.extend(record.names());
                continue;
            };
            if position == last
                && let Some(file) = file
                && !sync_chunk(file, chunk, record, &trimmed)
            {
                return Ok(HiddenPages::AwaitSync);
            }
            objects_after.extend(trimmed.names());
            self.meta
                .replace_extent_version(batch, ino, chunk, *at, &trimmed);
        }
        for name in objects_before.difference(&objects_after) {
            self.meta.put_garbage(batch, *name)?;
        }
        Ok(HiddenPages::Removed)
    }

    /// Punches everything but these pages out of an object without other links. For a live file its
    /// gate must be held exclusively.
    fn punch_absent(&self, id: PartId, present: &PageSet) -> Result<(), ObjectError> {
        let object = match self.objects.open(id) {
            Err(ObjectError::Missing { .. }) => return Ok(()),
            other => other?,
        };
        if object.file().info()?.links != 1 {
            return Ok(());
        }
        let guard = object.lock_exclusive(page_range(&(0..CHUNK_PAGES)));
        for run in absent_runs(present, 0..CHUNK_PAGES) {
            let done = if run.end == CHUNK_PAGES {
                object.set_len_pages(&guard, u64::from(run.start))
            } else {
                object.punch(&guard, page_range(&run))
            };
            done.map_err(|source| ObjectError::Page {
                object: id.name,
                source,
            })?;
        }
        Ok(())
    }
}

/// Parts without pages, below the newest one, in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EmptyParts {
    /// A kept view may see the record.
    Keep,
    /// Only the live view sees the record.
    Remove,
}

/// Pages that records name, by part.
#[derive(Default)]
struct NamedPages(Vec<(PartId, PageSet)>);

impl NamedPages {
    fn add_versions(&mut self, versions: &ExtentVersions) {
        for (_, record) in versions {
            if let Some(ExtentRecord::Parts {
                parts, reserved, ..
            }) = record
            {
                self.add(parts, reserved);
            }
        }
    }

    fn add(&mut self, parts: &[Part], reserved: &PageSet) {
        for (position, part) in parts.iter().enumerate() {
            let mut pages = part.pages.clone();
            if position == 0 {
                pages.union(reserved);
            }
            match self.0.iter_mut().find(|(id, _)| *id == part.id) {
                Some((_, known)) => known.union(&pages),
                None => self.0.push((part.id, pages)),
            }
        }
    }

    fn pages(&self, id: PartId) -> PageSet {
        let part = self.0.iter().find(|(other, _)| *other == id);
        part.map_or_else(PageSet::new, |(_, pages)| pages.clone())
    }
}

/// The record without the pages that are hidden in it. `None` if it stays the same.
fn without_hidden_pages(record: &ExtentRecord, empty_parts: EmptyParts) -> Option<ExtentRecord> {
    let mut trimmed = record.clone();
    let ExtentRecord::Parts { parts, .. } = &mut trimmed else {
        return None;
    };
    let mut hidden = PageSet::new();
    for part in parts.iter_mut() {
        let pages = part.pages.clone();
        part.pages.subtract(&hidden);
        hidden.union(&pages);
    }
    if empty_parts == EmptyParts::Remove {
        let mut position = 0;
        parts.retain(|part| {
            position += 1;
            position == 1 || !part.pages.is_empty()
        });
    }
    (trimmed != *record).then_some(trimmed)
}

/// Updates the older parts of the chunk in memory from those of `record` to those of `trimmed`.
/// False if they differ from those of `record`.
fn sync_chunk(
    file: &File,
    index: ChunkIndex,
    record: &ExtentRecord,
    trimmed: &ExtentRecord,
) -> bool {
    let mut state = file.state.lock();
    let Some(chunk) = state.chunks.get_mut(&index) else {
        return true;
    };
    let (
        Extent::Parts { parts, .. },
        ExtentRecord::Parts {
            parts: recorded, ..
        },
        ExtentRecord::Parts { parts: trimmed, .. },
    ) = (&mut chunk.extent, record, trimmed)
    else {
        return false;
    };
    let Some(newest) = recorded.first() else {
        return false;
    };
    // A newest part without a durable name is not in the record.
    let Some(position) = parts.iter().position(|part| part.id == newest.id) else {
        return false;
    };
    // The record's newest part is either the chunk's newest too, which may have more pages by now,
    // or unchanged below it.
    let is_unchanged = position == 0 || parts[position].pages == newest.pages;
    if position > 1 || !is_unchanged || parts[position + 1..] != recorded[1..] {
        return false;
    }
    parts.truncate(position + 1);
    parts.extend(trimmed.iter().skip(1).cloned());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CryptoId, Epoch, FolderNumber, ObjectId};
    use crate::meta::records::ObjectName;
    use proptest::prelude::*;

    fn part(number: u8, pages: &[u32]) -> Part {
        let mut set = PageSet::new();
        for page in pages {
            set.insert(*page..page + 1);
        }
        Part {
            id: PartId {
                name: ObjectName {
                    folder: FolderNumber(0),
                    object: ObjectId([number; 16]),
                },
                crypto: CryptoId([number; 16]),
                epoch: Epoch(1),
            },
            pages: set,
        }
    }

    fn record(parts: Vec<Part>) -> ExtentRecord {
        ExtentRecord::Parts {
            shared: false,
            parts,
            reserved: PageSet::new(),
        }
    }

    #[test]
    fn hidden_pages_are_removed() {
        let before = record(vec![
            part(1, &[1]),
            part(2, &[1, 2]),
            part(3, &[2]),
            part(4, &[9]),
        ]);
        let kept = record(vec![
            part(1, &[1]),
            part(2, &[2]),
            part(3, &[]),
            part(4, &[9]),
        ]);
        let live = record(vec![part(1, &[1]), part(2, &[2]), part(4, &[9])]);
        assert_eq!(
            without_hidden_pages(&before, EmptyParts::Keep),
            Some(kept.clone())
        );
        assert_eq!(
            without_hidden_pages(&before, EmptyParts::Remove),
            Some(live.clone())
        );
        assert_eq!(without_hidden_pages(&kept, EmptyParts::Keep), None);
        assert_eq!(without_hidden_pages(&live, EmptyParts::Remove), None);
        let empty = record(vec![part(1, &[])]);
        assert_eq!(without_hidden_pages(&empty, EmptyParts::Remove), None);
        assert_eq!(
            without_hidden_pages(&ExtentRecord::Inline(vec![1]), EmptyParts::Remove),
            None
        );
    }

    proptest! {
        #[test]
        fn every_page_is_read_from_the_same_part_as_before(
            lists in prop::collection::vec(prop::collection::vec(0..40u32, 0..20), 1..6),
            removes_empty_parts: bool,
        ) {
            let source = |record: &ExtentRecord, page| match record {
                ExtentRecord::Parts { parts, .. } => {
                    parts.iter().find(|part| part.pages.contains(page)).map(|part| part.id)
                }
                ExtentRecord::Inline(_) => None,
            };
            let parts = lists.iter().enumerate().map(|(number, pages)| part(number as u8, pages));
            let before = record(parts.collect());
            let empty_parts = match removes_empty_parts {
                true => EmptyParts::Remove,
                false => EmptyParts::Keep,
            };
            let after = without_hidden_pages(&before, empty_parts);
            let after = after.unwrap_or_else(|| before.clone());
            for page in 0..40 {
                prop_assert_eq!(source(&before, page), source(&after, page));
            }
            let ExtentRecord::Parts { parts, .. } = &after else { unreachable!() };
            let named: u32 = parts.iter().map(|part| part.pages.len()).sum();
            prop_assert_eq!(u64::from(named), before.pages());
        }
    }
}
