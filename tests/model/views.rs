//! Threads that write, sync, rename and truncate while another one takes and deletes snapshots
//! continuously.
//!
//! Each writer counts: it writes the number to file A, then to B, then to a name, then to a small
//! file C, each after the previous call has returned. A snapshot is one instant of all that: A ≥ B
//! ≥ name ≥ C ≥ A - 1. It contains every call that had returned when it was requested, and does not
//! change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{DirentRef, Fallocate, NodeId, RenameFlags};

use crate::support::{Mount, PAGE, ROOT, USER, quiet};

const WRITERS: usize = 3;
/// Number of snapshots at a time.
const KEPT: usize = 4;
const RUN: Duration = Duration::from_secs(5);
const WATCHDOG: Duration = Duration::from_secs(60);

/// The visible state of a writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counts {
    first: u64,
    second: u64,
    name: u64,
    small: u64,
}

/// The progress of a writer.
#[derive(Default)]
struct Progress {
    begun: AtomicU64,
    done: AtomicU64,
}

fn page_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(PAGE / 8)
}

fn number_in(page: &[u8]) -> u64 {
    let words: Vec<u64> = page
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert!(
        words.iter().all(|word| *word == words[0]),
        "a page is a mixture"
    );
    words[0]
}

fn name_of(number: u64) -> String {
    format!("at-{number}")
}

/// Counts until `stop` is set.
fn write(mount: &Mount, dir: NodeId, progress: &Progress, stop: &AtomicBool) {
    let (first, first_handle) = mount.create(dir, "a");
    let (second, second_handle) = mount.create(dir, "b");
    let (small, small_handle) = mount.create(dir, "c");
    mount.file(dir, &name_of(0), b"");
    let fs = &mount.fs;
    for number in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        progress.begun.store(number, Ordering::SeqCst);
        mount.put(first, first_handle, 0, &page_of(number));
        mount.put(second, second_handle, 0, &page_of(number));
        let (from, to) = (name_of(number - 1), name_of(number));
        let flags = RenameFlags::default();
        fs.rename(
            &USER,
            DirentRef::new(dir, from.as_bytes()),
            DirentRef::new(dir, to.as_bytes()),
            flags,
        )
        .unwrap();
        mount.put(small, small_handle, 0, &number.to_le_bytes());
        progress.done.store(number, Ordering::SeqCst);
        let far = (1 + number % 5) * PAGE as u64;
        match number % 11 {
            0 => fs.fsync(first, first_handle, false).unwrap(),
            1 => mount.put(first, first_handle, far, &page_of(number)),
            2 => drop(mount.truncate(first, PAGE as u64).unwrap()),
            3 => mount.put(second, second_handle, far, &page_of(number)),
            4 => {
                let len = 3 * PAGE as u64;
                let mode = Fallocate::PunchHole;
                fs.fallocate(second, second_handle, PAGE as u64, len, mode)
                    .unwrap();
            }
            5 => drop(mount.truncate(second, 6 * PAGE as u64).unwrap()),
            6 => fs.fsync(small, small_handle, false).unwrap(),
            _ => {}
        }
    }
    fs.release(first, first_handle);
    fs.release(second, second_handle);
    fs.release(small, small_handle);
}

/// The state of one writer in a view; `None` if the writer had not begun.
fn counts(mount: &Mount, top: NodeId, writer: usize) -> Counts {
    let dir = mount
        .lookup(top, format!("w{writer}").as_bytes())
        .unwrap()
        .node;
    let contents = |name: &[u8]| match mount.lookup(dir, name) {
        Ok(attr) => mount.contents(attr.node),
        Err(_) => Vec::new(),
    };
    let number = |bytes: &[u8]| bytes.get(..PAGE).map_or(0, number_in);
    let names = mount.names(dir);
    let numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_prefix("at-"))
        .map(|number| number.parse().unwrap())
        .collect();
    assert!(numbers.len() <= 1, "one file has one name: {names:?}");
    let small = contents(b"c");
    Counts {
        first: number(&contents(b"a")),
        second: number(&contents(b"b")),
        name: numbers.first().copied().unwrap_or(0),
        small: small
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word)),
    }
}

impl Counts {
    fn check(&self, (done, begun): (u64, u64)) {
        let Self {
            first,
            second,
            name,
            small,
        } = *self;
        let ordered = first >= second && second >= name && name >= small && small + 1 >= first;
        assert!(ordered, "not one instant: {self:?}");
        assert!(small >= done, "{done} was done before: {self:?}");
        assert!(first <= begun, "{begun} was the last begun: {self:?}");
    }
}

struct Taken {
    name: String,
    counts: Vec<Counts>,
}

impl Taken {
    fn look(mount: &Mount, name: &str) -> Vec<Counts> {
        let top = mount.at(&format!(".snapshots/{name}"));
        (0..WRITERS)
            .map(|writer| counts(mount, top, writer))
            .collect()
    }

    fn drop(self, mount: &Mount) {
        assert_eq!(Self::look(mount, &self.name), self.counts, "it changed");
        mount
            .fs
            .delete_view(ViewKind::Snapshot, &self.name)
            .unwrap();
    }
}

/// Takes and drops snapshots until `stop` is set; returns those that are left.
fn take(mount: &Mount, progress: &[Progress], stop: &AtomicBool) -> (Vec<Taken>, u64) {
    let mut kept: Vec<Taken> = Vec::new();
    let mut taken = 0;
    while !stop.load(Ordering::SeqCst) {
        let done: Vec<u64> = progress
            .iter()
            .map(|p| p.done.load(Ordering::SeqCst))
            .collect();
        taken += 1;
        let name = format!("s{taken}");
        mount
            .fs
            .create_view(ViewKind::Snapshot, &name, None, "")
            .unwrap();
        let begun = progress.iter().map(|p| p.begun.load(Ordering::SeqCst));
        let bounds: Vec<(u64, u64)> = done.into_iter().zip(begun).collect();
        let counts = Taken::look(mount, &name);
        for (counts, bounds) in counts.iter().zip(bounds) {
            counts.check(bounds);
        }
        kept.push(Taken { name, counts });
        if kept.len() > KEPT {
            // The oldest, the newest and some between.
            let which = (taken as usize * 7) % kept.len();
            kept.remove(which).drop(mount);
        }
        if taken % 16 == 0 {
            mount.fs.finish_purge().unwrap();
        }
    }
    (kept, taken)
}

#[test]
fn a_snapshot_is_one_instant() {
    let mut options = quiet();
    options.commit_interval = Duration::from_millis(20);
    options.open_objects = 4;
    let mount = Arc::new(Mount::with(None, options));
    let progress: Arc<Vec<Progress>> =
        Arc::new((0..WRITERS).map(|_| Progress::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let (report, reports) = mpsc::channel();
    let mut threads = Vec::new();
    for writer in 0..WRITERS {
        let dir = mount.mkdir(ROOT, &format!("w{writer}"));
        let (mount, progress) = (Arc::clone(&mount), Arc::clone(&progress));
        let (stop, report) = (Arc::clone(&stop), report.clone());
        threads.push(std::thread::spawn(move || {
            write(&mount, dir, &progress[writer], &stop);
            report.send(()).unwrap();
        }));
    }
    let taker = std::thread::spawn({
        let (mount, progress) = (Arc::clone(&mount), Arc::clone(&progress));
        let stop = Arc::clone(&stop);
        move || {
            let kept = take(&mount, &progress, &stop);
            report.send(()).unwrap();
            kept
        }
    });
    let until = Instant::now() + RUN;
    while Instant::now() < until && !taker.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
    }
    stop.store(true, Ordering::SeqCst);
    for _ in 0..=WRITERS {
        match reports.recv_timeout(WATCHDOG) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("threads wait for each other"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let (kept, taken) = taker.join().expect("the thread that takes snapshots");
    for thread in threads {
        thread.join().expect("a writer");
    }
    let written: u64 = progress.iter().map(|p| p.done.load(Ordering::SeqCst)).sum();
    eprintln!("{taken} snapshots of {written} rounds");
    assert!(taken > 0 && written > 0, "nothing happened");
    let Ok(mount) = Arc::try_unwrap(mount) else {
        panic!("the threads are gone");
    };
    let mount = mount.reopen();
    kept.into_iter().for_each(|taken| taken.drop(&mount));
    mount.fs.finish_purge().unwrap();
    mount.finish();
}
