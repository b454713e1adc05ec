//! One scenario of a volume: operations, a crash, and a comparison of what is left, several times.

use std::collections::{BTreeMap, BTreeSet};

use bilayer::errno::Errno;
use bilayer::fs::types::NodeId;
use bilayer::store::faulty::WriteUnit;

use crate::history::{History, page_range, pages_touching};
use crate::machine::{
    Environment, Machine, Remembered, Survivors, kill, mount_fresh, options, power_cut,
};
use crate::panics::{caught, quietly};
use crate::plan::{Cut, End, Plan, Round, Step};
use crate::stats::Stats;
use crate::support::comparison::read_model_by;
use crate::support::kept::{Kept, listed};
use crate::support::model::Number;
use crate::support::operation::Operation;
use crate::support::world::{Mismatch, World};
use crate::support::{CHUNK, Mount, USER};

/// Pages that could not be read, by file.
type Torn = BTreeMap<Number, BTreeSet<usize>>;

/// Result of a scenario.
pub struct RunOutcome {
    pub stats: Stats,
    /// The log, if one was requested.
    pub trace: Vec<String>,
    /// For each round, the step during which the crash happened, and in which of its calls.
    pub met: Vec<Option<(usize, u64)>>,
}

/// Runs a plan. Panics if an invariant is violated; `run` has the history up to then.
pub fn run_scenario(plan: &Plan, run: &mut RunOutcome, trace: bool) {
    let mut stats = Stats {
        seeds: 1,
        ..Stats::default()
    };
    let mut env = Environment {
        remembered: Remembered::default(),
        stats: &mut stats,
        trace: trace.then(Vec::new),
    };
    let result = quietly(|| run_rounds(plan, &mut env, &mut run.met));
    run.trace = env.trace.take().unwrap_or_default();
    run.stats = stats;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn run_rounds(plan: &Plan, env: &mut Environment<'_>, met: &mut Vec<Option<(usize, u64)>>) {
    let mut world = World::new(mount_fresh(plan.unit, options()), CHUNK);
    env.remembered.note(world.mount());
    for (number, round) in plan.rounds.iter().enumerate() {
        env.log(|| format!("round {number}"));
        world.adopt();
        let mut history = History::new(&world.model, &world.kept);
        met.push(work(round, &mut world, &mut history, env));
        let mount = world.mount.take().unwrap();
        let machine = end(plan, round, mount, env);
        world.mount = Some(machine.open(&round.recovery, env));
        look(&mut world, &mut history, plan.unit, env);
        // Mount once more: what was recovered must persist.
        world.adopt();
        unmount(round, &mut world, env);
        world.compare();
        world.compare_kept();
    }
    env.log(|| "the end".to_owned());
    for kept in &world.kept {
        world.mount().fs.delete_view(kept.kind, &kept.name).unwrap();
    }
    world.mount().fs.finish_purge().unwrap();
    world.compare();
    let mount = world.mount.take().unwrap();
    mount.fs.close().unwrap();
    kill(mount).audit();
}

/// Runs the steps of a round until the crash, which may come after the last one.
fn work(
    round: &Round,
    world: &mut World,
    history: &mut History,
    env: &mut Environment<'_>,
) -> Option<(usize, u64)> {
    let store = world.mount().store.clone();
    let before = store.calls();
    if let Cut::Call(call) = round.cut {
        store.cut_at_call(before + call);
    }
    for step in &round.steps {
        let calls = store.calls();
        match round.cut {
            Cut::Within { step: at, call } if at == step.number => store.cut_at_call(calls + call),
            _ => {}
        }
        world.user = step.user;
        env.stats.operations += 1;
        let continues = run_step(world, history, step, env);
        env.remembered.note(world.mount());
        if store.is_cut() {
            return store
                .cut_call()
                .map(|call| (step.number, call.number - calls));
        }
        assert!(
            continues,
            "an operation ended the round, and there was no cut"
        );
    }
    None
}

/// Runs one operation. False if the crash happened.
fn run_step(
    world: &mut World,
    history: &mut History,
    step: &Step,
    env: &mut Environment<'_>,
) -> bool {
    let operation = &step.operation;
    let before = world.model.clone();
    let sequence = world.mount().fs.usage().sequence;
    history.kept[0].clone_from(&world.kept);
    history.begin();
    let target = target(world, operation);
    let renaming = renaming(world, operation);
    let Some(result) = apply(world, operation) else {
        return false;
    };
    if matches!(operation, Operation::Copy { .. } | Operation::Seek(_)) {
        // The background thread merges parts at its own times. Errors are caused by the power cut.
        world.mount().fs.compact_parts();
    }
    history.kept[1].clone_from(&world.kept);
    env.log(|| {
        let file = target.map_or(String::new(), |number| format!(" of {number}"));
        let calls = world.mount().store.calls();
        format!(
            "{:3} user {}: {operation:?}{file}: {result:?}, {calls} calls",
            step.number, step.user
        )
    });
    let model = &world.model;
    if let Some(number) = target {
        history.note_operation(operation, (&before, model), number);
    }
    if let Err(mismatch) = &result {
        history.note(model);
        assert!(
            world.mount().store.is_cut(),
            "{operation:?} is answered otherwise: {mismatch:?}"
        );
        return false;
    }
    if let Some((moved, (directory, name))) = renaming
        && model.entry(directory, name) == Ok(moved)
    {
        history.renamed_over(moved);
    }
    history.note(model);
    if world.mount().fs.usage().sequence != sequence {
        history.committed_within(&before, model);
    }
    note_guarantees(world, history, operation, target, env);
    true
}

/// `None` if the crash interrupted code of the tests themselves.
fn apply(world: &mut World, operation: &Operation) -> Option<Result<(), Mismatch>> {
    match caught(|| world.apply(operation)) {
        Ok(result) => Some(result),
        Err(failure) => {
            let ours = failure.place.starts_with("tests/") && world.mount().store.is_cut();
            assert!(ours, "{operation:?}: {} {}", failure.place, failure.message);
            None
        }
    }
}

/// Notes what a reported success guarantees.
fn note_guarantees(
    world: &World,
    history: &mut History,
    operation: &Operation,
    target: Option<Number>,
    env: &mut Environment<'_>,
) {
    let model = &world.model;
    match operation {
        Operation::Fsync(_) | Operation::Fdatasync(_) => {
            if let Some(number) = target {
                env.stats.syncs += 1;
                history.committed(model);
                history.synced(model, number);
            }
        }
        Operation::Commit | Operation::FsyncDir(_) => {
            env.stats.syncs += 1;
            history.committed(model);
        }
        Operation::Maintain | Operation::Purge => history.all_synced(model),
        // Everything is in the view, and thus durable.
        Operation::Keep(..) if history.kept[0].len() < history.kept[1].len() => {
            history.all_synced(model);
        }
        Operation::Restore(title) if world.shows(*title) => history.all_synced(model),
        _ => {}
    }
}

/// The file that an operation changes or syncs.
fn target(world: &World, operation: &Operation) -> Option<Number> {
    operation.target().and_then(|target| world.file(target))
}

/// A rename over something else: the moved inode, and its new name.
fn renaming(world: &World, operation: &Operation) -> Option<(Number, (Number, &'static [u8]))> {
    let Operation::Rename(from, to, flags) = operation else {
        return None;
    };
    let exchanges = matches!(flags, 1 | 2);
    let (from, to) = (world.place(*from), world.place(*to));
    let moved = world.model.entry(from.0, from.1).ok()?;
    let replaced = world.model.entry(to.0, to.1).ok()?;
    (!exchanges && moved != replaced).then_some((moved, to))
}

/// The crash of a round.
fn end(plan: &Plan, round: &Round, mount: Mount, env: &mut Environment<'_>) -> Machine {
    let call = mount.store.cut_call().filter(|_| mount.store.is_cut());
    env.log(|| {
        let survivor = round.survivor;
        format!("{:?} in {call:?}, survivor {survivor:#x}", round.end)
    });
    match round.end {
        End::Kill => {
            env.stats.kills += 1;
            kill(mount)
        }
        End::Power => {
            env.stats.cuts += 1;
            env.stats.torn_devices += u64::from(plan.unit == WriteUnit::Sector);
            let survivors = Survivors {
                seed: round.survivor,
                lost_records: round.record,
            };
            power_cut(mount, survivors, env)
        }
    }
}

/// Compares the recovered state with the possible ones.
fn look(world: &mut World, history: &mut History, unit: WriteUnit, env: &mut Environment<'_>) {
    world.open.clear();
    world.kept_open.clear();
    // Only the recovered volume knows the inode numbers of a copy.
    if let Some(model) = world.doubt.take().and_then(|copy| world.with_copy(&copy)) {
        history.note(&model);
    }
    world.kept = settle_views(world.mount(), history);
    env.stats.views += world.kept.len() as u64;
    let mount = world.mount();
    let mut torn = Torn::new();
    let recovered = read_model_by(mount, &mut |node| match unit {
        WriteUnit::Page => mount.contents(node),
        WriteUnit::Sector => read_torn(mount, node, &mut torn),
    });
    env.stats.files += recovered.files().len() as u64;
    env.stats.torn_pages += torn.values().map(|pages| pages.len() as u64).sum::<u64>();
    env.log(|| format!("recovered {:?}, torn {torn:?}", recovered.namespace()));
    history.check(&recovered, &torn);
    for number in torn.keys() {
        // The page is unreadable, and can be overwritten.
        mount.truncate(NodeId(*number), 0).unwrap();
    }
    mount.fs.sync().unwrap();
    env.stats.deployed += world.compare_deployed();
}

/// The contents of a file with zeros for pages that do not open, which are noted.
fn read_torn(mount: &Mount, node: NodeId, torn: &mut Torn) -> Vec<u8> {
    let handle = mount.fs.open_file(&USER, node, libc::O_RDONLY).unwrap();
    let bytes = match mount.contents_of(node, handle) {
        Err(Errno::EIO) => {
            let size = mount.fs.getattr(node).unwrap().size as usize;
            let mut bytes = vec![0; size];
            for page in pages_touching(0..size) {
                let range = page_range(page);
                let range = range.start..range.end.min(size);
                let (at, out) = (range.start as u64, &mut bytes[range]);
                match mount.fs.read(node, handle, at, out) {
                    Ok(read) => assert_eq!(read, out.len()),
                    Err(Errno::EIO) => {
                        out.fill(0);
                        torn.entry(node.0).or_default().insert(page);
                    }
                    Err(error) => panic!("page {page} of {node:?}: {error:?}"),
                }
            }
            bytes
        }
        other => other.unwrap(),
    };
    mount.fs.release(node, handle);
    bytes
}

/// Unmounts and mounts again; in between everything is counted, unless the power fails.
fn unmount(round: &Round, world: &mut World, env: &mut Environment<'_>) {
    world.open.clear();
    let mount = world.mount.take().unwrap();
    let store = mount.store.clone();
    let call = round.unmount.and_then(|unmount| unmount.call);
    if let Some(call) = call {
        store.cut_at_call(store.calls() + call);
    }
    let closed = mount.fs.close();
    assert!(closed.is_ok() || store.is_cut(), "unmounting: {closed:?}");
    env.remembered.note(&mount);
    let (usage, met) = (mount.fs.usage(), store.is_cut());
    let machine = match round.unmount {
        None => Machine::of(mount),
        Some(unmount) => {
            env.stats.cuts_after_unmount += 1;
            let call = store.cut_call().filter(|_| met);
            env.log(|| format!("the power fails when it is unmounted: {call:?}, {unmount:?}"));
            // The record of a clean unmount is written at its end.
            let lost_records = if closed.is_ok() { 0 } else { unmount.record };
            let survivors = Survivors {
                seed: unmount.survivor,
                lost_records,
            };
            power_cut(mount, survivors, env)
        }
    };
    if met {
        world.mount = Some(machine.open(&round.reopening, env));
        return;
    }
    let totals = machine.audit();
    assert_eq!(usage.contents_bytes, totals.pages * 4096, "used bytes");
    assert_eq!(usage.inodes, totals.inodes, "inodes");
    let mount = machine.open(&round.reopening, env);
    mount.compare_usage(&totals);
    world.mount = Some(mount);
}

/// The views after a crash must be those before or after the interrupted operation, and intact.
fn settle_views(mount: &Mount, history: &History) -> Vec<Kept> {
    let views = listed(mount);
    let is_one = |kept: &&Vec<Kept>| {
        let there = |kept: &Kept| {
            let mut views = views.iter();
            views.any(|v| (v.kind, &v.name) == (kept.kind, &kept.name))
        };
        kept.len() == views.len() && kept.iter().all(there)
    };
    let kept = history.kept.iter().find(is_one);
    let labels = history
        .kept
        .each_ref()
        .map(|kept| kept.iter().map(Kept::label).collect::<Vec<_>>());
    let kept = kept.unwrap_or_else(|| panic!("views {views:?}, not one of {labels:?}"));
    let mut kept = kept.clone();
    for one in &mut kept {
        let mut views = views.iter();
        let views = views.find(|v| (v.kind, &v.name) == (one.kind, &one.name));
        one.id = views.unwrap().id;
        one.compare(mount);
        one.see_attributes(mount);
    }
    kept
}
