//! Damaged objects and pages: which ones, and of which files.

use bilayer::check::{Kind, Severity};
use bilayer::ids::{ChunkIndex, Epoch, Ino};
use bilayer::meta::records::ExtentRecord;
use bilayer::meta::{Batch, View};
use bilayer::store::{OpenMode, Store, StorePath};

use crate::{Closed, kinds, large};

const PAGE: u64 = 4096;

/// The only finding of that kind, which a repair leaves.
#[track_caller]
fn only_finding(closed: &Closed, kind: Kind) -> bilayer::check::Finding {
    let report = closed.repair();
    assert!(report.is_uncorrected() && !report.is_corrected());
    assert_eq!(kinds(&report), [kind], "{:#?}", report.findings);
    let report = closed.check();
    let mut findings = report.findings;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let finding = findings.remove(0);
    assert_eq!((finding.kind, finding.severity), (kind, Severity::Error));
    assert_eq!(finding.paths, [b"/large".to_vec()]);
    assert!(finding.file().unwrap().starts_with("objects/"));
    finding
}

#[test]
fn damaged_pages_are_named() {
    let closed = Closed::new();
    let file = closed.open(&closed.largest());
    for at in [3 * PAGE + 100, 4 * PAGE + 4095, 9 * PAGE] {
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ 1], at).unwrap();
    }
    file.write_at(&[0; 4096], 20 * PAGE).unwrap();
    assert_eq!(
        only_finding(&closed, Kind::PageDamaged).pages,
        [3..5, 9..10, 20..21]
    );
}

#[test]
fn short_and_missing_objects_are_named() {
    let closed = Closed::new();
    let path = closed.largest();
    let file = closed.open(&path);
    let pages = file.len().unwrap() / PAGE;
    file.set_len(7 * PAGE + 1).unwrap();
    let short = only_finding(&closed, Kind::ObjectShort);
    assert_eq!(short.pages, std::slice::from_ref(&(7..pages)));
    assert_eq!(short.file().as_deref(), Some(path.as_str()));
    closed.store.unlink(&StorePath::new(&path)).unwrap();
    only_finding(&closed, Kind::ObjectMissing);
}

#[test]
fn a_missing_key_set_is_reported() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let name = b"large";
        let file = meta
            .dirent(Ino::ROOT, name, View::LIVE)
            .unwrap()
            .unwrap()
            .ino;
        let (_, mut extent) = meta
            .extent(file, ChunkIndex(0), View::LIVE)
            .unwrap()
            .unwrap();
        if let ExtentRecord::Parts { parts, .. } = &mut extent {
            parts[0].id.epoch = Epoch(77);
        }
        let mut batch = Batch::new();
        meta.put_extent(&mut batch, file, ChunkIndex(0), Some(&extent))
            .unwrap();
        meta.apply(batch).unwrap();
    });
    only_finding(&closed, Kind::KeySetMissing);
}

#[test]
fn unnamed_objects_are_removed() {
    let closed = Closed::new();
    let largest = closed.largest();
    let folder = largest.rsplit_once('/').unwrap().0;
    let path = StorePath::new(&format!("{folder}/00112233445566778899aabbccddeeff"));
    let file = closed.store.open(&path, OpenMode::CreateNew).unwrap();
    file.write_at(&[1; 5000], 0).unwrap();
    assert_eq!(kinds(&closed.check()), [Kind::ObjectUnnamed]);
    assert!(closed.check().is_uncorrected());
    let repaired = closed.repair();
    assert!(repaired.is_corrected() && !repaired.is_uncorrected());
    assert!(closed.store.info(&path).is_err());
    assert_eq!(closed.check().findings, []);
    let mount = closed.mount();
    assert_eq!(mount.contents(mount.at("large")), large());
    mount.finish();
}

/// The check reports every damaged page of the metadata that is in use. It repairs nothing then,
/// and does not report what merely follows from the missing rows.
#[test]
fn damaged_pages_of_the_metadata_are_named() {
    const STRIDE: u64 = 4608;
    let closed = Closed::new();
    let file = closed.open("meta");
    let pages = file.len().unwrap() / STRIDE;
    let mut reported = 0;
    for page in 2..pages {
        let mut page_bytes = vec![0; STRIDE as usize];
        file.read_at(&mut page_bytes, page * STRIDE).unwrap();
        if page_bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        file.write_at(&[page_bytes[700] ^ 1], page * STRIDE + 700)
            .unwrap();
        let report = closed.check();
        if !report.is_clean() {
            reported += 1;
            let named = report.findings.iter().flat_map(|f| f.pages.clone());
            let named: Vec<_> = named.collect();
            let kinds = kinds(&report);
            assert!(kinds.contains(&Kind::Metadata), "{page}: {kinds:?}");
            assert!(
                kinds
                    .iter()
                    .all(|kind| matches!(kind, Kind::Metadata | Kind::NotCompared)),
                "{page}: {kinds:?}"
            );
            assert!(
                named.iter().all(|run| *run == (page - 1..page)),
                "{named:?}"
            );
            assert!(!closed.repair().is_corrected());
        }
        file.write_at(&page_bytes, page * STRIDE).unwrap();
    }
    assert!(reported > 3, "{reported} of {pages}");
    assert_eq!(closed.check().findings, []);
    for slot in 0..2 {
        let mut bytes = vec![0; STRIDE as usize];
        file.read_at(&mut bytes, slot * STRIDE).unwrap();
        file.write_at(&[0; 64], slot * STRIDE).unwrap();
        let kinds = kinds(&closed.check());
        assert!(kinds.contains(&Kind::MetadataSlot), "{kinds:?}");
        file.write_at(&bytes, slot * STRIDE).unwrap();
    }
    assert_eq!(closed.check().findings, []);
}

/// An older version of a page of the metadata opens, and does not have the checksum that its parent
/// states.
#[test]
fn older_pages_of_the_metadata_are_named() {
    const STRIDE: u64 = 4608;
    let closed = Closed::new();
    let copy = || {
        let file = closed.open("meta");
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = copy();
    let mount = closed.mount();
    for number in 0..300 {
        mount.file(crate::ROOT, &format!("more-{number}"), b"and more");
        mount.commit();
    }
    mount.finish();
    let after = copy();
    let file = closed.open("meta");
    let (mut zeroed, mut put_back) = (Vec::new(), Vec::new());
    let pages = before.len().min(after.len()) as u64 / STRIDE;
    for page in 2..pages {
        let range = (page * STRIDE) as usize..((page + 1) * STRIDE) as usize;
        let (old, new) = (&before[range.clone()], &after[range]);
        if old == new || old.iter().all(|byte| *byte == 0) {
            continue;
        }
        for (bytes, reported) in [(&[0; 4608][..], &mut zeroed), (old, &mut put_back)] {
            file.write_at(bytes, page * STRIDE).unwrap();
            if !closed.check().is_clean() {
                reported.push(page);
            }
        }
        file.write_at(new, page * STRIDE).unwrap();
    }
    assert!(!zeroed.is_empty());
    assert_eq!(zeroed, put_back);
    assert_eq!(closed.check().findings, []);
}
