//! Rules for the faulty store alone: its model of what a power cut leaves, and faults.

use std::collections::BTreeSet;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::store::faulty::{CallKind, Fault, FaultyOptions, FaultyStore, WriteUnit};
use bilayer::store::{OpenMode, Store, StorePath};

use super::{assert_errno, contents, create, names, path};

const SEEDS: u64 = 300;

/// All possible states of the store after a power cut, as `look` sees them.
fn outcomes<T: Ord>(store: &FaultyStore, look: impl Fn(&FaultyStore) -> T) -> BTreeSet<T> {
    (0..SEEDS).map(|seed| look(&store.survivor(seed))).collect()
}

fn root_names(store: &FaultyStore) -> String {
    names(store, &StorePath::root()).join(" ")
}

/// A store with a durable file `a` of two pages of ones.
fn store_with_durable_file(write_unit: WriteUnit) -> FaultyStore {
    let store = FaultyStore::with_options(FaultyOptions {
        write_unit,
        capacity_bytes: None,
    });
    create(&store, "a", &[1; 8192]).sync().unwrap();
    store.sync_dir(&StorePath::root()).unwrap();
    store
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

#[test]
fn synced_data_survives_every_power_cut() {
    let store = FaultyStore::new();
    store.create_dir(&path("objects")).unwrap();
    store.sync_dir(&StorePath::root()).unwrap();
    let file = create(&store, "objects/a", &[1; 10_000]);
    file.write_at(&[2; 5000], 3000).unwrap();
    file.punch(0, 1000).unwrap();
    file.set_len(7000).unwrap();
    file.sync().unwrap();
    store.sync_dir(&path("objects")).unwrap();
    let expected = contents(&store, "objects/a").unwrap();
    for seed in 0..SEEDS {
        assert_eq!(
            contents(&store.survivor(seed), "objects/a").unwrap(),
            expected
        );
    }
}

#[test]
fn unsynced_pages_are_old_or_new_one_by_one() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    file.write_at(&[2; 8192], 0).unwrap();
    let seen = outcomes(&store, |store| {
        let bytes = contents(store, "a").unwrap();
        assert_eq!(bytes.len(), 8192);
        for page in bytes.chunks(4096) {
            assert!(page.iter().all(|&b| b == page[0]), "a torn page");
        }
        (bytes[0], bytes[4096])
    });
    assert_eq!(seen, BTreeSet::from([(1, 1), (1, 2), (2, 1), (2, 2)]));
}

#[test]
fn every_version_since_the_last_sync_may_be_the_one() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    file.write_at(&[2; 4096], 0).unwrap();
    file.write_at(&[3; 4096], 0).unwrap();
    let first_byte = |store: &FaultyStore| contents(store, "a").unwrap()[0];
    assert_eq!(outcomes(&store, first_byte), BTreeSet::from([1, 2, 3]));
    file.sync().unwrap();
    assert_eq!(outcomes(&store, first_byte), BTreeSet::from([3]));
}

#[test]
fn pages_tear_only_where_the_disk_writes_sectors() {
    for (write_unit, expected) in [(WriteUnit::Page, false), (WriteUnit::Sector, true)] {
        let store = store_with_durable_file(write_unit);
        let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
        file.write_at(&[2; 4096], 0).unwrap();
        let torn = outcomes(&store, |store| {
            let bytes = contents(store, "a").unwrap();
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|&b| b == sector[0]), "a torn sector");
            }
            bytes[..4096].iter().any(|&b| b != bytes[0])
        });
        assert_eq!(torn.contains(&true), expected, "{write_unit:?}");
    }
}

#[test]
fn lengths_are_old_or_new() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    file.set_len(100).unwrap();
    file.write_at(&[2; 100], 20_000).unwrap();
    let seen = outcomes(&store, |store| {
        let bytes = contents(store, "a").unwrap();
        // The bytes that a longer length shows are old, zero, or new: never anything else.
        assert!(bytes.iter().all(|&b| b <= 2));
        bytes.len()
    });
    assert_eq!(seen, BTreeSet::from([100, 8192, 20_100]));
}

#[test]
fn a_name_needs_the_sync_of_its_directory() {
    let store = FaultyStore::new();
    create(&store, "a", b"abc").sync().unwrap();
    assert_eq!(outcomes(&store, root_names), set(&["", "a"]));
    store.sync_dir(&StorePath::root()).unwrap();
    assert_eq!(outcomes(&store, root_names), set(&["a"]));

    store.unlink(&path("a")).unwrap();
    assert_eq!(outcomes(&store, root_names), set(&["", "a"]));
    let returned = |store: &FaultyStore| contents(store, "a").unwrap_or(b"abc".to_vec());
    assert_eq!(
        outcomes(&store, returned),
        BTreeSet::from([b"abc".to_vec()])
    );
    store.sync_dir(&StorePath::root()).unwrap();
    assert_eq!(outcomes(&store, root_names), set(&[""]));
}

#[test]
fn entries_of_a_directory_without_a_durable_name_are_lost_with_it() {
    let store = FaultyStore::new();
    store.create_dir(&path("d")).unwrap();
    create(&store, "d/a", b"abc").sync().unwrap();
    store.sync_dir(&path("d")).unwrap();
    let seen = outcomes(&store, |store| contents(store, "d/a"));
    assert_eq!(seen, BTreeSet::from([None, Some(b"abc".to_vec())]));
    store.sync_dir(&StorePath::root()).unwrap();
    let seen = outcomes(&store, |store| contents(store, "d/a"));
    assert_eq!(seen, BTreeSet::from([Some(b"abc".to_vec())]));
}

#[test]
fn a_rename_within_a_directory_is_atomic() {
    let store = store_with_durable_file(WriteUnit::Page);
    create(&store, "b", b"old").sync().unwrap();
    store.sync_dir(&StorePath::root()).unwrap();
    store.rename(&path("a"), &path("b")).unwrap();
    let seen = outcomes(&store, |store| {
        let len = contents(store, "b").unwrap().len();
        format!("{} {len}", root_names(store))
    });
    assert_eq!(seen, set(&["a b 3", "b 8192"]));
}

#[test]
fn a_rename_across_directories_never_loses_both_names() {
    let store = FaultyStore::new();
    for name in ["d", "e"] {
        store.create_dir(&path(name)).unwrap();
    }
    create(&store, "d/a", b"abc");
    store.sync_all().unwrap();
    store.rename(&path("d/a"), &path("e/b")).unwrap();
    let look = |store: &FaultyStore| {
        let places = [names(store, &path("d")), names(store, &path("e"))];
        places.concat().join(" ")
    };
    assert_eq!(outcomes(&store, look), set(&["a", "a b", "b"]));
    // Only the old directory was synced: its removal includes the new name.
    let other = store.survivor(0);
    assert_eq!(look(&other), look(&store.survivor(0)), "seeds repeat");
    store.sync_dir(&path("d")).unwrap();
    assert_eq!(outcomes(&store, look), set(&["b"]));
}

#[test]
fn a_file_moved_out_of_a_removed_directory_survives() {
    let store = FaultyStore::new();
    for name in ["d", "e"] {
        store.create_dir(&path(name)).unwrap();
    }
    create(&store, "d/a", b"abc");
    store.sync_all().unwrap();
    store.rename(&path("d/a"), &path("e/a")).unwrap();
    store.remove_dir(&path("d")).unwrap();
    let seen = outcomes(&store, |store| {
        contents(store, "d/a").or_else(|| contents(store, "e/a"))
    });
    assert_eq!(seen, BTreeSet::from([Some(b"abc".to_vec())]));
    store.sync_dir(&StorePath::root()).unwrap();
    assert_eq!(outcomes(&store, root_names), set(&["e"]));
    assert!(outcomes(&store, |store| contents(store, "e/a")).len() == 1);
}

#[test]
fn operations_on_different_names_are_independent() {
    let store = FaultyStore::new();
    create(&store, "a", b"");
    create(&store, "b", b"");
    assert_eq!(outcomes(&store, root_names), set(&["", "a", "a b", "b"]));
}

#[test]
fn links_are_counted_by_the_names_that_survive() {
    let store = store_with_durable_file(WriteUnit::Page);
    store.link(&path("a"), &path("b")).unwrap();
    let seen = outcomes(&store, |store| store.info(&path("a")).unwrap().links);
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

#[test]
fn sync_all_covers_everything() {
    let store = FaultyStore::new();
    store.create_dir(&path("d")).unwrap();
    create(&store, "d/a", &[1; 9000]);
    store.sync_all().unwrap();
    let seen = outcomes(&store, |store| contents(store, "d/a"));
    assert_eq!(seen, BTreeSet::from([Some(vec![1; 9000])]));
}

#[test]
fn seeds_repeat_and_survivors_are_durable() {
    let store = store_with_durable_file(WriteUnit::Sector);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    for round in 2..20 {
        file.write_at(&[round; 6000], u64::from(round) * 777)
            .unwrap();
        create(&store, &format!("f{round}"), &[round; 100]);
    }
    for seed in 0..20 {
        let survivor = store.survivor(seed);
        let look = |store: &FaultyStore| (contents(store, "a"), root_names(store));
        assert_eq!(look(&survivor), look(&store.survivor(seed)));
        assert_eq!(outcomes(&survivor, look).len(), 1);
        assert_eq!(
            contents(&survivor.to_memory(), "a"),
            contents(&survivor, "a")
        );
    }
}

#[test]
fn a_cut_store_is_dead_and_its_survivor_lives() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    let survivor = store.power_cut(1);
    assert!(store.is_cut());
    assert_errno(file.write_at(b"x", 0), Errno::EIO);
    assert_errno(file.sync(), Errno::EIO);
    assert_errno(store.clone().list(&StorePath::root()), Errno::EIO);
    store.restart_process();
    assert_errno(store.list(&StorePath::root()), Errno::EIO);
    assert_eq!(contents(&survivor, "a").unwrap(), [1; 8192]);
    assert!(!survivor.is_cut());
}

#[test]
fn a_cut_falls_into_the_call() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    store.cut_at_call(store.calls() + 2);
    file.write_at(&[2; 4096], 0).unwrap();
    assert!(!store.is_cut());
    assert_errno(file.write_at(&[3; 4096], 0), Errno::EIO);
    assert!(store.is_cut());
    assert_errno(file.write_at(&[4; 4096], 0), Errno::EIO);
    let calls = store.calls();
    let seen = outcomes(&store, |store| contents(store, "a").unwrap()[0]);
    assert_eq!(seen, BTreeSet::from([1, 2, 3]));
    assert_eq!(store.calls(), calls);
}

#[test]
fn a_cut_in_a_sync_guarantees_nothing() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    file.write_at(&[2; 4096], 0).unwrap();
    store.cut_at_call(store.calls() + 1);
    assert_errno(file.sync(), Errno::EIO);
    let seen = outcomes(&store, |store| contents(store, "a").unwrap()[0]);
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

#[test]
fn a_killed_process_loses_its_handles_and_nothing_else() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    let old_lock = store.lock(&path("a")).unwrap();
    file.write_at(&[2; 4096], 0).unwrap();
    store.cut_at_call(0);
    assert_errno(file.sync(), Errno::EIO);
    store.restart_process();
    assert_errno(file.write_at(b"x", 0), Errno::EIO);
    assert_eq!(contents(&store, "a").unwrap()[0], 2);
    let _new_lock = store.lock(&path("a")).unwrap();
    drop(old_lock);
    assert!(
        store.lock(&path("a")).is_err(),
        "the dead process freed the lock"
    );
    // The page is still dirty in the kernel: a new process can make it durable.
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    file.sync().unwrap();
    let seen = outcomes(&store, |store| contents(store, "a").unwrap()[0]);
    assert_eq!(seen, BTreeSet::from([2]));
}

#[test]
fn a_sync_after_a_failed_one_covers_only_what_was_written_since() {
    let store = store_with_durable_file(WriteUnit::Page);
    let file = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
    file.write_at(&[2; 8192], 0).unwrap();
    store.fail_kind(CallKind::Sync, Fault::Error(Errno::EIO));
    assert_errno(file.sync(), Errno::EIO);
    store.clear_faults();
    file.write_at(&[3; 4096], 4096).unwrap();
    file.sync().unwrap();
    let seen = outcomes(&store, |store| {
        let bytes = contents(store, "a").unwrap();
        (bytes[0], bytes[4096])
    });
    assert_eq!(seen, BTreeSet::from([(1, 3), (2, 3)]));
}

#[test]
fn faults_hit_the_calls_they_are_meant_for() {
    let store = FaultyStore::new();
    let file = create(&store, "a", b"abc");
    let next = store.calls() + 1;
    store.fail_call(next, Fault::Error(Errno::ENOSPC));
    assert_errno(file.write_at(b"x", 0), Errno::ENOSPC);
    file.write_at(b"y", 0).unwrap();
    assert_eq!(store.calls(), next + 1);

    store.fail_when(
        |call| call.kind == CallKind::Write && call.path.as_str() == "a",
        Fault::ShortWrite { bytes: 2 },
    );
    assert_errno(file.write_at(b"123456", 0), Errno::ENOSPC);
    assert_eq!(contents(&store, "a").unwrap(), b"12c");
    create(&store, "b", b"other files are not meant");
    store.clear_faults();

    store.fail_kind(CallKind::SyncDir, Fault::Error(Errno::EIO));
    assert_errno(store.sync_dir(&StorePath::root()), Errno::EIO);
    assert!(outcomes(&store, root_names).contains(""));
    store.fail_kind(CallKind::Read, Fault::Error(Errno::EIO));
    assert_errno(file.read_at(&mut [0; 1], 0), Errno::EIO);
    store.fail_kind(CallKind::Create, Fault::Error(Errno::ENOSPC));
    assert_errno(store.open(&path("c"), OpenMode::CreateNew), Errno::ENOSPC);
    assert_eq!(names(&store, &StorePath::root()), ["a", "b"]);
}

#[test]
fn threads_share_a_store() {
    let store = FaultyStore::new();
    let file = store.open(&path("shared"), OpenMode::CreateNew).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (store, file) = (store.clone(), Arc::clone(&file));
            scope.spawn(move || {
                for round in 0..50 {
                    let page = u64::from(thread) * 50 + round;
                    file.write_at(&[thread + 1; 4096], page * 4096).unwrap();
                    create(&store, &format!("f{page}"), &[thread])
                        .sync()
                        .unwrap();
                }
            });
        }
    });
    store.sync_all().unwrap();
    let survivor = store.power_cut(7);
    assert_eq!(names(&survivor, &StorePath::root()).len(), 201);
    let bytes = contents(&survivor, "shared").unwrap();
    assert!(
        bytes
            .chunks(4096)
            .zip(0..)
            .all(|(page, n)| page[0] == n / 50 + 1)
    );
}
