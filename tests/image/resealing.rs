//! Contents that are re-sealed for another holder: their contents, damaged pages, cancellation, and
//! the independence of the new volume.

use std::sync::atomic::{AtomicU64, Ordering};

use super::inheritance::{check_resealed, new_key, parts};
use super::*;
use bilayer::fs::types::SetAttr;
use bilayer::image::Progress;
use bilayer::meta::page_set::{capacity_of_pages, pages_taken};
use bilayer::sealed::PAYLOAD_BYTES;

/// Page size of contents on the disk.
const SEALED_PAGE: u64 = 4096;

/// A disk with a volume "source" and another holder's key.
fn disk() -> (Disk, DeployOptions) {
    let disk = Disk::new();
    disk.create("source", None);
    let options = DeployOptions {
        customer_key: Some(new_key(&disk, "other.pem")),
        ..disk.options()
    };
    (disk, options)
}

fn deploy_image(disk: &Disk, image: &str, options: &DeployOptions) -> Result<Deployed, ImageError> {
    disk.with("source", |fs| make_image(fs, image));
    disk.deploy_with("source", image, options)
}

/// The plaintext of a page of an object, also beyond the end of the file.
fn whole_page(volume: &Volume, index: usize, page: u32) -> Vec<u8> {
    let part = &parts(volume)[index];
    let path = format!(
        "objects/{:08x}/{}",
        part.id.name.folder.0, part.id.name.object
    );
    let file = volume.store.open(&StorePath::new(&path), OpenMode::Read);
    let set = volume.keys.get(part.id.epoch).unwrap();
    let file = bilayer::sealed::ContentsFile::new(file.unwrap(), set, part.id.crypto);
    let offset = u64::from(page) * PAYLOAD_BYTES as u64;
    let mut out = vec![0; PAYLOAD_BYTES];
    let pages = bilayer::sealed::ContentsFile::pages(offset, PAYLOAD_BYTES).unwrap();
    let guard = file.lock_shared(pages);
    file.read_at(&guard, offset, &mut out).unwrap();
    out
}

/// A truncation leaves the old bytes in the last page, which the source never shows.
#[test]
fn truncated_bytes_are_not_resealed() {
    let (disk, options) = disk();
    disk.with("source", |fs| {
        let node = put(fs, ROOT, "file", &[(0, &pattern(1, 0, 2 * PAGE))]);
        let changes = SetAttr {
            size: Some(PAYLOAD_BYTES as u64 + 10),
            ..SetAttr::default()
        };
        fs.setattr(&ADMIN, node, &changes).unwrap();
        fs.sync().unwrap();
    });
    let source = disk.volume("source", None).unwrap();
    let left = whole_page(&source, 0, 1);
    assert!(
        left[10..].iter().any(|byte| *byte != 0),
        "it is still there"
    );
    drop(source);
    deploy_image(&disk, "copy", &options).unwrap();
    let copy = disk.volume("copy", None).unwrap();
    let kept = whole_page(&copy, 0, 1);
    assert_eq!(kept[..10], left[..10]);
    assert!(kept[10..].iter().all(|byte| *byte == 0));
}

/// One object for each chunk; holes stay holes, and a page that a newer part hides is not copied.
#[test]
fn parts_become_one_and_hidden_pages_stay_behind() {
    let (disk, options) = disk();
    disk.with("source", |fs| {
        put(fs, ROOT, "file", &[(0, &pattern(1, 0, 30 * PAYLOAD_BYTES))]);
        for round in 0..3u8 {
            let name = format!("s{round}");
            fs.create_view(ViewKind::Snapshot, &name, None, "").unwrap();
            let at = usize::from(round) * 5 * PAYLOAD_BYTES;
            let more = pattern(7 + round, 0, 2 * PAYLOAD_BYTES);
            put(fs, ROOT, "file", &[(at, &more)]);
        }
        let tail = pattern(4, 0, 3 * PAGE);
        put(fs, ROOT, "sparse", &[(100 * PAYLOAD_BYTES, &tail)]);
    });
    let expected = disk.tree("source");
    let source = disk.volume("source", None).unwrap();
    let before = parts(&source);
    let made = deploy_image_of(&disk, source, &options);
    assert!(before.len() > 4);
    assert_eq!(made.resealed, 2);
    assert_eq!(disk.tree("copy"), expected);
    let copy = disk.volume("copy", None).unwrap();
    let now = parts(&copy);
    let pages: Vec<u32> = now.iter().map(|part| part.pages.len()).collect();
    assert_eq!(pages, [30, 3]);
    for part in &now {
        assert_eq!(part.id.name.object.0, part.id.crypto.0, "it says its id");
        let path = format!(
            "copy/objects/{:08x}/{}",
            part.id.name.folder.0, part.id.name.object
        );
        let info = disk.store.info(&StorePath::new(&path)).unwrap();
        assert_eq!(info.len_bytes, u64::from(part.pages.end()) * SEALED_PAGE);
        assert_eq!(info.links, 1);
    }
}

fn deploy_image_of(disk: &Disk, source: Volume, options: &DeployOptions) -> Deployed {
    drop(source);
    deploy_image(disk, "copy", options).unwrap()
}

/// Nobody else has its objects: it writes in place, and its own image is deployed by links.
#[test]
fn the_new_volume_is_like_any_other() {
    let (disk, options) = disk();
    disk.with("source", |fs| fill(fs, 1));
    let expected = disk.tree("source");
    let made = deploy_image(&disk, "copy", &options).unwrap();
    let counts = disk.audit("copy");
    assert_eq!((counts.objects, counts.inodes), (made.objects, made.inodes));
    assert_eq!(counts.pages * SEALED_PAGE, made.bytes);
    let ids = |volume: &Volume| -> Vec<_> { parts(volume).iter().map(|part| part.id).collect() };
    let before = ids(&disk.volume("copy", None).unwrap());
    disk.with("copy", |fs| {
        let noise = pattern(9, 0, 100);
        put(fs, find(fs, "dir"), "pages", &[(PAGE + 7, &noise)]);
        put(fs, find(fs, "dir"), "copy", &[(CHUNK - 50, &noise)]);
    });
    let copy = disk.volume("copy", None).unwrap();
    assert_eq!(ids(&copy), before, "written in place");
    check_resealed(&disk.volume("source", None).unwrap(), &copy);
    drop(copy);
    let made = disk.deploy("copy", "third");
    assert_eq!((made.linked, made.resealed), (made.objects, 0));
    assert_eq!(disk.tree("third"), disk.tree("copy"));
    assert_eq!(disk.tree("source"), expected);
    // New objects are created in folders after those of the deployment.
    disk.with("copy", |fs| {
        put(fs, ROOT, "more", &[(0, &pattern(3, 0, 3 * PAGE))]);
    });
    disk.audit("copy");
}

#[test]
fn a_damaged_page_stops_it_and_is_named() {
    let (disk, options) = disk();
    disk.with("source", |fs| {
        put(
            fs,
            ROOT,
            "file",
            &[(0, &pattern(1, 0, 300 * PAYLOAD_BYTES))],
        );
    });
    let volume = disk.volume("source", None).unwrap();
    let name = parts(&volume)[0].id.name;
    drop(volume);
    let path = StorePath::new(&format!(
        "source/objects/{:08x}/{}",
        name.folder.0, name.object
    ));
    let file = disk.store.open(&path, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, 270 * SEALED_PAGE + 100).unwrap();
    file.write_at(&[byte[0] ^ 1], 270 * SEALED_PAGE + 100)
        .unwrap();
    let error = deploy_image(&disk, "copy", &options).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Page { .. }), "{error:?}");
    assert!(text.contains(&name.object.to_string()), "{text}");
    assert!(text.contains("page 270"), "{text}");
    assert_eq!(disk.at("copy").list(&StorePath::root()).unwrap(), []);
    // A deployment by links does not read the page.
    disk.deploy("source", "linked");
    disk.store.unlink(&path).unwrap();
    let error = deploy_image(&disk, "copy", &options).unwrap_err();
    assert!(matches!(error, ImageError::MissingObject { .. }));
}

#[test]
fn a_deployment_that_does_not_fit_is_not_begun() {
    let (disk, options) = disk();
    disk.with("source", |fs| fill(fs, 1));
    let made = deploy_image(&disk, "copy", &options).unwrap();
    let mut record_bytes = 0;
    disk.with("copy", |fs| {
        record_bytes = fs.usage().used_bytes - made.bytes;
    });
    let least = capacity_of_pages(pages_taken(made.bytes / SEALED_PAGE, record_bytes));
    let small = DeployOptions {
        size_bytes: Some(least / 2),
        ..options
    };
    let error = deploy_image(&disk, "small", &small).unwrap_err();
    let ImageError::TooSmall { needed_bytes, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(needed_bytes, least);
    assert_eq!(disk.at("small").list(&StorePath::root()).unwrap(), []);
}

/// Counts bytes, and cancels after a number of them.
struct Until {
    most: u64,
    total: AtomicU64,
    done: AtomicU64,
}

impl Until {
    fn new(most: u64) -> Self {
        Self {
            most,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }
}

impl Progress for Until {
    fn begin(&self, total_bytes: u64) {
        self.total.store(total_bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.most
    }
}

#[test]
fn it_is_counted_and_can_be_cancelled() {
    let (disk, options) = disk();
    disk.with("source", |fs| {
        for number in 0..3 {
            let name = format!("file-{number}");
            put(fs, ROOT, &name, &[(0, &pattern(number, 0, CHUNK))]);
        }
        make_image(fs, "copy");
        make_image(fs, "linked");
    });
    let fs = disk.open("source");
    for (name, options) in [("copy", &options), ("linked", &disk.options())] {
        let early = Until::new(2 << 20);
        let error = fs.deploy_image(name, disk.at(name), options, &early);
        let error = error.unwrap_err();
        assert!(
            matches!(error, ViewError::Image(ImageError::Cancelled)),
            "{error:?}"
        );
        assert!(early.done.load(Ordering::Relaxed) < 3 * CHUNK as u64);
        assert_eq!(disk.at(name).list(&StorePath::root()).unwrap(), []);
        let whole = Until::new(u64::MAX);
        let made = fs.deploy_image(name, disk.at(name), options, &whole);
        let made = made.unwrap();
        let counted = [&whole.total, &whole.done].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counted, [made.bytes, made.bytes]);
    }
    fs.close().unwrap();
}
