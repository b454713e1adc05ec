//! Power cuts and kills at random moments of random work.
//!
//! What must hold afterwards: the volume opens by itself; names and attributes are as they were
//! after some operation no older than the last commit that was reported done; every page of every
//! file is as some operation since the file's last reported fsync left it; everything reads; and
//! nothing is left over that nothing names. A kept view whose taking was reported done is there and
//! whole, byte for byte; none that was reported dropped comes back; one in doubt is whole or not there.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

mod snapshots;

use support::comparison::read_model;
use support::kept::{Kept, listed};
use support::model::{Model, Number};
use support::operation::{Operation, operation};
use support::world::World;
use support::{CHUNK, Mount, PAGE, quiet};

const OPERATIONS: usize = 60;
const ROUNDS: u64 = 3;
/// A copy moves so many bytes at a time, aligned in the target.
const COPY_BYTES: usize = 1 << 20;

/// What a file may hold after a cut: the contents at its last fsync and all since.
type Versions = BTreeMap<Number, Vec<Arc<Vec<u8>>>>;

/// What may be found after a cut.
struct History {
    /// Views before the last operation on them and after it.
    kept: [Vec<Kept>; 2],
    /// Namespaces since the last commit.
    namespaces: Vec<BTreeMap<String, String>>,
    /// Lengths that copies took a file through: holes are pieces of their own, and end anywhere.
    grown: BTreeMap<Number, Range<usize>>,
    versions: Versions,
}

impl History {
    fn new(model: &Model, kept: &[Kept]) -> Self {
        let mut this = Self {
            kept: [kept.to_vec(), kept.to_vec()],
            namespaces: vec![model.namespace()],
            versions: Versions::new(),
            grown: BTreeMap::new(),
        };
        this.note(model);
        this
    }

    fn note(&mut self, model: &Model) {
        self.namespaces.push(model.namespace());
        for number in model.inodes.keys() {
            let data = &model.inode(*number).data;
            let versions = self.versions.entry(*number);
            let versions = versions.or_insert_with(|| vec![Arc::default()]);
            if versions.last() != Some(data) {
                versions.push(Arc::clone(data));
            }
        }
    }

    /// Contents between the pieces of a copy.
    fn note_pieces(&mut self, before: &Model, after: &Model, number: Number, start: usize) {
        let (Some(old), new) = (before.inodes.get(&number), after.inode(number)) else {
            return;
        };
        let grown = self.grown.entry(number);
        let grown = grown.or_insert(old.data.len()..new.data.len());
        *grown = grown.start.min(old.data.len())..grown.end.max(new.data.len());
        let mut border = (start / COPY_BYTES + 1) * COPY_BYTES;
        while border < new.data.len() {
            let mut mixed = new.data[..border].to_vec();
            mixed.extend(old.data.get(border..).unwrap_or_default());
            if let Some(versions) = self.versions.get_mut(&number) {
                versions.push(Arc::new(mixed));
            }
            border += COPY_BYTES;
        }
    }

    fn committed(&mut self, model: &Model) {
        self.namespaces = vec![model.namespace()];
    }

    /// All contents are durable, and the metadata too.
    fn all_synced(&mut self, model: &Model) {
        self.committed(model);
        let numbers: Vec<Number> = model.inodes.keys().copied().collect();
        for number in numbers {
            self.synced(model, number);
        }
    }

    fn synced(&mut self, model: &Model, number: Number) {
        let data = Arc::clone(&model.inode(number).data);
        self.versions.insert(number, vec![data]);
        self.grown.remove(&number);
    }
}

/// The page's bytes in this version, as long as `len`.
fn page_of(version: &[u8], at: usize, len: usize) -> Vec<u8> {
    let mut bytes = version.get(at..).unwrap_or_default().to_vec();
    bytes.truncate(len);
    bytes.resize(len, 0);
    bytes
}

fn check_contents(
    seed: u64,
    number: Number,
    found: &[u8],
    versions: &[Arc<Vec<u8>>],
    copied: bool,
) {
    let sizes: BTreeSet<usize> = versions.iter().map(|version| version.len()).collect();
    let torn = found.len().is_multiple_of(CHUNK) && sizes.iter().any(|size| *size > found.len());
    assert!(
        sizes.contains(&found.len()) || torn || copied,
        "seed {seed}: file {number} is {} long, and was {sizes:?}",
        found.len()
    );
    let mut at = 0;
    while at < found.len() {
        let end = (at / CHUNK + 1) * CHUNK;
        let end = end.min(found.len()).min(at + PAGE);
        let known = versions
            .iter()
            .any(|version| page_of(version, at, end - at) == found[at..end]);
        if !known {
            let runs = |bytes: &[u8]| -> Vec<(usize, u8)> {
                let changes = (0..bytes.len())
                    .filter(|i| *i == 0 || (bytes[*i] == 0) != (bytes[*i - 1] == 0));
                changes.map(|i| (i, bytes[i])).take(12).collect()
            };
            for version in versions {
                eprintln!(
                    "{} {:?}",
                    version.len(),
                    runs(&page_of(version, at, end - at))
                );
            }
            eprintln!("found {} {:?}", found.len(), runs(&found[at..end]));
        }
        assert!(
            known,
            "seed {seed}: file {number}: the page at {at} is neither old nor new"
        );
        at = end;
    }
}

fn check(seed: u64, mount: &Mount, history: &History) {
    let found = read_model(mount);
    let namespace = found.namespace();
    assert!(
        history.namespaces.contains(&namespace),
        "seed {seed}: names are as they never were since the last commit: {namespace:#?}\n\
         last: {:#?}",
        history.namespaces.last()
    );
    for number in found.files() {
        let versions = history.versions.get(&number);
        let versions = versions.unwrap_or_else(|| panic!("seed {seed}: a file of nobody"));
        let data = &found.inode(number).data;
        let grown = history.grown.get(&number);
        let copied = grown.is_some_and(|grown| grown.contains(&data.len()));
        check_contents(seed, number, data, versions, copied);
    }
}

fn settle(seed: u64, world: &mut World, history: &mut History, operation: &Operation) -> bool {
    let before = world.model.clone();
    history.kept[0].clone_from(&world.kept);
    let target = match operation {
        Operation::Fsync(file) => world.file(*file),
        Operation::Copy { to, .. } => world.file(*to),
        _ => None,
    };
    let result = world.apply(operation);
    if matches!(operation, Operation::Copy { .. } | Operation::Seek(_)) {
        // The background merges parts at its own times; errors are the cut's.
        world.mount().fs.tend_lists();
    }
    history.kept[1].clone_from(&world.kept);
    if std::env::var_os("BILAYER_CRASH_TRACE").is_some() {
        eprintln!(
            "{operation:?} of {:?}: {result:?}",
            number_of(world, operation)
        );
    }
    let model = &world.model;
    if let (Operation::Copy { to_at, .. }, Some(number)) = (operation, target) {
        history.note_pieces(&before, model, number, *to_at as usize);
    }
    history.note(model);
    match (operation, &result) {
        (_, Err(mismatch)) => {
            let cut = world.mount().store.is_cut();
            assert!(cut, "seed {seed}: {operation:?}: {mismatch:?}");
            return false;
        }
        (Operation::Fsync(_), Ok(())) => {
            if let Some(number) = target {
                history.committed(model);
                history.synced(model, number);
            }
        }
        (Operation::Commit, Ok(())) => history.committed(model),
        // All that is there is in the view, and so durable.
        (Operation::Keep(..), Ok(())) if history.kept[0].len() < history.kept[1].len() => {
            history.all_synced(model);
        }
        (Operation::Restore(title), Ok(())) if world.shows(*title) => history.all_synced(model),
        _ => {}
    }
    true
}

fn number_of(world: &World, operation: &Operation) -> Option<Number> {
    operation.target().and_then(|target| world.file(target))
}

/// The views after a cut are those before or after the operation that it met, and whole.
fn settle_views(seed: u64, mount: &Mount, history: &History) -> Vec<Kept> {
    let found = listed(mount);
    let is_one = |kept: &&Vec<Kept>| {
        let there = |kept: &Kept| {
            found
                .iter()
                .any(|v| (v.kind, &v.name) == (kept.kind, &kept.name))
        };
        kept.len() == found.len() && kept.iter().all(there)
    };
    let kept = history.kept.iter().find(is_one);
    let labels = history
        .kept
        .each_ref()
        .map(|kept| kept.iter().map(Kept::label).collect::<Vec<_>>());
    let kept = kept.unwrap_or_else(|| panic!("seed {seed}: {found:?}, not one of {labels:?}"));
    let mut kept = kept.clone();
    for one in &mut kept {
        let mut found = found.iter();
        let found = found.find(|v| (v.kind, &v.name) == (one.kind, &one.name));
        one.id = found.unwrap().id;
        one.compare(mount);
    }
    kept
}

fn operations(seed: u64) -> Vec<Operation> {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    // Large files now and then: each version of a file is kept.
    let largest = if seed.is_multiple_of(4) {
        CHUNK + 9_000
    } else {
        60_000
    };
    let strategy = operation(largest);
    let drawn = std::iter::repeat_with(|| strategy.new_tree(&mut runner).unwrap().current());
    drawn
        .filter(|operation| !matches!(operation, Operation::Reopen | Operation::Kill))
        .take(OPERATIONS)
        .collect()
}

/// Work, a cut or a kill, and what is left, several times over one volume.
fn run(seed: u64) {
    let mut world = World::new(Mount::with(None, quiet()), CHUNK);
    for round in 0..ROUNDS {
        world.adopt();
        let mut history = History::new(&world.model, &world.kept);
        let calls = world.mount().store.calls();
        // Drawn from the seed; beyond the work now and then.
        let within = mix(seed * ROUNDS + round) % 260;
        world.mount().store.cut_at_call(calls + 1 + within);
        for operation in operations(seed * ROUNDS + round) {
            if !settle(seed, &mut world, &mut history, &operation) {
                break;
            }
        }
        world = after_the_end(seed, round, world);
        // What was copied has numbers that only the survivor knows.
        if let Some(model) = world.doubt.take().and_then(|copy| world.with_copy(&copy)) {
            history.note(&model);
        }
        if std::env::var_os("BILAYER_CRASH_TRACE").is_some() {
            eprintln!("seed {seed}, round {round} ended");
        }
        world.kept = settle_views(seed, world.mount(), &history);
        check(seed, world.mount(), &history);
        // Once more from the beginning: what was recovered lasts.
        world.adopt();
        world.reopen();
        world.compare();
        world.compare_kept();
    }
    for kept in &world.kept {
        world.mount().fs.delete_view(kept.kind, &kept.name).unwrap();
    }
    world.mount().fs.finish_purge().unwrap();
    world.compare();
    world.mount.take().unwrap().finish();
}

fn after_the_end(seed: u64, round: u64, mut world: World) -> World {
    let mount = world.mount.take().unwrap();
    let mount = if mix(seed + round).is_multiple_of(4) {
        mount.kill()
    } else {
        let survivor = mount.store.power_cut(mix(seed ^ round));
        let _ = mount.fs.close();
        let (keystore, options) = (Arc::clone(&mount.keystore), mount.options.clone());
        drop(mount);
        Mount::open(survivor, keystore, options)
            .unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"))
    };
    let mut after = World::new(mount, CHUNK);
    (after.model, after.doubt) = (world.model, world.doubt);
    after
}

fn mix(seed: u64) -> u64 {
    let z = (seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 20
}

/// `BILAYER_CRASH_SEEDS` from `BILAYER_CRASH_FIRST_SEED` on.
#[test]
fn power_cuts_and_kills_leave_old_or_new() {
    let setting =
        |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first = setting("BILAYER_CRASH_FIRST_SEED", 0u64);
    for seed in first..first + setting("BILAYER_CRASH_SEEDS", 200) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}
