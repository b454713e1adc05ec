//! Memory that must not reach swap or core dumps.
//!
//! Each secret has its own pages from `mmap`, so that locking, excluding from dumps and unlocking
//! never affect a neighbour, and moving the owner moves a pointer and leaves no copy behind. A
//! forked process sees zeros there (`MADV_WIPEONFORK`, Linux 4.14). Locking (`mlock`) and excluding
//! (`MADV_DONTDUMP`) are best effort: without the permission or the quota to lock
//! (`RLIMIT_MEMLOCK`), the secret is held in unlocked memory. Every byte is zeroised before the
//! pages are freed.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use zeroize::Zeroize;

/// The bytes of a secret, in separate pages.
pub(crate) struct SecretMemory {
    start: NonNull<u8>,
    len_bytes: usize,
    mapped_bytes: usize,
}

// SAFETY: the mapping is private to this value, which owns it as a `Box<[u8]>` owns its bytes; it
// is reached only through `&self` (reads) and `&mut self` (writes).
unsafe impl Send for SecretMemory {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for SecretMemory {}

impl SecretMemory {
    /// Allocates zeroed memory for a secret of `len_bytes` bytes (at least one page).
    ///
    /// # Errors
    /// When there is no memory. Failing to lock it is no error.
    pub(crate) fn zeroed(len_bytes: usize) -> io::Result<Self> {
        let page_bytes = page_bytes();
        let mapped_bytes = len_bytes
            .max(1)
            .checked_next_multiple_of(page_bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: a new anonymous private mapping at an address of the kernel's choice; no memory
        // in use is affected.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the range is exactly the mapping made above. All calls change how the kernel
        // treats the pages, not what is in them.
        unsafe {
            libc::madvise(address, mapped_bytes, libc::MADV_DONTDUMP);
            libc::madvise(address, mapped_bytes, libc::MADV_WIPEONFORK);
            libc::mlock(address, mapped_bytes);
        }
        Ok(Self {
            start,
            len_bytes,
            mapped_bytes,
        })
    }

    /// Allocates a copy of `bytes`; the caller zeroises the original.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let mut memory = Self::zeroed(bytes.len())?;
        memory.expose_mut().copy_from_slice(bytes);
        Ok(memory)
    }

    /// The secret.
    pub(crate) fn expose(&self) -> &[u8] {
        // SAFETY: `start` is the start of a live, initialised (zeroed by the kernel) mapping of at
        // least `len_bytes` bytes, which nobody writes while `&self` is held.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len_bytes) }
    }

    /// The secret, for filling it.
    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `expose`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len_bytes) }
    }
}

impl Drop for SecretMemory {
    fn drop(&mut self) {
        self.expose_mut().zeroize();
        // SAFETY: the range is exactly the mapping made in `zeroed`, and no reference to it
        // outlives `self`. Unmapping unlocks.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.mapped_bytes);
        }
    }
}

impl fmt::Debug for SecretMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretMemory(secret)")
    }
}

/// Keeps this process's memory out of core dumps and away from other processes of the same user:
/// permanently clears the dumpable flag (prctl(2), `PR_SET_DUMPABLE`; this also hides
/// `/proc/self/mem` and refuses ptrace) and sets the core size limit to zero.
///
/// # Errors
/// When the kernel refuses. A caller that continues should warn.
pub(crate) fn disable_core_dumps() -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid `rlimit` that lives over the call, which only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (zero, off): (libc::c_ulong, libc::c_ulong) = (0, 0);
    // SAFETY: PR_SET_DUMPABLE takes integers only and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, off, zero, zero, zero) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Size of a memory page; 4096 if the system does not report it.
fn page_bytes() -> usize {
    // SAFETY: sysconf takes a number and returns one.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(answer)
        .ok()
        .filter(|bytes| bytes.is_power_of_two())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let mut memory = SecretMemory::copy_of(&[7; 5000]).expect("memory");
        assert_eq!(memory.expose(), [7; 5000]);
        memory.expose_mut()[4999] = 8;
        assert_eq!(memory.expose()[4998..], [7, 8]);
        assert_eq!(format!("{memory:?}"), "SecretMemory(secret)");
        assert!(SecretMemory::zeroed(0).expect("empty").expose().is_empty());
    }

    #[test]
    fn core_dumps_are_off_afterwards() {
        disable_core_dumps().expect("allowed to any process");
        // SAFETY: takes an integer, touches no memory.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, 0);
    }
}
