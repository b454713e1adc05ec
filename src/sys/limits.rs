//! What a process inherits from whoever starts it: limits, the mask of new files' modes, priority,
//! working directory. A daemon lives longer than the session that it was started in, and a limit that
//! was meant for a shell's commands would end it or lose data.
//!
//! Source: getrlimit(2), umask(2), setpriority(2), signal(7).

use std::io;
use std::mem::MaybeUninit;

/// A limit, as getrlimit(2) names it.
type Resource = libc::__rlimit_resource_t;

/// What a process may take is limited to this by default, where root can raise it.
const OPEN_FILES: libc::rlim_t = 1 << 16;

/// Raises the limits of this process as far as it may. Where root may, more files can be open than
/// the session was allowed.
pub fn raise_limits() {
    // Address space, data and CPU time end a process as surely as a file's size.
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

/// Sets the soft limit to the hard one, and that to `wanted` at least, where this is allowed.
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
            tracing::debug!(resource, %error, "a limit stays as it is");
        }
    }
}

/// How many files this process may have open.
pub fn open_files() -> u64 {
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

/// A file that gets larger than `ulimit -f` allows is an error (EFBIG), not this process's end.
pub fn ignore_file_size_signal() {
    // SAFETY: to ignore a signal runs nothing.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Keeps a mask that was inherited from taking the owner's own rights from what is made: a volume
/// that its owner cannot open again.
pub fn keep_owner_mode_bits() {
    const OWNER: libc::mode_t = 0o700;
    // SAFETY: plain numbers. No other thread runs yet that could make a file in between.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask & !OWNER);
    }
}

/// Takes back a priority that was lowered for the command that started this (nice(1)), where that is
/// allowed: everybody who uses the mount would wait with it.
pub fn restore_priority() {
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
        // Of all that could be raised, what no other test depends on.
        let before = limit_of(libc::RLIMIT_FSIZE).unwrap();
        raise_limits();
        let after = limit_of(libc::RLIMIT_FSIZE).unwrap();
        assert_eq!(after.rlim_cur, after.rlim_max);
        assert!(after.rlim_max >= before.rlim_max);
        assert!(open_files() >= 256);
    }
}
