//! rsync of a tree with files of every kind, in both directions: no difference in content or
//! attributes. A second run over the copy changes in place only what has changed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use crate::real::{Place, command, run_within};
use crate::script::{SCRIPT_LIMIT, TEST_LIMIT, equipped, script};
use crate::tree;

/// The tree of `tests/mounted`, with files that only root can create and the times that a disk can
/// have.
pub(crate) fn make(root: &Path) {
    tree::make(root);
    let special = root.join("special");
    fs::create_dir(&special).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    for (name, kind, number) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        (
            "large number",
            FileType::CharacterDevice,
            makedev(4000, 70_000),
        ),
        ("disk", FileType::BlockDevice, makedev(259, 1)),
        ("fifo", FileType::Fifo, 0),
    ] {
        mknodat(CWD, special.join(name), kind, mode, number).unwrap();
    }
    fs::hard_link(special.join("null"), special.join("null again")).unwrap();
    fs::hard_link(special.join("fifo"), special.join("fifo again")).unwrap();
    drop(UnixListener::bind(special.join("socket")).unwrap());
    let marked = special.join("with attributes of the system's");
    fs::write(&marked, "x").unwrap();
    // Version 2 of the attribute, `cap_net_raw=ep`.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    for (name, value) in [
        ("security.capability", &capability[..]),
        ("trusted.of.root", b"only"),
    ] {
        setxattr(&marked, name, value, XattrFlags::empty()).unwrap();
    }
    times(&root.join("times"));
}

/// Times before 1970, with fractions too, and beyond 32 bits.
fn times(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let before = |seconds, nanos| UNIX_EPOCH - Duration::new(seconds, nanos);
    let after = |seconds, nanos| UNIX_EPOCH + Duration::new(seconds, nanos);
    for (name, time) in [
        ("1901", before(2_147_483_648, 0)),
        ("1969", before(0, 500_000_001)),
        ("1969, the last second", before(1, 0)),
        ("2038", after(2_147_483_648, 999_999_999)),
        ("2106", after(4_294_967_296, 1)),
        ("2400", after(13_569_465_600, 0)),
    ] {
        let path = dir.join(name);
        File::create(&path).unwrap().set_modified(time).unwrap();
        let dir = dir.join(format!("directory of {name}"));
        fs::create_dir(&dir).unwrap();
        File::open(&dir).unwrap().set_modified(time).unwrap();
    }
}

fn rsync(options: &[&str], from: &Path, to: &Path) -> std::process::Command {
    // Times to the nanosecond; the default is whole seconds.
    let mut rsync = command("rsync", ["-aHAX", "--modify-window=-1"]);
    rsync.args(options);
    rsync.arg(format!("{}/", from.display()));
    rsync.arg(format!("{}/", to.display()));
    rsync
}

#[track_caller]
fn copy(options: &[&str], from: &Path, to: &Path) {
    run_within(&mut rsync(options, from, to), SCRIPT_LIMIT).silent();
}

/// rsync has nothing to do in either direction, and by find(1) the two are identical to the
/// nanosecond.
#[track_caller]
pub(crate) fn assert_same(place: &Place, one: &Path, other: &Path) {
    for (from, to) in [(one, other), (other, one)] {
        let options = ["-n", "--checksum", "--itemize-changes", "--delete"];
        run_within(&mut rsync(&options, from, to), SCRIPT_LIMIT).silent();
    }
    let list = |dir: &Path| {
        // The size and link count of a directory depend on the filesystem.
        let find = r"find . \( -type d -printf '%p %m %U %G %T@\0' \) -o \
                     -printf '%p %y %m %U %G %n %s %T@ %l\0' | sort -z | tr '\0' '\n'";
        script(place, dir, find).stdout
    };
    let (listed, copied) = (list(one), list(other));
    assert!(listed.lines().count() > 150, "{listed}");
    for (listed, copied) in listed.lines().zip(copied.lines()) {
        assert_eq!(listed, copied);
    }
    assert_eq!(listed, copied);
}

/// Changes a source as usual work does: some bytes in the middle, a truncation, more at the end,
/// holes in place of data, names moved and removed.
fn work_on(root: &Path) {
    let at = |name: &str| root.join(name);
    let open = |name: &str| File::options().write(true).open(at(name)).unwrap();
    open("length-4194305")
        .write_all_at(b"changed", 2_000_003)
        .unwrap();
    open("length-4194304").set_len(1_000_001).unwrap();
    let appended = File::options().append(true).open(at("length-4033"));
    appended.unwrap().write_all(&[b'a'; 100_000]).unwrap();
    open("sparse").write_all_at(b"more", 15_000_000).unwrap();
    fs::write(at("length-4095"), vec![0; 300_000]).unwrap();
    fs::rename(at("texts"), at("renamed texts")).unwrap();
    fs::remove_file(at("links/second")).unwrap();
    fs::remove_dir(at("attributes/sticky")).unwrap();
    fs::write(at("attributes/sticky"), "a file where a directory was").unwrap();
}

#[test]
fn rsync_there_and_back() {
    let test = "rsync";
    if !equipped(test, &[("rsync", "rsync"), ("find", "findutils")]) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let (source, back) = (place.path("source"), place.path("back"));
    make(&source);
    let mounted = place.fresh("", "dev,suid");
    let there = mounted.path("there");
    copy(&["--inplace"], &source, &there);
    assert_same(&place, &source, &there);
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "dev,suid");
    assert_same(&place, &source, &there);
    copy(&["--inplace", "--sparse"], &there, &back);
    assert_same(&place, &source, &back);
    // Within the mount, through temporary files.
    copy(&["--sparse"], &there, &mounted.path("again"));
    assert_same(&place, &source, &mounted.path("again"));

    // Only differences are transferred, into existing files.
    work_on(&source);
    let in_place = ["--inplace", "--no-whole-file", "--delete"];
    copy(&in_place, &source, &there);
    assert_same(&place, &source, &there);
    // Links to unchanged files: a common kind of backup.
    let old = format!("--link-dest={}", there.display());
    copy(&[&old], &source, &mounted.path("linked"));
    assert_same(&place, &there, &mounted.path("linked"));
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "dev,suid");
    assert_same(&place, &there, &mounted.path("linked"));
    fs::remove_dir_all(mounted.path("linked")).unwrap();
    assert_same(&place, &source, &there);
    // A file of 30 MB that is almost only a hole.
    let used = fs::metadata(mounted.path("again/sparse")).unwrap().blocks() * 512;
    assert!(used < 1_000_000, "{used} bytes are allocated");
    mounted.unmount();
}
