//! More dirty data than the daemon has memory, and a slow disk: writers are slowed down, memory
//! stays bounded, and fsync keeps its guarantee.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::disk::SmallDisk;
use crate::real::{Place, is_alive, noise};

/// Write rate of the disk, in bytes per second.
const BYTES_PER_SECOND: u64 = 12 << 20;
/// Memory limit of the daemon.
const MEMORY: u64 = 96 << 20;
/// Bytes that are written: more than the daemon's memory.
const WRITTEN_MIB: u64 = 160;

/// A limit of the rate at which a device is written. It is set for the root control group, since
/// the kernel does the writing. Removed on drop.
struct Throttle {
    file: PathBuf,
    device: String,
}

impl Throttle {
    fn new(disk: &SmallDisk) -> Option<Self> {
        let number = fs::read_to_string(format!("/sys/block/{}/dev", disk.device())).ok()?;
        let throttle = Self {
            file: "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device".into(),
            device: number.trim().to_owned(),
        };
        throttle.set(BYTES_PER_SECOND).ok()?;
        Some(throttle)
    }

    fn set(&self, bytes_per_second: u64) -> std::io::Result<()> {
        fs::write(&self.file, format!("{} {bytes_per_second}", self.device))
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _ = self.set(0);
    }
}

#[test]
fn a_disk_slower_than_its_writers() {
    let test = "slow-disk";
    let Some(place) = Place::new(test, Duration::from_secs(240)) else {
        return;
    };
    let Some(disk) = SmallDisk::new(&place, 400, test) else {
        return;
    };
    let Some(group) = Cgroup::new(test, MEMORY) else {
        return;
    };
    let Some(throttle) = Throttle::new(&disk) else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {test}: the rate of a device cannot be limited here"
        );
        return;
    };
    place.run("create disk/vol").done();
    let mounted = group.mount(&place, "disk/vol", "meta_cache=16M,pending=4M");
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let path = mounted.path(&format!("large-{writer}"));
            scope.spawn(move || {
                let mut file = File::create(path).unwrap();
                for piece in 0..WRITTEN_MIB / 2 {
                    file.write_all(&noise(writer << 32 | piece, 1 << 20))
                        .unwrap();
                }
                file.sync_all().unwrap();
            });
        }
        // Small files among them, each of them synced.
        for number in 0..20 {
            let path = mounted.path(&format!("small-{number}"));
            crate::real::write_synced(&path, &noise(number, 3000)).unwrap();
        }
    });
    assert!(is_alive(mounted.pid), "the daemon was killed");
    // Synced data is on the disk: nothing else writes it now.
    mounted.kill();
    mounted.take_away();
    drop(throttle);
    let mounted = place.mount("disk/vol", "mnt", "");
    for writer in 0..2u64 {
        let mut file = File::open(mounted.path(&format!("large-{writer}"))).unwrap();
        let mut actual = vec![0; 1 << 20];
        for piece in 0..WRITTEN_MIB / 2 {
            file.read_exact(&mut actual).unwrap();
            assert!(actual == noise(writer << 32 | piece, 1 << 20), "{piece}");
        }
    }
    for number in 0..20 {
        let actual = fs::read(mounted.path(&format!("small-{number}"))).unwrap();
        assert!(actual == noise(number, 3000), "small-{number}");
    }
    mounted.unmount();
    place.run("check disk/vol").done();
}
