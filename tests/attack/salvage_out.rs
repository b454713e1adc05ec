//! The attacker is an ordinary user of the machine on which root salvages: they offer a directory
//! of theirs to write to, or exchange a created file for a link to a file of root's.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bilayer::meta::records::{FileKind, InodeRecord, Timespec};
use bilayer::salvage::output::{Attributes, OutputDir, create_special, finish_special};

use crate::real::{Outcome, Place, command, need, noise, run};

/// An ordinary user.
const USER: u32 = 1000;

/// A volume with something in it, unmounted.
fn place(test: &'static str) -> Option<Place> {
    let place = Place::new(test, Duration::from_secs(100))?;
    let mounted = place.fresh("", "");
    fs::write(mounted.path("secret"), noise(7, 50_000)).unwrap();
    let pipe = mounted.path("pipe");
    run(command("mkfifo", [&pipe]).current_dir("/")).done();
    fs::set_permissions(&pipe, fs::Permissions::from_mode(0o4777)).unwrap();
    mounted.unmount();
    Some(place)
}

#[track_caller]
fn refused(outcome: &Outcome, says: &str) {
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(says), "{outcome:?}");
}

/// Everything that is in a directory.
fn names(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).unwrap();
    listed.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_directory_of_somebody_else_is_not_written_to() {
    let Some(place) = place("attack-salvage-foreign") else {
        return;
    };
    let theirs = place.dir("theirs");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&theirs, Some(USER), Some(USER)).unwrap();
    refused(&place.run("salvage vol theirs"), "belongs to user 1000");
    // Through a symbolic link of theirs, too.
    symlink(&theirs, place.path("link")).unwrap();
    refused(&place.run("salvage vol link"), "belongs to user 1000");
    assert!(names(&theirs).is_empty());
    let mode = fs::metadata(&theirs).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o700, "it is as it was");
    // Inside a directory of theirs salvage creates one of its own, which they cannot enter.
    place.run("salvage vol theirs/out").done();
    let made = fs::metadata(theirs.join("out")).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (0, 0o700));
}

#[test]
fn a_directory_that_others_write_to_is_not_written_to() {
    let Some(place) = place("attack-salvage-shared") else {
        return;
    };
    let open = place.dir("open");
    for mode in [0o777, 0o1777, 0o770] {
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        refused(&place.run("salvage vol open"), "others may write to it");
    }
    assert!(names(&open).is_empty());
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    place.run("salvage vol open").done();
    assert_eq!(fs::metadata(&open).unwrap().mode() & 0o7777, 0o700);
    let pipe = fs::symlink_metadata(open.join("files/pipe")).unwrap();
    assert_eq!(pipe.mode() & 0o7777, 0o4777);
}

/// Nothing is written to the volume through another path to it.
#[test]
fn a_directory_within_the_volume_is_not_written_to_by_way_of_a_bind_mount() {
    let Some(place) = place("attack-salvage-bound") else {
        return;
    };
    let bound = place.dir("bound");
    let folders = names(&place.path("vol/objects"));
    let inside = [
        place.path("vol"),
        place.path("vol/objects"),
        folders.first().unwrap().clone(),
    ];
    for source in inside {
        run(command("mount", ["--bind"]).arg(&source).arg(&bound)).done();
        let before = names(&source);
        refused(&place.run("salvage vol bound/out"), "within the volume");
        refused(&place.run("salvage vol bound"), "within the volume");
        assert_eq!(names(&source), before);
        run(command("umount", ["-i"]).arg(&bound)).done();
    }
}

/// A file of root's that the attacker wants changed.
struct Prize {
    path: PathBuf,
}

impl Prize {
    fn new(dir: &Path) -> Self {
        let path = dir.join("prize");
        fs::write(&path, "root's").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self { path }
    }

    #[track_caller]
    fn is_untouched(&self) {
        let metadata = fs::symlink_metadata(&self.path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert!(metadata.mtime() > 1_000_000_000, "times are its own");
        let mut value = [0; 16];
        assert!(rustix::fs::lgetxattr(&self.path, "trusted.of", &mut value).is_err());
    }
}

/// A pipe of the attacker's that anybody may write to, from the distant past.
fn pipe() -> InodeRecord {
    let past = Timespec { secs: 1, nanos: 0 };
    InodeRecord {
        uid: USER,
        gid: USER,
        atime: past,
        mtime: past,
        ..InodeRecord::new(FileKind::Fifo, 0o6777, Timespec::now())
    }
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    need(root, test, "giving files away takes root")
}

/// A directory in which the attacker may exchange names, like one that everybody may write to.
fn shared_out(dir: &Path) -> OutputDir {
    let out = OutputDir::prepare(&dir.join("out"), None).unwrap();
    fs::set_permissions(dir.join("out"), fs::Permissions::from_mode(0o777)).unwrap();
    out
}

/// Between the creation of a pipe and the change of its owner, its name is exchanged for a link.
#[test]
fn a_link_in_a_pipes_place_is_not_followed() {
    if !is_root("a_link_in_a_pipes_place_is_not_followed") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (prize, out) = (Prize::new(dir.path()), shared_out(dir.path()));
    let inode = pipe();
    let xattrs = [(b"trusted.of".to_vec(), b"attacker".to_vec())];
    let attributes = Attributes {
        inode: &inode,
        xattrs: &xattrs,
    };
    let made = create_special(out.root(), b"pipe", &inode).unwrap();
    let name = dir.path().join("out/pipe");
    let aside = dir.path().join("out/aside");
    fs::rename(&name, &aside).unwrap();
    symlink(&prize.path, &name).unwrap();
    let unset = finish_special(made.as_fd(), &attributes, true);
    assert!(unset.is_empty(), "{unset:?}");
    prize.is_untouched();
    // The created file got all attributes, whatever its name is now.
    let metadata = fs::symlink_metadata(&aside).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (USER, 0o6777));
    assert_eq!(metadata.mtime(), 1);
    let mut value = [0; 16];
    let len = rustix::fs::lgetxattr(&aside, "trusted.of", &mut value).unwrap();
    assert_eq!(value[..len], *b"attacker");
}

/// A salvaged symbolic link gets its owner and times itself.
#[test]
fn attributes_of_a_link_are_its_own() {
    if !is_root("attributes_of_a_link_are_its_own") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (prize, out) = (Prize::new(dir.path()), shared_out(dir.path()));
    let inode = InodeRecord {
        target: prize.path.to_str().unwrap().as_bytes().to_vec(),
        kind: FileKind::Symlink,
        ..pipe()
    };
    let xattrs = [(b"trusted.of".to_vec(), b"attacker".to_vec())];
    let attributes = Attributes {
        inode: &inode,
        xattrs: &xattrs,
    };
    let made = create_special(out.root(), b"link", &inode).unwrap();
    let unset = finish_special(made.as_fd(), &attributes, true);
    assert!(unset.is_empty(), "{unset:?}");
    prize.is_untouched();
    let metadata = fs::symlink_metadata(dir.path().join("out/link")).unwrap();
    assert_eq!((metadata.uid(), metadata.mtime()), (USER, 1));
}

/// The same race run for real, in both gaps: in any order, only the created file is changed.
#[test]
fn a_race_changes_only_the_created_file() {
    if !is_root("a_race_changes_only_the_created_file") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (prize, out) = (Prize::new(dir.path()), shared_out(dir.path()));
    let name = dir.path().join("out/pipe");
    let over = AtomicBool::new(false);
    let inode = pipe();
    let attributes = Attributes {
        inode: &inode,
        xattrs: &[],
    };
    let (mut won, mut lost) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let link = dir.path().join("out/next");
            for hard in [false, true].into_iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let made = match hard {
                    true => fs::hard_link(&prize.path, &link),
                    false => symlink(&prize.path, &link),
                };
                if made.is_ok() && fs::symlink_metadata(&name).is_ok() {
                    let _ = fs::rename(&link, &name);
                }
                let _ = fs::remove_file(&link);
            }
        });
        for _ in 0..20_000 {
            match create_special(out.root(), b"pipe", &inode) {
                Ok(made) => {
                    finish_special(made.as_fd(), &attributes, true);
                    won += 1;
                }
                Err(_) => lost += 1,
            }
            let _ = fs::remove_file(&name);
        }
        over.store(true, Ordering::Relaxed);
    });
    prize.is_untouched();
    assert!(won > 0 && lost > 0, "no race: won {won}, lost {lost}");
}
