//! The attacker reads the daemon's memory: from swap, from a dump of the machine, as a debugger.
//!
//! An attacker who reads all of it has everything that a mounted volume needs; the threat model
//! says so. Secrets that are not needed any more must not be in memory. Needed ones must be in
//! memory that cannot be swapped out, or that is freed together with its object: no key on a stack,
//! none in freed memory, each data key once and in locked memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bilayer::ids::{CryptoId, Epoch, KeySetId};
use bilayer::keys::{KeyUri, PassphraseSource};
use bilayer::layers::KeySet;
use bilayer::store::directory::DirectoryStore;
use bilayer::volume::{self, OpenOptions, Volume};
use hkdf::Hkdf;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::PrivateKeyParts;
use serde_json::Value;
use sha2::Sha256;

use crate::real::{Mounted, Place, noise, run, write_synced};

const PASSPHRASE: &str = "correct horse battery staple 7391";
const TRANSPORT_PASSPHRASE: &str = "another one for the way, 4812 times";

/// Bytes of a key that a register or a cache line may carry, which are searched for.
const PIECE_BYTES: usize = 16;

/// Where a secret may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Belongs {
    /// Nowhere: the daemon does not need it any more, or never had it.
    Nowhere,
    /// This many times in locked memory, and nowhere else.
    Locked(usize),
    /// At most this many times in ordinary memory outside of stacks.
    Heap(usize),
}

struct Secret {
    name: String,
    bytes: Vec<u8>,
    belongs: Belongs,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Stack,
    Locked,
    Ordinary,
}

struct Mapping {
    start: u64,
    end: u64,
    kind: Kind,
}

// ---- the secrets, computed by this test ---------------------------------------------------------

/// `info` of a derivation, according to docs/FORMAT.md.
fn info(purpose: &str, layer: u32, set: KeySetId, epoch: Epoch, crypto: CryptoId) -> Vec<u8> {
    let mut info = vec![0; 16];
    info[..purpose.len()].copy_from_slice(purpose.as_bytes());
    info.extend_from_slice(&layer.to_le_bytes());
    info.extend_from_slice(&1u32.to_le_bytes());
    info.extend_from_slice(&set.0);
    info.extend_from_slice(&epoch.0.to_le_bytes());
    info.extend_from_slice(&crypto.0);
    info.extend_from_slice(&0u64.to_le_bytes());
    info
}

fn derive(input: &[u8], info: &[u8], len: usize) -> Vec<u8> {
    let mut key = vec![0; len];
    Hkdf::<Sha256>::new(None, input)
        .expand(info, &mut key)
        .unwrap();
    key
}

/// What HKDF extracts from a DEK: as good as the DEK.
fn extracted(dek: &[u8]) -> Vec<u8> {
    Hkdf::<Sha256>::extract(None, dek).0.to_vec()
}

/// Keys of the pages of one file, both layers.
fn page_keys(secrets: &mut Vec<Secret>, set: &KeySet, of: &str, crypto: CryptoId, kept: usize) {
    let info = |layer| info("bilayer page", layer, set.id, set.epoch, crypto);
    let inner = derive(set.customer.expose(), &info(1), 112);
    let outer = derive(set.infrastructure.expose(), &info(2), 32);
    // An expanded AES key begins with the key, and the one for decryption ends with its first half.
    for (name, bytes, belongs) in [
        ("data key", &inner[..32], Belongs::Heap(2 * kept)),
        ("tweak key", &inner[32..64], Belongs::Heap(2 * kept)),
        ("tag key", &inner[64..96], Belongs::Heap(2 * kept)),
        ("hash key", &inner[96..], Belongs::Heap(kept)),
        ("outer key", &outer[..], Belongs::Heap(kept)),
    ] {
        secrets.push(Secret {
            name: format!("{name} of {of}"),
            bytes: bytes.to_vec(),
            belongs,
        });
    }
}

/// A key that takes both DEKs of the set, and its two halves.
fn joint_key(secrets: &mut Vec<Secret>, set: &KeySet, purpose: &str, belongs: Belongs) {
    let none = CryptoId([0; 16]);
    let half = |layer| info(purpose, layer, set.id, set.epoch, none);
    let customer = derive(set.customer.expose(), &half(1), 32);
    let machine = derive(set.infrastructure.expose(), &half(2), 32);
    let both = [&customer[..], &machine].concat();
    let joint = info(purpose, 3, KeySetId([0; 16]), Epoch(0), none);
    let key = derive(&both, &joint, 32);
    secrets.extend(hmac_blocks(purpose, &key));
    secrets.extend(hmac_blocks(purpose, &extracted(&both)));
    for (part, bytes, belongs) in [
        ("both halves", both.clone(), Belongs::Nowhere),
        ("extracted", extracted(&both), Belongs::Nowhere),
        ("the key", key, belongs),
    ] {
        secrets.push(Secret {
            name: format!("{purpose}: {part}"),
            bytes,
            belongs,
        });
    }
}

fn nowhere(name: impl Into<String>, bytes: Vec<u8>) -> Secret {
    Secret {
        name: name.into(),
        bytes,
        belongs: Belongs::Nowhere,
    }
}

fn hmac_blocks(name: &str, key: &[u8]) -> [Secret; 2] {
    [("inner", 0x36), ("outer", 0x5c)].map(|(which, pad)| {
        let bytes = key.iter().map(|byte| byte ^ pad).collect();
        nowhere(format!("{name} as HMAC's {which} block"), bytes)
    })
}

/// Factors and exponent of the customer's key, either way round, and its file.
fn customer_secrets(secrets: &mut Vec<Secret>, pem: &str) {
    let encrypted = rsa::RsaPrivateKey::from_pkcs8_encrypted_pem(pem, PASSPHRASE.as_bytes());
    let key = encrypted.or_else(|_| rsa::RsaPrivateKey::from_pkcs8_pem(pem));
    let key = key.unwrap();
    let [p, q] = key.primes() else {
        panic!("two primes");
    };
    let numbers = [
        ("p", p.clone()),
        ("q", q.clone()),
        ("d", key.d().clone()),
        ("d mod p-1", key.dp().unwrap().clone()),
        ("d mod q-1", key.dq().unwrap().clone()),
    ];
    for (name, number) in numbers {
        // Without the lowest limb: p-1 is as useful as p.
        let little = number.to_bytes_le()[8..].to_vec();
        let big: Vec<u8> = little.iter().rev().copied().collect();
        secrets.push(nowhere(format!("{name} of the customer's key"), little));
        secrets.push(nowhere(format!("{name} of the customer's key (DER)"), big));
    }
    if pem.contains("ENCRYPTED") {
        secrets.push(nowhere("the passphrase", PASSPHRASE.into()));
        secrets.extend(hmac_blocks("the passphrase", PASSPHRASE.as_bytes()));
    } else {
        let lines: Vec<&str> = pem.lines().collect();
        let text = lines[1..lines.len() - 2].iter().map(|line| line.as_bytes());
        secrets.extend(text.map(|line| nowhere("a line of the key's file", line.to_vec())));
    }
}

fn platform_secrets(secrets: &mut Vec<Secret>, keystore: &Path) {
    let text = fs::read(keystore.join("versions/00000001.json")).unwrap();
    let version: Value = serde_json::from_slice(&text).unwrap();
    for role in ["infrastructure", "customer"] {
        let digits = version[role].as_str().unwrap();
        secrets.push(Secret {
            name: format!("platform key ({role})"),
            bytes: hex::decode(digits).unwrap(),
            belongs: Belongs::Locked(1),
        });
        let name = format!("platform key ({role}), as text");
        secrets.push(nowhere(name, digits.into()));
    }
}

fn secrets_of(place: &Place, set: &KeySet, meta: CryptoId, objects: &[CryptoId]) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for (name, dek) in [
        ("customer DEK", &set.customer.expose()[..]),
        ("infrastructure DEK", set.infrastructure.expose()),
    ] {
        secrets.push(Secret {
            name: name.to_owned(),
            bytes: dek.to_vec(),
            belongs: Belongs::Locked(1),
        });
        let root = extracted(dek);
        secrets.extend(hmac_blocks(&format!("{name}, extracted"), &root));
        secrets.push(nowhere(format!("{name}, extracted"), root));
    }
    page_keys(&mut secrets, set, "meta", meta, META_KEYS);
    for (number, crypto) in objects.iter().enumerate() {
        page_keys(
            &mut secrets,
            set,
            &format!("object {number}"),
            *crypto,
            OBJECT_KEYS,
        );
    }
    joint_key(&mut secrets, set, "bilayer header", Belongs::Nowhere);
    // Part of the volume's record; it opens nothing.
    let remembered = Belongs::Heap(RECORDS);
    joint_key(&mut secrets, set, "bilayer succeed", remembered);
    platform_secrets(&mut secrets, &place.path("keystore"));
    secrets.push(nowhere(
        "the transport passphrase",
        TRANSPORT_PASSPHRASE.into(),
    ));
    if let Ok(pem) = fs::read_to_string(place.path("key.pem")) {
        customer_secrets(&mut secrets, &pem);
    }
    secrets
}

/// Sealed files that keep the keys of `meta`.
const META_KEYS: usize = 1;
/// Copies of the keystore's record of a volume; the third one while it is being written.
const RECORDS: usize = 3;
/// Sealed files that keep the keys of an object.
const OBJECT_KEYS: usize = 1;

// ---- the daemon's memory ------------------------------------------------------------------------

/// Ranges of the stacks of all threads, by their stack pointers.
fn stack_pointers(pid: i32) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let pointers = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("syscall")).ok()?;
        let pointer = text.split_whitespace().rev().nth(1)?.to_owned();
        u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()
    });
    let pointers: Vec<u64> = pointers.collect();
    assert!(pointers.len() >= 3, "stacks of a daemon with threads");
    pointers
}

/// Everything that can be read and written.
fn mappings(pid: i32) -> Vec<Mapping> {
    let stacks = stack_pointers(pid);
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut writable = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            writable = words.next().is_some_and(|rights| rights.starts_with("rw"));
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            let is_stack = line.ends_with("[stack]")
                || stacks.iter().any(|pointer| (start..end).contains(pointer));
            let kind = if is_stack {
                Kind::Stack
            } else {
                Kind::Ordinary
            };
            if writable {
                mappings.push(Mapping { start, end, kind });
            }
        } else if first == "VmFlags:" && writable && words.any(|flag| flag == "lo") {
            mappings.last_mut().unwrap().kind = Kind::Locked;
        }
    }
    mappings
}

/// Where each piece of each secret was found: (secret, piece, kind) and the addresses.
type Sightings = BTreeMap<(usize, usize, Kind), Vec<u64>>;

fn search(pid: i32, secrets: &[Secret]) -> Sightings {
    let mut by_start: BTreeMap<[u8; PIECE_BYTES], Vec<(usize, usize)>> = BTreeMap::new();
    let mut may_start = vec![false; 1 << 16];
    let first_two = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    for (number, secret) in secrets.iter().enumerate() {
        for (piece, bytes) in secret.bytes.chunks_exact(PIECE_BYTES).enumerate() {
            may_start[first_two(bytes)] = true;
            let key = bytes.try_into().unwrap();
            by_start.entry(key).or_default().push((number, piece));
        }
    }
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut sightings = Sightings::new();
    let mut searched = 0;
    for mapping in mappings(pid) {
        let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
        if memory.read_exact_at(&mut bytes, mapping.start).is_err() {
            continue;
        }
        searched += bytes.len();
        for at in 0..bytes.len() - PIECE_BYTES {
            if !may_start[first_two(&bytes[at..at + 2])] {
                continue;
            }
            let Some(matches) = by_start.get(&bytes[at..at + PIECE_BYTES]) else {
                continue;
            };
            for &(number, piece) in matches {
                let address = mapping.start + at as u64;
                let place = (number, piece, mapping.kind);
                sightings.entry(place).or_default().push(address);
            }
        }
    }
    assert!(searched > 1 << 20, "only {searched} bytes could be read");
    sightings
}

/// Compares the findings with the permitted locations.
fn complaints(secrets: &[Secret], sightings: &Sightings) -> String {
    let mut text = String::new();
    for (number, secret) in secrets.iter().enumerate() {
        for piece in 0..secret.bytes.len() / PIECE_BYTES {
            let seen = |kind| sightings.get(&(number, piece, kind)).map_or(0, Vec::len);
            let counts = [Kind::Stack, Kind::Locked, Kind::Ordinary].map(seen);
            let [stack, locked, ordinary] = counts;
            let fine = match secret.belongs {
                Belongs::Nowhere => counts == [0; 3],
                Belongs::Locked(times) => counts == [0, times, 0],
                Belongs::Heap(times) => stack == 0 && locked == 0 && ordinary <= times,
            };
            if !fine {
                let _ = writeln!(
                    text,
                    "{}, piece {piece}: {stack} on stacks, {locked} locked, {ordinary} elsewhere; \
                     wanted {:?}",
                    secret.name, secret.belongs
                );
            }
        }
    }
    text
}

// ---- the tests ----------------------------------------------------------------------------------

fn write_passphrase(place: &Place, name: &str, passphrase: &str) {
    let mut file = fs::OpenOptions::new();
    let file = file.create_new(true).write(true).mode(0o600);
    let mut file = file.open(place.path(name)).unwrap();
    std::io::Write::write_all(&mut file, format!("{passphrase}\n").as_bytes()).unwrap();
}

/// Reads, writes, makes durable, takes and deletes snapshots, exports an image.
fn use_it(place: &Place, mounted: &Mounted<'_>) {
    let bytes = noise(5, 300_000);
    for name in ["one", "two", "three"] {
        write_synced(&mounted.path(name), &bytes).unwrap();
    }
    run(place
        .bilayer(["snapshot", "create"])
        .arg(mounted.dir())
        .arg("s"))
    .done();
    fs::write(mounted.path("one"), &bytes[..100_000]).unwrap();
    fs::remove_file(mounted.path("two")).unwrap();
    run(crate::real::command("sync", ["-f"]).arg(mounted.dir())).done();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert_eq!(fs::read(mounted.path("three")).unwrap(), bytes);
    let old = mounted.path(".snapshots/s/two");
    assert_eq!(fs::read(old).unwrap(), bytes);
    place.run("image create mnt i").done();
    place
        .run("image export mnt i stream --transport-passphrase-file transport")
        .done();
    place.run("snapshot delete mnt s").done();
    place.run("status mnt").done();
}

/// The names of objects are their crypto ids.
fn objects(volume: &Path) -> Vec<CryptoId> {
    let folders = fs::read_dir(volume.join("objects")).unwrap();
    let names = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let ids: Vec<CryptoId> = names
        .filter_map(|name| {
            let digits = hex::decode(name.ok()?.file_name().to_str()?).ok()?;
            Some(CryptoId(digits.try_into().ok()?))
        })
        .collect();
    assert!(ids.len() >= 3, "contents are in objects");
    ids
}

fn open(place: &Place) -> Volume {
    let key = place.path("key.pem");
    let options = OpenOptions {
        customer_key: key.exists().then(|| KeyUri::from_file(&key).unwrap()),
        keystore: place.path("keystore"),
        passphrase: PassphraseSource::File(place.path("passphrase")),
        read_only: true,
        ..OpenOptions::default()
    };
    let store = DirectoryStore::open(&place.path("vol")).unwrap();
    volume::open(Arc::new(store), &options).unwrap()
}

/// Searches the memory of a daemon that `mount` has started.
fn search_daemon(place: &Place, mounted: &Mounted<'_>, set: &KeySet, meta: CryptoId) {
    use_it(place, mounted);
    let secrets = secrets_of(place, set, meta, &objects(&place.path("vol")));
    let sightings = search(mounted.pid, &secrets);
    assert!(
        !sightings.is_empty(),
        "the search finds not even what is there"
    );
    assert_eq!(complaints(&secrets, &sightings), "");
}

fn customer_managed(test: &'static str, keygen: &str) {
    let Some(place) = Place::new(test, Duration::from_secs(200)) else {
        return;
    };
    write_passphrase(&place, "passphrase", PASSPHRASE);
    write_passphrase(&place, "transport", TRANSPORT_PASSPHRASE);
    place.run(&format!("keygen key.pem {keygen}")).done();
    place
        .run("create vol --customer-key file:key.pem --passphrase-file passphrase")
        .done();
    let volume = open(&place);
    let set = Arc::clone(volume.keys.active());
    let meta = volume.header().meta_crypto();
    drop(volume);
    let mounted = place.mount("vol", "mnt", "passphrase_file=passphrase");
    search_daemon(&place, &mounted, &set, meta);
    mounted.unmount();
}

#[test]
fn keys_under_an_encrypted_customer_key() {
    let keygen = "--bits 2048 --passphrase-file passphrase";
    customer_managed("attack-memory-encrypted", keygen);
}

#[test]
fn keys_under_a_plain_customer_key() {
    customer_managed("attack-memory-plain", "--bits 3072");
}

/// The daemon creates the platform keys and the volume itself.
#[test]
fn keys_of_a_daemon_that_created_them() {
    let Some(place) = Place::new("attack-memory-platform", Duration::from_secs(200)) else {
        return;
    };
    write_passphrase(&place, "transport", TRANSPORT_PASSPHRASE);
    place.run("mount --create vol mnt").done();
    let mounted = place.mounted(&place.path("mnt"));
    use_it(&place, &mounted);
    let secrets = {
        // The library opens the same files as the daemon, which has the lock.
        let copy = place.path("copy");
        run(crate::real::command("cp", ["-a"])
            .arg(place.path("vol"))
            .arg(&copy))
        .done();
        let options = OpenOptions {
            keystore: place.path("keystore"),
            read_only: true,
            accept_restored: true,
            ..OpenOptions::default()
        };
        let store = DirectoryStore::open(&copy).unwrap();
        let volume = volume::open(Arc::new(store), &options).unwrap();
        let meta = volume.header().meta_crypto();
        secrets_of(
            &place,
            volume.keys.active(),
            meta,
            &objects(&place.path("vol")),
        )
    };
    let sightings = search(mounted.pid, &secrets);
    assert_eq!(complaints(&secrets, &sightings), "");
    mounted.unmount();
}

/// When a sealed file is closed, its keys are gone, those of AWS-LC too.
#[test]
fn keys_of_files_that_were_closed_are_gone() {
    const KEPT: usize = 8;
    let Some(place) = Place::new("attack-memory-closed", Duration::from_secs(200)) else {
        return;
    };
    place.run("create vol").done();
    let volume = open(&place);
    let set = Arc::clone(volume.keys.active());
    drop(volume);
    let mounted = place.mount("vol", "mnt", &format!("open_objects={KEPT}"));
    for number in 0..40 {
        let path = mounted.path(&format!("file {number}"));
        write_synced(&path, &noise(number, 10_000)).unwrap();
    }
    let objects = objects(&place.path("vol"));
    assert!(objects.len() >= 40);
    let mut secrets = Vec::new();
    for crypto in &objects {
        page_keys(&mut secrets, &set, "an object", *crypto, 1);
    }
    let keys_each = secrets.len() / objects.len();
    let sightings = search(mounted.pid, &secrets);
    assert_eq!(complaints(&secrets, &sightings), "");
    for key in 0..keys_each {
        let there = (0..objects.len()).filter(|object| {
            let number = object * keys_each + key;
            sightings.keys().any(|&(secret, ..)| secret == number)
        });
        let there = there.count();
        assert!((1..=KEPT).contains(&there), "key {key} of {there} objects");
    }
    mounted.unmount();
}
