//! Long lists of parts: after a copy, the next write to the source adds a part on top.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{Fallocate, NodeId};
use bilayer::meta::keys::Table;
use bilayer::meta::records::ExtentRecord;
use bilayer::meta::{Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::{OpenMode, Store, StorePath};

use crate::support::{CHUNK, Mount, PAGE, ROOT, open_volume, pattern, quiet};

/// The number of parts up to which a list is left alone, and the number that a record can have.
const FLAT: usize = 5;
const LONGEST: usize = 8;

/// A file, its contents, and its copies.
struct Layers {
    mount: Mount,
    contents: Vec<u8>,
    copies: BTreeMap<String, Vec<u8>>,
}

impl Layers {
    fn new(mount: Mount, size: usize) -> Self {
        let contents = pattern(0, 0, size);
        mount.file(ROOT, "f", &contents);
        Self {
            mount,
            contents,
            copies: BTreeMap::new(),
        }
    }

    /// A copy that shares the file's objects.
    fn copy(&mut self) {
        let name = format!("copy-{}", self.copies.len());
        let to = self.mount.file(ROOT, &name, b"");
        let from = self.mount.at("f");
        let len = self.contents.len();
        let copied = self.mount.fs.copy_file_range(from, 0, to, 0, len as u64);
        assert_eq!(copied, Ok(len as u64));
        self.copies.insert(name, self.contents.clone());
    }

    fn write(&mut self, seed: u8, at: usize, len: usize) {
        let node = self.mount.at("f");
        let handle = self.mount.open_rw(node);
        let bytes = pattern(seed, at as u64, len);
        self.mount.put(node, handle, at as u64, &bytes);
        self.mount.fs.release(node, handle);
        let end = (at + len).max(self.contents.len());
        self.contents.resize(end, 0);
        self.contents[at..at + len].copy_from_slice(&bytes);
    }

    /// Copies, with a few pages written after each.
    fn layers(&mut self, count: usize) {
        for round in 0..count {
            self.copy();
            let seed = (self.copies.len() % 250 + 1) as u8;
            self.write(seed, 300_000 * (round % 12) + 1000, 3 * PAGE);
            self.write(seed, 70_000, 100);
        }
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.mount.contents(self.mount.at("f")) == self.contents);
        for (name, contents) in &self.copies {
            let actual = self.mount.contents(self.mount.at(name));
            assert!(&actual == contents, "{name}");
        }
    }

    fn reopen(self) -> Self {
        Self {
            mount: self.mount.reopen(),
            ..self
        }
    }

    /// Removes the copies and counts what is left.
    fn finish(self) -> usize {
        self.check();
        let this = self.reopen();
        this.check();
        for name in this.copies.keys() {
            this.mount.fs.unlink(ROOT, name.as_bytes()).unwrap();
        }
        let counts = this.mount.finish();
        counts.objects as usize
    }
}

/// Numbers of parts of a file's chunks, as recorded.
fn recorded(mount: &Mount, node: NodeId) -> Vec<usize> {
    mount.fs.sync().unwrap();
    let store = mount.store.survivor(0);
    let volume = open_volume(&store, mount.keystore.path(), false);
    let path = StorePath::new("meta");
    let file = store.open(&path, OpenMode::ReadWrite).unwrap();
    let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto()).unwrap();
    let meta = Meta::open(file, 4 << 20).unwrap();
    let ino = bilayer::ids::Ino(node.0);
    let all = meta.scan(Table::Extent, &[], &[0xFF; 9], View::LIVE, usize::MAX);
    let lists = all.unwrap().into_iter().filter_map(|(key, value)| {
        let (of, _) = bilayer::meta::keys::extent_parts(&key).unwrap();
        match ExtentRecord::decode(&value).unwrap() {
            ExtentRecord::Parts { parts, .. } if of == ino => Some(parts.len()),
            _ => None,
        }
    });
    lists.collect()
}

fn parts(layers: &Layers) -> Vec<usize> {
    recorded(&layers.mount, layers.mount.at("f"))
}

#[test]
fn the_background_shortens_lists() {
    let mut layers = Layers::new(Mount::new(), CHUNK);
    layers.layers(FLAT);
    assert_eq!(parts(&layers), [FLAT + 1]);
    layers.mount.fs.run_maintenance().unwrap();
    let short = parts(&layers);
    assert!(short[0] <= FLAT, "{short:?}");
    layers.check();
    for _ in 0..20 {
        layers.layers(1);
        layers.mount.fs.run_maintenance().unwrap();
        let short = parts(&layers);
        assert!(short[0] <= FLAT, "{short:?}");
    }
    // The merged parts are removed with the last copy that shows them.
    let left = layers.finish();
    assert!(left <= FLAT, "{left} objects");
}

/// A few pages above many: the many are not written again.
#[test]
fn a_large_old_part_is_not_copied() {
    let mut layers = Layers::new(Mount::new(), CHUNK);
    let before = layers.mount.fs.usage().contents_bytes;
    for round in 0..10 {
        layers.copy();
        layers.write(round + 1, 200_000 * usize::from(round), PAGE);
        layers.mount.fs.run_maintenance().unwrap();
    }
    let written: u64 = layers
        .copies
        .keys()
        .map(|name| layers.mount.at(name))
        .map(|copy| recorded(&layers.mount, copy).len() as u64)
        .sum();
    assert_eq!(written, 10, "each copy has one chunk");
    assert_eq!(layers.mount.fs.usage().contents_bytes, before * 11);
    let allocated = layers.mount.store.space().unwrap();
    let allocated = allocated.total_bytes - allocated.available_bytes;
    // The metadata, one whole chunk, and less than another.
    assert!(allocated < 8 * CHUNK as u64, "{allocated}");
    layers.finish();
}

#[test]
fn without_the_background_a_record_takes_what_it_can() {
    let mut layers = Layers::new(Mount::new(), CHUNK + 1_200_000);
    layers.layers(3 * LONGEST);
    while parts(&layers)[0] < LONGEST {
        layers.layers(1);
        assert!(layers.copies.len() < 5 * LONGEST, "no list gets so long");
    }
    layers.check();
    layers = layers.reopen();
    layers.check();
    // Lists of an earlier mount are shortened too, once they were read.
    layers.mount.fs.run_maintenance().unwrap();
    let lists = parts(&layers);
    assert!(lists.iter().all(|parts| *parts <= FLAT), "{lists:?}");
    layers.finish();
}

#[test]
fn hidden_parts_leave_the_list_without_a_copy() {
    let mut layers = Layers::new(Mount::new(), CHUNK);
    for seed in 1..=3 {
        layers.copy();
        layers.write(seed, 0, CHUNK);
    }
    assert_eq!(parts(&layers), [4]);
    layers.mount.fs.run_maintenance().unwrap();
    assert_eq!(parts(&layers), [1]);
    assert_eq!(layers.finish(), 1);
}

/// Pages of the newest part that no sync has covered hide nothing after a power cut.
#[test]
fn pages_that_are_not_durable_hide_nothing() {
    for synced in [false, true] {
        let mut layers = Layers::new(Mount::new(), CHUNK);
        layers.layers(FLAT);
        layers.copy();
        layers.mount.fs.sync().unwrap();
        let before = layers.contents.clone();
        let node = layers.mount.at("f");
        let handle = layers.mount.open_rw(node);
        let bytes = pattern(200, 0, CHUNK);
        layers.mount.put(node, handle, 0, &bytes);
        if synced {
            layers.mount.fs.fsync(node, handle, false).unwrap();
        }
        // Merged below pages of which a power cut leaves nothing, or all.
        layers.mount.fs.compact_parts();
        layers.mount.fs.release(node, handle);
        layers.mount.commit();
        let store = layers.mount.store.power_cut(7);
        let (keystore, options) = (layers.mount.keystore.clone(), layers.mount.options.clone());
        let _ = layers.mount.fs.close();
        layers.mount = Mount::open(store, keystore, options).unwrap();
        layers.contents = if synced { bytes } else { before };
        layers.finish();
    }
}

#[test]
fn reservations_of_the_newest_part_are_kept() {
    let mut layers = Layers::new(Mount::new(), CHUNK / 2);
    layers.layers(FLAT);
    let node = layers.mount.at("f");
    let handle = layers.mount.open_rw(node);
    let half = (CHUNK / 2) as u64;
    let reservation = Fallocate::Allocate { keep_size: true };
    layers
        .mount
        .fs
        .fallocate(node, handle, half, half, reservation)
        .unwrap();
    let reserved = layers.mount.fs.usage().contents_bytes;
    layers.mount.fs.run_maintenance().unwrap();
    assert!(parts(&layers)[0] <= FLAT);
    assert_eq!(layers.mount.fs.usage().contents_bytes, reserved);
    layers.mount.fs.release(node, handle);
    layers = layers.reopen();
    assert_eq!(layers.mount.fs.usage().contents_bytes, reserved);
    layers.write(99, CHUNK / 2, CHUNK / 2);
    assert_eq!(layers.mount.fs.usage().contents_bytes, reserved);
    layers.finish();
}

/// Writers, holes and truncations continue while parts are merged.
#[test]
fn merging_beside_writers() {
    let mut layers = Layers::new(Mount::new(), CHUNK);
    for round in 0..12 {
        layers.layers(FLAT);
        let mount = &layers.mount;
        let node = mount.at("f");
        let handle = mount.open_rw(node);
        let contents = &mut layers.contents;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    mount.fs.compact_parts();
                    std::thread::yield_now();
                }
            });
            for step in 0..40usize {
                let at = (step * 7919 * 97) % (CHUNK - 20_000);
                if (step + round) % 13 == 12 {
                    let hole = Fallocate::PunchHole;
                    mount
                        .fs
                        .fallocate(node, handle, at as u64, 10_000, hole)
                        .unwrap();
                    contents[at..at + 10_000].fill(0);
                } else if (step + round) % 29 == 28 {
                    mount.truncate(node, at as u64).unwrap();
                    mount.truncate(node, CHUNK as u64).unwrap();
                    contents[at..].fill(0);
                } else {
                    let bytes = pattern(step as u8, at as u64, 9_000);
                    mount.put(node, handle, at as u64, &bytes);
                    contents[at..at + 9_000].copy_from_slice(&bytes);
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        mount.fs.release(node, handle);
        layers.check();
    }
    layers.mount.fs.run_maintenance().unwrap();
    assert!(parts(&layers)[0] <= FLAT);
    layers.finish();
}

/// Every view keeps its contents, however often the parts below it are merged.
#[test]
fn merging_below_snapshots() {
    let mut layers = Layers::new(Mount::new(), CHUNK);
    let mut shown = Vec::new();
    for round in 0..24u8 {
        let name = format!("s{round}");
        let fs = &layers.mount.fs;
        fs.create_view(ViewKind::Snapshot, &name, None, "").unwrap();
        shown.push((name, layers.contents.clone()));
        for piece in 0..3 {
            let at = (usize::from(round) * 7919 + piece * 1_000_003) % (CHUNK - 3 * PAGE);
            layers.write(round + 1, at, 2 * PAGE);
        }
        if round < 12 {
            layers.mount.fs.run_maintenance().unwrap();
            assert!(parts(&layers)[0] <= FLAT);
        }
        assert!(parts(&layers)[0] <= LONGEST);
        if round % 5 == 4 {
            let (name, _) = shown.remove(usize::from(round) * 3 % shown.len());
            let fs = &layers.mount.fs;
            fs.delete_view(ViewKind::Snapshot, &name).unwrap();
            fs.finish_purge().unwrap();
        }
        if round % 8 == 7 {
            layers = layers.reopen();
        }
        layers.check();
        for (name, contents) in &shown {
            let actual = layers
                .mount
                .contents(layers.mount.at(&format!(".snapshots/{name}/f")));
            assert!(&actual == contents, "{name}");
        }
    }
    layers.finish();
}

/// A power cut at every call of the store that the background thread makes.
#[test]
fn a_cut_anywhere_loses_nothing() {
    let mut cuts = 0;
    for call in 1.. {
        let mut layers = Layers::new(Mount::with(None, quiet()), CHUNK);
        layers.layers(FLAT);
        layers.mount.fs.sync().unwrap();
        let store = layers.mount.store.clone();
        store.cut_at_call(store.calls() + call);
        let _ = layers.mount.fs.run_maintenance();
        let cut = store.is_cut();
        let survivor = store.power_cut(call);
        let (keystore, options) = (layers.mount.keystore.clone(), layers.mount.options.clone());
        let _ = layers.mount.fs.close();
        layers.mount = Mount::open(survivor, keystore, options).unwrap();
        layers.check();
        // Counts objects: no unnamed one is left, and none is missing.
        let objects = layers.finish();
        assert!(objects <= FLAT + 1, "{objects} objects");
        if !cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 10, "{cuts} calls of the store");
}
