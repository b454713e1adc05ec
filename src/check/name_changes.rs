//! The changes of names that a round of repairs makes. They are collected first, so that one pass
//! over all names makes them.

use std::collections::BTreeMap;

use super::RepairAction;
use super::stream::{Version, ViewRange, Views};
use crate::ids::Ino;
use crate::meta::records::FileKind;

/// A change of a name.
#[derive(Clone, Copy)]
pub(super) enum NameChange {
    Remove,
    SetKind(FileKind),
}

/// All changes of names in one round, each with the views that it concerns.
pub(super) struct NameChanges {
    /// Inodes that lose the names that lead to them.
    of: BTreeMap<Ino, ViewRange>,
    /// Inodes that lose the names in them.
    within: BTreeMap<Ino, ViewRange>,
    /// Inodes of which the names are to record this kind.
    kind: BTreeMap<Ino, (FileKind, ViewRange)>,
    /// Directories that keep one name, with the parent in which the name is preferred.
    pub(super) one: BTreeMap<Ino, (Ino, ViewRange)>,
}

impl NameChanges {
    pub(super) fn of(repairs: &[RepairAction], views: &Views) -> Self {
        let mut this = Self {
            of: BTreeMap::new(),
            within: BTreeMap::new(),
            kind: BTreeMap::new(),
            one: BTreeMap::new(),
        };
        let live = views.live()..views.live() + 1;
        for repair in repairs {
            match repair.clone() {
                RepairAction::RemoveNamesOf { ino, seen_by } => {
                    this.of.insert(ino, seen_by);
                }
                RepairAction::LeaveCycle { ino } => {
                    this.of.insert(ino, live.clone());
                }
                RepairAction::RemoveNamesIn { ino, seen_by } => {
                    this.within.insert(ino, seen_by);
                }
                RepairAction::SetKindInNames { ino, kind, seen_by } => {
                    this.kind.insert(ino, (kind, seen_by));
                }
                RepairAction::KeepOneName {
                    ino,
                    parent,
                    seen_by,
                } if seen_by.contains(&views.live()) => {
                    this.one.insert(ino, (parent, seen_by));
                }
                _ => {}
            }
        }
        this
    }

    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty() && self.within.is_empty() && self.kind.is_empty() && self.one.is_empty()
    }

    /// The change of a name in `parent` that leads to `ino`, and the views that it concerns.
    pub(super) fn change_of(
        &self,
        parent: Ino,
        ino: Ino,
        version: &Version,
    ) -> Option<(&ViewRange, NameChange)> {
        let overlaps = |seen_by: &ViewRange| {
            seen_by.start.max(version.seen_by.start) < seen_by.end.min(version.seen_by.end)
        };
        let removal = self.of.get(&ino).filter(|seen_by| overlaps(seen_by));
        let removal =
            removal.or_else(|| self.within.get(&parent).filter(|seen_by| overlaps(seen_by)));
        if let Some(seen_by) = removal {
            return Some((seen_by, NameChange::Remove));
        }
        let (kind, seen_by) = self
            .kind
            .get(&ino)
            .filter(|(_, seen_by)| overlaps(seen_by))?;
        Some((seen_by, NameChange::SetKind(*kind)))
    }
}
