//! Runs another program for one answer.
//!
//! The program gets nothing from this process but its standard streams, and the arguments and the
//! environment that a caller gives it: `/` as its working directory, no other open descriptor, no
//! blocked signal. It is the leader of a process group of its own. The whole group is killed when
//! the program has ended, when its time is over, when its answer is too long, and the program when
//! this thread dies.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use zeroize::Zeroizing;

use super::process::{WatchedProcess, check};

/// What a program may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From its start to its end.
    pub(crate) time: Duration,
    /// Length of its output, in bytes.
    pub(crate) output_bytes: usize,
    /// Length of its error output that is kept, in bytes. More of it is read and dropped.
    pub(crate) error_bytes: usize,
}

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, which was not ours.
    Signalled(i32),
    /// Killed, since its time was over.
    TimedOut,
    /// Killed, since its output was too long.
    TooLong,
}

/// What a program has written until it ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// How it ended.
    pub(crate) ended: Ended,
    /// Its output, which may be a secret.
    pub(crate) output: Zeroizing<Vec<u8>>,
    /// The beginning of its error output.
    pub(crate) errors: Vec<u8>,
}

/// Runs the program, which reads `input` from its standard input.
///
/// # Errors
/// When the program cannot be started.
pub(crate) fn run(program: &Path, input: &[u8], limits: &Limits) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.env_clear();
    run_command(command, input, limits)
}

/// Runs a program with the arguments and the environment of `command`, as [`run`] does.
///
/// # Errors
/// When the program cannot be started.
pub(crate) fn run_command(
    mut command: Command,
    input: &[u8],
    limits: &Limits,
) -> io::Result<Output> {
    command
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: the closure runs between fork and exec and makes nothing but system calls, which are
    // async-signal-safe.
    unsafe { command.pre_exec(prepare) };
    let mut group = Group(command.spawn()?);
    let mut conversation = Conversation::new(&mut group.0, input, limits)?;
    let cut_off = conversation.hold()?;
    let status = group.end()?;
    let ended = match (cut_off, status.code()) {
        (Some(why), _) => why,
        (None, Some(code)) => Ended::Exited(code),
        (None, None) => Ended::Signalled(status.signal().unwrap_or_default()),
    };
    Ok(Output {
        ended,
        output: conversation.output.kept,
        errors: conversation.errors.kept.to_vec(),
    })
}

/// A program and everything that it started in its process group.
struct Group(Child);

impl Group {
    /// Kills whatever still runs and waits for the program. The number of the group is the
    /// program's until it is waited for, so no other group is killed.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Ok(leader) = libc::pid_t::try_from(self.0.id()) {
            // SAFETY: plain numbers.
            unsafe { libc::kill(-leader, libc::SIGKILL) };
        }
        self.0.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.end();
        }
    }
}

/// What the child does before it becomes the program.
fn prepare() -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: the set is live and is initialised before it is used; a null pointer is permitted for
    // the former set.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
    // Not closed at once: std reports a failed exec through one of them.
    close_on_exec_from(3)
}

fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: plain numbers. No descriptor is closed before the process becomes another program.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        return Ok(());
    }
    // Linux before 5.11: one by one.
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    let end = RawFd::try_from(limit.rlim_max).unwrap_or(RawFd::MAX);
    for descriptor in RawFd::try_from(first).unwrap_or(0)..end.min(1 << 20) {
        // SAFETY: plain numbers. It fails without harm if there is no such descriptor.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// The pipes to and from a program that runs.
struct Conversation<'a> {
    process: WatchedProcess,
    input: Option<ChildStdin>,
    unsent: &'a [u8],
    output: Source<ChildStdout>,
    errors: Source<ChildStderr>,
    end: Instant,
}

/// One pipe from the program, and what came through it.
struct Source<R> {
    pipe: Option<R>,
    kept: Zeroizing<Vec<u8>>,
    limit_bytes: usize,
    is_too_long: bool,
}

impl<'a> Conversation<'a> {
    fn new(child: &mut Child, input: &'a [u8], limits: &Limits) -> io::Result<Self> {
        let this = Self {
            process: WatchedProcess::open(libc::pid_t::try_from(child.id()).unwrap_or(-1))?,
            input: child.stdin.take(),
            unsent: input,
            output: Source::new(child.stdout.take(), limits.output_bytes),
            errors: Source::new(child.stderr.take(), limits.error_bytes),
            end: Instant::now() + limits.time,
        };
        for descriptor in this.pipes().into_iter().flatten() {
            fcntl_setfl(descriptor, OFlags::NONBLOCK)?;
        }
        Ok(this)
    }

    fn pipes(&self) -> [Option<BorrowedFd<'_>>; 3] {
        [
            self.input.as_ref().map(AsFd::as_fd),
            self.output.pipe.as_ref().map(AsFd::as_fd),
            self.errors.pipe.as_ref().map(AsFd::as_fd),
        ]
    }

    /// Feeds the program and reads from it until it ends (`None`) or reaches a limit.
    fn hold(&mut self) -> io::Result<Option<Ended>> {
        loop {
            let [input, output, errors, is_over] = self.wait()?;
            if is_over {
                // What is there; a child of the program that still has the pipe is not waited for.
                while self.output.read()? && !self.output.is_too_long {}
                while self.errors.read()? && !self.errors.is_too_long {}
            }
            if input {
                self.send();
            }
            if output {
                self.output.read()?;
            }
            if errors {
                self.errors.read()?;
            }
            if self.output.is_too_long {
                return Ok(Some(Ended::TooLong));
            }
            if is_over {
                return Ok(None);
            }
            if Instant::now() >= self.end {
                return Ok(Some(Ended::TimedOut));
            }
        }
    }

    /// Waits until a pipe is ready or the program has ended (the last of the four), or its time is
    /// over.
    fn wait(&self) -> io::Result<[bool; 4]> {
        let [input, output, errors] = self.pipes();
        let entry = |fd: Option<RawFd>, events| libc::pollfd {
            // The kernel ignores negative ones.
            fd: fd.unwrap_or(-1),
            events,
            revents: 0,
        };
        let raw = |pipe: Option<BorrowedFd<'_>>| pipe.map(|pipe| pipe.as_raw_fd());
        let mut polled = [
            entry(raw(input), libc::POLLOUT),
            entry(raw(output), libc::POLLIN),
            entry(raw(errors), libc::POLLIN),
            entry(Some(self.process.as_raw_fd()), libc::POLLIN),
        ];
        let left = self.end.saturating_duration_since(Instant::now());
        let millis = libc::c_int::try_from(left.as_millis() + 1).unwrap_or(libc::c_int::MAX);
        let count = polled.len() as libc::nfds_t;
        // SAFETY: that many live entries.
        match check(unsafe { libc::poll(polled.as_mut_ptr(), count, millis) }) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(polled.map(|entry| entry.revents != 0)),
        }
    }

    /// Sends what the pipe takes. A program need not read its input.
    fn send(&mut self) {
        let Some(pipe) = &mut self.input else {
            return;
        };
        match pipe.write(self.unsent) {
            Ok(sent) => self.unsent = &self.unsent[sent..],
            Err(error) if is_for_later(&error) => return,
            Err(_) => self.unsent = &[],
        }
        if self.unsent.is_empty() {
            self.input = None;
        }
    }
}

impl<R: Read> Source<R> {
    fn new(pipe: Option<R>, limit_bytes: usize) -> Self {
        Self {
            pipe,
            // At full size: a growing buffer leaves copies behind.
            kept: Zeroizing::new(Vec::with_capacity(limit_bytes)),
            limit_bytes,
            is_too_long: false,
        }
    }

    /// Reads once, without waiting. False if nothing more is to be read now.
    fn read(&mut self) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(false);
        };
        let mut bytes = Zeroizing::new([0; 4096]);
        let count = match pipe.read(&mut bytes[..]) {
            Ok(count) => count,
            Err(error) if is_for_later(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if count == 0 {
            self.pipe = None;
            return Ok(false);
        }
        let kept = count.min(self.limit_bytes - self.kept.len());
        self.kept.extend_from_slice(&bytes[..kept]);
        self.is_too_long |= kept < count;
        Ok(true)
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    const LIMITS: Limits = Limits {
        time: Duration::from_secs(20),
        output_bytes: 1000,
        error_bytes: 10,
    };

    fn script(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("program");
        let text = format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n");
        // Written by another process: a descriptor that is open for writing and that a fork of
        // another test has inherited makes the file busy.
        let mut writer = Command::new("tee")
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = writer.stdin.take().unwrap();
        pipe.write_all(text.as_bytes()).unwrap();
        drop(pipe);
        writer.wait().unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    fn run_script(text: &str, limits: &Limits) -> Output {
        let dir = tempfile::tempdir().unwrap();
        run(&script(&dir, text), b"one\ntwo\n", limits).unwrap()
    }

    #[test]
    fn a_program_gets_its_input_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        // One that is not close-on-exec.
        let inherited = File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        let text = "cat; pwd; env | grep -v '^\\(PATH\\|PWD\\|_\\|SHLVL\\|OLDPWD\\)='; \
                    ls /proc/$$/fd | tr '\\n' ' '; echo \"$# args\"; \
                    grep SigBlk /proc/self/status; echo much to say >&2; exit 7";
        let output = std::thread::scope(|scope| {
            let blocked = scope.spawn(|| {
                let _signals = crate::sys::process::EndSignals::block().unwrap();
                run(&script(&dir, text), b"one\n", &LIMITS).unwrap()
            });
            blocked.join().unwrap()
        });
        let shown = String::from_utf8(output.output.to_vec()).unwrap();
        // The shell itself keeps its script open.
        assert_eq!(
            shown,
            "one\n/\n0 1 10 2 0 args\nSigBlk:\t0000000000000000\n"
        );
        assert_eq!(output.ended, Ended::Exited(7));
        assert_eq!(output.errors, b"much to sa");
    }

    #[test]
    fn input_need_not_be_read_and_output_may_come_late() {
        let output = run_script("exec <&-; sleep 0.2; echo done", &LIMITS);
        assert_eq!(&output.output[..], b"done\n");
        let dir = tempfile::tempdir().unwrap();
        let long = vec![b'x'; 300_000];
        let output = run(&script(&dir, "echo early"), &long, &LIMITS).unwrap();
        assert_eq!(output.ended, Ended::Exited(0));
        let output = run(&script(&dir, "wc -c"), &long, &LIMITS).unwrap();
        assert_eq!(&output.output[..], b"300000\n");
    }

    /// Waits for the end of the processes whose numbers a script has printed.
    fn assert_gone(output: &Output) {
        let runs = |pid: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            status.is_ok_and(|status| !status.contains(") Z "))
        };
        let end = Instant::now() + Duration::from_secs(10);
        for pid in String::from_utf8_lossy(&output.output).split_whitespace() {
            while runs(pid) {
                assert!(Instant::now() < end, "{pid} still runs");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let limits = Limits {
            time: Duration::from_millis(300),
            ..LIMITS
        };
        let start = Instant::now();
        let output = run_script("sleep 60 & echo $!; echo $$; sleep 60", &limits);
        assert_eq!(output.ended, Ended::TimedOut);
        assert_eq!(
            output.output.iter().filter(|byte| **byte == b'\n').count(),
            2
        );
        assert_gone(&output);
        // A child that keeps the pipes open is not waited for.
        let output = run_script("sleep 60 & echo $!", &LIMITS);
        assert_eq!(output.ended, Ended::Exited(0));
        assert_gone(&output);
        let output = run_script("kill -USR1 $$", &LIMITS);
        assert_eq!(output.ended, Ended::Signalled(libc::SIGUSR1));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn output_without_end_is_cut_off() {
        let start = Instant::now();
        let output = run_script("yes", &LIMITS);
        assert_eq!(output.ended, Ended::TooLong);
        assert_eq!(output.output.len(), LIMITS.output_bytes);
        let output = run_script("head -c 1000 /dev/zero", &LIMITS);
        assert_eq!(
            (output.ended, output.output.len()),
            (Ended::Exited(0), 1000)
        );
        // Errors are dropped, not refused.
        let output = run_script("head -c 300000 /dev/zero >&2", &LIMITS);
        assert_eq!((output.ended, output.errors.len()), (Ended::Exited(0), 10));
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(run(&path, b"", &LIMITS).is_err());
        std::fs::write(&path, "no program").unwrap();
        assert!(run(&path, b"", &LIMITS).is_err());
    }
}
