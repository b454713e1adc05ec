//! Wipes secrets from the stack and from freed memory.
//!
//! A type that zeroises itself cannot reach the copies that its moves left behind, nor what a
//! cipher spills from registers, nor buffers that a library grows and frees. These can:
//!
//! - [`with_stack_wiped`] wipes the stack that its work used, and [`StackWipe`] the stack that was
//!   used during its lifetime: once for a whole run of pages.
//! - [`with_secrets`] wipes a larger part of the stack, and makes [`WipingAllocator`] zeroise
//!   everything that the thread frees meanwhile.
//!
//! The caller is responsible for the returned value: it should be a pointer to the secret, never
//! the secret. Registers are not wiped; they are soon overwritten and are not in the memory of the
//! process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;

/// Stack used by deriving, sealing and opening, with a margin, in bytes. The widest AES backend
/// holds expanded keys in frames of 9 KiB.
const PAGE_WORK_BYTES: usize = 16 * 1024;

/// Stack used by ChaCha20-Poly1305 for a page, in bytes.
const CHACHA_WORK_BYTES: usize = 2048;

/// Stack used by parsing and using an RSA key, with a margin, in bytes.
const KEY_WORK_BYTES: usize = 128 * 1024;

thread_local! {
    /// Set while freed memory of this thread is zeroised. It needs no destructor, so it can be read
    /// at any time of the thread.
    static WIPING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, then wipes the 16 KiB of stack below the caller.
#[inline]
pub(crate) fn with_stack_wiped<T>(work: impl FnOnce() -> T) -> T {
    let result = run(work);
    wipe_stack_below::<PAGE_WORK_BYTES>();
    result
}

/// Runs `work`, which needs little stack, then wipes the 2 KiB below the caller. For code that runs
/// for every page.
#[inline]
pub(crate) fn with_small_stack_wiped<T>(work: impl FnOnce() -> T) -> T {
    let result = run(work);
    wipe_stack_below::<CHACHA_WORK_BYTES>();
    result
}

/// Wipes 16 KiB of stack below the function that drops it. Code that handles secrets meanwhile must
/// be in functions with their own frames (`#[inline(never)]`).
#[derive(Debug)]
pub(crate) struct StackWipe;

impl Drop for StackWipe {
    #[inline]
    fn drop(&mut self) {
        wipe_stack_below::<PAGE_WORK_BYTES>();
    }
}

/// Runs `work`, zeroises all memory that this thread frees meanwhile, and then wipes the 128 KiB of
/// stack below the caller.
pub(crate) fn with_secrets<T>(work: impl FnOnce() -> T) -> T {
    let section = WipingSection {
        outer: WIPING.replace(true),
    };
    let result = run(work);
    wipe_stack_below::<KEY_WORK_BYTES>();
    drop(section);
    result
}

/// Ends a section, also during a panic.
struct WipingSection {
    outer: bool,
}

impl Drop for WipingSection {
    fn drop(&mut self) {
        WIPING.set(self.outer);
        if std::thread::panicking() {
            wipe_stack_below::<KEY_WORK_BYTES>();
        }
    }
}

/// A separate frame for the work, so that all of it is below the frame of the function that wipes.
#[inline(never)]
fn run<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_stack_below<const BYTES: usize>() {
    let mut below = MaybeUninit::<[u8; BYTES]>::uninit();
    // SAFETY: exactly the local variable, which holds nothing yet.
    unsafe { wipe(below.as_mut_ptr().cast(), BYTES) };
}

/// Zeroises memory in a way that the compiler cannot optimise away.
///
/// # Safety
/// `start` must be valid for writes of `bytes` bytes, and nobody may need what is there.
unsafe fn wipe(start: *mut u8, bytes: usize) {
    // SAFETY: as the caller promises. The empty assembly may read any memory that it could know of,
    // so what was written has to be there before it; it touches nothing.
    unsafe {
        ptr::write_bytes(start, 0, bytes);
        asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags));
    }
}

/// Zeroises a block that is about to be freed, if enabled.
///
/// # Safety
/// `start` must be valid for writes of `bytes` bytes, and nobody may need the contents.
unsafe fn wipe_if_enabled(start: *mut u8, bytes: usize) {
    if WIPING.get() {
        // SAFETY: as the caller promises.
        unsafe { wipe(start, bytes) };
    }
}

/// The system's allocator; within [`with_secrets`] it zeroises freed memory.
#[derive(Debug)]
pub(crate) struct WipingAllocator;

// SAFETY: every call is passed on to the system's allocator with its own layout; `realloc` by means
// of the other three keeps the contract of the trait.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the block is as long as its layout says, and its owner gives it up.
        unsafe {
            wipe_if_enabled(start, layout.size());
            System.dealloc(start, layout);
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        if !WIPING.get() {
            // SAFETY: as the caller promises.
            return unsafe { System.realloc(start, layout, new_bytes) };
        }
        // SAFETY: the caller promises that the new size is valid for the layout's alignment. The
        // old block and the new one do not overlap, and both have the bytes that are copied.
        unsafe {
            let new_layout = Layout::from_size_align_unchecked(new_bytes, layout.align());
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(start, new, layout.size().min(new_bytes));
                self.dealloc(start, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a buffer on the stack with a pattern and returns its address.
    #[inline(never)]
    fn leave_behind() -> usize {
        let mut bytes = [0xA5u8; 1024];
        std::hint::black_box(&mut bytes);
        bytes.as_ptr() as usize
    }

    /// Counts the bytes of the pattern at an address below the caller's frame.
    #[inline(never)]
    fn left(address: usize) -> usize {
        let mut count = 0;
        for offset in 0..1024 {
            // SAFETY: mapped memory of this thread's stack, which was written before; volatile,
            // since no variable of the language is there any more.
            let byte = unsafe { ptr::read_volatile((address + offset) as *const u8) };
            count += usize::from(byte == 0xA5);
        }
        count
    }

    #[test]
    fn stacks_are_wiped() {
        assert!(left(leave_behind()) > 512, "otherwise this shows nothing");
        assert_eq!(left(with_stack_wiped(leave_behind)), 0);
        assert_eq!(left(with_small_stack_wiped(leave_behind)), 0);
        assert_eq!(left(with_secrets(leave_behind)), 0);
        let wipe = StackWipe;
        let address = leave_behind();
        drop(wipe);
        assert_eq!(left(address), 0);
    }

    #[test]
    fn freed_memory_is_zeroised_only_within_the_section() {
        let mut block = [0xA5u8; 64];
        let mut wiped_block = || {
            let start = block.as_mut_ptr();
            // SAFETY: the array is writable, and its contents are not needed.
            unsafe { wipe_if_enabled(start, 64) };
            block
        };
        assert_eq!(wiped_block(), [0xA5; 64]);
        assert_eq!(with_secrets(wiped_block), [0; 64]);
        let grown = with_secrets(|| {
            let mut bytes = vec![7u8; 10];
            bytes.extend_from_slice(&[8; 5000]);
            bytes.shrink_to_fit();
            bytes
        });
        assert_eq!((grown[9], grown[10], grown.len()), (7, 8, 5010));
        assert!(!WIPING.get());
    }

    #[test]
    fn a_panic_ends_the_section() {
        let panicked = std::panic::catch_unwind(|| with_secrets(|| panic!("on purpose")));
        assert!(panicked.is_err() && !WIPING.get());
    }
}
