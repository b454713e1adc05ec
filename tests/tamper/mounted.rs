//! A small part of the matrix through the kernel: the real program mounts the volume, and the test
//! reads its log.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::real::{Place, command, noise, run};
use crate::support::PAGE;

const TEST: &str = "tampered-mounts";
const LIMIT: Duration = Duration::from_secs(120);

/// Position of the damage in the page; any will do.
const INSIDE: usize = 1234;

/// The written contents.
struct Stored {
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Stored {
    fn new() -> Self {
        let sizes = [("small", 900), ("one", 3 * PAGE), ("two", 5 * PAGE + 7)];
        let files = sizes.into_iter().enumerate();
        let files = files.map(|(seed, (name, len))| (name, noise(seed as u64, len)));
        Self {
            files: files.collect(),
        }
    }

    /// Reads everything. Returns the names of the files that give EIO; all others must have their
    /// contents.
    #[track_caller]
    fn damaged(&self, mnt: &Path, what: &str) -> Vec<&'static str> {
        let mut damaged = Vec::new();
        for (name, bytes) in &self.files {
            match fs::read(mnt.join(name)) {
                Ok(actual) => assert_eq!(&actual, bytes, "{what}: {name}"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {name}");
                    damaged.push(*name);
                }
            }
        }
        damaged
    }
}

/// The objects of a volume, by length: that of `one`, then that of `two`.
fn objects(volume: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(volume.join("objects")).expect("list");
    let entries =
        folders.flat_map(|folder| fs::read_dir(folder.expect("folder").path()).expect("list"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("object").path()).collect();
    paths.sort_by_key(|path| fs::metadata(path).expect("stat").len());
    paths
}

fn flip(path: &Path, at: usize) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at as u64)
        .expect("write");
}

fn replace(path: &Path, by: &str) {
    fs::remove_file(path).expect("remove");
    match by {
        "pipe" => mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo"),
        "link" => symlink("/dev/zero", path).expect("symlink"),
        _ => fs::create_dir(path).expect("mkdir"),
    }
}

/// A change of a volume, and the file that cannot be read then; `None` if it does not mount.
type Attack = (&'static str, fn(&Path), Option<&'static str>);

const ATTACKS: [Attack; 14] = [
    ("nothing", |_| {}, Some("")),
    (
        "a bit of a page",
        |dir| flip(&objects(dir)[1], 4096 + INSIDE),
        Some("two"),
    ),
    (
        "a bit of another object",
        |dir| flip(&objects(dir)[0], INSIDE),
        Some("one"),
    ),
    (
        "an object removed",
        |dir| fs::remove_file(&objects(dir)[0]).expect("remove"),
        Some("one"),
    ),
    (
        "a pipe for an object",
        |dir| replace(&objects(dir)[0], "pipe"),
        Some("one"),
    ),
    (
        "a link for an object",
        |dir| replace(&objects(dir)[1], "link"),
        Some("two"),
    ),
    (
        "a directory for an object",
        |dir| replace(&objects(dir)[1], "directory"),
        Some("two"),
    ),
    (
        "a bit of volume.json",
        |dir| flip(&dir.join("volume.json"), 300),
        None,
    ),
    (
        "a pipe for volume.json",
        |dir| replace(&dir.join("volume.json"), "pipe"),
        None,
    ),
    (
        "a pipe for meta",
        |dir| replace(&dir.join("meta"), "pipe"),
        None,
    ),
    (
        "a pipe for the lock",
        |dir| replace(&dir.join("lock"), "pipe"),
        None,
    ),
    (
        "meta truncated",
        |dir| truncate(&dir.join("meta"), 3 * 4608 + 5),
        None,
    ),
    ("meta empty", |dir| truncate(&dir.join("meta"), 0), None),
    (
        "every page of meta",
        |dir| {
            for page in 0..fs::metadata(dir.join("meta")).expect("stat").len() / 4608 {
                flip(&dir.join("meta"), page as usize * 4608 + INSIDE);
            }
        },
        None,
    ),
];

fn truncate(path: &Path, len: u64) {
    fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(len))
        .expect("set_len");
}

/// Replaces a directory by a copy of another one.
fn put_back(from: &Path, to: &Path) {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
        _ => {}
    }
    run(command("cp", ["-a"]).arg(from).arg(to)).silent();
}

#[test]
fn a_tampered_volume_on_a_real_mount() {
    let Some(place) = Place::new(TEST, LIMIT) else {
        return;
    };
    let stored = Stored::new();
    let mounted = place.fresh("", "");
    for (name, bytes) in &stored.files {
        fs::write(mounted.path(name), bytes).expect("write");
    }
    mounted.unmount();
    let (vol, keystore) = (place.path("vol"), place.path("keystore"));
    let (vol_kept, keystore_kept) = (place.path("vol-kept"), place.path("keystore-kept"));
    put_back(&vol, &vol_kept);
    put_back(&keystore, &keystore_kept);
    for (what, attack, damaged) in ATTACKS {
        put_back(&vol_kept, &vol);
        put_back(&keystore_kept, &keystore);
        let damaged_object = match damaged {
            Some("one") => Some(objects(&vol).swap_remove(0)),
            Some("two") => Some(objects(&vol).swap_remove(1)),
            _ => None,
        };
        attack(&vol);
        let log = place.path("log");
        let _ = fs::remove_file(&log);
        let Some(damaged) = damaged else {
            place.dir("mnt");
            let refused = place.run("mount vol mnt");
            assert_ne!(refused.code, 0, "{what}");
            let said = &refused.stderr;
            let named = ["volume.json", "meta", "lock"]
                .into_iter()
                .find(|name| what.contains(name));
            assert!(said.contains(named.expect("a name")), "{what}: {said}");
            continue;
        };
        let mounted = place.mount("vol", "mnt", "log_file=log");
        let expected: Vec<&str> = Some(damaged)
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        assert_eq!(stored.damaged(mounted.dir(), what), expected, "{what}");
        // The other files can be used.
        fs::write(mounted.path("new"), b"more").expect("write");
        mounted.unmount();
        let log = fs::read_to_string(log).expect("the log");
        if let Some(object) = damaged_object {
            let id = object.file_name().expect("a name").to_str().expect("text");
            assert!(log.contains(id), "{what}: {log}");
        } else {
            assert!(!log.contains("ERROR"), "{what}: {log}");
        }
    }
}
