//! The user and group of this process.

use std::ffi::{CStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr;

/// Effective user id of this process (POSIX `geteuid`, which cannot fail).
pub(crate) fn effective_user() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::geteuid() }
}

/// Real user id of this process (POSIX `getuid`, which cannot fail).
pub(crate) fn real_user() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::getuid() }
}

/// Effective group id of this process (POSIX `getegid`, which cannot fail).
pub(crate) fn effective_group() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::getegid() }
}

/// Real group id of this process (POSIX `getgid`, which cannot fail).
pub(crate) fn real_group() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::getgid() }
}

/// The home directory of a user in the user database; `None` if there is no such user, or no
/// absolute path.
pub(crate) fn home_of(user: u32) -> Option<PathBuf> {
    const ENTRY_BYTES_MAX: usize = 1 << 20;
    let mut strings = vec![0u8; 4096];
    loop {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut result: *mut libc::passwd = ptr::null_mut();
        // SAFETY: all pointers are to live memory of the right types, and the length is that of the
        // buffer.
        let error = unsafe {
            libc::getpwuid_r(
                user,
                entry.as_mut_ptr(),
                strings.as_mut_ptr().cast(),
                strings.len(),
                &mut result,
            )
        };
        if error == libc::ERANGE && strings.len() < ENTRY_BYTES_MAX {
            strings.resize(strings.len() * 2, 0);
            continue;
        }
        if error != 0 || result.is_null() {
            return None;
        }
        // SAFETY: the call has filled in the entry; its strings are in the buffer and end with a
        // NUL.
        let home = unsafe {
            let home = (*result).pw_dir;
            if home.is_null() {
                return None;
            }
            CStr::from_ptr(home).to_bytes().to_vec()
        };
        return Some(PathBuf::from(OsString::from_vec(home))).filter(|home| home.is_absolute());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_has_the_home_directory_of_root() {
        assert!(home_of(0).is_some_and(|home| home.is_absolute()));
        assert_eq!(home_of(4_000_000_000), None);
    }
}
