//! Compares the objects that records name with those that exist.
//!
//! Each named object takes 40 bytes, in bounded memory: if there are more than fit, those in later
//! folders wait for another pass over the extents.

use super::report::{Finding, Kind, Severity};
use super::stream::{Group, Groups, ViewRange};
use super::{CheckError, PathHint, RepairAction, Run};
use crate::ids::{ChunkIndex, FolderNumber, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::page_set::PageSet;
use crate::meta::records::{ExtentRecord, ObjectName, PartId};

/// An object that an extent names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct ObjectUse {
    object: ObjectName,
    ino: Ino,
    chunk: ChunkIndex,
}

/// End of a range that has all folders from its beginning on.
const EVERY_FOLDER: FolderNumber = FolderNumber(u64::MAX);

/// The objects that extents name, for a range of folders.
struct Names {
    list: Vec<ObjectUse>,
    limit: usize,
    from: FolderNumber,
    until: FolderNumber,
}

impl Names {
    fn push(&mut self, named: ObjectUse) {
        if named.object.folder < self.from || named.object.folder >= self.until {
            return;
        }
        self.list.push(named);
        if self.list.len() < self.limit {
            return;
        }
        self.compact();
        if self.list.len() <= self.limit / 2 {
            return;
        }
        match (self.list.first(), self.list.get(self.list.len() / 2)) {
            (Some(first), Some(middle)) if first.object.folder < middle.object.folder => {
                self.until = middle.object.folder;
                let until = self.until;
                self.list.retain(|named| named.object.folder < until);
            }
            // A folder has at most a few thousand objects.
            _ => self.limit *= 2,
        }
    }

    fn compact(&mut self) {
        self.list.sort_unstable();
        self.list.dedup();
    }
}

/// The pages of an object that versions of an extent name.
pub(super) struct PartUse {
    pub(super) id: PartId,
    pub(super) pages: PageSet,
    /// From the first view that sees such a version to the last.
    pub(super) seen_by: ViewRange,
}

/// The objects that versions of an extent name.
pub(super) fn parts_of(group: &Group) -> Vec<PartUse> {
    let mut parts: Vec<PartUse> = Vec::new();
    for (version, value) in group.present() {
        let Some(ExtentRecord::Parts { parts: named, .. }) = ExtentRecord::decode(value) else {
            continue;
        };
        for part in named {
            let seen_by = version.seen_by.clone();
            match parts.iter_mut().find(|known| known.id == part.id) {
                Some(known) => {
                    known.pages.union(&part.pages);
                    known.seen_by.start = known.seen_by.start.min(seen_by.start);
                    known.seen_by.end = known.seen_by.end.max(seen_by.end);
                }
                None => parts.push(PartUse {
                    id: part.id,
                    pages: part.pages,
                    seen_by,
                }),
            }
        }
    }
    parts
}

impl Run<'_> {
    /// Compares the objects that are named with those that exist.
    pub(super) fn check_objects(&mut self) -> Result<(), CheckError> {
        let limit = (self.options.memory_bytes / size_of::<ObjectUse>()).max(64);
        let mut from = FolderNumber(0);
        let mut folders = self.subject.objects.folders()?;
        folders.sort_unstable();
        loop {
            let mut names = Names {
                list: Vec::new(),
                limit,
                from,
                until: EVERY_FOLDER,
            };
            self.read_names(&mut names, from == FolderNumber(0))?;
            names.compact();
            self.check_named(&names.list);
            let here = |folder: &&FolderNumber| (from..names.until).contains(folder);
            for folder in folders.iter().filter(here) {
                self.check_cancelled()?;
                self.check_folder(*folder, &names.list)?;
            }
            if names.until == EVERY_FOLDER {
                return Ok(());
            }
            from = names.until;
        }
    }

    fn read_names(&mut self, names: &mut Names, first_pass: bool) -> Result<(), CheckError> {
        let views = self.views.clone();
        let mut groups = Groups::new(&self.stored, &views, Table::Extent, Vec::new());
        while let Some(group) = groups.next()? {
            self.check_cancelled()?;
            let Some((ino, chunk)) = keys::extent_parts(&group.logical) else {
                continue;
            };
            for part in parts_of(&group) {
                if first_pass {
                    self.report.objects += 1;
                    self.pages_to_verify += u64::from(part.pages.len());
                }
                names.push(ObjectUse {
                    object: part.id.name,
                    ino,
                    chunk,
                });
            }
        }
        Ok(())
    }

    fn check_named(&mut self, names: &[ObjectUse]) {
        for pair in names.windows(2) {
            let [first, second] = pair else { continue };
            if first.object == second.object {
                let message = format!(
                    "it is named by chunk {} of inode {} and by chunk {} of inode {}",
                    first.chunk, first.ino, second.chunk, second.ino
                );
                let finding = Finding::new(Kind::ObjectTwice, message)
                    .object(second.object)
                    .inode(second.ino);
                let live = self.live_only();
                self.report(finding, PathHint::Inode(second.ino), live);
            }
        }
        let mut used = Vec::new();
        for (name, row) in &self.garbage {
            if contains(names, *name) {
                used.push((*name, row.clone()));
            }
        }
        for (name, row) in used {
            let message = "it is listed for removal, and an extent names it";
            let finding = Finding::new(Kind::GarbageInUse, message).object(name);
            self.report(finding, PathHint::None, 0..0);
            self.set_repair(Some(RepairAction::SetRow(Table::Garbage, row, None)));
            self.garbage.remove(&name);
        }
    }

    fn check_folder(
        &mut self,
        folder: FolderNumber,
        names: &[ObjectUse],
    ) -> Result<(), CheckError> {
        for object in self.subject.objects.in_folder(folder)? {
            let name = ObjectName { folder, object };
            if contains(names, name) {
                continue;
            }
            if self.garbage.contains_key(&name) {
                if self.subject.live.is_none() {
                    let message = "it waits to be removed";
                    let finding = Finding::new(Kind::Garbage, message).object(name);
                    self.report(finding, PathHint::None, 0..0);
                }
                continue;
            }
            // Objects that are created while the volume is mounted are named later.
            let may_be_new = self
                .subject
                .live
                .is_some_and(|live| folder >= live.first_folder());
            if may_be_new || self.malformed > 0 || self.undecodable_extents {
                continue;
            }
            let message = "no extent names it";
            let mut finding = Finding::new(Kind::ObjectUnnamed, message).object(name);
            if !self.stored.counters().clean {
                finding.severity = Severity::Note;
            }
            self.report(finding, PathHint::None, 0..0);
            self.set_repair(Some(RepairAction::Unlink(name)));
        }
        Ok(())
    }
}

fn contains(names: &[ObjectUse], name: ObjectName) -> bool {
    let first = names.partition_point(|named| named.object < name);
    names.get(first).is_some_and(|named| named.object == name)
}
