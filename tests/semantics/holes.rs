//! Holes: punching, zeroing, allocating, seeking.

use bilayer::errno::Errno;
use bilayer::fs::types::{Fallocate, SeekWhence};

use crate::support::{BLOCK, CHUNK, Mount, PAGE, ROOT, USER, pattern};

#[test]
fn punching_at_all_alignments() {
    let edges = [
        0,
        1,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        3 * PAGE,
        3 * PAGE + 5,
        CHUNK - 1,
        CHUNK,
        CHUNK + 3,
    ];
    let size = CHUNK + 2 * PAGE + 100;
    for keep in [None, Some(true), Some(false)] {
        let mut mount = Mount::new();
        let mut expected = pattern(1, 0, size);
        for start in edges {
            for end in edges.into_iter().chain([size - 1, size, size + 10]) {
                if start >= end {
                    continue;
                }
                let (node, handle) = mount.create(ROOT, "f");
                mount.put(node, handle, 0, &pattern(1, 0, size));
                if (start + end) % 2 == 0 {
                    mount.fs.fsync(node, handle, true).unwrap();
                }
                let mode = match keep {
                    None => Fallocate::PunchHole,
                    Some(keep_size) => Fallocate::ZeroRange { keep_size },
                };
                let (at, len) = (start as u64, (end - start) as u64);
                mount.fs.fallocate(node, handle, at, len, mode).unwrap();
                expected.clear();
                expected.extend(pattern(1, 0, size));
                expected[start..end.min(size)].fill(0);
                if keep == Some(false) {
                    expected.resize(size.max(end), 0);
                }
                mount.fs.release(node, handle);
                assert!(mount.contents(node) == expected, "{start}..{end}");
                if start == PAGE + 1 {
                    mount = mount.reopen();
                    assert!(mount.contents(mount.at("f")) == expected, "{start}..{end}");
                }
                mount.fs.unlink(ROOT, b"f").unwrap();
            }
        }
        assert_eq!(mount.finish().pages, 0);
    }
}

#[test]
fn punching_gives_pages_back() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 100 * PAGE));
    let pages = || mount.fs.getattr(node).unwrap().blocks / 8;
    assert_eq!(pages(), 100);
    let (at, len) = (10 * PAGE as u64 + 1, 20 * PAGE as u64);
    mount
        .fs
        .fallocate(node, handle, at, len, Fallocate::PunchHole)
        .unwrap();
    assert_eq!(pages(), 81);
    assert_eq!(mount.fs.usage().contents_bytes, 81 * 4096);
    let all = 100 * PAGE as u64;
    mount
        .fs
        .fallocate(node, handle, 0, all, Fallocate::PunchHole)
        .unwrap();
    assert_eq!(mount.fs.usage().contents_bytes, 0);
    // A file that is open for writing is never reported as one hole.
    assert_eq!(mount.fs.getattr(node).unwrap().blocks, 1);
    mount.fs.release(node, handle);
    assert_eq!(mount.fs.getattr(node).unwrap().blocks, 0);
    assert_eq!(mount.finish().objects, 0);
}

#[test]
fn small_files_have_holes_too() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", &pattern(1, 0, 2_000));
    let handle = mount.open_rw(node);
    mount
        .fs
        .fallocate(node, handle, 500, 700, Fallocate::PunchHole)
        .unwrap();
    let mut expected = pattern(1, 0, 2_000);
    expected[500..1_200].fill(0);
    assert_eq!(mount.contents(node), expected);
    assert_eq!(
        mount.fs.fallocate(node, handle, 0, 0, Fallocate::PunchHole),
        Err(Errno::EINVAL)
    );
    let far = mount
        .fs
        .fallocate(node, handle, u64::MAX, 2, Fallocate::PunchHole);
    assert_eq!(far, Err(Errno::EFBIG));
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert_eq!(mount.contents(mount.at("f")), expected);
}

#[test]
fn allocation_changes_the_length_alone() {
    for (keep_size, expected) in [(true, 100), (false, CHUNK + 5_000)] {
        let mount = Mount::new();
        let node = mount.file(ROOT, "f", &pattern(1, 0, 100));
        let handle = mount.open_rw(node);
        let mode = Fallocate::Allocate { keep_size };
        let len = CHUNK as u64 + 5_000;
        mount.fs.fallocate(node, handle, 0, len, mode).unwrap();
        let contents = mount.contents(node);
        assert_eq!(contents.len(), expected);
        assert_eq!(contents[..100], pattern(1, 0, 100));
        assert!(contents[100..].iter().all(|byte| *byte == 0));
        mount.fs.release(node, handle);
        mount.reopen().finish();
    }
}

#[test]
fn data_and_holes_are_found() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    let far = 40 * CHUNK as u64;
    mount.put(node, handle, 5 * PAGE as u64, &[1; PAGE]);
    mount.put(node, handle, far, b"x");
    mount.truncate(node, far + 3 * PAGE as u64).unwrap();
    mount.fs.release(node, handle);
    let handle = mount.fs.open_file(&USER, node, libc::O_RDONLY).unwrap();
    let seek = |at, whence| mount.fs.seek(node, handle, at, whence);
    let (data, hole) = (SeekWhence::Data, SeekWhence::Hole);
    // The written page is in blocks 4 and 5.
    assert_eq!(seek(0, data), Ok(4 * BLOCK));
    assert_eq!(seek(0, hole), Ok(0));
    assert_eq!(seek(4 * BLOCK + 7, data), Ok(4 * BLOCK + 7));
    assert_eq!(seek(4 * BLOCK, hole), Ok(6 * BLOCK));
    assert_eq!(seek(6 * BLOCK, data), Ok(far));
    assert_eq!(seek(far, hole), Ok(far + BLOCK));
    assert_eq!(seek(far + BLOCK - 1, data), Ok(far + BLOCK - 1));
    assert_eq!(seek(far + BLOCK, data), Err(Errno::ENXIO));
    assert_eq!(seek(far + 2 * BLOCK, hole), Ok(far + 2 * BLOCK));
    assert_eq!(seek(far + 3 * PAGE as u64, hole), Err(Errno::ENXIO));
    mount.fs.release(node, handle);
}

/// A page holds less than a block, so every block here begins and ends within a page.
#[test]
fn data_and_holes_of_whole_blocks_are_found() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    let size = 3 * CHUNK as u64;
    mount.truncate(node, size).unwrap();
    let written = 1_001 * BLOCK..1_100 * BLOCK;
    let len = (written.end - written.start) as usize;
    mount.put(node, handle, written.start, &vec![7; len]);
    let seek = |at, whence| mount.fs.seek(node, handle, at, whence);
    let (data, hole) = (SeekWhence::Data, SeekWhence::Hole);
    assert_eq!(seek(0, data), Ok(written.start));
    assert_eq!(seek(written.start, hole), Ok(written.end));
    assert_eq!(seek(written.end, data), Err(Errno::ENXIO));
    let punched = 1_020 * BLOCK..1_030 * BLOCK;
    let len = punched.end - punched.start;
    let mode = Fallocate::PunchHole;
    let done = mount.fs.fallocate(node, handle, punched.start, len, mode);
    assert_eq!(done, Ok(()));
    assert_eq!(seek(written.start, hole), Ok(punched.start));
    assert_eq!(seek(punched.start, data), Ok(punched.end));
    assert_eq!(seek(punched.end, hole), Ok(written.end));
    mount.fs.release(node, handle);
}
