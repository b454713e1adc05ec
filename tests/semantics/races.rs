//! Two threads change one file at the same time; one of them is stopped in the middle of its
//! operation.
//!
//! A truncated file keeps the bytes of its last page beyond the new end until the file grows, when
//! they are zeroed. The first thread is stopped at that point. The other thread's operation must
//! take effect completely before or completely after the first one's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bilayer::fs::types::{Fallocate, Handle, NodeId};
use bilayer::store::faulty::{CallKind, Stall};

use crate::support::{CHUNK, Mount, PAGE, ROOT, pattern};

/// Time limit of a call that nothing blocks.
const LIMIT: Duration = Duration::from_secs(30);
/// Time for a thread to reach the point at which it waits for another one.
const MOMENT: Duration = Duration::from_millis(300);
/// An end of the file in the middle of its second page, and then an earlier one.
const END: u64 = (PAGE + 2_000) as u64;
const SHORT: u64 = (PAGE + 100) as u64;
/// The end of the file after it has grown, in another chunk.
const GROWN: u64 = (2 * CHUNK + 5_000) as u64;

/// A file that was longer, so that its last page holds more bytes than it shows.
fn file_with_a_stale_tail(mount: &Mount) -> (NodeId, Handle) {
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 2 * PAGE));
    mount.fs.fsync(node, handle, false).unwrap();
    mount.truncate(node, END).unwrap();
    mount.fs.fsync(node, handle, false).unwrap();
    (node, handle)
}

/// Stops a write of contents after a number of others.
fn stall_write(mount: &Mount, after: usize) -> Stall {
    let seen = AtomicUsize::new(0);
    mount.store.stall_when(move |kind, path| {
        let is_write = kind == CallKind::Write && path.as_str().starts_with("objects/");
        is_write && seen.fetch_add(1, Ordering::SeqCst) == after
    })
}

/// In either order, no truncated byte is visible.
#[track_caller]
fn nothing_stale_shows(mount: &Mount, node: NodeId, handle: Handle, kept: u64) {
    // If the truncation came last, growing once more must not show it either.
    if mount.fs.getattr(node).unwrap().size < GROWN {
        mount.truncate(node, GROWN).unwrap();
    }
    let bytes = mount.contents_of(node, handle).unwrap();
    assert!(bytes[..kept as usize] == pattern(1, 0, kept as usize));
    let tail = &bytes[kept as usize..2 * PAGE];
    let stale = tail.iter().filter(|byte| **byte != 0).count();
    assert_eq!(stale, 0, "truncated bytes show again");
}

/// Runs `grow`, which zeroes the tail of `node`, and truncates the file while it does.
fn truncate_while(grow: impl FnOnce(&Mount, NodeId, Handle) + Send) {
    let mount = Mount::new();
    let (node, handle) = file_with_a_stale_tail(&mount);
    mount.file(ROOT, "source", &pattern(3, 0, CHUNK));
    mount.fs.sync().unwrap();
    let stall = stall_write(&mount, 0);
    std::thread::scope(|scope| {
        let growing = scope.spawn(|| grow(&mount, node, handle));
        assert!(stall.is_reached_within(LIMIT), "the tail was not zeroed");
        let truncating = scope.spawn(|| mount.truncate(node, SHORT).unwrap());
        std::thread::sleep(MOMENT);
        stall.release();
        growing.join().unwrap();
        truncating.join().unwrap();
    });
    nothing_stale_shows(&mount, node, handle, SHORT);
    mount.fs.release(node, handle);
    mount.finish();
}

#[test]
fn a_file_is_truncated_while_it_is_made_longer() {
    truncate_while(|mount, node, _| {
        mount.truncate(node, GROWN).unwrap();
    });
}

#[test]
fn a_file_is_truncated_while_space_behind_it_is_allocated() {
    truncate_while(|mount, node, handle| {
        let mode = Fallocate::Allocate { keep_size: false };
        let len = GROWN - CHUNK as u64;
        mount
            .fs
            .fallocate(node, handle, CHUNK as u64, len, mode)
            .unwrap();
    });
}

#[test]
fn a_file_is_truncated_while_it_is_written_behind_its_end() {
    truncate_while(|mount, node, handle| mount.put(node, handle, GROWN - 10, &pattern(2, 0, 10)));
}

#[test]
fn a_file_is_truncated_while_a_chunk_is_linked_behind_its_end() {
    truncate_while(|mount, node, _| {
        let chunk = CHUNK as u64;
        let from = mount.at("source");
        let copied = mount.fs.copy_file_range(from, 0, node, chunk, chunk);
        assert_eq!(copied, Ok(chunk));
    });
}

/// Runs `grow`, which extends the file, while another thread writes and extends it further.
fn write_while(grow: impl FnOnce(&Mount, NodeId, Handle) + Send) {
    let mount = Mount::new();
    let (node, handle) = file_with_a_stale_tail(&mount);
    let hollow = mount.file(ROOT, "hollow", b"");
    mount.truncate(hollow, CHUNK as u64).unwrap();
    let stall = stall_write(&mount, 0);
    std::thread::scope(|scope| {
        let growing = scope.spawn(|| grow(&mount, node, handle));
        assert!(stall.is_reached_within(LIMIT), "the tail was not zeroed");
        let writing = scope.spawn(|| mount.put(node, handle, GROWN, &pattern(2, 0, 100)));
        std::thread::sleep(MOMENT);
        stall.release();
        growing.join().unwrap();
        writing.join().unwrap();
    });
    let bytes = mount.contents_of(node, handle).unwrap();
    assert_eq!(bytes.len() as u64, GROWN + 100, "a write is lost");
    assert!(bytes[GROWN as usize..] == pattern(2, 0, 100));
    assert!(bytes[..END as usize] == pattern(1, 0, END as usize));
    assert!(
        bytes[END as usize..GROWN as usize]
            .iter()
            .all(|byte| *byte == 0)
    );
    mount.fs.release(node, handle);
    mount.finish();
}

#[test]
fn a_file_is_written_while_space_is_allocated() {
    for mode in [
        Fallocate::Allocate { keep_size: false },
        Fallocate::ZeroRange { keep_size: false },
    ] {
        write_while(|mount, node, handle| {
            let start = 2 * CHUNK as u64;
            mount
                .fs
                .fallocate(node, handle, start, 1_000, mode)
                .unwrap();
        });
    }
}

#[test]
fn a_file_is_written_while_a_hole_is_copied_to_its_end() {
    write_while(|mount, node, _| {
        let hollow = mount.at("hollow");
        let start = CHUNK as u64 + 100;
        let len = CHUNK as u64 - 10;
        let copied = mount.fs.copy_file_range(hollow, 10, node, start, len);
        assert_eq!(copied, Ok(len));
    });
}

/// A punch zeroes parts of its first and last page, and removes the pages between. A concurrent
/// write is completely visible or completely gone.
#[test]
fn a_file_is_written_while_it_is_punched() {
    for mode in [
        Fallocate::PunchHole,
        Fallocate::ZeroRange { keep_size: true },
    ] {
        let mount = Mount::new();
        let (node, handle) = mount.create(ROOT, "f");
        mount.put(node, handle, 0, &pattern(1, 0, 5 * PAGE));
        let (start, len) = (1_000, (3 * PAGE) as u64);
        let stall = stall_write(&mount, 1);
        let at = PAGE - 50;
        std::thread::scope(|scope| {
            let punching = scope.spawn(|| {
                mount.fs.fallocate(node, handle, start, len, mode).unwrap();
            });
            assert!(stall.is_reached_within(LIMIT), "the edges were not zeroed");
            let writing = scope.spawn(|| mount.put(node, handle, at as u64, &pattern(2, 0, 100)));
            std::thread::sleep(MOMENT);
            stall.release();
            punching.join().unwrap();
            writing.join().unwrap();
        });
        let bytes = mount.contents_of(node, handle).unwrap();
        let written = &bytes[at..at + 100];
        let gone = written.iter().all(|byte| *byte == 0);
        assert!(
            gone || *written == pattern(2, 0, 100),
            "half of a write is lost"
        );
        mount.fs.release(node, handle);
        mount.finish();
    }
}
