//! What the benchmarks of bilayer have in common.

use std::error::Error;

pub mod filesystems;
pub mod image;
pub mod spread;
pub mod tree;

/// A benchmark that cannot go on says why and ends.
pub type Outcome<T> = Result<T, Box<dyn Error>>;
