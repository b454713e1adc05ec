//! Comparing everything visible with the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use bilayer::fs::types::{Attr, FileKind, NodeId};

use super::model::{self, Inode, Model, Number};
use super::world::{Outcome, World, first_difference};
use super::{ADMIN, Mount};

fn node(number: Number) -> NodeId {
    NodeId(number)
}

impl World {
    /// Compares everything visible.
    pub fn compare(&self) {
        let mut used = 0;
        for (number, inode) in &self.model.inodes {
            let attr = self.mount().fs.getattr(node(*number));
            let attr = attr.unwrap_or_else(|error| panic!("getattr of {number}: {error:?}"));
            compare_attr(*number, &attr, inode);
            match inode.kind {
                FileKind::Regular => {
                    let actual = self.with(*number, |handle| {
                        self.mount().contents_of(node(*number), handle)
                    });
                    let actual = actual.unwrap_or_else(|error| panic!("read {number}: {error:?}"));
                    let same = first_difference(&actual, &inode.data);
                    assert_eq!(same, Outcome::Done, "contents of {number}");
                    // An inline file takes less than a page.
                    used += attr.blocks / 8;
                }
                FileKind::Directory => self.compare_names(*number, inode),
                FileKind::Symlink => {
                    let target = self.mount().fs.readlink(node(*number));
                    assert_eq!(target.as_ref(), Ok(&inode.target));
                }
                _ => {}
            }
            assert_eq!(xattrs(self.mount(), node(*number)), inode.xattrs);
        }
        assert_eq!(
            self.mount().fs.usage().contents_bytes,
            used * 4096,
            "used bytes"
        );
    }

    /// Compares the attributes of all inodes.
    pub fn compare_attributes(&self) {
        for (number, inode) in &self.model.inodes {
            let attr = self.mount().fs.getattr(node(*number));
            let attr = attr.unwrap_or_else(|error| panic!("getattr of {number}: {error:?}"));
            compare_attr(*number, &attr, inode);
        }
    }

    fn compare_names(&self, number: Number, inode: &Inode) {
        if inode.nlink == 0 {
            return;
        }
        let names: Vec<String> = self.mount().names(node(number));
        let expected = inode.entries.keys();
        let expected = expected.map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(names, expected.collect::<Vec<_>>(), "names in {number}");
        for (name, child) in &inode.entries {
            let actual = self.mount().lookup(node(number), name).expect("lookup");
            assert_eq!(actual.node.0, *child);
        }
    }

    /// Copies the state of the filesystem into the model.
    pub fn adopt(&mut self) {
        self.open.clear();
        self.model = read_model(self.mount());
    }
}

/// The filesystem as a model.
pub fn read_model(mount: &Mount) -> Model {
    read_model_by(mount, &mut |node| mount.contents(node))
}

/// The filesystem as a model, with another function that reads contents.
pub fn read_model_by(mount: &Mount, contents: &mut dyn FnMut(NodeId) -> Vec<u8>) -> Model {
    let mut model = Model::new();
    model.inodes.clear();
    let mut queue = vec![(model::ROOT, model::ROOT)];
    while let Some((number, parent)) = queue.pop() {
        let attr = mount.fs.getattr(node(number)).expect("getattr");
        let mut inode = Inode::new(attr.kind, attr.perm);
        (inode.uid, inode.gid, inode.nlink) = (attr.uid, attr.gid, attr.nlink);
        inode.xattrs = xattrs(mount, attr.node);
        match attr.kind {
            FileKind::Directory => {
                inode.parent = parent;
                for name in mount.names(attr.node) {
                    let child = mount.lookup(attr.node, name.as_bytes()).expect("lookup");
                    inode.entries.insert(name.into_bytes(), child.node.0);
                    queue.push((child.node.0, number));
                }
            }
            FileKind::Regular => inode.data = Arc::new(contents(attr.node)),
            FileKind::Symlink => inode.target = mount.fs.readlink(attr.node).expect("readlink"),
            _ => {}
        }
        model.inodes.insert(number, inode);
    }
    model
}

/// The extended attributes of an inode.
pub fn xattrs(mount: &Mount, node: NodeId) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let list = mount
        .fs
        .list_xattr(&ADMIN, node)
        .expect("list of attributes");
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            (
                name.to_vec(),
                mount.fs.get_xattr(node, name).expect("attribute"),
            )
        })
        .collect()
}

/// Compares the attributes of one inode.
pub fn compare_attr(number: Number, attr: &Attr, inode: &Inode) {
    let actual = (attr.kind, attr.perm, attr.uid, attr.gid, attr.nlink);
    let expected = (inode.kind, inode.perm, inode.uid, inode.gid, inode.nlink);
    assert_eq!(actual, expected, "attributes of {number}");
    if inode.kind == FileKind::Regular {
        assert_eq!(attr.size, inode.data.len() as u64, "size of {number}");
    }
    if let Some(time) = inode.mtime {
        assert_eq!(attr.mtime, time, "time of {number}");
    }
}
