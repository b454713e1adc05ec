//! What it would cost to notice that a single page was replaced by an older version of itself.
//!
//! ```text
//! cargo run --release -p bilayer-bench --bin freshness -- --dir /srv/tmp
//! ```
//! A page stays authentic at its position for ever: an older version of it opens
//! (`docs/THREAT-MODEL.md`). This program computes and writes several variants that bind a page to
//! its time, beside what a volume writes today, over traces of real volumes. It finds the pages of
//! `meta` that a commit changed by comparing their tags. Nothing of this is in bilayer.
//! `bench/README.md` explains the figures.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::path::PathBuf;
use std::process::ExitCode;

use bilayer_bench::{Outcome, exit_code};
use clap::Parser;

mod accumulator;
mod contents;
mod database;
mod metadata;
mod tree;
mod volume;

/// Measure ways to notice that single pages were replaced by older versions.
#[derive(Parser, Debug)]
#[command(name = "bilayer-freshness", version)]
struct Arguments {
    /// Directory in which everything is created; the files are removed at the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Files of the volumes
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000])]
    files: Vec<u64>,
    /// Commits of each kind
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    commits: u32,
    /// Size of the file that is written at random places
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    mib: u64,
    /// Small amounts: shows that it works, not how fast
    #[arg(long)]
    quick: bool,
}

impl Arguments {
    fn made_quick(mut self) -> Self {
        if self.quick {
            self.files = vec![200, 1_000];
            (self.commits, self.mib) = (5, 32);
        }
        self
    }
}

fn main() -> ExitCode {
    exit_code("freshness", run(&Arguments::parse().made_quick()))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let top = tempfile::Builder::new()
        .prefix("bilayer-freshness-")
        .tempdir_in(&arguments.dir)?;
    for files in &arguments.files {
        metadata::run(top.path(), *files, arguments.commits)?;
    }
    contents::run(top.path(), arguments.mib, arguments.commits)?;
    top.close()?;
    Ok(())
}
