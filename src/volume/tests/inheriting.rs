//! Volumes that take key sets over from another.

use super::*;
use crate::ids::Epoch;
use crate::keys::customer::file::tests::other_private_pem;
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::volume::header::{KeySetState, MAX_KEY_SETS};

fn inheritance(volume: &Volume) -> Inheritance {
    Inheritance {
        key_sets: volume.keys.iter().map(Arc::clone).collect(),
        holder: None,
        key_mode: volume.header().key_mode(),
        provenance: Provenance {
            volume: volume.header().volume_id(),
            image: "golden".to_owned(),
            foreign: false,
        },
    }
}

fn with_key(key: &dyn CustomerKeyProvider) -> NewCustomer<'_> {
    NewCustomer::with_key(key).expect("current")
}

/// Founds a volume that inherits, in memory.
fn inherit(
    keys: &Keys,
    from: &Inheritance,
    customer: Option<NewCustomer<'_>>,
) -> Result<Arc<dyn Store>, VolumeError> {
    let store = memory();
    let new_volume = NewVolume {
        action: "deploy-image",
        customer,
        keystore: &keys.at().join("platform"),
        size_bytes: None,
        inherited: Some(from),
    };
    create_volume(Arc::clone(&store), &new_volume, &mut write_meta)?;
    Ok(store)
}

/// The new volume holds the source's sets, read-only, and a fresh one.
fn check(new: &Volume, source: &Volume) {
    let (count, newest) = (source.keys.iter().count(), source.keys.active().epoch);
    assert_eq!(new.keys.iter().count(), count + 1);
    assert_eq!(new.keys.active().epoch, Epoch(newest.0 + 1));
    for set in source.keys.iter() {
        let same = new.keys.get(set.epoch).expect("inherited");
        assert_eq!(same.id, set.id);
        assert_eq!(same.customer.expose(), set.customer.expose());
        assert_eq!(same.infrastructure.expose(), set.infrastructure.expose());
        let fresh = new.keys.active();
        assert_ne!(fresh.id, set.id);
        assert_ne!(fresh.customer.expose(), set.customer.expose());
        assert_ne!(fresh.infrastructure.expose(), set.infrastructure.expose());
    }
    let (header, source_header) = (new.header(), source.header());
    for set in header.key_sets() {
        let active = set.epoch == new.keys.active().epoch;
        assert_eq!(set.state == KeySetState::Active, active);
        let old = source_header.key_sets().iter().find(|old| old.id == set.id);
        let wraps = old.map(|old| (&old.customer, &old.infrastructure));
        assert_ne!(
            wraps,
            Some((&set.customer, &set.infrastructure)),
            "wrapped anew"
        );
    }
    let from = header.provenance().expect("provenance");
    assert_eq!(from.volume, source.header().volume_id());
    assert_eq!(from.image, "golden");
    assert_ne!(new.header().volume_id(), source.header().volume_id());
    assert_ne!(new.header().meta_crypto(), source.header().meta_crypto());
    assert_ne!(
        new.fingerprint().expect("print"),
        source.fingerprint().expect("print")
    );
}

#[test]
fn a_platform_managed_volume_gives_either() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    let source = keys.open(&store, None).expect("open");
    assert!(source.opened_by.is_none());
    let from = inheritance(&source);
    let same = inherit(&keys, &from, None).expect("found");
    let same = keys.open(&same, None).expect("open");
    assert_eq!(same.header().key_mode(), KeyMode::PlatformManaged);
    check(&same, &source);
    let key = customer::open(&keys.public(), &PassphraseSource::None).expect("key");
    let managed = inherit(&keys, &from, Some(with_key(&*key))).expect("found");
    let managed = keys.open(&managed, Some(keys.private())).expect("open");
    assert_eq!(managed.header().key_mode(), KeyMode::PlatformAndCustomer);
    check(&managed, &source);
    // And so on: a volume deployed from a deployed one.
    let again = inherit(&keys, &inheritance(&same), None).expect("found");
    check(&keys.open(&again, None).expect("open"), &same);
}

#[test]
fn a_customer_managed_volume_gives_its_like_or_another_keys() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, Some(keys.public()));
    let source = keys.open(&store, Some(keys.private())).expect("open");
    let from = inheritance(&source);
    let refused = inherit(&keys, &from, None).expect_err("refused");
    assert!(
        matches!(refused, VolumeError::WouldDowngrade),
        "{refused:?}"
    );
    assert!(refused.hint().is_some());
    // An open volume keeps the public key, which is enough.
    let own = NewCustomer::of(&source).expect("kept");
    assert!(own.provider.is_none());
    let new = inherit(&keys, &from, Some(own)).expect("found");
    // The keystore remembers the key.
    let new = keys.open(&new, None).expect("open");
    check(&new, &source);
    // Another key: that one opens it, and the source's does not.
    let other = key_file(keys.at(), "other.pem", &other_private_pem());
    let other_key = customer::open(&other, &PassphraseSource::None).expect("key");
    let new = inherit(&keys, &from, Some(with_key(&*other_key))).expect("found");
    let error = keys.open(&new, Some(keys.private()));
    assert_eq!(kind_of(error), ErrorKind::WrongKey);
    check(&keys.open(&new, Some(other)).expect("open"), &source);
}

/// Key sets that must not leave their holder are wrapped by the same keys and no others, whoever
/// asks.
#[test]
fn key_sets_stay_with_their_holder() {
    for customer in [false, true] {
        let keys = Keys::new();
        let store = memory();
        keys.create(&store, customer.then(|| keys.public()));
        let source = keys.open(&store, customer.then(|| keys.private()));
        let source = source.expect("open");
        let from = Inheritance {
            holder: Some(KeyHolder::of(&source)),
            ..inheritance(&source)
        };
        let own = NewCustomer::of(&source);
        inherit(&keys, &from, own.clone()).expect("the same holder");
        let other = key_file(keys.at(), "other.pem", &other_private_pem());
        let other = customer::open(&other, &PassphraseSource::None).expect("key");
        let error =
            inherit(&keys, &from, Some(with_key(&*other))).expect_err("another customer key");
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        // A keystore that says it is the same one: its file of the id is a copy.
        let foreign = Keys::new();
        foreign.create(&memory(), None);
        let id = |keys: &Keys| keys.at().join("platform/keystore.json");
        std::fs::copy(id(&keys), id(&foreign)).expect("copy");
        let versions = foreign.at().join("platform/versions");
        std::fs::remove_dir_all(versions).expect("remove");
        std::fs::remove_dir_all(foreign.at().join("platform/volumes")).expect("remove");
        let error = inherit(&foreign, &from, own).expect_err("another keystore");
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{error}");
    }
}

#[test]
fn there_is_an_end_to_key_sets() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    let source = keys.open(&store, None).expect("open");
    let mut from = inheritance(&source);
    let set = |epoch| Arc::new(crate::layers::KeySet::random(Epoch(epoch)).expect("random"));
    from.key_sets = (1..MAX_KEY_SETS as u32).map(set).collect();
    let most = inherit(&keys, &from, None).expect("as many as there may be");
    assert_eq!(
        keys.open(&most, None).expect("open").keys.iter().count(),
        MAX_KEY_SETS
    );
    from.key_sets.push(set(MAX_KEY_SETS as u32));
    let error = inherit(&keys, &from, None).expect_err("one too many");
    assert!(matches!(
        error,
        VolumeError::TooManyKeySets {
            found: 64,
            most: 64
        }
    ));
    assert!(error.hint().is_some());
    from.key_sets = vec![set(u32::MAX)];
    assert!(inherit(&keys, &from, None).is_err(), "no epoch is left");
    // Two sets of one epoch: refused before anything is written.
    from.key_sets = vec![set(5), set(5)];
    assert!(inherit(&keys, &from, None).is_err());
}
