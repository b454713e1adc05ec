//! The daemon's memory is bounded. With less than that, the kernel kills it, which is like any
//! other kill.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::real::{Place, is_alive, noise, wait_until, write_synced};

/// The memory that docs/DURABILITY.md calls sufficient with default options.
const ENOUGH: u64 = 384 << 20;
const SMALL_FILES: u64 = 20_000;
const OPEN_FILES: u64 = 3_000;

#[test]
fn memory_stays_within_the_documented_bound() {
    let test = "memory-bound";
    let Some(place) = Place::new(test, Duration::from_secs(300)) else {
        return;
    };
    let Some(group) = Cgroup::new(test, ENOUGH) else {
        return;
    };
    place.run("create vol").done();
    // Timed commits would come too late to help.
    let mounted = group.mount(&place, "vol", "commit=300");
    write_synced(&mounted.path("synced"), &noise(7, 100_000)).unwrap();
    let open = open_many(mounted.dir());
    small_files(mounted.dir());
    write_much(&mounted.path("large"));
    // Snapshots, with new data in each.
    for round in 0..30u8 {
        place.run(&format!("snapshot create mnt s{round}")).done();
        for (number, file) in open.iter().enumerate().skip(usize::from(round)).step_by(40) {
            file.write_all_at(&[round; 5000], number as u64 % 3 * 4000)
                .unwrap();
        }
    }
    small_files(mounted.dir());
    place.run("check mnt").done();
    assert!(is_alive(mounted.pid), "the daemon was killed");
    open.iter()
        .take(50)
        .for_each(|file| file.sync_all().unwrap());
    assert!(fs::read(mounted.path("synced")).unwrap() == noise(7, 100_000));
    let held = high_water_mark(mounted.pid);
    eprintln!("at most {} MiB were held", held >> 20);
    assert!(held < ENOUGH);
    drop(open);
    mounted.unmount();
}

/// The peak memory of a process, in bytes.
fn high_water_mark(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

fn open_many(dir: &Path) -> Vec<File> {
    let open = |number| {
        let path = dir.join(format!("open-{number}"));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        let mut file = file.unwrap();
        file.write_all(&noise(number, 9_000)).unwrap();
        file
    };
    (0..OPEN_FILES).map(open).collect()
}

/// Creates or overwrites many files, and syncs none.
fn small_files(dir: &Path) {
    for number in 0..SMALL_FILES {
        let dir = dir.join(format!("dir-{}", number / 1000));
        if number % 1000 == 0 && !dir.exists() {
            fs::create_dir(&dir).unwrap();
        }
        let mut options = OpenOptions::new();
        let path = dir.join(format!("{number}"));
        let file = options.create(true).truncate(false).write(true).open(path);
        file.unwrap().write_all(&noise(number, 2000)).unwrap();
    }
}

fn write_much(path: &Path) {
    let mut file = File::create(path).unwrap();
    let piece = noise(3, 1 << 20);
    (0..300).for_each(|_| file.write_all(&piece).unwrap());
}

/// Far too little memory, and a long commit interval.
#[test]
fn a_daemon_killed_for_lack_of_memory_loses_nothing() {
    let test = "memory-gone";
    let Some(place) = Place::new(test, Duration::from_secs(200)) else {
        return;
    };
    let Some(group) = Cgroup::new(test, 64 << 20) else {
        return;
    };
    place.run("create vol").done();
    let options = "commit=300,pending=1G,meta_cache=1G";
    let mounted = group.mount(&place, "vol", options);
    for seed in 0..50 {
        let path = mounted.path(&format!("synced-{seed}"));
        write_synced(&path, &noise(seed, 9_000)).unwrap();
    }
    let mut failed = false;
    for number in 0..400_000u64 {
        let path = mounted.path(&format!("filler-{number}"));
        if fs::write(path, [1; 2000]).is_err() {
            failed = true;
            break;
        }
    }
    assert!(failed, "the limit has no effect");
    let gone = wait_until(Duration::from_secs(30), || !is_alive(mounted.pid));
    assert!(gone, "writers get errors, but the daemon is alive");
    mounted.kill();
    mounted.take_away();
    let mounted = place.mount("vol", "mnt", "");
    for seed in 0..50 {
        let actual = fs::read(mounted.path(&format!("synced-{seed}"))).unwrap();
        assert!(actual == noise(seed, 9_000), "synced-{seed}");
    }
    mounted.unmount();
    place.run("check vol").done();
}
