//! Users that work concurrently, with the commit timer and the background thread, until the power
//! fails.
//!
//! These scenarios are not repeatable, so less is known about the result than in those that are.
//! Each user has a directory of their own, in which names are as after some operation since the
//! user's last fsync, and contents are old or new. All users write to one file, each to pages of
//! their own, with increasing numbers. One thread takes and deletes snapshots, which contain those
//! pages as they were at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bilayer::errno::Errno;
use bilayer::fs::snapshots::{ViewError, ViewKind};
use bilayer::fs::types::{DirentRef, FileKind, Handle, NodeId, RenameFlags, WriteFlags};
use bilayer::fs::{AccessTimes, FilesystemOptions};
use bilayer::store::faulty::WriteUnit;

use crate::history::History;
use crate::machine::{Environment, Survivors, kill, mount_fresh, power_cut};
use crate::panics::caught;
use crate::plan::Draw;
use crate::stats::Stats;
use crate::support::model::{Inode, Model, Number};
use crate::support::operation::NAMES;
use crate::support::{Mount, PAGE, ROOT, USER, pattern, quiet};
use crate::{on_lanes, threaded_lanes};

const USERS: u64 = 3;
/// Operations of each user.
const OPERATIONS: u64 = 120;
/// Pages of the common file.
const PAGES: u64 = 24;
/// Range of calls of the store from which the end is drawn.
const CALLS: u64 = 1_500;
/// Name of the common file.
const COMMON: &[u8] = b"common";

/// Numbers of one page of the common file: the last one whose write was begun, completed, and made
/// durable.
#[derive(Default)]
struct Count {
    begun: AtomicU64,
    written: AtomicU64,
    durable: AtomicU64,
}

/// The possible numbers of each page in a snapshot: minimum and maximum.
type Bounds = Vec<(u64, u64)>;

/// State shared by all users.
struct Common<'a> {
    mount: &'a Mount,
    node: NodeId,
    counts: Vec<Count>,
}

/// One user's directory beside a model of it.
struct User {
    directory: NodeId,
    model: Model,
    history: History,
    /// A file whose creation the power failure interrupted: its number is unknown until it is
    /// found.
    doubt: Option<Vec<u8>>,
}

/// The snapshots that the snapshot thread has taken.
#[derive(Default)]
struct Snapshots {
    kept: BTreeMap<String, Bounds>,
    /// A snapshot that may exist.
    doubt: Option<(String, Bounds)>,
}

/// Runs this many scenarios. True if nothing was found.
pub fn run(scenarios: u64) -> bool {
    let begin = std::time::Instant::now();
    let progress = std::sync::Mutex::new((Stats::default(), 0u64));
    on_lanes(threaded_lanes(), 0..scenarios, |seed| {
        let mut stats = Stats {
            seeds: 1,
            ..Stats::default()
        };
        let result = caught(|| run_scenario(seed, &mut stats));
        let progress = &mut *progress.lock().unwrap();
        progress.0 += stats;
        if let Err(failure) = result {
            progress.1 += 1;
            println!(
                "threads, seed {seed}: {}: {}",
                failure.place, failure.message
            );
        }
        progress.1 < 3
    });
    let (stats, failures) = progress.into_inner().unwrap();
    let secs = begin.elapsed().as_secs();
    println!("simulator: {USERS} users at the same time: {stats}: {failures} failures, {secs} s");
    failures == 0
}

fn run_scenario(seed: u64, stats: &mut Stats) {
    let mut draw = Draw::new(seed);
    let mount = mount_fresh(WriteUnit::Page, options());
    let mut users = Vec::new();
    for user in 0..USERS {
        let directory = mount.mkdir(ROOT, &format!("user{user}"));
        let model = Model::new();
        let history = History::new(&model, &[]);
        users.push(User {
            directory,
            model,
            history,
            doubt: None,
        });
    }
    let node = mount.file(ROOT, std::str::from_utf8(COMMON).unwrap(), b"");
    mount.truncate(node, PAGES * PAGE as u64).unwrap();
    mount.fs.sync().unwrap();
    let counts = (0..PAGES).map(|_| Count::default()).collect();
    let common = Common {
        mount: &mount,
        node,
        counts,
    };
    let store = mount.store.clone();
    store.cut_at_call(store.calls() + 1 + draw.below(CALLS));
    let seeds: Vec<u64> = (0..=USERS).map(|_| draw.next()).collect();
    let (snapshots, operations) = work(&common, &mut users, &seeds);
    stats.operations += operations;
    let counts = common.counts;
    let (kills, seed) = (draw.one_in(4), draw.next());
    let mut env = Environment::new(stats);
    let machine = if kills {
        env.stats.kills += 1;
        kill(mount)
    } else {
        env.stats.cuts += 1;
        let survivors = Survivors {
            seed,
            lost_records: 0,
        };
        power_cut(mount, survivors, &mut env)
    };
    let mount = machine.open(&[], &mut env);
    look(&mount, &mut users, &counts, &snapshots, env.stats);
    mount.fs.sync().unwrap();
    mount.finish();
}

fn options() -> FilesystemOptions {
    FilesystemOptions {
        background: true,
        access_times: AccessTimes::Relative,
        commit_interval: Duration::from_millis(7),
        ..quiet()
    }
}

/// Runs all users until the power fails. Returns the known snapshots and the number of operations.
fn work(common: &Common<'_>, users: &mut [User], seeds: &[u64]) -> (Snapshots, u64) {
    let done = AtomicU64::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    let snapshots = std::thread::scope(|scope| {
        let done = &done;
        for (number, (user, seed)) in users.iter_mut().zip(seeds).enumerate() {
            let failed = &failed;
            scope.spawn(move || {
                let draw = Draw::new(*seed);
                let worked = caught(|| user.work(common, number as u64, draw, done));
                failed.lock().unwrap().extend(worked.err());
            });
        }
        let mut draw = Draw::new(seeds[users_of(seeds)]);
        let mut snapshots = Snapshots::default();
        let taken = caught(|| snapshots.work(common, &mut draw));
        failed.lock().unwrap().extend(taken.err());
        snapshots
    });
    if let Some(failure) = failed.into_inner().unwrap().into_iter().next() {
        panic!("{}: {}", failure.place, failure.message);
    }
    (snapshots, done.into_inner())
}

const fn users_of(seeds: &[u64]) -> usize {
    seeds.len() - 1
}

impl User {
    fn work(&mut self, common: &Common<'_>, user: u64, mut draw: Draw, done: &AtomicU64) {
        for _ in 0..OPERATIONS {
            let before = self.model.clone();
            let result = match draw.below(12) {
                0..=2 => common.write_page(user, &mut draw),
                3 => common.fsync(),
                _ => self.operate(common.mount, &mut draw),
            };
            // An operation that failed may have taken effect.
            self.history.note(&self.model);
            done.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = result {
                self.history.note(&before);
                assert!(common.mount.store.is_cut(), "{error:?} without a cut");
                return;
            }
        }
    }

    /// Runs one operation in the user's own directory and in the model.
    fn operate(&mut self, mount: &Mount, draw: &mut Draw) -> Result<(), Errno> {
        let name = NAMES[draw.below(NAMES.len() as u64) as usize];
        let other = NAMES[draw.below(NAMES.len() as u64) as usize];
        let there = self.model.entry(1, name).ok();
        match (draw.below(11), there) {
            (_, None) => self.create(mount, name),
            (0..=3, Some(file)) => {
                let (offset, len) = (draw.below(30_000), draw.below(9_000));
                let bytes = pattern(draw.next() as u8, offset, len as usize);
                self.model.write(file, offset as usize, &bytes);
                opened(mount, file, |node, handle| {
                    let written =
                        mount
                            .fs
                            .write(node, handle, offset, &bytes, WriteFlags::default());
                    written.map(|_| ())
                })
            }
            (4, Some(file)) => {
                let size = draw.below(20_000);
                self.model.truncate(file, size as usize);
                mount.truncate(NodeId(file), size).map(|_| ())
            }
            (5 | 6, Some(_)) => self.rename(mount, name, other),
            (7, Some(_)) => {
                self.model.unlink(1, name)?;
                self.model.forget_unused(&[]);
                mount.fs.unlink(self.directory, name)
            }
            (8, Some(file)) => {
                if self.model.link(file, 1, other).is_err() {
                    return Ok(());
                }
                let linked = mount.fs.link(NodeId(file), self.directory, other)?;
                mount.fs.forget(linked.node, 1);
                Ok(())
            }
            (_, Some(file)) => {
                opened(mount, file, |node, handle| {
                    mount.fs.fsync(node, handle, false)
                })?;
                self.history.committed(&self.model);
                self.history.synced(&self.model, file);
                Ok(())
            }
        }
    }

    fn create(&mut self, mount: &Mount, name: &[u8]) -> Result<(), Errno> {
        let fs = &mount.fs;
        let made = fs.create(&USER, self.directory, name, 0o640, libc::O_RDWR);
        let (attr, handle) = made.inspect_err(|_| self.doubt = Some(name.to_vec()))?;
        fs.forget(attr.node, 1);
        fs.release(attr.node, handle);
        let inode = Inode::new(FileKind::Regular, 0o640);
        self.model.make(1, name, attr.node.0, inode);
        Ok(())
    }

    fn rename(&mut self, mount: &Mount, name: &[u8], to: &[u8]) -> Result<(), Errno> {
        let moved = self.model.entry(1, name)?;
        let replaced = self.model.entry(1, to).ok();
        let flags = RenameFlags::default();
        self.model.rename((1, name), (1, to), flags)?;
        self.model.forget_unused(&[]);
        if replaced.is_some_and(|replaced| replaced != moved) {
            self.history.renamed_over(moved);
        }
        let directory = self.directory;
        mount.fs.rename(
            &USER,
            DirentRef::new(directory, name),
            DirentRef::new(directory, to),
            flags,
        )
    }

    /// Compares the user's directory with the model.
    fn look(&mut self, mount: &Mount, stats: &mut Stats) {
        let mut recovered = Model::new();
        for name in mount.names(self.directory) {
            let attr = mount.lookup(self.directory, name.as_bytes()).unwrap();
            let number: Number = attr.node.0;
            if recovered.inodes.contains_key(&number) {
                recovered.link(number, 1, name.as_bytes()).unwrap();
                continue;
            }
            let mut inode = Inode::new(attr.kind, attr.perm);
            inode.data = Arc::new(mount.contents(attr.node));
            recovered.make(1, name.as_bytes(), number, inode);
            stats.files += 1;
        }
        let made = self.doubt.as_ref();
        let made = made.and_then(|name| Some((name, recovered.entry(1, name).ok()?)));
        if let Some((name, number)) = made {
            let inode = Inode::new(FileKind::Regular, 0o640);
            self.model.make(1, name, number, inode);
            self.history.note(&self.model);
        }
        self.history.check(&recovered, &BTreeMap::new());
    }
}

/// Opens a file for an action.
fn opened(
    mount: &Mount,
    file: Number,
    action: impl FnOnce(NodeId, Handle) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let node = NodeId(file);
    let handle = mount.fs.open_file(&USER, node, libc::O_RDWR)?;
    let done = action(node, handle);
    mount.fs.release(node, handle);
    done
}

impl Common<'_> {
    /// Fills one of the user's pages with the next number.
    fn write_page(&self, user: u64, draw: &mut Draw) -> Result<(), Errno> {
        let page = draw.below(PAGES / USERS) * USERS + user;
        let count = &self.counts[page as usize];
        let number = count.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = number.to_le_bytes().repeat(PAGE / 8);
        opened(self.mount, self.node.0, |node, handle| {
            let offset = page * PAGE as u64;
            let written = self
                .mount
                .fs
                .write(node, handle, offset, &bytes, WriteFlags::default());
            written.map(|_| ())
        })?;
        count.written.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Syncs the shared file.
    fn fsync(&self) -> Result<(), Errno> {
        let written = self.written();
        opened(self.mount, self.node.0, |node, handle| {
            self.mount.fs.fsync(node, handle, false)
        })?;
        for (count, written) in self.counts.iter().zip(written) {
            count.durable.fetch_max(written, Ordering::SeqCst);
        }
        Ok(())
    }

    fn written(&self) -> Vec<u64> {
        let counts = self.counts.iter();
        counts
            .map(|count| count.written.load(Ordering::SeqCst))
            .collect()
    }

    fn begun(&self) -> Vec<u64> {
        let counts = self.counts.iter();
        counts
            .map(|count| count.begun.load(Ordering::SeqCst))
            .collect()
    }
}

impl Snapshots {
    /// Takes and deletes snapshots, until the power fails or there are enough.
    fn work(&mut self, common: &Common<'_>, draw: &mut Draw) {
        for turn in 0..OPERATIONS / 8 {
            std::thread::sleep(Duration::from_micros(draw.below(4_000)));
            let result = if self.kept.len() > 2 || (draw.one_in(3) && !self.kept.is_empty()) {
                self.drop_one(common, draw)
            } else {
                self.take(common, format!("s{turn}"))
            };
            if let Err(error) = result {
                assert!(common.mount.store.is_cut(), "{error} without a cut");
                return;
            }
        }
    }

    fn take(&mut self, common: &Common<'_>, name: String) -> Result<(), ViewError> {
        let least = common.written();
        let fs = &common.mount.fs;
        let taken = fs.create_view(ViewKind::Snapshot, &name, None, "");
        let bounds: Bounds = least.into_iter().zip(common.begun()).collect();
        match taken {
            Ok(_) => drop(self.kept.insert(name, bounds)),
            Err(error) => {
                self.doubt = Some((name, bounds));
                return Err(error);
            }
        }
        Ok(())
    }

    fn drop_one(&mut self, common: &Common<'_>, draw: &mut Draw) -> Result<(), ViewError> {
        let at = draw.below(self.kept.len() as u64) as usize;
        let name = self.kept.keys().nth(at).unwrap().clone();
        let bounds = self.kept.remove(&name).unwrap();
        let dropped = common.mount.fs.delete_view(ViewKind::Snapshot, &name);
        dropped.inspect_err(|_| self.doubt = Some((name, bounds)))
    }
}

/// Compares the recovered state with the possible ones.
fn look(
    mount: &Mount,
    users: &mut [User],
    counts: &[Count],
    snapshots: &Snapshots,
    stats: &mut Stats,
) {
    users.iter_mut().for_each(|user| user.look(mount, stats));
    let common = mount.lookup(ROOT, COMMON).unwrap().node;
    let now = counts.iter().map(|count| {
        let load = |of: &AtomicU64| of.load(Ordering::SeqCst);
        (load(&count.durable), load(&count.begun))
    });
    check_pages("the file", &mount.contents(common), &now.collect());
    let names = mount.fs.views(ViewKind::Snapshot).unwrap();
    let names: BTreeSet<String> = names.into_iter().map(|view| view.name).collect();
    let doubt = snapshots.doubt.iter().map(|(name, bounds)| (name, bounds));
    let known: BTreeMap<&String, &Bounds> = snapshots.kept.iter().chain(doubt).collect();
    for name in snapshots.kept.keys() {
        assert!(
            names.contains(name),
            "snapshot {name} is not there: {names:?}"
        );
    }
    for name in &names {
        let bounds = known.get(name);
        let bounds = bounds.unwrap_or_else(|| panic!("snapshot {name} came back"));
        let node = mount.at(&format!(".snapshots/{name}/common"));
        check_pages(name, &mount.contents(node), bounds);
        stats.views += 1;
    }
}

fn check_pages(what: &str, bytes: &[u8], bounds: &Bounds) {
    for (page, (bytes, (least, most))) in bytes.chunks(PAGE).zip(bounds).enumerate() {
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let uniform = bytes.chunks(8).all(|part| part == &bytes[..8]);
        assert!(uniform, "{what}: page {page} is torn");
        assert!(
            (*least..=*most).contains(&number),
            "{what}: page {page} has number {number}, and must have {least} to {most}"
        );
    }
}
