//! Rules for the memory store alone.

use bilayer::errno::Errno;
use bilayer::store::faulty::{FaultyOptions, FaultyStore};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store};

use super::{assert_errno, contents, create, path};

#[test]
fn a_clone_is_the_same_tree_and_a_snapshot_another() {
    let store = MemoryStore::new();
    let file = create(&store, "a", &[1; 10_000]);
    store.link(&path("a"), &path("b")).unwrap();
    let clone = store.clone();
    let snapshot = store.snapshot();
    file.write_at(&[2; 10_000], 0).unwrap();
    store.unlink(&path("b")).unwrap();
    assert_eq!(contents(&clone, "a").unwrap(), [2; 10_000]);
    assert_eq!(contents(&clone, "b"), None);
    assert_eq!(contents(&snapshot, "a").unwrap(), [1; 10_000]);
    assert_eq!(snapshot.info(&path("b")).unwrap().links, 2);
    let linked = snapshot.open(&path("b"), OpenMode::ReadWrite).unwrap();
    linked.write_at(&[3; 10_000], 0).unwrap();
    assert_eq!(contents(&snapshot, "a").unwrap(), [3; 10_000]);
    assert_eq!(contents(&store, "a").unwrap(), [2; 10_000]);
}

fn check_space_ends(store: &dyn Store) {
    let first = create(store, "a", &[1; 8192]);
    let second = create(store, "b", b"");
    assert_errno(second.write_at(&[2; 12_288], 0), Errno::ENOSPC);
    assert_errno(second.reserve(0, 12_288), Errno::ENOSPC);
    assert_eq!(second.len().unwrap(), 0);
    second.write_at(&[2; 8192], 0).unwrap();
    assert_eq!(store.space().unwrap().free_bytes, 0);
    // Existing bytes may be overwritten; nothing may be added.
    second.write_at(&[3; 8192], 0).unwrap();
    assert_errno(second.write_at(&[2], 8192), Errno::ENOSPC);
    first.punch(0, 4096).unwrap();
    second.write_at(&[2], 8192).unwrap();
    first.set_len(0).unwrap();
    assert_eq!(store.space().unwrap().free_bytes, 4096);
    drop(second);
    store.unlink(&path("b")).unwrap();
}

#[test]
fn space_ends_and_comes_back() {
    let store = MemoryStore::with_capacity_bytes(16_384);
    check_space_ends(&store);
    assert_eq!(store.space().unwrap().free_bytes, 16_384);

    let store = FaultyStore::with_options(FaultyOptions {
        capacity_bytes: Some(16_384),
        ..FaultyOptions::default()
    });
    check_space_ends(&store);
    store.sync_all().unwrap();
    assert_eq!(store.space().unwrap().free_bytes, 16_384);
}

#[test]
fn a_file_without_a_name_keeps_its_space_until_it_is_closed() {
    let store = MemoryStore::with_capacity_bytes(4096);
    let file = create(&store, "a", &[1; 10]);
    store.unlink(&path("a")).unwrap();
    assert_eq!(store.space().unwrap().free_bytes, 0);
    drop(file);
    assert_eq!(store.space().unwrap().free_bytes, 4096);
}
