//! Properties that a process inherits from its parent: limits, the umask, the priority. A daemon
//! outlives the session in which it was started, and a limit that was meant for a shell's commands
//! would end it or lose data.
//!
//! Source: getrlimit(2), umask(2), setpriority(2), signal(7).

use std::io;
use std::mem::MaybeUninit;

/// A limit, as getrlimit(2) names it.
type Resource = libc::__rlimit_resource_t;

/// Target for the number of open files, which root can raise.
const OPEN_FILES: libc::rlim_t = 1 << 16;

/// Raises the limits of this process as far as permitted. As root it may open more files than the
/// session was allowed to.
pub(crate) fn raise_limits() {
    // Limits on address space, data and CPU time end a process as surely as one on file size.
    for resource in [
        libc::RLIMIT_FSIZE,
        libc::RLIMIT_CPU,
        libc::RLIMIT_AS,
        libc::RLIMIT_DATA,
    ] {
        raise(resource, libc::RLIM_INFINITY);
    }
    raise(libc::RLIMIT_NOFILE, OPEN_FILES);
}

/// Sets the soft limit to the hard one, and that to at least `wanted` if permitted.
fn raise(resource: Resource, wanted: libc::rlim_t) {
    let Ok(limit) = limit_of(resource) else {
        return;
    };
    let higher = libc::rlimit {
        rlim_cur: limit.rlim_max.max(wanted),
        rlim_max: limit.rlim_max.max(wanted),
    };
    if set_limit(resource, &higher).is_err() {
        let allowed = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        if let Err(error) = set_limit(resource, &allowed) {
            tracing::debug!(resource, %error, "a limit could not be raised");
        }
    }
}

/// The number of files that this process may have open.
pub(crate) fn open_files() -> u64 {
    limit_of(libc::RLIMIT_NOFILE).map_or(u64::MAX, |limit| limit.rlim_cur)
}

fn limit_of(resource: Resource) -> io::Result<libc::rlimit> {
    let mut limit = MaybeUninit::uninit();
    // SAFETY: the pointer is to a writable rlimit, which is written where the call succeeds.
    match unsafe { libc::getrlimit(resource, limit.as_mut_ptr()) } {
        // SAFETY: as above.
        0 => Ok(unsafe { limit.assume_init() }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_limit(resource: Resource, limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: the pointer is to a live rlimit.
    match unsafe { libc::setrlimit(resource, limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes exceeding `ulimit -f` an error (EFBIG) instead of the end of this process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: to ignore a signal runs nothing.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Prevents an inherited umask from removing the owner's own permissions from new files: the owner
/// could not open a volume again.
pub(crate) fn keep_owner_mode_bits() {
    const OWNER: libc::mode_t = 0o700;
    // SAFETY: plain numbers. No other thread runs yet that could make a file in between.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask & !OWNER);
    }
}

/// Restores a priority that was lowered for the command that started this process (nice(1)), if
/// permitted: it would slow down all users of the mount.
pub(crate) fn restore_priority() {
    // SAFETY: plain numbers; 0 means this process.
    let refused = unsafe {
        // -1 is a priority too; a lower number is a higher one, which is left.
        libc::getpriority(libc::PRIO_PROCESS, 0) > 0
            && libc::setpriority(libc::PRIO_PROCESS, 0, 0) != 0
    };
    if refused {
        tracing::info!("this process keeps the low priority that it was started with");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limits_become_hard_ones() {
        // A limit that no other test depends on.
        let before = limit_of(libc::RLIMIT_FSIZE).unwrap();
        raise_limits();
        let after = limit_of(libc::RLIMIT_FSIZE).unwrap();
        assert_eq!(after.rlim_cur, after.rlim_max);
        assert!(after.rlim_max >= before.rlim_max);
        assert!(open_files() >= 256);
    }
}
