//! Random operations against a model filesystem, and threads against each other.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod stress;
mod views;

use bilayer_test_support as support;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use support::operation::{Operation, operation};
use support::world::World;
use support::{CHUNK, Mount};

/// No operation grows a file that is larger than this.
const LARGEST: usize = 2 * CHUNK + 20_000;
/// Operations between comparisons of everything.
const COMPARE_EVERY: usize = 40;

fn run(operations: &[Operation]) {
    let mut world = World::new(Mount::new(), LARGEST);
    for (number, operation) in operations.iter().enumerate() {
        if std::env::var_os("BILAYER_MODEL_TRACE").is_some() {
            eprintln!("{number} {operation:?}");
        }
        let target = operation.target().and_then(|target| world.file(target));
        if let Err(mismatch) = world.apply(operation) {
            panic!("operation {number}, {operation:?}: {mismatch:?}");
        }
        world.compare_attributes();
        world.glance_at_kept(target, number);
        if number % COMPARE_EVERY == COMPARE_EVERY - 1 || returns(operation) {
            world.compare();
            world.compare_kept();
        }
    }
    world.compare();
    world.compare_kept();
    world.reopen();
    world.compare();
    world.compare_kept();
    leave_nothing(world);
}

/// True for operations that could lose or mix up anything.
fn returns(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Reopen | Operation::Kill | Operation::Restore(_)
    )
}

/// When all views are deleted, the space that only they used is free: the audit counts it.
fn leave_nothing(mut world: World) {
    while let Some(kept) = world.kept.pop() {
        world.mount().fs.delete_view(kept.kind, &kept.name).unwrap();
    }
    world.mount().fs.finish_purge().unwrap();
    world.compare();
    world.mount.take().unwrap().finish();
}

/// Runs `n` operations of a seed.
fn operations(seed: u64, n: usize) -> Vec<Operation> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = operation(LARGEST);
    (0..n)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect()
}

proptest! {
    #![proptest_config(Config {
        cases: 24,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn behaves_like_the_model(operations in prop::collection::vec(operation(LARGEST), 1..120)) {
        run(&operations);
    }
}

/// Long sequences: `BILAYER_MODEL_SEEDS` of `BILAYER_MODEL_OPERATIONS` each.
#[test]
fn behaves_like_the_model_for_long() {
    let setting =
        |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let count = setting("BILAYER_MODEL_OPERATIONS", 1_500);
    let first = setting("BILAYER_MODEL_FIRST_SEED", 0);
    for seed in first..first + setting("BILAYER_MODEL_SEEDS", 2) {
        eprintln!("seed {seed}, {count} operations");
        run(&operations(seed as u64, count));
    }
}
