//! Making a volume while the power fails or the disk does.

use super::*;
use crate::errno::Errno;
use crate::store::faulty::{CallKind, Fault, FaultyStore};

#[test]
fn a_power_cut_leaves_no_volume_or_a_whole_one() {
    let keys = Keys::new();
    let mut whole = 0;
    for call in 1.. {
        let store = FaultyStore::new();
        store.cut_at_call(call);
        let made = create_empty(
            Arc::new(store.clone()),
            &keys.create_options(None),
            &mut write_meta,
        );
        for seed in 0..20 {
            let survivor: Arc<dyn Store> = Arc::new(store.survivor(seed));
            match keys.open(&survivor, None) {
                Ok(volume) => {
                    assert_eq!(read_meta(&volume), META);
                    survivor.info(&StorePath::new(OBJECT)).expect("its objects");
                    drop(volume);
                    whole += 1;
                }
                Err(VolumeError::NotAVolume) => {
                    assert!(
                        made.is_err(),
                        "call {call}, seed {seed}: it was reported made"
                    );
                }
                Err(error) => panic!("call {call}, seed {seed}: {error:?}"),
            }
        }
        if !store.is_cut() {
            assert!(made.is_ok() && call > 15);
            break;
        }
    }
    assert!(whole > 20, "some cuts fall between the rename and its sync");
}

#[test]
fn a_failing_call_leaves_an_empty_directory_and_a_typed_error() {
    let keys = Keys::new();
    for number in 1.. {
        let store = FaultyStore::new();
        store.fail_call(number, Fault::Error(Errno::ENOSPC));
        let made = create_empty(
            Arc::new(store.clone()),
            &keys.create_options(None),
            &mut write_meta,
        );
        let failed = store.calls() >= number;
        match made {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "call {number}: {error:?}");
                let left = store.list(&StorePath::root()).expect("list");
                assert_eq!(left, [], "call {number}");
            }
            Ok(_) if failed => {}
            Ok(_) => break,
        }
    }
}

#[test]
fn replacing_shared_files_survives_power_cuts() {
    let keys = Keys::new();
    let base = FaultyStore::new();
    let volume = keys.create(&(Arc::new(base.clone()) as Arc<dyn Store>), None);
    for path in [lock_path(), meta_path(), header_path()] {
        let copy = StorePath::new(&format!("{}.copy", path.as_str()));
        base.link(&path, &copy).expect("link");
    }
    base.sync_dir(&StorePath::root()).expect("sync");
    let base = base.to_memory();
    for call in 1.. {
        let store = FaultyStore::from_memory(&base, crate::store::faulty::WriteUnit::Page);
        store.cut_at_call(call);
        let opened = keys.open(&(Arc::new(store.clone()) as Arc<dyn Store>), None);
        for seed in 0..10 {
            let survivor: Arc<dyn Store> = Arc::new(store.survivor(seed));
            let again = keys.open(&survivor, None).expect("open after the cut");
            assert_eq!(again.header().volume_id(), volume);
            assert_eq!(read_meta(&again), META);
            assert_eq!(survivor.info(&meta_path()).expect("info").links, 1);
        }
        if !store.is_cut() {
            opened.expect("nothing failed");
            break;
        }
    }
}

#[test]
fn a_lock_that_fails_is_an_error_of_the_disk() {
    let keys = Keys::new();
    let store = FaultyStore::new();
    keys.create(&(Arc::new(store.clone()) as Arc<dyn Store>), None);
    store.fail_kind(CallKind::Read, Fault::Error(Errno::EIO));
    let error = keys.open(&(Arc::new(store) as Arc<dyn Store>), None);
    assert_eq!(kind_of(error), ErrorKind::Io);
}

#[test]
fn what_a_power_cut_left_half_made_is_taken_over() {
    let keys = Keys::new();
    for call in 1.. {
        let store = FaultyStore::new();
        store.cut_at_call(call);
        let options = keys.create_options(None);
        let made = create_empty(Arc::new(store.clone()), &options, &mut write_meta);
        for seed in 0..10 {
            let survivor: Arc<dyn Store> = Arc::new(store.survivor(seed));
            if keys.open(&survivor, None).is_ok() {
                let lock = read(&*survivor, &lock_path());
                assert!(
                    !lock.starts_with(b"b"),
                    "call {call}, seed {seed}: the mark went"
                );
                survivor
                    .unlink(&header_path())
                    .expect("lose the superblock");
                let error = create_empty(survivor, &options, &mut write_meta).expect_err("lost");
                assert!(matches!(error, VolumeError::Occupied(_)), "{error:?}");
                continue;
            }
            let volume = keys.create(&survivor, None);
            let opened = keys.open(&survivor, None).expect("open");
            assert_eq!(opened.header().volume_id(), volume);
            let objects = survivor.list(&StorePath::new(FOLDER)).expect("list");
            assert_eq!(objects.len(), 1, "call {call}, seed {seed}");
        }
        if !store.is_cut() {
            assert!(made.is_ok());
            break;
        }
    }
}

/// What an attempt that was cut off just before the superblock leaves.
fn half_made(keys: &Keys) -> crate::store::memory::MemoryStore {
    let store = FaultyStore::new();
    store.fail_when(
        |call| call.path.as_str() == "volume.json.new" && call.kind == CallKind::Create,
        Fault::Error(Errno::EIO),
    );
    // Nor can it be taken away.
    store.fail_kind(CallKind::Unlink, Fault::Error(Errno::EIO));
    let made = create_empty(
        Arc::new(store.clone()),
        &keys.create_options(None),
        &mut write_meta,
    );
    made.expect_err("no superblock");
    store.restart_process();
    store.sync_all().expect("sync");
    let left = store.list(&StorePath::root()).expect("list");
    assert_eq!(left.len(), 3, "{left:?}");
    store.to_memory()
}

#[test]
fn taking_over_survives_power_cuts_too() {
    let keys = Keys::new();
    let base = half_made(&keys);
    for call in 1.. {
        let store = FaultyStore::from_memory(&base, crate::store::faulty::WriteUnit::Sector);
        store.cut_at_call(call);
        let options = keys.create_options(None);
        let made = create_empty(Arc::new(store.clone()), &options, &mut write_meta);
        for seed in 0..10 {
            let survivor: Arc<dyn Store> = Arc::new(store.survivor(seed));
            let whole = keys.open(&survivor, None).is_ok();
            assert!(whole || made.is_err(), "call {call}, seed {seed}");
            if !whole {
                keys.create(&survivor, None);
            }
            let volume = keys.open(&survivor, None).expect("open");
            assert_eq!(read_meta(&volume), META);
        }
        if !store.is_cut() {
            assert!(made.is_ok());
            break;
        }
    }
}
