//! One fault in a scripted scenario, at every call of the store in turn: the call fails with EIO or
//! ENOSPC, a write is short, or the power fails.
//!
//! In every case: nothing panics; everything that earlier steps made durable exists; a step that
//! cannot be completed reports it; if contents or metadata could not be synced, writing ends and
//! the log says why; and the volume opens again.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bilayer::errno::Errno;
use bilayer::fs::snapshots::ViewKind;
use bilayer::store::StorePath;
use bilayer::store::faulty::{Call, CallKind, Fault, WriteUnit};
use tracing_subscriber::fmt::MakeWriter;

use crate::machine::{Machine, Survivors, kill, mount_fresh, options, power_cut};
use crate::panics::{Failure, caught};
use crate::script::{COPY, DEPLOYMENT, STEPS, Script, State, check, tree};
use crate::support::{Mount, ROOT, directory_of, try_open_volume};
use crate::{lanes, on_lanes};

/// The fault of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Cut,
    Eio,
    Enospc,
    Short,
}

const KINDS: [Kind; 4] = [Kind::Cut, Kind::Eio, Kind::Enospc, Kind::Short];

/// Bytes that a short write stores. A kernel stores whole pages, or none of one.
const SHORT_BYTES: usize = 4096;

/// A call as it was when nothing failed.
type Known = (CallKind, String);

/// Number of faults that were tried, and their effects.
#[derive(Default)]
struct Counts {
    tried: [AtomicU64; KINDS.len()],
    reported: AtomicU64,
    latched: AtomicU64,
    harmless: AtomicU64,
}

/// Tries faults, the rarer kinds at one call in `stride`, the others at four times as many. True if
/// nothing was found.
pub fn run(stride: usize) -> bool {
    let begin = std::time::Instant::now();
    let (calls, failures, counts) = search(stride, &KINDS, 20);
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let [cuts, eio, enospc, short] = counts.tried.each_ref().map(count);
    println!(
        "simulator: single faults at {calls} calls of a script: {cuts} power cuts, {eio} EIO, \
         {enospc} ENOSPC, {short} short writes; {} reported to the caller, {} ended writing, \
         {} harmless: {} failures, {} s",
        count(&counts.reported),
        count(&counts.latched),
        count(&counts.harmless),
        failures.len(),
        begin.elapsed().as_secs(),
    );
    failures.is_empty()
}

/// The first failure of a program with a planted bug.
pub fn find() -> Option<String> {
    let (_, failures, _) = search(1, &[Kind::Eio], 1);
    let first = failures.into_iter().next();
    first.map(|failure| {
        format!(
            "faults: {:.100}",
            failure.lines().next().unwrap_or_default()
        )
    })
}

fn search(stride: usize, kinds: &[Kind], enough: usize) -> (usize, Vec<String>, Counts) {
    let (states, calls) = undisturbed();
    let counts = Counts::default();
    let mut scenarios = Vec::new();
    for (at, (call, _)) in calls.iter().enumerate() {
        for kind in kinds {
            let often = matches!(kind, Kind::Cut | Kind::Eio);
            let every = if often { stride.div_ceil(4) } else { stride };
            let is_turn = (at + *kind as usize).is_multiple_of(every);
            if is_turn && kind.happens_to(*call) {
                scenarios.push((at as u64 + 1, *kind));
            }
        }
    }
    let failures = Mutex::new(Vec::new());
    on_lanes(lanes(), 0..scenarios.len() as u64, |at| {
        let (call, kind) = scenarios[at as usize];
        if let Err(failure) = caught(|| run_scenario(call, kind, &states, &counts)) {
            let (step, path) = &calls[call as usize - 1];
            let Failure { place, message } = failure;
            let text = format!("{kind:?} in call {call} ({step:?} of {path}): {place}: {message}");
            if enough > 1 {
                println!("{text}");
            }
            failures.lock().unwrap().push(text);
        }
        failures.lock().unwrap().len() < enough
    });
    (calls.len(), failures.into_inner().unwrap(), counts)
}

impl Kind {
    /// True if the kernel might answer a call in this way.
    const fn happens_to(self, call: CallKind) -> bool {
        match self {
            Self::Cut | Self::Eio => true,
            Self::Short => matches!(call, CallKind::Write),
            Self::Enospc => !matches!(
                call,
                CallKind::Open
                    | CallKind::Read
                    | CallKind::Info
                    | CallKind::List
                    | CallKind::Space
                    | CallKind::Lock
                    | CallKind::Unlink
            ),
        }
    }
}

/// All states of a scenario without a fault, and the calls of another one: reading the states in
/// between fills caches, which changes the calls.
fn undisturbed() -> (Vec<State>, Vec<Known>) {
    let script = Script(mount_fresh(WriteUnit::Page, options()));
    let mut states = vec![State::of(&script.0)];
    for step in STEPS {
        let done = (step.act)(&script);
        assert_eq!(done, Ok(()), "{}", step.what);
        states.push(State::of(&script.0));
    }
    script.0.finish();

    let script = Script(mount_fresh(WriteUnit::Page, options()));
    let calls: Arc<Mutex<Vec<Known>>> = Arc::default();
    let noted = Arc::clone(&calls);
    let note = move |call: &Call<'_>| {
        let known = (call.kind, call.path.as_str().to_owned());
        noted.lock().unwrap().push(known);
        false
    };
    script.0.store.fail_when(note, Fault::Error(Errno::EIO));
    let done = STEPS.iter().try_for_each(|step| (step.act)(&script));
    assert_eq!(done, Ok(()));
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    (states, calls)
}

/// A scenario with one fault, and what follows it.
fn run_scenario(call: u64, kind: Kind, states: &[State], counts: &Counts) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let script = Script(mount_fresh(WriteUnit::Page, options()));
        let met = arm(&script.0, call, kind);
        let mut failed = None;
        for (at, step) in STEPS.iter().enumerate() {
            if let Err(error) = (step.act)(&script) {
                failed = Some((at, error));
                break;
            }
        }
        let met = met.lock().unwrap().take();
        counts.tried[kind as usize].fetch_add(
            u64::from(met.is_some() || script.0.store.is_cut()),
            Ordering::Relaxed,
        );
        if kind != Kind::Cut {
            check_report(&script, failed, met.as_ref(), &log, counts);
        }
        let at = failed.map_or(STEPS.len() - 1, |(at, _)| at);
        let pair = match failed {
            Some(_) => (&states[at], &states[at + 1]),
            None => (&states[at + 1], &states[at + 1]),
        };
        let what = format!("in {:?}, {failed:?}, {met:?}", STEPS[at].what);
        let mount = begin_again(call, script.0);
        let state = State::of(&mount);
        check(&what, &STEPS[at], &state, pair);
        check_copy(&mount, at, failed.is_some(), states);
        go_on(mount, &state, &what);
    });
}

/// Makes the call fail. The returned value is filled with what it was.
fn arm(mount: &Mount, call: u64, kind: Kind) -> Arc<Mutex<Option<Known>>> {
    let store = &mount.store;
    let number = store.calls() + call;
    let met: Arc<Mutex<Option<Known>>> = Arc::default();
    let fault = match kind {
        Kind::Cut => {
            store.cut_at_call(number);
            return met;
        }
        Kind::Eio => Fault::Error(Errno::EIO),
        Kind::Enospc => Fault::Error(Errno::ENOSPC),
        Kind::Short => Fault::ShortWrite { bytes: SHORT_BYTES },
    };
    let noted = Arc::clone(&met);
    let rule = move |call: &Call<'_>| {
        let is_it = call.number == number;
        if is_it {
            *noted.lock().unwrap() = Some((call.kind, call.path.as_str().to_owned()));
        }
        is_it
    };
    store.fail_when(rule, fault);
    met
}

/// A failure must reach the caller. After a failed sync nothing is written any more, and the log
/// says so; after any other failure the filesystem keeps working, or reports that it does not.
fn check_report(
    script: &Script,
    failed: Option<(usize, Errno)>,
    met: Option<&Known>,
    log: &Log,
    counts: &Counts,
) {
    let latched = script.0.fs.usage().latched;
    let logged = log.contains("read-only from now on");
    assert_eq!(latched.is_some(), logged, "the log says when writing ends");
    let of_data = |path: &str| path == "vol/meta" || path.starts_with("vol/objects/");
    let failed_sync = met.is_some_and(|(kind, path)| *kind == CallKind::Sync && of_data(path));
    match failed {
        Some(_) if latched.is_some() => {
            counts.latched.fetch_add(1, Ordering::Relaxed);
            let handle = script
                .0
                .fs
                .open_file(&crate::support::USER, ROOT, libc::O_RDWR);
            assert_eq!(handle, Err(Errno::EROFS), "nothing is changed any more");
        }
        Some((at, error)) => {
            counts.reported.fetch_add(1, Ordering::Relaxed);
            assert!(!failed_sync, "{met:?}: {error:?}, and writing continues");
            let synced = script.0.fs.sync();
            assert!(synced.is_ok(), "after step {at} and {error:?}: {synced:?}");
        }
        None => {
            counts.harmless.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends the mount in one of three ways, and opens the volume again.
fn begin_again(call: u64, mount: Mount) -> Mount {
    let mut stats_of_run = crate::stats::Stats::default();
    let mut env = crate::machine::Environment::new(&mut stats_of_run);
    if !mount.store.is_cut() {
        mount.store.clear_faults();
    }
    let machine = match call % 3 {
        0 => kill(mount),
        1 if !mount.store.is_cut() => {
            let latched = mount.fs.usage().latched;
            let closed = mount.fs.close();
            assert_eq!(closed.is_ok(), latched.is_none(), "{closed:?}");
            Machine::of(mount)
        }
        _ => {
            let survivors = Survivors {
                seed: call,
                lost_records: 0,
            };
            power_cut(mount, survivors, &mut env)
        }
    };
    machine.open(&[], &mut env)
}

/// A deployed volume is complete from the moment it was reported.
fn check_copy(mount: &Mount, at: usize, failed: bool, states: &[State]) {
    let deployment = STEPS
        .iter()
        .position(|step| step.what == DEPLOYMENT)
        .unwrap();
    if at < deployment {
        return;
    }
    let path = StorePath::new(COPY);
    let opened = || {
        try_open_volume(
            directory_of(&mount.store, &path),
            mount.keystore.path(),
            false,
        )
    };
    if at == deployment && failed && opened().is_err() {
        let script = Script(mount.clone());
        assert_eq!(script.deploy("image"), Ok(()), "the next attempt");
    }
    let (store, keystore) = (mount.store.clone(), Arc::clone(&mount.keystore));
    let copy = Mount::open_at(store, path, keystore, options()).unwrap();
    let expected = &states[deployment].views[".images/image"];
    assert!(tree(&copy, ROOT) == *expected, "the deployed volume");
    copy.finish();
}

/// The volume works normally again: it can be written to, its state persists over another mount,
/// and when all views are deleted nothing is left of them.
fn go_on(mount: Mount, before: &State, what: &str) {
    let script = Script(mount);
    assert_eq!(script.write("after", 0, &[7; 10_000]), Ok(()), "{what}");
    let mount = kill(script.0).open(
        &[],
        &mut crate::machine::Environment::new(&mut crate::stats::Stats::default()),
    );
    mount.fs.unlink(ROOT, b"after").unwrap();
    assert!(State::of(&mount) == *before, "{what}: once more");
    for kind in [ViewKind::Snapshot, ViewKind::Image] {
        for view in mount.fs.views(kind).unwrap() {
            mount.fs.delete_view(kind, &view.name).unwrap();
        }
    }
    mount.fs.finish_purge().unwrap();
    assert!(tree(&mount, ROOT) == before.live, "{what}: after all views");
    mount.finish();
}

/// The log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn contains(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text)
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
