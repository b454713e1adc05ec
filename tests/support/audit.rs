//! Counts everything in a closed volume again, by its records and by its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bilayer::ids::{Generation, Ino};
use bilayer::meta::keys::{self, Table};
use bilayer::meta::records::{DirentRecord, ExtentRecord, FileKind, InodeRecord, TOMBSTONE};
use bilayer::meta::{Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::Volume;

/// What there is.
#[derive(Debug, Default)]
pub struct Found {
    pub inodes: u64,
    /// Without a name; only in kept views.
    pub orphans: u64,
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

/// The metadata of a volume that nobody has open.
pub fn open_meta(store: &FaultyStore, keystore: &Path) -> Meta {
    meta_of(&super::open_volume(store, keystore, false))
}

fn meta_of(volume: &Volume) -> Meta {
    let file = volume
        .store
        .open(&StorePath::new("meta"), OpenMode::ReadWrite)
        .expect("open meta");
    let file = MetaFile::open(file, &volume.keys, volume.header.meta_crypto()).expect("meta");
    Meta::open(file, 4 << 20).expect("metadata")
}

/// Checks a volume that was closed cleanly: counters, link counts, parents, objects.
pub fn audit(store: &FaultyStore, keystore: &Path) -> Found {
    audit_volume(&super::open_volume(store, keystore, false))
}

/// The same for a volume in a directory of the store.
pub fn audit_at(store: &FaultyStore, at: &StorePath, keystore: &Path) -> Found {
    let directory = super::directory_of(store, at);
    let volume = super::try_open_volume(directory, keystore, false);
    audit_volume(&volume.expect("open the volume"))
}

/// The same for an open volume without a filesystem on it.
pub fn audit_volume(volume: &Volume) -> Found {
    let store = &*volume.store;
    let meta = meta_of(volume);
    let counters = meta.counters();
    assert!(counters.clean, "the volume was closed");
    assert_eq!(meta.rows(Table::Orphan).expect("orphans"), [], "orphans");
    assert_eq!(meta.rows(Table::Garbage).expect("garbage"), [], "garbage");
    let live = check_view(&meta, View::LIVE);
    assert_eq!(counters.used_pages, live.pages, "used pages");
    assert_eq!(counters.inodes, live.inodes, "inodes");
    for (id, record) in meta.views() {
        let found = check_view(&meta, View(record.generation));
        assert_eq!(record.pages, found.pages, "pages of view {id}");
        assert_eq!(
            record.inodes,
            found.inodes + found.orphans,
            "inodes of view {id}"
        );
    }
    check_versions(&meta);
    let named = check_objects(&meta);
    assert_eq!(objects(store), named, "objects in the store and in extents");
    meta.close().expect("close");
    Found {
        objects: named.len() as u64,
        ..live
    }
}

/// Checks what one view sees.
fn check_view(meta: &Meta, view: View) -> Found {
    let all = |table| {
        meta.scan(table, &[], &[0xFF; 9], view, usize::MAX)
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
    for (key, value) in all(Table::Extent) {
        let (Ino(ino), chunk) = keys::extent_parts(&key).expect("key");
        let record = ExtentRecord::decode(&value).expect("extent");
        let inode = inodes.get(&ino).expect("an extent's inode");
        check_extent(ino, u64::from(chunk.0), inode.size, &record);
        *pages.entry(ino).or_default() += record.pages();
    }
    for (ino, inode) in &inodes {
        let counted = pages.get(ino).copied().unwrap_or(0);
        assert_eq!(inode.pages, counted, "pages of inode {ino}");
    }
    // What was unlinked and open when a view was taken is in it, without a name.
    let orphans = inodes.values().filter(|inode| inode.nlink == 0).count() as u64;
    assert!(orphans == 0 || view != View::LIVE, "orphans");
    Found {
        inodes: inodes.len() as u64 - orphans,
        orphans,
        pages: pages.values().sum(),
        objects: 0,
    }
}

/// Every version is needed by some view, and every row of `change` may be needed still; what only
/// deleted views hold is left out while it is being dropped.
pub fn check_versions(meta: &Meta) {
    if !meta.leaving_views().is_empty() {
        return;
    }
    let kept = meta.kept_generations();
    for table in [Table::Inode, Table::Dirent, Table::Xattr, Table::Extent] {
        let mut versions: BTreeMap<Vec<u8>, Vec<(Generation, bool)>> = BTreeMap::new();
        for (key, value) in meta.rows(table).expect("rows") {
            let (logical, generation) = keys::split_version(&key).expect("version");
            let is_tombstone = value == TOMBSTONE;
            let of_key = versions.entry(logical.to_vec()).or_default();
            of_key.push((generation, is_tombstone));
        }
        for (logical, versions) in versions {
            assert!(
                !versions[0].1,
                "{table:?} {logical:x?}: a tombstone over nothing"
            );
            for pair in versions.windows(2) {
                let needed = kept.iter().any(|g| (pair[0].0..pair[1].0).contains(g));
                assert!(
                    needed,
                    "{table:?} {logical:x?}: nobody needs {:?} of {versions:?}, kept are {kept:?}",
                    pair[0]
                );
            }
        }
    }
    for (key, _) in meta.rows(Table::Change).expect("rows") {
        let (generation, table, logical) = keys::change_parts(&key).expect("change");
        let needed = kept.first().is_some_and(|oldest| *oldest < generation);
        assert!(
            needed,
            "nobody needs to know of {table:?} {logical:x?} in {generation}"
        );
    }
}

/// Names of the objects of all versions; none belongs to two extents.
fn check_objects(meta: &Meta) -> BTreeSet<String> {
    let mut owners: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, value) in meta.rows(Table::Extent).expect("rows") {
        let (logical, _) = keys::split_version(&key).expect("version");
        if value == TOMBSTONE {
            continue;
        }
        for name in ExtentRecord::decode(&value).expect("extent").names() {
            let text = format!("{:08x}/{}", name.folder.0, name.object);
            let owner = owners
                .entry(text.clone())
                .or_insert_with(|| logical.to_vec());
            assert_eq!(owner, logical, "{text} belongs to two extents");
        }
    }
    owners.into_keys().collect()
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
            let links = if inode.nlink == 0 { 0 } else { 2 + below };
            assert_eq!(inode.nlink, links, "links of directory {ino}");
            let names = u32::from(*ino != Ino::ROOT.0 && inode.nlink > 0);
            assert_eq!(named, names, "names of directory {ino}");
        } else {
            assert_eq!(inode.nlink, named, "links of inode {ino}");
        }
    }
}
