//! Key sets of a deployed volume. Under the source's customer key and keystore it has the source's
//! sets in both layers for inherited data, and its own fresh set for new data. Under any other key
//! or keystore it has only its own set. It is never protected less than the source.

use std::path::Path;

use super::*;
use bilayer::ids::Epoch;
use bilayer::keys::PassphraseSource;
use bilayer::keys::customer::file::generate;
use bilayer::layers::{CustomerDek, InfrastructureDek, KeySet};
use bilayer::meta::keys::Table;
use bilayer::meta::records::{ExtentRecord, Part};
use bilayer::sealed::{ContentsFile, PAGE_BYTES};
use bilayer::volume::KeyMode;
use bilayer::volume::header::KeySetState;

/// Bytes of a page of `meta` on the disk.
const META_STRIDE: usize = 4608;

/// Creates an RSA key below the keystore's directory.
pub(super) fn new_key(disk: &Disk, name: &str) -> KeyUri {
    let path = disk.keystore.path().join(name);
    generate(&path, 2048, None).unwrap();
    KeyUri::from_file(&path).unwrap()
}

/// A copy of a set, or a mixture of two.
fn mixed(customer: &KeySet, infrastructure: &KeySet) -> Arc<KeySet> {
    Arc::new(KeySet {
        id: customer.id,
        epoch: customer.epoch,
        customer: CustomerDek::from_bytes(customer.customer.expose()).unwrap(),
        infrastructure: InfrastructureDek::from_bytes(infrastructure.infrastructure.expose())
            .unwrap(),
    })
}

/// All parts that the live view of a closed volume names.
pub(super) fn parts(volume: &Volume) -> Vec<Part> {
    parts_of(volume, View::LIVE)
}

/// All parts that a view of a closed volume names.
pub(super) fn parts_of(volume: &Volume, view: View) -> Vec<Part> {
    let meta = open_meta(volume).unwrap();
    let rows = meta
        .scan(Table::Extent, &[], &[0xFF; 9], view, usize::MAX)
        .unwrap();
    meta.close().unwrap();
    let extents = rows.iter().map(|(_, value)| ExtentRecord::decode(value));
    extents
        .flat_map(|extent| match extent.unwrap() {
            ExtentRecord::Parts { parts, .. } => parts,
            ExtentRecord::Inline(_) => Vec::new(),
        })
        .filter(|part| !part.pages.is_empty())
        .collect()
}

/// The epoch in the header of a sealed page.
pub(super) fn epoch_of(page: &[u8]) -> u32 {
    u32::from_le_bytes(page[44..48].try_into().unwrap())
}

fn bytes_of(volume: &Volume, path: &str) -> Vec<u8> {
    let file = volume.store.open(&StorePath::new(path), OpenMode::Read);
    let file = file.unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The number of a part's pages that open under a set.
fn opening(volume: &Volume, part: &Part, set: &Arc<KeySet>) -> u32 {
    let path = format!(
        "objects/{:08x}/{}",
        part.id.name.folder.0, part.id.name.object
    );
    let file = volume.store.open(&StorePath::new(&path), OpenMode::Read);
    let file = ContentsFile::new(file.unwrap(), set, part.id.crypto);
    let pages = (0..part.pages.end()).filter(|page| part.pages.contains(*page));
    let opens = |page: &u32| {
        let (offset, mut out) = (u64::from(*page) * PAGE as u64, vec![0; PAGE]);
        let guard = file.lock_shared(ContentsFile::pages(offset, PAGE).unwrap());
        file.read_at(&guard, offset, &mut out).is_ok()
    };
    pages.filter(opens).count() as u32
}

/// Every page of `part` is sealed under `set` in both layers, and states its epoch.
pub(super) fn check_part(volume: &Volume, part: &Part, set: &Arc<KeySet>, others: &[Arc<KeySet>]) {
    assert_eq!(part.id.epoch, set.epoch);
    let path = format!(
        "objects/{:08x}/{}",
        part.id.name.folder.0, part.id.name.object
    );
    let bytes = bytes_of(volume, &path);
    for page in (0..part.pages.end()).filter(|page| part.pages.contains(*page)) {
        let at = page as usize * PAGE_BYTES;
        assert_eq!(epoch_of(&bytes[at..at + PAGE_BYTES]), set.epoch.0);
    }
    assert_eq!(opening(volume, part, set), part.pages.len());
    for other in others.iter().filter(|other| other.id != set.id) {
        assert_eq!(opening(volume, part, other), 0, "another set");
        // The key of one layer alone opens nothing.
        assert_eq!(opening(volume, part, &mixed(set, other)), 0, "outer layer");
        let half = Arc::new(KeySet {
            id: set.id,
            epoch: set.epoch,
            customer: CustomerDek::from_bytes(other.customer.expose()).unwrap(),
            infrastructure: InfrastructureDek::from_bytes(set.infrastructure.expose()).unwrap(),
        });
        assert_eq!(opening(volume, part, &half), 0, "inner layer");
    }
}

/// Every page of the metadata is sealed under the active set.
pub(super) fn check_meta(volume: &Volume) {
    let bytes = bytes_of(volume, volume::META_NAME);
    let written = bytes
        .chunks(META_STRIDE)
        .filter(|page| page.iter().any(|b| *b != 0));
    let mut count = 0;
    for page in written {
        assert_eq!(epoch_of(page), volume.keys.active().epoch.0);
        count += 1;
    }
    assert!(count > 2);
}

/// A requested deployment, and its outcome.
struct Case {
    source: Option<&'static str>,
    named: Option<&'static str>,
    /// The new volume is for another keystore.
    elsewhere: bool,
    mode: KeyMode,
    /// The holders stay the same.
    inherits: bool,
}

fn check_case(case: &Case) {
    let disk = Disk::new();
    let key = |name: Option<&str>| name.map(|name| new_key_once(&disk, name));
    let (own, named) = (key(case.source), key(case.named));
    disk.create("source", own.as_ref());
    disk.with("source", |fs| {
        fill(fs, 1);
        make_image(fs, "copy");
    });
    let before = disk.tree("source");
    let there = Disk {
        store: disk.store.clone(),
        keystore: match case.elsewhere {
            true => support::keystore(),
            false => Arc::clone(&disk.keystore),
        },
    };
    let options = DeployOptions {
        customer_key: named.clone(),
        passphrase: PassphraseSource::None,
        ..there.options()
    };
    let made = disk.deploy_with("source", "copy", &options).unwrap();
    assert_eq!(made.resealed == 0, case.inherits);
    assert_eq!(there.tree("copy"), before);
    there.with("copy", |fs| {
        put(fs, ROOT, "second", &[(PAGE + 5, &pattern(7, 0, 2 * PAGE))]);
        put(fs, ROOT, "new", &[(0, &pattern(7, 0, 4 * PAGE))]);
    });
    let source = disk.volume("source", None).unwrap();
    let copy = there.volume("copy", None).unwrap();
    assert_eq!(copy.header().key_mode(), case.mode);
    match case.inherits {
        true => check_inherited(&source, &copy),
        false => check_resealed(&source, &copy),
    }
    check_meta(&copy);
    check_meta(&source);
    for set in copy.header().key_sets() {
        let active = set.id == copy.keys.active().id;
        assert_eq!(set.state == KeySetState::Active, active);
        let platform = case.mode == KeyMode::PlatformManaged;
        assert!(
            set.customer
                .iter()
                .all(|wrap| wrap.is_platform() == platform)
        );
        assert!(set.infrastructure.iter().all(|wrap| wrap.is_platform()));
    }
    drop((source, copy));
    there.audit("copy");
    // Dropping the key closes it, and only it.
    if let Some(uri) = named.or(own) {
        drop_key(disk.keystore.path(), &uri);
        assert!(there.volume("copy", None).is_err());
        let expected = case.named.is_some() && case.named != case.source;
        assert_eq!(disk.volume("source", None).is_ok(), expected);
    }
}

/// Inherited data is the source's, under the source's set; new data is under the copy's.
fn check_inherited(source: &Volume, copy: &Volume) {
    let (old, fresh) = (source.keys.active(), copy.keys.active());
    assert_eq!((old.epoch, fresh.epoch), (Epoch(1), Epoch(2)));
    let sets: Vec<Arc<KeySet>> = copy.keys.iter().map(Arc::clone).collect();
    assert_eq!(sets.len(), 2);
    // The set of the inherited bytes is the source's, taken from the source itself.
    let inherited = parts(source);
    let now = parts(copy);
    for part in &inherited {
        check_part(source, part, old, &sets);
    }
    let (kept, new): (Vec<&Part>, Vec<&Part>) =
        now.iter().partition(|part| part.id.epoch == Epoch(1));
    assert!(kept.len() >= 5 && new.len() >= 2);
    for part in kept {
        assert!(inherited.iter().any(|of| of.id == part.id), "the source's");
        check_part(copy, part, old, &sets);
    }
    for part in new {
        check_part(copy, part, fresh, &sets);
    }
}

/// No data of the copy is under a set of the source, and no set of the source is in the copy.
pub(super) fn check_resealed(source: &Volume, copy: &Volume) {
    let own = copy.keys.active();
    for old in source.keys.iter() {
        for set in copy.keys.iter() {
            assert_ne!(old.id, set.id);
            assert_ne!(old.customer.expose(), set.customer.expose());
            assert_ne!(old.infrastructure.expose(), set.infrastructure.expose());
        }
    }
    assert_eq!(copy.keys.iter().count(), 1);
    let sets: Vec<Arc<KeySet>> = source.keys.iter().chain([own]).map(Arc::clone).collect();
    let before = parts(source);
    let now = parts(copy);
    assert!(now.len() >= 5);
    for part in &now {
        assert!(before.iter().all(|of| of.id.name != part.id.name));
        assert!(before.iter().all(|of| of.id.crypto != part.id.crypto));
        check_part(copy, part, own, &sets);
    }
}

/// Creates the key if it does not exist yet.
fn new_key_once(disk: &Disk, name: &str) -> KeyUri {
    let path = disk.keystore.path().join(name);
    match path.exists() {
        true => KeyUri::from_file(&path).unwrap(),
        false => new_key(disk, name),
    }
}

fn drop_key(directory: &Path, uri: &KeyUri) {
    let name = uri.to_string();
    let name = name.rsplit('/').next().unwrap();
    std::fs::remove_file(directory.join(name)).unwrap();
}

#[test]
fn platform_managed_gives_platform_managed() {
    check_case(&Case {
        source: None,
        named: None,
        elsewhere: false,
        inherits: true,
        mode: KeyMode::PlatformManaged,
    });
}

#[test]
fn platform_managed_gives_customer_managed_when_a_key_is_named() {
    check_case(&Case {
        source: None,
        named: Some("a.pem"),
        elsewhere: false,
        inherits: false,
        mode: KeyMode::PlatformAndCustomer,
    });
}

#[test]
fn customer_managed_gives_its_own_key_on() {
    check_case(&Case {
        source: Some("a.pem"),
        named: None,
        elsewhere: false,
        inherits: true,
        mode: KeyMode::PlatformAndCustomer,
    });
}

#[test]
fn customer_managed_gives_another_key() {
    check_case(&Case {
        source: Some("a.pem"),
        named: Some("b.pem"),
        elsewhere: false,
        inherits: false,
        mode: KeyMode::PlatformAndCustomer,
    });
}

#[test]
fn the_key_itself_may_be_named() {
    check_case(&Case {
        source: Some("a.pem"),
        named: Some("a.pem"),
        elsewhere: false,
        inherits: true,
        mode: KeyMode::PlatformAndCustomer,
    });
}

#[test]
fn another_keystore_is_another_holder() {
    for (source, mode) in [
        (None, KeyMode::PlatformManaged),
        (Some("a.pem"), KeyMode::PlatformAndCustomer),
    ] {
        for named in [None, source, Some("b.pem")] {
            check_case(&Case {
                source,
                named,
                elsewhere: true,
                inherits: false,
                mode: match named {
                    Some(_) => KeyMode::PlatformAndCustomer,
                    None => mode,
                },
            });
        }
    }
}

/// A copy of the keystore is the same holder. A keystore that only has the same id is not: anybody
/// who may request a deployment could create it.
#[test]
fn a_keystore_is_known_by_its_keys() {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| {
        fill(fs, 1);
        make_image(fs, "copied");
        make_image(fs, "namesake");
    });
    let with = |keystore: &tempfile::TempDir| DeployOptions {
        keystore: keystore.path().join("platform"),
        ..DeployOptions::default()
    };
    let copied = fork(&disk.keystore);
    let made = disk
        .deploy_with("source", "copied", &with(&copied))
        .unwrap();
    assert_eq!((made.resealed, made.linked), (0, made.objects));

    let namesake = support::keystore();
    let own = disk.keystore.path().join("platform/keystore.json");
    let theirs = namesake.path().join("platform");
    std::fs::create_dir_all(&theirs).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::copy(own, theirs.join("keystore.json")).unwrap();
    let made = disk.deploy_with("source", "namesake", &with(&namesake));
    assert_eq!(made.unwrap().resealed, made_objects(&disk));
    let there = Disk {
        store: disk.store.clone(),
        keystore: namesake,
    };
    let source = disk.volume("source", None).unwrap();
    check_resealed(&source, &there.volume("namesake", None).unwrap());
}

/// Chunks with contents in the source.
fn made_objects(disk: &Disk) -> u64 {
    parts(&disk.volume("source", None).unwrap()).len() as u64
}
