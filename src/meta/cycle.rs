//! Detects cycles while following records that each reference the next one, such as from a
//! directory up to the root. Damaged or hostile records may form a cycle.
//!
//! Brent's algorithm (R. P. Brent, "An improved Monte Carlo factorization algorithm", 1980): one
//! position is remembered, and replaced after each doubling of the number of steps. A cycle is
//! noticed after at most three times as many steps as there are records on the path, in constant
//! memory.

use crate::ids::Ino;

/// A walk along a chain of inodes.
#[derive(Clone, Copy, Debug)]
pub struct CycleDetector {
    at: Ino,
    remembered: Ino,
    /// Steps since it was remembered.
    steps: u64,
    /// Number of steps after which the current position is remembered instead.
    steps_max: u64,
}

impl CycleDetector {
    /// Begins at an inode.
    pub const fn from(at: Ino) -> Self {
        Self {
            at,
            remembered: at,
            steps: 0,
            steps_max: 1,
        }
    }

    /// The current inode.
    pub const fn current(&self) -> Ino {
        self.at
    }

    /// Moves to the inode that the current record references. False if the chain is a cycle.
    #[must_use]
    pub fn advance(&mut self, to: Ino) -> bool {
        self.at = to;
        if to == self.remembered {
            return false;
        }
        self.steps += 1;
        if self.steps == self.steps_max {
            self.remembered = to;
            self.steps_max = self.steps_max.saturating_mul(2);
            self.steps = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps until a cycle of this length is noticed that is entered after `before` steps.
    fn steps_until_noticed(before: u64, cycle: u64) -> u64 {
        let next = |at: u64| {
            if at + 1 < before + cycle {
                at + 1
            } else {
                before
            }
        };
        let mut cycle = CycleDetector::from(Ino(0));
        for step in 1.. {
            if !cycle.advance(Ino(next(cycle.current().0))) {
                return step;
            }
        }
        unreachable!()
    }

    #[test]
    fn every_cycle_is_noticed_soon() {
        for before in 0..70 {
            for cycle in 1..70 {
                let steps = steps_until_noticed(before, cycle);
                assert!(steps <= 3 * (before + cycle), "{before} {cycle}: {steps}");
            }
        }
    }

    #[test]
    fn a_path_that_ends_is_followed_to_its_end() {
        let mut cycle = CycleDetector::from(Ino(100_000));
        for ino in (1..100_000).rev() {
            assert!(cycle.advance(Ino(ino)));
        }
        assert_eq!(cycle.current(), Ino::ROOT);
    }
}
