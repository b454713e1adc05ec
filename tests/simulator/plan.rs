//! The plan of one scenario, drawn from a seed before it starts, so that it can be reduced
//! afterwards.

use bilayer::store::faulty::WriteUnit;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::CHUNK;
use crate::support::operation::{Operation, operation, place, target, title};

/// Operations of one round, and rounds of one scenario.
const OPERATIONS: usize = 60;
const ROUNDS: u64 = 3;
/// Maximum number of users of one volume.
const USERS: u64 = 3;
/// Range of calls of the store from which a power cut is drawn; the operations of a round make
/// about as many, some fewer.
const CALLS: u64 = 320;
/// Approximate number of calls of the store during an opening.
const OPENING_CALLS: u64 = 34;

/// A rename that replaces its target.
const PLAIN: u8 = 9;
/// Approximate number of calls of the store during an unmount.
const UNMOUNT_CALLS: u64 = 60;

/// One operation of one user.
#[derive(Clone, Debug)]
pub struct Step {
    /// Stays the same when earlier steps are removed.
    pub number: usize,
    pub user: u8,
    pub operation: Operation,
}

/// When the crash happens.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// In this call of the store, counted from the beginning of the round.
    Call(u64),
    /// In this call of one step, counted from 1.
    Within { step: usize, call: u64 },
}

/// Kind of crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The power fails.
    Power,
    /// The process dies and the machine stays up.
    Kill,
}

/// The power fails again while the volume is being opened.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// Counted from the beginning of the opening.
    pub call: u64,
    pub survivor: u64,
    /// Index of the surviving keystore record; 0 is the newest.
    pub record: u64,
}

/// The power fails during or after a clean unmount.
#[derive(Clone, Copy, Debug)]
pub struct Unmount {
    /// In this call of the unmounting; `None` after it.
    pub call: Option<u64>,
    pub survivor: u64,
    pub record: u64,
}

/// Operations, a crash, and what follows.
#[derive(Clone, Debug)]
pub struct Round {
    pub steps: Vec<Step>,
    pub cut: Cut,
    pub end: End,
    /// Seed of the choice of what survives on the disk.
    pub survivor: u64,
    pub record: u64,
    /// Power cuts during the openings that follow, one each.
    pub recovery: Vec<Again>,
    /// Then it is unmounted. The power fails in this call of the unmount, or after it, or not at
    /// all.
    pub unmount: Option<Unmount>,
    /// Power cuts during the openings after that.
    pub reopening: Vec<Again>,
}

/// The plan of a scenario.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub unit: WriteUnit,
    pub rounds: Vec<Round>,
}

/// The kind of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Small,
    Large,
    /// Large, and copied often.
    Clones,
}

/// A stream of numbers that a seed determines.
pub struct Draw(u64);

impl Draw {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub const fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let users = 1 + draw.below(USERS);
        // Large files now and then: each version of a file is kept.
        let kind = match draw.below(8) {
            0 => Kind::Large,
            1 => Kind::Clones,
            _ => Kind::Small,
        };
        let unit = if draw.one_in(4) {
            WriteUnit::Sector
        } else {
            WriteUnit::Page
        };
        let mut operations = operations(seed, kind);
        let rounds = (0..ROUNDS).map(|_| {
            let steps = operations.by_ref().take(OPERATIONS).enumerate();
            let steps = steps.map(|(number, operation)| Step {
                number,
                user: draw.below(users) as u8,
                operation,
            });
            let steps = steps.collect();
            Round::new(steps, &mut draw)
        });
        let rounds = rounds.collect();
        Self { seed, unit, rounds }
    }
}

impl Round {
    fn new(steps: Vec<Step>, draw: &mut Draw) -> Self {
        Self {
            steps,
            cut: Cut::Call(1 + draw.below(CALLS)),
            end: if draw.one_in(4) {
                End::Kill
            } else {
                End::Power
            },
            survivor: draw.next(),
            record: record(draw),
            recovery: openings(draw),
            unmount: draw.one_in(2).then(|| Unmount {
                call: draw.one_in(2).then(|| 1 + draw.below(UNMOUNT_CALLS)),
                survivor: draw.next(),
                record: record(draw),
            }),
            reopening: openings(draw),
        }
    }
}

/// In a third of the power cuts the keystore's newest record was lost.
const fn record(draw: &mut Draw) -> u64 {
    if draw.one_in(3) { 1 + draw.below(3) } else { 0 }
}

fn openings(draw: &mut Draw) -> Vec<Again> {
    let times = if draw.one_in(2) { draw.below(4) } else { 0 };
    let again = |_| Again {
        call: 1 + draw.below(OPENING_CALLS),
        survivor: draw.next(),
        record: record(draw),
    };
    (0..times).map(again).collect()
}

/// An endless sequence of operations of the users.
fn operations(seed: u64, kind: Kind) -> impl Iterator<Item = Operation> {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (largest, clones) = match kind {
        Kind::Small => (60_000, 0),
        Kind::Large => (CHUNK + 9_000, 0),
        Kind::Clones => (CHUNK + 9_000, 60),
    };
    let strategy = prop_oneof![
        120 => operation(largest),
        2 => title().prop_map(Operation::Deploy),
        4 => target().prop_map(|file| Operation::Truncate { file, size: 0 }),
        1 => Just(Operation::Checkpoint),
        // Commits that make only those contents durable that must precede them.
        6 => any::<u8>().prop_map(Operation::FsyncDir),
        8 => (place(), place()).prop_map(|(from, to)| Operation::Rename(from, to, PLAIN)),
        clones => cloning(),
    ];
    let drawn =
        std::iter::repeat_with(move || strategy.new_tree(&mut runner).map(|tree| tree.current()));
    drawn
        .filter_map(Result::ok)
        .filter(|operation| !matches!(operation, Operation::Reopen | Operation::Kill))
}

/// Files long enough to be linked when they are copied, their copies, and writes to both.
fn cloning() -> impl Strategy<Value = Operation> {
    use Operation as O;
    prop_oneof![
        2 => (target(), 1_050_000..1_200_000u32, any::<u8>())
            .prop_map(|(file, offset, seed)| O::Write { file, offset, len: 4_000, seed }),
        2 => (target(), target())
            .prop_map(|(from, to)| O::Copy { from, to, at: 0, to_at: 0, len: 20_000_000 }),
        3 => (target(), 0..9_000u32, 1..9_000u32, any::<u8>())
            .prop_map(|(file, offset, len, seed)| O::Write { file, offset, len, seed }),
    ]
}
