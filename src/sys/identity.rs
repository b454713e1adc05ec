//! Who this process is.

/// Effective user id of this process (POSIX `geteuid`, which cannot fail).
pub fn effective_user() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::geteuid() }
}
