//! Checks versions of records, and the rows of `change` that record when they changed.

use super::report::{Finding, Kind};
use super::stream::{Group, Rows, ViewRange};
use super::{CheckError, PathHint, RepairAction, Run};
use crate::ids::Ino;
use crate::meta::keys::{self, Table};

impl Run<'_> {
    /// Checks that some view needs each version of a record, and that each change while an older
    /// view was kept is recorded: dropping that view relies on it.
    pub(super) fn check_history(&mut self, table: Table, group: &Group) -> Result<(), CheckError> {
        let newest = self.stored.counters().generation;
        let mut unneeded = group.versions.first().is_some_and(|v| v.value.is_none());
        for version in &group.versions {
            unneeded |= version.seen_by.is_empty();
            if version.generation > newest {
                let message = format!(
                    "a record of the table {} is of generation {}, the volume of {newest}",
                    table.name(),
                    version.generation
                );
                self.report_record(Kind::FutureRecord, message, group, version.seen_by.clone());
                self.set_repair(Some(RepairAction::RaiseGeneration(version.generation)));
            }
            if self.views.keeps_before(version.generation) {
                let row = keys::change(version.generation, table, &group.logical);
                if self.stored.get(Table::Change, &row).is_none() {
                    let message = format!(
                        "a record of the table {} changed in generation {}, which is not recorded",
                        table.name(),
                        version.generation
                    );
                    self.report_record(
                        Kind::ChangeMissing,
                        message,
                        group,
                        version.seen_by.clone(),
                    );
                    self.set_repair(Some(RepairAction::SetRow(
                        Table::Change,
                        row,
                        Some(vec![1]),
                    )));
                }
            }
        }
        if unneeded && !self.leaving {
            let message = format!("a record of the table {} is not needed", table.name());
            let live = self.views.live();
            self.report_record(Kind::RecordUnneeded, message, group, live..live + 1);
            self.set_repair(Some(RepairAction::PruneVersions(
                table,
                group.logical.clone(),
            )));
        }
        Ok(())
    }

    fn report_record(&mut self, kind: Kind, message: String, group: &Group, seen_by: ViewRange) {
        let ino = keys::ino_of(&group.logical).unwrap_or(Ino(0));
        self.report(
            Finding::new(kind, message).inode(ino),
            PathHint::Inode(ino),
            seen_by,
        );
    }

    /// Checks the rows of `change`.
    pub(super) fn check_changes(&mut self) -> Result<(), CheckError> {
        let mut rows = Rows::new(&self.stored, Table::Change, Vec::new());
        while let Some((key, _)) = rows.next()? {
            self.check_cancelled()?;
            let Some((generation, table, _)) = keys::change_parts(&key) else {
                self.malformed_row(Table::Change, key);
                continue;
            };
            if !self.leaving && !self.views.keeps_before(generation) {
                let message = format!(
                    "no view needs the note that a record of the table {} changed in generation \
                     {generation}",
                    table.name()
                );
                let finding = Finding::new(Kind::ChangeUnneeded, message);
                self.report(finding, PathHint::None, 0..0);
                self.set_repair(Some(RepairAction::SetRow(Table::Change, key, None)));
            }
        }
        Ok(())
    }

    /// Reports an undecodable row of a table whose rows follow from other tables. It is of no use,
    /// so the repair removes it.
    pub(super) fn malformed_row(&mut self, table: Table, key: Vec<u8>) {
        let message = format!("a row of the table {} cannot be read", table.name());
        self.report(Finding::new(Kind::Record, message), PathHint::None, 0..0);
        self.set_repair(Some(RepairAction::SetRow(table, key, None)));
    }
}
