//! Names of the faulty store: the durable directories, and the operations that may reach the disk.
//!
//! Invariants: `durable` and all pending operations, applied in order, yield the current
//! directories. An operation on a name never reaches the disk before an earlier one on the same
//! name. Apart from that, and from the dependencies below, any subset may.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::tree::{Change, DirectoryNumber, Entries, Entry};
use super::random::Random;

/// Directories by number.
type Directories<F> = HashMap<DirectoryNumber, Entries<F>>;

/// A change that reaches the disk as a whole or not at all.
#[derive(Debug)]
struct Operation<F> {
    changes: Vec<Change<F>>,
    /// Pending operations that reach the disk no later than this one.
    after: Vec<u64>,
}

/// The durable names, and the pending operations.
#[derive(Debug)]
pub(super) struct NameJournal<F> {
    durable: Directories<F>,
    pending: BTreeMap<u64, Operation<F>>,
    /// The last pending operation on each name.
    latest: HashMap<(DirectoryNumber, String), u64>,
    next: u64,
}

impl<F> NameJournal<F> {
    /// All of these names are on the disk.
    pub(super) fn durable(directories: &Directories<F>) -> Self {
        Self {
            durable: copy(directories),
            pending: BTreeMap::new(),
            latest: HashMap::new(),
            next: 0,
        }
    }

    /// Files that have a name on the disk, now or after some cut.
    pub(super) fn files(&self) -> impl Iterator<Item = &Entry<F>> {
        let pending = self.pending.values().flat_map(|o| &o.changes);
        let durable = self.durable.values().flat_map(|entries| entries.values());
        durable.chain(pending.filter_map(|change| change.entry.as_ref()))
    }

    /// Records the changes of one call. Within a directory they are one operation. Across
    /// directories each change is one, and none overtakes an earlier one: a name may exist twice,
    /// but never nowhere.
    pub(super) fn record(&mut self, changes: Vec<Change<F>>) {
        let mut groups: Vec<Vec<Change<F>>> = Vec::new();
        for change in changes {
            match groups.last_mut() {
                Some(group) if group[0].directory == change.directory => group.push(change),
                _ => groups.push(vec![change]),
            }
        }
        let mut previous = None;
        for group in groups {
            previous = Some(self.add(group, previous.into_iter().collect()));
        }
    }

    /// Records the removal of a directory. It reaches the disk no earlier than the moves of entries
    /// out of that directory.
    pub(super) fn record_removal(&mut self, removed: DirectoryNumber, changes: Vec<Change<F>>) {
        let touching = |(&number, operation): (&u64, &Operation<F>)| {
            operation.touches(removed).then_some(number)
        };
        let after = self.pending.iter().filter_map(touching).collect();
        self.add(changes, after);
    }

    fn add(&mut self, changes: Vec<Change<F>>, mut after: Vec<u64>) -> u64 {
        let number = self.next;
        self.next += 1;
        for change in &changes {
            let name = (change.directory, change.name.clone());
            after.extend(self.latest.insert(name, number));
        }
        self.pending.insert(number, Operation { changes, after });
        number
    }

    /// The effect of a successful fsync of the directory: its operations become durable, and those
    /// that they depend on.
    pub(super) fn sync(&mut self, directory: DirectoryNumber) {
        let mut settled = BTreeSet::new();
        for (&number, operation) in self.pending.iter().rev() {
            if settled.contains(&number) || operation.touches(directory) {
                settled.insert(number);
                settled.extend(&operation.after);
            }
        }
        for number in settled {
            self.settle(number);
        }
    }

    /// The effect of a successful syncfs: everything becomes durable.
    pub(super) fn sync_all(&mut self) {
        while let Some(&number) = self.pending.keys().next() {
            self.settle(number);
        }
    }

    fn settle(&mut self, number: u64) {
        // Dependencies may name operations that were settled before.
        let Some(operation) = self.pending.remove(&number) else {
            return;
        };
        for change in &operation.changes {
            let name = (change.directory, change.name.clone());
            if self.latest.get(&name) == Some(&number) {
                self.latest.remove(&name);
            }
        }
        operation.apply(&mut self.durable);
    }

    /// The directories that a power cut leaves.
    pub(super) fn survivor(&self, random: &mut Random) -> Directories<F> {
        let mut directories = copy(&self.durable);
        let mut lost = BTreeSet::new();
        let chance = random.chance();
        for (&number, operation) in &self.pending {
            let possible = operation.after.iter().all(|before| !lost.contains(before));
            if random.happens(chance) && possible {
                operation.apply(&mut directories);
            } else {
                lost.insert(number);
            }
        }
        directories
    }
}

impl<F> Operation<F> {
    fn touches(&self, directory: DirectoryNumber) -> bool {
        self.changes.iter().any(|c| c.directory == directory)
    }

    fn apply(&self, directories: &mut Directories<F>) {
        for change in &self.changes {
            let entries = directories.entry(change.directory).or_default();
            match &change.entry {
                Some(entry) => entries.insert(change.name.clone(), entry.clone()),
                None => entries.remove(&change.name),
            };
        }
    }
}

/// Copies the entries; a derived `Clone` would require `F: Clone`.
fn copy<F>(directories: &Directories<F>) -> Directories<F> {
    let copy_entries = |entries: &Entries<F>| -> Entries<F> {
        let pairs = entries.iter();
        pairs
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect()
    };
    directories
        .iter()
        .map(|(&number, entries)| (number, copy_entries(entries)))
        .collect()
}
