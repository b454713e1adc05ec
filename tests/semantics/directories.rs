//! Listing directories while they change.

use std::collections::BTreeSet;

use bilayer::fs::types::NodeId;

use crate::support::{Mount, ROOT};

/// At most `limit` names after a position, and the position after them.
fn some(mount: &Mount, node: NodeId, from: u64, limit: usize) -> (Vec<String>, u64) {
    let handle = mount.fs.open_dir(node).unwrap();
    let (mut names, mut next) = (Vec::new(), from);
    mount
        .fs
        .read_dir(node, handle, from, &mut |entry| {
            if names.len() == limit {
                return false;
            }
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            next = entry.next_offset;
            true
        })
        .unwrap();
    mount.fs.release_dir(node, handle);
    (names, next)
}

#[test]
fn every_entry_once() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "d");
    let expected: BTreeSet<String> = (0..700).map(|n| format!("name-{n}")).collect();
    for name in &expected {
        mount.file(dir, name, b"");
    }
    let mount = mount.reopen();
    let dir = mount.at("d");
    for limit in [1, 7, 128, 1_000] {
        let mut listed = Vec::new();
        let mut at = 0;
        loop {
            let (names, next) = some(&mount, dir, at, limit);
            if names.is_empty() {
                break;
            }
            listed.extend(names);
            at = next;
        }
        assert_eq!(listed[..2], [".", ".."]);
        let names: BTreeSet<String> = listed[2..].iter().cloned().collect();
        assert_eq!((names.len(), listed.len()), (700, 702));
        assert_eq!(names, expected);
    }
}

#[test]
fn a_listing_has_each_lasting_name_once() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "d");
    for n in 0..400 {
        mount.file(dir, &format!("stays-{n}"), b"");
        mount.file(dir, &format!("goes-{n}"), b"");
    }
    let (mut listed, mut at, mut round) = (Vec::new(), 0, 0);
    loop {
        let (names, next) = some(&mount, dir, at, 20);
        if names.is_empty() {
            break;
        }
        listed.extend(names.into_iter().filter(|name| name.starts_with("stays")));
        at = next;
        for n in round * 10..(round + 1) * 10 {
            let _ = mount.fs.unlink(dir, format!("goes-{n}").as_bytes());
            mount.file(dir, &format!("comes-{n}"), b"");
        }
        if round % 7 == 0 {
            mount.commit();
        }
        round += 1;
    }
    let unique: BTreeSet<&String> = listed.iter().collect();
    assert_eq!((listed.len(), unique.len()), (400, 400));
}

#[test]
fn entries_with_attributes_count_as_lookups() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", b"x");
    let handle = mount.fs.open_dir(ROOT).unwrap();
    let mut seen = Vec::new();
    mount
        .fs
        .read_dir_plus(ROOT, handle, 0, &mut |entry, attr| {
            seen.push((entry.name.to_vec(), attr.node));
            true
        })
        .unwrap();
    mount.fs.release_dir(ROOT, handle);
    assert_eq!(seen.last(), Some(&(b"f".to_vec(), node)));
    mount.fs.unlink(ROOT, b"f").unwrap();
    assert!(mount.fs.getattr(node).is_ok(), "the kernel knows it");
    mount.fs.forget(node, 1);
    assert!(mount.fs.getattr(node).is_err());
}
