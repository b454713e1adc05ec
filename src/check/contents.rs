//! Verifies contents: every page that a version of an extent names is read from the disk and
//! verified under both layers, by several threads. Extents are read in their order and their
//! objects are sent to the threads one at a time. An object is opened once, and its pages are read
//! in runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::objects::{PartUse, parts_of};
use super::report::{Finding, Kind};
use super::stream::Groups;
use super::{CheckError, CheckProgress, PathHint, Run, Stage, Subject};
use crate::ids::{ChunkIndex, Generation, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::page_set::PageSet;
use crate::object::{Fault, FaultKind};
use crate::sealed::PAGE_BYTES;

/// Maximum number of objects that wait for a thread.
const WAITING_MAX: usize = 64;

/// How long one commit of a volume in use stays pinned while contents are read.
const PIN_TIME_MAX: Duration = Duration::from_secs(20);

/// An object to be verified.
struct Job {
    ino: Ino,
    chunk: ChunkIndex,
    part: PartUse,
}

/// State that the threads share.
struct Shared<'a> {
    subject: &'a Subject<'a>,
    progress: &'a dyn CheckProgress,
    jobs: Mutex<Receiver<Job>>,
    faults: Mutex<Vec<(Job, Vec<Fault>)>>,
    failed: Mutex<Option<CheckError>>,
    pages: AtomicU64,
    stop: AtomicBool,
}

impl Run<'_> {
    /// Verifies all contents.
    pub(super) fn check_contents(&mut self) -> Result<(), CheckError> {
        let bytes = self.pages_to_verify * PAGE_BYTES as u64;
        self.progress.begin(Stage::Contents, Some(bytes));
        let (to, jobs) = sync_channel(WAITING_MAX);
        let shared = Shared {
            subject: self.subject,
            progress: self.progress,
            jobs: Mutex::new(jobs),
            faults: Mutex::default(),
            failed: Mutex::default(),
            pages: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        let threads = self.options.threads();
        let sent = std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| worker_loop(&shared));
            }
            let sent = self.send_jobs(&shared, &to);
            if sent.is_err() {
                shared.stop.store(true, Ordering::Relaxed);
            }
            drop(to);
            sent
        });
        sent?;
        if let Some(error) = shared.failed.into_inner() {
            return Err(error);
        }
        self.report.pages = shared.pages.into_inner();
        self.report.bytes += self.report.pages * PAGE_BYTES as u64;
        self.report.contents_checked = true;
        let mut faults = shared.faults.into_inner();
        faults.sort_by_key(|(job, _)| (job.ino, job.chunk, job.part.id.name));
        for (job, faults) in faults {
            faults
                .into_iter()
                .for_each(|fault| self.report_fault(&job, fault));
        }
        Ok(())
    }

    fn send_jobs(&mut self, shared: &Shared<'_>, to: &SyncSender<Job>) -> Result<(), CheckError> {
        let views = self.views.clone();
        let mut groups = Groups::new(&self.stored, &views, Table::Extent, Vec::new());
        let mut pinned_at = Instant::now();
        while let Some(group) = groups.next()? {
            if pinned_at.elapsed() > PIN_TIME_MAX
                && let Some(live) = self.subject.live
            {
                // Unused pages of the metadata cannot be freed while this commit is pinned.
                self.gaps.append(&mut self.stored.gaps());
                self.stored = Arc::new(live.stored()?);
                let after = keys::versioned(&group.logical, Generation(u64::MAX));
                groups = Groups::new(&self.stored, &views, Table::Extent, after);
                pinned_at = Instant::now();
            }
            let Some((ino, chunk)) = keys::extent_parts(&group.logical) else {
                continue;
            };
            for part in parts_of(&group) {
                self.check_cancelled()?;
                let job = Job { ino, chunk, part };
                if shared.stop.load(Ordering::Relaxed) || to.send(job).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn report_fault(&mut self, job: &Job, fault: Fault) {
        let kind = match fault.kind {
            FaultKind::Missing => Kind::ObjectMissing,
            FaultKind::NoKeySet => Kind::KeySetMissing,
            FaultKind::Short => Kind::ObjectShort,
            FaultKind::Damaged => Kind::PageDamaged,
            FaultKind::Unreadable => Kind::Unreadable,
        };
        let finding = Finding {
            pages: fault
                .pages
                .runs()
                .map(|run| u64::from(run.start)..u64::from(run.end))
                .collect(),
            ..Finding::new(kind, format!("chunk {}: {}", job.chunk, fault.message))
        };
        let finding = finding.object(job.part.id.name).inode(job.ino);
        self.report(finding, PathHint::Inode(job.ino), job.part.seen_by.clone());
    }
}

fn worker_loop(shared: &Shared<'_>) {
    if shared.subject.live.is_some() {
        crate::sys::process::lower_thread_priority();
    }
    loop {
        // The lock is held while waiting: the other threads wait for it meanwhile.
        let job = shared.jobs.lock().recv();
        let Ok(job) = job else { return };
        // A panic must not end the thread: the one that sends the jobs would wait forever.
        let verified = catch_unwind(AssertUnwindSafe(|| verify(shared, job)));
        if let Err(error) = verified.unwrap_or(Err(CheckError::Fault)) {
            shared.failed.lock().get_or_insert(error);
            shared.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn verify(shared: &Shared<'_>, job: Job) -> Result<(), CheckError> {
    if shared.stop.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut progressed = |pages: u32| {
        shared.pages.fetch_add(u64::from(pages), Ordering::Relaxed);
        shared
            .progress
            .advance(u64::from(pages) * PAGE_BYTES as u64);
        !shared.stop.load(Ordering::Relaxed) && !shared.progress.cancelled()
    };
    let mut faults = shared
        .subject
        .objects
        .verify(job.part.id, &job.part.pages, &mut progressed);
    if !faults.is_empty()
        && let Some(live) = shared.subject.live
    {
        let mut pages = PageSet::new();
        faults.iter().for_each(|fault| pages.union(&fault.pages));
        faults = live.verify_again(job.ino, job.chunk, job.part.id, &pages)?;
    }
    if !faults.is_empty() {
        shared.faults.lock().push((job, faults));
    }
    Ok(())
}
