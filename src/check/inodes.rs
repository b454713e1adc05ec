//! Checks inodes with everything that belongs to them, in all views at once: records, names,
//! contents, attributes. All tables are read side by side, in the order of inode numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::names::{EVERY_INODE, Event, Events, Role};
use super::report::{Finding, Kind, count};
use super::stream::{Group, Groups, ViewRange};
use super::tree::Directory;
use super::{CheckError, PathHint, RepairAction, Run};
use crate::ids::{ChunkIndex, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::page_set::{CHUNK_BYTES, PAYLOAD_BYTES};
use crate::meta::records::{ExtentRecord, FileKind, InodeRecord, decode_xattr};

/// Differences of a count, each by the first view to which it applies.
type Differences = BTreeMap<usize, i64>;

/// Everything that belongs to one inode.
#[derive(Default)]
struct InodeEntry<'e> {
    ino: Ino,
    records: Vec<(ViewRange, InodeRecord)>,
    /// Views that see a record that cannot be decoded.
    undecodable: Vec<ViewRange>,
    names: &'e [Event],
    /// Pages of all extents.
    pages: Differences,
    /// Views that see the extents.
    contents: Vec<ViewRange>,
    /// End of the last extent, in bytes.
    contents_end: u64,
    /// Views that see the extended attributes.
    attributes: Vec<ViewRange>,
}

impl InodeEntry<'_> {
    fn record(&self, view: usize) -> Option<&InodeRecord> {
        let mut records = self.records.iter();
        let seen = records.find(|(seen_by, _)| seen_by.contains(&view));
        seen.map(|(_, record)| record)
    }

    fn is_undecodable(&self, view: usize) -> bool {
        self.undecodable
            .iter()
            .any(|seen_by| seen_by.contains(&view))
    }

    /// Ranges of views in which nothing of the inode differs.
    fn view_ranges(&self, views: usize) -> Vec<ViewRange> {
        let mut bounds = vec![0, views];
        let seen_by = self.records.iter().map(|(seen_by, _)| seen_by);
        let seen_by = seen_by.chain(&self.contents).chain(&self.attributes);
        for seen_by in seen_by.chain(&self.undecodable) {
            bounds.extend([seen_by.start, seen_by.end]);
        }
        bounds.extend(self.names.iter().map(|event| usize::from(event.view)));
        bounds.extend(self.pages.keys());
        bounds.sort_unstable();
        bounds.dedup();
        bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    fn names_in(&self, view: usize) -> Names {
        let mut names = Names::default();
        for event in self.names.iter().filter(|e| usize::from(e.view) <= view) {
            let difference = i64::from(event.difference);
            match event.role {
                Role::Name => {
                    names.total += difference;
                    *names.kinds.entry(event.kind).or_default() += difference;
                    *names.parents.entry(event.parent).or_default() += difference;
                }
                Role::Subdirectory => names.subdirectories += difference,
                Role::Other => names.others += difference,
            }
        }
        names.kinds.retain(|_, count| *count != 0);
        names.parents.retain(|_, count| *count != 0);
        names
    }
}

/// Names that lead to an inode or are in it, in one view.
#[derive(Default)]
struct Names {
    /// Number of names that lead to the inode.
    total: i64,
    /// Number of these by the kind that they record.
    kinds: BTreeMap<u8, i64>,
    /// Number of these by the directory that they are in.
    parents: BTreeMap<Ino, i64>,
    /// Number of directories that are named in the inode.
    subdirectories: i64,
    /// Number of other files that are named in the inode.
    others: i64,
}

/// The tables, read in the order of inodes.
struct Tables<'a> {
    inodes: Groups<'a>,
    extents: Groups<'a>,
    attributes: Groups<'a>,
}

impl Tables<'_> {
    fn next_ino(&mut self) -> Result<Option<Ino>, CheckError> {
        let next = [
            self.inodes.peek_ino()?,
            self.extents.peek_ino()?,
            self.attributes.peek_ino()?,
        ];
        Ok(next.into_iter().flatten().min())
    }
}

impl Run<'_> {
    /// Compares all inodes with everything that belongs to them.
    pub(super) fn check_inodes(&mut self) -> Result<(), CheckError> {
        let (stored, views) = (Arc::clone(&self.stored), self.views.clone());
        let groups = |table| Groups::new(&stored, &views, table, Vec::new());
        let mut tables = Tables {
            inodes: groups(Table::Inode),
            extents: groups(Table::Extent),
            attributes: groups(Table::Xattr),
        };
        let limit = (self.options.memory_bytes / size_of::<Event>()).max(64);
        let mut from = Ino(0);
        loop {
            let mut events = Events::new(limit, from);
            let mut names = groups(Table::Dirent);
            while let Some(group) = names.next()? {
                self.check_cancelled()?;
                self.count_names(&group, from == Ino(0), &mut events)?;
            }
            if from == Ino(0) {
                self.malformed += names.malformed;
            }
            let (list, until) = events.finish();
            self.compare_below(until, &mut tables, &list)?;
            if until == EVERY_INODE {
                break;
            }
            from = until;
        }
        self.malformed += tables.inodes.malformed;
        self.malformed += tables.extents.malformed + tables.attributes.malformed;
        Ok(())
    }

    /// Compares the inodes below `until` with their events.
    fn compare_below(
        &mut self,
        until: Ino,
        tables: &mut Tables<'_>,
        mut events: &[Event],
    ) -> Result<(), CheckError> {
        loop {
            self.check_cancelled()?;
            let named = events.first().map(|event| event.ino);
            let next = [tables.next_ino()?, named].into_iter().flatten().min();
            let Some(ino) = next.filter(|ino| *ino < until) else {
                return Ok(());
            };
            let end = events.partition_point(|event| event.ino == ino);
            let (names, later) = events.split_at(end);
            events = later;
            let mut entry = InodeEntry {
                ino,
                names,
                ..InodeEntry::default()
            };
            while tables.inodes.peek_ino()? == Some(ino) {
                if let Some(group) = tables.inodes.next()? {
                    self.add_inode(&mut entry, &group)?;
                }
            }
            while tables.extents.peek_ino()? == Some(ino) {
                self.check_cancelled()?;
                if let Some(group) = tables.extents.next()? {
                    self.add_extent(&mut entry, &group)?;
                }
            }
            while tables.attributes.peek_ino()? == Some(ino) {
                if let Some(group) = tables.attributes.next()? {
                    self.add_attribute(&mut entry, &group)?;
                }
            }
            self.check_number(&entry);
            self.check_inode(&entry);
        }
    }

    fn add_inode(&mut self, entry: &mut InodeEntry<'_>, group: &Group) -> Result<(), CheckError> {
        self.check_history(Table::Inode, group)?;
        self.totals.add_records(Table::Inode, group);
        if keys::number_of(&group.logical).is_none() {
            self.malformed += 1;
            return Ok(());
        }
        for (version, value) in group.present() {
            match InodeRecord::decode(value) {
                Some(record) => entry.records.push((version.seen_by.clone(), record)),
                None => {
                    entry.undecodable.push(version.seen_by.clone());
                    self.report_undecodable(Table::Inode, group, version, entry.ino);
                }
            }
        }
        Ok(())
    }

    /// Reports numbers that a new inode may get: existing contents, names and attributes would
    /// become part of it.
    fn check_number(&mut self, entry: &InodeEntry<'_>) {
        let next = self.stored.counters().next_ino;
        let is_valid = entry.ino.is_valid();
        if is_valid && entry.ino < next {
            return;
        }
        let records = entry.records.iter().map(|(seen_by, _)| seen_by);
        let mut seen_by = records.chain(&entry.contents).chain(&entry.attributes);
        let seen_by = seen_by.next().cloned().unwrap_or_else(|| self.live_only());
        if is_valid {
            let message = format!("new inodes begin at {next}");
            let repair = RepairAction::RaiseNextInode(Ino(entry.ino.0 + 1));
            self.report_inode(entry.ino, Kind::InodeNumber, message, seen_by, Some(repair));
        } else {
            let message = "no inode can have that number".to_owned();
            self.report_inode(entry.ino, Kind::InodeNumber, message, seen_by, None);
        }
    }

    fn add_attribute(
        &mut self,
        entry: &mut InodeEntry<'_>,
        group: &Group,
    ) -> Result<(), CheckError> {
        self.check_history(Table::Xattr, group)?;
        self.totals.add_records(Table::Xattr, group);
        if keys::xattr_name(&group.logical).is_none() {
            self.malformed += 1;
            return Ok(());
        }
        for (version, value) in group.present() {
            if decode_xattr(value).is_none() {
                self.report_undecodable(Table::Xattr, group, version, entry.ino);
            } else if !version.seen_by.is_empty()
                && entry.attributes.last() != Some(&version.seen_by)
            {
                entry.attributes.push(version.seen_by.clone());
            }
        }
        Ok(())
    }

    fn add_extent(&mut self, entry: &mut InodeEntry<'_>, group: &Group) -> Result<(), CheckError> {
        self.check_history(Table::Extent, group)?;
        self.totals.add_records(Table::Extent, group);
        let Some((_, chunk)) = keys::extent_parts(&group.logical) else {
            self.malformed += 1;
            return Ok(());
        };
        for (version, value) in group.present() {
            let Some(record) = ExtentRecord::decode(value) else {
                self.report_undecodable(Table::Extent, group, version, entry.ino);
                continue;
            };
            let seen_by = version.seen_by.clone();
            if seen_by.is_empty() {
                continue;
            }
            *entry.pages.entry(seen_by.start).or_default() += record.pages().cast_signed();
            *entry.pages.entry(seen_by.end).or_default() -= record.pages().cast_signed();
            if entry.contents.last() != Some(&seen_by) {
                entry.contents.push(seen_by.clone());
            }
            let end = end_within(&record) + u64::from(chunk.0) * CHUNK_BYTES;
            entry.contents_end = entry.contents_end.max(end);
            self.check_extent(entry, chunk, &record, seen_by);
        }
        Ok(())
    }

    /// Nothing may be recorded beyond the size: it would become visible when the file grows.
    fn check_extent(
        &mut self,
        entry: &InodeEntry<'_>,
        chunk: ChunkIndex,
        record: &ExtentRecord,
        seen_by: ViewRange,
    ) {
        let base = u64::from(chunk.0) * CHUNK_BYTES;
        let end = match record {
            ExtentRecord::Inline(bytes) => bytes.len() as u64,
            ExtentRecord::Parts { parts, .. } => {
                if parts.is_empty() {
                    let message = format!("chunk {chunk} has a record without parts");
                    self.report_inode(entry.ino, Kind::EmptyExtent, message, seen_by.clone(), None);
                }
                let ends = parts.iter().map(|part| u64::from(part.pages.end()));
                ends.max().unwrap_or(0)
            }
        };
        let mut too_short: Option<(ViewRange, u64)> = None;
        for (with, inode) in &entry.records {
            let both = with.start.max(seen_by.start)..with.end.min(seen_by.end);
            let bytes_within = inode.size.saturating_sub(base).min(CHUNK_BYTES);
            let end_max = match record {
                ExtentRecord::Inline(_) => bytes_within,
                ExtentRecord::Parts { .. } => bytes_within.div_ceil(PAYLOAD_BYTES),
            };
            if !both.is_empty() && end > end_max {
                too_short = Some((both, inode.size));
            }
        }
        if let Some((both, size)) = too_short {
            let message = format!("chunk {chunk} has contents beyond the size {size}");
            let repair = RepairAction::RaiseSize {
                ino: entry.ino,
                at_least: base + end_within(record),
                seen_by: both.clone(),
            };
            self.report_inode(entry.ino, Kind::BeyondSize, message, both, Some(repair));
        }
    }

    fn check_inode(&mut self, entry: &InodeEntry<'_>) {
        let live = self.views.live();
        let mut pages = 0;
        let mut next_view = 0;
        for range in entry.view_ranges(live + 1) {
            for (_, difference) in entry.pages.range(next_view..=range.start) {
                pages += difference;
            }
            next_view = range.start + 1;
            if entry.is_undecodable(range.start) {
                continue;
            }
            let names = entry.names_in(range.start);
            match entry.record(range.start) {
                Some(record) => {
                    self.totals.add(range.clone(), 1, pages);
                    self.check_record(entry.ino, record, &names, range.clone());
                    if record.pages.cast_signed() != pages {
                        let message =
                            format!("it counts {}, and has {pages}", count(record.pages, "page"));
                        let repair = RepairAction::SetPages {
                            ino: entry.ino,
                            pages: pages.max(0).cast_unsigned(),
                            seen_by: range.clone(),
                        };
                        self.report_inode(entry.ino, Kind::PageCount, message, range, Some(repair));
                    }
                }
                None => self.check_absent(entry, &names, range),
            }
        }
        for (seen_by, record) in &entry.records {
            if record.kind == FileKind::Directory && !seen_by.is_empty() {
                self.tree.add(Directory {
                    ino: entry.ino,
                    parent: record.parent,
                    seen_by: seen_by.start as u32..seen_by.end as u32,
                    is_linked: record.nlink > 0,
                });
            }
        }
    }

    /// Reports what belongs to an inode that does not exist.
    fn check_absent(&mut self, entry: &InodeEntry<'_>, names: &Names, seen_by: ViewRange) {
        let ino = entry.ino;
        let has = |some: &[ViewRange]| some.iter().any(|other| other.contains(&seen_by.start));
        if names.total != 0 {
            let message = format!(
                "{} for inode {ino}, which does not exist",
                count(names.total, "name")
            );
            let repair = RepairAction::RemoveNamesOf {
                ino,
                seen_by: seen_by.clone(),
            };
            self.report_inode(
                ino,
                Kind::NameLeadsNowhere,
                message,
                seen_by.clone(),
                Some(repair),
            );
        }
        if names.subdirectories + names.others != 0 {
            let message = format!("there are names in directory {ino}, which does not exist");
            let repair = RepairAction::RemoveNamesIn {
                ino,
                seen_by: seen_by.clone(),
            };
            let kind = Kind::NamesOfNoDirectory;
            self.report_inode(ino, kind, message, seen_by.clone(), Some(repair));
        }
        let contents = has(&entry.contents);
        if contents {
            let message = format!("there are contents of inode {ino}, which does not exist");
            let repair = ino.is_valid().then(|| RepairAction::CreateInode {
                ino,
                size: entry.contents_end,
                seen_by: seen_by.clone(),
            });
            let kind = Kind::ContentsOfNothing;
            self.report_inode(ino, kind, message, seen_by.clone(), repair);
        }
        if has(&entry.attributes) {
            let message = format!("there are attributes of inode {ino}, which does not exist");
            let repair = (!contents).then_some(RepairAction::RemoveAttributes {
                ino,
                seen_by: seen_by.clone(),
            });
            self.report_inode(ino, Kind::AttributeOfNothing, message, seen_by, repair);
        }
    }

    fn check_record(&mut self, ino: Ino, record: &InodeRecord, names: &Names, seen_by: ViewRange) {
        let is_directory = record.kind == FileKind::Directory;
        if !is_directory && names.subdirectories + names.others != 0 {
            let message = "there are names in it, though it is not a directory".to_owned();
            let repair = RepairAction::RemoveNamesIn {
                ino,
                seen_by: seen_by.clone(),
            };
            let kind = Kind::NamesOfNoDirectory;
            self.report_inode(ino, kind, message, seen_by.clone(), Some(repair));
        }
        if names.kinds.keys().any(|kind| *kind != record.kind as u8) {
            let message = "a name records another kind of file than its inode".to_owned();
            let repair = RepairAction::SetKindInNames {
                ino,
                kind: record.kind,
                seen_by: seen_by.clone(),
            };
            self.report_inode(ino, Kind::NameKind, message, seen_by.clone(), Some(repair));
        }
        if seen_by.end > self.views.live() {
            self.check_orphan(ino, record);
        }
        if is_directory {
            self.check_directory(ino, record, names, seen_by);
        } else if names.total == 0 && record.nlink > 0 {
            self.report_nameless(ino, seen_by);
        } else if i64::from(record.nlink) != names.total {
            self.report_link_count(ino, record.nlink, names.total, seen_by);
        }
    }

    fn report_nameless(&mut self, ino: Ino, seen_by: ViewRange) {
        let live = seen_by.end > self.views.live();
        let repair = live.then_some(RepairAction::GiveName { ino });
        let message = "no name leads to it".to_owned();
        self.report_inode(ino, Kind::NoName, message, seen_by, repair);
    }

    fn report_link_count(&mut self, ino: Ino, nlink: u32, links: i64, seen_by: ViewRange) {
        let message = format!("it counts {nlink} links and has {links}");
        let repair = RepairAction::SetLinks {
            ino,
            nlink: u32::try_from(links).unwrap_or(0),
            seen_by: seen_by.clone(),
        };
        self.report_inode(ino, Kind::LinkCount, message, seen_by, Some(repair));
    }

    fn check_directory(
        &mut self,
        ino: Ino,
        record: &InodeRecord,
        names: &Names,
        seen_by: ViewRange,
    ) {
        let is_root = ino == Ino::ROOT;
        let is_unlinked = record.nlink == 0 && names.total == 0 && !is_root;
        let links = if is_unlinked {
            0
        } else {
            2 + names.subdirectories
        };
        let expected = i64::from(!is_root && !is_unlinked);
        if names.total > expected {
            let message = if is_root {
                "the root has a name".to_owned()
            } else {
                format!("it has {}", count(names.total, "name"))
            };
            let repair = RepairAction::KeepOneName {
                ino,
                parent: record.parent,
                seen_by: seen_by.clone(),
            };
            self.report_inode(ino, Kind::DirectoryNames, message, seen_by, Some(repair));
        } else if names.total < expected {
            self.report_nameless(ino, seen_by);
        } else if i64::from(record.nlink) != links {
            self.report_link_count(ino, record.nlink, links, seen_by.clone());
            self.check_parent(ino, record, names, seen_by);
        } else {
            self.check_parent(ino, record, names, seen_by);
        }
    }

    fn check_parent(&mut self, ino: Ino, record: &InodeRecord, names: &Names, seen_by: ViewRange) {
        let parent = match names.parents.keys().next() {
            _ if ino == Ino::ROOT => ino,
            Some(parent) => *parent,
            None => return,
        };
        if record.parent != parent {
            let recorded = record.parent;
            let message = format!("its recorded parent is {recorded}, and its parent is {parent}");
            let repair = RepairAction::SetParent {
                ino,
                parent,
                seen_by: seen_by.clone(),
            };
            self.report_inode(ino, Kind::Parent, message, seen_by, Some(repair));
        }
    }

    fn check_orphan(&mut self, ino: Ino, record: &InodeRecord) {
        let listed = self.orphans.binary_search(&ino).is_ok();
        if listed {
            self.existing_orphans.insert(ino);
        }
        let live = self.views.live();
        let seen_by = live..live + 1;
        match (record.nlink, listed) {
            (0, false) => self.report_nameless(ino, seen_by),
            // This is normal while the volume is in use.
            (0, true) if self.subject.live.is_some() => {}
            (0, true) => {
                let message = "it was unlinked while it was in use, and waits to be removed";
                self.report_inode(ino, Kind::Orphan, message.to_owned(), seen_by, None);
            }
            (_, true) => {
                let message = "it has a name and is listed for removal".to_owned();
                let repair = RepairAction::ForgetOrphan(ino);
                self.report_inode(ino, Kind::OrphanInUse, message, seen_by, Some(repair));
            }
            (_, false) => {}
        }
    }

    pub(super) fn report_inode(
        &mut self,
        ino: Ino,
        kind: Kind,
        message: String,
        seen_by: ViewRange,
        repair: Option<RepairAction>,
    ) {
        let finding = Finding::new(kind, message).inode(ino);
        self.report(finding, PathHint::Inode(ino), seen_by);
        self.set_repair(repair);
    }
}

/// The end of an extent's contents, in bytes from its start.
fn end_within(record: &ExtentRecord) -> u64 {
    match record {
        ExtentRecord::Inline(bytes) => bytes.len() as u64,
        ExtentRecord::Parts { parts, .. } => {
            let end = parts.iter().map(|part| part.pages.end()).max();
            (u64::from(end.unwrap_or(0)) * PAYLOAD_BYTES).min(CHUNK_BYTES)
        }
    }
}
