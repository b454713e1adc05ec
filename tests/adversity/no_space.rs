//! Disks, and a quota, that are full to the last byte: every removal frees space, and the volume
//! can be unmounted and used again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::real::{Mounted, Place, command, have, need, noise, run, wait_until, write_synced};

const LIMIT: Duration = Duration::from_secs(240);
/// How long a filesystem may take until space of removed files can be used again.
const FREED_AFTER: Duration = Duration::from_secs(30);
const LEN: usize = 100_000;

/// A filesystem of some type in a file.
struct Disk(PathBuf);

impl Disk {
    fn new(place: &Place, test: &str, kind: &str, megabytes: u64) -> Option<Self> {
        let mkfs = format!("mkfs.{kind}");
        if !need(have(&mkfs), test, &format!("{mkfs} is missing")) {
            return None;
        }
        let image = place.path("image");
        File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        run(command(&mkfs, ["-q"]).arg(&image)).done();
        let disk = Self(place.dir("disk"));
        let mounted = run(command("mount", ["-o", "loop"]).arg(&image).arg(&disk.0));
        need(mounted.code == 0, test, mounted.stderr.trim()).then_some(disk)
    }

    /// Fills it from beside the volume.
    fn fill(&self) {
        let mut seed = 0;
        while fs::write(self.0.join(format!("other{seed}")), noise(seed, 1 << 20)).is_ok() {
            seed += 1;
        }
        while fs::write(self.0.join(format!("small{seed}")), noise(seed, 4096)).is_ok() {
            seed += 1;
        }
    }

    fn empty(&self) {
        for entry in fs::read_dir(&self.0).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes until the disk is full, and tries a few more times. Returns the number of synced files.
fn fill(mounted: &Mounted<'_>, prefix: &str) -> u64 {
    let (mut number, mut refused) = (0, 0);
    while refused < 5 {
        let path = mounted.path(&format!("{prefix}{number}"));
        match write_synced(&path, &noise(number, LEN)) {
            Ok(()) => number += 1,
            Err(_) => refused += 1,
        }
        assert!(number < 20_000, "it does not get full");
    }
    number
}

/// Removes all files; the directory is on the disk afterwards.
fn remove_all(mounted: &Mounted<'_>) {
    for entry in fs::read_dir(mounted.dir()).unwrap().map(Result::unwrap) {
        fs::remove_file(entry.path()).unwrap();
    }
    File::open(mounted.dir()).unwrap().sync_all().unwrap();
}

#[track_caller]
fn assert_writable(mounted: &Mounted<'_>) {
    let path = mounted.path("again");
    let contents = noise(1, 1 << 20);
    assert!(wait_until(FREED_AFTER, || write_synced(&path, &contents).is_ok()));
}

fn assert_still_usable(place: &Place, disk: Option<&Disk>, volume: &str) {
    place.run(&format!("create {volume}")).done();
    let mut mounted = place.mount(volume, "mnt", "commit=1");
    // Removing files.
    let first = fill(&mounted, "f");
    assert!(first > 100, "{first}");
    assert!(fs::read(mounted.path("f7")).unwrap() == noise(7, LEN));
    remove_all(&mounted);
    assert_writable(&mounted);
    // Unmounting while the volume is full, and so is the disk. Some filesystems free space, or
    // return it to a quota, only after a while.
    remove_all(&mounted);
    assert!(wait_until(FREED_AFTER, || fill(&mounted, "g") > 20));
    if let Some(disk) = disk {
        disk.fill();
    }
    mounted.unmount();
    mounted = place.mount(volume, "mnt", "commit=1");
    assert!(fs::read(mounted.path("g7")).unwrap() == noise(7, LEN));
    for number in 0..20 {
        let file = File::options()
            .write(true)
            .open(mounted.path(&format!("g{number}")));
        file.unwrap().set_len(0).unwrap();
    }
    remove_all(&mounted);
    assert_writable(&mounted);
    if let Some(disk) = disk {
        disk.empty();
    }
    // Deleting a snapshot that uses all of the space.
    remove_all(&mounted);
    for number in 0..first / 2 {
        let (path, contents) = (mounted.path(&format!("s{number}")), noise(number, LEN));
        assert!(wait_until(FREED_AFTER, || write_synced(&path, &contents).is_ok()));
    }
    place.run("snapshot create mnt one").done();
    remove_all(&mounted);
    fill(&mounted, "h");
    place.run("snapshot delete mnt one").done();
    assert_writable(&mounted);
    mounted.unmount();
    place.run(&format!("check {volume}")).done();
}

fn on_disk(test: &'static str, kind: &str, megabytes: u64) {
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(disk) = Disk::new(&place, test, kind, megabytes) else {
        return;
    };
    assert_still_usable(&place, Some(&disk), "disk/vol");
}

#[test]
fn a_full_ext4() {
    on_disk("no-space-ext4", "ext4", 100);
}

#[test]
fn a_full_xfs() {
    on_disk("no-space-xfs", "xfs", 320);
}

#[test]
fn a_full_btrfs() {
    on_disk("no-space-btrfs", "btrfs", 256);
}

/// An overlay whose upper layer is on a full disk.
#[test]
fn a_full_overlay() {
    let test = "no-space-overlay";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(disk) = Disk::new(&place, test, "ext4", 100) else {
        return;
    };
    let lower = place.dir("lower");
    let [upper, work] = ["upper", "work"].map(|name| {
        let path = disk.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let overlay = Disk(place.dir("overlay"));
    let mut mount = command("mount", ["-t", "overlay", "overlay", "-o", &layers]);
    let mounted = run(mount.arg(&overlay.0));
    if need(mounted.code == 0, test, mounted.stderr.trim()) {
        assert_still_usable(&place, Some(&overlay), "overlay/vol");
    }
}

/// A sparse disk that is larger than the one on which it is: data that it has accepted cannot be
/// written, and its filesystem may become unusable. Nothing that was synced is lost, and everything
/// works when there is space again.
#[test]
fn a_sparse_disk_on_a_full_one() {
    let test = "no-space-sparse";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(outer) = Disk::new(&place, test, "ext4", 100) else {
        return;
    };
    let image = outer.0.join("image");
    File::create(&image).unwrap().set_len(400 << 20).unwrap();
    run(command("mkfs.ext4", ["-q"]).arg(&image)).done();
    fs::write(outer.0.join("filler"), noise(1, 30 << 20)).unwrap();
    let inner = Disk(place.dir("inner"));
    let mount = || {
        let options = ["-o", "loop,errors=remount-ro"];
        run(command("mount", options).arg(&image).arg(&inner.0)).done()
    };
    mount();
    place.run("create inner/vol").done();
    let mounted = place.mount("inner/vol", "mnt", "commit=1");
    let mut synced = Vec::new();
    for number in 0..4000 {
        let path = mounted.path(&format!("f{number}"));
        match write_synced(&path, &noise(number, LEN)) {
            Ok(()) => synced.push(number),
            Err(_) => break,
        }
    }
    assert!(synced.len() > 50 && synced.len() < 4000, "{}", synced.len());
    // What it says of itself, and its exit code, are those of a disk that has failed.
    run(place.bilayer(["unmount"]).arg(mounted.dir()));
    drop(mounted);
    fs::remove_file(outer.0.join("filler")).unwrap();
    let unmount = || run(&mut command("umount", [&inner.0])).code == 0;
    assert!(wait_until(Duration::from_secs(60), unmount));
    let checked = run(command("e2fsck", ["-fy"]).arg(&image));
    assert!(checked.code <= 1, "{checked:?}");
    mount();
    let mounted = place.mount("inner/vol", "mnt", "commit=1");
    for number in synced {
        let read = fs::read(mounted.path(&format!("f{number}"))).unwrap();
        assert!(read == noise(number, LEN), "f{number}");
    }
    assert_writable(&mounted);
    mounted.unmount();
    place.run("check inner/vol").done();
}

/// A quota of btrfs, which every kernel with btrfs supports.
#[test]
fn a_full_quota() {
    let test = "no-space-quota";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(disk) = Disk::new(&place, test, "btrfs", 600) else {
        return;
    };
    let btrfs = |words: &[&str], path: &Path| run(command("btrfs", words).arg(path)).code == 0;
    let sub = disk.0.join("sub");
    let limited = btrfs(&["-q", "subvolume", "create"], &sub)
        && btrfs(&["quota", "enable"], &disk.0)
        && btrfs(&["qgroup", "limit", "80M"], &sub);
    if need(limited, test, "this btrfs has no quota groups") {
        assert_still_usable(&place, None, "disk/sub/vol");
    }
}
