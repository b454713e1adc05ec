//! Contents: what the record of an extent would have to store, compared with what a commit writes
//! today.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use bilayer::layers::KeyRing;
use bilayer::sealed::{META_PAYLOAD_BYTES, MetaFile};
use bilayer_bench::Outcome;
use bilayer_bench::spread::Spread;

use crate::database::{Cost, Rows, sealed_file};
use crate::volume::{Bench, keys};

/// Pages of a chunk of 4 MiB, their plain bytes, and chunks in a GiB.
const CHUNK_PAGES: usize = 1041;
const PAYLOAD_BYTES: u64 = 4032;
const CHUNK_BYTES: u64 = 4 << 20;
const CHUNKS_IN_GIB: usize = 256;
/// Bytes of an extent with one part that has all pages, and of an inode.
const EXTENT_BYTES: usize = 50;
const INODE_BYTES: usize = 98;
/// A run: where it ends (2) and the sequence (8).
const RUN_BYTES: usize = 10;
const NODE_PAGES: usize = 256;
const NODES: usize = CHUNK_PAGES.div_ceil(NODE_PAGES);

/// Additional contents of an extent's record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Today,
    Tags,
    Sequences,
    Runs,
    Sum,
    Tree,
}

impl Way {
    const ALL: [Self; 6] = [
        Self::Today,
        Self::Tags,
        Self::Sequences,
        Self::Runs,
        Self::Sum,
        Self::Tree,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Today => "today",
            Self::Tags => "a tag of 8 bytes a page",
            Self::Sequences => "a sequence of 8 bytes a page",
            Self::Runs => "sequences, in runs",
            Self::Sum => "a sum of 32 bytes",
            Self::Tree => "a tag tree, root of 16 bytes",
        }
    }

    /// Additional bytes in the record of a chunk whose pages have these sequences.
    fn growth(self, sequences: &[u64]) -> usize {
        match self {
            Self::Today => 0,
            Self::Tags | Self::Sequences => 8 * CHUNK_PAGES,
            Self::Runs => 2 + RUN_BYTES * runs(sequences),
            Self::Sum => 32,
            Self::Tree => 16,
        }
    }
}

fn runs(sequences: &[u64]) -> usize {
    1 + sequences
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count()
}

/// The records of one file's extents, stored in one of the variants.
struct Records {
    way: Way,
    rows: Rows,
    /// Nodes of the trees.
    nodes: MetaFile,
    costs: Vec<Cost>,
}

impl Records {
    fn create(place: &Path, keys: &KeyRing, way: Way, chunks: &[Vec<u64>]) -> Outcome<Self> {
        let number = way as usize;
        let rows = Rows::create(place, &format!("rows-{number}"), keys)?;
        let (_, nodes) = sealed_file(place, &format!("nodes-{number}"), keys)?;
        let all = chunks.iter().enumerate();
        let all: Vec<_> = all
            .map(|(chunk, sequences)| row(way, chunk, sequences))
            .collect();
        rows.commit(&all)?;
        if way == Way::Tree {
            let content = vec![0; META_PAYLOAD_BYTES];
            for page in 0..=chunks.len() * NODES {
                nodes.write((page * META_PAYLOAD_BYTES) as u64, &content)?;
            }
            nodes.sync()?;
        }
        let costs = Vec::new();
        Ok(Self {
            way,
            rows,
            nodes,
            costs,
        })
    }

    /// Commits after these pages were written.
    fn commit(&mut self, written: &BTreeSet<(usize, usize)>, chunks: &[Vec<u64>]) -> Outcome<()> {
        let mut more = Cost::default();
        if self.way == Way::Tree {
            let nodes: BTreeSet<usize> = written
                .iter()
                .map(|(c, p)| c * NODES + p / NODE_PAGES)
                .collect();
            let content = vec![1; META_PAYLOAD_BYTES];
            let start = Instant::now();
            for node in &nodes {
                // Page 0 of a sealed file is written in two slots, which are left out here.
                self.nodes
                    .write(((node + 1) * META_PAYLOAD_BYTES) as u64, &content)?;
            }
            self.nodes.sync()?;
            more = Cost {
                seconds: start.elapsed().as_secs_f64(),
                bytes: nodes.len() as u64 * 4096,
            };
        }
        // The inode's times, and every extent that stores more than the set of its pages.
        let mut rows = vec![(b"inode".to_vec(), vec![7; INODE_BYTES])];
        if self.way != Way::Today {
            let touched: BTreeSet<usize> = written.iter().map(|(chunk, _)| *chunk).collect();
            rows.extend(
                touched
                    .iter()
                    .map(|chunk| row(self.way, *chunk, &chunks[*chunk])),
            );
        }
        let cost = self.rows.commit(&rows)?;
        self.costs.push(Cost {
            seconds: cost.seconds + more.seconds,
            bytes: cost.bytes + more.bytes,
        });
        Ok(())
    }
}

fn row(way: Way, chunk: usize, sequences: &[u64]) -> (Vec<u8>, Vec<u8>) {
    let mut key = vec![0; 12];
    key.extend((chunk as u64).to_be_bytes());
    // The bytes need not be incompressible: nothing compresses.
    (
        key,
        vec![sequences[0] as u8; EXTENT_BYTES + way.growth(sequences)],
    )
}

pub(crate) fn run(top: &Path, mib: u64, commits: u32) -> Outcome<()> {
    let place = top.join("contents");
    let mut bench = Bench::create(&place)?;
    println!("\ncontents: a file of {mib} MiB, random blocks of 4 KiB overwritten between commits");
    let file = bench.large(mib)?;
    let count = (mib << 20).div_ceil(CHUNK_BYTES) as usize;
    let mut traces = Vec::new();
    for blocks in [1, 100, 10_000] {
        let times = if blocks > 1_000 {
            commits.div_ceil(6)
        } else {
            commits
        };
        let mut trace = Vec::new();
        for _ in 0..times {
            let mut places = Vec::new();
            let commit = bench.commit(&mut |bench| {
                places = bench.overwrite(file, mib, blocks)?;
                Ok(())
            })?;
            trace.push((places, commit));
        }
        let runs = bench.runs()?;
        traces.push((blocks, trace, runs));
    }
    bench.fs.release(file.0, file.1);
    bench.close()?;
    let keys = keys(&place)?;
    let mut chunks = vec![vec![1_u64; CHUNK_PAGES]; count];
    println!("  {:<30} {:>12} {:>14}", "", "record, new", "KiB in a GiB");
    for way in Way::ALL {
        let growth = way.growth(&chunks[0]);
        let nodes = if way == Way::Tree {
            2 * NODES * 4096
        } else {
            0
        };
        let in_gib = (growth + nodes) * CHUNKS_IN_GIB / 1024;
        println!(
            "  {:<30} {:>12} {in_gib:>14}",
            way.name(),
            EXTENT_BYTES + growth
        );
    }
    let mut sequence = 1;
    for (blocks, trace, runs) in traces {
        let mut all = Vec::new();
        for way in Way::ALL {
            let place = place.join(format!("records-{blocks}-{}", way as usize));
            all.push(Records::create(&place, &keys, way, &chunks)?);
        }
        for (turn, (places, _)) in trace.iter().enumerate() {
            sequence += 1;
            let written: BTreeSet<(usize, usize)> =
                places.iter().flat_map(|at| pages(*at)).collect();
            for (chunk, page) in &written {
                chunks[*chunk][*page] = sequence;
            }
            let ways = all.len();
            for number in 0..ways {
                all[(number + turn) % ways].commit(&written, &chunks)?;
            }
        }
        let real: Vec<f64> = trace.iter().map(|(_, commit)| commit.seconds).collect();
        report(blocks, &real, &all);
        let runs = runs.into_iter().map(|runs| runs as f64).collect();
        let longest = chunks
            .iter()
            .map(|sequences| self::runs(sequences) as f64)
            .collect();
        println!(
            "    runs of one sequence in an object: {}; as reckoned {}",
            shown(runs),
            shown(longest)
        );
    }
    Ok(())
}

/// Chunk and pages that a block of 4 KiB touches.
fn pages(at: u64) -> Vec<(usize, usize)> {
    let place = |byte: u64| {
        let (chunk, within) = (byte / CHUNK_BYTES, byte % CHUNK_BYTES);
        (chunk as usize, (within / PAYLOAD_BYTES) as usize)
    };
    let (first, last) = (place(at), place(at + 4095));
    (first.1..=last.1).map(|page| (first.0, page)).collect()
}

fn report(blocks: u64, real: &[f64], all: &[Records]) {
    println!(
        "  {blocks} blocks a commit: {} ms with the writing",
        shown(real.iter().map(|s| s * 1e3).collect())
    );
    println!(
        "    {:<30} {:>12}   {:<26} whole x",
        "", "KiB of meta", "ms of its commit"
    );
    let today: Vec<f64> = all[0].costs.iter().map(|cost| cost.seconds).collect();
    for records in all {
        let costs = &records.costs;
        let kib = costs.iter().map(|cost| cost.bytes).sum::<u64>() / 1024 / costs.len() as u64;
        let ms = costs.iter().map(|cost| cost.seconds * 1e3).collect();
        let ratios = costs.iter().zip(&today).zip(real);
        let ratios = ratios.map(|((cost, today), real)| (real + cost.seconds - today) / real);
        println!(
            "    {:<30} {kib:>12}   {:<26} {}",
            records.way.name(),
            shown(ms),
            shown(ratios.collect())
        );
    }
}

fn shown(samples: Vec<f64>) -> String {
    Spread::of(samples).map_or_else(|| "-".to_owned(), |spread| spread.to_string())
}
