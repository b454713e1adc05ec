//! Probes a filesystem that may never respond, in a process that can be left behind.
//!
//! A thread is not enough: a thread that waits for a FUSE daemon which has read its request cannot
//! be killed, and the whole process would not end before the daemon does. A separate process is
//! left behind alone. It has no descriptor of this process, and secrets are zeros in it
//! ([`super::memory`]).
//!
//! Between `fork(2)` and `_exit(2)` it makes only system calls: other threads may have held locks
//! during the fork (signal-safety(7)).

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::deadline::within;

/// Asks the filesystem of an open descriptor for its statistics; `None` if it does not respond in
/// time. A FUSE filesystem whose daemon is dead responds with `ENOTCONN`.
pub(crate) fn statistics(of: BorrowedFd<'_>, limit: Duration) -> Option<io::Result<()>> {
    let of = match of.try_clone_to_owned() {
        Ok(of) => of,
        Err(error) => return Some(Err(error)),
    };
    let asked = within(limit, move || {
        in_process(|| {
            let mut space = MaybeUninit::<libc::statfs64>::uninit();
            // SAFETY: numbers, and memory of this function.
            unsafe {
                libc::dup2(of.as_raw_fd(), 0);
                close_from(1);
                match libc::fstatfs64(0, space.as_mut_ptr()) {
                    0 => 0,
                    _ => *libc::__errno_location(),
                }
            }
        })
    })?;
    Some(asked.and_then(|code| match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }))
}

/// Examines a directory, or its nearest existing ancestor, and reads the beginning of a plain file
/// in it. True if every call succeeded or failed in time.
pub(crate) fn responds(directory: &Path, file: &str, limit: Duration) -> bool {
    let paths: Result<Vec<CString>, _> = directory
        .ancestors()
        .map(|path| CString::new(path.as_os_str().as_bytes()))
        .collect();
    let (Ok(paths), Ok(file)) = (paths, CString::new(file)) else {
        return false;
    };
    // The thread waits for the process and reaps it whenever it ends.
    let ended = within(limit, move || {
        in_process(|| {
            ask(&paths, &file);
            0
        })
    });
    matches!(ended, Some(Ok(0)))
}

/// True if resolving the path succeeded or failed in time.
pub(crate) fn resolves(path: &Path, limit: Duration) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return true;
    };
    let ended = within(limit, move || {
        in_process(|| {
            // SAFETY: a NUL-terminated string and numbers.
            unsafe {
                close_from(0);
                libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            }
            0
        })
    });
    ended.is_some()
}

/// Forks, waits for the child, and returns its exit code. The closure may make only system calls.
fn in_process(ask: impl FnOnce() -> libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the child runs `ask` alone, which makes system calls only, and then ends.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let code = ask();
            // SAFETY: a plain number; nothing of the parent's is flushed or freed.
            unsafe { libc::_exit(code) };
        }
        _ => {}
    }
    let mut status: libc::c_int = 0;
    loop {
        // SAFETY: the pointer is to a live integer, and the child is waited for here alone.
        if unsafe { libc::waitpid(child, &mut status, 0) } == child {
            return match libc::WIFEXITED(status) {
                true => Ok(libc::WEXITSTATUS(status)),
                false => Err(io::Error::other("the process that asked was killed")),
            };
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Runs in the child: no allocation, no lock, no panic.
fn ask(paths: &[CString], file: &CString) {
    let mut byte = [0u8; 1];
    let mut space = MaybeUninit::<libc::statvfs64>::uninit();
    // SAFETY: numbers, NUL-terminated strings, and memory of this function. The descriptors that
    // are closed are the child's copies; it opens its own afterwards.
    unsafe {
        close_from(0);
        for path in paths {
            let directory = libc::open(path.as_ptr(), libc::O_DIRECTORY | libc::O_CLOEXEC);
            if directory < 0 {
                continue;
            }
            libc::fstatvfs64(directory, space.as_mut_ptr());
            let mut stat = MaybeUninit::<libc::stat64>::zeroed();
            let nofollow = libc::AT_SYMLINK_NOFOLLOW;
            libc::fstatat64(directory, file.as_ptr(), stat.as_mut_ptr(), nofollow);
            // All zero if there is no such file. Opening a device might have an effect.
            if stat.assume_init().st_mode & libc::S_IFMT == libc::S_IFREG {
                let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
                let file = libc::openat(directory, file.as_ptr(), flags);
                libc::read(file, byte.as_mut_ptr().cast(), byte.len());
            }
            return;
        }
    }
}

/// Runs in the child: closes its copies of all descriptors from `first` on.
fn close_from(first: libc::c_uint) {
    /// The default limit of open descriptors.
    const DESCRIPTORS: libc::c_uint = 1024;
    let flags: libc::c_uint = 0;
    // SAFETY: numbers; nothing in the child uses what is closed.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) != 0 {
            // Linux before 5.9.
            (first..DESCRIPTORS).for_each(|descriptor| {
                libc::close(descriptor as libc::c_int);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn existing_and_missing_paths_respond() {
        const LONG: Duration = Duration::from_secs(20);
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("file"), "text").unwrap();
        for path in [top.path(), &top.path().join("a/b"), Path::new("/")] {
            assert!(responds(path, "file", LONG), "{}", path.display());
        }
        assert!(!responds(top.path(), "no\0file", LONG));
        assert!(resolves(top.path(), LONG) && resolves(Path::new("no\0file"), LONG));
        let open = std::fs::File::open(top.path()).unwrap();
        statistics(open.as_fd(), LONG).unwrap().unwrap();
    }
}
