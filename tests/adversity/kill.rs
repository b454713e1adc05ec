//! The daemon is killed while it works: the next mount needs no help, and everything that a
//! completed fsync covered exists byte for byte.
//!
//! `BILAYER_TESTS_KILL_ROUNDS` sets the number of rounds (5).

use std::fs;
use std::time::Duration;

use crate::real::{Mounted, Place, noise};
use crate::writers::Writer;

const WRITERS: u64 = 4;

fn rounds() -> u64 {
    let rounds = std::env::var("BILAYER_TESTS_KILL_ROUNDS");
    rounds.map_or(5, |text| text.parse().expect("a number of rounds"))
}

#[test]
fn synced_data_survives_a_killed_daemon() {
    let Some(place) = Place::new("kill", Duration::from_secs(60 + 30 * rounds())) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    place.run("create vol --customer-key file:key.pem").done();
    let mounted = place.mount("vol", "mnt", "");
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|number| Writer::new(mounted.dir(), number))
        .collect();
    mounted.unmount();
    let mut guaranteed = 0;
    for round in 0..rounds() {
        // So that some kills also interrupt the commit timer.
        let mounted = place.mount("vol", "mnt", "commit=1");
        place.run("check mnt").done();
        writers.iter_mut().for_each(Writer::check);
        kill_while_writing(&place, mounted, round, &mut writers);
        guaranteed = writers.iter().map(Writer::guaranteed).sum();
        eprintln!("round {round}: {guaranteed} files were guaranteed");
    }
    let mounted = place.mount("vol", "mnt", "");
    writers.iter_mut().for_each(Writer::check);
    assert!(guaranteed > 20, "{guaranteed}");
    mounted.unmount();
    // The volume is still usable as before.
    let mounted = place.mount("vol", "mnt", "");
    place.run("check mnt").done();
    writers.iter_mut().for_each(Writer::check);
    for number in 0..WRITERS {
        fs::remove_dir_all(mounted.path(&format!("writer-{number}"))).unwrap();
    }
    mounted.unmount();
}

/// All writers write until the daemon is killed.
fn kill_while_writing(place: &Place, mounted: Mounted<'_>, round: u64, writers: &mut [Writer]) {
    let millis = 200 + u64::from(noise(round + 77, 1)[0]) * 6;
    std::thread::scope(|scope| {
        for writer in writers {
            scope.spawn(|| {
                let stopped = writer.work(u64::MAX >> 1);
                assert!(stopped.is_err());
            });
        }
        std::thread::sleep(Duration::from_millis(millis / 2));
        if round % 3 == 1 {
            // Data in a snapshot is never overwritten in place.
            place
                .run(&format!("snapshot create mnt round-{round}"))
                .done();
        }
        std::thread::sleep(Duration::from_millis(millis / 2));
        mounted.kill();
    });
    mounted.take_away();
}
