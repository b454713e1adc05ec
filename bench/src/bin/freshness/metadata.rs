//! `meta`: what detects an older page of it, beside what a commit writes today.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bilayer::ids::Ino;
use bilayer::meta::{Meta, View};
use bilayer::sealed::{META_PAYLOAD_BYTES, MetaFile};
use bilayer::store::read_only::ScratchFile;
use bilayer::store::{OpenMode, StorePath};
use bilayer::volume::META_NAME;
use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{caches_can_be_dropped, drop_caches};
use bilayer_bench::spread::Spread;

use crate::accumulator::Sum;
use crate::database::{open, sealed_file};
use crate::tree::Tree;
use crate::volume::{Bench, Commit, Watched, keys, open_volume, used_pages};

const PAYLOAD: u64 = META_PAYLOAD_BYTES as u64;
/// Names that are looked up, each with nothing cached.
const LOOKUPS: u64 = 40;
const KEY: [u8; 32] = [0x5A; 32];

/// The changes between two commits.
#[derive(Clone, Copy)]
enum Work {
    New(u64),
    Rewritten(u64),
}

const WORK: [Work; 4] = [
    Work::New(1),
    Work::Rewritten(1),
    Work::Rewritten(100),
    Work::Rewritten(5_000),
];

impl Work {
    fn name(self) -> String {
        match self {
            Self::New(many) => format!("{many} new files"),
            Self::Rewritten(many) => format!("{many} small files rewritten, at random,"),
        }
    }

    /// In a volume with this number of files.
    fn run(self, bench: &mut Bench, files: u64) -> Outcome<()> {
        match self {
            Self::New(many) => bench.add_files(many),
            Self::Rewritten(many) => bench.rewrite(many, files),
        }
    }
}

pub(crate) fn run(top: &Path, files: u64, commits: u32) -> Outcome<()> {
    let place = top.join(format!("files-{files}"));
    let mut bench = Bench::create(&place)?;
    for _ in 0..files.div_ceil(5_000) {
        bench.add_files(files.min(5_000))?;
        bench.fs.sync()?;
    }
    let mut traces = Vec::new();
    for work in WORK {
        let times = match work {
            Work::Rewritten(many) if many > 1_000 => commits.div_ceil(6),
            _ => commits,
        };
        let mut trace = Vec::new();
        for _ in 0..times {
            trace.push(bench.commit(&mut |bench| work.run(bench, files))?);
        }
        traces.push((work, trace));
    }
    bench.close()?;
    let pages = used_pages(&place)?;
    let tree = Tree::over(pages);
    println!(
        "\nmeta of a volume with {files} files: {pages} pages, {} MiB",
        (pages * 4608) >> 20
    );
    println!(
        "  a tag tree has {} nodes, {} KiB on the disk in two places each; \
         all tags in memory {} KiB",
        tree.nodes(),
        tree.nodes() * 2 * 4608 / 1024,
        pages * 16 / 1024
    );
    for (number, (work, trace)) in traces.iter().enumerate() {
        println!("  {} a commit:", work.name());
        replay(&place, &format!("replay-{number}"), pages, trace)?;
    }
    look_up(&place, &tree, files)?;
    verify_all(&place)
}

/// Writes what a commit wrote, alternately as it is and with the tree nodes above it.
fn replay(place: &Path, name: &str, pages: u64, trace: &[Commit]) -> Outcome<()> {
    let keys = keys(place)?;
    let (_, meta) = sealed_file(place, name, &keys)?;
    // A commit of the trace may have made the file longer than it is at the end.
    let most = trace.iter().flat_map(|commit| &commit.pages).max().copied();
    let pages = pages.max(most.unwrap_or(0) + 1);
    let tree = Tree::over(pages);
    let nodes_from = pages;
    let content = vec![0x77; META_PAYLOAD_BYTES];
    for page in 0..pages + 2 * tree.nodes() {
        meta.write(page * PAYLOAD, &content)?;
    }
    meta.sync()?;
    let (mut plain, mut with_tree, mut ratios, mut sums) = (vec![], vec![], vec![], vec![]);
    let (mut written, mut extra) = (0, 0);
    for (turn, commit) in trace.iter().enumerate() {
        let pages: Vec<u64> = commit
            .pages
            .iter()
            .filter(|page| **page > 1)
            .map(|page| page - 1)
            .collect();
        let nodes = tree.above(&pages);
        let nodes = nodes
            .iter()
            .map(|node| nodes_from + 2 * node + turn as u64 % 2);
        let all: Vec<u64> = pages.iter().copied().chain(nodes).collect();
        written += pages.len();
        extra += all.len() - pages.len();
        let (mut a, mut b) = (0.0, 0.0);
        // Twice each, and every second time in the opposite order.
        for half in 0..4 {
            let first = (half + turn) % 2 == 0;
            let seconds = write(&meta, if first { &pages } else { &all }, &content)?;
            *(if first { &mut a } else { &mut b }) += seconds / 2.0;
        }
        plain.push(a * 1e3);
        with_tree.push((b - a) * 1e3);
        ratios.push((commit.seconds + b - a) / commit.seconds);
        let start = Instant::now();
        let mut sum = Sum::default();
        for page in &pages {
            sum.remove(&KEY, *page, &[1; 16]);
            sum.add(&KEY, *page, &[2; 16]);
        }
        std::hint::black_box(sum);
        sums.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = trace.iter().map(|commit| commit.seconds * 1e3).collect();
    let count = trace.len() as f64;
    println!(
        "    {:.1} pages of meta (median [smallest, largest]):",
        written as f64 / count
    );
    println!(
        "    the commit with its changes {} ms; its writes of meta alone, again {} ms",
        shown(seconds),
        shown(plain)
    );
    println!(
        "    tree: {:.1} pages more, {} ms more, whole commit x {}",
        extra as f64 / count,
        shown(with_tree),
        shown(ratios)
    );
    println!("    sum: no page more, {} us more", shown(sums));
    Ok(())
}

fn shown(samples: Vec<f64>) -> String {
    Spread::of(samples).map_or_else(|| "-".to_owned(), |spread| spread.to_string())
}

/// Pages, sync, page 0, sync.
fn write(meta: &MetaFile, pages: &[u64], content: &[u8]) -> Outcome<f64> {
    let start = Instant::now();
    for page in pages {
        meta.write(page * PAYLOAD, content)?;
    }
    meta.sync()?;
    meta.write(0, content)?;
    meta.sync()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Looks up files with nothing cached. Returns the pages read, and the tree nodes that would have
/// to be read.
fn look_up(place: &Path, tree: &Tree, files: u64) -> Outcome<()> {
    let volume = open_volume(place)?;
    let (mut read, mut more) = (Vec::new(), Vec::new());
    for turn in 0..LOOKUPS {
        let file = volume
            .store
            .open(&StorePath::new(META_NAME), OpenMode::Read)?;
        let watched = Watched::over(Arc::new(ScratchFile::over(file)?));
        let file = MetaFile::open(
            watched.clone(),
            volume.keys.active(),
            volume.header().meta_crypto(),
        )?;
        let meta = Meta::open(file, 64 << 20)?;
        watched.take_read();
        let number = turn * (files / LOOKUPS);
        let directory = format!("directory-{}", number / 500);
        let directory = meta.dirent(Ino::ROOT, directory.as_bytes(), View::LIVE)?;
        let directory = directory.ok_or("a directory is missing")?.ino;
        let name = format!("file-{number}");
        let found = meta.dirent(directory, name.as_bytes(), View::LIVE)?;
        let found = found.ok_or("a file is missing")?.ino;
        meta.inode(found, View::LIVE)?
            .ok_or("an inode is missing")?;
        meta.extent(found, bilayer::ids::ChunkIndex(0), View::LIVE)?;
        let pages = watched.take_read();
        read.push(pages.len() as f64);
        more.push(tree.above(&pages).len() as f64);
    }
    println!(
        "  looking a file up and reading it, cold: {} pages read; \
         tree: {} nodes more, none once they are in memory",
        shown(read),
        shown(more)
    );
    Ok(())
}

/// All pages at once: the database's own checksums, and the sum.
fn verify_all(place: &Path) -> Outcome<()> {
    let volume = open_volume(place)?;
    let cold = if caches_can_be_dropped() {
        "cold"
    } else {
        "not cold: only root can drop caches"
    };
    let file = volume
        .store
        .open(&StorePath::new(META_NAME), OpenMode::Read)?;
    drop_caches();
    let start = Instant::now();
    let file = MetaFile::open(
        Arc::new(ScratchFile::over(file)?),
        volume.keys.active(),
        volume.header().meta_crypto(),
    )?;
    let mut database = open(Arc::new(file))?;
    let opened = start.elapsed();
    if !database.check_integrity()? {
        return Err("the database was damaged".into());
    }
    let checked = start.elapsed() - opened;
    drop_caches();
    let start = Instant::now();
    let tags = crate::volume::tags(place)?;
    let mut sum = Sum::default();
    for (page, tag) in tags.iter().enumerate() {
        sum.add(&KEY, page as u64, tag);
    }
    std::hint::black_box(sum);
    println!(
        "  opening the database {:.1} ms; \
         the checksums it has of its pages, all of them ({cold}) {:.1} ms; \
         the sum over all tags {:.1} ms",
        opened.as_secs_f64() * 1e3,
        checked.as_secs_f64() * 1e3,
        start.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}
