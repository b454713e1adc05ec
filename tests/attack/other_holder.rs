//! The attacker was given an image: deployed under a customer key and a platform keystore of their
//! own, or exported under a passphrase they know. They hold every data key of it, and can read the
//! directory of the volume from which it was made. They want more: the volume's metadata, its other
//! contents, and what is written there later.
//!
//! No secret of the volume is needed to try: its superblock has the ids of its key sets and the
//! crypto id of `meta`, and objects and checkpoints are named by theirs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bilayer::fs::Filesystem;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{NodeId, Owner, WriteFlags};
use bilayer::ids::{CryptoId, PageIndex};
use bilayer::image::{DeployOptions, ExportOptions, ImportOptions, NoProgress, Transport, import};
use bilayer::keys::customer::file::generate;
use bilayer::keys::{KeyUri, PassphraseSource};
use bilayer::layers::{CustomerDek, InfrastructureDek, KeyRing, KeySet};
use bilayer::sealed::{ContentsFile, MetaFile, PAGE_BYTES};
use bilayer::store::directory::DirectoryStore;
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::header::HeaderContents;
use bilayer::volume::{self, CreateOptions, OpenOptions, UnverifiedHeader, Volume, VolumeError};

use crate::real::{Place, noise, write_synced};
use crate::support::{ADMIN, ROOT, USER, pattern, quiet};

/// The data keys that somebody has.
#[derive(Default)]
struct Holdings {
    customer: Vec<[u8; CustomerDek::BYTES]>,
    infrastructure: Vec<[u8; InfrastructureDek::BYTES]>,
}

impl Holdings {
    /// All data keys of an open volume.
    fn of(volume: &Volume) -> Self {
        let mut this = Self::default();
        for set in volume.keys.iter() {
            this.customer.push(*set.customer.expose());
            this.infrastructure.push(*set.infrastructure.expose());
        }
        assert!(!this.customer.is_empty());
        this
    }

    /// Each of the pairs, as each of the sets that a superblock lists.
    fn as_sets_of(&self, header: &HeaderContents) -> Vec<Vec<Arc<KeySet>>> {
        let pairs = self.customer.iter().flat_map(|customer| {
            self.infrastructure
                .iter()
                .map(move |other| (customer, other))
        });
        pairs
            .map(|(customer, infrastructure)| {
                let listed = header.key_sets().iter();
                listed
                    .map(|listed| {
                        Arc::new(KeySet {
                            id: listed.id,
                            epoch: listed.epoch,
                            customer: CustomerDek::from_bytes(customer).unwrap(),
                            infrastructure: InfrastructureDek::from_bytes(infrastructure).unwrap(),
                        })
                    })
                    .collect()
            })
            .collect()
    }
}

/// What could be opened in a volume's directory.
#[derive(PartialEq, Eq, Debug, Default)]
struct Opened {
    superblocks: usize,
    metadata: usize,
    checkpoints: usize,
    objects: usize,
}

/// Tries each key on everything in the directory.
fn attack(directory: &Path, holdings: &Holdings) -> Opened {
    let store = DirectoryStore::open(directory).unwrap();
    let superblock = fs::read(directory.join("volume.json")).unwrap();
    let header = UnverifiedHeader::parse(&superblock).unwrap();
    let claims = header.claims().clone();
    let mut opened = Opened::default();
    for sets in holdings.as_sets_of(&claims) {
        for file in ["volume.json", "checkpoints/volume.json"] {
            let Ok(bytes) = fs::read(directory.join(file)) else {
                continue;
            };
            let header = UnverifiedHeader::parse(&bytes).unwrap();
            opened.superblocks += usize::from(header.verify(&ring_of(&sets)).is_ok());
        }
        for set in &sets {
            let opens_meta = |path: &str, crypto: CryptoId| {
                let file = store.open(&StorePath::new(path), OpenMode::Read).unwrap();
                usize::from(MetaFile::open(file, set, crypto).is_ok())
            };
            opened.metadata += opens_meta("meta", claims.meta_crypto());
            for name in names_in(&directory.join("checkpoints")) {
                if let Some(crypto) = CryptoId::from_hex(&name) {
                    opened.checkpoints += opens_meta(&format!("checkpoints/{name}"), crypto);
                }
            }
            opened.objects += objects_that_open(&store, directory, set);
        }
    }
    opened
}

fn ring_of(sets: &[Arc<KeySet>]) -> KeyRing {
    let copy = |set: &Arc<KeySet>| KeySet {
        id: set.id,
        epoch: set.epoch,
        customer: CustomerDek::from_bytes(set.customer.expose()).unwrap(),
        infrastructure: InfrastructureDek::from_bytes(set.infrastructure.expose()).unwrap(),
    };
    let (active, others) = sets.split_last().unwrap();
    KeyRing::new(copy(active), others.iter().map(copy).collect())
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Objects of which at least one page opens.
fn objects_that_open(store: &DirectoryStore, directory: &Path, set: &Arc<KeySet>) -> usize {
    let mut count = 0;
    for folder in names_in(&directory.join("objects")) {
        for name in names_in(&directory.join("objects").join(&folder)) {
            let path = StorePath::new(&format!("objects/{folder}/{name}"));
            let crypto = CryptoId::from_hex(&name).unwrap();
            let file = store.open(&path, OpenMode::Read).unwrap();
            let pages = file.len().unwrap() / PAGE_BYTES as u64;
            let object = ContentsFile::new(file, set, crypto);
            let all = PageIndex(0)..PageIndex(pages);
            let guard = object.lock_shared(all.clone());
            let mut refused = 0;
            object
                .verify(&guard, all, &mut |_, _| refused += 1)
                .unwrap();
            count += usize::from(refused < pages);
        }
    }
    count
}

/// A machine with a volume that has an image, and another machine that is to get it.
struct Machines {
    place: tempfile::TempDir,
}

impl Machines {
    fn new(customer: bool) -> Self {
        let this = Self {
            place: tempfile::tempdir().unwrap(),
        };
        for (name, wanted) in [("own.pem", customer), ("other.pem", true)] {
            if wanted {
                generate(&this.path(name), 2048, None).unwrap();
            }
        }
        let options = CreateOptions {
            customer_key: customer.then(|| this.key("own.pem")),
            keystore: this.path("own-keystore"),
            ..CreateOptions::default()
        };
        volume::create_empty(this.directory("vol"), &options, &mut |fresh| {
            Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
        })
        .unwrap();
        let fs = this.open_source();
        put(&fs, "file", 1, 5);
        put(&fs, "other", 2, 3);
        fs.create_view(ViewKind::Image, "base", None, "").unwrap();
        fs.close().unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn key(&self, name: &str) -> KeyUri {
        KeyUri::from_file(&self.path(name)).unwrap()
    }

    fn directory(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(DirectoryStore::open_or_create(&self.path(name)).unwrap())
    }

    fn open_source(&self) -> Arc<Filesystem> {
        let options = OpenOptions {
            keystore: self.path("own-keystore"),
            ..OpenOptions::default()
        };
        // A process that another test has just started holds the lock until it executes its
        // program.
        let free = || match volume::open(self.directory("vol"), &options) {
            Err(VolumeError::InUse { .. }) => None,
            opened => Some(opened.unwrap()),
        };
        let volume = (0..100).find_map(|_| {
            let volume = free();
            if volume.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            volume
        });
        Filesystem::open(volume.unwrap(), quiet()).unwrap()
    }

    /// The owner's keys: they show that the attack works.
    fn owner(&self) -> Holdings {
        let options = OpenOptions {
            keystore: self.path("own-keystore"),
            ..OpenOptions::default()
        };
        Holdings::of(&volume::open(self.directory("vol"), &options).unwrap())
    }

    /// The keys of a volume that the holder of this keystore and this key has.
    fn receiver(&self, store: Arc<dyn Store>, keystore: &str, key: Option<&str>) -> Holdings {
        let options = OpenOptions {
            customer_key: key.map(|key| self.key(key)),
            keystore: self.path(keystore),
            ..OpenOptions::default()
        };
        Holdings::of(&volume::open(store, &options).unwrap())
    }

    /// Nothing opens for the attacker, and everything for the owner, whose volume is in use and has
    /// checkpoints; nor does anything that is written from now on.
    fn nothing_opens(&self, attacker: &Holdings) {
        for round in 0..2u8 {
            let fs = self.open_source();
            put(&fs, "file", 10 + round, 7);
            put(&fs, &format!("new-{round}"), 20 + round, 4);
            fs.checkpoint_now().unwrap();
            fs.close().unwrap();
            drop(fs);
            let opened = attack(&self.path("vol"), &self.owner());
            assert_eq!((opened.superblocks, opened.metadata), (2, 1), "{opened:?}");
            assert!(opened.checkpoints > 0 && opened.objects > 3, "{opened:?}");
            let opened = attack(&self.path("vol"), attacker);
            assert_eq!(opened, Opened::default());
        }
    }
}

fn put(fs: &Filesystem, name: &str, seed: u8, pages: usize) {
    let (node, handle): (NodeId, _) = match fs.lookup(ROOT, name.as_bytes()) {
        Ok(attr) => {
            let handle = fs.open_file(&ADMIN, attr.node, libc::O_RDWR).unwrap();
            (attr.node, handle)
        }
        Err(_) => {
            let made = fs.create(&USER, ROOT, name.as_bytes(), 0o600, libc::O_RDWR);
            let (attr, handle) = made.unwrap();
            (attr.node, handle)
        }
    };
    let bytes = pattern(seed, 0, pages * 4032);
    fs.write(node, handle, 0, &bytes, WriteFlags::default())
        .unwrap();
    fs.fsync(node, handle, false).unwrap();
    fs.release(node, handle);
    fs.forget(node, 1);
}

#[test]
fn an_image_deployed_to_another_holder_opens_nothing_else() {
    for customer in [false, true] {
        // Another customer key, another keystore, both.
        for (key, keystore) in [
            (Some("other.pem"), "own-keystore"),
            (None, "other-keystore"),
            (Some("other.pem"), "other-keystore"),
        ] {
            let machines = Machines::new(customer);
            let options = DeployOptions {
                customer_key: key.map(|key| machines.key(key)),
                keystore: machines.path(keystore),
                ..DeployOptions::default()
            };
            let fs = machines.open_source();
            let made = fs.deploy_image("base", machines.directory("copy"), &options, &NoProgress);
            assert_eq!(made.unwrap().resealed, 2);
            fs.close().unwrap();
            drop(fs);
            let opens = key.or(customer.then_some("own.pem"));
            let attacker = machines.receiver(machines.directory("copy"), keystore, opens);
            machines.nothing_opens(&attacker);
        }
    }
}

/// The counterpart, which also shows that the attack works: under the same key and keystore the new
/// volume does have the source's keys.
#[test]
fn an_image_deployed_to_the_same_holder_shares_its_keys() {
    let machines = Machines::new(true);
    let options = DeployOptions {
        keystore: machines.path("own-keystore"),
        ..DeployOptions::default()
    };
    let fs = machines.open_source();
    let made = fs.deploy_image("base", machines.directory("copy"), &options, &NoProgress);
    assert_eq!(made.unwrap().linked, 2);
    fs.close().unwrap();
    drop(fs);
    let copy = machines.directory("copy");
    let same = machines.receiver(copy, "own-keystore", Some("own.pem"));
    let opened = attack(&machines.path("vol"), &same);
    assert!(opened.metadata > 0 && opened.objects > 0, "{opened:?}");
}

#[test]
fn an_export_under_a_passphrase_opens_nothing_else() {
    for customer in [false, true] {
        let machines = Machines::new(customer);
        let words = machines.path("words");
        write_synced(&words, b"between us\n").unwrap();
        let fs = machines.open_source();
        let mut stream = Vec::new();
        let options = ExportOptions {
            transport: Transport::Passphrase(PassphraseSource::File(words.clone())),
            ..ExportOptions::default()
        };
        fs.export_image("base", &options, &mut stream, &NoProgress)
            .unwrap();
        fs.close().unwrap();
        drop(fs);
        let target: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let options = ImportOptions {
            customer_key: customer.then(|| machines.key("own.pem")),
            export_passphrase: PassphraseSource::File(words),
            keystore: machines.path("other-keystore"),
            ..ImportOptions::default()
        };
        import(&mut &*stream, Arc::clone(&target), &options, &NoProgress).unwrap();
        let key = customer.then_some("own.pem");
        let attacker = machines.receiver(Arc::clone(&target), "other-keystore", key);
        machines.nothing_opens(&attacker);
        // Somebody who knows the passphrase has the stream's set, and can read nothing that the
        // importer writes.
        let importer = volume::open(
            target,
            &OpenOptions {
                customer_key: key.map(|key| machines.key(key)),
                keystore: machines.path("other-keystore"),
                ..OpenOptions::default()
            },
        );
        let importer = importer.unwrap();
        let sets: Vec<_> = importer.keys.iter().map(|set| set.epoch.0).collect();
        assert_eq!(sets, [2, 1]);
        assert_eq!(importer.keys.active().epoch.0, 2);
    }
}

/// Any process of the daemon's user can request a deployment over its control socket, without the
/// customer key and its passphrase. The result is sealed for the keys that the request names, and
/// has no key of the source.
#[test]
fn the_daemon_of_a_mounted_volume_gives_no_key_away() {
    let Some(place) = Place::new("attack-other-holder", Duration::from_secs(200)) else {
        return;
    };
    for key in ["own.pem", "theirs.pem"] {
        place.run(&format!("keygen {key} --bits 2048")).done();
    }
    let mounted = place.fresh("--customer-key file:own.pem", "");
    write_synced(&mounted.path("file"), &noise(1, 40_000)).unwrap();
    place.run("image create vol base").done();
    // From here on the customer key is not accessible.
    let aside = place.path("aside");
    fs::rename(place.path("own.pem"), &aside).unwrap();
    let words = "image deploy vol base copy --customer-key file:theirs.pem \
                 --platform-keystore theirs --json";
    let made = place.run(words).done().stdout;
    assert!(made.contains("\"resealed\":1"), "{made}");
    write_synced(&place.path("words"), b"between us\n").unwrap();
    place
        .run("image export vol base out --transport-passphrase-file words")
        .done();

    let open = |directory: &str, keystore: &str, key: &str| {
        let options = OpenOptions {
            customer_key: Some(KeyUri::from_file(&place.path(key)).unwrap()),
            keystore: place.path(keystore),
            ..OpenOptions::default()
        };
        let store = Arc::new(DirectoryStore::open(&place.path(directory)).unwrap());
        volume::open(store, &options).unwrap()
    };
    let attacker = Holdings::of(&open("copy", "theirs", "theirs.pem"));
    assert_eq!(attack(&place.path("vol"), &attacker), Opened::default());
    write_synced(&mounted.path("later"), &noise(2, 90_000)).unwrap();
    write_synced(&mounted.path("file"), &noise(3, 90_000)).unwrap();
    assert_eq!(attack(&place.path("vol"), &attacker), Opened::default());
    mounted.unmount();
    assert_eq!(attack(&place.path("vol"), &attacker), Opened::default());
    // The export's only set, as an importer has it.
    fs::rename(&aside, place.path("own.pem")).unwrap();
    let words = "image import out there --transport-passphrase-file words \
                 --customer-key file:own.pem --platform-keystore elsewhere";
    place.run(words).done();
    let importer = Holdings::of(&open("there", "elsewhere", "own.pem"));
    assert_eq!(attack(&place.path("vol"), &importer), Opened::default());
    let owner = Holdings::of(&open("vol", "keystore", "own.pem"));
    let opened = attack(&place.path("vol"), &owner);
    assert!(opened.metadata > 0 && opened.objects > 1, "{opened:?}");
    // And they have what they were given.
    let options = "customer_key=file:theirs.pem,platform_keystore=theirs";
    let copy = place.mount("copy", "mnt", options);
    assert!(fs::read(copy.path("file")).unwrap() == noise(1, 40_000));
    copy.unmount();
}
