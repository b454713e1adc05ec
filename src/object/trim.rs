//! Giving back pages that no view can read any more.
//!
//! A page of an older part is hidden if a newer part has it too. It is needed while a kept view
//! sees the older part without the newer one; once that view is deleted, it only takes space. The
//! same holds for pages that were punched or truncated while a view needed them.
//!
//! An extent of which a version was dropped is processed in two steps; a row of `trim` records that
//! until both are done. First, every remaining version and the chunk in memory stop naming the
//! pages that are hidden in them; what they read stays the same. When that is durable, the pages
//! that no version names are punched out of the objects, with the gate held exclusively. So a
//! committed record never names a page that is not on the disk, whenever the power fails. An object
//! that has other links (from a copy or another volume) is left as it is.
//!
//! Parts of which nothing is left are removed from the list only if no kept view sees it: whoever
//! copies a view relies on the objects that its records name.

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

/// Extents that are read at a time.
const ROWS: usize = 256;

impl Contents {
    /// Gives back pages of extents with a row in `trim`, until `enough` returns true. True if some
    /// are left that wait for the next commit or for another call.
    ///
    /// # Errors
    /// The metadata cannot be read. A failure for one extent is logged and does not stop the
    /// others.
    pub fn trim_some(&self, enough: &dyn Fn() -> bool) -> Result<bool, ObjectError> {
        let mut after = None;
        let mut left = false;
        loop {
            let rows = self.meta.trims(after, ROWS)?;
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

    /// Processes one extent. True if it is done.
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
        if !self.remove_hidden_pages(ino, chunk, file.as_deref(), &versions, &mut batch)? {
            return Ok(false);
        }
        if !batch.is_empty() {
            self.meta.apply(batch)?;
            return Ok(false);
        }
        let mut named = NamedPages::default();
        named.add_versions(&versions);
        let now = named.0.clone();
        named.add_versions(&self.meta.committed_versions(ino, chunk)?);
        // Pages that a power cut would bring back are not given away.
        if now.iter().any(|(id, pages)| named.pages(*id) != *pages) {
            return Ok(false);
        }
        if let Some(file) = &file
            && let Some(chunk) = file.state.lock().chunks.get(&chunk)
            && let Extent::Parts { parts, .. } = &chunk.extent
        {
            named.add(parts, &chunk.reserved);
        }
        for (id, _) in now {
            self.punch_absent(id, &named.pages(id))?;
        }
        self.meta.remove_trim(&mut batch, ino, chunk);
        self.meta.apply(batch)?;
        Ok(true)
    }

    /// Removes hidden pages from every version and from the chunk in memory. False if the chunk's
    /// older parts differ from the record; they agree after the next sync.
    fn remove_hidden_pages(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
        file: Option<&File>,
        versions: &ExtentVersions,
        batch: &mut Batch,
    ) -> Result<bool, ObjectError> {
        let shared_up_to = self.meta.newest_shared();
        let mut gone = BTreeSet::new();
        let mut named = BTreeSet::new();
        let last = versions.len().saturating_sub(1);
        for (position, (at, record)) in versions.iter().enumerate() {
            let Some(record) = record else {
                continue;
            };
            let kept = *at <= shared_up_to || position != last;
            let Some(short) = without_hidden_pages(record, !kept) else {
                named.extend(record.names());
                continue;
            };
            if position == last
                && let Some(file) = file
                && !sync_chunk(file, chunk, record, &short)
            {
                return Ok(false);
            }
            named.extend(short.names());
            gone.extend(record.names());
            self.meta
                .replace_extent_version(batch, ino, chunk, *at, &short);
        }
        for name in gone.difference(&named) {
            self.meta.put_garbage(batch, *name)?;
        }
        Ok(true)
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
        let found = self.0.iter().find(|(other, _)| *other == id);
        found.map_or_else(PageSet::new, |(_, pages)| pages.clone())
    }
}

/// The record without pages that are hidden in it, if it has any; with `whole_parts` also without
/// parts of which nothing is left.
fn without_hidden_pages(record: &ExtentRecord, whole_parts: bool) -> Option<ExtentRecord> {
    let mut short = record.clone();
    let ExtentRecord::Parts { parts, .. } = &mut short else {
        return None;
    };
    let mut hidden = PageSet::new();
    for part in parts.iter_mut() {
        let pages = part.pages.clone();
        part.pages.subtract(&hidden);
        hidden.union(&pages);
    }
    if whole_parts {
        let mut position = 0;
        parts.retain(|part| {
            position += 1;
            position == 1 || !part.pages.is_empty()
        });
    }
    (short != *record).then_some(short)
}

/// Updates the chunk in memory to the record's new form. False if its older parts differ from the
/// record's.
fn sync_chunk(file: &File, index: ChunkIndex, record: &ExtentRecord, short: &ExtentRecord) -> bool {
    let mut state = file.state.lock();
    let Some(chunk) = state.chunks.get_mut(&index) else {
        return true;
    };
    let (
        Extent::Parts { parts, .. },
        ExtentRecord::Parts {
            parts: recorded, ..
        },
        ExtentRecord::Parts { parts: short, .. },
    ) = (&mut chunk.extent, record, short)
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
    let same = position == 0 || parts[position].pages == newest.pages;
    if position > 1 || !same || parts[position + 1..] != recorded[1..] {
        return false;
    }
    parts.truncate(position + 1);
    parts.extend(short.iter().skip(1).cloned());
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
    fn hidden_pages_are_not_named() {
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
        assert_eq!(without_hidden_pages(&before, false), Some(kept.clone()));
        assert_eq!(without_hidden_pages(&before, true), Some(live.clone()));
        assert_eq!(without_hidden_pages(&kept, false), None);
        assert_eq!(without_hidden_pages(&live, true), None);
        let empty = record(vec![part(1, &[])]);
        assert_eq!(without_hidden_pages(&empty, true), None);
        assert_eq!(
            without_hidden_pages(&ExtentRecord::Inline(vec![1]), true),
            None
        );
    }

    proptest! {
        #[test]
        fn every_page_comes_from_where_it_came(
            lists in prop::collection::vec(prop::collection::vec(0..40u32, 0..20), 1..6),
            whole_parts: bool,
        ) {
            let source = |record: &ExtentRecord, page| match record {
                ExtentRecord::Parts { parts, .. } => {
                    parts.iter().find(|part| part.pages.contains(page)).map(|part| part.id)
                }
                ExtentRecord::Inline(_) => None,
            };
            let parts = lists.iter().enumerate().map(|(number, pages)| part(number as u8, pages));
            let before = record(parts.collect());
            let after = without_hidden_pages(&before, whole_parts);
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
