//! Keeps the reading thread on the CPU of the program that calls.
//!
//! Why: on a machine with few CPUs, a virtual one above all, waking a thread that sleeps on
//! another, idle CPU costs 50 to 100 µs, twice a request; on the same CPU the pair costs 7 to
//! 10 µs. The scheduler finds the good placement by luck only. So the reading thread looks up now
//! and then where its caller last ran (field 39 of `/proc/PID/stat`, see proc(5)) and moves there.
//!
//! It must never make a machine slower than it would be without:
//! - one allowed CPU: nothing to choose, nothing is done;
//! - several programs calling in turns: one placement cannot suit them all, so the thread is set
//!   free, and it is tried again only after a while, later each time;
//! - a CPU outside the thread's own cpuset is never asked for;
//! - a lookup is never waited for: `/proc/PID/stat` is not readable while that process is inside
//!   execve(2), and execve may itself wait for this filesystem (it closes files that are open on
//!   it). So another thread reads, and the answer is taken at one of the next requests. That thread
//!   holds no descriptor of the process: one that waits must not keep `/dev/fuse` open when the
//!   daemon is killed, or the kernel would never end the requests that it waits for;
//! - callers that cannot be looked up (pid 0: the kernel itself, or another pid namespace; hidden
//!   `/proc`) change nothing, and if there are many of them the thread is set free.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::sys::process::{CpuSet, close_descriptors_of_this_thread};

/// Requests between two lookups of one caller that stays.
const REQUESTS_A_LOOKUP: u32 = 64;
/// Requests before a caller that has just come is looked up.
const REQUESTS_OF_A_NEW_CALLER: u32 = 8;
/// Callers remembered to tell programs that take turns from programs that follow each other.
const REMEMBERED_CALLERS: usize = 4;
/// Requests for which the thread is left alone, at first and at most.
const REST_REQUESTS: (u32, u32) = (512, 16_384);

/// The machine as the follower sees it.
pub(super) trait Machine {
    /// Asks on which CPU the thread last ran. Returns at once.
    fn ask_cpu_of(&mut self, pid: u32);
    /// The answer to what was asked last, once; `None` while there is none.
    fn answer(&mut self) -> Option<Answer>;
    /// Moves the calling thread to that CPU; false when that is not allowed.
    fn move_to(&mut self, cpu: usize) -> bool;
    /// Lets the calling thread run wherever it was first allowed to.
    fn set_free(&mut self);
}

/// Where a caller last ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// On that CPU.
    Cpu(usize),
    /// It cannot be said.
    Unknown,
}

/// See the module's first lines. All calls must come from one thread, the one that is moved.
#[derive(Debug)]
pub(super) struct Follower<M> {
    machine: M,
    recent: [u32; REMEMBERED_CALLERS],
    requests: u32,
    turns: u32,
    /// A lookup was asked for and has not been answered.
    asked: bool,
    moved_to: Option<usize>,
    resting: u32,
    next_rest: u32,
}

impl<M: Machine> Follower<M> {
    pub(super) fn new(machine: M) -> Self {
        Self {
            machine,
            recent: [0; REMEMBERED_CALLERS],
            requests: 0,
            turns: 0,
            asked: false,
            moved_to: None,
            resting: 0,
            next_rest: REST_REQUESTS.0,
        }
    }

    /// To be told of every request.
    pub(super) fn request_from(&mut self, pid: u32) {
        if pid == 0 {
            return;
        }
        if self.asked
            && let Some(answer) = self.machine.answer()
        {
            self.asked = false;
            self.place(answer);
        }
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        self.requests += 1;
        let new_caller = self.remember(pid);
        let due = self.requests >= REQUESTS_A_LOOKUP
            || (new_caller && self.requests >= REQUESTS_OF_A_NEW_CALLER);
        if due {
            self.look_up(pid);
        }
    }

    /// Counts a turn when the caller was here before and another one was in between. True when
    /// the caller is not among those remembered.
    fn remember(&mut self, pid: u32) -> bool {
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
        self.requests = 0;
        self.turns = 0;
        if taking_turns {
            return self.rest();
        }
        if !self.asked {
            self.machine.ask_cpu_of(pid);
            self.asked = true;
        }
    }

    fn place(&mut self, answer: Answer) {
        match answer {
            Answer::Cpu(cpu) if self.moved_to == Some(cpu) => self.next_rest = REST_REQUESTS.0,
            Answer::Cpu(cpu) if self.machine.move_to(cpu) => self.moved_to = Some(cpu),
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
    questions: Sender<u32>,
    answer: Arc<AtomicI64>,
}

/// Values of the shared answer that are no CPU.
const NO_ANSWER: i64 = -1;
const UNKNOWN: i64 = -2;

impl ThisMachine {
    /// `None` when there is nothing to choose, or nobody can look it up.
    pub(super) fn with_a_choice() -> Option<Self> {
        let allowed = CpuSet::allowed().ok().filter(|cpus| cpus.len() > 1)?;
        match Self::looking_up(allowed) {
            Ok(machine) => Some(machine),
            Err(error) => {
                tracing::debug!(%error, "callers are not followed");
                None
            }
        }
    }

    /// Starts the thread that looks up. It ends when this goes.
    fn looking_up(allowed: CpuSet) -> io::Result<Self> {
        let answer = Arc::new(AtomicI64::new(NO_ANSWER));
        let (questions, asked) = channel();
        let (ready, is_ready) = channel();
        let theirs = Arc::clone(&answer);
        let thread = std::thread::Builder::new().name("follower".to_owned());
        thread.spawn(move || {
            let closed = close_descriptors_of_this_thread();
            let goes_on = closed.is_ok();
            // Fails only if the one who asked is gone; then so is the sender of questions.
            let _ = ready.send(closed);
            if goes_on {
                answer_questions(&asked, &theirs);
            }
        })?;
        is_ready
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            allowed,
            questions,
            answer,
        })
    }
}

fn answer_questions(asked: &Receiver<u32>, answer: &AtomicI64) {
    while let Ok(pid) = asked.recv() {
        let cpu = cpu_of(pid).and_then(|cpu| i64::try_from(cpu).ok());
        answer.store(cpu.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }
}

fn cpu_of(pid: u32) -> Option<usize> {
    let mut text = [0u8; 1024];
    let len = File::open(format!("/proc/{pid}/stat"))
        .ok()?
        .read(&mut text)
        .ok()?;
    processor_field(&text[..len])
}

impl Machine for ThisMachine {
    fn ask_cpu_of(&mut self, pid: u32) {
        // Fails only if the thread is gone; then there is no answer, and nothing moves.
        let _ = self.questions.send(pid);
    }

    fn answer(&mut self) -> Option<Answer> {
        match self.answer.load(Ordering::Relaxed) {
            NO_ANSWER => None,
            found => {
                // Nobody else writes until the next question.
                self.answer.store(NO_ANSWER, Ordering::Relaxed);
                Some(usize::try_from(found).map_or(Answer::Unknown, Answer::Cpu))
            }
        }
    }

    fn move_to(&mut self, cpu: usize) -> bool {
        self.allowed.contains(cpu)
            && CpuSet::only(cpu).is_some_and(|set| set.apply_to_this_thread().is_ok())
    }

    fn set_free(&mut self) {
        // Fails only when a cpuset took all these CPUs away, and then the kernel has chosen others.
        let _ = self.allowed.apply_to_this_thread();
    }
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
        asked: Option<u32>,
        silent: bool,
    }

    impl Machine for Fake {
        fn ask_cpu_of(&mut self, pid: u32) {
            assert_eq!(self.asked, None, "asked before the answer came");
            self.lookups += 1;
            self.asked = Some(pid);
        }
        fn answer(&mut self) -> Option<Answer> {
            if self.silent {
                return None;
            }
            let cpu = self.cpus.get(&self.asked.take()?).copied();
            Some(cpu.map_or(Answer::Unknown, Answer::Cpu))
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

    fn follower(cpus: &[(u32, usize)]) -> Follower<Fake> {
        Follower::new(Fake {
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
        for _ in 0..65 {
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
        for _ in 0..65 {
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
    fn goes_on_while_there_is_no_answer() {
        let mut follower = follower(&[(7, 1)]);
        follower.machine.silent = true;
        for _ in 0..10_000 {
            follower.request_from(7);
        }
        assert_eq!(follower.machine.lookups, 1);
        assert!(follower.machine.moves.is_empty());
        follower.machine.silent = false;
        follower.request_from(7);
        assert_eq!(follower.machine.moves, [Some(1)]);
    }

    #[test]
    fn reads_the_processor_field() {
        assert!(cpu_of(std::process::id()).unwrap() < CpuSet::LIMIT);
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("12 (a ) b (c)) {}", fields.join(" "));
        assert_eq!(processor_field(stat.as_bytes()), Some(39));
        assert_eq!(processor_field(b"12 (a) S 1 2"), None);
        assert_eq!(processor_field(b""), None);
        assert_eq!(cpu_of(0), None);
    }

    #[test]
    fn the_machine_answers_once_and_closes_nothing_of_others() {
        let open = File::open("/dev/null").unwrap();
        let mut machine = ThisMachine::looking_up(CpuSet::allowed().unwrap()).unwrap();
        open.metadata().unwrap();
        for (pid, known) in [(std::process::id(), true), (0, false)] {
            assert_eq!(machine.answer(), None);
            machine.ask_cpu_of(pid);
            let answer = loop {
                match machine.answer() {
                    Some(answer) => break answer,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(answer != Answer::Unknown, known);
        }
    }
}
