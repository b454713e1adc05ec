//! File operations of programs, through the kernel: several processes, mapped memory, sparse files,
//! many files, limits.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::real::{Place, command, have, is_alive, need, noise, run, wait_until, write_synced};

const LIMIT: Duration = Duration::from_secs(100);

fn python(place: &Place, script: &str, arguments: &[&Path]) -> Command {
    let mut python = command("python3", ["-c", script]);
    python.args(arguments).current_dir(place.path(""));
    python
}

fn have_python(test: &str) -> bool {
    need(have("python3"), test, "python3 is missing; install it")
}

#[test]
fn an_open_file_outlives_its_name() {
    let Some(place) = Place::new("unlinked", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(mounted.path("gone"))
        .unwrap();
    let bytes = noise(1, 5_000_000);
    file.write_all(&bytes).unwrap();
    fs::remove_file(mounted.path("gone")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.sync_all().unwrap();
    file.write_all_at(b"still written", 4_999_000).unwrap();
    let mut read = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read[..4_999_000], bytes[..4_999_000]);
    assert_eq!(&read[4_999_000..4_999_013], b"still written");
    assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 0);
    drop(file);
    // A name that is created again is another file.
    fs::write(mounted.path("gone"), "new").unwrap();
    assert_eq!(fs::read(mounted.path("gone")).unwrap(), b"new");
    mounted.unmount();
    let objects = walk_files(&place.path("vol/objects"));
    assert!(objects <= 1, "{objects} objects are left of a removed file");
}

/// Refused before the file is changed, also when it is truncated without being opened for writing.
#[test]
fn a_program_that_runs_is_not_changed() {
    let Some(place) = Place::new("running", LIMIT) else {
        return;
    };
    for options in ["writeback", "nowriteback"] {
        let dir = format!("mnt-{options}");
        place.run(&format!("create vol-{options}")).done();
        let mounted = place.mount(&format!("vol-{options}"), &dir, options);
        let path = mounted.path("program");
        fs::copy("/bin/sleep", &path).unwrap();
        let before = fs::read(&path).unwrap();
        let mut child = Command::new(&path).arg("60").spawn().unwrap();
        for (write, flags) in [(true, 0), (true, libc::O_TRUNC), (false, libc::O_TRUNC)] {
            let mut open = OpenOptions::new();
            let opened = open.read(true).write(write).custom_flags(flags).open(&path);
            let error = opened.expect_err("a program that runs was opened");
            assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy);
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), before.len() as u64);
        assert!(
            fs::read(&path).unwrap() == before,
            "the program was changed"
        );
        assert!(child.try_wait().unwrap().is_none(), "the program died");
        child.kill().unwrap();
        child.wait().unwrap();
        // Now it is permitted.
        fs::write(&path, "").unwrap();
        mounted.unmount();
    }
}

/// While a process is inside execve(2), reading its `/proc` files may have to wait until that ends;
/// and here execve waits for the filesystem, which writes the data of the closed files.
#[test]
fn execve_closes_files_that_have_dirty_pages() {
    let Some(place) = Place::new("execve", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    for round in 0..5 {
        let files: Vec<File> = (0..100)
            .map(|number| {
                let file = File::create(mounted.path(&format!("file-{number}"))).unwrap();
                file.write_all_at(&noise(round, 10_000), 0).unwrap();
                file
            })
            .collect();
        // Files of this process are open in the child until its execve closes them.
        run(&mut Command::new("true")).silent();
        drop(files);
    }
    mounted.unmount();
}

fn walk_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => walk_files(&entry.path()),
            false => 1,
        })
        .sum()
}

#[test]
fn processes_append_and_write_concurrently() {
    let test = "side-by-side";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !have_python(test) {
        return;
    }
    let mounted = place.fresh("", "");
    appended_lines_are_whole(&place, &mounted.path("log"));
    let expected = records_are_whole(&place, &mounted.path("records"));
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    assert!(fs::read(mounted.path("records")).unwrap() == expected);
    assert_eq!(
        fs::read_to_string(mounted.path("log"))
            .unwrap()
            .lines()
            .count(),
        4000
    );
}

fn appended_lines_are_whole(place: &Place, log: &Path) {
    let script = "i=0; while [ $i -lt 2000 ]; do echo \"$1 line $i of one process\"; \
                  i=$((i+1)); done >> \"$0\"";
    std::thread::scope(|scope| {
        for name in ["first", "second"] {
            scope.spawn(move || {
                let mut shell = command("sh", ["-c", script]);
                run(shell.arg(log).arg(name).current_dir(place.path(""))).silent();
            });
        }
    });
    let text = fs::read_to_string(log).unwrap();
    for name in ["first", "second"] {
        let own = text.lines().filter(|line| line.starts_with(name));
        for (number, line) in own.enumerate() {
            assert_eq!(line, format!("{name} line {number} of one process"));
        }
    }
    assert_eq!(text.lines().count(), 4000);
}

/// Four processes each write every fourth record of one file. The length of a record makes them
/// share pages. Each process also syncs now and then.
fn records_are_whole(place: &Place, path: &Path) -> Vec<u8> {
    const SCRIPT: &str = "
import os, sys
me = int(sys.argv[2])
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for n in range(me, 8000, 4):
    record = (b'%07d ' % n) * 125
    assert os.pwrite(fd, record, n * 1000) == 1000
    if n % 997 == 0:
        os.fsync(fd)
for n in range(me, 8000, 4):
    assert os.pread(fd, 8, n * 1000) == b'%07d ' % n, n
os.close(fd)
";
    std::thread::scope(|scope| {
        for writer in ["0", "1", "2", "3"] {
            scope.spawn(move || {
                run(&mut python(place, SCRIPT, &[path, Path::new(writer)])).silent();
            });
        }
    });
    let records = (0..8000).map(|n| format!("{n:07} ").repeat(125));
    let expected = records.collect::<String>().into_bytes();
    assert!(fs::read(path).unwrap() == expected);
    expected
}

#[test]
fn mapped_memory_is_the_file() {
    let test = "mapped";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    if !have_python(test) {
        return;
    }
    // One process writes through a mapping, keeps it, and reads through another descriptor.
    const SCRIPT: &str = "
import mmap, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED)
mapped[0:5] = b'start'
mapped[4030:4036] = b'border'
mapped[4194300:4194310] = b'two chunks'
mapped[-3:] = b'end'
other = os.open(path, os.O_RDONLY)
assert os.pread(other, 5, 0) == b'start'
assert os.pread(other, 6, 4030) == b'border'
os.pwrite(fd, b'by a write', 100000)
assert mapped[100000:100010] == b'by a write'
mapped.flush()
mapped[200000:200010] = b'not synced'
assert os.pread(other, 10, 200000) == b'not synced'
";
    let mounted = place.fresh("", "");
    let mut expected = noise(3, 4_500_000);
    fs::write(mounted.path("file"), &expected).unwrap();
    run(&mut python(&place, SCRIPT, &[&mounted.path("file")])).silent();
    for (at, text) in [
        (0, "start"),
        (4030, "border"),
        (4_194_300, "two chunks"),
        (4_499_997, "end"),
        (100_000, "by a write"),
        (200_000, "not synced"),
    ] {
        expected[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    assert!(fs::read(mounted.path("file")).unwrap() == expected);
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    assert!(fs::read(mounted.path("file")).unwrap() == expected);
}

#[test]
fn holes_are_reported_and_dirty_data_is_no_hole() {
    let test = "holes";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let path = mounted.path("open");
    let file = File::create(&path).unwrap();
    file.set_len(12_000_000).unwrap();
    file.write_all_at(b"data", 6_000_000).unwrap();
    // The kernel still has the page, the file is open, nothing was synced.
    let seek = |offset: rustix::fs::SeekFrom| rustix::fs::seek(&file, offset);
    let data = seek(rustix::fs::SeekFrom::Data(0)).unwrap();
    assert!((5_900_000..=6_000_000).contains(&data), "{data}");
    let hole = seek(rustix::fs::SeekFrom::Hole(6_000_000)).unwrap();
    assert!((6_000_004..=6_100_000).contains(&hole), "{hole}");
    file.write_all_at(&noise(5, 100_000), 0).unwrap();
    assert_eq!(seek(rustix::fs::SeekFrom::Data(50)).unwrap(), 50);

    for option in ["--sparse=always", "--sparse=auto", "--reflink=auto"] {
        let copy = mounted.path("copy");
        run(command("cp", [option]).arg(&path).arg(&copy)).silent();
        let copied = fs::read(&copy).unwrap();
        assert_eq!(copied.len(), 12_000_000, "{option}");
        assert!(copied[..100_000] == noise(5, 100_000), "{option}");
        assert_eq!(&copied[6_000_000..6_000_004], b"data", "{option}");
        assert_eq!(copied.iter().filter(|&&byte| byte != 0).count(), {
            let data = noise(5, 100_000);
            4 + data.iter().filter(|&&byte| byte != 0).count()
        });
        fs::remove_file(copy).unwrap();
    }
    drop(file);
    let blocks = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        (100_000..1_000_000).contains(&blocks),
        "{blocks} bytes are used"
    );
}

#[test]
fn many_files() {
    let Some(place) = Place::new("many", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let dir = mounted.path("many");
    fs::create_dir(&dir).unwrap();
    for number in 0..20_000 {
        fs::write(dir.join(format!("file-{number}")), format!("{number}")).unwrap();
    }
    let mut names: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 20_000);
    assert_eq!(fs::read_to_string(dir.join("file-12345")).unwrap(), "12345");
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read_to_string(dir.join("file-19999")).unwrap(), "19999");
    let listed = run(command("ls", ["-lU"]).arg(&dir)).done().stdout;
    assert_eq!(listed.lines().count(), 20_001);
    run(command("rm", ["-r"]).arg(&dir)).silent();
    assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 0);
    mounted.unmount();
    assert_eq!(walk_files(&place.path("vol/objects")), 0);
}

#[test]
fn the_size_of_a_volume_is_its_limit() {
    let Some(place) = Place::new("size", LIMIT) else {
        return;
    };
    const SIZE: u64 = 32 << 20;
    let mounted = place.fresh("--size 32M", "");
    let space = || rustix::fs::statvfs(mounted.dir()).unwrap();
    let total = space().f_blocks * space().f_frsize;
    assert!((SIZE - 8192..=SIZE).contains(&total), "{total}");
    assert_eq!(space().f_bfree, space().f_blocks);
    assert_eq!(space().f_namemax, 255);
    write_synced(&mounted.path("kept"), &noise(1, 1_000_000)).unwrap();
    let mut written = Vec::new();
    let error = loop {
        let name = format!("file-{}", written.len());
        match write_synced(
            &mounted.path(&name),
            &noise(written.len() as u64, 3_000_000),
        ) {
            Ok(()) => written.push(name),
            Err(error) => break error,
        }
        assert!(written.len() < 12, "the limit is not kept");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(written.len() >= 9, "{}", written.len());
    let taken = written.remove(0);
    fs::remove_file(mounted.path(&taken)).unwrap();
    let _ = fs::remove_file(mounted.path(&format!("file-{}", written.len() + 1)));
    write_synced(&mounted.path("again"), &noise(99, 2_000_000)).unwrap();
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    assert!(fs::read(mounted.path("kept")).unwrap() == noise(1, 1_000_000));
    assert!(fs::read(mounted.path("again")).unwrap() == noise(99, 2_000_000));
    for (number, name) in written.iter().enumerate() {
        assert!(fs::read(mounted.path(name)).unwrap() == noise(number as u64 + 1, 3_000_000));
    }
}

#[test]
fn a_read_only_mount_writes_nothing() {
    let Some(place) = Place::new("read-only", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    write_synced(&mounted.path("file"), b"as it was").unwrap();
    mounted.unmount();
    let meta = fs::read(place.path("vol/meta")).unwrap();
    let mounted = place.mount("vol", "mnt", "ro");
    let refused = |result: std::io::Result<()>, what: &str| {
        let error = result.expect_err(what);
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "{what}"
        );
    };
    let file = mounted.path("file");
    refused(fs::write(&file, "x"), "write");
    refused(fs::write(mounted.path("new"), "x"), "create");
    refused(fs::create_dir(mounted.path("dir")), "mkdir");
    refused(fs::remove_file(&file), "unlink");
    refused(fs::rename(&file, mounted.path("other")), "rename");
    refused(std::os::unix::fs::chown(&file, Some(1), None), "chown");
    refused(
        std::os::unix::fs::symlink("x", mounted.path("link")),
        "symlink",
    );
    assert_eq!(fs::read(&file).unwrap(), b"as it was");
    assert_eq!(place.status(mounted.dir())["daemon"]["read_only"], true);
    mounted.unmount();
    assert!(fs::read(place.path("vol/meta")).unwrap() == meta);
    assert_eq!(place.status(&place.path("vol"))["record"]["clean"], true);
}

/// Also a volume that was not closed cleanly, on a read-only medium.
#[test]
fn a_read_only_mount_needs_no_right_to_write() {
    let Some(place) = Place::new("read-only-medium", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    write_synced(&mounted.path("file"), &noise(1, 5_000_000)).unwrap();
    mounted.kill();
    mounted.take_away();
    let volume = place.path("vol");
    run(command("mount", ["--bind"]).arg(&volume).arg(&volume)).silent();
    run(command("mount", ["-o", "remount,bind,ro"]).arg(&volume)).silent();
    let refused = place.run("mount vol mnt -o rw");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.starts_with("bilayer: "),
        "{}",
        refused.stderr
    );
    let mut mount = place.bilayer(["mount", "vol", "mnt", "-o", "ro"]);
    run(&mut mount).done();
    let mounted = place.mounted(&place.path("mnt"));
    assert!(fs::read(mounted.path("file")).unwrap() == noise(1, 5_000_000));
    mounted.unmount();
    run(command("umount", ["-i"]).arg(&volume)).silent();
    let mounted = place.mount("vol", "mnt", "");
    assert!(fs::read(mounted.path("file")).unwrap() == noise(1, 5_000_000));
    mounted.unmount();
}

#[test]
fn a_terminated_daemon_unmounts_cleanly() {
    let Some(place) = Place::new("signals", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    for signal in [Signal::TERM, Signal::INT] {
        let mounted = place.mount("vol", "mnt", "commit=3600");
        fs::write(mounted.path(&format!("{signal:?}")), noise(1, 6_000_000)).unwrap();
        mounted.signal(signal);
        assert!(wait_until(Duration::from_secs(20), || !is_alive(
            mounted.pid
        )));
        assert!(!mounted.is_there(), "{signal:?}");
        assert_eq!(
            place.status(&place.path("vol"))["record"]["clean"],
            true,
            "{signal:?}"
        );
        drop(mounted);
        let mounted = place.mount("vol", "mnt", "ro");
        let actual = fs::read(mounted.path(&format!("{signal:?}"))).unwrap();
        assert!(actual == noise(1, 6_000_000), "{signal:?}");
        mounted.unmount();
    }
}

/// When a session ends, every process gets SIGTERM, while some program still uses the mount.
#[test]
fn a_busy_mount_is_unmounted_when_it_is_free() {
    let Some(place) = Place::new("signal-in-use", Duration::from_secs(60)) else {
        return;
    };
    let mounted = place.fresh("", "commit=3600");
    fs::write(mounted.path("file"), "contents").unwrap();
    let used = File::open(mounted.path("file")).unwrap();
    mounted.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(
        is_alive(mounted.pid),
        "the daemon ended while the mount was in use"
    );
    // Data that was there at the signal is durable, whatever happens to the daemon now.
    let copy = place.path("copy");
    run(command("cp", ["-a"]).arg(place.path("vol")).arg(&copy)).done();
    drop(used);
    let ended = wait_until(Duration::from_secs(3), || !is_alive(mounted.pid));
    assert!(ended, "it stays though nobody uses it");
    drop(mounted);
    place.mount("vol", "mnt", "").unmount();
    let kept = place.mount("copy", "mnt", "ro");
    assert_eq!(fs::read(kept.path("file")).unwrap(), b"contents");
    kept.unmount();
}

/// Shells start background commands with some signals ignored.
#[test]
fn a_daemon_ends_though_its_parent_ignores_the_signal() {
    let Some(place) = Place::new("signal-ignored", Duration::from_secs(60)) else {
        return;
    };
    place.run("create vol").done();
    place.dir("mnt");
    let script = "trap '' TERM INT; \"$BILAYER\" mount vol mnt";
    let mut shell = command("sh", ["-c", script]);
    place.environment(&mut shell);
    run(shell.env("BILAYER", crate::real::BILAYER)).done();
    let mounted = place.mounted(&place.path("mnt"));
    mounted.signal(Signal::TERM);
    assert!(wait_until(Duration::from_secs(20), || !is_alive(
        mounted.pid
    )));
}
