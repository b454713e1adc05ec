//! Slots: added, removed and rotated, with the consent of a key holder.

use std::fs;

use super::*;
use crate::keys::customer::file::tests::other_private_pem;
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::store::faulty::{FaultyStore, WriteUnit};
use crate::volume::slot::{MAX_SLOTS, SlotKey, SlotKind};
use crate::volume::{Consent, SlotChange, SlotNumber};

fn provider(uri: &KeyUri) -> Box<dyn CustomerKeyProvider> {
    customer::open(uri, &PassphraseSource::None).expect("key")
}

fn key_of(uri: &KeyUri) -> SlotKey {
    SlotKey::new(&provider(uri).current().expect("current"), true)
}

fn other(keys: &Keys) -> KeyUri {
    key_file(keys.at(), "other.pem", &other_private_pem())
}

fn addition(uri: &KeyUri) -> SlotChange {
    SlotChange::Add {
        kind: SlotKind::Customer,
        label: Some("second".to_owned()),
        provider: uri.to_string(),
        key: key_of(uri),
    }
}

fn rotation(uri: &KeyUri) -> SlotChange {
    SlotChange::BeginRotation {
        slot: SlotNumber(1),
        provider: uri.to_string(),
        key: key_of(uri),
    }
}

fn fingerprint_of_key(uri: &KeyUri) -> String {
    let version = provider(uri).current().expect("current");
    version.key.fingerprint().to_owned()
}

fn change(volume: &Volume, change: &SlotChange) -> Result<SlotNumber, VolumeError> {
    volume.change_slots(change, &volume.consent(change).expect("consent"))
}

/// A customer-managed volume in memory.
fn volume() -> (Keys, Arc<dyn Store>) {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, Some(keys.private()));
    (keys, store)
}

#[test]
fn a_second_key_opens_what_the_first_one_made() {
    let (keys, store) = volume();
    let second = other(&keys);
    let opened = keys.open(&store, None).expect("open");
    let before = opened.header().header_sequence();
    assert_eq!(
        change(&opened, &addition(&second)).expect("add"),
        SlotNumber(2)
    );
    assert_eq!(opened.header().header_sequence(), before + 1);
    opened
        .prove_slot(&*provider(&second), SlotNumber(2))
        .expect("proven");
    let error = change(&opened, &addition(&second)).expect_err("known");
    assert!(error.to_string().contains("slot 2"), "{error}");
    drop(opened);
    for uri in [keys.private(), second.clone()] {
        let again = keys.open(&store, Some(uri.clone())).expect("open");
        assert_eq!(again.opened_by.as_ref().expect("customer").uri, uri);
    }
    // The first one is removed. It is the remembered one, so the other has to be named.
    let opened = keys.open(&store, Some(second.clone())).expect("open");
    let removal = |slot| SlotChange::Remove {
        slot: SlotNumber(slot),
        opened_by: SlotNumber(2),
    };
    assert!(change(&opened, &removal(3)).is_err());
    change(&opened, &removal(1)).expect("remove");
    let error = change(&opened, &removal(2)).expect_err("the last");
    assert!(error.to_string().contains("the last slot"), "{error}");
    drop(opened);
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::WrongKey);
    let opened = keys.open(&store, Some(second.clone())).expect("open");
    let remember = SlotChange::Remember {
        provider: second.to_string(),
    };
    change(&opened, &remember).expect("remember");
    drop(opened);
    keys.open(&store, None).expect("the remembered key");
}

#[test]
fn a_rotation_keeps_the_old_key_until_the_new_one_has_opened() {
    let (keys, store) = volume();
    let new = other(&keys);
    let opened = keys.open(&store, None).expect("open");
    change(&opened, &rotation(&new)).expect("begin");
    drop(opened);
    for uri in [Some(keys.private()), Some(new.clone()), None] {
        keys.open(&store, uri).expect("either opens");
    }
    // It can be given up, and begun again.
    let opened = keys.open(&store, None).expect("open");
    let back = SlotChange::FinishRotation {
        slot: SlotNumber(1),
        provider: keys.private().to_string(),
        keep: fingerprint_of_key(&keys.private()),
    };
    change(&opened, &back).expect("back");
    drop(opened);
    assert_eq!(
        kind_of(keys.open(&store, Some(new.clone()))),
        ErrorKind::WrongKey
    );
    let opened = keys
        .open(&store, None)
        .expect("the former key is remembered");
    change(&opened, &rotation(&new)).expect("begin");
    drop(opened);
    let opened = keys.open(&store, None).expect("open");
    let finish = SlotChange::FinishRotation {
        slot: SlotNumber(1),
        provider: new.to_string(),
        keep: fingerprint_of_key(&new),
    };
    change(&opened, &finish).expect("finish");
    drop(opened);
    let old = keys.open(&store, Some(keys.private()));
    assert_eq!(kind_of(old), ErrorKind::WrongKey);
    // The keystore remembers the new one.
    let opened = keys.open(&store, None).expect("open");
    assert_eq!(opened.opened_by.as_ref().expect("customer").uri, new);
    let nothing_left = SlotChange::FinishRotation {
        slot: SlotNumber(1),
        provider: new.to_string(),
        keep: fingerprint_of_key(&keys.private()),
    };
    assert!(change(&opened, &nothing_left).is_err());
}

#[test]
fn nothing_changes_without_consent() {
    let (keys, store) = volume();
    let opened = keys.open(&store, None).expect("open");
    let wanted = addition(&other(&keys));
    let removal = SlotChange::Remove {
        slot: SlotNumber(1),
        opened_by: SlotNumber(1),
    };
    let refused = |consent: &Consent| {
        let error = opened.change_slots(&wanted, consent).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{error}");
    };
    // Of another change, of nobody, of another volume, of this volume before another change.
    refused(&opened.consent(&removal).expect("consent"));
    let nobody = format!(
        "{{\"mac\":\"{}\",\"header_sequence\":{}}}",
        "0".repeat(64),
        opened.header().header_sequence()
    );
    refused(&serde_json::from_str(&nobody).expect("consent"));
    let (_keys, foreign) = volume();
    let foreign = _keys.open(&foreign, None).expect("open");
    refused(&foreign.consent(&wanted).expect("consent"));
    let early = opened.consent(&wanted).expect("consent");
    change(&opened, &wanted).expect("add");
    let removal = SlotChange::Remove {
        slot: SlotNumber(2),
        opened_by: SlotNumber(1),
    };
    change(&opened, &removal).expect("remove");
    let late = opened.change_slots(&wanted, &early).expect_err("refused");
    assert_eq!(late.kind(), ErrorKind::InUse, "{late}");
}

#[test]
fn slots_are_bounded_and_platform_managed_volumes_have_none() {
    let (keys, store) = volume();
    let opened = keys.open(&store, None).expect("open");
    for number in 2..=MAX_SLOTS {
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("key");
        let pem = rsa::pkcs8::EncodePrivateKey::to_pkcs8_pem(&key, pkcs8::LineEnding::LF);
        let uri = key_file(keys.at(), &format!("{number}.pem"), &pem.expect("pem"));
        change(&opened, &addition(&uri)).expect("add");
    }
    let error = change(&opened, &addition(&other(&keys))).expect_err("full");
    assert!(error.to_string().contains("all 8 slots"), "{error}");
    let removal = SlotChange::Remove {
        slot: SlotNumber(5),
        opened_by: SlotNumber(1),
    };
    change(&opened, &removal).expect("remove");
    let number = change(&opened, &addition(&other(&keys))).expect("add");
    assert_eq!(number, SlotNumber(5));
    drop(opened);
    keys.open(&store, None).expect("open");
    let store = memory();
    keys.create(&store, None);
    let opened = keys.open(&store, None).expect("open");
    let error = change(&opened, &addition(&other(&keys))).expect_err("refused");
    assert!(error.to_string().contains("platform-managed"), "{error}");
}

/// Whenever the power fails during a change, the volume opens with a key that was good before, or
/// that the change added.
#[test]
fn one_slot_stays_that_was_seen_to_open_the_volume() {
    let (keys, store) = volume();
    let opened = keys.open(&store, None).expect("open");
    let mut unproven = addition(&other(&keys));
    if let SlotChange::Add { key, .. } = &mut unproven {
        key.proven = false;
    }
    change(&opened, &unproven).expect("add");
    let removal = |opened_by| SlotChange::Remove {
        slot: SlotNumber(1),
        opened_by: SlotNumber(opened_by),
    };
    let error = change(&opened, &removal(1)).expect_err("the last proven one");
    assert!(error.to_string().contains("ever been seen"), "{error}");
    assert_eq!(opened.header().slots().iter().count(), 2);
    change(&opened, &removal(2)).expect("the holder of the other consents");
}

#[test]
fn a_rotation_that_is_not_recorded_is_in_force_and_recorded_later() {
    let (keys, store) = volume();
    let new = other(&keys);
    let opened = keys.open(&store, None).expect("open");
    let record = opened.keystore().record_path(opened.header().volume_id());
    let (directory, aside) = (record.parent().expect("parent"), keys.at().join("aside"));
    fs::rename(directory, &aside).expect("the keystore's records are gone");
    fs::write(directory, "in the way").expect("write");
    let error = change(&opened, &rotation(&new)).expect_err("not recorded");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("in force")),
        "{error}"
    );
    opened
        .prove_slot(&*provider(&new), SlotNumber(1))
        .expect("in force");
    assert_eq!(opened.customer_uri(), Some(new.clone()));
    fs::remove_file(directory).expect("remove");
    fs::rename(&aside, directory).expect("the records are back");
    opened.rewrap_platform().expect("recorded now");
    drop(opened);
    let opened = keys.open(&store, None).expect("open");
    assert_eq!(opened.opened_by.as_ref().expect("customer").uri, new);
}

#[test]
fn a_volume_that_is_open_for_reading_can_get_another_remembered_key() {
    let (keys, store) = volume();
    let second = other(&keys);
    let opened = keys.open(&store, None).expect("open");
    change(&opened, &addition(&second)).expect("add");
    drop(opened);
    let options = OpenOptions {
        read_only: true,
        ..keys.open_options(Some(second.clone()))
    };
    let opened = open(Arc::clone(&store), &options).expect("open");
    assert!(change(&opened, &rotation(&second)).is_err());
    let remember = SlotChange::Remember {
        provider: second.to_string(),
    };
    change(&opened, &remember).expect("remember");
    drop(opened);
    let opened = keys.open(&store, None).expect("open");
    assert_eq!(opened.opened_by.as_ref().expect("customer").uri, second);
}

#[test]
fn a_power_cut_during_a_change_leaves_a_volume_that_opens() {
    let keys = Keys::new();
    let base = FaultyStore::new();
    let id = keys.create(&as_store(&base), Some(keys.private()));
    let new = other(&keys);
    let opened = keys.open(&as_store(&base), None).expect("open");
    opened.keep_spare().expect("spare");
    drop(opened);
    let finish = SlotChange::FinishRotation {
        slot: SlotNumber(1),
        provider: new.to_string(),
        keep: fingerprint_of_key(&new),
    };
    // The keystore's record, which survives every cut as it is.
    let record = keys.at().join(format!("platform/volumes/{id}.json"));
    let wanted = [
        (addition(&new), true),
        (rotation(&new), true),
        (finish, false),
    ];
    for (wanted, old_stays) in wanted {
        let record_before = fs::read(&record).expect("record");
        let prepared = FaultyStore::from_memory(&base.to_memory(), WriteUnit::Page);
        if !old_stays {
            let opened = keys.open(&as_store(&prepared), None).expect("open");
            change(&opened, &rotation(&new)).expect("begin");
        }
        let (prepared, record_prepared) =
            (prepared.to_memory(), fs::read(&record).expect("record"));
        for call in 1.. {
            fs::write(&record, &record_prepared).expect("record");
            let faulty = FaultyStore::from_memory(&prepared, WriteUnit::Page);
            let opened = keys.open(&as_store(&faulty), Some(keys.private()));
            let opened = opened.expect("open");
            faulty.cut_at_call(faulty.calls() + call);
            let changed = change(&opened, &wanted);
            drop(opened);
            let record_after = fs::read(&record).expect("record");
            let opens = |store: &Arc<dyn Store>, key: &KeyUri| {
                fs::write(&record, &record_after).expect("record");
                keys.open(store, Some(key.clone())).is_ok()
            };
            for seed in 0..10 {
                let survivor = as_store(&faulty.survivor(seed));
                let with_old = opens(&survivor, &keys.private());
                let with_new = opens(&survivor, &new);
                assert!(with_old || with_new, "call {call}, seed {seed}");
                assert!(with_old || !old_stays, "call {call}, seed {seed}");
                assert!(with_new || changed.is_err(), "call {call}, seed {seed}");
            }
            if !faulty.is_cut() {
                changed.expect("done");
                assert!(call > 5, "the change makes calls");
                break;
            }
        }
        fs::write(&record, &record_before).expect("record");
    }
}

fn as_store(store: &FaultyStore) -> Arc<dyn Store> {
    Arc::new(store.clone())
}
