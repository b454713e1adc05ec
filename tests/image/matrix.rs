//! Inheritance, case by case: both key modes, and for each a snapshot, an image, an image of a
//! snapshot, a deployed volume, a snapshot of that, a deployment of its image, a deployment to
//! another customer key, an import. Every part of every view is checked: inherited parts are sealed
//! under the source's keys in both layers, later ones under the volume's own fresh set, and parts
//! for another holder under a set that the source never had. No volume is protected less than its
//! source, and without the customer key nothing of it opens.

use super::export::{IMAGE, export_image, import_options};
use super::inheritance::{check_meta, check_part, new_key, parts_of};
use super::*;
use bilayer::ids::Epoch;
use bilayer::image::{ImportOptions, Transport, import};
use bilayer::layers::KeySet;
use bilayer::volume::KeyMode;

/// The epochs under which the parts of a view are expected to be sealed.
struct Expected<'a> {
    volume: &'a str,
    /// Kind and name; `None` for the live view.
    view: Option<(ViewKind, &'a str)>,
    epochs: &'a [u32],
}

const SNAPSHOT: ViewKind = ViewKind::Snapshot;
const IMAGES: ViewKind = ViewKind::Image;

/// The data that every volume writes after its creation.
fn write_more(fs: &Filesystem, seed: u8) {
    put(
        fs,
        ROOT,
        "second",
        &[(PAGE + 5, &pattern(seed, 0, 2 * PAGE))],
    );
    let name = format!("new-{seed}");
    put(fs, ROOT, &name, &[(0, &pattern(seed, 0, 4 * PAGE))]);
}

fn take(fs: &Filesystem, kind: ViewKind, name: &str, from: Option<&str>) {
    fs.create_view(kind, name, from, "").unwrap();
}

/// Creates all volumes; the sets of a volume are identified by their epochs.
fn make_all(disk: &Disk, key: Option<&KeyUri>, other: &KeyUri) {
    disk.create("source", key);
    disk.with("source", |fs| {
        fill(fs, 1);
        take(fs, SNAPSHOT, "before", None);
        write_more(fs, 2);
        take(fs, IMAGES, "deployed", None);
        take(fs, IMAGES, "older", Some("before"));
        take(fs, IMAGES, "handed", None);
        take(fs, IMAGES, IMAGE, None);
    });
    let options = disk.options();
    disk.deploy_with("source", "deployed", &options).unwrap();
    disk.deploy_with("source", "older", &options).unwrap();
    let to_other = DeployOptions {
        customer_key: Some(other.clone()),
        ..disk.options()
    };
    disk.deploy_with("source", "handed", &to_other).unwrap();
    for (seed, name) in [(3, "deployed"), (4, "older"), (7, "handed")] {
        disk.with(name, |fs| write_more(fs, seed));
    }
    disk.with("handed", |fs| take(fs, SNAPSHOT, "after", None));
    disk.with("deployed", |fs| {
        take(fs, SNAPSHOT, "after", None);
        take(fs, IMAGES, "again", Some("after"));
    });
    disk.deploy_with("deployed", "again", &options).unwrap();
    disk.with("again", |fs| write_more(fs, 5));
    let (stream, _) = export_image(disk, "source", Transport::Keystore).unwrap();
    let target = disk.at("imported");
    let options = ImportOptions {
        customer_key: key.cloned(),
        ..import_options(disk)
    };
    import(&mut &*stream, target, &options, &NoProgress).unwrap();
    disk.with("imported", |fs| {
        write_more(fs, 6);
        take(fs, SNAPSHOT, "after", None);
    });
}

fn check_view(disk: &Disk, expected: &Expected<'_>) {
    let volume = disk.volume(expected.volume, None).unwrap();
    let view = match expected.view {
        None => View::LIVE,
        Some((kind, name)) => {
            let meta = open_meta(&volume).unwrap();
            let (_, record) = meta.find_view(kind, name).unwrap();
            meta.close().unwrap();
            View(record.generation)
        }
    };
    let sets: Vec<Arc<KeySet>> = volume.keys.iter().map(Arc::clone).collect();
    let mut epochs: Vec<u32> = Vec::new();
    for part in parts_of(&volume, view) {
        let set = volume.keys.get(part.id.epoch).unwrap();
        check_part(&volume, &part, set, &sets);
        epochs.push(part.id.epoch.0);
    }
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs, expected.epochs, "{}", expected.volume);
    check_meta(&volume);
}

/// The ids of a volume's sets, the inherited ones first.
fn set_ids(disk: &Disk, name: &str) -> Vec<String> {
    let volume = disk.volume(name, None).unwrap();
    let mut sets: Vec<_> = volume.keys.iter().map(|set| (set.epoch, set.id)).collect();
    sets.sort();
    sets.into_iter().map(|(_, id)| id.to_string()).collect()
}

fn check_matrix(mode: KeyMode) {
    let disk = Disk::new();
    let key = (mode == KeyMode::PlatformAndCustomer).then(|| new_key(&disk, "a.pem"));
    let other = new_key(&disk, "b.pem");
    make_all(&disk, key.as_ref(), &other);
    let expected = |volume, view, epochs| Expected {
        volume,
        view,
        epochs,
    };
    // Epoch 1 is the source's; each volume made from another continues after the epochs that it
    // inherits. If nothing was inherited, epoch 1 is a set of the volume's own, or that of the
    // export.
    for case in [
        expected("source", None, &[1][..]),
        expected("source", Some((SNAPSHOT, "before")), &[1]),
        expected("source", Some((IMAGES, "deployed")), &[1]),
        expected("source", Some((IMAGES, "older")), &[1]),
        expected("deployed", None, &[1, 2]),
        expected("deployed", Some((SNAPSHOT, "after")), &[1, 2]),
        expected("deployed", Some((IMAGES, "again")), &[1, 2]),
        expected("older", None, &[1, 2]),
        expected("again", None, &[1, 2, 3]),
        expected("handed", None, &[1]),
        expected("handed", Some((SNAPSHOT, "after")), &[1]),
    ] {
        check_view(&disk, &case);
    }
    let imported = disk.volume("imported", None).unwrap();
    let own = imported.keys.active().epoch;
    drop(imported);
    assert!(own > Epoch(1));
    let epochs = [1, own.0];
    for view in [None, Some((SNAPSHOT, "after"))] {
        check_view(&disk, &expected("imported", view, &epochs));
    }
    let source = set_ids(&disk, "source");
    let deployed = set_ids(&disk, "deployed");
    assert_eq!(source[..], deployed[..1]);
    assert_eq!(deployed[..], set_ids(&disk, "again")[..2]);
    for stranger in ["handed", "imported"] {
        for set in set_ids(&disk, stranger) {
            assert!(
                !deployed.contains(&set),
                "{stranger} has a set of the source"
            );
        }
    }
    let handed = disk.volume("handed", None).unwrap();
    assert_eq!(handed.header().key_mode(), KeyMode::PlatformAndCustomer);
    drop(handed);
    let all = ["source", "deployed", "older", "again", "imported"];
    for name in all {
        let volume = disk.volume(name, None).unwrap();
        assert_eq!(volume.header().key_mode(), mode, "{name}");
        for set in volume.header().key_sets() {
            let platform = mode == KeyMode::PlatformManaged;
            assert!(
                set.customer
                    .iter()
                    .all(|wrap| wrap.is_platform() == platform)
            );
            assert!(set.infrastructure.iter().all(|wrap| wrap.is_platform()));
        }
    }
    std::fs::remove_file(disk.keystore.path().join("b.pem")).unwrap();
    assert!(disk.volume("handed", None).is_err());
    if key.is_some() {
        std::fs::remove_file(disk.keystore.path().join("a.pem")).unwrap();
        for name in all {
            assert!(
                disk.volume(name, None).is_err(),
                "{name} opens without the key"
            );
        }
    }
}

#[test]
fn platform_managed() {
    check_matrix(KeyMode::PlatformManaged);
}

#[test]
fn customer_managed() {
    check_matrix(KeyMode::PlatformAndCustomer);
}
