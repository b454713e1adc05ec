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

/// Requests between two lookups of a caller that stays the same.
const REQUESTS_A_LOOKUP: u32 = 64;
/// Requests before a new caller is looked up.
const REQUESTS_OF_A_NEW_CALLER: u32 = 8;
/// Recent callers that are kept, to distinguish programs that alternate from programs that follow
/// each other.
const REMEMBERED_CALLERS: usize = 4;
/// Requests for which the thread is left alone, at first and at most.
const REST_REQUESTS: (u32, u32) = (512, 16_384);

/// Requests until a pending answer is asked for again.
const REQUESTS_UNTIL_ANSWER: u32 = 4;

/// The CPU on which a caller runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CallerCpu {
    /// On this CPU.
    Cpu(usize),
    /// It is not known.
    Unknown,
    /// The answer is pending.
    Pending,
}

/// Operations of the machine that the follower uses.
pub(super) trait Machine {
    /// The CPU on which the thread last ran.
    fn cpu_of(&mut self, pid: u32) -> CallerCpu;
    /// Moves the calling thread to that CPU. False if that is not allowed.
    fn move_to(&mut self, cpu: usize) -> bool;
    /// Lets the calling thread run on every CPU that it was first allowed to use.
    fn set_free(&mut self);
}

/// Moves the reading thread to the CPU of its caller. All calls must come from one thread, the one
/// that is moved.
#[derive(Debug)]
pub(super) struct CpuFollower<M> {
    machine: M,
    recent: [u32; REMEMBERED_CALLERS],
    requests: u32,
    turns: u32,
    moved_to: Option<usize>,
    resting: u32,
    next_rest: u32,
}

impl<M: Machine> CpuFollower<M> {
    pub(super) fn new(machine: M) -> Self {
        Self {
            machine,
            recent: [0; REMEMBERED_CALLERS],
            requests: 0,
            turns: 0,
            moved_to: None,
            resting: 0,
            next_rest: REST_REQUESTS.0,
        }
    }

    /// Called for every request.
    pub(super) fn request_from(&mut self, pid: u32) {
        if pid == 0 {
            return;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        self.requests += 1;
        let new_caller = self.note_caller(pid);
        let due = self.requests >= REQUESTS_A_LOOKUP
            || (new_caller && self.requests >= REQUESTS_OF_A_NEW_CALLER);
        if due {
            self.look_up(pid);
        }
    }

    /// Counts a turn if the caller called before and another one called in between. True if the
    /// caller is not among the recent ones.
    fn note_caller(&mut self, pid: u32) -> bool {
        if self.recent[0] == pid {
            return false;
        }
        let known = self.recent.iter().position(|&seen| seen == pid);
        self.turns += u32::from(known.is_some());
        let last = known.unwrap_or(REMEMBERED_CALLERS - 1);
        self.recent[..=last].rotate_right(1);
        self.recent[0] = pid;
        known.is_none()
    }

    fn look_up(&mut self, pid: u32) {
        let taking_turns = self.turns * 4 > self.requests;
        let caller_cpu = if taking_turns {
            CallerCpu::Unknown
        } else {
            self.machine.cpu_of(pid)
        };
        if caller_cpu == CallerCpu::Pending {
            self.requests = REQUESTS_A_LOOKUP - REQUESTS_UNTIL_ANSWER;
            return;
        }
        self.requests = 0;
        self.turns = 0;
        match caller_cpu {
            CallerCpu::Cpu(cpu) if self.moved_to == Some(cpu) => self.next_rest = REST_REQUESTS.0,
            CallerCpu::Cpu(cpu) if self.machine.move_to(cpu) => self.moved_to = Some(cpu),
            _ => self.rest(),
        }
    }

    fn rest(&mut self) {
        if self.moved_to.take().is_some() {
            self.machine.set_free();
        }
        self.resting = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(REST_REQUESTS.1);
    }
}

/// This machine, by `/proc` and `sched_setaffinity(2)`.
#[derive(Debug)]
pub(super) struct ThisMachine {
    allowed: CpuSet,
    prober: Prober,
}

impl ThisMachine {
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

impl Machine for ThisMachine {
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

/// A question and an answer between the reading thread and the thread that reads `/proc`.
#[derive(Debug, Default)]
struct Slot {
    question: Option<u32>,
    answer: Option<(u32, Option<usize>)>,
    ended: bool,
}

/// Looks up callers on a separate thread, which may be blocked for long.
#[derive(Debug)]
struct Prober(Arc<Mailbox>);

/// The slot, and the signal that its state has changed.
#[derive(Debug, Default)]
struct Mailbox {
    slot: Mutex<Slot>,
    changed: Condvar,
}

impl Prober {
    fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Mailbox::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("prober".to_owned())
            .spawn(move || probe(&theirs))?;
        Ok(Self(shared))
    }

    /// Returns the answer if there is one; otherwise submits the question.
    fn ask(&self, pid: u32) -> CallerCpu {
        let mut slot = self.0.slot.lock();
        match slot.answer.take() {
            Some((asked, cpu)) if asked == pid => cpu.map_or(CallerCpu::Unknown, CallerCpu::Cpu),
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
        tracing::debug!(%error, "callers are not followed");
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
        mailbox.slot.lock().answer = Some((pid, cpu));
    }
}

fn read_cpu(pid: u32) -> Option<usize> {
    let mut text = [0u8; 1024];
    let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
    let len = file.read(&mut text).ok()?;
    processor_field(&text[..len])
}

/// Field 39 (`processor`) of `/proc/PID/stat`. The name, field 2, may hold spaces and parentheses:
/// counting starts behind its last closing one, with field 3.
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

    impl Machine for Fake {
        fn cpu_of(&mut self, pid: u32) -> CallerCpu {
            self.lookups += 1;
            self.cpus
                .get(&pid)
                .map_or(CallerCpu::Unknown, |cpu| CallerCpu::Cpu(*cpu))
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
        assert_eq!(follower.machine.moves, [Some(1)]);
        assert_eq!(follower.machine.lookups, 10);
        follower.machine.cpus.insert(7, 0);
        for _ in 0..64 {
            follower.request_from(7);
        }
        assert_eq!(follower.machine.moves, [Some(1), Some(0)]);
    }

    #[test]
    fn follows_short_programs_that_come_one_after_the_other() {
        let mut follower = follower(&[]);
        for pid in 1..=100u32 {
            follower.machine.cpus.insert(pid, (pid % 2) as usize);
            for _ in 0..10 {
                follower.request_from(pid);
            }
        }
        assert!(
            follower.machine.moves.len() > 50,
            "{:?}",
            follower.machine.moves
        );
        assert!(follower.machine.moves.iter().all(Option::is_some));
    }

    #[test]
    fn lets_go_when_callers_take_turns_and_rests_longer_each_time() {
        let mut follower = follower(&[(7, 1), (8, 0)]);
        for _ in 0..64 {
            follower.request_from(7);
        }
        assert_eq!(follower.machine.moves, [Some(1)]);
        for _ in 0..20_000 {
            follower.request_from(8);
            follower.request_from(7);
        }
        assert_eq!(follower.machine.moves, [Some(1), None]);
        assert!(follower.machine.lookups < 4, "{}", follower.machine.lookups);
        for _ in 0..40_000 {
            follower.request_from(8);
        }
        assert_eq!(follower.machine.moves, [Some(1), None, Some(0)]);
    }

    #[test]
    fn ignores_the_kernel_and_rests_from_the_unknown_and_the_forbidden() {
        let mut follower = follower(&[(9, 5)]);
        for _ in 0..1000 {
            follower.request_from(0);
        }
        assert_eq!(follower.machine.lookups, 0);
        for _ in 0..100_000 {
            follower.request_from(42);
        }
        assert!(follower.machine.lookups < 20);
        for _ in 0..100_000 {
            follower.request_from(9);
        }
        assert!(follower.machine.moves.is_empty());
    }

    #[test]
    fn reads_the_processor_field() {
        let mut machine = ThisMachine {
            allowed: CpuSet::allowed().unwrap(),
            prober: Prober::start().unwrap(),
        };
        let cpu = loop {
            match machine.cpu_of(std::process::id()) {
                CallerCpu::Cpu(cpu) => break cpu,
                CallerCpu::Unknown => panic!("this process is not found"),
                CallerCpu::Pending => std::thread::yield_now(),
            }
        };
        assert!(cpu < CpuSet::LIMIT);
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("12 (a ) b (c)) {}", fields.join(" "));
        assert_eq!(processor_field(stat.as_bytes()), Some(39));
        assert_eq!(processor_field(b"12 (a) S 1 2"), None);
        assert_eq!(processor_field(b""), None);
        while machine.cpu_of(0) == CallerCpu::Pending {
            std::thread::yield_now();
        }
        assert_eq!(read_cpu(0), None);
    }
}
