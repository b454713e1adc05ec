//! The user of this process.

use std::ffi::{CStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr;

/// Effective user id of this process (POSIX `geteuid`, which cannot fail).
pub fn effective_user() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::geteuid() }
}

/// Real user id of this process (POSIX `getuid`, which cannot fail).
pub fn real_user() -> u32 {
    // SAFETY: no arguments, no memory touched.
    unsafe { libc::getuid() }
}

/// The home directory of a user in the user database; `None` if there is no such user, or no
/// absolute path.
pub fn home_of(user: u32) -> Option<PathBuf> {
    const LARGEST_BYTES: usize = 1 << 20;
    let mut strings = vec![0u8; 4096];
    loop {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found: *mut libc::passwd = ptr::null_mut();
        // SAFETY: all pointers are to live memory of the right types, and the length is that of the
        // buffer.
        let error = unsafe {
            libc::getpwuid_r(
                user,
                entry.as_mut_ptr(),
                strings.as_mut_ptr().cast(),
                strings.len(),
                &mut found,
            )
        };
        if error == libc::ERANGE && strings.len() < LARGEST_BYTES {
            strings.resize(strings.len() * 2, 0);
            continue;
        }
        if error != 0 || found.is_null() {
            return None;
        }
        // SAFETY: the call found the entry and filled it in, and its strings are in the buffer and
        // end with a NUL.
        let home = unsafe {
            let home = (*found).pw_dir;
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
    fn the_database_knows_where_root_lives() {
        assert!(home_of(0).is_some_and(|home| home.is_absolute()));
        assert_eq!(home_of(4_000_000_000), None);
    }
}
