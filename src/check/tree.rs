//! Checks that every directory is below the root.
//!
//! It is not enough that each directory has one name, in its recorded parent: two directories can
//! contain one another. For each view that differs from the one before it, every directory is
//! followed upwards once. A directory takes 32 bytes for each of its versions.

use std::ops::Range;

use super::report::Kind;
use super::{CheckError, RepairAction, Run};
use crate::ids::Ino;

/// A version of a directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) ino: Ino,
    pub(super) parent: Ino,
    /// Views that see it: a [`ViewRange`](super::stream::ViewRange) in half the space.
    pub(super) seen_by: Range<u32>,
    /// True if its link count is not 0. An unlinked directory ends a path upwards.
    pub(super) is_linked: bool,
}

/// All versions of all directories, ordered by inode.
#[derive(Debug, Default)]
pub(super) struct Tree(Vec<Directory>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    /// On the path that is being followed.
    OnPath,
    Done,
}

impl Tree {
    pub(super) fn add(&mut self, directory: Directory) {
        self.0.push(directory);
    }

    /// Views that see other versions of directories than the view before them.
    fn changing_views(&self, live: usize) -> Vec<u32> {
        let ends = self.0.iter().flat_map(|d| [d.seen_by.start, d.seen_by.end]);
        let mut views: Vec<u32> = ends.filter(|view| *view as usize <= live).collect();
        views.sort_unstable();
        views.dedup();
        views
    }

    fn find(&self, ino: Ino, view: u32) -> Option<usize> {
        let first = self.0.partition_point(|directory| directory.ino < ino);
        let mut versions = self.0[first..].iter().take_while(|d| d.ino == ino);
        let position = versions.position(|d| d.seen_by.contains(&view));
        position.map(|position| first + position)
    }

    /// One directory of each cycle in a view.
    fn cycles(&self, view: u32) -> Vec<Ino> {
        let mut marks = vec![Mark::New; self.0.len()];
        let mut cycles = Vec::new();
        let mut path: Vec<usize> = Vec::new();
        for start in 0..self.0.len() {
            let mut at = Some(start).filter(|at| self.0[*at].seen_by.contains(&view));
            while let Some(here) = at {
                let directory = &self.0[here];
                match marks[here] {
                    Mark::Done => break,
                    Mark::OnPath => {
                        let begin = path
                            .iter()
                            .position(|other: &usize| *other == here)
                            .unwrap_or(0);
                        let inos = path[begin..].iter().map(|at| self.0[*at].ino);
                        cycles.extend(inos.min());
                        break;
                    }
                    Mark::New => {}
                }
                marks[here] = Mark::OnPath;
                path.push(here);
                if directory.ino == Ino::ROOT || !directory.is_linked {
                    break;
                }
                // A missing parent is reported elsewhere.
                at = self.find(directory.parent, view);
            }
            for at in path.drain(..) {
                marks[at] = Mark::Done;
            }
        }
        cycles
    }
}

impl Run<'_> {
    /// Looks for directories that contain one another.
    pub(super) fn check_tree(&mut self) -> Result<(), CheckError> {
        let live = self.views.live();
        let tree = std::mem::take(&mut self.tree);
        let views = tree.changing_views(live);
        for (position, view) in views.iter().enumerate() {
            self.check_cancelled()?;
            let until = views
                .get(position + 1)
                .map_or(live + 1, |next| *next as usize);
            for ino in tree.cycles(*view) {
                let seen_by = *view as usize..until;
                let repair = (until > live).then_some(RepairAction::LeaveCycle { ino });
                let message = "it is in a cycle of directories that is not below the root";
                self.report_inode(ino, Kind::Detached, message.to_owned(), seen_by, repair);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_once_and_in_their_views() {
        let mut tree = Tree::default();
        let mut add = |ino, parent, seen_by: Range<u32>| {
            tree.add(Directory {
                ino: Ino(ino),
                parent: Ino(parent),
                seen_by,
                is_linked: ino != 9,
            });
        };
        add(1, 1, 0..3);
        add(2, 1, 0..3);
        add(3, 2, 0..1);
        add(3, 4, 1..2);
        add(3, 1, 2..3);
        add(4, 5, 0..3);
        add(5, 3, 0..3);
        add(6, 5, 0..3);
        add(9, 7, 0..3);
        assert_eq!(tree.changing_views(2), [0, 1, 2]);
        assert!(tree.cycles(0).is_empty());
        assert_eq!(tree.cycles(1), [Ino(3)]);
        assert!(tree.cycles(2).is_empty());
    }
}
