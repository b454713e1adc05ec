//! `mount -o remount`: read-only and back, and other options.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine::Machine;
use crate::real::{is_alive, noise, wait_until};

const TEST: &str = "remount";

fn machine() -> Option<Machine> {
    let machine = Machine::new(TEST)?;
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    Some(machine)
}

#[track_caller]
fn assert_refused(result: std::io::Result<()>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

/// The volume's files and their contents.
fn bytes_of(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            entries.extend(bytes_of(&path));
        } else {
            entries.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    entries.sort();
    entries
}

/// Reads a file, bypassing the kernel's cache.
fn reading_sets_the_time_of_access(path: &Path) -> bool {
    let accessed = || {
        let times = fs::metadata(path).unwrap();
        (times.atime(), times.atime_nsec())
    };
    let before = accessed();
    // The kernel's clock for times of files advances in steps.
    std::thread::sleep(Duration::from_millis(20));
    let file = fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    drop(fs::read(path).unwrap());
    accessed() != before
}

#[test]
fn read_only_puts_everything_on_disk_and_keeps_it_so() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt -o commit=3600");
    let daemon = machine.daemon();
    let file = machine.see("mnt/file");
    fs::write(&file, noise(1, 3_000_000)).unwrap();
    fs::create_dir(machine.see("mnt/dir")).unwrap();
    fs::write(machine.see("mnt/removed"), noise(2, 3_000_000)).unwrap();
    fs::remove_file(machine.see("mnt/removed")).unwrap();
    machine.run("mount -o remount,ro mnt");

    assert_refused(fs::write(&file, "x"));
    assert_refused(fs::create_dir(machine.see("mnt/new")));
    assert_refused(fs::remove_dir(machine.see("mnt/dir")));
    assert_refused(fs::rename(&file, machine.see("mnt/other")));
    assert_refused(fs::set_permissions(
        &file,
        fs::Permissions::from_mode(0o600),
    ));
    let listed = machine.output("findmnt -n -o OPTIONS mnt");
    assert!(listed.starts_with("ro,"), "{listed}");

    // Nothing is written any more: the access time was not updated, no commit.
    let before = bytes_of(&machine.place.path("vol"));
    assert!(!reading_sets_the_time_of_access(&file));
    assert!(fs::read(&file).unwrap() == noise(1, 3_000_000));
    assert_eq!(fs::read_dir(machine.see("mnt")).unwrap().count(), 2);
    machine.run("mount -o remount,ro mnt");
    assert!(bytes_of(&machine.place.path("vol")) == before);

    // A copy of the volume contains exactly what a power cut would leave.
    machine.run(&format!("kill -KILL {daemon}"));
    assert!(wait_until(Duration::from_secs(20), || !is_alive(daemon)));
    machine.run("umount -i -l mnt");
    assert!(bytes_of(&machine.place.path("vol")) == before);
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    assert!(fs::read(&file).unwrap() == noise(1, 3_000_000));
    assert!(machine.see("mnt/dir").is_dir() && !machine.see("mnt/removed").exists());
    machine.run("umount mnt");
}

#[test]
fn remounted_back_and_forth_by_every_command() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let file = machine.see("mnt/file");
    let by_dir = machine.path("mnt");
    for (round, how) in [
        "mnt".to_owned(),
        by_dir,
        "-t bilayer vol mnt".to_owned(),
        "-t fuse.bilayer vol mnt".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&file, format!("{round}")).unwrap();
        machine.run(&format!("mount -o remount,ro {how}"));
        assert_refused(fs::write(&file, "x"));
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{round}"));
        machine.run(&format!("mount -o remount,rw {how}"));
    }
    fs::write(&file, "last").unwrap();
    assert_eq!(machine.daemon(), daemon, "a remount is no new mount");
    machine.run("mount -o remount,ro mnt");
    machine.run("umount mnt");
    assert!(!is_alive(daemon));
    let status = machine.place.status(&machine.place.path("vol"));
    assert_eq!(status["record"]["clean"], true);
    machine.run("mount -r -t bilayer vol mnt");
    machine.daemon();
    assert_eq!(fs::read_to_string(&file).unwrap(), "last");
    machine.run("umount mnt");
}

#[test]
fn an_open_file_keeps_it_writable() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    let busy = "a file is open for writing";
    let mut held = fs::File::create(machine.see("mnt/held")).unwrap();
    machine.refused("mount -o remount,ro mnt", 32, busy);
    use std::io::Write;
    held.write_all(b"goes on").unwrap();
    drop(held);
    // An unlinked file is removed when it is closed, and that would be a change.
    let reader = fs::File::open(machine.see("mnt/held")).unwrap();
    fs::remove_file(machine.see("mnt/held")).unwrap();
    machine.refused("mount -o remount,ro mnt", 32, busy);
    drop(reader);
    fs::write(machine.see("mnt/read"), "x").unwrap();
    let reader = fs::File::open(machine.see("mnt/read")).unwrap();
    machine.run("mount -o remount,ro mnt");
    machine.run("mount -o remount,rw mnt");
    fs::write(machine.see("mnt/read"), "y").unwrap();
    drop(reader);
    machine.run("umount mnt");
}

#[test]
fn other_options_of_a_mount_change_too() {
    let Some(machine) = machine() else {
        return;
    };
    machine.run("mount -t bilayer vol mnt -o suid,dev");
    machine.daemon();
    let options = || machine.output("findmnt -n -o OPTIONS mnt");
    let has = |word: &str| options().trim().split(',').any(|option| option == word);
    assert!(!has("nosuid") && !has("nodev"), "{}", options());
    let program = machine.see("mnt/program");
    fs::copy("/bin/true", &program).unwrap();
    machine.run("mnt/program");
    machine.run("mount -o remount,nosuid,nodev,noexec,sync mnt");
    for word in ["rw", "nosuid", "nodev", "noexec", "sync"] {
        assert!(has(word), "{word}: {}", options());
    }
    assert_ne!(machine.end_of("sh -c mnt/program").code, 0);
    machine.run("mount -o remount,suid,exec,async mnt");
    assert!(has("nodev") && has("rw"), "{}", options());
    for word in ["nosuid", "noexec", "sync"] {
        assert!(!has(word), "{word}: {}", options());
    }
    machine.run("mnt/program");

    // Times of access: not updated from now on, and updated again.
    let read = || {
        // By default a time is updated if it is older than the last change.
        machine.run("touch -m mnt/program");
        reading_sets_the_time_of_access(&program)
    };
    assert!(read());
    machine.run("mount -o remount,noatime mnt");
    assert!(has("noatime") && !read());
    machine.run("mount -o remount,strictatime mnt");
    assert!(!has("noatime") && !has("relatime"), "{}", options());
    assert!(read() && reading_sets_the_time_of_access(&program));
    machine.run("mount -o remount,ro mnt");
    machine.run("mount -o remount,rw mnt");
    assert!(!has("relatime") && reading_sets_the_time_of_access(&program));
    machine.run("mount -o remount,relatime mnt");
    assert!(has("relatime") && read() && !reading_sets_the_time_of_access(&program));
    machine.run("mount -o remount,noatime mnt");
    machine.run("mount -o remount,atime mnt");
    assert!(!has("noatime") && read(), "{}", options());

    machine.refused("mount -o remount,blah mnt", 1, "unknown mount option");
    machine.refused(
        "mount -t bilayer -o remount,ro vol vol",
        32,
        "nothing of bilayer",
    );
    machine.run("umount mnt");
}
