//! Determines all pages that a commit references: those that a copy of it must contain.
//!
//! Only branches are read, about one page in a hundred. Leaves need not be read, since all leaves
//! of a tree have the same depth.

use super::{Bounds, DEPTH_MAX, Node, ORDER_MAX, PAGE_BYTES, RawTables, Root, TableRoot, order_of};
use crate::ids::PageIndex;
use crate::meta::keys::Table;
use crate::sealed::{META_PAYLOAD_BYTES, PageBits};

/// A page of a tree, which may consist of several pages of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::meta) struct TreePage {
    /// Its first page in the file.
    pub(in crate::meta) first: u64,
    /// Number of pages of the file.
    pub(in crate::meta) count: u64,
    root: Root,
}

impl TreePage {
    /// The checksum that its parent states.
    pub(in crate::meta) const fn checksum(&self) -> u128 {
        self.root.checksum
    }

    /// True if the bytes are this page.
    pub(in crate::meta) fn is(&self, bytes: &[u8]) -> bool {
        Node::parse(bytes.to_vec()).is_some_and(|node| node.checksum == self.root.checksum)
    }

    /// True if the bytes are this page and it is a leaf.
    pub(in crate::meta) fn is_leaf(&self, bytes: &[u8]) -> bool {
        bytes.first() == Some(&super::LEAF) && self.is(bytes)
    }
}

/// A branch that a commit references.
#[derive(Clone, Copy, Debug)]
pub(in crate::meta) struct Branch {
    pub(in crate::meta) page: TreePage,
    /// Its children are leaves.
    pub(in crate::meta) is_bottom: bool,
}

/// The pages that a commit references.
#[derive(Debug, Default)]
pub(in crate::meta) struct Reachable {
    /// All branches, in each tree in the order of its keys.
    pub(in crate::meta) branches: Vec<Branch>,
    /// Leaves that are the root of their tree.
    pub(in crate::meta) single_leaves: Vec<TreePage>,
    /// All pages of the file, excluding page 0.
    pub(in crate::meta) pages: PageBits,
    /// Number of these pages.
    pub(in crate::meta) count: u64,
    /// Number of pages of the file.
    end: u64,
}

/// Why the pages could not be determined.
#[derive(Debug)]
pub(in crate::meta) enum ReachError {
    /// The caller asked to stop.
    Stopped,
    /// A page was rejected.
    Damaged { page: u64, reason: String },
}

impl RawTables {
    /// Determines the pages that the commit references. `go_on` is called frequently and returns
    /// false to stop.
    pub(in crate::meta) fn reachable(
        &self,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Reachable, ReachError> {
        let mut reach = self.empty_reachable();
        let damaged = |reason: &str| ReachError::Damaged {
            page: 0,
            reason: reason.to_owned(),
        };
        let mut trees = vec![self.definitions];
        for table in self.tables {
            match table {
                TableRoot::At(root) => trees.push(root),
                TableRoot::Empty => {}
                TableRoot::Unknown => return Err(damaged("a table was not found")),
            }
        }
        for tree in trees {
            self.reach_tree(tree, &mut reach, go_on)?;
        }
        Ok(reach)
    }

    /// The number of pages of a table's leaves, and of its branches; `None` if they cannot be read.
    pub fn pages_of(&self, table: Table) -> Option<(u64, u64)> {
        let root = match self.tables[table.index()] {
            TableRoot::At(root) => root,
            TableRoot::Empty => return Some((0, 0)),
            TableRoot::Unknown => return None,
        };
        let mut reach = self.empty_reachable();
        self.reach_tree(root, &mut reach, &mut || true).ok()?;
        let branches = reach.branches.iter().map(|branch| branch.page.count).sum();
        Some((reach.count - branches, branches))
    }

    fn empty_reachable(&self) -> Reachable {
        let end = self.file.len().map(|bytes| bytes / PAGE_BYTES);
        Reachable {
            end: end.unwrap_or_default(),
            ..Reachable::default()
        }
    }

    fn reach_tree(
        &self,
        tree: Root,
        reach: &mut Reachable,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), ReachError> {
        let height = self.height(tree)?;
        let root = self.tree_page(tree)?;
        reach.add(root)?;
        if height == 0 {
            reach.single_leaves.push(root);
            return Ok(());
        }
        self.reach_below(root, height, reach, go_on)
    }

    /// The number of branches above each leaf of a tree.
    fn height(&self, tree: Root) -> Result<usize, ReachError> {
        let mut page = self.tree_page(tree)?;
        for height in 0..DEPTH_MAX {
            let node = self.node_of(page)?;
            if node.is_leaf {
                return Ok(height);
            }
            let child = node.children(Bounds::default()).next();
            let child = child.ok_or_else(|| damaged_at(page, "it has no children"))?;
            page = self.tree_page(child.root)?;
        }
        Err(damaged_at(page, "the tree is too deep"))
    }

    fn reach_below(
        &self,
        page: TreePage,
        height: usize,
        reach: &mut Reachable,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), ReachError> {
        if !go_on() {
            return Err(ReachError::Stopped);
        }
        let is_bottom = height == 1;
        reach.branches.push(Branch { page, is_bottom });
        for child in self.children_of(page)? {
            reach.add(child)?;
            if !is_bottom {
                self.reach_below(child, height - 1, reach, go_on)?;
            }
        }
        Ok(())
    }

    /// The children of a branch.
    pub(in crate::meta) fn children_of(&self, page: TreePage) -> Result<Vec<TreePage>, ReachError> {
        let node = self.node_of(page)?;
        if node.is_leaf {
            return Err(damaged_at(page, "it is not a branch"));
        }
        let children = node.children(Bounds::default());
        children
            .map(|child| self.tree_page(child.root))
            .collect::<Result<_, _>>()
    }

    /// The bytes of a page, verified by its checksum.
    pub(in crate::meta) fn bytes_of(&self, page: TreePage) -> Result<Vec<u8>, ReachError> {
        Ok(self.node_of(page)?.bytes.clone())
    }

    fn node_of(&self, page: TreePage) -> Result<std::sync::Arc<Node>, ReachError> {
        self.node(page.root)
            .map_err(|reason| damaged_at(page, &reason))
    }

    fn tree_page(&self, root: Root) -> Result<TreePage, ReachError> {
        let order = order_of(root.page);
        let offset = self.regions.offset(root.page);
        let first = offset.map_or(0, |offset| offset / PAGE_BYTES);
        if first == 0 || order > ORDER_MAX {
            let reason = "there is no such page".to_owned();
            return Err(ReachError::Damaged {
                page: first,
                reason,
            });
        }
        Ok(TreePage {
            first,
            count: 1 << order,
            root,
        })
    }
}

impl Reachable {
    /// Adds a page. A page that was added before is rejected, so that the walk ends whatever a file
    /// contains.
    fn add(&mut self, page: TreePage) -> Result<(), ReachError> {
        let pages = page.first..page.first.saturating_add(page.count);
        if pages.end > self.end {
            return Err(damaged_at(page, "there is no such page"));
        }
        if pages.clone().any(|at| self.pages.contains(PageIndex(at))) {
            return Err(damaged_at(page, "it has two parents"));
        }
        self.pages.add(pages);
        self.count += page.count;
        Ok(())
    }
}

fn damaged_at(page: TreePage, reason: &str) -> ReachError {
    ReachError::Damaged {
        page: page.first,
        reason: reason.to_owned(),
    }
}

const _: () = assert!(PAGE_BYTES == META_PAYLOAD_BYTES as u64);
