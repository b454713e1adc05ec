//! The time of day.
//!
//! There are two clocks: a cheap one that advances with the timer's tick, for times shown to
//! people; and the one that the kernel stamps files with. Since Linux 6.13 the latter never falls
//! behind a finer-grained time that a filesystem has used ("multigrain timestamps"), and no system
//! call reads it. So a file in memory is stamped and its time is read: that time is not earlier
//! than any time given to a file before, and no later file time is earlier. On older kernels the
//! file is stamped with the tick, as all others are.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;

/// False for a time from a clock that was never set, in seconds since 1970: within the first year,
/// or before.
pub(crate) fn is_set(secs: i64) -> bool {
    secs >= 365 * 24 * 3600
}

/// A time of day.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Time {
    /// Seconds since 1970.
    pub(crate) secs: i64,
    /// Nanoseconds, below 10^9.
    pub(crate) nanos: u32,
}

/// `CLOCK_REALTIME_COARSE` (clock_gettime(2)), which Linux advances with the timer's tick. The
/// epoch if the clock cannot be read.
pub(crate) fn coarse_time() -> Time {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live, writable timespec.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut time) };
    match read {
        0 => checked(time.tv_sec, time.tv_nsec).unwrap_or_default(),
        _ => Time::default(),
    }
}

/// The time that the kernel would give a file now, in order with all times that it gives files.
/// Takes about a microsecond. [`coarse_time`] if no file in memory can be created.
pub(crate) fn file_time() -> Time {
    static STAMPED: OnceLock<Option<File>> = OnceLock::new();
    STAMPED
        .get_or_init(|| memory_file().ok())
        .as_ref()
        .and_then(|file| stamp(file).ok())
        .unwrap_or_else(coarse_time)
}

fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a string that ends in a zero byte.
    let descriptor = unsafe { libc::memfd_create(c"clock".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

fn stamp(file: &File) -> io::Result<Time> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: an open descriptor; without times both are the present (futimens(3)). The status is
    // writable, and is written where fstat(2) succeeds.
    let status = unsafe {
        if libc::futimens(file.as_raw_fd(), std::ptr::null()) != 0
            || libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) != 0
        {
            return Err(io::Error::last_os_error());
        }
        status.assume_init()
    };
    checked(status.st_ctime, status.st_ctime_nsec).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn checked(secs: i64, nanos: i64) -> Option<Time> {
    let nanos = u32::try_from(nanos).ok()?;
    (nanos < 1_000_000_000).then_some(Time { secs, nanos })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn is_the_time_of_day() {
        for Time { secs, .. } in [coarse_time(), file_time()] {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            assert!(now.abs_diff(secs.unsigned_abs()) < 60);
        }
    }

    #[test]
    fn is_in_order_with_the_times_of_files() {
        let file = tempfile::tempfile().unwrap();
        let stamped = || {
            stamp(&file).unwrap();
            let status = file.metadata().unwrap();
            checked(status.ctime(), status.ctime_nsec()).unwrap()
        };
        let mut before = stamped();
        for _ in 0..10_000 {
            let ours = file_time();
            assert!(before <= ours);
            before = stamped();
            assert!(ours <= before);
        }
    }
}
