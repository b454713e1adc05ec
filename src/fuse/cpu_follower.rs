//! Keeps the reading thread on the CPU of the calling program.
//!
//! Reason: on a machine with few CPUs, especially a virtual one, waking a thread that sleeps on
//! another, idle CPU costs 50 to 100 µs, twice for each request; on the same CPU the pair costs 7
//! to 10 µs. The scheduler finds the good placement only by luck. So the reading thread looks up
//! from time to time where its caller last ran (field 39 of `/proc/PID/stat`, see proc(5)) and
//! moves there.
//!
//! It must never make a machine slower than it would be without:
//! - With one allowed CPU there is nothing to choose, and nothing is done.
//! - If several programs call in turns, one placement cannot suit them all. The thread is released,
//!   and this is tried again only later, with increasing delays.
//! - A CPU outside the thread's own cpuset is never requested.
//! - `/proc/PID/stat` of a program in the middle of `execve` cannot be read before the files that
//!   this closes have been flushed, which is a request to this very thread. So another thread reads
//!   it ([`Prober`]), and the reading thread never waits for the answer. That thread holds no
//!   descriptor: while it waits it must not keep `/dev/fuse` open when the daemon is killed, or the
//!   kernel would never end the requests that it waits for.
//! - Callers that cannot be looked up (pid 0: the kernel itself, or another pid namespace; hidden
//!   `/proc`) change nothing, and if there are many of them the thread is released.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::sys::process::{CpuSet, close_descriptors_of_this_thread};

/// Number of requests after which the CPU of an unchanged caller is looked up again.
const REQUESTS_PER_LOOKUP: u32 = 64;
/// Number of requests after which the CPU of a new caller is looked up.
const REQUESTS_BEFORE_FIRST_LOOKUP: u32 = 8;
/// Number of requests after which a pending lookup is asked for its answer again.
const REQUESTS_PER_RETRY: u32 = 4;
/// Recent callers that are kept, to distinguish programs that alternate from programs that follow
/// each other.
const REMEMBERED_CALLERS: usize = 4;
/// Number of requests that the first rest lasts. Each further rest lasts twice as long ...
const FIRST_REST_REQUESTS: u32 = 512;
/// ... up to this number.
const LONGEST_REST_REQUESTS: u32 = 16_384;

/// The CPU on which a caller runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CallerCpu {
    /// The CPU with this number.
    Number(usize),
    /// It is not known.
    Unknown,
    /// The lookup has not finished.
    Pending,
}

/// Looks up where a caller runs, and moves the calling thread. Tests replace it.
pub(super) trait Scheduler {
    /// The CPU on which the caller last ran.
    fn cpu_of(&mut self, pid: u32) -> CallerCpu;
    /// Moves the calling thread to that CPU. False if that is not allowed.
    fn move_to(&mut self, cpu: usize) -> bool;
    /// Lets the calling thread run on every CPU that it was first allowed to use.
    fn set_free(&mut self);
}

/// Moves the reading thread to the CPU of its caller. All calls must come from one thread, the one
/// that is moved.
#[derive(Debug)]
pub(super) struct CpuFollower<S> {
    scheduler: S,
    /// Recent callers, the latest first.
    recent: [u32; REMEMBERED_CALLERS],
    /// Requests since the last lookup.
    requests: u32,
    /// Those of them that came from a recent caller other than the latest.
    alternations: u32,
    moved_to: Option<usize>,
    /// Requests for which the thread is still left alone.
    rest_requests: u32,
    /// Number of requests that the next rest lasts.
    next_rest_requests: u32,
}

impl<S: Scheduler> CpuFollower<S> {
    pub(super) fn new(scheduler: S) -> Self {
        Self {
            scheduler,
            recent: [0; REMEMBERED_CALLERS],
            requests: 0,
            alternations: 0,
            moved_to: None,
            rest_requests: 0,
            next_rest_requests: FIRST_REST_REQUESTS,
        }
    }

    /// Called for every request.
    pub(super) fn request_from(&mut self, pid: u32) {
        if pid == 0 {
            return;
        }
        if self.rest_requests > 0 {
            self.rest_requests -= 1;
            return;
        }
        self.requests += 1;
        let new_caller = self.note_caller(pid);
        let due = self.requests >= REQUESTS_PER_LOOKUP
            || (new_caller && self.requests >= REQUESTS_BEFORE_FIRST_LOOKUP);
        if due {
            self.follow(pid);
        }
    }

    /// Moves the caller to the front of the recent ones, and counts an alternation if it was
    /// further back. True if it was not among them.
    fn note_caller(&mut self, pid: u32) -> bool {
        if self.recent[0] == pid {
            return false;
        }
        let position = self.recent.iter().position(|&recent| recent == pid);
        self.alternations += u32::from(position.is_some());
        let last = position.unwrap_or(REMEMBERED_CALLERS - 1);
        self.recent[..=last].rotate_right(1);
        self.recent[0] = pid;
        position.is_none()
    }

    /// Looks up the caller's CPU and moves there. The thread rests if that is not possible, or if
    /// several programs call in turns.
    fn follow(&mut self, pid: u32) {
        let taking_turns = self.alternations * 4 > self.requests;
        let caller_cpu = if taking_turns {
            CallerCpu::Unknown
        } else {
            self.scheduler.cpu_of(pid)
        };
        if caller_cpu == CallerCpu::Pending {
            self.requests = REQUESTS_PER_LOOKUP - REQUESTS_PER_RETRY;
            return;
        }
        self.requests = 0;
        self.alternations = 0;
        match caller_cpu {
            CallerCpu::Number(cpu) if self.moved_to == Some(cpu) => {
                self.next_rest_requests = FIRST_REST_REQUESTS;
            }
            CallerCpu::Number(cpu) if self.scheduler.move_to(cpu) => self.moved_to = Some(cpu),
            _ => self.rest(),
        }
    }

    fn rest(&mut self) {
        if self.moved_to.take().is_some() {
            self.scheduler.set_free();
        }
        self.rest_requests = self.next_rest_requests;
        self.next_rest_requests = (self.next_rest_requests * 2).min(LONGEST_REST_REQUESTS);
    }
}

/// The scheduler of the kernel, by `/proc` and `sched_setaffinity(2)`.
#[derive(Debug)]
pub(super) struct KernelScheduler {
    allowed: CpuSet,
    prober: Prober,
}

impl KernelScheduler {
    /// `None` if there is only one CPU to choose.
    pub(super) fn with_a_choice() -> Option<Self> {
        let allowed = CpuSet::allowed().ok()?;
        if allowed.len() < 2 {
            return None;
        }
        Some(Self {
            allowed,
            prober: Prober::start().ok()?,
        })
    }
}

impl Scheduler for KernelScheduler {
    fn cpu_of(&mut self, pid: u32) -> CallerCpu {
        self.prober.ask(pid)
    }

    fn move_to(&mut self, cpu: usize) -> bool {
        self.allowed.contains(cpu)
            && CpuSet::only(cpu).is_some_and(|set| set.apply_to_this_thread().is_ok())
    }

    fn set_free(&mut self) {
        // Fails only if a cpuset has removed all these CPUs; then the kernel has chosen others.
        let _ = self.allowed.apply_to_this_thread();
    }
}

/// Looks up callers on a separate thread, which may be blocked for long.
#[derive(Debug)]
struct Prober(Arc<Mailbox>);

/// A question and an answer between the reading thread and the thread that reads `/proc`.
#[derive(Debug, Default)]
struct Mailbox {
    slot: Mutex<Slot>,
    /// Signals a question, or the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    /// The process to look up.
    question: Option<u32>,
    answer: Option<Answer>,
    ended: bool,
}

/// The CPU on which a process last ran, if known.
#[derive(Debug)]
struct Answer {
    pid: u32,
    cpu: Option<usize>,
}

impl Prober {
    fn start() -> std::io::Result<Self> {
        let mailbox = Arc::new(Mailbox::default());
        let of_thread = Arc::clone(&mailbox);
        std::thread::Builder::new()
            .name("prober".to_owned())
            .spawn(move || probe(&of_thread))?;
        Ok(Self(mailbox))
    }

    /// Returns the answer if there is one; otherwise submits the question.
    fn ask(&self, pid: u32) -> CallerCpu {
        let mut slot = self.0.slot.lock();
        match slot.answer.take() {
            Some(answer) if answer.pid == pid => {
                answer.cpu.map_or(CallerCpu::Unknown, CallerCpu::Number)
            }
            _ => {
                slot.question = Some(pid);
                self.0.changed.notify_one();
                CallerCpu::Pending
            }
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.0.slot.lock().ended = true;
        self.0.changed.notify_one();
    }
}

fn probe(mailbox: &Mailbox) {
    if let Err(error) = close_descriptors_of_this_thread() {
        tracing::debug!(%error, "cannot follow callers to their CPUs");
        return;
    }
    loop {
        let pid = {
            let mut slot = mailbox.slot.lock();
            loop {
                if slot.ended {
                    return;
                }
                if let Some(pid) = slot.question.take() {
                    break pid;
                }
                mailbox.changed.wait(&mut slot);
            }
        };
        let cpu = read_cpu(pid);
        mailbox.slot.lock().answer = Some(Answer { pid, cpu });
    }
}

fn read_cpu(pid: u32) -> Option<usize> {
    let mut text = [0u8; 1024];
    let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
    let len = file.read(&mut text).ok()?;
    processor_field(&text[..len])
}

/// Field 39 (`processor`) of `/proc/PID/stat`. Field 2, the name, may contain spaces and
/// parentheses, so counting starts with field 3, after the last closing parenthesis.
fn processor_field(stat: &[u8]) -> Option<usize> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Fake {
        cpus: HashMap<u32, usize>,
        allowed: usize,
        moves: Vec<Option<usize>>,
        lookups: u32,
    }

    impl Scheduler for Fake {
        fn cpu_of(&mut self, pid: u32) -> CallerCpu {
            self.lookups += 1;
            self.cpus
                .get(&pid)
                .map_or(CallerCpu::Unknown, |cpu| CallerCpu::Number(*cpu))
        }
        fn move_to(&mut self, cpu: usize) -> bool {
            if cpu < self.allowed {
                self.moves.push(Some(cpu));
            }
            cpu < self.allowed
        }
        fn set_free(&mut self) {
            self.moves.push(None);
        }
    }

    fn follower(cpus: &[(u32, usize)]) -> CpuFollower<Fake> {
        CpuFollower::new(Fake {
            cpus: cpus.iter().copied().collect(),
            allowed: 2,
            ..Fake::default()
        })
    }

    #[test]
    fn follows_one_caller_and_its_moves() {
        let mut follower = follower(&[(7, 1)]);
        for _ in 0..640 {
            follower.request_from(7);
        }
        assert_eq!(follower.scheduler.moves, [Some(1)]);
        assert_eq!(follower.scheduler.lookups, 10);
        follower.scheduler.cpus.insert(7, 0);
        for _ in 0..64 {
            follower.request_from(7);
        }
        assert_eq!(follower.scheduler.moves, [Some(1), Some(0)]);
    }

    #[test]
    fn follows_short_programs_that_come_one_after_the_other() {
        let mut follower = follower(&[]);
        for pid in 1..=100u32 {
            follower.scheduler.cpus.insert(pid, (pid % 2) as usize);
            for _ in 0..10 {
                follower.request_from(pid);
            }
        }
        assert!(
            follower.scheduler.moves.len() > 50,
            "{:?}",
            follower.scheduler.moves
        );
        assert!(follower.scheduler.moves.iter().all(Option::is_some));
    }

    #[test]
    fn is_released_when_callers_take_turns_and_rests_longer_each_time() {
        let mut follower = follower(&[(7, 1), (8, 0)]);
        for _ in 0..64 {
            follower.request_from(7);
        }
        assert_eq!(follower.scheduler.moves, [Some(1)]);
        for _ in 0..20_000 {
            follower.request_from(8);
            follower.request_from(7);
        }
        assert_eq!(follower.scheduler.moves, [Some(1), None]);
        assert!(
            follower.scheduler.lookups < 4,
            "{}",
            follower.scheduler.lookups
        );
        for _ in 0..40_000 {
            follower.request_from(8);
        }
        assert_eq!(follower.scheduler.moves, [Some(1), None, Some(0)]);
    }

    #[test]
    fn ignores_the_kernel_and_rests_from_unknown_callers_and_forbidden_cpus() {
        let mut follower = follower(&[(9, 5)]);
        for _ in 0..1000 {
            follower.request_from(0);
        }
        assert_eq!(follower.scheduler.lookups, 0);
        for _ in 0..100_000 {
            follower.request_from(42);
        }
        assert!(follower.scheduler.lookups < 20);
        for _ in 0..100_000 {
            follower.request_from(9);
        }
        assert!(follower.scheduler.moves.is_empty());
    }

    #[test]
    fn reads_the_processor_field() {
        let mut scheduler = KernelScheduler {
            allowed: CpuSet::allowed().unwrap(),
            prober: Prober::start().unwrap(),
        };
        let cpu = loop {
            match scheduler.cpu_of(std::process::id()) {
                CallerCpu::Number(cpu) => break cpu,
                CallerCpu::Unknown => panic!("no CPU is known for this process"),
                CallerCpu::Pending => std::thread::yield_now(),
            }
        };
        assert!(cpu < CpuSet::LIMIT);
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("12 (a ) b (c)) {}", fields.join(" "));
        assert_eq!(processor_field(stat.as_bytes()), Some(39));
        assert_eq!(processor_field(b"12 (a) S 1 2"), None);
        assert_eq!(processor_field(b""), None);
        while scheduler.cpu_of(0) == CallerCpu::Pending {
            std::thread::yield_now();
        }
        assert_eq!(read_cpu(0), None);
    }
}
