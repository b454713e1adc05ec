//! The daemon killed in the middle of work: the next mount needs no help, and what a completed
//! fsync covered is there byte for byte.
//!
//! `BILAYER_TESTS_CRASH_ROUNDS` sets how often (5).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::real::{Mounted, Place, noise, write_synced};

/// What is known to be on disk: name to seed and length.
type Manifest = BTreeMap<String, (u64, usize)>;

fn rounds() -> u64 {
    let rounds = std::env::var("BILAYER_TESTS_CRASH_ROUNDS");
    rounds.map_or(5, |text| text.parse().expect("a number of rounds"))
}

/// Lengths as they come in real trees, some of them beyond a chunk.
fn length(seed: u64) -> usize {
    let random = u64::from_le_bytes(noise(seed, 8).try_into().unwrap());
    match random % 20 {
        0 => 4_194_304 + (random >> 8) as usize % 500_000,
        1..=4 => (random >> 8) as usize % 300_000,
        _ => (random >> 8) as usize % 9_000,
    }
}

#[test]
fn what_was_synced_survives_a_killed_daemon() {
    let Some(place) = Place::new("crash", Duration::from_secs(60 + 20 * rounds())) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    place.run("create vol --customer-key file:key.pem").done();
    let mut manifest = Manifest::new();
    for round in 0..rounds() {
        // The commit timer, too, meets some of the kills.
        let mounted = place.mount("vol", "mnt", "commit=1");
        check(mounted.dir(), &manifest, round);
        kill_while_writing(mounted, round, &mut manifest);
    }
    let mounted = place.mount("vol", "mnt", "");
    check(mounted.dir(), &manifest, rounds());
    assert!(manifest.len() as u64 > 5 * rounds(), "{}", manifest.len());
    // It is an ordinary filesystem still.
    for name in manifest.keys() {
        fs::remove_file(mounted.path(name)).unwrap();
    }
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    assert!(manifest.keys().all(|name| !mounted.path(name).exists()));
    mounted.unmount();
}

/// Writes until the daemon is killed by another thread; notes what was synced.
fn kill_while_writing(mounted: Mounted<'_>, round: u64, manifest: &mut Manifest) {
    let millis = 300 + u64::from(noise(round + 77, 1)[0]) * 5;
    let dir = mounted.dir().to_owned();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until_it_fails(&dir, round, manifest));
        scope.spawn(|| copy_without_syncing(&dir, round));
        std::thread::sleep(Duration::from_millis(millis));
        mounted.kill();
        writer.join().unwrap();
    });
    mounted.take_away();
}

fn write_until_it_fails(dir: &Path, round: u64, manifest: &mut Manifest) {
    for number in 0.. {
        let name = format!("synced-{round}-{number}");
        let seed = round << 32 | number;
        let path = dir.join(&name);
        if write_synced(&path, &noise(seed, length(seed))).is_err() {
            return;
        }
        manifest.insert(name, (seed, length(seed)));
        // An older one is written over and renamed into place, as editors do.
        let Some(older) = manifest.keys().nth(number as usize / 2).cloned() else {
            continue;
        };
        if number % 3 == 0 {
            // Whether the old or the new one is there when it fails here is open.
            let (before, seed) = (manifest[&older], seed | 1 << 60);
            let aside = dir.join("aside");
            manifest.remove(&older);
            let replaced = write_synced(&aside, &noise(seed, length(seed)))
                .and_then(|()| fs::rename(&aside, dir.join(&older)))
                .and_then(|()| File::open(dir)?.sync_all());
            match replaced {
                Ok(()) => manifest.insert(older, (seed, length(seed))),
                Err(_) if !aside.exists() => return,
                Err(_) => manifest.insert(older, before),
            };
        }
    }
}

/// Work that is under way when the daemon goes, and that nobody was promised.
fn copy_without_syncing(dir: &Path, round: u64) {
    for number in 0..u64::MAX {
        let seed = round << 32 | number | 1 << 61;
        let path = dir.join(format!("unsynced-{}", number % 50));
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&noise(seed, 100_000))?;
            fs::rename(&path, dir.join(format!("renamed-{}", number % 20)))
        });
        if written.is_err() {
            return;
        }
    }
}

fn check(dir: &Path, manifest: &Manifest, round: u64) {
    for (name, &(seed, len)) in manifest {
        let found = fs::read(dir.join(name))
            .unwrap_or_else(|error| panic!("before round {round}: {name}: {error}"));
        assert!(
            found == noise(seed, len),
            "before round {round}: {name} is not what was synced"
        );
    }
    // What was not synced is there in part, or not; whatever is there can be read.
    for entry in fs::read_dir(dir).unwrap() {
        fs::read(entry.unwrap().path()).unwrap();
    }
}
