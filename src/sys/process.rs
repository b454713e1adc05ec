//! Processes, threads, CPUs and signals.

use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// `prctl` code of Linux 5.6; see prctl(2).
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Turns a `-1` result into the error that it stands for.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A set of CPUs, at most 1024 of them (`CPU_SETSIZE`).
#[derive(Clone, Copy)]
pub(crate) struct CpuSet(libc::cpu_set_t);

impl std::fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries((0..CpuSet::LIMIT).filter(|&cpu| self.contains(cpu)))
            .finish()
    }
}

impl PartialEq for CpuSet {
    fn eq(&self, other: &Self) -> bool {
        (0..Self::LIMIT).all(|cpu| self.contains(cpu) == other.contains(cpu))
    }
}

impl CpuSet {
    /// Upper bound of CPU numbers.
    pub(crate) const LIMIT: usize = libc::CPU_SETSIZE as usize;

    /// The CPUs on which the calling thread may run: the machine's, minus those excluded by a
    /// cpuset or `taskset`.
    ///
    /// # Errors
    /// When sched_getaffinity(2) fails.
    pub(crate) fn allowed() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: the pointer is to a cpu_set_t of the size given; 0 means the calling thread.
        let result =
            unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
        check(result)?;
        // SAFETY: all-zero is a valid cpu_set_t and the call above filled it in.
        Ok(Self(unsafe { set.assume_init() }))
    }

    /// Only this CPU. `None` if the number is out of range.
    pub(crate) fn only(cpu: usize) -> Option<Self> {
        if cpu >= Self::LIMIT {
            return None;
        }
        // SAFETY: all-zero is a valid (empty) cpu_set_t; `cpu` is in range.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            Some(Self(set))
        }
    }

    /// True if the CPU is in the set.
    pub(crate) fn contains(&self, cpu: usize) -> bool {
        // SAFETY: guarded by the range check before it.
        cpu < Self::LIMIT && unsafe { libc::CPU_ISSET(cpu, &self.0) }
    }

    /// Number of CPUs in the set.
    pub(crate) fn len(&self) -> usize {
        (0..Self::LIMIT).filter(|&cpu| self.contains(cpu)).count()
    }

    /// Restricts the calling thread to these CPUs.
    ///
    /// # Errors
    /// When sched_setaffinity(2) fails, such as for CPUs that are not allowed.
    pub(crate) fn apply_to_this_thread(&self) -> io::Result<()> {
        // SAFETY: the pointer is to a cpu_set_t of the size given; 0 means the calling thread.
        check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) })?;
        Ok(())
    }
}

/// Lowers the priority of this thread below that of all others, for the CPU and, if the disk's
/// scheduler supports it, for I/O (`setpriority(2)`, `ioprio_set(2)`). If that is refused, the
/// priority stays.
pub(crate) fn lower_thread_priority() {
    const NICEST: libc::c_int = 19;
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: plain numbers; 0 means the calling thread, of which alone Linux changes it.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICEST);
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            IOPRIO_CLASS_IDLE,
        );
    }
}

/// Declares to the kernel that this thread, and threads it creates from now on, serve writeback:
/// their own writes are throttled only against their own device, not against the dirty pages that
/// wait for them. Needs CAP_SYS_RESOURCE.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE.
pub(crate) fn set_io_flusher() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: plain numbers; no memory is passed.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) })?;
    Ok(())
}

/// The termination signals SIGTERM, SIGINT and SIGHUP, blocked in the calling thread.
#[derive(Clone, Copy)]
pub struct EndSignals(libc::sigset_t);

impl EndSignals {
    /// Blocks them in the calling thread and in all threads that it creates afterwards, so that
    /// only [`EndSignals::wait`] receives them. SIGTERM and SIGINT get their default action even if
    /// the parent ignored them, as shells do for background jobs.
    ///
    /// # Errors
    /// When pthread_sigmask(3) fails.
    pub fn block() -> io::Result<Self> {
        Self::block_these(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
    }

    /// Blocks SIGTERM and SIGINT only; SIGHUP keeps its current action, such as being ignored.
    ///
    /// # Errors
    /// When pthread_sigmask(3) fails.
    pub fn block_but_hangup() -> io::Result<Self> {
        Self::block_these(&[libc::SIGTERM, libc::SIGINT])
    }

    fn block_these(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: the default action runs none of this program's code.
        unsafe {
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            libc::signal(libc::SIGINT, libc::SIG_DFL);
        }
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set before any other use of it; all pointers are to
        // live memory of the right type or null where the call permits it.
        let (result, set) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in signals {
                libc::sigaddset(&mut set, *signal);
            }
            (
                libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()),
                set,
            )
        };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        Ok(Self(set))
    }

    /// Consumes a pending signal, if any, and returns whether there was one. Does not wait.
    pub fn arrived(&self) -> bool {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the set was initialised by `block`; a null pointer is permitted for what is known
        // of the signal; the time lives for the call.
        unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), &now) > 0 }
    }

    /// Waits for one of these signals, at most for `limit`, and returns its name; `None` if none
    /// arrived.
    ///
    /// # Errors
    /// When sigtimedwait(2) fails.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Option<&'static str>> {
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set was initialised by `block`; null pointers are permitted for what is known
        // of the signal, and for a time without end; a time lives for the call.
        match unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), limit) } {
            libc::SIGTERM => Ok(Some("SIGTERM")),
            libc::SIGINT => Ok(Some("SIGINT")),
            libc::SIGHUP => Ok(Some("SIGHUP")),
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                    _ => Err(error),
                }
            }
            _ => Ok(Some("signal")),
        }
    }
}

/// True if this process ignores SIGHUP, as when started by nohup(1).
pub(crate) fn is_hangup_ignored() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null pointer changes nothing; the other one is to a live sigaction.
    let result = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: all-zero is a valid sigaction, and the call fills it in.
    result == 0 && unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// The side of a fork on which the caller is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// The parent process.
    Parent {
        /// The child process.
        child: Child,
        /// The data that the child writes; ends when the child closes its side or dies.
        from_child: PipeReader,
    },
    /// The child process.
    Child {
        /// The pipe to the parent.
        to_parent: PipeWriter,
    },
}

/// A forked process.
#[derive(Debug)]
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Waits for its end. Returns its exit code, or the negative number of the signal that killed
    /// it.
    ///
    /// # Errors
    /// When waitpid(2) fails, such as for a process that was waited for before.
    pub(crate) fn wait(&self) -> io::Result<i32> {
        let mut status: libc::c_int = 0;
        loop {
            // SAFETY: the pointer is to a live integer.
            match check(unsafe { libc::waitpid(self.0, &mut status, 0) }) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if libc::WIFSIGNALED(status) {
            Ok(-libc::WTERMSIG(status))
        } else {
            Ok(libc::WEXITSTATUS(status))
        }
    }

    /// Sends it a signal; has no effect if it has ended.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: plain numbers. No other process gets this number before the child is waited for.
        unsafe { libc::kill(self.0, signal) };
    }
}

/// Number of threads of this process, from `/proc/self/task`.
fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Forks. Refused if the process has more than one thread: the child would inherit locks whose
/// holders do not exist in it.
///
/// # Errors
/// When the process has several threads, or there are no more processes or descriptors.
pub(crate) fn fork() -> io::Result<Forked> {
    if thread_count()? != 1 {
        return Err(io::Error::other(
            "a process with several threads cannot be forked",
        ));
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: there is one thread (checked above), so the child is a whole copy of the process
    // and may run any code.
    let pid = check(unsafe { libc::fork() })?;
    Ok(if pid == 0 {
        drop(reader);
        Forked::Child { to_parent: writer }
    } else {
        drop(writer);
        Forked::Parent {
            child: Child(pid),
            from_child: reader,
        }
    })
}

/// Detaches from the terminal: a new session, `/` as working directory, and `/dev/null` for
/// standard input, output and error.
///
/// # Errors
/// When `/dev/null` cannot be opened, or a descriptor cannot be replaced.
pub(crate) fn detach_from_terminal() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // SAFETY: takes no argument. It fails only for the leader of a process group, which a forked
    // child is not; a leader already has what is wanted.
    let _ = unsafe { libc::setsid() };
    for standard in 0..=2 {
        // SAFETY: both are open descriptors or become one; dup2 replaces the standard stream
        // atomically and std keeps no state about it.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    Ok(())
}

/// Closes every inherited descriptor except the standard streams and `keep`. Only for a process
/// that has opened none of its own yet: those would be closed too.
///
/// # Errors
/// When the descriptors cannot be listed.
pub(crate) fn close_inherited_descriptors(keep: Option<RawFd>) -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    let kept = keep.and_then(|kept| libc::c_uint::try_from(kept).ok());
    let closed = match kept.filter(|kept| *kept >= FIRST) {
        None => close_range(FIRST, libc::c_uint::MAX),
        Some(kept) => close_range(FIRST, kept.saturating_sub(1))
            .and_then(|()| close_range(kept.saturating_add(1), libc::c_uint::MAX)),
    };
    match closed {
        // Linux before 5.9.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            for descriptor in open_descriptors()? {
                if descriptor >= 3 && keep != Some(descriptor) {
                    close_inherited_descriptor(descriptor);
                }
            }
            Ok(())
        }
        result => result,
    }
}

/// Closes one inherited descriptor.
pub(crate) fn close_inherited_descriptor(descriptor: RawFd) {
    // SAFETY: a plain number. No value of this program owns a descriptor that was open before it
    // started. If it is not open, the call fails without harm.
    unsafe { libc::close(descriptor) };
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    let flags: libc::c_uint = 0;
    // SAFETY: plain numbers; the caller owns no descriptor within the range.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(libc::c_int::try_from(result).unwrap_or(-1)).map(drop)
}

fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let listed = std::fs::read_dir("/proc/self/fd")?;
    // Collected first: the directory is open while it is read.
    let names: io::Result<Vec<_>> = listed.map(|entry| Ok(entry?.file_name())).collect();
    let numbers = names?.into_iter();
    Ok(numbers
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

/// Gives the calling thread its own, empty table of descriptors, without even the standard streams
/// (close_range(2), Linux 5.9). Other threads are not affected.
///
/// # Errors
/// When the kernel refuses; nothing has changed then.
pub(crate) fn close_descriptors_of_this_thread() -> io::Result<()> {
    const FIRST: libc::c_uint = 0;
    // SAFETY: plain numbers. The table is this thread's own from here on, so no descriptor that
    // another thread owns is closed; this thread is to own none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    check(libc::c_int::try_from(result).unwrap_or(-1)).map(drop)
}

/// The process at the other end of a Unix socket, as of the time of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PeerCredentials {
    /// Process.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
}

/// `SO_PEERCRED` of a connected Unix socket.
///
/// # Errors
/// When the socket is not connected.
pub(crate) fn peer_credentials(stream: &UnixStream) -> io::Result<PeerCredentials> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to a live ucred and to its length.
    check(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut len,
        )
    })?;
    Ok(PeerCredentials {
        pid: credentials.pid,
        uid: credentials.uid,
    })
}

/// A process whose end is awaited. Unlike a pid, it never refers to another process later.
#[derive(Debug)]
pub(crate) struct WatchedProcess(OwnedFd);

impl WatchedProcess {
    /// `pidfd_open(2)`.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let flags: libc::c_uint = 0;
        // SAFETY: plain numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
        let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the kernel has just made this descriptor and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for its end, at most for `timeout` (forever if `None`). True if it has ended.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = timeout.map_or(-1, |t| {
            libc::c_int::try_from(t.as_millis()).unwrap_or(libc::c_int::MAX)
        });
        loop {
            // SAFETY: one live pollfd.
            match check(unsafe { libc::poll(&mut poll, 1, millis) }) {
                Ok(ready) => return Ok(ready == 1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for WatchedProcess {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_sets() {
        let allowed = CpuSet::allowed().unwrap();
        assert!(allowed.len() > 0);
        let first = (0..CpuSet::LIMIT)
            .find(|&cpu| allowed.contains(cpu))
            .unwrap();
        std::thread::spawn(move || {
            let one = CpuSet::only(first).unwrap();
            one.apply_to_this_thread().unwrap();
            assert_eq!(CpuSet::allowed().unwrap(), one);
            allowed.apply_to_this_thread().unwrap();
            assert_eq!(CpuSet::allowed().unwrap(), allowed);
        })
        .join()
        .unwrap();
        assert!(CpuSet::only(CpuSet::LIMIT).is_none());
        assert!(!allowed.contains(usize::MAX));
    }

    #[test]
    fn own_peer() {
        let (one, _two) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&one).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.uid, crate::sys::identity::effective_user());
    }

    #[test]
    fn watches_a_process_to_its_end() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let watched = WatchedProcess::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!watched.wait(Some(Duration::from_millis(10))).unwrap());
        child.kill().unwrap();
        assert!(watched.wait(Some(Duration::from_secs(10))).unwrap());
        child.wait().unwrap();
        assert!(WatchedProcess::open(-1).is_err());
    }

    #[test]
    fn does_not_fork_with_threads() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(fork().is_err());
        drop(stop);
        other.join().unwrap().unwrap_err();
    }

    #[test]
    fn end_signals_are_waited_for() {
        std::thread::spawn(|| {
            let signals = EndSignals::block().unwrap();
            // SAFETY: the signal is blocked in this thread and directed at it.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGHUP) };
            assert_eq!(signals.wait(None).unwrap(), Some("SIGHUP"));
        })
        .join()
        .unwrap();
    }
}
