//! Checks the short tables: kept views, orphans and garbage, and the volume's counters.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::report::{Finding, Kind, count};
use super::stream::{Group, Groups, Rows, ViewRange, Views};
use super::{CheckError, PathHint, RepairAction, Run};
use crate::ids::{Generation, Ino};
use crate::meta::charge;
use crate::meta::keys::{self, Table};
use crate::meta::records::{COUNT_MAX, Counters, ObjectName, ViewKind, ViewRecord, ViewState};
use crate::meta::stored::Stored;

/// Inodes, pages and bytes of records in one view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ViewTotals {
    inodes: u64,
    pages: u64,
    record_bytes: u64,
}

/// The totals of each view, stored as differences from one view to the next.
#[derive(Debug, Default)]
pub(super) struct Totals {
    inodes: Vec<i64>,
    pages: Vec<i64>,
    record_bytes: Vec<i64>,
}

impl Totals {
    pub(super) fn new(views: usize) -> Self {
        Self {
            inodes: vec![0; views + 1],
            pages: vec![0; views + 1],
            record_bytes: vec![0; views + 1],
        }
    }

    /// Adds to the totals of these views.
    pub(super) fn add(&mut self, seen_by: ViewRange, inodes: i64, pages: i64) {
        add_difference(&mut self.inodes, &seen_by, inodes);
        add_difference(&mut self.pages, &seen_by, pages);
    }

    /// Adds the bytes that the records of a key take, to the views that see them.
    pub(super) fn add_records(&mut self, table: Table, group: &Group) {
        for (version, value) in group.present().filter(|(v, _)| !v.seen_by.is_empty()) {
            let bytes = charge::record_bytes(table, &group.logical, value);
            add_difference(
                &mut self.record_bytes,
                &version.seen_by,
                bytes.cast_signed(),
            );
        }
    }

    /// The totals of a view.
    pub(super) fn in_view(&self, view: usize) -> ViewTotals {
        let sum = |differences: &[i64]| {
            differences
                .iter()
                .take(view + 1)
                .sum::<i64>()
                .max(0)
                .cast_unsigned()
        };
        ViewTotals {
            inodes: sum(&self.inodes),
            pages: sum(&self.pages),
            record_bytes: sum(&self.record_bytes),
        }
    }
}

fn add_difference(differences: &mut [i64], seen_by: &ViewRange, added: i64) {
    if let Some(difference) = differences.get_mut(seen_by.start) {
        *difference += added;
    }
    if let Some(difference) = differences.get_mut(seen_by.end) {
        *difference -= added;
    }
}

/// A kept view.
#[derive(Debug)]
pub(super) struct KeptView {
    pub(super) key: Vec<u8>,
    pub(super) record: ViewRecord,
}

impl KeptView {
    /// The prefix of paths in the view: `.snapshots/NAME` or `.images/NAME`.
    pub(super) fn prefix(&self) -> Vec<u8> {
        let directory = match self.record.kind {
            ViewKind::Snapshot => ".snapshots",
            ViewKind::Image => ".images",
        };
        format!("{directory}/{}", self.record.name).into_bytes()
    }
}

/// The rows of the table of views.
#[derive(Debug, Default)]
pub(super) struct ViewRows {
    pub(super) kept: Vec<KeptView>,
    /// True if views are being dropped.
    pub(super) leaving: bool,
    /// Number of rows that cannot be decoded.
    pub(super) unreadable: u64,
}

impl ViewRows {
    pub(super) fn read(stored: &Arc<Stored>) -> Result<Self, CheckError> {
        let mut this = Self::default();
        let mut rows = Rows::new(stored, Table::View, Vec::new());
        while let Some((key, value)) = rows.next()? {
            match (keys::view_of(&key), ViewRecord::decode(&value)) {
                (Some(_), Some(record)) if record.state == ViewState::Leaving => {
                    this.leaving = true;
                }
                (Some(_), Some(record)) => this.kept.push(KeptView { key, record }),
                _ => this.unreadable += 1,
            }
        }
        Ok(this)
    }

    pub(super) fn views(&self) -> Views {
        let mut kept: Vec<Generation> = self.kept.iter().map(|v| v.record.generation).collect();
        kept.sort_unstable();
        kept.dedup();
        Views { kept }
    }
}

impl Run<'_> {
    /// Checks the kept views, after everything has been counted.
    pub(super) fn check_views(&mut self, rows: &ViewRows) {
        if rows.unreadable > 0 {
            let message = format!("{} rows of the table view cannot be read", rows.unreadable);
            self.report(Finding::new(Kind::Record, message), PathHint::None, 0..0);
        }
        let live = self.stored.counters().generation;
        let mut names = BTreeSet::new();
        for view in &rows.kept {
            let record = &view.record;
            let shown = String::from_utf8_lossy(&view.prefix()).into_owned();
            if record.generation >= live {
                let at = record.generation;
                let message = format!("{shown} is of generation {at}, the live view of {live}");
                self.report(Finding::new(Kind::View, message), PathHint::None, 0..0);
                self.set_repair(Some(RepairAction::RaiseGeneration(Generation(
                    record.generation.0 + 1,
                ))));
            }
            if !names.insert((record.kind, record.name.clone())) {
                let message = format!("two views have the name {shown}");
                self.report(Finding::new(Kind::View, message), PathHint::None, 0..0);
            }
            let number = self.views.kept.partition_point(|g| *g < record.generation);
            let totals = self.totals.in_view(number);
            let recorded = ViewTotals {
                inodes: record.inodes,
                pages: record.pages,
                record_bytes: record.record_bytes,
            };
            if recorded != totals {
                let ViewTotals {
                    inodes,
                    pages,
                    record_bytes,
                } = totals;
                let message = format!(
                    "{shown} counts {}, {} and {}, and has {inodes}, {pages} and {record_bytes}",
                    count(record.inodes, "inode"),
                    count(record.pages, "page"),
                    count(record.record_bytes, "byte") + " of records"
                );
                self.report(Finding::new(Kind::ViewCount, message), PathHint::None, 0..0);
                let record = ViewRecord {
                    inodes,
                    pages,
                    record_bytes,
                    ..record.clone()
                };
                let row =
                    RepairAction::SetRow(Table::View, view.key.clone(), Some(record.encode()));
                self.set_repair(Some(row));
            }
        }
    }

    /// Checks the volume's counters, after everything has been counted.
    pub(super) fn check_counters(&mut self, counters: &Counters) {
        let ViewTotals {
            inodes,
            pages,
            record_bytes,
        } = self.totals.in_view(self.views.live());
        self.report.inodes = inodes;
        self.report.used_pages = pages;
        self.report.record_bytes = record_bytes;
        if counters.frozen >= counters.generation {
            let frozen = counters.frozen;
            let message =
                format!("everything up to generation {frozen} is shared with another volume");
            self.report(
                Finding::new(Kind::FutureRecord, message),
                PathHint::None,
                self.live_only(),
            );
            self.set_repair(Some(RepairAction::RaiseGeneration(Generation(
                frozen.0.saturating_add(1),
            ))));
        }
        if counters.used_pages != pages {
            let message = format!(
                "the volume counts {} of contents and has {pages}",
                count(counters.used_pages, "page")
            );
            self.report(
                Finding::new(Kind::UsedPages, message),
                PathHint::None,
                self.live_only(),
            );
            self.set_repair(Some(RepairAction::SetUsedPages(pages)));
        }
        if counters.record_bytes != record_bytes {
            let message = format!(
                "the volume counts {} bytes of records and has {record_bytes}",
                counters.record_bytes
            );
            self.report(
                Finding::new(Kind::RecordBytes, message),
                PathHint::None,
                self.live_only(),
            );
            self.set_repair(Some(RepairAction::SetRecordBytes(record_bytes)));
        }
        if counters.inodes != inodes {
            let message = format!(
                "the volume counts {} and has {inodes}",
                count(counters.inodes, "inode")
            );
            self.report(
                Finding::new(Kind::InodeCount, message),
                PathHint::None,
                self.live_only(),
            );
            self.set_repair(Some(RepairAction::SetInodes(inodes)));
        }
    }

    /// Reads the orphans, in the order of inodes.
    pub(super) fn read_orphans(&mut self) -> Result<(), CheckError> {
        let mut rows = Rows::new(&self.stored, Table::Orphan, Vec::new());
        while let Some((key, _)) = rows.next()? {
            match keys::number_of(&key) {
                Some(ino) => self.orphans.push(Ino(ino)),
                None => self.malformed_row(Table::Orphan, key),
            }
        }
        Ok(())
    }

    /// Reports orphans that do not exist.
    pub(super) fn check_orphan_rows(&mut self) {
        for ino in std::mem::take(&mut self.orphans) {
            if !self.existing_orphans.contains(&ino) {
                let message = format!("inode {ino} is listed for removal and does not exist");
                let finding = Finding::new(Kind::OrphanInUse, message).inode(ino);
                self.report(finding, PathHint::None, self.live_only());
                self.set_repair(Some(RepairAction::ForgetOrphan(ino)));
            }
        }
    }

    /// Reads the objects that wait to be removed.
    pub(super) fn read_garbage(&mut self) -> Result<(), CheckError> {
        let mut rows = Rows::new(&self.stored, Table::Garbage, Vec::new());
        while let Some((key, value)) = rows.next()? {
            match (keys::number_of(&key), ObjectName::decode(&value)) {
                (Some(number), Some(name)) => {
                    if number >= self.stored.counters().next_garbage {
                        let message = format!(
                            "row {number} of garbage has a number that is not allocated yet"
                        );
                        let finding = Finding::new(Kind::GarbageNumber, message).object(name);
                        self.report(finding, PathHint::None, 0..0);
                        self.set_repair(Some(match number {
                            0..COUNT_MAX => RepairAction::RaiseNextGarbage(number + 1),
                            // No row can follow it.
                            _ => RepairAction::SetRow(Table::Garbage, key.clone(), None),
                        }));
                    }
                    self.garbage.insert(name, key);
                }
                _ => self.malformed_row(Table::Garbage, key),
            }
        }
        Ok(())
    }

    /// Checks the rows of `trim`.
    pub(super) fn check_trims(&mut self) -> Result<(), CheckError> {
        let mut rows = Rows::new(&self.stored, Table::Trim, Vec::new());
        while let Some((key, _)) = rows.next()? {
            if keys::extent_parts(&key).is_none() {
                self.malformed_row(Table::Trim, key);
            }
        }
        Ok(())
    }

    /// Checks that the root exists in every view.
    pub(super) fn check_root(&mut self) -> Result<(), CheckError> {
        let views = self.views.clone();
        let low = keys::inode(Ino::ROOT);
        let mut groups = Groups::new(&self.stored, &views, Table::Inode, low.clone());
        let group = groups.next()?.filter(|group| group.logical == low);
        let versions = group.map(|group| group.versions).unwrap_or_default();
        let exists = |view| {
            let mut versions = versions.iter();
            versions.any(|version| version.value.is_some() && version.seen_by.contains(&view))
        };
        for view in 0..=views.live() {
            if !exists(view) {
                let message = "there is no root directory";
                let finding = Finding::new(Kind::NoRoot, message).inode(Ino::ROOT);
                self.report(finding, PathHint::None, view..view + 1);
            }
        }
        Ok(())
    }
}
