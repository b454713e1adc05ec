//! Checks names, and counts them for the inodes that they lead to.
//!
//! Every version of a name counts for its inode and for its directory, from the first view that
//! sees it to the last: one *event* marks the beginning, another one the end. Sorted by inode, the
//! events are compared with the inodes in one pass, for all views at once. An event takes 24 bytes;
//! a name of a file needs one, a name of a directory two, and one more if it is in kept views only.
//! If there are more events than fit into the available memory, those of the larger inodes wait for
//! another pass over the names.

use crate::ids::Ino;
use crate::meta::keys;
use crate::meta::records::{DirentRecord, FileKind};

use super::report::{Finding, Kind};
use super::stream::{Group, Version, ViewRange};
use super::{CheckError, NamePosition, PathHint, RepairAction, Run};

/// What an event counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Role {
    /// Names that lead to the inode.
    Name,
    /// Names of directories in the inode.
    Subdirectory,
    /// Names of other files in the inode.
    Other,
}

/// A change of a count, from a view on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Event {
    pub(super) ino: Ino,
    /// The directory that the name is in, for names of directories.
    pub(super) parent: Ino,
    pub(super) view: u16,
    pub(super) role: Role,
    /// The kind that the name records.
    pub(super) kind: u8,
    pub(super) difference: i32,
}

const _: () = assert!(size_of::<Event>() == 24);

/// End of a range that has all inodes from its beginning on.
pub(super) const EVERY_INODE: Ino = Ino(u64::MAX);

/// Events of a range of inodes, in order and in bounded memory.
pub(super) struct Events {
    list: Vec<Event>,
    limit: usize,
    from: Ino,
    /// Events of this inode and of larger ones wait for another pass.
    until: Ino,
}

impl Events {
    pub(super) fn new(limit: usize, from: Ino) -> Self {
        Self {
            list: Vec::new(),
            limit,
            from,
            until: EVERY_INODE,
        }
    }

    fn push(&mut self, event: Event) {
        if event.ino < self.from || event.ino >= self.until {
            return;
        }
        self.list.push(event);
        if self.list.len() >= self.limit {
            self.compact();
            if self.list.len() > self.limit / 2 {
                self.drop_upper_half();
            }
        }
    }

    fn compact(&mut self) {
        self.list.sort_unstable();
        self.list.dedup_by(|next, first| {
            let counted =
                |event: &Event| (event.ino, event.parent, event.view, event.role, event.kind);
            let equal = counted(next) == counted(first);
            if equal {
                first.difference += next.difference;
            }
            equal
        });
        self.list.retain(|event| event.difference != 0);
    }

    fn drop_upper_half(&mut self) {
        let (Some(first), Some(middle)) = (self.list.first(), self.list.get(self.list.len() / 2))
        else {
            return;
        };
        if first.ino == middle.ino {
            // All events of one inode must fit.
            self.limit *= 2;
            return;
        }
        self.until = middle.ino;
        let until = self.until;
        self.list.retain(|event| event.ino < until);
    }

    /// All events, ordered by inode, and the first inode whose events wait for another pass.
    pub(super) fn finish(mut self) -> (Vec<Event>, Ino) {
        self.compact();
        (self.list, self.until)
    }
}

/// The fields of a name's key.
pub(super) struct DirentKey<'a> {
    pub(super) parent: Ino,
    pub(super) position: u32,
    pub(super) name: &'a [u8],
}

pub(super) fn dirent_key(logical: &[u8]) -> Option<DirentKey<'_>> {
    let (position, name) = keys::dirent_parts(logical)?;
    let parent = keys::ino_of(logical)?;
    Some(DirentKey {
        parent,
        position,
        name,
    })
}

impl Run<'_> {
    /// Counts the versions of a name.
    pub(super) fn count_names(
        &mut self,
        group: &Group,
        first_pass: bool,
        events: &mut Events,
    ) -> Result<(), CheckError> {
        let Some(named) = dirent_key(&group.logical) else {
            self.malformed += u64::from(first_pass);
            return Ok(());
        };
        if first_pass {
            self.totals.add_records(keys::Table::Dirent, group);
            self.check_name(group, &named);
            self.check_history(keys::Table::Dirent, group)?;
        }
        for (version, value) in group.present() {
            let Some(entry) = DirentRecord::decode(value) else {
                if first_pass {
                    self.report_undecodable(keys::Table::Dirent, group, version, named.parent);
                }
                continue;
            };
            self.count_name(&named, entry, version, events);
        }
        Ok(())
    }

    fn count_name(
        &self,
        named: &DirentKey<'_>,
        entry: DirentRecord,
        version: &Version,
        events: &mut Events,
    ) {
        let is_directory = entry.kind == FileKind::Directory;
        let ends = version.seen_by.end <= self.views.live();
        let differences = [(version.seen_by.start, 1), (version.seen_by.end, -1)];
        for (view, difference) in differences.into_iter().take(1 + usize::from(ends)) {
            if version.seen_by.is_empty() {
                break;
            }
            let view = view as u16;
            events.push(Event {
                ino: entry.ino,
                parent: if is_directory { named.parent } else { Ino(0) },
                view,
                role: Role::Name,
                kind: entry.kind as u8,
                difference,
            });
            events.push(Event {
                ino: named.parent,
                parent: Ino(0),
                view,
                role: if is_directory {
                    Role::Subdirectory
                } else {
                    Role::Other
                },
                kind: 0,
                difference,
            });
        }
    }

    /// True if a view sees another name of the directory at the same position. Names are read in
    /// the order of positions, so only those at the last position are compared.
    fn shares_position(&mut self, group: &Group, named: &DirentKey<'_>) -> bool {
        let seen_by = group.present().map(|(version, _)| version.seen_by.clone());
        let seen_by: Vec<_> = seen_by.filter(|seen_by| !seen_by.is_empty()).collect();
        match &mut self.last_position {
            Some(last) if (last.parent, last.position) == (named.parent, named.position) => {
                let overlaps = |one: &ViewRange| {
                    let mut others = last.seen_by.iter();
                    others.any(|other| one.start < other.end && other.start < one.end)
                };
                let is_shared = seen_by.iter().any(overlaps);
                last.seen_by.extend(seen_by);
                is_shared
            }
            last => {
                *last = Some(NamePosition {
                    parent: named.parent,
                    position: named.position,
                    seen_by,
                });
                false
            }
        }
    }

    fn check_name(&mut self, group: &Group, named: &DirentKey<'_>) {
        let Some((version, _)) = group.present().next() else {
            return;
        };
        let hash = self.name_hash(named.name);
        let is_shared = self.shares_position(group, named);
        let reason = match named.name {
            b"" => "it is empty",
            b"." | b".." => "it has a special meaning",
            name if name.len() > 255 => "it is longer than 255 bytes",
            name if name.contains(&0) || name.contains(&b'/') => "it has a NUL or a / in it",
            _ if !(hash..hash + keys::PROBE_LIMIT).contains(&named.position) => {
                "a lookup does not find it"
            }
            _ if is_shared => "another name has its position in the directory",
            _ => return,
        };
        let finding = Finding::new(
            Kind::NameMisplaced,
            format!("a name cannot be used: {reason}"),
        );
        let path_hint = PathHint::Entry {
            parent: named.parent,
            name: named.name.to_vec(),
        };
        self.report(finding, path_hint, version.seen_by.clone());
        if is_usable(named.name) {
            self.set_repair(Some(RepairAction::MoveName(group.logical.clone())));
        }
    }
}

/// True for a name that a system call could have created.
fn is_usable(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.contains(&0)
        && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(ino: u64, view: u16, difference: i32) -> Event {
        Event {
            ino: Ino(ino),
            parent: Ino(0),
            view,
            role: Role::Name,
            kind: 1,
            difference,
        }
    }

    #[test]
    fn events_of_one_inode_and_view_add_up_and_may_cancel() {
        let mut events = Events::new(100, Ino(0));
        for (ino, view, more) in [(2, 0, 1), (1, 0, 1), (2, 0, 1), (3, 1, 1), (3, 1, -1)] {
            events.push(event(ino, view, more));
        }
        let (list, until) = events.finish();
        assert_eq!(list, [event(1, 0, 1), event(2, 0, 2)]);
        assert_eq!(until, EVERY_INODE);
    }

    #[test]
    fn events_that_do_not_fit_wait_and_none_is_lost() {
        let (mut from, mut seen, mut passes) = (Ino(0), Vec::new(), 0);
        loop {
            let mut events = Events::new(64, from);
            for ino in 0..1000u64 {
                events.push(event(ino * 7 % 1000, 0, 1));
                events.push(event(500, (ino % 50) as u16, 1));
            }
            let (list, until) = events.finish();
            assert!(list.iter().all(|event| (from..until).contains(&event.ino)));
            seen.extend(list);
            passes += 1;
            if until == EVERY_INODE {
                break;
            }
            from = until;
        }
        assert!(passes > 10, "{passes}");
        assert!(seen.is_sorted());
        let total: i64 = seen.iter().map(|event| i64::from(event.difference)).sum();
        assert_eq!(total, 2000);
        assert_eq!(
            seen.iter().filter(|event| event.ino == Ino(500)).count(),
            50
        );
    }
}
