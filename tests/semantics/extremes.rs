//! Offsets at the maximum, large and sparse files, very many names and links, and stores that fail.

use std::fs;
use std::time::{Duration, Instant};

use bilayer::errno::Errno;
use bilayer::fs::types::{Fallocate, SeekWhence, XattrMode};
use bilayer::fs::{FilesystemOptions, FsError};
use bilayer::object::FILE_BYTES_MAX;
use bilayer::store::{OpenMode, Store, StorePath};

use crate::support::{ADMIN, BLOCK, CHUNK, Mount, PAGE, ROOT, USER, pattern, quiet};

/// An operation that takes longer visits every chunk of a hole.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn truncating_the_last_chunk_leaves_the_first() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "file");
    let data = pattern(1, 0, 3 * PAGE);
    mount.put(node, handle, 0, &data);
    for size in [
        FILE_BYTES_MAX,
        FILE_BYTES_MAX - 1,
        FILE_BYTES_MAX - CHUNK as u64,
    ] {
        assert_eq!(mount.truncate(node, size).expect("truncate").size, size);
        let mut actual = vec![0; data.len()];
        let read = mount.fs.read(node, handle, 0, &mut actual);
        assert_eq!((read, &actual), (Ok(data.len()), &data), "size {size}");
    }
    assert_eq!(
        mount.truncate(node, FILE_BYTES_MAX + 1).err(),
        Some(Errno::EFBIG)
    );
    mount.truncate(node, data.len() as u64).expect("truncate");
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert_eq!(mount.contents(mount.at("file")), data);
}

#[test]
fn copying_beyond_the_end_of_all_files_changes_nothing() {
    let mount = Mount::new();
    let data = pattern(1, 0, CHUNK);
    let from = mount.file(ROOT, "from", &pattern(2, 0, CHUNK));
    let to = mount.file(ROOT, "to", &data);
    let beyond = FILE_BYTES_MAX + 1;
    for at in [beyond, beyond + CHUNK as u64, beyond - 10, u64::MAX - 5] {
        let copied = mount.fs.copy_file_range(from, 0, to, at, CHUNK as u64);
        assert_eq!(copied, Err(Errno::EFBIG), "to {at}");
    }
    assert_eq!(mount.contents(to), data);
}

#[test]
fn sparse_files_are_not_read_chunk_by_chunk() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "file");
    let data = pattern(3, 0, 2 * PAGE);
    let far = 1 << 53;
    mount.truncate(node, FILE_BYTES_MAX).expect("truncate");
    for at in [0, far] {
        mount.put(node, handle, at, &data);
    }
    let begin = Instant::now();
    let fallocate = |offset: u64, end: u64, mode| {
        let done = mount.fs.fallocate(node, handle, offset, end - offset, mode);
        assert_eq!(done, Ok(()));
    };
    fallocate(PAGE as u64 + 100, far + 50, Fallocate::PunchHole);
    fallocate(far + 60, FILE_BYTES_MAX, Fallocate::PunchHole);
    // Zeroing takes space in a hole.
    let zeros = Fallocate::ZeroRange { keep_size: true };
    let refused = mount.fs.fallocate(node, handle, 0, far, zeros);
    assert_eq!(refused, Err(Errno::ENOSPC));
    let seek = |at, whence| mount.fs.seek(node, handle, at, whence);
    assert_eq!(seek(2 * BLOCK, SeekWhence::Data), Ok(far));
    assert_eq!(seek(far + BLOCK, SeekWhence::Data), Err(Errno::ENXIO));
    assert_eq!(seek(far, SeekWhence::Hole), Ok(far + BLOCK));
    assert!(begin.elapsed() < SOON, "took {:?}", begin.elapsed());
    let mut expected = data;
    expected[PAGE + 100..].fill(0);
    let mut actual = vec![0xEE; 2 * PAGE];
    mount.fs.read(node, handle, 0, &mut actual).expect("read");
    assert_eq!(actual, expected);
    let mut actual = vec![0xEE; 70];
    mount.fs.read(node, handle, far, &mut actual).expect("read");
    let mut expected = pattern(3, 0, 70);
    expected[..50].fill(0);
    expected[60..].fill(0);
    assert_eq!(actual, expected);
    mount.fs.release(node, handle);
    mount.fs.unlink(ROOT, b"file").expect("unlink");
    assert_eq!(mount.finish().pages, 0);
}

#[test]
fn copies_of_holes_are_holes() {
    let mount = Mount::new();
    let len = 1 << 40;
    let (from, handle) = mount.create(ROOT, "from");
    mount.truncate(from, len).expect("truncate");
    mount.put(from, handle, len / 2, &pattern(1, 0, 100));
    let (to, target) = mount.create(ROOT, "to");
    mount.put(to, target, 0, &pattern(2, 0, 5 * PAGE));
    let begin = Instant::now();
    let copied = mount.fs.copy_file_range(from, 0, to, 0, len);
    assert_eq!(copied, Ok(len));
    assert!(begin.elapsed() < SOON, "took {:?}", begin.elapsed());
    assert_eq!(mount.fs.getattr(to).expect("attr").size, len);
    assert_eq!(mount.fs.seek(to, target, 0, SeekWhence::Data), Ok(len / 2));
    let mut actual = vec![0xEE; 102];
    mount
        .fs
        .read(to, target, len / 2 - 1, &mut actual)
        .expect("read");
    assert_eq!(actual, [&[0][..], &pattern(1, 0, 100), &[0]].concat());
    let mut actual = vec![0xEE; 6 * PAGE];
    mount.fs.read(to, target, 0, &mut actual).expect("read");
    assert!(actual.iter().all(|byte| *byte == 0));
    mount.fs.release(from, handle);
    mount.fs.release(to, target);
    mount.reopen();
}

#[test]
fn attributes_have_limits() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "file", b"x");
    let set = |name: &str, value: &[u8]| {
        mount
            .fs
            .set_xattr(&USER, node, name.as_bytes(), value, XattrMode::Any)
    };
    // Names that fill the largest listing.
    let mut taken = 0;
    while set(&format!("user.{taken:0250}"), b"") == Ok(()) {
        taken += 1;
        assert!(taken < 1000, "names are limited");
    }
    assert_eq!(taken, 65_536 / 256);
    assert_eq!(
        mount.fs.list_xattr(&ADMIN, node).expect("list").len(),
        65_536
    );
    assert_eq!(set("user.more", b""), Err(Errno::ENOSPC));
    assert_eq!(set(&format!("user.{:0250}", 0), b"new"), Ok(()));
    // Values that every listing would have to read.
    let other = mount.file(ROOT, "other", b"x");
    let long = vec![7; 65_536];
    let results: Vec<_> = (0..40)
        .map(|number| {
            let name = format!("user.{number}");
            mount
                .fs
                .set_xattr(&USER, other, name.as_bytes(), &long, XattrMode::Any)
        })
        .collect();
    assert_eq!(results[0], Ok(()));
    assert_eq!(results[39], Err(Errno::ENOSPC));
    mount.fs.unlink(ROOT, b"other").expect("unlink");
    mount.finish();
}

#[test]
fn a_keystore_that_cannot_be_written_loses_nothing_and_the_end_says_so() {
    let mount = Mount::new();
    let records = mount.keystore.path().join("platform/volumes");
    let aside = mount.keystore.path().join("aside");
    fs::rename(&records, &aside).expect("rename");
    fs::write(&records, b"no directory").expect("write");
    let (node, handle) = mount.create(ROOT, "file");
    mount.put(node, handle, 0, &pattern(1, 0, 3 * PAGE));
    assert_eq!(mount.fs.fsync(node, handle, false), Ok(()));
    mount.fs.release(node, handle);
    let closed = mount.fs.close();
    assert!(
        matches!(closed, Err(FsError::NotRemembered(_))),
        "{closed:?}"
    );
    fs::remove_file(&records).expect("remove");
    fs::rename(&aside, &records).expect("rename");
    let (store, keystore) = (mount.store.clone(), mount.keystore.clone());
    drop(mount);
    let mount = Mount::open(store, keystore, quiet()).expect("open");
    assert_eq!(mount.contents(mount.at("file")), pattern(1, 0, 3 * PAGE));
    mount.finish();
}

#[test]
fn a_bad_page_of_the_metadata_ends_all_writing() {
    // Less than the size of the metadata: pages that were read at the beginning are not kept.
    let options = FilesystemOptions {
        meta_cache_bytes: 64 << 10,
        ..quiet()
    };
    let mount = Mount::with(None, options);
    for number in 0..3000 {
        mount.file(ROOT, &format!("file {number}"), b"contents");
    }
    let mount = mount.reopen();
    let meta = mount
        .store
        .open(&StorePath::new("meta"), OpenMode::ReadWrite)
        .expect("meta");
    // Every page except the first one, which is not read again.
    let mut bytes = vec![0; meta.len().expect("len") as usize];
    meta.read_at(&mut bytes, 0).expect("read");
    bytes
        .iter_mut()
        .skip(9216)
        .step_by(4608)
        .for_each(|b| *b ^= 1);
    meta.write_at(&bytes, 0).expect("write");
    let results: Vec<_> = (0..3000)
        .map(|number| mount.lookup(ROOT, format!("file {number}").as_bytes()))
        .collect();
    let mut failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    failed.dedup();
    assert_eq!(failed, [Errno::EIO]);
    assert!(mount.fs.usage().latched.is_some());
    let made = mount.fs.mkdir(&USER, ROOT, b"new", 0o755);
    assert_eq!(made.err(), Some(Errno::EROFS));
    let _ = mount.fs.close();
}
