//! Re-wrapping after the platform keystore was rotated.

use super::*;
use crate::errno::Errno;
use crate::keys::wrap::PlatformVersion;
use crate::store::faulty::{Fault, FaultyStore, WriteUnit};

fn rotate(keys: &Keys) -> PlatformVersion {
    let rotated = PlatformKeystore::rotate(&keys.at().join("platform")).expect("rotate");
    rotated.current_name()
}

/// The versions that the superblock on the disk names.
fn versions_on(store: &dyn Store) -> Vec<u32> {
    let header = inspect(store).expect("superblock");
    let versions = super::rewrap_platform::platform_versions(header.claims()).expect("named");
    versions.into_iter().map(|name| name.version).collect()
}

fn version_file(keys: &Keys, number: u32) -> PathBuf {
    keys.at()
        .join(format!("platform/versions/{number:08}.json"))
}

#[test]
fn both_roles_are_wrapped_anew_and_the_old_version_can_go() {
    for customer in [false, true] {
        let keys = Keys::new();
        let key = || customer.then(|| keys.private());
        let store = memory();
        let id = keys.create(&store, key());
        let volume = keys.open(&store, key()).expect("open");
        assert_eq!(volume.rewrap_platform().expect("nothing"), Rewrap::Current);
        volume.keep_spare().expect("spare");
        let (before, record) = (volume.header(), keys.keystore().record(id).expect("read"));
        assert_eq!(record.expect("record").header_sequence, 1);

        let newest = rotate(&keys);
        assert_eq!(versions_on(&*store), [1]);
        assert_eq!(
            keys.keystore().drop_unneeded_versions().expect("needed"),
            []
        );
        assert_eq!(
            volume.rewrap_platform().expect("rewrap"),
            Rewrap::Done(newest)
        );
        assert_eq!(volume.rewrap_platform().expect("nothing"), Rewrap::Current);

        let after = volume.header();
        assert_eq!(after.header_sequence(), 3);
        assert_eq!(versions_on(&*store), [2]);
        for (old, new) in before.key_sets().iter().zip(after.key_sets()) {
            assert_eq!(
                (old.id, old.epoch, old.state),
                (new.id, new.epoch, new.state)
            );
            assert_ne!(old.infrastructure, new.infrastructure);
            assert_eq!(old.customer == new.customer, customer);
            assert_eq!((new.infrastructure.len(), new.customer.len()), (1, 1));
        }
        assert_eq!(
            read(&*store, &spare::spare_path()),
            read(&*store, &header_path())
        );
        let record = keys.keystore().record(id).expect("read").expect("record");
        assert_eq!(record.header_sequence, 3);
        assert_eq!(record.platform, Some([newest].into()));
        let dropped = keys.keystore().drop_unneeded_versions().expect("drop");
        assert_eq!(
            dropped,
            [PlatformVersion {
                version: 1,
                ..newest
            }]
        );
        assert!(!version_file(&keys, 1).exists());
        drop(volume);
        assert_eq!(read_meta(&keys.open(&store, key()).expect("open")), META);
        // The spare copy opens too.
        store.unlink(&header_path()).expect("lose the superblock");
        let rescued = rescue(Arc::clone(&store), None, &keys.open_options(key()));
        rescued.expect("by the spare copy");
    }
}

#[test]
fn an_older_superblock_does_not_come_back() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    let old = read(&*store, &header_path());
    let volume = keys.open(&store, None).expect("open");
    rotate(&keys);
    volume.rewrap_platform().expect("rewrap");
    drop(volume);
    write(&*store, &header_path(), &old);
    let refused = keys.open(&store, None).expect_err("older");
    assert!(
        matches!(
            refused,
            VolumeError::RolledBack(Rollback::OlderHeader { .. })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_cut_at_any_call_leaves_a_volume_that_opens() {
    let keys = Keys::new();
    let base = FaultyStore::new();
    keys.create(&(Arc::new(base.clone()) as Arc<dyn Store>), None);
    let volume = keys
        .open(&(Arc::new(base.clone()) as Arc<dyn Store>), None)
        .expect("open");
    volume.keep_spare().expect("spare");
    drop(volume);
    base.sync_all().expect("sync");
    let base = base.to_memory();
    let mut seen = std::collections::BTreeSet::new();
    for call in 1.. {
        // Each attempt begins with a keystore that has just been rotated.
        let keys = keys.fork();
        rotate(&keys);
        let store = FaultyStore::from_memory(&base, WriteUnit::Sector);
        let opened = keys
            .open(&(Arc::new(store.clone()) as Arc<dyn Store>), None)
            .expect("open");
        store.cut_at_call(store.calls() + call);
        let rewrapped = opened.rewrap_platform();
        drop(opened);
        // Whatever nothing needs is gone when the power returns.
        let dropped = keys.keystore().drop_unneeded_versions().expect("drop");
        assert_eq!(dropped.is_empty(), rewrapped.is_err(), "call {call}");
        for seed in 0..10 {
            let keys = keys.fork();
            let survivor: Arc<dyn Store> = Arc::new(store.survivor(seed));
            let what = format!("call {call}, seed {seed}");
            seen.insert(versions_on(&*survivor));
            // By the spare copy alone.
            let spare_only = store.survivor(seed);
            spare_only
                .unlink(&header_path())
                .expect("lose the superblock");
            let rescued = rescue(Arc::new(spare_only), None, &keys.open_options(None));
            rescued.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let again = keys.open(&survivor, None);
            let again = again.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert_eq!(read_meta(&again), META, "{what}");
            again.rewrap_platform().expect("finish");
            assert_eq!(versions_on(&*survivor), [2], "{what}");
            assert_eq!(
                read(&*survivor, &spare::spare_path()),
                read(&*survivor, &header_path())
            );
            drop(again);
            keys.keystore().drop_unneeded_versions().expect("drop");
            assert!(!version_file(&keys, 1).exists(), "{what}");
            keys.open(&survivor, None)
                .expect("with the new version alone");
        }
        if !store.is_cut() {
            rewrapped.expect("nothing failed");
            assert!(call > 15, "{call}");
            break;
        }
    }
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        [vec![1], vec![1, 2], vec![2]]
    );
}

#[test]
fn a_failing_call_is_an_error_and_the_next_attempt_succeeds() {
    let keys = Keys::new();
    let base = FaultyStore::new();
    keys.create(&(Arc::new(base.clone()) as Arc<dyn Store>), None);
    let base = base.to_memory();
    for call in 1.. {
        let keys = keys.fork();
        let newest = rotate(&keys);
        let store = FaultyStore::from_memory(&base, WriteUnit::Page);
        let volume = keys
            .open(&(Arc::new(store.clone()) as Arc<dyn Store>), None)
            .expect("open");
        volume.keep_spare().expect("spare");
        let first = store.calls() + call;
        store.fail_call(first, Fault::Error(Errno::ENOSPC));
        let rewrapped = volume.rewrap_platform();
        if store.calls() < first {
            break;
        }
        if rewrapped.is_err() {
            keys.keystore().drop_unneeded_versions().expect("drop");
            assert!(version_file(&keys, 1).exists(), "call {call}");
            assert_eq!(
                volume.rewrap_platform().expect("again"),
                Rewrap::Done(newest)
            );
        }
        assert_eq!(versions_on(&store), [2], "call {call}");
        drop(volume);
        keys.open(&(Arc::new(store) as Arc<dyn Store>), None)
            .expect("open");
    }
}

#[test]
fn a_keystore_that_cannot_record_it_keeps_the_old_version() {
    let keys = Keys::new();
    let store = memory();
    let id = keys.create(&store, None);
    let volume = keys.open(&store, None).expect("open");
    let newest = rotate(&keys);
    // A directory in the record's place.
    let record = keys.keystore().record_path(id);
    let aside = keys.at().join("record");
    std::fs::rename(&record, &aside).expect("move");
    std::fs::create_dir(&record).expect("block");
    volume.rewrap_platform().expect_err("no record");
    assert!(
        keys.keystore()
            .drop_unneeded_versions()
            .expect("drop")
            .is_empty()
    );
    std::fs::remove_dir(&record).expect("unblock");
    std::fs::rename(&aside, &record).expect("move back");
    assert_eq!(versions_on(&*store), [2]);
    assert!(
        keys.keystore()
            .drop_unneeded_versions()
            .expect("drop")
            .is_empty()
    );
    assert_eq!(
        volume.rewrap_platform().expect("finish"),
        Rewrap::Done(newest)
    );
    assert_eq!(
        keys.keystore()
            .drop_unneeded_versions()
            .expect("drop")
            .len(),
        1
    );
}

#[test]
fn nothing_is_written_to_a_volume_that_is_only_read() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    rotate(&keys);
    let options = OpenOptions {
        read_only: true,
        ..keys.open_options(None)
    };
    let volume = open(Arc::clone(&store), &options).expect("open");
    volume.rewrap_platform().expect_err("read-only");
    assert_eq!(versions_on(&*store), [1]);
}

#[test]
fn a_version_stays_while_any_volume_or_process_needs_it() {
    let keys = Keys::new();
    let (one, two) = (memory(), memory());
    keys.create(&one, None);
    let other = keys.create(&two, None);
    let holder = keys.keystore();
    rotate(&keys);
    let rewrap = |store: &Arc<dyn Store>| {
        let volume = keys.open(store, None).expect("open");
        volume.rewrap_platform().expect("rewrap");
    };
    let drop_versions = || {
        keys.keystore()
            .drop_unneeded_versions()
            .expect("drop")
            .len()
    };
    rewrap(&one);
    assert_eq!(drop_versions(), 0, "the other volume needs it");
    // A record of an older program does not say what its volume needs.
    let record = keys
        .keystore()
        .record(other)
        .expect("read")
        .expect("record");
    rewrap(&two);
    let unknown = VolumeRecord {
        platform: None,
        ..record
    };
    let known = keys
        .keystore()
        .record(other)
        .expect("read")
        .expect("record");
    keys.keystore()
        .update_record(other, &unknown)
        .expect("write");
    assert_eq!(drop_versions(), 0, "it is not known");
    keys.keystore().update_record(other, &known).expect("write");
    assert_eq!(drop_versions(), 0, "a process wraps with it");
    drop(holder);
    std::fs::create_dir(keys.at().join("platform/exports")).expect("mkdir");
    let mark = keys.at().join("platform/exports/00000001");
    std::fs::write(&mark, "").expect("mark");
    assert_eq!(drop_versions(), 0, "an export needs it");
    std::fs::remove_file(&mark).expect("unmark");
    assert_eq!(drop_versions(), 1);
}
