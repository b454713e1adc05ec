//! Extracts contents of files from their objects.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::Source;
use super::report::{Loss, Report};
use crate::ids::{Generation, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::page_set::{CHUNK_BYTES, CHUNK_PAGES, PAYLOAD_BYTES};
use crate::meta::records::{ExtentRecord, Part};
use crate::object::{RUN_PAGES, object_path, page_range};
use crate::sealed::{ContentsFile, SealedError};
use crate::store::OpenMode;

/// A file that is being extracted.
pub(super) struct FileCopy<'a, 'r> {
    pub(super) source: &'a Source<'a>,
    pub(super) report: &'r mut Report,
    /// Path below the output directory.
    pub(super) path: &'a str,
    pub(super) to: &'a File,
    pub(super) size: u64,
    /// The last loss, which the next one may extend.
    pub(super) pending: Option<Loss>,
}

/// The minimum length of a file, from its extents.
pub(super) fn minimum_size(source: &Source<'_>, ino: Ino, view: Generation) -> u64 {
    let mut size = 0;
    let range = keys::number(ino.0)..keys::after_ino(ino);
    source
        .records
        .each(Table::Extent, &range, view, &mut |key, value| {
            let chunk = keys::extent_parts(key).map_or(0, |(_, chunk)| chunk.0);
            let within = match ExtentRecord::decode(value) {
                Some(ExtentRecord::Inline(bytes)) => bytes.len() as u64,
                Some(ExtentRecord::Parts { parts, .. }) => {
                    let pages = parts.iter().map(|part| part.pages.end()).max();
                    (u64::from(pages.unwrap_or(0)) * PAYLOAD_BYTES).min(CHUNK_BYTES)
                }
                None => 0,
            };
            size = size.max(u64::from(chunk) * CHUNK_BYTES + within);
            true
        });
    size
}

impl FileCopy<'_, '_> {
    /// Writes everything that can be read. An error here concerns the output file.
    pub(super) fn copy_all(mut self, ino: Ino, view: Generation) -> io::Result<()> {
        self.to.set_len(self.size)?;
        let range = keys::number(ino.0)..keys::after_ino(ino);
        let mut outcome = Ok(());
        let records = self.source.records;
        records.each(Table::Extent, &range, view, &mut |key, value| {
            outcome = self.copy_extent(key, value);
            outcome.is_ok()
        });
        outcome?;
        self.flush()
    }

    fn copy_extent(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let Some((_, chunk)) = keys::extent_parts(key) else {
            return Ok(());
        };
        let base = u64::from(chunk.0) * CHUNK_BYTES;
        let len = self.size.saturating_sub(base).min(CHUNK_BYTES);
        match ExtentRecord::decode(value) {
            _ if len == 0 => Ok(()),
            None => self.report_loss(base..base + len, "its record cannot be decoded"),
            Some(ExtentRecord::Inline(bytes)) => {
                let bytes = &bytes[..bytes.len().min(len as usize)];
                self.write(bytes, base)
            }
            Some(ExtentRecord::Parts { parts, .. }) => self.copy_parts(base, len, &parts),
        }
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.to.write_all_at(bytes, at)?;
        self.report.counts.bytes += bytes.len() as u64;
        self.source.progress.add(bytes.len() as u64);
        Ok(())
    }

    /// Copies the pages of a chunk. `base`: where it begins in the file. `len`: how many bytes of
    /// it belong to the file.
    fn copy_parts(&mut self, base: u64, len: u64, parts: &[Part]) -> io::Result<()> {
        let mut objects: Vec<Option<Result<ContentsFile, String>>> = Vec::new();
        objects.resize_with(parts.len(), || None);
        let end = (len.div_ceil(PAYLOAD_BYTES) as u32).min(CHUNK_PAGES);
        let first_with = |page| parts.iter().position(|part| part.pages.contains(page));
        let mut page = 0;
        while page < end {
            let Some(index) = first_with(page) else {
                page += 1;
                continue;
            };
            let mut stop = page + 1;
            while stop < end && stop - page < RUN_PAGES && first_with(stop) == Some(index) {
                stop += 1;
            }
            let object = objects[index].get_or_insert_with(|| open(self.source, &parts[index]));
            match object {
                Ok(object) => self.copy_run(base, len, object, page..stop)?,
                Err(reason) => {
                    let reason = reason.clone();
                    self.report_loss(bytes_of(base, len, &(page..stop)), &reason)?;
                }
            }
            page = stop;
        }
        Ok(())
    }

    /// Copies a run of pages of one object. If it does not open as a whole, the pages are tried one
    /// by one.
    fn copy_run(
        &mut self,
        base: u64,
        len: u64,
        object: &ContentsFile,
        pages: Range<u32>,
    ) -> io::Result<()> {
        let bytes = bytes_of(base, len, &pages);
        match read(object, &pages) {
            Ok(mut plain) => {
                plain.truncate((bytes.end - bytes.start) as usize);
                self.write(&plain, bytes.start)
            }
            Err(error) if pages.len() == 1 => {
                let reason = reason_of(&error);
                self.report_loss(bytes, &reason)
            }
            Err(_) => pages
                .map(|page| page..page + 1)
                .try_for_each(|page| self.copy_run(base, len, object, page)),
        }
    }

    fn report_loss(&mut self, bytes: Range<u64>, reason: &str) -> io::Result<()> {
        let length = bytes.end - bytes.start;
        self.source.progress.add(length);
        if let Some(last) = &mut self.pending
            && last.reason == reason
            && let (Some(offset), Some(so_far)) = (last.offset, &mut last.length)
            && offset + *so_far == bytes.start
        {
            *so_far += length;
            return Ok(());
        }
        self.flush()?;
        self.pending = Some(Loss {
            path: self.path.to_owned(),
            what: "contents",
            offset: Some(bytes.start),
            length: Some(length),
            reason: reason.to_owned(),
        });
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.pending.take() {
            Some(loss) => self.report.add_loss(&loss),
            None => Ok(()),
        }
    }
}

/// The bytes of the file in these pages of a chunk.
fn bytes_of(base: u64, len: u64, pages: &Range<u32>) -> Range<u64> {
    let at = |page: u32| base + (u64::from(page) * PAYLOAD_BYTES).min(len);
    at(pages.start)..at(pages.end)
}

fn open(source: &Source<'_>, part: &Part) -> Result<ContentsFile, String> {
    let name = part.id.name;
    let describe = |reason: &str| format!("object {:08x}-{}: {reason}", name.folder.0, name.object);
    let keys = source.keys.get(part.id.epoch);
    let keys =
        keys.ok_or_else(|| describe("it is sealed under a key set that is not available"))?;
    let file = source.store.open(&object_path(name), OpenMode::Read);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => describe("it is gone"),
        _ => describe(&error.to_string()),
    })?;
    Ok(ContentsFile::new(file, keys, part.id.crypto))
}

/// Reads pages of an object.
pub(super) fn read(object: &ContentsFile, pages: &Range<u32>) -> Result<Vec<u8>, SealedError> {
    let mut plain = vec![0; pages.len() * PAYLOAD_BYTES as usize];
    let guard = object.lock_shared(page_range(pages));
    object.read_at(&guard, u64::from(pages.start) * PAYLOAD_BYTES, &mut plain)?;
    Ok(plain)
}

/// Describes an error in the same words for all pages with the same problem, so that losses can be
/// joined.
fn reason_of(error: &SealedError) -> String {
    match error {
        SealedError::Authentication { layer, .. } => format!("refused by {layer}"),
        SealedError::ShortRead { .. } => "its object ends before it".to_owned(),
        other => other.to_string(),
    }
}
