//! The time of day.

/// `CLOCK_REALTIME_COARSE` (clock_gettime(2)): seconds since 1970 and nanoseconds below 10^9. Linux
/// moves it with the timer's tick. The epoch where the clock cannot be read.
pub fn coarse_time() -> (i64, u32) {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live, writable timespec.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut time) };
    match u32::try_from(time.tv_nsec) {
        Ok(nanos) if read == 0 && nanos < 1_000_000_000 => (time.tv_sec, nanos),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn is_the_time_of_day() {
        let (secs, _) = super::coarse_time();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert!(now.abs_diff(secs.unsigned_abs()) < 60);
    }
}
