//! Names in memory: directories, hard links, and the POSIX rules for changing them.
//!
//! Generic over the contents of a file (`F`), since the faulty store also tracks which contents are
//! durable. Every operation returns the [`Change`]s that it made, in the order in which they may
//! reach a disk: a name is added before the old one is removed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{EntryKind, StorePath, os_error};
use crate::errno::Errno;

/// Identifies a directory as long as it exists, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct DirectoryNumber(u64);

/// The volume directory.
pub(super) const ROOT: DirectoryNumber = DirectoryNumber(0);

/// A file with any number of names.
#[derive(Debug)]
pub(super) struct FileNode<F> {
    /// Sequence number within the tree, in order of creation.
    number: u64,
    links: AtomicU64,
    locked: AtomicBool,
    pub(super) data: F,
}

impl<F> FileNode<F> {
    fn new(number: u64, data: F) -> Arc<Self> {
        Arc::new(Self {
            number,
            links: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            data,
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn links(&self) -> u64 {
        self.links.load(Ordering::Relaxed)
    }

    /// True if the caller now holds the lock.
    pub(super) fn try_lock(&self) -> bool {
        !self.locked.swap(true, Ordering::Acquire)
    }

    pub(super) fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }
}

/// The target of a name.
#[derive(Debug)]
pub(super) enum Entry<F> {
    File(Arc<FileNode<F>>),
    Directory(DirectoryNumber),
}

impl<F> Clone for Entry<F> {
    fn clone(&self) -> Self {
        match self {
            Self::File(node) => Self::File(Arc::clone(node)),
            Self::Directory(number) => Self::Directory(*number),
        }
    }
}

impl<F> Entry<F> {
    pub(super) const fn kind(&self) -> EntryKind {
        match self {
            Self::File(_) => EntryKind::File,
            Self::Directory(_) => EntryKind::Directory,
        }
    }
}

/// A name was added or removed.
#[derive(Debug)]
pub(super) struct Change<F> {
    pub(super) directory: DirectoryNumber,
    pub(super) name: String,
    pub(super) entry: Option<Entry<F>>,
}

/// Entries of one directory.
pub(super) type Entries<F> = BTreeMap<String, Entry<F>>;

/// A new file and the changes that creating it made.
pub(super) type Created<F> = (Arc<FileNode<F>>, Vec<Change<F>>);

/// All directories.
#[derive(Debug)]
pub(super) struct Tree<F> {
    pub(super) directories: HashMap<DirectoryNumber, Entries<F>>,
    next: u64,
}

impl<F> Tree<F> {
    /// An empty root directory.
    pub(super) fn new() -> Self {
        Self {
            directories: HashMap::from([(ROOT, BTreeMap::new())]),
            next: 1,
        }
    }

    /// The same names over transformed files; names that share a file share it in the copy.
    pub(super) fn copy<G>(
        directories: &HashMap<DirectoryNumber, Entries<F>>,
        mut transform: impl FnMut(&F) -> G,
    ) -> Tree<G> {
        let mut tree = Tree::new();
        // In order of creation, so that a transformation that draws random numbers is repeatable:
        // names may be random themselves.
        let mut copies: BTreeMap<u64, Arc<FileNode<G>>> = BTreeMap::new();
        for (number, node) in files_below(directories) {
            let copy = FileNode::new(tree.next_number(), transform(&node.data));
            copies.insert(number, copy);
        }
        let mut waiting = vec![(ROOT, ROOT)];
        while let Some((old, new)) = waiting.pop() {
            for (name, entry) in directories.get(&old).into_iter().flatten() {
                let entry = match entry {
                    Entry::File(node) => Entry::File(Arc::clone(&copies[&node.number])),
                    Entry::Directory(child) => {
                        let number = tree.add_directory();
                        waiting.push((*child, number));
                        Entry::Directory(number)
                    }
                };
                tree.set(new, name, Some(entry));
            }
        }
        tree
    }

    /// The directory's number. ENOENT if a component does not exist, ENOTDIR if it is a file.
    pub(super) fn directory(&self, path: &StorePath) -> io::Result<DirectoryNumber> {
        let mut number = ROOT;
        for name in path.as_str().split('/').filter(|name| !name.is_empty()) {
            number = match self.directories.get(&number).and_then(|d| d.get(name)) {
                Some(Entry::Directory(child)) => *child,
                Some(Entry::File(_)) => return Err(os_error(Errno::ENOTDIR)),
                None => return Err(os_error(Errno::ENOENT)),
            };
        }
        Ok(number)
    }

    /// The entry at a path.
    pub(super) fn entry(&self, path: &StorePath) -> io::Result<Entry<F>> {
        if path.is_root() {
            return Ok(Entry::Directory(ROOT));
        }
        self.find(self.directory(&path.parent())?, path.name())
            .cloned()
            .ok_or_else(|| os_error(Errno::ENOENT))
    }

    /// The file; EISDIR for a directory.
    pub(super) fn file(&self, path: &StorePath) -> io::Result<Arc<FileNode<F>>> {
        match self.entry(path)? {
            Entry::File(node) => Ok(node),
            Entry::Directory(_) => Err(os_error(Errno::EISDIR)),
        }
    }

    /// Entries of a directory, in order of creation.
    pub(super) fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>> {
        let entries = self.directories.get(&self.directory(dir)?);
        let mut entries: Vec<_> = entries.into_iter().flatten().collect();
        entries.sort_by_key(|(_, entry)| match entry {
            Entry::File(node) => node.number,
            Entry::Directory(number) => number.0,
        });
        let listed = entries.into_iter();
        Ok(listed
            .map(|(name, entry)| (name.clone(), entry.kind()))
            .collect())
    }

    pub(super) fn create_file(&mut self, path: &StorePath, data: F) -> io::Result<Created<F>> {
        let directory = self.free_name(path)?;
        let node = FileNode::new(self.next_number(), data);
        let entry = Entry::File(Arc::clone(&node));
        Ok((node, vec![self.set(directory, path.name(), Some(entry))]))
    }

    pub(super) fn create_dir(&mut self, path: &StorePath) -> io::Result<Vec<Change<F>>> {
        let directory = self.free_name(path)?;
        let entry = Entry::Directory(self.add_directory());
        Ok(vec![self.set(directory, path.name(), Some(entry))])
    }

    pub(super) fn link(&mut self, from: &StorePath, to: &StorePath) -> io::Result<Vec<Change<F>>> {
        let Entry::File(node) = self.entry(from)? else {
            return Err(os_error(Errno::EPERM));
        };
        let directory = self.free_name(to)?;
        Ok(vec![self.set(
            directory,
            to.name(),
            Some(Entry::File(node)),
        )])
    }

    pub(super) fn unlink(&mut self, path: &StorePath) -> io::Result<Vec<Change<F>>> {
        self.file(path)?;
        let directory = self.directory(&path.parent())?;
        Ok(vec![self.set(directory, path.name(), None)])
    }

    pub(super) fn remove_dir(&mut self, path: &StorePath) -> io::Result<Vec<Change<F>>> {
        if path.is_root() {
            return Err(os_error(Errno::EBUSY));
        }
        let Entry::Directory(number) = self.entry(path)? else {
            return Err(os_error(Errno::ENOTDIR));
        };
        if self.directories.get(&number).is_some_and(|d| !d.is_empty()) {
            return Err(os_error(Errno::ENOTEMPTY));
        }
        self.directories.remove(&number);
        let directory = self.directory(&path.parent())?;
        Ok(vec![self.set(directory, path.name(), None)])
    }

    /// The addition comes first. Two names of one file are left unchanged, as POSIX requires.
    pub(super) fn rename(
        &mut self,
        from: &StorePath,
        to: &StorePath,
    ) -> io::Result<Vec<Change<F>>> {
        let node = self.file(from)?;
        if to.is_root() {
            return Err(os_error(Errno::EISDIR));
        }
        let from_directory = self.directory(&from.parent())?;
        let to_directory = self.directory(&to.parent())?;
        match self.find(to_directory, to.name()) {
            Some(Entry::Directory(_)) => return Err(os_error(Errno::EISDIR)),
            Some(Entry::File(old)) if Arc::ptr_eq(old, &node) => return Ok(Vec::new()),
            _ => {}
        }
        Ok(vec![
            self.set(to_directory, to.name(), Some(Entry::File(node))),
            self.set(from_directory, from.name(), None),
        ])
    }

    fn find(&self, directory: DirectoryNumber, name: &str) -> Option<&Entry<F>> {
        self.directories.get(&directory)?.get(name)
    }

    /// The directory of a path whose name must not exist yet.
    fn free_name(&self, path: &StorePath) -> io::Result<DirectoryNumber> {
        if path.is_root() {
            return Err(os_error(Errno::EEXIST));
        }
        let directory = self.directory(&path.parent())?;
        match self.find(directory, path.name()) {
            None => Ok(directory),
            Some(_) => Err(os_error(Errno::EEXIST)),
        }
    }

    fn add_directory(&mut self) -> DirectoryNumber {
        let number = DirectoryNumber(self.next_number());
        self.directories.insert(number, BTreeMap::new());
        number
    }

    const fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Adds or removes a name and updates link counts.
    fn set(
        &mut self,
        directory: DirectoryNumber,
        name: &str,
        entry: Option<Entry<F>>,
    ) -> Change<F> {
        if let Some(Entry::File(node)) = &entry {
            node.links.fetch_add(1, Ordering::Relaxed);
        }
        let entries = self.directories.entry(directory).or_default();
        let old = match &entry {
            Some(new) => entries.insert(name.to_owned(), new.clone()),
            None => entries.remove(name),
        };
        if let Some(Entry::File(node)) = old {
            node.links.fetch_sub(1, Ordering::Relaxed);
        }
        Change {
            directory,
            name: name.to_owned(),
            entry,
        }
    }
}

/// Files that have a name below the root, by number.
fn files_below<F>(
    directories: &HashMap<DirectoryNumber, Entries<F>>,
) -> BTreeMap<u64, &Arc<FileNode<F>>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![ROOT];
    while let Some(directory) = waiting.pop() {
        for entry in directories
            .get(&directory)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            match entry {
                Entry::File(node) => drop(files.insert(node.number, node)),
                Entry::Directory(child) => waiting.push(*child),
            }
        }
    }
    files
}
