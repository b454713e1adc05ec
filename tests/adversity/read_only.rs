//! The backing filesystem becomes read-only below a mount, as ext4 does after an error of its disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::disk::SmallDisk;
use crate::real::{Place, need, noise, run, wait_until, write_synced};

#[test]
fn a_backing_filesystem_that_becomes_read_only() {
    let test = "read-only-below";
    let Some(place) = Place::new(test, Duration::from_secs(100)) else {
        return;
    };
    let Some(disk) = SmallDisk::new(&place, 64, test) else {
        return;
    };
    let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device());
    let there = fs::exists(&trigger).unwrap_or(false);
    if !need(there, test, "ext4 has no file to report an error through") {
        return;
    }
    place.run("create disk/vol").done();
    let log = place.path("log");
    let options = format!("log_file={},commit=1", log.display());
    let mounted = place.mount("disk/vol", "mnt", &options);
    for seed in 0..20 {
        let path = mounted.path(&format!("synced-{seed}"));
        write_synced(&path, &noise(seed, 40_000)).unwrap();
    }
    let open = File::options()
        .write(true)
        .open(mounted.path("synced-0"))
        .unwrap();

    fs::write(&trigger, "1").unwrap();
    // Callers get an error, and from then on nothing may be changed.
    open.write_all_at(&[1; 5000], 100_000).ok();
    assert!(is_reported(open.sync_all()), "fsync");
    let latched = || {
        let written = fs::write(mounted.path("new"), b"x");
        written.is_err_and(|error| error.raw_os_error() == Some(libc::EROFS))
    };
    assert!(wait_until(Duration::from_secs(20), latched), "not latched");
    assert!(is_reported(write_synced(&mounted.path("other"), b"y")));
    // Synced data can be read all the time.
    for seed in 0..20 {
        let actual = fs::read(mounted.path(&format!("synced-{seed}"))).unwrap();
        assert!(actual[..40_000] == noise(seed, 40_000), "synced-{seed}");
    }
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("read-only from now on"), "{said}");
    let health = place.status(mounted.dir())["health"].to_string();
    assert!(
        health.starts_with("\"read-only after an error: "),
        "{health}"
    );
    drop(open);
    // The command reports that not everything could be saved.
    let unmounted = run(place.bilayer(["unmount"]).arg(mounted.dir()));
    assert_ne!(unmounted.code, 0, "{unmounted:?}");
    assert!(wait_until(Duration::from_secs(20), || !mounted.is_there()));
    drop(mounted);

    disk.repair();
    disk.mount().unwrap();
    let mounted = place.mount("disk/vol", "mnt", "");
    for seed in 0..20 {
        let actual = fs::read(mounted.path(&format!("synced-{seed}"))).unwrap();
        assert!(actual[..40_000] == noise(seed, 40_000), "synced-{seed}");
        assert!(seed == 0 || actual.len() == 40_000);
    }
    write_synced(&mounted.path("after"), &noise(99, 50_000)).unwrap();
    mounted.unmount();
    place.run("check disk/vol").done();
}

fn is_reported(result: io::Result<()>) -> bool {
    let code = result.err().and_then(|error| error.raw_os_error());
    matches!(code, Some(libc::EIO | libc::EROFS))
}
