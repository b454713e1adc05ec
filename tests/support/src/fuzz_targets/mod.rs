//! The fuzz targets: each module has a function `target` that takes any bytes and panics if
//! something is wrong. `fuzz_targets/` passes them to libFuzzer; `tests/corpora` runs them over the
//! kept inputs in an ordinary `cargo test`.

pub mod contradictions;
pub mod control;
pub mod database;
pub mod exercise;
pub mod export;
pub mod hostile;
pub mod keystore;
pub mod operations;
pub mod page;
pub mod records;
pub mod rows;
pub mod sample;
pub mod superblock;
pub mod wraps;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("superblock", superblock::target),
    ("keystore", keystore::target),
    ("wraps", wraps::target),
    ("page", page::target),
    ("records", records::target),
    ("rows", rows::target),
    ("contradictions", contradictions::target),
    ("database", database::target),
    ("control", control::target),
    ("export", export::target),
    ("operations", operations::target),
];
