//! Each kind of damage: the output is correct, and everything that is lost is reported.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bilayer::keys::ErrorKind;
use bilayer::sealed::META_STRIDE_BYTES;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::{OpenMode, Store, StorePath};

use crate::support::{PAGE, audit};
use crate::victim::{Taken, Victim, files_below, flip, length};

const STRIDE: u64 = META_STRIDE_BYTES as u64;

fn unlink(store: &FaultyStore, path: &str) {
    store.unlink(&StorePath::new(path)).unwrap();
}

#[test]
fn an_intact_volume_is_extracted_completely() {
    for checkpoint in [false, true] {
        let victim = Victim::make(checkpoint);
        let taken = victim.salvage(&victim.copy()).unwrap();
        assert!(taken.is_whole(), "{}", taken.report);
        assert!(taken.files == victim.now);
        let one = taken.path("files/hard").metadata().unwrap();
        let other = taken.path("files/dir-1/file-1").metadata().unwrap();
        assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
        let sparse = taken.path("files/sparse").metadata().unwrap();
        assert!(sparse.blocks() * 512 < 64 << 10, "holes are holes");
        assert!(!taken.path("lost+found").exists());
    }
}

#[test]
fn a_page_of_an_object_costs_that_page() {
    let victim = Victim::make(false);
    let objects = audit::objects(&victim.copy());
    assert!(objects.len() > 20);
    for object in objects {
        let store = victim.copy();
        let path = format!("objects/{object}");
        flip(&store, &path, length(&store, &path) - 100);
        let taken = victim.salvage(&store).unwrap();
        let counts = taken.summary.counts;
        assert!(
            counts.lost > 0 && counts.bytes_lost <= PAGE as u64 * 2,
            "{}",
            taken.report
        );
        taken.assert_nothing_made_up(&victim);
        let other = taken
            .files
            .iter()
            .filter(|(path, bytes)| victim.now[*path] != **bytes);
        // The file with two names counts twice.
        assert!((1..=2).contains(&other.count()));
        assert_eq!(taken.files.len(), victim.now.len());
    }
}

#[test]
fn a_missing_object_costs_its_chunk() {
    let victim = Victim::make(false);
    let store = victim.copy();
    let object = audit::objects(&store).pop_first().unwrap();
    unlink(&store, &format!("objects/{object}"));
    let taken = victim.salvage(&store).unwrap();
    assert!(taken.report.contains("it is gone"), "{}", taken.report);
    taken.assert_nothing_made_up(&victim);
    assert!((1..=2).contains(&taken.summary.counts.lost));
}

/// Flips a bit in each page of `meta` in turn.
fn each_page_of_meta(victim: &Victim, check: impl Fn(u64, &Taken)) {
    let pages = length(&victim.copy(), "meta") / STRIDE;
    let mut damaged = 0;
    for page in 0..pages {
        let store = victim.copy();
        flip(&store, "meta", page * STRIDE + 500);
        let taken = victim.salvage(&store).unwrap();
        taken.assert_nothing_made_up(victim);
        if taken.files != victim.now {
            assert!(!taken.is_whole(), "page {page}: nothing is said");
            damaged += 1;
        }
        check(page, &taken);
    }
    assert!(damaged > 0, "of {pages} pages, none counts");
}

#[test]
fn any_page_of_meta_costs_nothing_that_a_checkpoint_has() {
    let victim = Victim::make(true);
    each_page_of_meta(&victim, |page, taken| {
        for (path, contents) in &victim.before {
            let extracted = taken.files.get(path);
            assert!(
                extracted == Some(contents),
                "page {page}: {} is lost",
                path.display()
            );
        }
    });
}

/// Everything is somewhere in the output, under whatever name.
fn is_somewhere(taken: &Taken, contents: &[u8]) -> bool {
    let all = files_below(&taken.path(""));
    all.values().any(|bytes| bytes.starts_with(contents))
}

#[test]
fn without_a_checkpoint_objects_are_extracted_whatever_page_of_meta_is_lost() {
    let victim = Victim::make(false);
    each_page_of_meta(&victim, |page, taken| {
        for (path, contents) in victim.now.iter().filter(|(_, bytes)| bytes.len() > 2048) {
            if path.as_os_str() == "sparse" {
                continue;
            }
            assert!(
                is_somewhere(taken, contents),
                "page {page}: {} is lost",
                path.display()
            );
        }
    });
}

type Damage = fn(&FaultyStore);

/// The kinds of lost `meta`.
fn losses() -> [(&'static str, Damage); 4] {
    [
        ("deleted", |store| unlink(store, "meta")),
        ("truncated to nothing", |store| {
            let file = store.open(&StorePath::new("meta"), OpenMode::ReadWrite);
            file.unwrap().set_len(0).unwrap();
        }),
        ("zeroed", |store| {
            let file = store
                .open(&StorePath::new("meta"), OpenMode::ReadWrite)
                .unwrap();
            let zeros = vec![0; file.len().unwrap() as usize];
            file.write_at(&zeros, 0).unwrap();
        }),
        ("without page 0", |store| {
            flip(store, "meta", 500);
            flip(store, "meta", STRIDE + 500);
        }),
    ]
}

#[test]
fn without_meta_everything_is_as_of_the_checkpoint() {
    let victim = Victim::make(true);
    for (how, damage) in losses() {
        let store = victim.copy();
        damage(&store);
        let taken = victim.salvage(&store).unwrap();
        assert!(taken.files == victim.before, "{how}");
        assert_eq!(taken.summary.source["meta"], "lost", "{how}");
        assert!(!taken.is_whole(), "{how}");
        // Later data is extracted by object.
        for (path, contents) in &victim.now {
            let later = !victim.before.contains_key(path) && contents.len() > 2048;
            assert!(
                !later || is_somewhere(&taken, contents),
                "{how}: {}",
                path.display()
            );
        }
    }
}

#[test]
fn without_meta_and_checkpoint_objects_are_extracted() {
    let victim = Victim::make(false);
    for (how, damage) in losses() {
        let store = victim.copy();
        damage(&store);
        let taken = victim.salvage(&store).unwrap();
        assert!(taken.files.is_empty(), "{how}");
        let objects = audit::objects(&store).len() as u64;
        assert_eq!(
            taken.summary.counts.objects, objects,
            "{how}: {}",
            taken.report
        );
        for contents in victim
            .now
            .values()
            .filter(|bytes| (2049..1 << 20).contains(&bytes.len()))
        {
            assert!(is_somewhere(&taken, contents), "{how}");
        }
    }
}

#[test]
fn truncated_meta_loses_its_end() {
    let victim = Victim::make(true);
    let pages = length(&victim.copy(), "meta") / STRIDE;
    for left in (1..pages).step_by(5) {
        let store = victim.copy();
        let file = store
            .open(&StorePath::new("meta"), OpenMode::ReadWrite)
            .unwrap();
        file.set_len(left * STRIDE + 100).unwrap();
        let taken = victim.salvage(&store).unwrap();
        taken.assert_nothing_made_up(&victim);
        for (path, contents) in &victim.before {
            assert!(
                taken.files.get(path) == Some(contents),
                "{left}: {}",
                path.display()
            );
        }
    }
}

#[test]
fn the_spare_superblock_stands_in() {
    let victim = Victim::make(true);
    let header = {
        let file = victim
            .copy()
            .open(&StorePath::new("volume.json"), OpenMode::Read)
            .unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    let store = victim.copy();
    flip(&store, "volume.json", 40);
    let taken = victim.salvage(&store).unwrap();
    assert!(taken.files == victim.now && taken.is_whole());
    assert!(
        taken.report.contains("superblocks_refused\":[{"),
        "{}",
        taken.report
    );

    unlink(&store, "volume.json");
    assert!(victim.salvage(&store).unwrap().files == victim.now);

    // Without it nothing opens; a copy of it is sufficient.
    unlink(&store, "checkpoints/volume.json");
    let error = victim.salvage(&store).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotAVolume);
    let taken = victim.salvage_with(&store, Some(header), &Default::default());
    assert!(taken.unwrap().files == victim.now);
}

#[test]
fn without_the_keystore_the_error_says_so() {
    let victim = Victim::make(true);
    let store = victim.copy();
    flip(&store, "volume.json", 40);
    std::fs::rename(
        victim.keystore.path().join("platform"),
        victim.keystore.path().join("elsewhere"),
    )
    .unwrap();
    let error = victim.salvage(&store).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::KeystoreMissing, "{error}");
}

#[test]
fn metadata_that_was_about_to_replace_meta_is_found() {
    let victim = Victim::make(false);
    let store = victim.copy();
    store
        .rename(&StorePath::new("meta"), &StorePath::new("meta.next"))
        .unwrap();
    let taken = victim.salvage(&store).unwrap();
    assert!(taken.files == victim.now && taken.is_whole());
}

#[test]
fn a_volume_without_its_lock_is_extracted() {
    let victim = Victim::make(false);
    let store = victim.copy();
    unlink(&store, "lock");
    let taken = victim.salvage(&store).unwrap();
    assert!(taken.files == victim.now);
    assert!(taken.files.contains_key(Path::new("sparse")));
}
