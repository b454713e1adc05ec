//! Differences between two views, from the records alone.
//!
//! The table `change` lists the keys that may differ. The names of changed files and the paths of
//! directories come from one pass over the names of each view, since the record of a file does not
//! say where it is.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Generation, Ino};
use crate::meta::cycle::CycleDetector;
use crate::meta::keys::{self, Table};
use crate::meta::records::{DirentRecord, FileKind, InodeRecord, Timespec};
use crate::meta::{ChangedKey, Meta, MetaError, View};

/// Rows read at a time.
const ROWS_AT_A_TIME: usize = 1024;

/// How a path differs between two views.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ChangeKind {
    /// It exists only in the second view.
    Added,
    /// It exists only in the first view.
    Removed,
    /// Its contents, attributes or inode differ.
    Changed,
    /// It had another path in the first view, with everything below it.
    Renamed,
}

/// A path that differs between two views.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Change {
    /// The path from the root, without a leading `/`. The root itself is empty.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: ChangeKind,
    /// The former path, if it was renamed.
    pub from: Option<Vec<u8>>,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// A directory entry, by its directory and its name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    parent: Ino,
    name: Vec<u8>,
}

/// Inodes and names that may differ between two views.
#[derive(Default)]
struct Candidates {
    inodes: BTreeSet<Ino>,
    names: BTreeSet<Name>,
}

/// Directory entries of one view.
#[derive(Default)]
struct Names {
    /// The entry of each directory.
    directories: BTreeMap<Ino, Name>,
    /// Entries of the requested inodes.
    of: BTreeMap<Ino, Vec<Name>>,
}

/// Lists everything that differs, in the order of paths.
///
/// # Errors
/// The metadata cannot be read.
pub fn diff(meta: &Meta, from: View, to: View) -> Result<Vec<Change>, MetaError> {
    let mut changes = if from.0 <= to.0 {
        forward(meta, from, to, false)?
    } else {
        let changes = forward(meta, to, from, true)?;
        changes.into_iter().map(reverse).collect()
    };
    changes.sort();
    Ok(changes)
}

fn reverse(change: Change) -> Change {
    match (change.kind, change.from) {
        (ChangeKind::Renamed, Some(from)) => Change {
            path: from,
            from: Some(change.path),
            ..change
        },
        (kind, from) => Change {
            path: change.path,
            kind: match kind {
                ChangeKind::Added => ChangeKind::Removed,
                ChangeKind::Removed => ChangeKind::Added,
                other => other,
            },
            from,
            is_directory: change.is_directory,
        },
    }
}

/// Lists what differs between an older and a newer view. A file that exists in both is reported
/// with its path in the newer view or, with `backward`, in the older one.
fn forward(meta: &Meta, from: View, to: View, backward: bool) -> Result<Vec<Change>, MetaError> {
    let candidates = candidates(meta, from.0, to.0.min(meta.generation()))?;
    let mut changed = BTreeSet::new();
    for ino in candidates.inodes {
        if let (Some(old), Some(new)) = (meta.inode(ino, from)?, meta.inode(ino, to)?)
            && comparable(old) != comparable(new)
        {
            changed.insert(ino);
        }
    }
    let (old, new) = (names(meta, from, &changed)?, names(meta, to, &changed)?);
    let (here, elsewhere) = if backward { (&old, to) } else { (&new, from) };
    let mut changes = Vec::new();
    let mut disappeared: BTreeMap<Ino, Vec<Name>> = BTreeMap::new();
    let mut appeared: BTreeMap<Ino, Vec<(Name, FileKind)>> = BTreeMap::new();
    for entry in candidates.names {
        let before = meta.dirent(entry.parent, &entry.name, from)?;
        let after = meta.dirent(entry.parent, &entry.name, to)?;
        match (before, after) {
            (Some(before), Some(after)) if before.ino == after.ino => {}
            (Some(before), Some(after)) => {
                let is_directory = is_directory(before) || is_directory(after);
                here.add(&mut changes, ChangeKind::Changed, &entry, is_directory);
            }
            (Some(before), None) => disappeared.entry(before.ino).or_default().push(entry),
            (None, Some(after)) => {
                let appeared = appeared.entry(after.ino).or_default();
                appeared.push((entry, after.kind));
            }
            (None, None) => {}
        }
    }
    report_moves(meta, from, &old, &new, disappeared, appeared, &mut changes)?;
    for ino in changed {
        if ino == Ino::ROOT {
            changes.push(Change {
                path: Vec::new(),
                kind: ChangeKind::Changed,
                from: None,
                is_directory: true,
            });
        }
        for entry in here.of.get(&ino).into_iter().flatten() {
            // A renamed file is reported as renamed only.
            let before = meta.dirent(entry.parent, &entry.name, elsewhere)?;
            if let Some(before) = before.filter(|before| before.ino == ino) {
                here.add(
                    &mut changes,
                    ChangeKind::Changed,
                    entry,
                    is_directory(before),
                );
            }
        }
    }
    Ok(changes)
}

/// Reports names that disappeared and appeared. One of each for the same inode are a rename.
fn report_moves(
    meta: &Meta,
    from: View,
    old: &Names,
    new: &Names,
    mut disappeared: BTreeMap<Ino, Vec<Name>>,
    appeared: BTreeMap<Ino, Vec<(Name, FileKind)>>,
    changes: &mut Vec<Change>,
) -> Result<(), MetaError> {
    for (ino, entries) in appeared {
        for (entry, kind) in entries {
            let is_directory = kind == FileKind::Directory;
            let former = disappeared.get_mut(&ino).and_then(Vec::pop);
            let former = former.and_then(|former| old.path(&former));
            match (former, new.path(&entry)) {
                (Some(former), Some(path)) => changes.push(Change {
                    path,
                    kind: ChangeKind::Renamed,
                    from: Some(former),
                    is_directory,
                }),
                _ => new.add(changes, ChangeKind::Added, &entry, is_directory),
            }
        }
    }
    for entry in disappeared.into_values().flatten() {
        let before = meta.dirent(entry.parent, &entry.name, from)?;
        let is_directory = before.is_some_and(is_directory);
        old.add(changes, ChangeKind::Removed, &entry, is_directory);
    }
    Ok(())
}

fn is_directory(entry: DirentRecord) -> bool {
    entry.kind == FileKind::Directory
}

/// An inode record without the fields that reading changes or that describe how its contents are
/// stored.
fn comparable(record: InodeRecord) -> InodeRecord {
    InodeRecord {
        atime: Timespec::default(),
        pages: 0,
        ..record
    }
}

/// The keys that were written after one generation, up to another.
fn candidates(
    meta: &Meta,
    after: Generation,
    through: Generation,
) -> Result<Candidates, MetaError> {
    let mut candidates = Candidates::default();
    let mut from = None;
    loop {
        let (changed, more) = meta.changes(after, through, from, ROWS_AT_A_TIME)?;
        for row in changed {
            let ChangedKey { table, logical } = row.key;
            let ino = keys::ino_of(&logical).ok_or(MetaError::Corrupt("change"))?;
            if table == Table::Dirent {
                let (_, name) = keys::dirent_parts(&logical).ok_or(MetaError::Corrupt("change"))?;
                let (parent, name) = (ino, name.to_vec());
                candidates.names.insert(Name { parent, name });
            } else {
                candidates.inodes.insert(ino);
            }
        }
        match more {
            Some(more) => from = Some(more),
            None => return Ok(candidates),
        }
    }
}

/// Reads all names of a view in one pass.
fn names(meta: &Meta, view: View, wanted: &BTreeSet<Ino>) -> Result<Names, MetaError> {
    let mut names = Names::default();
    let mut low = Vec::new();
    loop {
        let rows = meta.scan(Table::Dirent, &low, &[0xFF; 9], view, ROWS_AT_A_TIME)?;
        let Some((last, _)) = rows.last() else {
            return Ok(names);
        };
        low.clone_from(last);
        low.push(0xFF);
        for (key, value) in &rows {
            let entry = DirentRecord::decode(value).ok_or(MetaError::Corrupt("dirent"))?;
            let parent = keys::ino_of(key).ok_or(MetaError::Corrupt("dirent"))?;
            let (_, name) = keys::dirent_parts(key).ok_or(MetaError::Corrupt("dirent"))?;
            let name = || Name {
                parent,
                name: name.to_vec(),
            };
            if is_directory(entry) {
                names.directories.insert(entry.ino, name());
            }
            if wanted.contains(&entry.ino) {
                names.of.entry(entry.ino).or_default().push(name());
            }
        }
    }
}

impl Names {
    /// The path of an entry; `None` if its directory is not below the root, as one that was removed
    /// while it was open.
    fn path(&self, entry: &Name) -> Option<Vec<u8>> {
        let mut parts = vec![entry.name.as_slice()];
        let mut cycle = CycleDetector::from(entry.parent);
        while cycle.current() != Ino::ROOT {
            let directory = self.directories.get(&cycle.current())?;
            parts.push(&directory.name);
            if !cycle.advance(directory.parent) {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    fn add(&self, changes: &mut Vec<Change>, kind: ChangeKind, entry: &Name, is_directory: bool) {
        changes.extend(self.path(entry).map(|path| Change {
            path,
            kind,
            from: None,
            is_directory,
        }));
    }
}
