//! The attacker has the victim's platform keystore and the public half of the victim's customer
//! key, so they can wrap keys that the victim's machine unwraps; and they can write to the
//! directory while it is not mounted. They do not have the victim's data keys.

use std::sync::Arc;

use bilayer::fs::Filesystem;
use bilayer::fs::types::Owner;
use bilayer::ids::{Epoch, Sequence, VolumeId};
use bilayer::keys::customer::{self, file::generate};
use bilayer::keys::{CustomerKeyProvider, ErrorKind, KeyUri, PassphraseSource};
use bilayer::layers::{ActiveSet, KeySet, Succession, VerificationKey};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, CreateOptions, OpenOptions, Volume, VolumeError};
use serde_json::{Value, json};

use crate::support::{self, forge};

/// A machine with a customer key, and volumes under it.
struct Machine {
    directory: tempfile::TempDir,
    key: KeyUri,
}

/// A closed volume that the machine has used, and the fingerprint that its owner has pinned.
struct Victim {
    store: MemoryStore,
    superblock: Vec<u8>,
    pin: String,
    id: VolumeId,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("customer.pem");
        generate(&path, 2048, None).unwrap();
        let key = KeyUri::from_file(&path).unwrap();
        Self { directory, key }
    }

    fn keystore(&self) -> std::path::PathBuf {
        self.directory.path().join("platform")
    }

    /// A keystore with the same keys that remembers no volume: another machine.
    fn stranger(&self) -> tempfile::TempDir {
        let other = support::keystore();
        let path = other.path().join("platform");
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&path)
            .unwrap();
        support::copy_tree(&self.keystore(), &path);
        for record in std::fs::read_dir(path.join("volumes")).unwrap() {
            std::fs::remove_file(record.unwrap().path()).unwrap();
        }
        Arc::into_inner(other).unwrap()
    }

    fn create(&self) -> Victim {
        let store = MemoryStore::new();
        let options = CreateOptions {
            customer_key: Some(self.key.clone()),
            keystore: self.keystore(),
            ..CreateOptions::default()
        };
        let made = volume::create_empty(Arc::new(store.clone()), &options, &mut |fresh| {
            Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
        });
        let id = made.unwrap();
        let volume = self.open(&store, None).unwrap();
        let pin = volume.fingerprint().unwrap();
        let superblock = bytes_of(&store, "volume.json");
        Victim {
            store,
            superblock,
            pin,
            id,
        }
    }

    fn open(&self, store: &MemoryStore, pin: Option<&str>) -> Result<Volume, VolumeError> {
        self.open_with(&self.keystore(), store, pin)
    }

    fn open_with(
        &self,
        keystore: &std::path::Path,
        store: &MemoryStore,
        pin: Option<&str>,
    ) -> Result<Volume, VolumeError> {
        let options = OpenOptions {
            customer_key: Some(self.key.clone()),
            keystore: keystore.to_owned(),
            fingerprint: pin.map(str::to_owned),
            ..OpenOptions::default()
        };
        volume::open(Arc::new(store.clone()), &options)
    }

    fn public_half(&self) -> Box<dyn CustomerKeyProvider> {
        let key = customer::open(&self.key, &PassphraseSource::default()).unwrap();
        key.public_half()
    }

    /// An entry of a superblock for a set of the attacker's.
    fn entry(&self, volume: VolumeId, set: &KeySet) -> Value {
        let (keystore, customer) = (self.keystore(), self.public_half());
        let forger = forge::Forger {
            keystore: &keystore,
            customer: Some(&*customer),
        };
        forger.key_set(volume, set, "active")
    }
}

fn bytes_of(store: &MemoryStore, path: &str) -> Vec<u8> {
    let file = store.open(&StorePath::new(path), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn put(store: &MemoryStore, path: &str, bytes: &[u8]) {
    let path = StorePath::new(path);
    let file = match store.open(&path, OpenMode::ReadWrite) {
        Err(_) => store.open(&path, OpenMode::CreateNew),
        opened => opened,
    };
    let file = file.unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_at(bytes, 0).unwrap();
}

#[track_caller]
fn refused(opened: Result<Volume, VolumeError>, kind: ErrorKind) -> VolumeError {
    let error = opened.expect_err("refused");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// The attacker's tools work: a machine that remembers nothing accepts the volume that they make.
#[test]
fn a_forged_volume_opens_where_nothing_is_known_and_nothing_pinned() {
    let machine = Machine::new();
    let victim = machine.create();
    let own = KeySet::random(Epoch(1)).unwrap();
    let mut contents = forge::contents_of(&victim.superblock);
    contents["key_sets"] = json!([machine.entry(victim.id, &own)]);
    put(
        &victim.store,
        "volume.json",
        &forge::superblock(&contents, &[&own]),
    );
    let other = machine.stranger();
    let keystore = other.path().join("platform");
    machine.open_with(&keystore, &victim.store, None).unwrap();
    // With the victim's metadata it is no volume, and it leaves nothing behind by which the
    // victim's volume would be refused later.
    put(&victim.store, "volume.json", &victim.superblock);
    machine.open_with(&keystore, &victim.store, None).unwrap();
}

#[test]
fn an_active_set_beside_the_victims_is_refused() {
    let machine = Machine::new();
    let victim = machine.create();
    let own = KeySet::random(Epoch(2)).unwrap();
    let contents = forge::contents_of(&victim.superblock);
    let beside = forge::take_over(&contents, machine.entry(victim.id, &own));
    let other = machine.stranger();
    for sets in [&[&own][..], &[&own, &own], &[]] {
        put(
            &victim.store,
            "volume.json",
            &forge::superblock(&beside, sets),
        );
        // Whether or not the machine knows the volume.
        for keystore in [machine.keystore(), other.path().join("platform")] {
            let opened = machine.open_with(&keystore, &victim.store, None);
            refused(opened, ErrorKind::Tampered);
        }
    }
    put(&victim.store, "volume.json", &victim.superblock);
    machine.open(&victim.store, Some(&victim.pin)).unwrap();
}

#[test]
fn a_volume_of_the_same_id_under_other_keys_is_a_stranger() {
    let machine = Machine::new();
    let victim = machine.create();
    let first = forge::contents_of(&victim.superblock);
    let same_id = first["key_sets"][0]["id"].as_str().unwrap();
    let twin = KeySet {
        id: bilayer::ids::KeySetId::from_hex(same_id).unwrap(),
        ..KeySet::random(Epoch(1)).unwrap()
    };
    let other = machine.stranger();
    for own in [KeySet::random(Epoch(1)).unwrap(), twin] {
        let mut contents = first.clone();
        contents["sequence"] = json!(9);
        contents["key_sets"] = json!([machine.entry(victim.id, &own)]);
        let forged = forge::superblock(&contents, &[&own]);
        put(&victim.store, "volume.json", &forged);
        let known = refused(machine.open(&victim.store, None), ErrorKind::Tampered);
        assert!(
            matches!(known, VolumeError::UnknownKeySet { .. }),
            "{known}"
        );
        // Accepting a restored copy does not circumvent it.
        let options = OpenOptions {
            customer_key: Some(machine.key.clone()),
            keystore: machine.keystore(),
            accept_restored: true,
            ..OpenOptions::default()
        };
        let accepted = volume::open(Arc::new(victim.store.clone()), &options);
        refused(accepted, ErrorKind::Tampered);
        // If nothing is known of the volume, a pinned fingerprint refuses it as well.
        let keystore = other.path().join("platform");
        let pinned = machine.open_with(&keystore, &victim.store, Some(&victim.pin));
        refused(pinned, ErrorKind::WrongKey);
        // Salvage does not accept it either, neither named nor as the spare copy.
        put(&victim.store, "volume.json", b"damaged");
        victim.store.create_dir(&StorePath::new("checkpoints")).ok();
        put(&victim.store, "checkpoints/volume.json", &forged);
        let opened = volume::rescue(
            Arc::new(victim.store.clone()),
            Some(forged),
            &OpenOptions {
                accept_restored: false,
                ..options
            },
        );
        let error = opened.expect_err("a stranger's spare copy");
        assert_eq!(error.kind(), ErrorKind::Tampered, "{error}");
    }
    put(&victim.store, "volume.json", &victim.superblock);
    machine.open(&victim.store, Some(&victim.pin)).unwrap();
}

/// The customer's key wraps the data keys of several volumes: a wrap of one is not valid in
/// another.
#[test]
fn the_wrap_of_another_volume_is_refused() {
    let machine = Machine::new();
    let (victim, other) = (machine.create(), machine.create());
    let theirs = forge::contents_of(&other.superblock);
    for role in ["customer", "infrastructure"] {
        let mut contents = forge::contents_of(&victim.superblock);
        contents["key_sets"][0][role] = theirs["key_sets"][0][role].clone();
        // Whatever its MAC, since the key is checked first.
        put(
            &victim.store,
            "volume.json",
            &forge::superblock(&contents, &[]),
        );
        let error = refused(machine.open(&victim.store, None), ErrorKind::Tampered);
        if role == "customer" {
            assert!(error.to_string().contains("another volume's"), "{error}");
        }
        // With the id and number of its own set, the wrap is still that of another volume.
        for field in ["id", "epoch"] {
            contents["key_sets"][0][field] = theirs["key_sets"][0][field].clone();
        }
        put(
            &victim.store,
            "volume.json",
            &forge::superblock(&contents, &[]),
        );
        let error = refused(machine.open(&victim.store, None), ErrorKind::Tampered);
        assert!(
            !error.to_string().contains("does not authenticate"),
            "{error}"
        );
    }
}

/// A statement that the victim's set hands over to the attacker's requires the victim's keys.
#[test]
fn a_forged_succession_is_refused() {
    let machine = Machine::new();
    let victim = machine.create();
    let own = KeySet::random(Epoch(2)).unwrap();
    let contents = forge::contents_of(&victim.superblock);
    let mut stated = forge::take_over(&contents, machine.entry(victim.id, &own));
    stated["key_sets"][1]["succeeds"] = json!({
        "key_set": contents["key_sets"][0]["id"],
        "incarnation": contents["incarnation"],
        "commit": Sequence(u64::MAX).0,
        "mac": "5a".repeat(32),
    });
    put(
        &victim.store,
        "volume.json",
        &forge::superblock(&stated, &[&own]),
    );
    refused(machine.open(&victim.store, None), ErrorKind::Tampered);
    // Without the victim's set there is no set to follow.
    stated["key_sets"].as_array_mut().unwrap().remove(0);
    put(
        &victim.store,
        "volume.json",
        &forge::superblock(&stated, &[&own]),
    );
    refused(machine.open(&victim.store, None), ErrorKind::HeaderInvalid);
}

/// The attacker holds a set that was active before a renewal, and leaked. It is read-only now, and
/// a statement under it has no effect: neither in the known incarnation nor for a new one.
#[test]
fn a_former_set_cannot_hand_over() {
    let machine = Machine::new();
    let victim = machine.create();
    let before = machine.open(&victim.store, None).unwrap();
    let leaked = Arc::clone(before.keys.active());
    let first = before.header().incarnation();
    // Renewed: the machine knows another set as the newest one.
    let renewed = before
        .renew(Sequence(1), Sequence(2), &mut |meta| {
            meta.write(0, &[0; 4096])?;
            Ok(meta.sync()?)
        })
        .unwrap();
    let now = renewed.header().incarnation();
    drop(renewed);
    let genuine = bytes_of(&victim.store, "volume.json");
    let contents = forge::contents_of(&genuine);
    for incarnation in [now, bilayer::ids::IncarnationId([9; 16])] {
        let own = KeySet::random(Epoch(3)).unwrap();
        let active = |set: &KeySet, incarnation| ActiveSet {
            key_set: set.id,
            epoch: set.epoch,
            incarnation,
        };
        for claimed in [first, now] {
            let succession = Succession {
                volume: victim.id,
                before: active(&leaked, claimed),
                commit: Sequence(1 << 40),
                after: active(&own, incarnation),
            };
            let key = |set: &KeySet| VerificationKey::of(set).unwrap();
            let mac = succession.mac(&key(&leaked), &key(&own)).unwrap();
            let mut forged = contents.clone();
            let sets = forged["key_sets"].as_array_mut().unwrap();
            sets.remove(1);
            sets.push(machine.entry(victim.id, &own));
            forged["key_sets"][1]["succeeds"] = json!({
                "key_set": leaked.id.to_string(),
                "incarnation": claimed.to_string(),
                "commit": 1u64 << 40,
                "mac": hex::encode(mac),
            });
            forged["incarnation"] = json!(incarnation.to_string());
            forged["sequence"] = json!(1000);
            put(
                &victim.store,
                "volume.json",
                &forge::superblock(&forged, &[&leaked, &own]),
            );
            let error = refused(machine.open(&victim.store, None), ErrorKind::Tampered);
            assert!(matches!(error, VolumeError::RolledBack(_)), "{error}");
        }
    }
    put(&victim.store, "volume.json", &genuine);
    machine.open(&victim.store, None).unwrap();
}
