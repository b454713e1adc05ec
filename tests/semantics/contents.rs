//! Reading, writing, truncating.

use bilayer::errno::Errno;
use bilayer::fs::types::{Caller, Fallocate, SetAttr, WriteFlags};
use bilayer::meta::page_set::capacity_of_pages;

use crate::support::{CHUNK, Mount, PAGE, ROOT, USER, pattern, quiet};

#[test]
fn truncating_leaves_zeros_behind() {
    for full in [
        1_500,
        2_048,
        2_049,
        PAGE,
        PAGE + 1,
        3 * PAGE,
        CHUNK,
        CHUNK + PAGE + 7,
    ] {
        for len in [
            0,
            1,
            1_000,
            PAGE - 1,
            PAGE,
            PAGE + 1,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
        ] {
            for again in 0..3 {
                if len >= full {
                    continue;
                }
                let mut mount = Mount::new();
                let node = mount.file(ROOT, "f", &pattern(1, 0, full));
                mount.truncate(node, len as u64).unwrap();
                match again {
                    1 => mount = mount.reopen(),
                    2 => {
                        mount.commit();
                        mount = mount.kill();
                    }
                    _ => {}
                }
                let node = mount.at("f");
                // After a kill the length is the durable one from before the truncation.
                let kept = mount.fs.getattr(node).unwrap().size as usize;
                assert!(kept == len || (again == 2 && kept < len));
                mount.truncate(node, full as u64 + 5).unwrap();
                let mut expected = pattern(1, 0, kept);
                expected.resize(full + 5, 0);
                assert!(mount.contents(node) == expected, "{full} to {len}, {again}");
                let mount = mount.reopen();
                assert!(mount.contents(mount.at("f")) == expected);
            }
        }
    }
}

#[test]
fn writing_beyond_the_end_leaves_zeros_between() {
    for (size, at) in [
        (10, 2_000),
        (10, 5_000),
        (5_000, 5_001),
        (5_000, 9_000),
        (5_000, CHUNK),
    ] {
        let mount = Mount::new();
        let (node, handle) = mount.create(ROOT, "f");
        mount.put(node, handle, 0, &pattern(1, 0, size + 600));
        mount.truncate(node, size as u64).unwrap();
        mount.put(node, handle, at as u64, b"end");
        mount.fs.release(node, handle);
        let mut expected = pattern(1, 0, size);
        expected.resize(at, 0);
        expected.extend(b"end");
        assert!(mount.contents(node) == expected);
        let mount = mount.reopen();
        assert!(mount.contents(mount.at("f")) == expected);
        mount.finish();
    }
}

#[test]
fn small_files_need_no_object() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 2_048));
    mount.commit();
    assert_eq!((mount.objects(), mount.fs.usage().contents_bytes), (0, 0));
    let record_bytes = mount.fs.usage().used_bytes;
    assert!((2_048..2_600).contains(&record_bytes), "{record_bytes}");
    mount.put(node, handle, 2_048, b"x");
    assert_eq!(mount.objects(), 1);
    // The record has the bytes until the object is durable.
    mount.commit();
    let mount = mount.kill();
    let node = mount.at("f");
    assert_eq!(mount.contents(node), pattern(1, 0, 2_048));
    let handle = mount.open_rw(node);
    mount.put(node, handle, 2_048, b"x");
    mount.fs.fsync(node, handle, false).unwrap();
    let mount = mount.kill();
    let node = mount.at("f");
    assert_eq!(mount.contents(node).len(), 2_049);
    mount.truncate(node, 0).unwrap();
    let handle = mount.open_rw(node);
    mount.put(node, handle, 0, b"small again");
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert_eq!(mount.objects(), 0);
    assert_eq!(mount.contents(mount.at("f")), b"small again");
}

#[test]
fn reads_end_at_the_size() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", b"12345");
    let handle = mount.open_rw(node);
    let mut out = [0xEE; 8];
    assert_eq!(mount.fs.read(node, handle, 3, &mut out), Ok(2));
    assert_eq!(&out[..2], b"45");
    assert_eq!(mount.fs.read(node, handle, 5, &mut out), Ok(0));
    assert_eq!(mount.fs.read(node, handle, u64::MAX, &mut out), Ok(0));
    mount.fs.release(node, handle);
    assert_eq!(mount.fs.read(node, handle, 0, &mut out), Err(Errno::EBADF));
}

#[test]
fn the_largest_file() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", b"x");
    let handle = mount.open_rw(node);
    let largest = bilayer::object::FILE_BYTES_MAX;
    let past = mount
        .fs
        .write(node, handle, largest, b"x", WriteFlags::default());
    assert_eq!(past, Err(Errno::EFBIG));
    let past = mount
        .fs
        .write(node, handle, u64::MAX, b"xy", WriteFlags::default());
    assert_eq!(past, Err(Errno::EFBIG));
    assert_eq!(mount.truncate(node, largest + 1).err(), Some(Errno::EFBIG));
    mount.put(node, handle, largest - 3, b"end");
    assert_eq!(mount.fs.getattr(node).unwrap().size, largest);
    mount.truncate(node, largest).unwrap();
    let mut out = [0; 3];
    assert_eq!(mount.fs.read(node, handle, largest - 3, &mut out), Ok(3));
    assert_eq!(&out, b"end");
    mount.fs.release(node, handle);
    mount.fs.unlink(ROOT, b"f").unwrap();
    mount.finish();
}

#[test]
fn many_chunks_are_read_back() {
    // More chunks than a file keeps in memory.
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    let chunks = 1_100u64;
    for chunk in 0..chunks {
        mount.put(node, handle, chunk * CHUNK as u64, &chunk.to_le_bytes());
    }
    mount.fs.fsync(node, handle, false).unwrap();
    for chunk in (0..chunks).rev() {
        let at = chunk * CHUNK as u64 + 8;
        mount.put(node, handle, at, &chunk.to_le_bytes());
    }
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    let node = mount.at("f");
    let handle = mount.open_rw(node);
    for chunk in 0..chunks {
        let mut out = [0; 16];
        let read = mount.fs.read(node, handle, chunk * CHUNK as u64, &mut out);
        assert_eq!(read, Ok(16));
        assert_eq!(out[..8], chunk.to_le_bytes());
        assert_eq!(out[8..], chunk.to_le_bytes());
    }
    mount.fs.release(node, handle);
    mount.fs.unlink(ROOT, b"f").unwrap();
    assert_eq!(mount.finish().objects, 0);
}

#[test]
fn opening_with_truncation() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", &pattern(1, 0, 10_000));
    let flags = libc::O_WRONLY | libc::O_TRUNC;
    let handle = mount.fs.open_file(&USER, node, flags).unwrap();
    assert_eq!(mount.fs.getattr(node).unwrap().size, 0);
    mount.fs.release(node, handle);
    mount.finish();
}

#[test]
fn a_full_volume_refuses_writes_and_allows_removal() {
    let mount = Mount::with(Some(capacity_of_pages(64)), quiet());
    let before = mount.fs.statfs().unwrap();
    assert_eq!((before.blocks, before.blocks_free), (62, 62));
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &pattern(1, 0, 60 * PAGE));
    let more = pattern(1, 0, 10 * PAGE);
    let refused = mount
        .fs
        .write(node, handle, 60 * PAGE as u64, &more, WriteFlags::default());
    assert_eq!(refused, Err(Errno::ENOSPC));
    // Existing data may be overwritten.
    mount.put(node, handle, 0, &pattern(2, 0, 60 * PAGE));
    assert!(mount.fs.statfs().unwrap().blocks_free <= 4);
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("f")) == pattern(2, 0, 60 * PAGE));
    mount.fs.unlink(ROOT, b"f").unwrap();
    assert_eq!(mount.fs.statfs().unwrap().blocks_free, 62);
    mount.file(ROOT, "g", &pattern(3, 0, 60 * PAGE));
    mount.finish();
}

#[test]
fn set_id_bits_are_removed_by_a_write() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    let set = |perm| {
        let changes = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        mount.fs.setattr(&USER, node, &changes).unwrap();
    };
    let perm = || mount.fs.getattr(node).unwrap().perm;
    set(0o6755);
    mount
        .fs
        .write(node, handle, 0, b"x", WriteFlags::default())
        .unwrap();
    assert_eq!(perm(), 0o6755);
    mount
        .fs
        .write(
            node,
            handle,
            0,
            b"x",
            WriteFlags {
                kill_privileges: true,
                ..WriteFlags::default()
            },
        )
        .unwrap();
    assert_eq!(perm(), 0o755);
    // Without group execution the bit means mandatory locking, and stays.
    set(0o6644);
    mount.truncate(node, 0).unwrap();
    assert_eq!(perm(), 0o2644);
    set(0o4755);
    let root = Caller { uid: 0, ..USER };
    let changes = SetAttr {
        uid: Some(7),
        ..SetAttr::default()
    };
    assert_eq!(mount.fs.setattr(&root, node, &changes).unwrap().perm, 0o755);
}

/// One file can use all the space that `df` shows as free, although tags take part of a page.
#[test]
fn one_file_can_fill_the_free_space() {
    let mount = Mount::with(Some(100 << 20), quiet());
    let free = || mount.fs.statfs().unwrap().blocks_free * 4096;
    assert_eq!(free(), 100 << 20);
    let (node, handle) = mount.create(ROOT, "f");
    let free = free();
    assert_eq!(free, (100 << 20) - 4096);
    let mode = Fallocate::Allocate { keep_size: false };
    assert_eq!(mount.fs.fallocate(node, handle, 0, free, mode), Ok(()));
    assert_eq!(mount.fs.statfs().unwrap().blocks_free, 0);
    mount.fs.release(node, handle);
}

/// Contents of small files stay in memory until they are synced. Rewriting many of them changes no
/// metadata that counts as pending, and must not take ever more memory.
#[test]
fn files_that_wait_for_a_sync_are_bounded() {
    const FILES: usize = 1000;
    let options = bilayer::fs::FilesystemOptions {
        pending_bytes: 64 << 10,
        ..quiet()
    };
    let mount = Mount::with(None, options);
    let name = |number: usize| format!("f{number}");
    let nodes: Vec<_> = (0..FILES)
        .map(|number| mount.file(ROOT, &name(number), &pattern(1, 0, 300)))
        .collect();
    mount.fs.sync().unwrap();
    for node in nodes {
        let handle = mount.open_rw(node);
        mount.put(node, handle, 0, &pattern(2, 0, 300));
        mount.fs.release(node, handle);
    }
    // No sync was requested, but the writer that exceeded the bound has waited for one.
    let mount = mount.kill();
    let contents = (0..FILES).map(|number| mount.contents(mount.at(&name(number))));
    let new = contents
        .filter(|found| *found == pattern(2, 0, 300))
        .count();
    assert!(new > FILES * 9 / 10, "{new}");
}
