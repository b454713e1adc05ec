//! `fallocate` reserves space that nothing else gets, whatever else happens to the volume.

use std::sync::atomic::{AtomicUsize, Ordering};

use bilayer::errno::Errno;
use bilayer::fs::types::{Fallocate, Handle, NodeId, WriteFlags};
use bilayer::meta::page_set::capacity_of_pages;

use crate::support::{BLOCK, CHUNK, Mount, PAGE, ROOT, pattern, quiet};

const KEEP: Fallocate = Fallocate::Allocate { keep_size: true };
const GROW: Fallocate = Fallocate::Allocate { keep_size: false };

/// A volume of this many pages.
fn small(pages: usize) -> Mount {
    Mount::with(Some(capacity_of_pages(pages as u64)), quiet())
}

fn used(mount: &Mount) -> usize {
    mount.fs.usage().contents_bytes as usize / 4096
}

/// Pages that count against the limit.
fn taken(mount: &Mount) -> usize {
    let usage = mount.fs.usage();
    let record_bytes = usage.used_bytes - usage.contents_bytes;
    used(mount) + (record_bytes as usize).div_ceil(PAGE)
}

#[track_caller]
fn allocate(mount: &Mount, node: NodeId, handle: Handle, at: usize, len: usize, mode: Fallocate) {
    let done = mount
        .fs
        .fallocate(node, handle, at as u64, len as u64, mode);
    assert_eq!(done, Ok(()));
}

/// Writes pages to new files until the volume is full.
fn fill(mount: &Mount) {
    for number in 0.. {
        let (node, handle) = mount.create(ROOT, &format!("filler-{number}"));
        let mut result = Ok(0);
        for page in 0..200 {
            let bytes = pattern(3, 0, PAGE);
            let offset = (page * PAGE) as u64;
            result = mount
                .fs
                .write(node, handle, offset, &bytes, WriteFlags::default());
            if result.is_err() {
                break;
            }
        }
        mount.fs.release(node, handle);
        match result {
            Ok(_) => assert!(number < 1000, "the volume does not get full"),
            Err(error) => {
                assert_eq!(error, Errno::ENOSPC);
                return;
            }
        }
    }
}

/// Writes the range in pieces of odd lengths and syncs now and then.
#[track_caller]
fn write_all(mount: &Mount, node: NodeId, handle: Handle, at: usize, len: usize, seed: u8) {
    let mut done = 0;
    let mut turn = 0;
    while done < len {
        let piece = (1 + turn * 7919 % 60_000).min(len - done);
        let offset = (at + done) as u64;
        mount.put(node, handle, offset, &pattern(seed, offset, piece));
        done += piece;
        turn += 1;
        if turn % 29 == 0 {
            mount.fs.fsync(node, handle, true).unwrap();
        }
    }
}

#[test]
fn reserved_space_is_not_given_to_others() {
    for mode in [KEEP, GROW] {
        let mount = small(3_000);
        let (node, handle) = mount.create(ROOT, "f");
        let len = CHUNK + 1_000_000;
        allocate(&mount, node, handle, 100, len, mode);
        let pages = used(&mount);
        assert!((len / PAGE..len / PAGE + 4).contains(&pages), "{pages}");
        assert_eq!(mount.fs.getattr(node).unwrap().blocks, pages as u64 * 8);
        let space = mount.fs.statfs().unwrap();
        let left = capacity_of_pages(3_000 - taken(&mount) as u64) / BLOCK;
        assert_eq!(space.blocks_free, left);
        // Reserving again takes nothing more; reserving more than is free changes nothing.
        allocate(&mount, node, handle, 100, len, mode);
        let refused = mount.fs.fallocate(node, handle, 0, 4_000 * 4096, KEEP);
        assert_eq!((refused, used(&mount)), (Err(Errno::ENOSPC), pages));
        fill(&mount);
        assert_eq!(taken(&mount), 3_000);
        write_all(&mount, node, handle, 100, len, 1);
        assert_eq!(taken(&mount), 3_000);
        write_all(&mount, node, handle, 100, len, 2);
        let more = mount.fs.write(
            node,
            handle,
            (8 * CHUNK) as u64,
            b"more",
            WriteFlags::default(),
        );
        assert_eq!(more, Err(Errno::ENOSPC));
        mount.fs.release(node, handle);
        let mount = mount.reopen();
        assert!(mount.contents(mount.at("f"))[100..] == pattern(2, 100, len));
        mount.fs.unlink(ROOT, b"f").unwrap();
        // Its name and its inode are removed as well.
        assert!((2_999 - pages..=3_000 - pages).contains(&taken(&mount)));
        mount.finish();
    }
}

#[test]
fn a_reservation_survives_a_remount_and_a_kill() {
    for kill in [false, true] {
        let mount = small(2_000);
        let (node, handle) = mount.create(ROOT, "f");
        let len = 1_200 * PAGE;
        allocate(&mount, node, handle, 0, len, KEEP);
        mount.fs.fsync(node, handle, false).unwrap();
        // Written and not synced: contents and reservation must not both be lost.
        mount.put(node, handle, 0, &pattern(1, 0, 100 * PAGE));
        mount.fs.release(node, handle);
        mount.commit();
        let mount = if kill { mount.kill() } else { mount.reopen() };
        assert_eq!(used(&mount), 1_202);
        fill(&mount);
        let node = mount.at("f");
        let handle = mount.open_rw(node);
        write_all(&mount, node, handle, 0, len, 2);
        mount.fs.release(node, handle);
        let mount = mount.reopen();
        assert!(mount.contents(mount.at("f")) == pattern(2, 0, len));
        mount.finish();
    }
}

#[test]
fn overwriting_needs_no_space() {
    let mount = small(2_500);
    let len = CHUNK + 100_000;
    let node = mount.file(ROOT, "f", &pattern(1, 0, len));
    let small = mount.file(ROOT, "small", &pattern(1, 0, 1_500));
    fill(&mount);
    let handle = mount.open_rw(node);
    for (at, count) in [
        (0, 1),
        (PAGE - 1, 2),
        (5, 3 * PAGE),
        (CHUNK - 7, 14),
        (0, len),
    ] {
        mount.put(node, handle, at as u64, &pattern(2, at as u64, count));
    }
    mount.fs.release(node, handle);
    assert!(mount.contents(node) == pattern(2, 0, len));
    let handle = mount.open_rw(small);
    mount.put(small, handle, 0, &pattern(2, 0, 1_500));
    mount.fs.release(small, handle);
    assert_eq!(taken(&mount), 2_500);
    mount.finish();
}

#[test]
fn overwriting_a_copy_needs_no_space() {
    let mount = small(2_500);
    let from = mount.file(ROOT, "from", &pattern(1, 0, CHUNK));
    let to = mount.file(ROOT, "to", b"");
    let copied = mount.fs.copy_file_range(from, 0, to, 0, CHUNK as u64);
    assert_eq!(copied, Ok(CHUNK as u64));
    fill(&mount);
    for (node, seed) in [(from, 2), (to, 3)] {
        let handle = mount.open_rw(node);
        write_all(&mount, node, handle, 0, CHUNK, seed);
        mount.fs.release(node, handle);
    }
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("from")) == pattern(2, 0, CHUNK));
    assert!(mount.contents(mount.at("to")) == pattern(3, 0, CHUNK));
    assert_eq!(taken(&mount), 2_500);
    mount.finish();
}

#[test]
fn a_copy_removes_no_reservation() {
    for to_the_reserved in [false, true] {
        let mount = small(3_600);
        let (node, handle) = mount.create(ROOT, "reserved");
        mount.put(node, handle, 0, &pattern(1, 0, 500 * PAGE));
        allocate(&mount, node, handle, 0, CHUNK, GROW);
        mount.fs.fsync(node, handle, false).unwrap();
        let other = mount.file(ROOT, "other", &pattern(5, 0, CHUNK));
        let (from, to) = if to_the_reserved {
            (other, node)
        } else {
            (node, other)
        };
        let copied = mount.fs.copy_file_range(from, 0, to, 0, CHUNK as u64);
        assert_eq!(copied, Ok(CHUNK as u64));
        assert!(mount.contents(to) == mount.contents(from));
        fill(&mount);
        write_all(&mount, node, handle, 0, CHUNK, 2);
        mount.fs.release(node, handle);
        let mount = mount.reopen();
        assert!(mount.contents(mount.at("reserved")) == pattern(2, 0, CHUNK));
        mount.finish();
    }
}

#[test]
fn zeroing_keeps_space_and_punching_and_truncating_give_it_back() {
    let mount = small(2_500);
    let (node, handle) = mount.create(ROOT, "f");
    let len = 1_000 * PAGE;
    mount.put(node, handle, 0, &pattern(1, 0, 300 * PAGE));
    allocate(
        &mount,
        node,
        handle,
        0,
        len,
        Fallocate::ZeroRange { keep_size: false },
    );
    assert_eq!(used(&mount), 1_001);
    assert_eq!(mount.contents(node), vec![0; len]);
    fill(&mount);
    write_all(&mount, node, handle, 0, len, 2);
    allocate(
        &mount,
        node,
        handle,
        10,
        len - 20,
        Fallocate::ZeroRange { keep_size: true },
    );
    assert_eq!(taken(&mount), 2_500);
    let mut expected = vec![0; len];
    expected[..10].copy_from_slice(&pattern(2, 0, 10));
    expected[len - 10..].copy_from_slice(&pattern(2, (len - 10) as u64, 10));
    assert!(mount.contents(node) == expected);
    allocate(&mount, node, handle, 0, 100 * PAGE, Fallocate::PunchHole);
    assert_eq!(taken(&mount), 2_400);
    mount.truncate(node, 500 * PAGE as u64).unwrap();
    assert_eq!(taken(&mount), 1_899);
    allocate(&mount, node, handle, 400 * PAGE, 200 * PAGE, KEEP);
    assert_eq!(taken(&mount), 2_000);
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert_eq!(taken(&mount), 2_000);
    let node = mount.at("f");
    // Truncated to its own length: the reservation behind it is released.
    mount.truncate(node, 500 * PAGE as u64).unwrap();
    assert_eq!(taken(&mount), 1_899);
    mount.truncate(node, 0).unwrap();
    assert_eq!(taken(&mount), 1_499);
    let mount = mount.reopen();
    mount.fs.unlink(ROOT, b"f").unwrap();
    mount.finish();
}

/// The backing store reserves the space too: a reserved page has its blocks there.
#[test]
fn pages_punched_and_reserved_again_are_not_collected() {
    let mount = small(2_000);
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 800 * PAGE));
    mount.fs.fsync(node, handle, false).unwrap();
    allocate(&mount, node, handle, 0, 400 * PAGE, Fallocate::PunchHole);
    allocate(&mount, node, handle, 0, 800 * PAGE, KEEP);
    let space = |mount: &Mount| mount.fs.statfs().unwrap().blocks_free;
    let before = space(&mount);
    for _ in 0..3 {
        mount.commit();
    }
    assert_eq!(space(&mount), before);
    write_all(&mount, node, handle, 0, 800 * PAGE, 2);
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("f")) == pattern(2, 0, 800 * PAGE));
    mount.finish();
}

/// A reservation makes an object longer, and so does a concurrent write behind it.
#[test]
fn a_write_beyond_a_concurrent_reservation_persists() {
    let mount = Mount::new();
    let at = |page: usize| page * PAGE + 100;
    for round in 0..600 {
        let (node, handle) = mount.create(ROOT, &format!("f{round}"));
        mount.put(node, handle, 0, &pattern(1, 0, PAGE));
        let (now, mut written) = (AtomicUsize::new(1), Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for page in (1..1_000).step_by(3) {
                    now.store(page, Ordering::SeqCst);
                    allocate(&mount, node, handle, at(page), 1, KEEP);
                }
                now.store(0, Ordering::SeqCst);
            });
            loop {
                let page = now.load(Ordering::SeqCst) + 2;
                if page == 2 {
                    break;
                }
                if written.last() != Some(&page) {
                    let offset = at(page) as u64;
                    mount.put(node, handle, offset, &pattern(2, offset, 10));
                    written.push(page);
                }
            }
        });
        let contents = mount.contents_of(node, handle).unwrap();
        for page in written {
            assert!(contents[at(page)..at(page) + 10] == pattern(2, at(page) as u64, 10));
        }
        mount.fs.release(node, handle);
    }
    mount.finish();
}

#[test]
fn a_hole_copied_over_a_reservation_keeps_it() {
    let mount = small(4_000);
    let (to, handle) = mount.create(ROOT, "reserved");
    allocate(&mount, to, handle, 0, CHUNK + 500 * PAGE, GROW);
    let pages = used(&mount);
    let (from, source) = mount.create(ROOT, "hollow");
    mount.truncate(from, 2 * CHUNK as u64).unwrap();
    // Not from the start of a chunk, so that nothing can be shared.
    let len = CHUNK as u64 + 100_000;
    let copied = mount.fs.copy_file_range(from, 100, to, 200, len);
    assert_eq!(copied, Ok(len));
    assert_eq!(used(&mount), pages);
    fill(&mount);
    write_all(&mount, to, handle, 0, CHUNK, 4);
    mount.fs.release(from, source);
    mount.fs.release(to, handle);
    mount.finish();
}
