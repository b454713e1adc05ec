//! The possible states after a crash, collected while operations run.
//!
//! **Names and attributes** are as after some operation since the last commit that was reported
//! complete. **A page of contents** is as after some operation since its file was last made
//! durable. Two rules connect them: a file that is renamed over another one has, from the commit
//! on, the contents that it had then; and a file that was emptied has, after the next commit, only
//! what was written since. On a device that tears pages, a page that was being overwritten may be
//! lost, which is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::support::kept::Kept;
use crate::support::model::{Model, Number};
use crate::support::operation::Operation;
use crate::support::{CHUNK, PAGE};

/// A copy moves this number of bytes at a time, aligned in the target.
const COPY_BYTES: usize = 1 << 20;

/// A former namespace, with the first version of some files' contents that is possible together
/// with it.
struct Names {
    paths: BTreeMap<String, String>,
    ordered: BTreeMap<Number, usize>,
}

/// Possible contents of a file after a crash.
#[derive(Default)]
struct Versions {
    /// The contents at its last fsync and all since.
    all: Vec<Arc<Vec<u8>>>,
    /// The version at the beginning of the last operation.
    last: usize,
    /// The file was emptied: versions from here on, up to the last operation, were never committed.
    emptied: Option<usize>,
    /// Lengths during copies: holes are copied separately and end anywhere.
    grown: Option<Range<usize>>,
    /// Pages that were written since.
    written: BTreeSet<usize>,
}

/// The possible states after a crash.
pub struct History {
    /// Views before the last operation on them and after it.
    pub kept: [Vec<Kept>; 2],
    /// Namespaces since the last commit.
    names: Vec<Names>,
    ordered: BTreeMap<Number, usize>,
    files: BTreeMap<Number, Versions>,
}

impl History {
    pub fn new(model: &Model, kept: &[Kept]) -> Self {
        let mut this = Self {
            kept: [kept.to_vec(), kept.to_vec()],
            names: Vec::new(),
            ordered: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        for number in model.inodes.keys() {
            let all = vec![Arc::clone(&model.inode(*number).data)];
            let versions = Versions {
                all,
                ..Versions::default()
            };
            this.files.insert(*number, versions);
        }
        this.note(model);
        this
    }

    /// Notes that an operation begins.
    pub fn begin(&mut self) {
        for versions in self.files.values_mut() {
            versions.last = versions.all.len() - 1;
        }
    }

    /// Notes the state after an operation, whether it was reported or not.
    pub fn note(&mut self, model: &Model) {
        self.names.push(Names {
            paths: model.namespace(),
            ordered: self.ordered.clone(),
        });
        for number in model.inodes.keys() {
            let data = &model.inode(*number).data;
            let versions = self.files.entry(*number).or_insert_with(|| Versions {
                all: vec![Arc::default()],
                ..Versions::default()
            });
            if versions.all.last() != Some(data) {
                versions.all.push(Arc::clone(data));
            }
        }
    }

    /// Notes what an operation on a file did besides changing its contents at once.
    pub fn note_operation(
        &mut self,
        operation: &Operation,
        (before, after): (&Model, &Model),
        number: Number,
    ) {
        let Some(old) = before.inodes.get(&number).map(|inode| &inode.data) else {
            return;
        };
        if let Operation::Copy { to_at, .. } = operation {
            self.note_pieces(old, &after.inode(number).data, number, *to_at as usize);
        }
        let Some(versions) = self.files.get_mut(&number) else {
            return;
        };
        if matches!(operation, Operation::Truncate { size: 0, .. }) && !old.is_empty() {
            versions.emptied.get_or_insert(versions.last + 1);
        }
        if let Some(bytes) = written(operation, old.len(), after.inode(number).data.len()) {
            versions.written.extend(pages_touching(bytes));
        }
    }

    /// Notes the contents between two pieces of a copy.
    fn note_pieces(&mut self, old: &[u8], new: &[u8], number: Number, start: usize) {
        let Some(versions) = self.files.get_mut(&number) else {
            return;
        };
        let grown = versions.grown.get_or_insert(old.len()..new.len());
        *grown = grown.start.min(old.len())..grown.end.max(new.len());
        let mut border = (start / COPY_BYTES + 1) * COPY_BYTES;
        while border < new.len() {
            let mut mixed = new[..border].to_vec();
            mixed.extend(old.get(border..).unwrap_or_default());
            versions.all.push(Arc::new(mixed));
            border += COPY_BYTES;
        }
    }

    /// Notes that a file was renamed over another one: its contents are durable no later than the
    /// rename.
    pub fn renamed_over(&mut self, number: Number) {
        if let Some(versions) = self.files.get(&number) {
            self.ordered.insert(number, versions.all.len() - 1);
        }
    }

    /// Notes that all names and attributes are durable.
    pub fn committed(&mut self, model: &Model) {
        self.names.clear();
        self.end_ordering();
        self.note(model);
    }

    /// Notes that the last operation committed at least everything before it.
    pub fn committed_within(&mut self, before: &Model, after: &Model) {
        self.names.clear();
        self.end_ordering();
        self.note(before);
        self.note(after);
    }

    /// Contents that had to be durable with the commit are so: nothing older than the last
    /// operation is possible.
    fn end_ordering(&mut self) {
        let ordered = std::mem::take(&mut self.ordered);
        for (number, versions) in &mut self.files {
            if versions.emptied.take().is_some() || ordered.contains_key(number) {
                versions.all.drain(..versions.last);
                versions.last = 0;
            }
        }
    }

    /// Notes that all contents and the metadata are durable.
    pub fn all_synced(&mut self, model: &Model) {
        self.committed(model);
        for number in model.inodes.keys() {
            self.synced(model, *number);
        }
    }

    /// Notes that a file's contents are durable.
    pub fn synced(&mut self, model: &Model, number: Number) {
        let all = vec![Arc::clone(&model.inode(number).data)];
        let versions = Versions {
            all,
            ..Versions::default()
        };
        self.files.insert(number, versions);
        self.ordered.remove(&number);
        for names in &mut self.names {
            names.ordered.remove(&number);
        }
    }

    /// Compares the recovered state with the possible ones; `torn` are pages that could not be
    /// read.
    pub fn check(&self, actual: &Model, torn: &BTreeMap<Number, BTreeSet<usize>>) {
        let paths = actual.namespace();
        let names = self.names.iter().find(|names| names.paths == paths);
        let names = names.unwrap_or_else(|| {
            let last = self.names.last().map(|names| &names.paths);
            panic!(
                "names are as they never were since the last commit: {paths:#?}\nlast: {last:#?}"
            )
        });
        let nothing = BTreeSet::new();
        for number in actual.files() {
            let versions = self.files.get(&number);
            let versions = versions.unwrap_or_else(|| panic!("file {number} is nobody's"));
            let ordered = names.ordered.get(&number).copied();
            let torn = torn.get(&number).unwrap_or(&nothing);
            versions.check(number, &actual.inode(number).data, ordered, torn);
        }
    }
}

impl Versions {
    /// Versions that may have been committed, if names are as after this file was renamed over
    /// another when it had the version `ordered`.
    fn possible(&self, ordered: Option<usize>) -> Vec<&Arc<Vec<u8>>> {
        let first = ordered.map_or(0, |ordered| ordered.max(self.last));
        let never = self.emptied.map_or(0..0, |emptied| emptied..self.last);
        let versions = self.all.iter().enumerate();
        let versions = versions.filter(|(at, _)| *at >= first && !never.contains(at));
        versions.map(|(_, version)| version).collect()
    }

    fn check(&self, number: Number, actual: &[u8], ordered: Option<usize>, torn: &BTreeSet<usize>) {
        let versions = self.possible(ordered);
        let sizes: BTreeSet<usize> = versions.iter().map(|version| version.len()).collect();
        let ends_at_a_chunk =
            actual.len().is_multiple_of(CHUNK) && sizes.iter().any(|size| *size > actual.len());
        let copied = self.grown.as_ref();
        let copied = copied.is_some_and(|grown| grown.contains(&actual.len()));
        assert!(
            sizes.contains(&actual.len()) || ends_at_a_chunk || copied,
            "file {number} is {} long, and was {sizes:?}",
            actual.len()
        );
        for page in pages_touching(0..actual.len()) {
            let bytes = page_range(page);
            let bytes = bytes.start..bytes.end.min(actual.len());
            if torn.contains(&page) {
                assert!(
                    self.written.contains(&page),
                    "file {number}: page {page} is lost, and nobody was writing it"
                );
                continue;
            }
            let known = versions
                .iter()
                .any(|version| is_page(version, &actual[bytes.clone()], bytes.start));
            assert!(
                known,
                "file {number}: page {page} of {} bytes is neither old nor new: {}",
                actual.len(),
                describe_runs(&versions, actual, bytes)
            );
        }
    }
}

/// True if the version has these bytes there; beyond its end it has zeros.
fn is_page(version: &[u8], actual: &[u8], at: usize) -> bool {
    let here = version.get(at..).unwrap_or_default();
    let here = &here[..here.len().min(actual.len())];
    actual.starts_with(here) && actual[here.len()..].iter().all(|byte| *byte == 0)
}

/// Where runs of zeros and of other bytes begin, for messages.
fn describe_runs(versions: &[&Arc<Vec<u8>>], actual: &[u8], bytes: Range<usize>) -> String {
    let runs = |data: &[u8]| -> Vec<(usize, u8)> {
        let data = data.get(bytes.start..).unwrap_or_default();
        let data = &data[..data.len().min(bytes.len())];
        let changes = (0..data.len()).filter(|i| *i == 0 || (data[*i] == 0) != (data[*i - 1] == 0));
        changes.map(|i| (i, data[i])).take(6).collect()
    };
    let known: Vec<_> = versions.iter().map(|version| runs(version)).collect();
    format!("{:?}, known are {known:?}", runs(actual))
}

/// Bytes of a page. Each chunk starts with a new page.
pub fn page_range(page: usize) -> Range<usize> {
    const PAGES: usize = CHUNK.div_ceil(PAGE);
    let start = page / PAGES * CHUNK + page % PAGES * PAGE;
    start..(start + PAGE).min((page / PAGES + 1) * CHUNK)
}

/// Numbers of the pages that hold these bytes.
pub fn pages_touching(bytes: Range<usize>) -> Range<usize> {
    const PAGES: usize = CHUNK.div_ceil(PAGE);
    let page_of = |at: usize| at / CHUNK * PAGES + at % CHUNK / PAGE;
    if bytes.is_empty() {
        return 0..0;
    }
    page_of(bytes.start)..page_of(bytes.end - 1) + 1
}

/// Bytes that an operation may seal again, of a file that had and has these lengths. Bytes between
/// the old end and the write are included.
fn written(operation: &Operation, before: usize, after: usize) -> Option<Range<usize>> {
    let (offset, len) = match *operation {
        Operation::Write { offset, len, .. }
        | Operation::Punch { offset, len, .. }
        | Operation::Zero { offset, len, .. }
        | Operation::Allocate { offset, len, .. } => (offset as usize, len as usize),
        // Limited to the largest size, as where the operation is run.
        Operation::Append { len, .. } => (before.min(CHUNK), len as usize),
        Operation::Truncate { size, .. } => (size as usize, 0),
        Operation::Copy { to_at, len, .. } => (to_at as usize, len as usize),
        _ => return None,
    };
    let end = (offset + len).min(after.max(before));
    // The last page of a file that grows is sealed again.
    Some(offset.min(before).saturating_sub(1)..end.max(before) + 1)
}
