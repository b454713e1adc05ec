//! Threads that read, write, truncate and sync the same few files.
//!
//! Every write is whole pages, each filled with one recognisable word, so a reader of a page sees
//! one word, or zeros, and never a mixture.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bilayer::fs::types::{Fallocate, NodeId};

use crate::support::{CHUNK, Mount, PAGE, ROOT, quiet};

const THREADS: u64 = 4;
const FILES: usize = 3;
/// Pages of a file, around the border of the first chunk.
const FIRST_PAGE: u64 = (CHUNK / PAGE) as u64 - 6;
const PAGES: u64 = 6;
const RUN: Duration = Duration::from_secs(6);
const WATCHDOG: Duration = Duration::from_secs(60);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn check(bytes: &[u8], written: u64) {
    for page in bytes.chunks(PAGE) {
        let words: Vec<u64> = page
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert!(words[0] <= written, "a word that nobody wrote");
        assert!(
            words.iter().all(|word| *word == words[0]),
            "a page is a mixture"
        );
    }
}

fn work(mount: &Mount, files: &[NodeId], counter: &AtomicU64, seed: u64, until: Instant) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut done = 0;
    while Instant::now() < until {
        let node = files[random.below(files.len() as u64) as usize];
        let handle = mount.open_rw(node);
        for _ in 0..random.below(20) {
            done += 1;
            let page = FIRST_PAGE + random.below(PAGES);
            let count = 1 + random.below(FIRST_PAGE + PAGES - page);
            let (offset, len) = (page * PAGE as u64, (count * PAGE as u64) as usize);
            match random.below(16) {
                0..6 => {
                    let word = counter.fetch_add(1, Ordering::SeqCst) + 1;
                    // One page per write: a longer write is not atomic to readers.
                    let bytes = word.to_le_bytes().repeat(PAGE / 8);
                    mount.put(node, handle, offset, &bytes);
                }
                6..11 => {
                    let mut out = vec![0; len];
                    let got = mount.fs.read(node, handle, offset, &mut out).unwrap();
                    check(&out[..got], counter.load(Ordering::SeqCst));
                }
                11 => {
                    mount.truncate(node, page * PAGE as u64).unwrap();
                }
                12 => {
                    let mode = Fallocate::PunchHole;
                    let punched = mount.fs.fallocate(node, handle, offset, len as u64, mode);
                    punched.unwrap();
                }
                13 => mount.fs.fsync(node, handle, false).unwrap(),
                14 => mount.commit(),
                _ => {
                    let other = files[random.below(files.len() as u64) as usize];
                    if other != node {
                        let all = mount.fs.getattr(other).unwrap().size;
                        mount.fs.copy_file_range(other, 0, node, 0, all).unwrap();
                    }
                }
            }
        }
        mount.fs.release(node, handle);
    }
    done
}

#[test]
fn threads_on_the_same_files() {
    let mut options = quiet();
    options.commit_interval = Duration::from_millis(20);
    options.open_objects = 4;
    let mount = Arc::new(Mount::with(None, options));
    let files: Arc<Vec<NodeId>> = Arc::new(
        (0..FILES)
            .map(|n| mount.file(ROOT, &format!("f{n}"), &[]))
            .collect(),
    );
    let counter = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicBool::new(false));
    let (report, reports) = mpsc::channel();
    let until = Instant::now() + RUN;
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (mount, files) = (Arc::clone(&mount), Arc::clone(&files));
            let (counter, report) = (Arc::clone(&counter), report.clone());
            std::thread::spawn(move || {
                let done = work(&mount, &files, &counter, thread + 1, until);
                report.send(done).unwrap();
            })
        })
        .collect();
    drop(report);
    let mut total = 0;
    for _ in 0..THREADS {
        match reports.recv_timeout(WATCHDOG) {
            Ok(done) => total += done,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("threads wait for each other"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    for thread in threads {
        if thread.join().is_err() {
            failed.store(true, Ordering::SeqCst);
        }
    }
    assert!(!failed.load(Ordering::SeqCst), "a thread failed");
    eprintln!("{total} operations");
    let Ok(mount) = Arc::try_unwrap(mount) else {
        panic!("the threads are gone");
    };
    for node in files.iter() {
        check(&mount.contents(*node), counter.load(Ordering::SeqCst));
    }
    mount.reopen().finish();
}
