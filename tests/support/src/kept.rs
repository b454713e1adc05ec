//! Kept views beside clones of the model: the expected contents of each for as long as it exists.

use std::collections::BTreeMap;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::snapshots::{ViewInfo, ViewKind};
use bilayer::fs::types::{Attr, FileKind, NodeId, Timespec};
use bilayer::ids::{Ino, ViewId};

use super::Mount;
use super::comparison::{compare_attr, xattrs};
use super::model::{Inode, Model, Number, ROOT};
use super::operation::{Kind, Target, Title};
use super::world::{Open, Outcome, World, first_difference, of, same};

/// The contents when a view was taken.
#[derive(Debug)]
pub struct Seen {
    /// All named inodes.
    pub model: Model,
    /// Their attributes, as `stat` showed them.
    pub attrs: BTreeMap<Number, Attr>,
}

/// A kept view.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Snapshot or image.
    pub kind: ViewKind,
    /// Its name.
    pub name: String,
    /// Its view id; 0 if the response was lost.
    pub id: u16,
    /// The expected contents.
    pub seen: Arc<Seen>,
}

/// Kind and name of a view.
pub type Label = (ViewKind, String);

impl Kept {
    /// Its kind and name.
    pub fn label(&self) -> Label {
        (self.kind, self.name.clone())
    }

    /// The node of an inode in this view.
    pub fn node(&self, number: Number) -> NodeId {
        NodeId::new(ViewId(self.id), Ino(number)).expect("a file's number")
    }

    /// Compares the attributes of everything in it.
    pub fn compare_attributes(&self, mount: &Mount) {
        for (number, inode) in &self.seen.model.inodes {
            let attr = mount.fs.getattr(self.node(*number));
            let attr = attr.unwrap_or_else(|error| {
                panic!("getattr of {number} in {:?}: {error:?}", self.label())
            });
            compare_attr(*number, &attr, inode);
            if let Some(then) = self.seen.attrs.get(number) {
                let then = Attr {
                    node: attr.node,
                    ..*then
                };
                assert_eq!(attr, then, "{number} in {:?}", self.label());
            }
        }
    }

    /// Records the attributes of everything in it, if they could not be read when it was taken.
    pub fn see_attributes(&mut self, mount: &Mount) {
        let known = &self.seen.model;
        if self.seen.attrs.len() == known.inodes.len() {
            return;
        }
        let attr = |number: &Number| {
            let attr = mount.fs.getattr(self.node(*number));
            (*number, attr.expect("getattr in a view"))
        };
        let attrs = known.inodes.keys().map(attr).collect();
        let model = known.clone();
        self.seen = Arc::new(Seen { model, attrs });
    }

    /// Compares names, targets and extended attributes of one inode.
    pub fn compare_inode(&self, mount: &Mount, number: Number) {
        let (inode, node) = (self.seen.model.inode(number), self.node(number));
        let what = format!("{number} in {:?}", self.label());
        match inode.kind {
            FileKind::Directory => {
                let names = mount.names(node);
                let expected = inode.entries.keys();
                let expected = expected.map(|name| String::from_utf8_lossy(name).into_owned());
                assert_eq!(names, expected.collect::<Vec<_>>(), "names in {what}");
                for (name, child) in &inode.entries {
                    let actual = mount.lookup(node, name).expect("lookup in a view");
                    assert_eq!(actual.node, self.node(*child), "a name in {what}");
                }
            }
            FileKind::Symlink => {
                assert_eq!(mount.fs.readlink(node).as_ref(), Ok(&inode.target));
            }
            _ => {}
        }
        assert_eq!(xattrs(mount, node), inode.xattrs, "attributes of {what}");
    }

    /// Compares the contents of one file.
    pub fn compare_contents(&self, mount: &Mount, number: Number) {
        let inode = self.seen.model.inode(number);
        if inode.kind == FileKind::Regular {
            let actual = mount.contents(self.node(number));
            let same = first_difference(&actual, &inode.data);
            let label = self.label();
            assert_eq!(same, Outcome::Done, "contents of {number} in {label:?}");
        }
    }

    /// Compares everything.
    pub fn compare(&self, mount: &Mount) {
        self.compare_attributes(mount);
        for number in self.seen.model.inodes.keys() {
            self.compare_inode(mount, *number);
            self.compare_contents(mount, *number);
        }
        let attr = mount.lookup(NodeId::ROOT, directory_name(self.kind));
        let actual = mount.lookup(attr.expect("lookup").node, self.name.as_bytes());
        assert_eq!(actual.expect("lookup of a view").node, self.node(ROOT));
    }
}

const fn directory_name(kind: ViewKind) -> &'static [u8] {
    match kind {
        ViewKind::Snapshot => b".snapshots",
        ViewKind::Image => b".images",
    }
}

/// The views that the filesystem lists.
pub fn listed(mount: &Mount) -> Vec<ViewInfo> {
    let kinds = [ViewKind::Snapshot, ViewKind::Image].into_iter();
    let views = kinds.flat_map(|kind| mount.fs.views(kind).expect("list of views"));
    views.collect()
}

fn view_kind(kind: Kind) -> ViewKind {
    match kind {
        Kind::Snapshot => ViewKind::Snapshot,
        Kind::Image => ViewKind::Image,
    }
}

impl World {
    /// The kept views are exactly these, and show the contents of when they were taken.
    pub fn compare_kept(&self) {
        self.compare_list();
        for kept in &self.kept {
            kept.compare(self.mount());
        }
    }

    fn compare_list(&self) {
        let views = listed(self.mount());
        let mut actual: Vec<_> = views.iter().map(|v| (v.kind, v.name.clone())).collect();
        let mut expected: Vec<_> = self.kept.iter().map(Kept::label).collect();
        actual.sort_by_key(|label| format!("{label:?}"));
        expected.sort_by_key(|label| format!("{label:?}"));
        assert_eq!(actual, expected, "kept views");
    }

    /// A cheap comparison: attributes, and everything of a few inodes.
    pub fn glance_at_kept(&self, touched: Option<Number>, turn: usize) {
        let mount = self.mount();
        for kept in &self.kept {
            kept.compare_attributes(mount);
            let all = &kept.seen.model.inodes;
            let next = all.keys().nth(turn % all.len()).copied();
            let there = touched.filter(|number| all.contains_key(number));
            for number in next.into_iter().chain(there) {
                kept.compare_inode(mount, number);
                kept.compare_contents(mount, number);
            }
        }
    }

    /// The present contents, as a view taken now would have to show them.
    pub fn seen_now(&self) -> Seen {
        let mut model = self.model.clone();
        model.forget_unused(&[]);
        let mut attrs = BTreeMap::new();
        for (number, inode) in &mut model.inodes {
            // After a power cut no request succeeds.
            if let Ok(attr) = self.mount().fs.getattr(NodeId(*number)) {
                inode.mtime = Some(attr.mtime);
                attrs.insert(*number, Attr { blocks: 0, ..attr });
            }
        }
        Seen { model, attrs }
    }

    /// The attributes in a view are recorded when it is first seen; later they must not change.
    fn first_sight(&self, id: u16, mut seen: Seen) -> Seen {
        if ViewId(id) == ViewId::LIVE {
            // Not certain that it exists.
            seen.attrs.clear();
        }
        for (number, then) in &mut seen.attrs {
            let node = NodeId::new(ViewId(id), Ino(*number)).expect("a file's number");
            if let Ok(attr) = self.mount().fs.getattr(node) {
                assert_eq!((attr.atime, attr.ctime), (then.atime, then.ctime));
                *then = attr;
            }
        }
        seen
    }

    /// True if there is a snapshot of that name.
    pub fn shows(&self, title: Title) -> bool {
        self.find(ViewKind::Snapshot, title.text()).is_some()
    }

    /// The index of the view of that name.
    pub fn find(&self, kind: ViewKind, name: &str) -> Option<usize> {
        let mut kept = self.kept.iter();
        kept.position(|kept| kept.kind == kind && kept.name == name)
    }

    /// Takes a snapshot, or makes an image of the live view.
    pub fn keep(&mut self, kind: Kind, title: Title) -> (Outcome, Outcome) {
        let (kind, name) = (view_kind(kind), title.text());
        let seen = self.seen_now();
        let actual = self.mount().fs.create_view(kind, name, None, "");
        if self.find(kind, name).is_some() {
            return (views_answer(actual.map(|_| ())), failed(Errno::EEXIST));
        }
        // The id is not known if the response was lost.
        let id = actual.as_ref().map_or(0, |info| info.id);
        let seen = Arc::new(self.first_sight(id, seen));
        let name = name.to_owned();
        self.kept.push(Kept {
            kind,
            name,
            id,
            seen,
        });
        (views_answer(actual.map(|_| ())), Outcome::Done)
    }

    /// Makes an image of a snapshot.
    pub fn keep_again(&mut self, from: Title, title: Title) -> (Outcome, Outcome) {
        let kind = ViewKind::Image;
        let (from, name) = (from.text(), title.text());
        let actual = self
            .mount()
            .fs
            .create_view(kind, name, Some(from), "from a snapshot");
        let id = actual.as_ref().map_or(0, |info| info.id);
        let actual = views_answer(actual.map(|_| ()));
        if self.find(kind, name).is_some() {
            return (actual, failed(Errno::EEXIST));
        }
        let Some(at) = self.find(ViewKind::Snapshot, from) else {
            return (actual, failed(Errno::ENOENT));
        };
        let seen = Arc::clone(&self.kept[at].seen);
        let name = name.to_owned();
        self.kept.push(Kept {
            kind,
            name,
            id,
            seen,
        });
        (actual, Outcome::Done)
    }

    /// Deletes a view.
    pub fn drop_kept(&mut self, kind: Kind, title: Title) -> (Outcome, Outcome) {
        let (kind, name) = (view_kind(kind), title.text());
        let actual = views_answer(self.mount().fs.delete_view(kind, name));
        let Some(at) = self.find(kind, name) else {
            return (actual, failed(Errno::ENOENT));
        };
        let id = ViewId(self.kept[at].id);
        if self.kept_open.iter().any(|open| open.node.view() == id) {
            return (actual, failed(Errno::EBUSY));
        }
        self.kept.remove(at);
        (actual, Outcome::Done)
    }

    /// Renames a view.
    pub fn rename_kept(&mut self, kind: Kind, title: Title, to: Title) -> (Outcome, Outcome) {
        let (kind, name, to) = (view_kind(kind), title.text(), to.text());
        let actual = views_answer(self.mount().fs.rename_view(kind, name, to));
        let Some(at) = self.find(kind, name) else {
            return (actual, failed(Errno::ENOENT));
        };
        if name != to && self.find(kind, to).is_some() {
            return (actual, failed(Errno::EEXIST));
        }
        self.kept[at].name = to.to_owned();
        (actual, Outcome::Done)
    }

    /// Removes everything that only deleted views used.
    pub fn purge(&self) -> (Outcome, Outcome) {
        let actual = self.mount().fs.finish_purge();
        let actual = actual.map_err(|error| error.errno());
        (of(actual), Outcome::Done)
    }

    /// Opens a file of a view and keeps it open; its contents are compared when it is closed.
    pub fn open_kept(&mut self, view: u8, file: Target) -> (Outcome, Outcome) {
        const OPEN_MAX: usize = 2;
        if self.kept.is_empty() || self.kept_open.len() >= OPEN_MAX {
            return same();
        }
        let kept = &self.kept[usize::from(view) % self.kept.len()];
        let files = kept.seen.model.files();
        if files.is_empty() {
            return same();
        }
        let number = files[usize::from(file.0) % files.len()];
        let node = kept.node(number);
        let fs = &self.mount().fs;
        let actual = fs.open_file(&super::USER, node, libc::O_RDONLY);
        if let Ok(handle) = actual {
            let data = Arc::clone(&kept.seen.model.inode(number).data);
            self.kept_open.push(KeptOpen { node, handle, data });
        }
        (of(actual.map(|_| ())), Outcome::Done)
    }

    /// Closes a file of a view, and compares its contents.
    pub fn close_kept(&mut self, choice: u8) -> (Outcome, Outcome) {
        if self.kept_open.is_empty() {
            return same();
        }
        let open = usize::from(choice) % self.kept_open.len();
        let KeptOpen { node, handle, data } = self.kept_open.remove(open);
        let actual = self.mount().contents_of(node, handle);
        self.mount().fs.release(node, handle);
        let actual = actual.map_or_else(Outcome::Failed, |actual| first_difference(&actual, &data));
        (actual, Outcome::Done)
    }

    // ---- taking back -----------------------------------------------------------------------

    /// Restores the live view from a snapshot; files that are open and not in it stay as orphans.
    pub fn restore(&mut self, title: Title) -> (Outcome, Outcome) {
        let actual = views_answer(self.mount().fs.restore(title.text(), None));
        let Some(at) = self.find(ViewKind::Snapshot, title.text()) else {
            return (actual, failed(Errno::ENOENT));
        };
        let seen = Arc::clone(&self.kept[at].seen);
        let mut model = seen.model.clone();
        for Open { number, .. } in &self.open {
            if !model.inodes.contains_key(number) {
                let mut orphan = self.model.inode(*number).clone();
                orphan.nlink = 0;
                model.inodes.insert(*number, orphan);
            }
        }
        self.model = model;
        (actual, Outcome::Done)
    }

    /// Restores one path: the copy replaces what is there.
    pub fn restore_path(&mut self, title: Title, directory: u8, entry: u8) -> (Outcome, Outcome) {
        let Some(at) = self.find(ViewKind::Snapshot, title.text()) else {
            return same();
        };
        let seen = Arc::clone(&self.kept[at].seen);
        let directories = seen.model.directories();
        let from = directories[usize::from(directory) % directories.len()];
        let entries = &seen.model.inode(from).entries;
        // Sometimes a name that does not exist.
        let name = entries.keys().nth(usize::from(entry) % (entries.len() + 1));
        let name = name.map_or(b"missing".to_vec(), Clone::clone);
        let mut path = seen.model.path_of(from);
        path.push(name.clone());
        let text = String::from_utf8(path.join(&b'/')).expect("names are ASCII");
        let actual = self.mount().fs.restore(title.text(), Some(text.as_ref()));
        let actual = views_answer(actual);
        let parent = self.model.walk(&path[..path.len() - 1]);
        let (Some(copied), Some(parent)) = (entries.get(&name), parent) else {
            return (actual, failed(Errno::ENOENT));
        };
        let copy = Copy {
            from: *copied,
            seen: Arc::clone(&seen),
            parent,
            name,
        };
        if actual == Outcome::Done {
            self.model = self.with_copy(&copy).expect("the copy is in its place");
        } else {
            self.doubt = Some(copy);
        }
        (actual, Outcome::Done)
    }

    /// The model after a copy has replaced the path; `None` if the filesystem does not show that.
    pub fn with_copy(&self, copy: &Copy) -> Option<Model> {
        let (parent, name, then) = (NodeId(copy.parent), &copy.name, &copy.seen.model);
        let mut numbers = BTreeMap::new();
        let there = self.numbers_of(parent, name, then, copy.from, &mut numbers);
        // Copies are inodes of their own.
        let mut fresh = numbers.values();
        if !there || fresh.any(|number| self.model.inodes.contains_key(number)) {
            return None;
        }
        let mut model = self.model.clone();
        model.remove_tree(copy.parent, name);
        model.copy_tree(then, copy.from, copy.parent, name, &numbers);
        Some(model)
    }

    /// Inode numbers that the copy of a tree got. False if it does not exist.
    fn numbers_of(
        &self,
        parent: NodeId,
        name: &[u8],
        model: &Model,
        from: Number,
        numbers: &mut BTreeMap<Number, Number>,
    ) -> bool {
        let Ok(attr) = self.mount().lookup(parent, name) else {
            return false;
        };
        let known = *numbers.entry(from).or_insert(attr.node.0);
        let mut below = model.inode(from).entries.iter();
        known == attr.node.0
            && below.all(|(name, child)| self.numbers_of(attr.node, name, model, *child, numbers))
    }
}

/// Replaces the path by a copy of what a view shows.
#[derive(Clone, Debug)]
pub struct Copy {
    seen: Arc<Seen>,
    from: Number,
    parent: Number,
    name: Vec<u8>,
}

/// An open file of a view.
#[derive(Clone, Debug)]
pub struct KeptOpen {
    /// Its node.
    pub node: NodeId,
    /// Its handle.
    pub handle: bilayer::fs::types::Handle,
    /// The contents that it must have.
    pub data: Arc<Vec<u8>>,
}

/// An outcome with that error.
pub fn failed(errno: Errno) -> Outcome {
    Outcome::Failed(errno)
}

/// The outcome of an operation on views.
pub fn views_answer(result: Result<(), bilayer::fs::snapshots::ViewError>) -> Outcome {
    of(result.map_err(|error| error.errno()))
}

impl Model {
    /// Names from the root to a directory.
    pub fn path_of(&self, mut directory: Number) -> Vec<Vec<u8>> {
        let mut path = Vec::new();
        while directory != ROOT {
            let parent = self.inode(directory).parent;
            let mut entries = self.inode(parent).entries.iter();
            let entry = entries.find(|(_, child)| **child == directory);
            path.push(entry.expect("a directory has a name").0.clone());
            directory = parent;
        }
        path.reverse();
        path
    }

    /// The directory at a path.
    pub fn walk(&self, path: &[Vec<u8>]) -> Option<Number> {
        path.iter().try_fold(ROOT, |at, name| {
            let entry = self.entry(at, name).ok()?;
            self.inode(entry).is_directory().then_some(entry)
        })
    }

    /// Removes a name with everything below it.
    pub fn remove_tree(&mut self, directory: Number, name: &[u8]) {
        let Ok(number) = self.entry(directory, name) else {
            return;
        };
        if !self.inode(number).is_directory() {
            self.unlink(directory, name).expect("unlink");
            return;
        }
        let names: Vec<_> = self.inode(number).entries.keys().cloned().collect();
        for name in names {
            self.remove_tree(number, &name);
        }
        self.rmdir(directory, name).expect("rmdir");
    }

    fn copy_tree(
        &mut self,
        from: &Self,
        number: Number,
        directory: Number,
        name: &[u8],
        numbers: &BTreeMap<Number, Number>,
    ) {
        let copy = numbers[&number];
        if self.inodes.contains_key(&copy) {
            self.link(copy, directory, name).expect("link");
            return;
        }
        let old = from.inode(number);
        let inode = Inode {
            nlink: if old.is_directory() { 2 } else { 1 },
            entries: BTreeMap::new(),
            ..old.clone()
        };
        let mtime: Option<Timespec> = inode.mtime.filter(|_| !old.is_directory());
        self.make(directory, name, copy, Inode { mtime, ..inode });
        for (name, child) in &old.entries {
            self.copy_tree(from, *child, copy, name, numbers);
        }
    }
}
