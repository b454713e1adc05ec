//! Wrong records: each is reported, and repaired if nothing is lost by that.

use bilayer::check::Kind;
use bilayer::fs::snapshots::ViewKind;
use bilayer::ids::{ChunkIndex, Generation, Ino};
use bilayer::meta::keys::{self, Table, VersionedKey};
use bilayer::meta::records::{DirentRecord, ExtentRecord, FileKind, InodeRecord};
use bilayer::meta::repair::Corrections;
use bilayer::meta::{Batch, Meta, View};

use crate::support::{ADMIN, Mount, ROOT, pattern, quiet};
use crate::{Closed, kinds, large};

const ROOT_INO: Ino = Ino::ROOT;
const NO_INO: Ino = Ino(9_999);

fn change(meta: &Meta, change: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    change(&mut batch);
    meta.apply(batch).unwrap();
}

fn version_of(logical: &[u8], generation: Generation) -> VersionedKey<'_> {
    VersionedKey {
        logical,
        generation,
    }
}

fn entry(meta: &Meta, parent: Ino, name: &str) -> DirentRecord {
    let entry = meta.dirent(parent, name.as_bytes(), View::LIVE).unwrap();
    entry.unwrap_or_else(|| panic!("no {name}"))
}

fn inode(meta: &Meta, ino: Ino, amend: impl FnOnce(&mut InodeRecord)) {
    let mut record = meta.inode(ino, View::LIVE).unwrap().unwrap();
    amend(&mut record);
    change(meta, |batch| meta.put_inode(batch, ino, &record).unwrap());
}

fn name(meta: &Meta, parent: Ino, name: &str, entry: Option<DirentRecord>) {
    change(meta, |batch| {
        meta.put_dirent(batch, parent, name.as_bytes(), entry)
            .unwrap();
    });
}

/// The damage is reported and repaired, and all contents of the volume are intact.
#[track_caller]
fn is_repaired(closed: &Closed, expected: &[Kind]) -> Mount {
    let report = closed.check();
    for kind in expected {
        assert!(
            kinds(&report).contains(kind),
            "{kind:?}: {:#?}",
            report.findings
        );
    }
    assert!(report.is_uncorrected() && !report.is_clean());
    let repaired = closed.repair();
    assert!(repaired.is_corrected(), "{:#?}", repaired.findings);
    assert!(!repaired.is_uncorrected(), "{:#?}", repaired.findings);
    assert_eq!(closed.check().findings, []);
    closed.mount()
}

#[track_caller]
fn is_unharmed(mount: Mount) {
    assert_eq!(mount.contents(mount.at("file")), b"what is in it");
    assert_eq!(mount.contents(mount.at("large")), large());
    assert_eq!(
        mount.contents(mount.at("dir/below/deep")),
        pattern(2, 0, 20_000)
    );
    mount.finish();
}

/// The damage is reported, and a repair leaves it.
#[track_caller]
fn stays(closed: &Closed, kind: Kind) {
    for report in [closed.check(), closed.repair(), closed.check()] {
        let finding = report.findings.iter().find(|finding| finding.kind == kind);
        assert!(
            !finding
                .unwrap_or_else(|| panic!("{kind:?}: {report:#?}"))
                .repaired
        );
        assert!(report.is_uncorrected());
    }
}

#[test]
fn wrong_counts_are_corrected() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let file = entry(meta, ROOT_INO, "large").ino;
        inode(meta, file, |record| {
            record.nlink += 5;
            record.pages += 3;
        });
        inode(meta, ROOT_INO, |record| record.nlink = 9);
        let dir = entry(meta, ROOT_INO, "dir").ino;
        let below = entry(meta, dir, "below").ino;
        inode(meta, below, |record| record.parent = ROOT_INO);
        meta.correct(&Corrections {
            used_pages: Some(1),
            record_bytes: Some(5),
            inodes: Some(77),
            ..Corrections::default()
        });
    });
    let expected = [
        Kind::LinkCount,
        Kind::PageCount,
        Kind::Parent,
        Kind::UsedPages,
        Kind::RecordBytes,
        Kind::InodeCount,
    ];
    let report = closed.check();
    let of_large = report.findings.iter().find(|f| f.kind == Kind::PageCount);
    assert_eq!(of_large.unwrap().paths, [b"/large".to_vec()]);
    is_unharmed(is_repaired(&closed, &expected));
}

#[test]
fn names_that_lead_nowhere_are_removed() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let file = entry(meta, ROOT_INO, "file");
        let nowhere = DirentRecord {
            ino: NO_INO,
            ..file
        };
        name(meta, ROOT_INO, "ghost", Some(nowhere));
        name(meta, file.ino, "in-a-file", Some(file));
        let wrong = DirentRecord {
            kind: FileKind::Fifo,
            ..file
        };
        name(meta, ROOT_INO, "file", Some(wrong));
        let dir = entry(meta, ROOT_INO, "dir");
        name(meta, ROOT_INO, "dir-again", Some(dir));
    });
    let report = closed.check();
    let ghost = report
        .findings
        .iter()
        .find(|f| f.kind == Kind::NameLeadsNowhere);
    assert_eq!(ghost.unwrap().paths, [b"/ghost".to_vec()]);
    let expected = [
        Kind::NameLeadsNowhere,
        Kind::NamesOfNoDirectory,
        Kind::NameKind,
        Kind::DirectoryNames,
    ];
    let mount = is_repaired(&closed, &expected);
    let mut names = mount.names(ROOT);
    names.retain(|name| name != "dir-again" && name != "dir");
    assert_eq!(names, ["file", "large"]);
    mount.finish();
}

#[test]
fn an_inode_without_a_name_gets_one() {
    let closed = Closed::new();
    let (mut file, mut dir) = (Ino(0), Ino(0));
    closed.tamper(|meta| {
        file = entry(meta, ROOT_INO, "large").ino;
        dir = entry(meta, ROOT_INO, "dir").ino;
        name(meta, ROOT_INO, "large", None);
        name(meta, ROOT_INO, "dir", None);
    });
    let mount = is_repaired(&closed, &[Kind::NoName]);
    let lost = |path: &str| mount.contents(mount.at(&format!("lost+found/#{path}")));
    assert_eq!(lost(&file.0.to_string()), large());
    assert_eq!(
        lost(&format!("{}/below/deep", dir.0)),
        pattern(2, 0, 20_000)
    );
    let attr = mount.lookup(ROOT, b"lost+found").unwrap();
    assert_eq!(attr.perm, 0o700);
    mount.finish();
}

#[test]
fn contents_without_an_inode_get_a_new_one() {
    let closed = Closed::new();
    let mut ino = Ino(0);
    closed.tamper(|meta| {
        ino = entry(meta, ROOT_INO, "large").ino;
        change(meta, |batch| meta.remove_inode(batch, ino).unwrap());
        change(meta, |batch| {
            meta.put_xattr(batch, NO_INO, b"user.x", Some(b"y"))
                .unwrap();
        });
    });
    let expected = [
        Kind::NameLeadsNowhere,
        Kind::ContentsOfNothing,
        Kind::AttributeOfNothing,
        Kind::InodeCount,
    ];
    let mount = is_repaired(&closed, &expected);
    let contents = mount.contents(mount.at(&format!("lost+found/#{}", ino.0)));
    // The length was in the inode: the file ends at the end of its last page.
    assert_eq!(contents[..300_000], large()[..]);
    assert!(contents[300_000..].iter().all(|byte| *byte == 0));
    mount.finish();
}

#[test]
fn a_cycle_of_directories_is_broken() {
    let closed = Closed::new();
    let mut dir = Ino(0);
    closed.tamper(|meta| {
        let of_dir = entry(meta, ROOT_INO, "dir");
        dir = of_dir.ino;
        let below = entry(meta, dir, "below").ino;
        name(meta, ROOT_INO, "dir", None);
        name(meta, below, "dir", Some(of_dir));
        inode(meta, dir, |record| record.parent = below);
        inode(meta, below, |record| record.nlink += 1);
        inode(meta, ROOT_INO, |record| record.nlink -= 1);
    });
    let report = closed.check();
    assert_eq!(kinds(&report), [Kind::Detached], "{:#?}", report.findings);
    let mount = is_repaired(&closed, &[Kind::Detached]);
    let deep = format!("lost+found/#{}/below/deep", dir.0);
    assert_eq!(mount.contents(mount.at(&deep)), pattern(2, 0, 20_000));
    mount.finish();
}

#[test]
fn a_size_that_hides_contents_grows() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let file = entry(meta, ROOT_INO, "large").ino;
        inode(meta, file, |record| record.size = 10);
    });
    let mount = is_repaired(&closed, &[Kind::BeyondSize]);
    assert_eq!(mount.contents(mount.at("large"))[..300_000], large()[..]);
    mount.finish();
}

#[test]
fn lists_of_removals_name_nothing_in_use() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let file = entry(meta, ROOT_INO, "large").ino;
        let (_, extent) = meta
            .extent(file, ChunkIndex(0), View::LIVE)
            .unwrap()
            .unwrap();
        let object = extent.names()[0].encode();
        change(meta, |batch| {
            meta.set_row(batch, Table::Garbage, keys::number(70), Some(object));
            meta.put_orphan(batch, file);
            meta.put_orphan(batch, NO_INO);
            meta.set_row(batch, Table::Trim, vec![1, 2, 3], Some(vec![1]));
        });
    });
    let expected = [
        Kind::GarbageInUse,
        Kind::GarbageNumber,
        Kind::OrphanInUse,
        Kind::Record,
    ];
    is_unharmed(is_repaired(&closed, &expected));
}

#[test]
fn names_are_where_they_are_looked_for_and_numbers_are_not_given_twice() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let hash = meta.name_hash(b"file");
        let right = keys::dirent(ROOT_INO, hash, b"file");
        let wrong = keys::dirent(ROOT_INO, hash + keys::PROBE_LIMIT, b"file");
        let file = entry(meta, ROOT_INO, "file");
        let far = DirentRecord {
            ino: NO_INO,
            ..file
        };
        let mut record = meta.inode(file.ino, View::LIVE).unwrap().unwrap();
        record.size = 0;
        change(meta, |batch| {
            let at = meta.generation();
            meta.set_version(batch, Table::Dirent, version_of(&right, at), None);
            let value = Some(file.encode());
            meta.set_version(batch, Table::Dirent, version_of(&wrong, at), value);
            meta.put_inode(batch, NO_INO, &record).unwrap();
            meta.put_dirent(batch, ROOT_INO, b"far", Some(far)).unwrap();
            batch.inodes += 1;
        });
    });
    let mount = is_repaired(&closed, &[Kind::NameMisplaced, Kind::InodeNumber]);
    let next = mount.file(ROOT, "next", b"");
    assert!(next.ino() > NO_INO);
    is_unharmed(mount);
}

#[test]
fn two_names_at_one_position_are_distinguished() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let file = entry(meta, ROOT_INO, "file");
        // Two names, of which the first may have the position of the second.
        let mut names = std::collections::BTreeMap::new();
        let twins = (0..).find_map(|number| {
            let name = format!("twin {number}");
            let hash = meta.name_hash(name.as_bytes());
            let before = names.range(hash.saturating_sub(keys::PROBE_LIMIT - 1)..=hash);
            let before = before
                .last()
                .map(|(_, before)| (name.clone(), String::clone(before)));
            names.insert(hash, name);
            before
        });
        let (second, first) = twins.unwrap();
        let place = meta.name_hash(second.as_bytes());
        let key = keys::dirent(ROOT_INO, place, first.as_bytes());
        let mut record = meta.inode(file.ino, View::LIVE).unwrap().unwrap();
        record.nlink += 2;
        change(meta, |batch| {
            let at = meta.generation();
            meta.put_dirent(batch, ROOT_INO, second.as_bytes(), Some(file))
                .unwrap();
            meta.set_version(
                batch,
                Table::Dirent,
                version_of(&key, at),
                Some(file.encode()),
            );
            meta.put_inode(batch, file.ino, &record).unwrap();
        });
    });
    let mount = is_repaired(&closed, &[Kind::NameMisplaced]);
    let twins = mount.names(ROOT);
    let twins = twins.iter().filter(|name| name.starts_with("twin"));
    assert_eq!(twins.count(), 2);
    mount.finish();
}

#[test]
fn records_of_future_numbers_are_reported_and_never_used() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let next = meta.counters().next_ino;
        let entry = DirentRecord {
            ino: Ino(next.0 + 1),
            kind: entry(meta, ROOT_INO, "file").kind,
        };
        change(meta, |batch| {
            meta.put_dirent(batch, ROOT_INO, b"evil", Some(entry))
                .unwrap();
            meta.put_xattr(batch, next, b"security.capability", Some(b"all"))
                .unwrap();
        });
    });
    // Without a repair it cannot be used: the next file would get the attribute.
    let (store, keystore) = (closed.store.clone(), closed.keystore.clone());
    assert!(Mount::open(store, keystore, quiet()).is_err());
    let expected = [
        Kind::InodeNumber,
        Kind::NameLeadsNowhere,
        Kind::AttributeOfNothing,
    ];
    let mount = is_repaired(&closed, &expected);
    let node = mount.file(ROOT, "next", b"");
    let names = mount.fs.list_xattr(&ADMIN, node).unwrap();
    assert!(names.is_empty(), "{names:?}");
    is_unharmed(mount);
}

#[test]
fn histories_are_complete_and_no_longer_than_needed() {
    let mount = Mount::new();
    mount.file(ROOT, "file", b"what is in it");
    let large_file = mount.file(ROOT, "large", &pattern(9, 0, 300_000));
    let dir = mount.mkdir(ROOT, "dir");
    let below = mount.mkdir(dir, "below");
    mount.file(below, "deep", &pattern(2, 0, 20_000));
    mount
        .fs
        .create_view(ViewKind::Snapshot, "one", None, "")
        .unwrap();
    let handle = mount.open_rw(large_file);
    mount.put(large_file, handle, 0, &large());
    mount.fs.release(large_file, handle);
    let closed = Closed::of(mount);
    closed.tamper(|meta| {
        let (changes, _) = meta
            .changes(Generation(0), meta.generation(), None, 1000)
            .unwrap();
        assert!(!changes.is_empty());
        let file = entry(meta, ROOT_INO, "file").ino;
        let record = meta.inode(file, View::LIVE).unwrap().unwrap();
        let (id, view) = meta.views().remove(0);
        change(meta, |batch| {
            for row in &changes {
                meta.remove_change(batch, row);
            }
            let unneeded = keys::change(Generation(1), Table::Inode, &keys::inode(file));
            meta.set_row(batch, Table::Change, unneeded, Some(vec![1]));
            let key = keys::inode(file);
            let value = Some(record.encode());
            meta.set_version(batch, Table::Inode, version_of(&key, Generation(0)), value);
        });
        let wrong = bilayer::meta::records::ViewRecord {
            pages: view.pages + 1,
            ..view
        };
        meta.put_view(id, &wrong).unwrap();
    });
    let expected = [
        Kind::ChangeMissing,
        Kind::ChangeUnneeded,
        Kind::RecordUnneeded,
        Kind::ViewCount,
    ];
    let mount = is_repaired(&closed, &expected);
    mount.fs.delete_view(ViewKind::Snapshot, "one").unwrap();
    mount.fs.finish_purge().unwrap();
    is_unharmed(mount);
}

/// A view that has the live generation would change with it.
#[test]
fn a_view_and_the_live_one_are_not_of_one_generation() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let counters = meta.counters();
        let record = bilayer::meta::records::ViewRecord {
            kind: bilayer::meta::records::ViewKind::Snapshot,
            state: bilayer::meta::records::ViewState::Kept,
            generation: counters.generation,
            created: bilayer::meta::records::Timespec::default(),
            pages: counters.used_pages,
            inodes: counters.inodes,
            record_bytes: counters.record_bytes,
            name: "one".to_owned(),
            from: String::new(),
            description: String::new(),
        };
        meta.add_view(&record).unwrap().unwrap();
    });
    let mount = is_repaired(&closed, &[Kind::View]);
    let file = mount.at("file");
    let handle = mount.open_rw(file);
    mount.put(file, handle, 0, b"WHAT");
    mount.fs.release(file, handle);
    assert_eq!(
        mount.contents(mount.at(".snapshots/one/file")),
        b"what is in it"
    );
    mount.finish();
}

#[test]
fn unreadable_records_are_reported_and_left() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let file = entry(meta, ROOT_INO, "file").ino;
        let at = meta.generation();
        change(meta, |batch| {
            let key = keys::inode(file);
            let value = Some(vec![1, 99]);
            meta.set_version(batch, Table::Inode, version_of(&key, at), value);
        });
    });
    stays(&closed, Kind::Record);
    let mount = closed.mount();
    assert_eq!(mount.contents(mount.at("large")), large());
}

#[test]
fn an_object_of_two_files_is_reported_and_left() {
    let closed = Closed::new();
    closed.tamper(|meta| {
        let large = entry(meta, ROOT_INO, "large").ino;
        let file = entry(meta, ROOT_INO, "file").ino;
        let (_, extent) = meta
            .extent(large, ChunkIndex(0), View::LIVE)
            .unwrap()
            .unwrap();
        assert!(matches!(extent, ExtentRecord::Parts { .. }));
        change(meta, |batch| {
            meta.put_extent(batch, file, ChunkIndex(0), Some(&extent))
                .unwrap();
        });
    });
    stays(&closed, Kind::ObjectTwice);
}
