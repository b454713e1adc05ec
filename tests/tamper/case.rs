//! One case: a modified volume, what is read from it, and whether that is permitted.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bilayer::errno::Errno;
use bilayer::fs::Filesystem;
use bilayer::fs::types::WriteFlags;
use bilayer::store::{OpenMode, Store, StorePath};

use crate::log;
use crate::pieces::{self, Held, Piece, Readings, SCRATCH};
use crate::support::{ROOT, USER, pattern};
use crate::table::{Outcome, Table};
use crate::victim::{self, Keystore, State, Victim};

/// A case that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// One in this many cases opens the volume again after it was used.
const AGAIN_EVERY: usize = 4;

/// The size of a page with everything that belongs to it, the distance between two pages, and the
/// bytes that are authenticated.
pub const META_STRIDE: usize = 4608;
pub const META_PAGE: usize = 4160;
pub const OBJECT_STRIDE: usize = 4096;

/// The metadata, or a checkpoint of it.
pub fn is_meta(path: &str) -> bool {
    path == "meta" || (path.starts_with("checkpoints") && !path.ends_with(".json"))
}

pub fn stride(path: &str) -> usize {
    if is_meta(path) {
        META_STRIDE
    } else {
        OBJECT_STRIDE
    }
}

/// A change of a file.
#[derive(Clone)]
pub enum Edit {
    /// These bytes are written there.
    Write {
        path: String,
        at: usize,
        bytes: Vec<u8>,
    },
    /// It is truncated, or extended with zeros.
    Len {
        path: String,
        len: usize,
    },
    /// It is replaced by another file.
    Whole {
        path: String,
        bytes: Vec<u8>,
    },
    Remove {
        path: String,
    },
}

impl Edit {
    pub fn path(&self) -> &str {
        match self {
            Self::Write { path, .. }
            | Self::Len { path, .. }
            | Self::Whole { path, .. }
            | Self::Remove { path } => path,
        }
    }

    /// True if a slot of the first page of `meta` was changed.
    pub fn touches_page_0(&self) -> bool {
        let (Self::Write { path, at, .. } | Self::Len { path, len: at }) = self else {
            return self.path() == "meta";
        };
        path == "meta" && *at < 2 * META_STRIDE
    }

    pub fn apply(&self, store: &dyn Store) {
        let path = StorePath::new(self.path());
        let file = || store.open(&path, OpenMode::ReadWrite).expect("open");
        match self {
            Self::Write { at, bytes, .. } => file().write_at(bytes, *at as u64).expect("write"),
            Self::Len { len, .. } => file().set_len(*len as u64).expect("set the length"),
            Self::Whole { bytes, .. } => {
                file().set_len(0).expect("set_len");
                file().write_at(bytes, 0).expect("write");
            }
            Self::Remove { .. } => store.unlink(&path).expect("unlink"),
        }
    }
}

/// Contents that may be read besides the stored ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stale {
    Nothing,
    /// Earlier contents.
    Older,
    /// Contents of a copy of the volume.
    OtherHistory,
}

/// A volume that is changed.
pub struct Case {
    /// The kind of file that is changed: a row of the table.
    pub of: String,
    /// The kind of change: a column of the table.
    pub change: &'static str,
    /// The exact change.
    pub what: String,
    pub edits: Vec<Edit>,
    pub stale: Stale,
    /// Other changes, beside those of the volume's files.
    pub names: Vec<String>,
}

/// Pages that were changed, by file.
pub type Changed = BTreeMap<String, BTreeSet<u64>>;

/// What a reader sees of a volume: once, and once more after it was used.
struct Seen {
    /// The error if it could not be opened.
    refused: Option<String>,
    readings: Vec<Readings>,
}

/// Tries all cases on copies of the volume in `state`, on all CPUs.
pub fn run(victim: &Arc<Victim>, state: fn(&Victim) -> &State, cases: Vec<Case>) -> Table {
    let queue = Mutex::new(cases.into_iter().enumerate());
    let table = Mutex::new(Table::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let keystore = Arc::new(victim.keystore.copy());
                let mut mine = Table::default();
                loop {
                    let next = queue.lock().expect("queue").next();
                    let Some((number, case)) = next else { break };
                    let store = state(victim).disk.copy_at(victim.name);
                    case.edits.iter().for_each(|edit| edit.apply(&*store));
                    let again = number % AGAIN_EVERY == 0 || crate::is_full();
                    let (outcome, what) =
                        attempt(victim, state(victim), &keystore, store, &case, again);
                    mine.add(&case.of, case.change, outcome, &what);
                }
                table.lock().expect("table").merge(mine);
            });
        }
    });
    table.into_inner().expect("table")
}

/// Tries one case, in a store that was changed already.
pub fn attempt(
    victim: &Arc<Victim>,
    state: &State,
    keystore: &Arc<Keystore>,
    store: Arc<dyn Store>,
    case: &Case,
    again: bool,
) -> (Outcome, String) {
    keystore.remember(&state.records);
    let mut changed = changed(state, &*store, &case.edits);
    for name in &case.names {
        changed.entry(name.clone()).or_default();
    }
    let (done, wait) = channel();
    let (victim_there, keystore) = (Arc::clone(victim), Arc::clone(keystore));
    std::thread::spawn(move || {
        log::begin();
        let seen = catch_unwind(AssertUnwindSafe(|| {
            examine(&store, &keystore, &victim_there, again)
        }));
        let _ = done.send((seen, log::end()));
    });
    let (outcome, why) = match wait.recv_timeout(PATIENCE) {
        Ok((Ok(seen), log)) => judge(victim, state, case, &changed, &seen, &log),
        Ok((Err(_), log)) => (Outcome::Panic, log),
        Err(RecvTimeoutError::Timeout) => (Outcome::Hang, String::new()),
        Err(RecvTimeoutError::Disconnected) => (Outcome::Panic, String::new()),
    };
    (outcome, format!("{} ({}): {why}", case.change, case.what))
}

/// Opens the volume, reads everything, changes something, closes it.
fn examine(store: &Arc<dyn Store>, keystore: &Keystore, victim: &Victim, again: bool) -> Seen {
    let mut readings = Vec::new();
    for _ in 0..=usize::from(again) {
        let fs = match victim::open(Arc::clone(store), keystore, victim.checkpoints) {
            Ok(fs) => fs,
            // The use has already reported that it does not open any more.
            Err(_) if !readings.is_empty() => break,
            Err(error) => {
                let refused = Some(error);
                return Seen { refused, readings };
            }
        };
        readings.push(pieces::look(&fs, &victim.held));
        let _ = make_something(&fs);
        let _ = fs.close();
    }
    let refused = None;
    Seen { refused, readings }
}

/// It must be usable, too.
fn make_something(fs: &Filesystem) -> Result<(), Errno> {
    let scratch = fs.lookup(ROOT, SCRATCH.as_bytes())?.node;
    let (attr, handle) = match fs.create(&USER, scratch, b"new", 0o644, libc::O_RDWR) {
        Err(Errno::EEXIST) => return fs.unlink(scratch, b"new"),
        made => made?,
    };
    let _ = fs.write(
        attr.node,
        handle,
        0,
        &pattern(9, 0, 9000),
        WriteFlags::default(),
    );
    let _ = fs.fsync(attr.node, handle, false);
    fs.release(attr.node, handle);
    Ok(())
}

/// Pages that differ from the original ones, as the store shows them now.
pub fn changed(state: &State, store: &dyn Store, edits: &[Edit]) -> Changed {
    let edited = |path: &str| edits.is_empty() || edits.iter().any(|edit| edit.path() == path);
    let mut changed = Changed::new();
    for (path, before) in &state.files {
        // Objects that share a file change together.
        if !edited(path) && !path.starts_with("objects") {
            continue;
        }
        let now = read(store, path).unwrap_or_default();
        let stride = stride(path);
        let counts = if is_meta(path) { META_PAGE } else { stride };
        let pages = before.chunks(stride).enumerate().filter(|(index, page)| {
            let counted = &page[..page.len().min(counts)];
            let now = now.get(index * stride..).unwrap_or_default();
            // Only whole strides count.
            now.len() < page.len() || !now.starts_with(counted)
        });
        let pages: BTreeSet<u64> = pages.map(|(index, _)| index as u64).collect();
        let other_size = !is_meta(path) && !path.starts_with("objects") && now != *before;
        if !pages.is_empty() || other_size {
            changed.insert(path.clone(), pages);
        }
    }
    changed
}

fn read(store: &dyn Store, path: &str) -> Option<Vec<u8>> {
    let file = store.open(&StorePath::new(path), OpenMode::Read).ok()?;
    // Holes of a terabyte contain nothing.
    let mut bytes = vec![0; file.len().ok()?.min(16 << 20) as usize];
    let read = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

/// Classifies the outcome, with the reason.
fn judge(
    victim: &Victim,
    state: &State,
    case: &Case,
    changed: &Changed,
    seen: &Seen,
    log: &str,
) -> (Outcome, String) {
    if let Some(error) = &seen.refused {
        let said = format!("{error}\n{log}");
        let named = changed.keys().any(|path| is_named(path, &said));
        let outcome = if named {
            Outcome::Refused
        } else {
            Outcome::Silent
        };
        return (outcome, said);
    }
    let expected = expected_errors(state, changed);
    let of_piece = |(piece, reading): (&Piece, &Result<Vec<u8>, Errno>)| {
        let outcome = match reading {
            Ok(bytes) => of_bytes(victim, case, changed, piece, bytes),
            Err(errno) => of_error(victim, case, changed, piece, *errno, log),
        };
        let outcome = match (&expected, outcome) {
            (Some(expected), Outcome::Error) if !expected.contains(piece) => Outcome::Spread,
            (Some(expected), Outcome::Right)
                if expected.contains(piece) && case.stale == Stale::Nothing =>
            {
                Outcome::Unnoticed
            }
            (_, outcome) => outcome,
        };
        (outcome, format!("{piece:?} {}\n{log}", shown(reading)))
    };
    let all = seen.readings.iter().flatten().map(of_piece);
    let worst = all.max_by_key(|(outcome, _)| *outcome);
    worst.unwrap_or((Outcome::Right, String::new()))
}

fn shown(reading: &Result<Vec<u8>, Errno>) -> String {
    match reading {
        Ok(bytes) if bytes.len() < 200 => String::from_utf8_lossy(bytes).into_owned(),
        Ok(bytes) => format!("{} bytes", bytes.len()),
        Err(errno) => format!("{errno:?}"),
    }
}

/// The pieces that cannot be read, if nothing but objects was changed.
fn expected_errors(state: &State, changed: &Changed) -> Option<BTreeSet<Piece>> {
    let objects_only = changed
        .keys()
        .all(|path| path.starts_with("objects") || path == "lock");
    objects_only.then(|| {
        let pages = changed
            .iter()
            .flat_map(|(path, pages)| pages.iter().map(move |p| (path, *p)));
        let used = pages.filter_map(|(path, page)| state.uses.get(&(path.clone(), page)));
        used.flatten().cloned().collect()
    })
}

fn of_bytes(
    victim: &Victim,
    case: &Case,
    changed: &Changed,
    piece: &Piece,
    bytes: &[u8],
) -> Outcome {
    if victim.held.get(piece).is_some_and(|held| held == bytes) {
        return Outcome::Right;
    }
    if case.stale != Stale::Nothing && was_stored(&victim.history, piece, bytes) {
        return Outcome::Older;
    }
    if is_mixed(case, changed) && is_less(victim, piece, bytes) {
        return Outcome::Missing;
    }
    if case.stale == Stale::OtherHistory && was_stored(&victim.other_history, piece, bytes) {
        return Outcome::OtherHistory;
    }
    Outcome::Wrong
}

fn of_error(
    victim: &Victim,
    case: &Case,
    changed: &Changed,
    piece: &Piece,
    errno: Errno,
    log: &str,
) -> Outcome {
    let was_not_there = || victim.history.iter().any(|held| !held.contains_key(piece));
    match errno {
        Errno::ENOENT | Errno::ENODATA if case.stale != Stale::Nothing && was_not_there() => {
            Outcome::Older
        }
        Errno::ENOENT | Errno::ENODATA if is_mixed(case, changed) => Outcome::Missing,
        Errno::ENOENT | Errno::ENODATA => Outcome::Gone,
        Errno::EIO if changed.keys().any(|path| is_named(path, log)) => Outcome::Error,
        Errno::EIO => Outcome::Silent,
        _ => Outcome::OtherErrno,
    }
}

/// True if pages of the metadata are from different commits.
fn is_mixed(case: &Case, changed: &Changed) -> bool {
    case.stale != Stale::Nothing && changed.contains_key("meta")
}

/// True if part of what was stored there is missing: names of a directory, or all bytes.
fn is_less(victim: &Victim, piece: &Piece, bytes: &[u8]) -> bool {
    if !piece.item.ends_with('/') {
        return is_of_file(piece) && bytes.iter().all(|byte| *byte == 0);
    }
    let states = victim.history.iter().chain(&victim.other_history);
    let listings: Vec<&Vec<u8>> = states.filter_map(|held| held.get(piece)).collect();
    let mut names = bytes
        .split(|byte| *byte == b'\n')
        .filter(|name| !name.is_empty());
    names.all(|name| {
        let mut listed = listings
            .iter()
            .flat_map(|listing| listing.split(|byte| *byte == b'\n'));
        listed.any(|listed| listed == name)
    })
}

/// True for contents of a file.
fn is_of_file(piece: &Piece) -> bool {
    !piece.item.ends_with(['#', '/', '>']) && !piece.item.contains('@')
}

/// True if the piece had these contents at some time, or would have had them if the file had been
/// truncated or extended then: pages and sizes are stored in different places.
fn was_stored(history: &[Held], piece: &Piece, bytes: &[u8]) -> bool {
    // The snapshot shows contents that were live.
    let live = piece.item.strip_prefix(pieces::SNAPSHOT).map(|item| Piece {
        item: item.trim_start_matches('/').to_owned(),
        number: piece.number,
    });
    let names = [Some(piece), live.as_ref()];
    let stored = |held| {
        names
            .into_iter()
            .flatten()
            .filter_map(move |piece| Held::get(held, piece))
    };
    history.iter().flat_map(stored).any(|held| {
        let same = bytes.iter().zip(held).take_while(|(a, b)| a == b).count();
        let grown = bytes[same.min(bytes.len())..].iter().all(|byte| *byte == 0);
        bytes == held || (is_of_file(piece) && grown)
    })
}

/// True when a line names the file: an object by its id.
fn is_named(path: &str, said: &str) -> bool {
    match path {
        "meta" => {
            let mut words = said.split(|c: char| !c.is_alphanumeric());
            words.any(|word| word == "meta" || word == "metadata")
        }
        // With another volume's superblock it is a volume whose metadata belongs to another.
        "volume.json" => said.contains(path) || said.contains("the metadata file of the volume"),
        path => path
            .rsplit('/')
            .next()
            .is_some_and(|name| said.contains(name)),
    }
}
