//! The inputs that fuzzing has kept, without a fuzzer: each target runs on each of its own inputs.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bilayer_test_support::fuzz_targets as targets;

use std::fs;
use std::path::Path;

/// Runs a target on every input of its corpus; a failure names the input.
fn replay(name: &str) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let (_, target) = targets::TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    let mut inputs: Vec<_> = fs::read_dir(corpus.join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "no input is kept for {name}");
    for input in &inputs {
        let data = fs::read(input).unwrap();
        eprintln!("{}", input.display());
        target(&data);
    }
    target(&[]);
}

macro_rules! corpora {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            let names: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

corpora!(
    superblock,
    keystore,
    wraps,
    page,
    records,
    rows,
    contradictions,
    database,
    control,
    export,
    operations
);
