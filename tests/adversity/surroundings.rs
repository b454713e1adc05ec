//! A daemon started from a careless session: few open files, a small limit of file size, a umask
//! that removes all permissions, a low priority, and a working directory that is removed.

use std::fs;
use std::path::Path;

use crate::real::{Mounted, Place, command, have, need, noise, run};

const FILES: u64 = 2_000;

/// Files with an object each.
fn contents(number: u64) -> Vec<u8> {
    noise(number, 6_000 + number as usize % 7_000)
}

fn write_all(mounted: &Mounted<'_>) {
    for number in 0..FILES {
        let path = mounted.path(&format!("{number}"));
        fs::write(&path, contents(number)).unwrap();
    }
    fs::File::open(mounted.dir()).unwrap().sync_all().unwrap();
}

fn compare(mounted: &Mounted<'_>) {
    for number in 0..FILES {
        let actual = fs::read(mounted.path(&format!("{number}"))).unwrap();
        assert!(actual == contents(number), "{number}");
    }
}

/// Mounts `vol` from a shell, after running `before` in that shell.
#[track_caller]
fn mount_from<'a>(place: &'a Place, before: &str, options: &str) -> Mounted<'a> {
    place.dir("mnt");
    let log = place.path("log");
    let script = format!(
        "{before}\nexec $LIMITED \"$BILAYER\" mount \"$PLACE/vol\" \"$PLACE/mnt\" \
         -o log_file={}{options}",
        log.display()
    );
    let mut shell = command("bash", ["-euc", &script]);
    place.environment(&mut shell);
    shell.env("BILAYER", crate::real::BILAYER);
    shell.env("PLACE", place.path(""));
    run(&mut shell).done();
    place.mounted(&place.path("mnt"))
}

/// A prefix for commands that takes away the right to raise limits.
const WITHOUT_RIGHT: &str = "LIMITED='setpriv --bounding-set=-sys_resource \
                             --inh-caps=-sys_resource'";
const WITH_RIGHT: &str = "LIMITED=''";

fn place(test: &'static str) -> Option<Place> {
    let place = Place::new(test, std::time::Duration::from_secs(300))?;
    let missing = "setpriv, prlimit or nice is missing; install util-linux and coreutils";
    let there = ["setpriv", "prlimit", "nice"].into_iter().all(have);
    need(there, test, missing).then_some(place)
}

/// Whether limits can be raised here (CAP_SYS_RESOURCE): root of a container often cannot.
fn may_raise() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("CapEff:"));
    let bits = line.unwrap().split_whitespace().nth(1).unwrap();
    u64::from_str_radix(bits, 16).unwrap() & (1 << 24) != 0
}

#[test]
fn few_open_files_lose_nothing() {
    let Some(place) = place("few-open-files") else {
        return;
    };
    for (right, limit, options) in [
        (WITHOUT_RIGHT, 200, ""),
        (WITHOUT_RIGHT, 256, ",open_objects=4096"),
        (WITH_RIGHT, 256, ",open_objects=4096"),
    ] {
        place.run("create vol").done();
        let mounted = mount_from(&place, &format!("{right}; ulimit -n {limit}"), options);
        write_all(&mounted);
        mounted.unmount();
        let said = fs::read_to_string(place.path("log")).unwrap();
        let is_logged = said.contains("fewer files of the volume are kept open");
        assert_eq!(is_logged, right == WITHOUT_RIGHT || !may_raise(), "{said}");
        let mounted = place.mount("vol", "mnt", "");
        compare(&mounted);
        mounted.unmount();
        fs::remove_file(place.path("log")).unwrap();
        fs::remove_dir_all(place.path("vol")).unwrap();
    }
}

/// The limit decreases while the volume is in use, as if other processes had opened all files that
/// the system allows.
#[test]
fn files_are_closed_when_there_are_too_many() {
    let Some(place) = place("too-many-open") else {
        return;
    };
    place.run("create vol").done();
    let mounted = mount_from(&place, WITH_RIGHT, "");
    write_all(&mounted);
    let pid = mounted.pid.to_string();
    run(&mut command("prlimit", ["--pid", &pid, "--nofile=60:60"])).done();
    run(&mut command(
        "sh",
        ["-c", "echo 3 > /proc/sys/vm/drop_caches"],
    ));
    compare(&mounted);
    for number in 0..FILES {
        fs::remove_file(mounted.path(&format!("{number}"))).unwrap();
    }
    write_all(&mounted);
    let said = fs::read_to_string(place.path("log")).unwrap();
    let mentions = said.matches("too many files are open").count();
    assert_eq!(mentions, 1, "{said}");
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    compare(&mounted);
    mounted.unmount();
}

#[test]
fn a_limit_of_file_sizes_does_not_end_the_daemon() {
    let Some(place) = place("file-sizes") else {
        return;
    };
    place.run("create vol").done();
    // In KiB. A daemon that may not raise the limit gets errors, and keeps working.
    let soft = format!("{WITH_RIGHT}; ulimit -S -f 1000");
    let mounted = mount_from(&place, &soft, "");
    fs::write(mounted.path("large"), noise(1, 10 << 20)).unwrap();
    mounted.unmount();
    let before = format!("{WITHOUT_RIGHT}; ulimit -f 2000");
    let mounted = mount_from(&place, &before, "");
    let file = fs::File::create(mounted.path("larger")).unwrap();
    let _ = std::io::Write::write_all(&mut &file, &noise(2, 10 << 20));
    assert!(file.sync_all().is_err());
    drop(file);
    assert_eq!(fs::read(mounted.path("large")).unwrap().len(), 10 << 20);
    run(&mut place.bilayer(["unmount", "mnt"]));
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("large")).unwrap(), noise(1, 10 << 20));
    mounted.unmount();
}

#[test]
fn mask_priority_and_directory_are_the_daemons_own() {
    let Some(place) = place("surroundings") else {
        return;
    };
    let disk = place.dir("disk");
    let script = format!(
        "umask 0777; \"$BILAYER\" create \"$PLACE/vol\"; {WITH_RIGHT}; LIMITED='nice -n 15'
         mount -t tmpfs tmpfs {0}; cd {0}",
        disk.display()
    );
    let mounted = mount_from(&place, &script, "");
    fs::write(mounted.path("file"), "contents").unwrap();
    let process = Path::new("/proc").join(mounted.pid.to_string());
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let nice = stat.rsplit_once(')').unwrap().1.split(' ').nth(17);
    assert_eq!(nice, Some("0"), "{stat}");
    run(command("umount", [&disk]).current_dir("/")).done();
    mounted.unmount();
    // Everything that was created can be opened by its owner.
    for name in [
        "vol",
        "vol/objects",
        "vol/volume.json",
        "vol/meta",
        "keystore",
    ] {
        let metadata = fs::metadata(place.path(name)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode & 0o777, expected, "{name}");
    }
    place.mount("vol", "mnt", "").unmount();
}
