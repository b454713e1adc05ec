//! A tree of tags: each node is a page with the outer tags of the 256 pages below it. The tag of
//! the top node is stored in the current slot of page 0.
//!
//! A node has two slots, written alternately: the former one is valid until the slots are switched.

use std::collections::BTreeSet;

/// Tags of 16 bytes in a page of 4096.
const FAN_OUT: u64 = 256;

/// The shape of a tree over this number of pages.
pub(crate) struct Tree {
    /// Nodes of each level, the lowest level first.
    levels: Vec<u64>,
}

impl Tree {
    pub(crate) fn over(pages: u64) -> Self {
        let mut levels = vec![pages.div_ceil(FAN_OUT).max(1)];
        while let Some(&nodes) = levels.last().filter(|nodes| **nodes > 1) {
            levels.push(nodes.div_ceil(FAN_OUT));
        }
        Self { levels }
    }

    pub(crate) fn nodes(&self) -> u64 {
        self.levels.iter().sum()
    }

    /// The nodes above these pages, each once, numbered from 0.
    pub(crate) fn above(&self, pages: &[u64]) -> Vec<u64> {
        let (mut first, mut found) = (0, Vec::new());
        let mut below: BTreeSet<u64> = pages.iter().copied().collect();
        for nodes in &self.levels {
            below = below.iter().map(|page| page / FAN_OUT).collect();
            found.extend(
                below
                    .iter()
                    .filter(|node| *node < nodes)
                    .map(|node| first + node),
            );
            first += nodes;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_above_pages() {
        let tree = Tree::over(70_000);
        assert_eq!(tree.levels, [274, 2, 1]);
        assert_eq!(
            tree.above(&[0, 1, 255, 256, 69_999]),
            [0, 1, 273, 274, 275, 276]
        );
        assert_eq!(Tree::over(10).nodes(), 1);
    }
}
