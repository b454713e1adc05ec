//! The differences between two views according to the model.

use std::collections::{BTreeMap, BTreeSet};

use bilayer::errno::Errno;
use bilayer::fs::snapshots::{Change, ChangeKind, ViewKind};
use bilayer::fs::types::{Attr, NodeId, Timespec};

use super::kept::Seen;
use super::model::{Model, Number, ROOT};
use super::operation::Title;
use super::world::{Outcome, World, of};

/// A name: its directory and itself.
type Place = (Number, Vec<u8>);

/// Paths with the reported changes; a rename is reported as a removal and an addition.
type Reported = BTreeSet<(Vec<u8>, ChangeKind, bool)>;

impl World {
    /// Compares a snapshot with another one, or with the live view.
    pub fn diff(&self, from: Title, to: Option<Title>) -> (Outcome, Outcome) {
        let mut changes = Vec::new();
        let to_text = to.map(Title::text);
        let fs = &self.mount().fs;
        let actual = fs.diff_views(from.text(), to_text, &mut |change| changes.push(change));
        let actual = of(actual.map_err(|error| error.errno()));
        let seen = |title: Title| {
            let mut kept = self.kept.iter();
            kept.find(|kept| (kept.kind, kept.name.as_str()) == (ViewKind::Snapshot, title.text()))
        };
        let (Some(before), Some(after)) =
            (seen(from), to.map_or(Some(None), |to| seen(to).map(Some)))
        else {
            return (actual, Outcome::Failed(Errno::ENOENT));
        };
        if actual == Outcome::Done {
            let now;
            let after: &Seen = match after {
                Some(kept) => &kept.seen,
                None => {
                    now = self.seen_now();
                    &now
                }
            };
            compare(&changes, &before.seen, after);
        }
        (actual, Outcome::Done)
    }
}

fn compare(actual: &[Change], before: &Seen, after: &Seen) {
    assert!(actual.is_sorted(), "in the order of paths: {actual:?}");
    let mut reported = Reported::new();
    let mut renamed = 0;
    for change in actual {
        let mut tell = |path: &[u8], kind| {
            let fresh = reported.insert((path.to_vec(), kind, change.is_directory));
            assert!(fresh, "reported twice: {change:?}");
        };
        match &change.from {
            Some(from) => {
                assert_eq!(change.kind, ChangeKind::Renamed);
                renamed += 1;
                tell(from, ChangeKind::Removed);
                tell(&change.path, ChangeKind::Added);
            }
            None => tell(&change.path, change.kind),
        }
    }
    let (expected, expected_renamed) = differences(before, after);
    let show = |reported: &Reported| -> Vec<String> {
        let each = reported.iter();
        let each =
            each.map(|(path, kind, _)| format!("{kind:?} {}", String::from_utf8_lossy(path)));
        each.collect()
    };
    assert_eq!(show(&reported), show(&expected), "what differs");
    assert_eq!(reported, expected, "what differs");
    assert_eq!(renamed, expected_renamed, "names that went and came");
}

fn differences(before: &Seen, after: &Seen) -> (Reported, usize) {
    let (old, new) = (places(&before.model), places(&after.model));
    let mut reported = Reported::new();
    let mut gone: BTreeMap<Number, usize> = BTreeMap::new();
    let mut come: BTreeMap<Number, usize> = BTreeMap::new();
    for (place, (number, path)) in &old {
        if !new.contains_key(place) {
            *gone.entry(*number).or_default() += 1;
            let is_directory = before.model.inode(*number).is_directory();
            reported.insert((path.clone(), ChangeKind::Removed, is_directory));
        }
    }
    for (place, (number, path)) in &new {
        let is_directory = after.model.inode(*number).is_directory();
        match old.get(place) {
            None => {
                *come.entry(*number).or_default() += 1;
                reported.insert((path.clone(), ChangeKind::Added, is_directory));
            }
            Some((other, _)) if other != number => {
                let any = is_directory || before.model.inode(*other).is_directory();
                reported.insert((path.clone(), ChangeKind::Changed, any));
            }
            Some(_) if differs(*number, before, after) => {
                reported.insert((path.clone(), ChangeKind::Changed, is_directory));
            }
            Some(_) => {}
        }
    }
    if differs(ROOT, before, after) {
        reported.insert((Vec::new(), ChangeKind::Changed, true));
    }
    let renamed = gone.iter().map(|(number, gone)| {
        let come = come.get(number).copied().unwrap_or(0);
        (*gone).min(come)
    });
    (reported, renamed.sum())
}

/// True if an inode differs between both, except in the time of last access.
fn differs(number: Number, before: &Seen, after: &Seen) -> bool {
    let essence = |seen: &Seen| {
        let (inode, attr) = (seen.model.inode(number), seen.attrs[&number]);
        let attr = Attr {
            node: NodeId(number),
            generation: 0,
            atime: Timespec::default(),
            blocks: 0,
            ..attr
        };
        (attr, inode.parent, inode.target.clone())
    };
    let (old, new) = (before.model.inode(number), after.model.inode(number));
    let same = (&old.data, &old.xattrs, &old.entries) == (&new.data, &new.xattrs, &new.entries);
    let differs = essence(before) != essence(after);
    assert!(differs || same, "{number}: what changed has other times");
    differs
}

/// All names, each with its inode and its path.
fn places(model: &Model) -> BTreeMap<Place, (Number, Vec<u8>)> {
    let mut names = BTreeMap::new();
    let mut queue = vec![(ROOT, Vec::new())];
    while let Some((directory, path)) = queue.pop() {
        for (name, child) in &model.inode(directory).entries {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if model.inode(*child).is_directory() {
                queue.push((*child, path.clone()));
            }
            names.insert((directory, name.clone()), (*child, path));
        }
    }
    names
}
