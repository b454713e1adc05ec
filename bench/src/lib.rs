//! Code shared by the benchmarks of bilayer.

use std::error::Error;

pub mod filesystems;
pub mod image;
pub mod spread;
pub mod tree;

/// A benchmark that cannot continue says why and ends.
pub type Outcome<T> = Result<T, Box<dyn Error>>;
