//! Exports and imports: which contents arrive, under which keys, and that nothing else arrives.

use std::path::Path;

use super::export_changed::Borders;
use super::inheritance::{check_meta, check_part, epoch_of, new_key, parts};
use super::*;
use bilayer::ids::Epoch;
use bilayer::image::stream::StreamError;
use bilayer::image::{ExportOptions, Exported, ImportOptions, Imported, Transport, export, import};
use bilayer::keys::{ErrorKind, PassphraseSource};
use bilayer::layers::KeySet;
use bilayer::meta::records::Timespec;
use bilayer::volume::KeyMode;

pub(super) const IMAGE: &str = "golden";

const MADE: Timespec = Timespec {
    secs: 1_700_000_000,
    nanos: 5,
};

/// A passphrase in a file.
pub(super) fn passphrase(disk: &Disk, name: &str, text: &str) -> PassphraseSource {
    use std::os::unix::fs::OpenOptionsExt;
    let path = disk.keystore.path().join(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    PassphraseSource::File(path)
}

/// Creates an image of a closed volume, unless it has one, and exports it.
pub(super) fn export_from(
    disk: &Disk,
    name: &str,
    transport: Transport,
) -> Result<(Vec<u8>, Exported), ImageError> {
    disk.with(name, |fs| make_image(fs, IMAGE));
    export_image(disk, name, transport)
}

/// Exports the image of a closed volume.
pub(super) fn export_image(
    disk: &Disk,
    name: &str,
    transport: Transport,
) -> Result<(Vec<u8>, Exported), ImageError> {
    let options = ExportOptions {
        transport,
        ..ExportOptions::default()
    };
    export_with(disk, name, &options)
}

fn export_with(
    disk: &Disk,
    name: &str,
    options: &ExportOptions,
) -> Result<(Vec<u8>, Exported), ImageError> {
    let volume = disk.volume(name, None)?;
    let meta = open_meta(&volume)?;
    let (_, image) = meta.find_view(ViewKind::Image, IMAGE).expect("an image");
    let source = Source {
        volume: &volume,
        meta: &meta,
        view: View(image.generation),
        image: IMAGE,
    };
    let mut stream = Vec::new();
    let result = export(&source, MADE, options, &mut stream, &NoProgress);
    // Only the result of the export matters.
    let _ = meta.close();
    result.map(|exported| (stream, exported))
}

pub(super) fn import_options(disk: &Disk) -> ImportOptions {
    ImportOptions {
        keystore: disk.keystore.path().join("platform"),
        ..ImportOptions::default()
    }
}

pub(super) fn import_to(
    disk: &Disk,
    name: &str,
    stream: &[u8],
    options: &ImportOptions,
) -> Result<Imported, ImageError> {
    import(&mut &*stream, disk.at(name), options, &NoProgress)
}

/// An import that must fail and leave nothing.
#[track_caller]
pub(super) fn refused(disk: &Disk, stream: &[u8], options: &ImportOptions) -> ImageError {
    let error = import_to(disk, "refused", stream, options).expect_err("refused");
    let left = disk.at("refused").list(&StorePath::root()).unwrap();
    assert_eq!(left, [], "{error}");
    error
}

/// How an image is transported.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// The image is under a customer key.
    customer: bool,
    /// It is sealed under a passphrase, for a machine with another keystore.
    passphrase: bool,
    /// The new volume is under another customer key.
    another: bool,
}

fn check_case(case: Case) {
    let here = Disk::new();
    let key = case.customer.then(|| new_key(&here, "a.pem"));
    here.create("source", key.as_ref());
    here.with("source", |fs| fill(fs, 1));
    let (before, counted) = (here.tree("source"), here.audit("source"));
    let transport = match case.passphrase {
        false => Transport::Keystore,
        true => Transport::Passphrase(passphrase(&here, "words", "correct horse\n")),
    };
    let listed = here.at("source").list(&StorePath::root()).unwrap();
    let (stream, exported) = export_from(&here, "source", transport).unwrap();
    assert_eq!(
        here.at("source").list(&StorePath::root()).unwrap(),
        listed,
        "nothing is left behind"
    );
    assert_eq!(exported.bytes, stream.len() as u64);
    assert_eq!(here.tree("source"), before);

    let there = Disk::new();
    let there = if case.passphrase { &there } else { &here };
    let another = case.another.then(|| new_key(there, "b.pem"));
    let options = ImportOptions {
        customer_key: key.clone(),
        new_customer_key: another.clone(),
        export_passphrase: passphrase(there, "again", "correct horse\n"),
        ..import_options(there)
    };
    let made = import_to(there, "copy", &stream, &options).unwrap();
    assert_eq!(
        made.objects,
        counted.objects - 1,
        "one was for a reservation"
    );
    assert_eq!(
        (made.objects, made.inodes),
        (exported.objects, counted.inodes)
    );
    assert_eq!(there.tree("copy"), before);
    let counts = there.audit("copy");
    assert_eq!((counts.objects, counts.inodes), (made.objects, made.inodes));
    assert_eq!(counts.pages * 4096, made.bytes);
    check_keys(&here, there, &made);
    // It is a volume like any other.
    there.with("copy", |fs| {
        put(fs, ROOT, "second", &[(PAGE + 5, &pattern(7, 0, 2 * PAGE))]);
        put(fs, ROOT, "new", &[(0, &pattern(7, 0, 4 * PAGE))]);
    });
    there.deploy("copy", "third");
    assert_eq!(there.tree("third"), there.tree("copy"));
    assert_eq!(here.tree("source"), before);
    // Dropping the customer key closes it.
    if let Some(uri) = another.or(key) {
        let path = uri.to_string();
        std::fs::remove_file(Path::new(path.strip_prefix("file:").unwrap())).unwrap();
        assert!(there.volume("copy", None).is_err());
    }
}

/// All contents are under the export's set, which is none of the source's, and new contents under a
/// set of the volume's own.
fn check_keys(here: &Disk, there: &Disk, made: &Imported) {
    let source = here.volume("source", None).unwrap();
    let copy = there.volume("copy", None).unwrap();
    assert_eq!(copy.header().volume_id(), made.volume);
    assert_ne!(copy.header().volume_id(), source.header().volume_id());
    assert_ne!(copy.header().meta_crypto(), source.header().meta_crypto());
    let header = copy.header();
    let from = header.provenance().unwrap();
    assert_eq!(
        (from.volume, &*from.image),
        (source.header().volume_id(), IMAGE)
    );
    assert_eq!(made.provenance.created, MADE.secs);
    let less = source.header().key_mode() == KeyMode::PlatformAndCustomer
        && copy.header().key_mode() == KeyMode::PlatformManaged;
    assert!(!less, "never less than the source");
    let exported = copy.keys.get(Epoch(1)).unwrap();
    assert_eq!(copy.keys.iter().count(), 2);
    assert_eq!(copy.keys.active().epoch, Epoch(2));
    let mut sets: Vec<Arc<KeySet>> = copy.keys.iter().map(Arc::clone).collect();
    for old in source.keys.iter() {
        for set in copy.keys.iter() {
            assert_ne!(old.id, set.id);
            assert_ne!(old.customer.expose(), set.customer.expose());
            assert_ne!(old.infrastructure.expose(), set.infrastructure.expose());
        }
        sets.push(Arc::clone(old));
    }
    let before = parts(&source);
    let now = parts(&copy);
    assert_eq!(now.len() as u64, made.objects);
    for part in &now {
        assert!(before.iter().all(|of| of.id.name != part.id.name));
        assert!(before.iter().all(|of| of.id.crypto != part.id.crypto));
        check_part(&copy, part, exported, &sets);
    }
    check_meta(&copy);
}

#[test]
fn platform_managed_to_the_same_keystore() {
    check_case(Case {
        customer: false,
        passphrase: false,
        another: false,
    });
}

#[test]
fn platform_managed_under_a_passphrase() {
    check_case(Case {
        customer: false,
        passphrase: true,
        another: false,
    });
}

#[test]
fn customer_managed_to_the_same_keystore() {
    check_case(Case {
        customer: true,
        passphrase: false,
        another: false,
    });
}

#[test]
fn customer_managed_under_a_passphrase() {
    check_case(Case {
        customer: true,
        passphrase: true,
        another: false,
    });
}

#[test]
fn another_customer_key_on_arrival() {
    for customer in [false, true] {
        check_case(Case {
            customer,
            passphrase: true,
            another: true,
        });
    }
}

#[test]
fn an_export_of_an_import_and_of_a_deployed_volume() {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| fill(fs, 1));
    disk.deploy("source", "second");
    disk.with("second", |fs| {
        put(fs, ROOT, "second", &[(5, &pattern(3, 0, 2 * PAGE))]);
    });
    let (stream, _) = export_from(&disk, "second", Transport::Keystore).unwrap();
    import_to(&disk, "third", &stream, &import_options(&disk)).unwrap();
    disk.with("third", |fs| {
        put(fs, ROOT, "second", &[(9, &pattern(4, 0, 3 * PAGE))]);
    });
    let before = disk.tree("third");
    let (stream, _) = export_from(&disk, "third", Transport::Keystore).unwrap();
    import_to(&disk, "fourth", &stream, &import_options(&disk)).unwrap();
    assert_eq!(disk.tree("fourth"), before);
    let volume = disk.volume("fourth", None).unwrap();
    let mut epochs: Vec<u32> = volume.keys.iter().map(|set| set.epoch.0).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2], "that of the export, and its own");
}

/// Data that was written after the image was taken is not exported, although it is above the
/// exported parts.
#[test]
fn an_image_of_the_past() {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| {
        fill(fs, 1);
        make_image(fs, IMAGE);
        put(fs, ROOT, "second", &[(5, &pattern(3, 0, 2 * PAGE))]);
        put(fs, ROOT, "small", &[(0, &pattern(3, 0, 3000))]);
        put(fs, ROOT, "new", &[(0, &pattern(3, 0, PAGE))]);
        fs.unlink(ROOT, b"link").unwrap();
    });
    let (now, past) = (disk.tree("source"), disk.tree_of("source", IMAGE));
    assert_ne!(now, past);
    let (stream, _) = export_image(&disk, "source", Transport::Keystore).unwrap();
    import_to(&disk, "copy", &stream, &import_options(&disk)).unwrap();
    assert_eq!(disk.tree("copy"), past);
    disk.audit("copy");
    assert_eq!(disk.tree("source"), now);
    assert_eq!(disk.tree_of("source", IMAGE), past);
}

#[test]
fn sizes_are_inherited_or_given() {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| fill(fs, 1));
    let made = disk.deploy("source", "plain");
    let size = 4 * made.bytes;
    let limited = DeployOptions {
        size_bytes: Some(size),
        ..disk.options()
    };
    disk.with("source", |fs| make_image(fs, "limited"));
    disk.deploy_with("source", "limited", &limited).unwrap();
    let (stream, _) = export_from(&disk, "limited", Transport::Keystore).unwrap();
    import_to(&disk, "same", &stream, &import_options(&disk)).unwrap();
    disk.with("same", |fs| assert_eq!(fs.usage().limit_bytes, Some(size)));
    let with = |size| ImportOptions {
        size_bytes: Some(size),
        ..import_options(&disk)
    };
    import_to(&disk, "larger", &stream, &with(2 * size)).unwrap();
    disk.with("larger", |fs| {
        assert_eq!(fs.usage().limit_bytes, Some(2 * size));
    });
    let error = refused(&disk, &stream, &with(made.bytes / 4));
    assert!(matches!(error, ImageError::TooSmall { .. }), "{error:?}");
}

/// Neither plaintext nor a key, and no page of the volume: everything is under the stream's own
/// set.
#[test]
fn the_stream_holds_only_sealed_bytes() {
    let disk = Disk::new();
    disk.create("source", None);
    let secret = b"a line that nobody but its owner is to see, in a file and in a name";
    disk.with("source", |fs| {
        put(fs, ROOT, "inline", &[(0, secret)]);
        put(fs, ROOT, "object", &[(0, &secret.repeat(200))]);
        let name: Vec<u8> = secret[..40].to_vec();
        put(fs, ROOT, std::str::from_utf8(&name).unwrap(), &[]);
    });
    let (stream, _) = export_from(&disk, "source", Transport::Keystore).unwrap();
    let holds = |part: &[u8]| stream.windows(part.len()).any(|window| window == part);
    for len in [16, 40] {
        assert!(!holds(&secret[..len]));
    }
    let volume = disk.volume("source", None).unwrap();
    for set in volume.keys.iter() {
        assert!(!holds(&set.customer.expose()[..16]));
        assert!(!holds(&set.infrastructure.expose()[..16]));
    }
    let borders = Borders::of(&stream);
    for stride in stream[borders.strides()].chunks(4608) {
        if stride.iter().any(|byte| *byte != 0) {
            assert_eq!(epoch_of(stride), 1, "the stream's own set");
        }
    }
    for part in parts(&volume) {
        let path = format!(
            "objects/{:08x}/{}",
            part.id.name.folder.0, part.id.name.object
        );
        let file = volume
            .store
            .open(&StorePath::new(&path), OpenMode::Read)
            .unwrap();
        let mut page = vec![0; 4096];
        file.read_at(&mut page, 0).unwrap();
        for block in page.as_chunks::<32>().0.iter().step_by(20) {
            assert!(!holds(block), "a page of the volume");
        }
    }
}

#[test]
fn a_damaged_image_is_not_exported() {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| {
        put(fs, ROOT, "file", &[(0, &pattern(1, 0, 3 * PAGE))]);
    });
    let volume = disk.volume("source", None).unwrap();
    let name = parts(&volume)[0].id.name;
    let path = StorePath::new(&format!("objects/{:08x}/{}", name.folder.0, name.object));
    let file = volume.store.open(&path, OpenMode::ReadWrite).unwrap();
    drop(volume);
    let mut byte = [0];
    file.read_at(&mut byte, 4096 + 100).unwrap();
    file.write_at(&[byte[0] ^ 1], 4096 + 100).unwrap();
    let error = export_from(&disk, "source", Transport::Keystore).unwrap_err();
    assert!(matches!(error, ImageError::Page { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains(&name.object.to_string()) && message.contains("page 1"),
        "{message}"
    );
    disk.at("source").unlink(&path).unwrap();
    let error = export_from(&disk, "source", Transport::Keystore).unwrap_err();
    assert!(
        matches!(error, ImageError::MissingObject { .. }),
        "{error:?}"
    );
}

#[test]
fn wrong_keys_are_refused() {
    let (here, there) = (Disk::new(), Disk::new());
    here.create("source", None);
    let (stream, _) = export_from(&here, "source", Transport::Keystore).unwrap();
    // No keystore, and another one.
    for kind in [ErrorKind::KeystoreMissing, ErrorKind::WrongKey] {
        let error = refused(&there, &stream, &import_options(&there));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.hint().unwrap().contains("under a passphrase"));
        if kind == ErrorKind::KeystoreMissing {
            there.create("other", None);
        }
    }
    let named = ImportOptions {
        customer_key: Some(new_key(&here, "a.pem")),
        ..import_options(&here)
    };
    let error = refused(&here, &stream, &named);
    assert!(
        matches!(error, ImageError::Stream(StreamError::Downgraded)),
        "{error:?}"
    );

    let words = Transport::Passphrase(passphrase(&here, "words", "correct horse"));
    let (stream, _) = export_from(&here, "source", words).unwrap();
    let with = |export_passphrase| ImportOptions {
        export_passphrase,
        ..import_options(&there)
    };
    let error = refused(&there, &stream, &with(PassphraseSource::None));
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    let wrong = passphrase(&there, "wrong", "correct horsf");
    let error = refused(&there, &stream, &with(wrong));
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(error.hint().unwrap().contains("passphrase"), "{error}");
}

#[test]
fn wrong_customer_keys_are_refused() {
    let disk = Disk::new();
    let (own, other) = (new_key(&disk, "a.pem"), new_key(&disk, "b.pem"));
    disk.create("source", Some(&own));
    let (stream, _) = export_from(&disk, "source", Transport::Keystore).unwrap();
    let with = |customer_key, new_customer_key| ImportOptions {
        customer_key,
        new_customer_key,
        ..import_options(&disk)
    };
    // Naming another key for the new volume does not replace the key of the stream.
    for options in [with(None, None), with(None, Some(other.clone()))] {
        let error = refused(&disk, &stream, &options);
        assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
        assert!(error.hint().unwrap().contains("a.pem"));
    }
    let error = refused(&disk, &stream, &with(Some(other), None));
    assert_eq!(error.kind(), ErrorKind::WrongKey, "{error}");
    import_to(&disk, "copy", &stream, &with(Some(own), None)).unwrap();
}

/// For the customer key of another holder, of which the public half is given: that key opens it,
/// and the source's does not.
#[test]
fn for_another_customer_key() {
    for customer in [false, true] {
        let disk = Disk::new();
        let (own, other) = (new_key(&disk, "own.pem"), new_key(&disk, "other.pem"));
        disk.create("source", customer.then_some(&own));
        disk.with("source", |fs| {
            fill(fs, 1);
            make_image(fs, IMAGE);
        });
        let options = ExportOptions {
            customer_key: Some(other.clone()),
            ..ExportOptions::default()
        };
        let (stream, _) = export_with(&disk, "source", &options).unwrap();
        let with = |customer_key| ImportOptions {
            customer_key,
            ..import_options(&disk)
        };
        let error = refused(&disk, &stream, &with(Some(own)));
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{error}");
        let error = refused(&disk, &stream, &with(None));
        assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
        import_to(&disk, "copy", &stream, &with(Some(other))).unwrap();
        assert_eq!(disk.tree("copy"), disk.tree("source"));
        let copy = disk.volume("copy", None).unwrap();
        assert_eq!(copy.header().key_mode(), KeyMode::PlatformAndCustomer);
    }
}
