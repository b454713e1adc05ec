//! Copies within the volume.

use bilayer::errno::Errno;

use crate::support::{CHUNK, Mount, ROOT, pattern, quiet};

/// Two files that share their chunks.
fn shared(size: usize) -> Mount {
    let mount = Mount::new();
    let from = mount.file(ROOT, "from", &pattern(1, 0, size));
    let to = mount.file(ROOT, "to", b"");
    let copied = mount.fs.copy_file_range(from, 0, to, 0, u64::MAX >> 2);
    assert_eq!(copied, Ok(size as u64));
    mount
}

fn overwrite(mount: &Mount, name: &str, offset: usize, seed: u8) -> Vec<u8> {
    let node = mount.at(name);
    let handle = mount.open_rw(node);
    let bytes = pattern(seed, offset as u64, 9_000);
    mount.put(node, handle, offset as u64, &bytes);
    mount.fs.release(node, handle);
    mount.contents(node)
}

#[test]
fn either_side_changes_alone() {
    let size = 2 * CHUNK + 1_500_000;
    for side in ["from", "to"] {
        let other = if side == "from" { "to" } else { "from" };
        let mount = shared(size);
        // Whole chunks are linked: their contents have no second object.
        assert!(mount.contents(mount.at(side)) == pattern(1, 0, size));
        for offset in [0, 5_000, CHUNK - 4_000, 2 * CHUNK + 1_499_000] {
            let changed = overwrite(&mount, side, offset, 2);
            assert!(mount.contents(mount.at(other)) == pattern(1, 0, size));
            assert!(changed[offset..offset + 9_000] == pattern(2, offset as u64, 9_000));
        }
        let changed = mount.contents(mount.at(side));
        let mount = mount.reopen();
        assert!(mount.contents(mount.at(other)) == pattern(1, 0, size));
        assert!(mount.contents(mount.at(side)) == changed);
        mount.fs.unlink(ROOT, side.as_bytes()).unwrap();
        let mount = mount.reopen();
        assert!(mount.contents(mount.at(other)) == pattern(1, 0, size));
        mount.finish();
    }
}

/// If a part above a shared one is lost with the process, the shared one must not become writable:
/// it has the other file's contents.
#[test]
fn shared_parts_stay_shared_when_the_process_ends() {
    let size = CHUNK;
    let mount = shared(size);
    mount.commit();
    overwrite(&mount, "to", 0, 2);
    // The record of this commit does not contain the new part yet.
    mount.truncate(mount.at("to"), size as u64 - 10).unwrap();
    mount.commit();
    let mount = mount.kill();
    overwrite(&mount, "to", 0, 3);
    assert!(mount.contents(mount.at("from")) == pattern(1, 0, size));
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("from")) == pattern(1, 0, size));
    mount.finish();
}

/// Contents beyond the size that a crash leaves must not become visible when the file grows.
#[test]
fn a_link_beyond_the_durable_length_stays_hidden() {
    let mount = Mount::new();
    let from = mount.file(ROOT, "from", &pattern(1, 0, CHUNK));
    let (to, handle) = mount.create(ROOT, "to");
    mount.put(to, handle, 0, &pattern(2, 0, 100_000));
    let at = CHUNK as u64;
    mount.fs.copy_file_range(from, 0, to, at, at).unwrap();
    mount.commit();
    let mount = mount.kill();
    let to = mount.at("to");
    let kept = mount.contents(to).len();
    mount.truncate(to, 2 * at).unwrap();
    assert!(mount.contents(to)[kept..].iter().all(|byte| *byte == 0));
    mount.finish();
}

#[test]
fn copies_of_ranges() {
    for (at, to_at, len) in [
        (0, 0, 10),
        (100, 5_000, 9_000),
        (CHUNK - 10, 3, 20),
        (0, CHUNK, CHUNK),
        (CHUNK, 0, CHUNK),
        (CHUNK, CHUNK, 3_000_000),
        (9 * CHUNK, 0, 10),
    ] {
        let mount = Mount::new();
        let size = 2 * CHUNK + 100_000;
        let from = mount.file(ROOT, "from", &pattern(1, 0, size));
        let to = mount.file(ROOT, "to", &pattern(2, 0, 30_000));
        let range = at.min(size)..(at + len).min(size).max(at.min(size));
        let copied = mount
            .fs
            .copy_file_range(from, at as u64, to, to_at as u64, len as u64);
        assert_eq!(copied, Ok(range.len() as u64));
        let mut expected = pattern(2, 0, 30_000);
        if !range.is_empty() {
            expected.resize(expected.len().max(to_at + range.len()), 0);
            let piece = &pattern(1, 0, size)[range.clone()];
            expected[to_at..to_at + range.len()].copy_from_slice(piece);
        }
        assert!(mount.contents(to) == expected);
        let mount = mount.reopen();
        assert!(mount.contents(mount.at("to")) == expected);
        mount.finish();
    }
}

#[test]
fn overlap_and_kinds_are_refused() {
    let mount = Mount::new();
    let file = mount.file(ROOT, "f", &pattern(1, 0, 10_000));
    let dir = mount.mkdir(ROOT, "d");
    let copy = |from, at, to, to_at| mount.fs.copy_file_range(from, at, to, to_at, 1_000);
    assert_eq!(copy(file, 0, file, 500), Err(Errno::EINVAL));
    assert_eq!(copy(file, 0, file, 1_000), Ok(1_000));
    assert_eq!(copy(file, 0, dir, 0), Err(Errno::EISDIR));
    assert_eq!(copy(dir, 0, file, 0), Err(Errno::EISDIR));
}

/// An error half-way would leave stale contents in the kernel's cache.
#[test]
fn a_copy_on_a_full_volume_reports_how_far_it_came() {
    let size = 2 * CHUNK;
    let mount = Mount::with(Some((size + CHUNK) as u64), quiet());
    let from = mount.file(ROOT, "from", &pattern(1, 0, size));
    let to = mount.file(ROOT, "to", b"");
    // Not aligned to chunks: nothing can be shared.
    let copy = |done: u64| {
        let len = size as u64 - done;
        mount.fs.copy_file_range(from, done, to, 100 + done, len)
    };
    let copied = copy(0).unwrap();
    assert!((1..CHUNK as u64).contains(&copied), "{copied}");
    assert_eq!(copy(copied), Err(Errno::ENOSPC));
    let contents = mount.contents(to);
    assert_eq!(contents.len(), 100 + copied as usize);
    assert!(contents[100..] == pattern(1, 0, copied as usize));
    mount.finish();
}
