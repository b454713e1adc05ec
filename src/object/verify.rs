//! Verifying objects: every page that a record names exists and is the one that was written.

use std::sync::Arc;

use super::objects::object_path;
use super::read::{RUN_PAGES, page_range};
use super::{Contents, ObjectError, Objects};
use crate::ids::{ChunkIndex, Ino, PageIndex};
use crate::meta::page_set::{CHUNK_PAGES, PageSet};
use crate::meta::records::{ExtentRecord, PartId};
use crate::sealed::{ContentsFile, SealedError};
use crate::store::OpenMode;

/// Kinds of damage to pages of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultKind {
    /// The object does not exist.
    Missing,
    /// The object is sealed under a key set that the volume does not have.
    NoKeySet,
    /// The object ends before these pages.
    Short,
    /// The pages are not the ones that were written.
    Damaged,
    /// The backing filesystem could not read the pages.
    Unreadable,
}

/// Damaged pages of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Kind of damage.
    pub kind: FaultKind,
    /// The damaged pages.
    pub pages: PageSet,
    /// Error of the first of these pages, for people.
    pub message: String,
}

impl Objects {
    /// Verifies pages of an object without using the open objects. `progress` is called with the
    /// number of pages read since its last call, and returns false to stop.
    pub fn verify(
        &self,
        id: PartId,
        pages: &PageSet,
        progress: &mut dyn FnMut(u32) -> bool,
    ) -> Vec<Fault> {
        let Some(set) = self.keys().get(id.epoch) else {
            let message = format!("key set {} is not among those of the volume", id.epoch);
            return fault_of_all(FaultKind::NoKeySet, pages, message);
        };
        let file = match self.store().open(&object_path(id.name), OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return fault_of_all(FaultKind::Missing, pages, "it is not there".to_owned());
            }
            Err(error) => return fault_of_all(FaultKind::Unreadable, pages, error.to_string()),
        };
        let object = ContentsFile::new(file, set, id.crypto);
        if pages.len() > 1 {
            object.will_need(&page_range(&(0..pages.end())));
        }
        verify_pages(&object, pages, progress)
    }
}

impl Contents {
    /// True once an object or a page of one could not be used.
    pub fn is_damaged(&self) -> bool {
        self.logged.any_logged()
    }

    /// Verifies pages again that seemed damaged while the volume was in use. Only pages that the
    /// committed records of the extent still name are verified; others may have been given back. No
    /// named page is given back meanwhile: this holds the lock of [`Self::collect`], and the caller
    /// makes sure that [`Self::trim_some`] does not run.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn verify_again(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
        id: PartId,
        pages: &PageSet,
    ) -> Result<Vec<Fault>, ObjectError> {
        let _collecting = self.collecting.lock();
        let mut named = PageSet::new();
        let mut is_named = false;
        for (_, record) in self.meta.committed_versions(ino, chunk)? {
            let Some(ExtentRecord::Parts { parts, .. }) = record else {
                continue;
            };
            for part in parts.iter().filter(|part| part.id == id) {
                named.union(&part.pages);
                is_named = true;
            }
        }
        let mut absent = pages.clone();
        absent.subtract(&named);
        let mut pages = pages.clone();
        pages.subtract(&absent);
        if !is_named {
            return Ok(Vec::new());
        }
        let object: Arc<ContentsFile> = match self.objects.open(id) {
            Ok(object) => object,
            Err(ObjectError::Missing { .. }) => {
                let message = "it is not there".to_owned();
                return Ok(fault_of_all(FaultKind::Missing, &pages, message));
            }
            Err(error @ ObjectError::NoKeySet { .. }) => {
                return Ok(fault_of_all(FaultKind::NoKeySet, &pages, error.to_string()));
            }
            Err(error) => {
                return Ok(fault_of_all(
                    FaultKind::Unreadable,
                    &pages,
                    error.to_string(),
                ));
            }
        };
        Ok(verify_pages(&object, &pages, &mut |_| true))
    }
}

fn fault_of_all(kind: FaultKind, pages: &PageSet, message: String) -> Vec<Fault> {
    let pages = pages.clone();
    vec![Fault {
        kind,
        pages,
        message,
    }]
}

fn verify_pages(
    object: &ContentsFile,
    pages: &PageSet,
    progress: &mut dyn FnMut(u32) -> bool,
) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut add_fault = |page: PageIndex, error: SealedError| {
        let kind = match &error {
            SealedError::ShortRead { .. } => FaultKind::Short,
            SealedError::Authentication { .. } => FaultKind::Damaged,
            _ => FaultKind::Unreadable,
        };
        let index = match faults.iter().position(|fault| fault.kind == kind) {
            Some(index) => index,
            None => {
                faults.push(Fault {
                    kind,
                    pages: PageSet::new(),
                    message: error.to_string(),
                });
                faults.len() - 1
            }
        };
        // An object holds pages of one chunk.
        let page = page.0.min(u64::from(CHUNK_PAGES)) as u32;
        faults[index].pages.insert(page..page + 1);
    };
    for run in pages.runs() {
        let mut next = run.start;
        while next < run.end {
            let some = next..run.end.min(next + RUN_PAGES);
            let range = page_range(&some);
            let guard = object.lock_shared(range.clone());
            if let Err(error) = object.verify(&guard, range.clone(), &mut add_fault) {
                add_fault(range.start, error);
            }
            drop(guard);
            next = some.end;
            if !progress(some.end - some.start) {
                return faults;
            }
        }
    }
    faults
}
