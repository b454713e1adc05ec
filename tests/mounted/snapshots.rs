//! Snapshots and images through the kernel: with ordinary tools, with dirty data in the kernel's
//! cache, with users.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::real::{Mounted, Place, as_user, can_switch_users, command, have, need, noise, run};

const LIMIT: Duration = Duration::from_secs(100);
/// A user who is not root.
const OTHER: u32 = 1;

fn shell(dir: &Path, script: &str) -> Command {
    let mut shell = command("sh", ["-euxc", script]);
    shell.current_dir(dir);
    shell
}

fn fill(mounted: &Mounted<'_>) {
    fs::create_dir_all(mounted.path("tree/below")).unwrap();
    fs::write(mounted.path("tree/small"), b"small").unwrap();
    fs::write(mounted.path("tree/below/large"), noise(1, 6_000_000)).unwrap();
    std::os::unix::fs::symlink("small", mounted.path("tree/link")).unwrap();
    fs::set_permissions(mounted.path("tree/small"), PermissionsExt::from_mode(0o640)).unwrap();
}

#[test]
fn plain_tools_take_read_and_drop_snapshots() {
    let test = "snapshot-tools";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let tools = ["rsync", "diff", "tar"];
    if !need(
        tools.iter().all(|tool| have(tool)),
        test,
        "rsync, diff or tar is missing",
    ) {
        return;
    }
    let mounted = place.fresh("", "");
    fill(&mounted);
    run(&mut shell(
        mounted.dir(),
        "cp -a tree before
         mkdir .snapshots/monday
         test -z \"$(ls -A | grep snapshots)\"
         test \"$(ls -A .snapshots)\" = monday
         echo changed >> tree/small; rm tree/below/large; mkdir tree/new
         diff -r before .snapshots/monday/tree
         test \"$(diff -rq tree .snapshots/monday/tree | wc -l)\" = 4
         cp -a .snapshots/monday/tree out
         diff -r before out
         rsync -aHX --checksum .snapshots/monday/tree/ synced
         diff -r before synced
         tar -C .snapshots/monday -c tree | tar -C / -d -f - -C \"$PWD/.snapshots/monday\"
         stat -c '%n %a %s %Y' before/* > a; sed -i s/before/x/ a
         (cd .snapshots/monday && stat -c '%n %a %s %Y' tree/*) | sed s/tree/x/ > b
         diff a b
         mv .snapshots/monday .snapshots/tuesday
         test \"$(ls .snapshots)\" = tuesday
         test ! -e .snapshots/monday
         mkdir .snapshots/monday
         diff -r tree .snapshots/monday/tree
         test \"$(find .snapshots -path '*/tree/small' | wc -l)\" = 2",
    ))
    .done();
    for script in [
        "touch .snapshots/monday/x",
        "echo x > .snapshots/monday/tree/small",
        "rm .snapshots/monday/tree/small",
        "rmdir .snapshots/monday/tree/new",
        "chmod 777 .snapshots/monday/tree/small",
        "mkdir .snapshots/monday/x",
        "ln .snapshots/monday/tree/small .snapshots/monday/x",
        "truncate -s 1 .snapshots/monday/tree/small",
        "mv .snapshots/monday/tree/small x",
    ] {
        let refused = run(&mut shell(mounted.dir(), script));
        assert_ne!(refused.code, 0, "{script}");
        assert!(
            refused.stderr.contains("Read-only file system"),
            "{}",
            refused.stderr
        );
    }
    for script in [
        "touch .snapshots/x",
        "rmdir .snapshots",
        "mv .snapshots x",
        "ln -s x .images",
    ] {
        assert_ne!(run(&mut shell(mounted.dir(), script)).code, 0, "{script}");
    }
    run(&mut shell(
        mounted.dir(),
        "rmdir .snapshots/*; test -z \"$(ls -A .snapshots)\"",
    ))
    .done();
    mounted.unmount();
}

/// The kernel holds back written data and times: both are in the snapshot.
#[test]
fn a_snapshot_has_dirty_data_of_the_kernel() {
    for options in ["", "nowriteback"] {
        let Some(place) = Place::new("snapshot-dirty", LIMIT) else {
            return;
        };
        let mounted = place.fresh("", options);
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(true);
        let files: Vec<File> = (0..20)
            .map(|number| open.open(mounted.path(&format!("f{number}"))).unwrap())
            .collect();
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(&noise(number as u64, 300_000), 0)
                .unwrap();
        }
        fs::create_dir(mounted.path(".snapshots/first")).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(&noise(100 + number as u64, 100_000), 50_000)
                .unwrap();
        }
        fs::create_dir(mounted.path(".snapshots/second")).unwrap();
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(b"later", 0).unwrap();
            let mut expected = noise(number as u64, 300_000);
            let name = format!("f{number}");
            let first = mounted.path(".snapshots/first").join(&name);
            assert!(fs::read(&first).unwrap() == expected);
            expected[50_000..150_000].copy_from_slice(&noise(100 + number as u64, 100_000));
            let second = mounted.path(".snapshots/second").join(&name);
            assert!(fs::read(&second).unwrap() == expected);
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            assert!(
                time(&second) > time(&first),
                "the time of writing is that of what is there"
            );
        }
        drop(files);
        mounted.unmount();
    }
}

#[test]
fn a_snapshot_has_mapped_data() {
    let test = "snapshot-mapped";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !need(have("python3"), test, "python3 is missing; install it") {
        return;
    }
    let mounted = place.fresh("", "");
    let script = "
import mmap, os
f = os.open('mapped', os.O_RDWR | os.O_CREAT)
os.write(f, b'x' * 100000)
m = mmap.mmap(f, 100000)
os.close(f)
m[5:8] = b'abc'
os.mkdir('.snapshots/one')
m[5:8] = b'def'
assert open('.snapshots/one/mapped', 'rb').read(9) == b'xxxxxabcx'
os.mkdir('.snapshots/two')
assert open('.snapshots/two/mapped', 'rb').read(9) == b'xxxxxdefx'
assert open('.snapshots/one/mapped', 'rb').read(9) == b'xxxxxabcx'
";
    let mut python = command("python3", ["-c", script]);
    run(python.current_dir(mounted.dir())).done();
    mounted.unmount();
}

#[test]
fn only_the_owner_of_the_root_takes_snapshots() {
    let test = "snapshot-users";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !can_switch_users(test) {
        return;
    }
    let mounted = place.fresh("", "");
    fs::set_permissions(place.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(mounted.dir(), PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(mounted.path("secret"), b"secret").unwrap();
    fs::set_permissions(mounted.path("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let other = |words: &str| {
        run(as_user(OTHER)
            .args(words.split(' '))
            .current_dir(mounted.dir()))
    };
    assert_ne!(other("mkdir .snapshots/x").code, 0);
    fs::create_dir(mounted.path(".snapshots/x")).unwrap();
    other("ls .snapshots/x").done();
    assert_ne!(other("cat .snapshots/x/secret").code, 0);
    assert_ne!(other("rmdir .snapshots/x").code, 0);
    assert_ne!(other("mv .snapshots/x .snapshots/y").code, 0);
    // The owner of the root directory may do so.
    std::os::unix::fs::chown(mounted.dir(), Some(OTHER), Some(OTHER)).unwrap();
    other("mkdir .snapshots/mine").done();
    other("mv .snapshots/mine .snapshots/own").done();
    other("rmdir .snapshots/own").done();
    mounted.unmount();
}

#[test]
fn an_open_file_keeps_its_snapshot() {
    let Some(place) = Place::new("snapshot-busy", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), b"bytes").unwrap();
    let snapshot = mounted.path(".snapshots/one");
    fs::create_dir(&snapshot).unwrap();
    let file = File::open(snapshot.join("file")).unwrap();
    let busy = fs::remove_dir(&snapshot).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::ResourceBusy);
    drop(file);
    // The kernel sends the RELEASE a moment after close() has returned.
    let gone = crate::real::wait_until(Duration::from_secs(10), || {
        fs::remove_dir(&snapshot).is_ok()
    });
    assert!(gone);
    assert_eq!(
        fs::metadata(snapshot.join("file")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    // The same name is another snapshot now.
    fs::write(mounted.path("file"), b"other").unwrap();
    fs::create_dir(&snapshot).unwrap();
    assert_eq!(fs::read(snapshot.join("file")).unwrap(), b"other");
    mounted.unmount();
}

/// After the process is killed, snapshots that were taken exist, and those that were deleted do
/// not.
#[test]
fn snapshots_outlive_the_daemon() {
    let Some(place) = Place::new("snapshot-killed", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fill(&mounted);
    fs::create_dir(mounted.path(".snapshots/one")).unwrap();
    fs::create_dir(mounted.path(".snapshots/two")).unwrap();
    fs::create_dir(mounted.path(".images/image")).unwrap();
    fs::remove_dir_all(mounted.path("tree")).unwrap();
    fs::remove_dir(mounted.path(".snapshots/two")).unwrap();
    mounted.kill();
    mounted.take_away();
    let mounted = place.mount("vol", "mnt", "");
    let large = fs::read(mounted.path(".snapshots/one/tree/below/large")).unwrap();
    assert!(large == noise(1, 6_000_000));
    let names = |dir: &str| -> Vec<_> {
        let entries = fs::read_dir(mounted.path(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names(".snapshots"), [OsStr::new("one")]);
    assert_eq!(names(".images"), [OsStr::new("image")]);
    mounted.unmount();
    // Also in a snapshot, where nothing may change.
    let mounted = place.mount("vol", "mnt", "ro");
    assert!(fs::read(mounted.path(".images/image/tree/small")).unwrap() == b"small");
    let refused = fs::create_dir(mounted.path(".snapshots/x")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    mounted.unmount();
}

/// Space is given back in the background.
#[test]
fn deleted_snapshots_free_their_space() {
    let Some(place) = Place::new("snapshot-space", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "commit=1");
    let allocated = || {
        let objects = walk(&place.path("vol/objects"));
        objects.iter().map(|file| file.blocks() * 512).sum::<u64>()
    };
    let mut file = File::create(mounted.path("file")).unwrap();
    file.write_all(&noise(1, 20_000_000)).unwrap();
    file.sync_all().unwrap();
    let before = allocated();
    for number in 0..3 {
        fs::create_dir(mounted.path(&format!(".snapshots/{number}"))).unwrap();
        file.write_all_at(&noise(number, 10_000_000), number * 5_000_000)
            .unwrap();
        file.sync_all().unwrap();
    }
    assert!(allocated() > before + 25_000_000);
    for number in [1, 2, 0] {
        fs::remove_dir(mounted.path(&format!(".snapshots/{number}"))).unwrap();
    }
    let back = crate::real::wait_until(Duration::from_secs(60), || allocated() <= before + 100_000);
    assert!(back, "{} bytes, and {before} before", allocated());
    drop(file);
    mounted.unmount();
}

/// While taking a snapshot waits for the kernel's dirty data, others are renamed.
#[test]
fn renaming_waits_for_taking_a_snapshot_and_not_the_reverse() {
    let Some(place) = Place::new("snapshot-rename", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::create_dir(mounted.path(".snapshots/a")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Not through the directory: there the kernel permits one change at a time.
        scope.spawn(|| {
            let bytes = noise(1, 30_000_000);
            for round in 0..10 {
                fs::write(mounted.path("large"), &bytes).unwrap();
                place.run(&format!("snapshot create vol s{round}")).done();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            for (from, to) in [("a", "b"), ("b", "a")] {
                let path = |name: &str| mounted.path(".snapshots").join(name);
                fs::rename(path(from), path(to)).unwrap();
            }
        }
    });
    mounted.unmount();
}

/// After a restore the kernel shows the restored contents, not its cache.
#[test]
fn a_restore_is_seen_through_the_kernel() {
    for options in ["", "nowriteback"] {
        let Some(place) = Place::new("snapshot-restore", LIMIT) else {
            return;
        };
        let mounted = place.fresh("", options);
        let path = |name: &str| mounted.path(name);
        fs::create_dir(path("dir")).unwrap();
        for name in ["dir/longer", "dir/shorter", "touched", "removed"] {
            fs::write(path(name), noise(1, 100_000)).unwrap();
        }
        fs::hard_link(path("dir/shorter"), path("other")).unwrap();
        let seen = || {
            let names = ["dir/longer", "dir/shorter", "other", "touched", "removed"];
            names.map(|name| {
                let metadata = fs::metadata(path(name)).unwrap();
                let times = (metadata.mtime(), metadata.mtime_nsec());
                let contents = fs::read(path(name)).unwrap();
                assert_eq!(metadata.len(), contents.len() as u64, "{name}");
                assert!(contents == noise(1, 100_000), "{name}");
                (times, metadata.mode(), metadata.nlink(), metadata.blocks())
            })
        };
        place.run("snapshot create vol one").done();
        let before = seen();
        let held = File::open(path("dir/longer")).unwrap();
        let mut longer = OpenOptions::new()
            .append(true)
            .open(path("dir/longer"))
            .unwrap();
        longer.write_all(&noise(2, 9_000_000)).unwrap();
        OpenOptions::new()
            .write(true)
            .open(path("other"))
            .unwrap()
            .set_len(10)
            .unwrap();
        fs::set_permissions(path("touched"), PermissionsExt::from_mode(0o600)).unwrap();
        File::options()
            .write(true)
            .open(path("touched"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        fs::remove_file(path("removed")).unwrap();
        fs::write(path("new"), b"new").unwrap();
        assert!(!path("removed").exists());
        assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 4);
        place.run("snapshot restore vol one --yes").done();
        assert_eq!(seen(), before);
        assert!(!path("new").exists());
        assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 4);
        drop((held, longer));
        assert_eq!(seen(), before);
        mounted.unmount();
        let mounted = place.mount("vol", "mnt", options);
        assert!(fs::read(mounted.path("dir/longer")).unwrap() == noise(1, 100_000));
        mounted.unmount();
    }
}

fn walk(dir: &Path) -> Vec<fs::Metadata> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => all.extend(walk(&entry.path())),
            Ok(metadata) => all.push(metadata),
            Err(_) => {}
        }
    }
    all
}
