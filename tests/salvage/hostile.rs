//! Records forged by a holder of the keys: nothing is written outside of the output, and the
//! extraction ends.

use bilayer::ids::Ino;
use bilayer::meta::records::{DirentRecord, FileKind, InodeRecord};
use bilayer::meta::{Batch, Meta};

use crate::support::audit;
use crate::victim::Victim;

/// Changes records of a closed volume, and extracts its contents.
fn with_records(change: impl Fn(&Meta, &mut Batch)) -> crate::victim::Taken {
    let victim = Victim::make(false);
    let store = victim.copy();
    {
        let meta = audit::open_meta(&store, victim.keystore.path());
        let mut batch = Batch::new();
        change(&meta, &mut batch);
        meta.apply(batch).unwrap();
        let newest = meta.newest_batch();
        assert!(meta.commit(newest, &|| true).unwrap());
        meta.close().unwrap();
    }
    let taken = victim.salvage(&store).unwrap();
    let names = std::fs::read_dir(taken.out.path()).unwrap();
    assert_eq!(
        names.count(),
        1,
        "something was written beside the directory"
    );
    taken
}

fn entry(ino: Ino, kind: FileKind) -> Option<DirentRecord> {
    Some(DirentRecord { ino, kind })
}

/// The first directory of a victim.
const DIRECTORY: Ino = Ino(2);

#[test]
fn names_that_lead_outside_are_skipped() {
    let taken = with_records(|meta, batch| {
        for name in [
            &b".."[..],
            b".",
            b"../../evil",
            b"/evil",
            b"a/../../evil",
            &[b'n'; 300],
        ] {
            meta.put_dirent(batch, Ino::ROOT, name, entry(Ino(3), FileKind::Regular))
                .unwrap();
        }
    });
    assert_eq!(
        taken.report.matches("no file can have this name").count(),
        6
    );
    assert!(!taken.report.contains("lost+found/inodes"));
}

#[test]
fn directories_in_a_cycle_end() {
    let taken = with_records(|meta, batch| {
        // The root inside a directory, and that directory inside itself.
        for (name, ino) in [(&b"up"[..], Ino::ROOT), (b"self", DIRECTORY)] {
            meta.put_dirent(batch, DIRECTORY, name, entry(ino, FileKind::Directory))
                .unwrap();
        }
    });
    assert_eq!(taken.report.matches("another name already").count(), 2);
}

#[test]
fn directories_that_contain_each_other_are_found() {
    let taken = with_records(|meta, batch| {
        let (one, other) = (Ino(1000), Ino(1001));
        let root = meta
            .inode(Ino::ROOT, bilayer::meta::View::LIVE)
            .unwrap()
            .unwrap();
        for (ino, parent) in [(one, other), (other, one)] {
            let inode = InodeRecord {
                parent,
                ..root.clone()
            };
            meta.put_inode(batch, ino, &inode).unwrap();
            meta.put_dirent(batch, parent, b"child", entry(ino, FileKind::Directory))
                .unwrap();
        }
    });
    assert!(taken.path("lost+found/inodes/1001/child").is_dir());
}

#[test]
fn links_are_not_followed_while_writing() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().as_os_str().as_encoded_bytes().to_vec();
    let taken = with_records(|meta, batch| {
        // One inode is a link to the outside; another entry calls the same inode a directory.
        let root = meta
            .inode(Ino::ROOT, bilayer::meta::View::LIVE)
            .unwrap()
            .unwrap();
        let link = InodeRecord {
            kind: FileKind::Symlink,
            nlink: 1,
            size: target.len() as u64,
            target: target.clone(),
            ..root
        };
        meta.put_inode(batch, Ino(1000), &link).unwrap();
        for name in [&b"a-link"[..], b"b-link"] {
            meta.put_dirent(
                batch,
                Ino::ROOT,
                name,
                entry(Ino(1000), FileKind::Directory),
            )
            .unwrap();
        }
        meta.put_dirent(
            batch,
            Ino(1000),
            b"within",
            entry(Ino(3), FileKind::Regular),
        )
        .unwrap();
    });
    assert!(taken.path("files/a-link").is_symlink());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn numbers_beyond_all_inodes_are_reported() {
    let taken = with_records(|meta, batch| {
        for (name, ino) in [(&b"max"[..], u64::MAX), (b"zero", 0), (b"far", 1 << 50)] {
            meta.put_dirent(batch, Ino::ROOT, name, entry(Ino(ino), FileKind::Directory))
                .unwrap();
        }
    });
    // No record can have one of these names.
    let refused = taken.report.matches("cannot be decoded").count();
    assert_eq!(refused, 3, "{}", taken.report);
}
