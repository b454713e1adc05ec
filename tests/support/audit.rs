//! Counts everything in a closed volume again, by its records and by its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bilayer::ids::Ino;
use bilayer::meta::keys::{self, Table};
use bilayer::meta::records::{DirentRecord, ExtentRecord, FileKind, InodeRecord};
use bilayer::meta::{Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::Volume;

/// What there is.
#[derive(Debug, Default)]
pub struct Found {
    pub inodes: u64,
    pub pages: u64,
    pub objects: u64,
}

/// Names of all objects in the store.
pub fn objects(store: &dyn Store) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (folder, _) in store.list(&StorePath::new("objects")).expect("list") {
        let path = StorePath::new(&format!("objects/{folder}"));
        for (name, _) in store.list(&path).expect("list") {
            found.insert(format!("{folder}/{name}"));
        }
    }
    found
}

/// Checks a volume that was closed cleanly: counters, link counts, parents, objects.
pub fn audit(store: &FaultyStore, keystore: &Path) -> Found {
    audit_volume(&super::open_volume(store, keystore, false))
}

/// The same for an open volume without a filesystem on it.
pub fn audit_volume(volume: &Volume) -> Found {
    let store = &*volume.store;
    let file = store
        .open(&StorePath::new("meta"), OpenMode::ReadWrite)
        .expect("open meta");
    let file = MetaFile::open(file, &volume.keys, volume.header.meta_crypto()).expect("meta");
    let meta = Meta::open(file, 4 << 20, true).expect("metadata");
    let counters = meta.counters();
    assert!(counters.clean, "the volume was closed");
    assert_eq!(meta.rows(Table::Orphan).expect("orphans"), [], "orphans");
    assert_eq!(meta.rows(Table::Garbage).expect("garbage"), [], "garbage");
    let all = |table| {
        meta.scan(table, &[], &[0xFF; 9], View::LIVE, usize::MAX)
            .expect("scan")
    };
    let inodes: BTreeMap<u64, InodeRecord> = all(Table::Inode)
        .iter()
        .map(|(key, value)| {
            let ino = keys::number_of(key).expect("key");
            (ino, InodeRecord::decode(value).expect("inode"))
        })
        .collect();
    check_names(&inodes, &all(Table::Dirent));
    for (key, _) in all(Table::Xattr) {
        let ino = keys::number_of(&key[..8]).expect("key");
        assert!(inodes.contains_key(&ino), "attribute of no inode {ino}");
    }
    let mut pages: BTreeMap<u64, u64> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for (key, value) in all(Table::Extent) {
        let (Ino(ino), chunk) = keys::extent_parts(&key).expect("key");
        let record = ExtentRecord::decode(&value).expect("extent");
        let inode = inodes.get(&ino).expect("an extent's inode");
        check_extent(ino, u64::from(chunk.0), inode.size, &record);
        *pages.entry(ino).or_default() += record.pages();
        if let ExtentRecord::Parts { parts, .. } = &record {
            for part in parts {
                let name = part.id.name;
                let text = format!("{:08x}/{}", name.folder.0, name.object);
                assert!(named.insert(text.clone()), "{text} is named twice");
            }
        }
    }
    for (ino, inode) in &inodes {
        let counted = pages.get(ino).copied().unwrap_or(0);
        assert_eq!(inode.pages, counted, "pages of inode {ino}");
    }
    let total: u64 = pages.values().sum();
    assert_eq!(counters.used_pages, total, "used pages");
    assert_eq!(counters.inodes, inodes.len() as u64, "inodes");
    assert_eq!(objects(store), named, "objects in the store and in extents");
    meta.close().expect("close");
    Found {
        inodes: inodes.len() as u64,
        pages: total,
        objects: named.len() as u64,
    }
}

/// Nothing is recorded beyond the size: it would come to light when the file grows.
fn check_extent(ino: u64, chunk: u64, size: u64, record: &ExtentRecord) {
    let here = size
        .saturating_sub(chunk * super::CHUNK as u64)
        .min(super::CHUNK as u64);
    match record {
        ExtentRecord::Inline(bytes) => {
            assert!(
                bytes.len() as u64 <= here,
                "inline bytes of {ino} end at the size"
            );
        }
        ExtentRecord::Parts { parts, .. } => {
            assert!(!parts.is_empty(), "an extent of {ino} without parts");
            for part in parts {
                let end = u64::from(part.pages.end());
                assert!(
                    end <= here.div_ceil(super::PAGE as u64),
                    "inode {ino} chunk {chunk}: page {end} beyond the size {size}"
                );
            }
        }
    }
}

fn check_names(inodes: &BTreeMap<u64, InodeRecord>, dirents: &[(Vec<u8>, Vec<u8>)]) {
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    let mut subdirectories: BTreeMap<u64, u32> = BTreeMap::new();
    for (key, value) in dirents {
        let parent = keys::number_of(&key[..8]).expect("key");
        let entry = DirentRecord::decode(value).expect("dirent");
        let inode = inodes.get(&entry.ino.0).expect("an entry's inode");
        assert_eq!(inode.kind, entry.kind);
        let holder = inodes.get(&parent).expect("an entry's directory");
        assert_eq!(holder.kind, FileKind::Directory);
        *names.entry(entry.ino.0).or_default() += 1;
        if entry.kind == FileKind::Directory {
            assert_eq!(inode.parent.0, parent, "parent of {}", entry.ino.0);
            *subdirectories.entry(parent).or_default() += 1;
        }
    }
    for (ino, inode) in inodes {
        let named = names.get(ino).copied().unwrap_or(0);
        if inode.kind == FileKind::Directory {
            let below = subdirectories.get(ino).copied().unwrap_or(0);
            assert_eq!(inode.nlink, 2 + below, "links of directory {ino}");
            assert_eq!(
                named,
                u32::from(*ino != Ino::ROOT.0),
                "names of directory {ino}"
            );
        } else {
            assert_eq!(inode.nlink, named, "links of inode {ino}");
        }
    }
}
