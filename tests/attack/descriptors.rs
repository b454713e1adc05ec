//! The attacker is the process that started the mount: a service, a script or a shell with open
//! files and pipes. The daemon must not keep them: readers of a pipe would wait for the daemon, and
//! the file with the passphrase would be open in `/proc` as long as the volume is mounted.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::real::{Place, command, run_within, wait_until};

const TIME: Duration = Duration::from_secs(60);
const PASSPHRASE: &str = "correct horse battery staple 7391";

/// A volume under an encrypted customer key.
fn place(test: &'static str) -> Option<Place> {
    let place = Place::new(test, Duration::from_secs(120))?;
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(place.path("passphrase"))
        .unwrap();
    fs::write(place.path("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
    place
        .run("keygen key.pem --bits 2048 --passphrase-file passphrase")
        .done();
    place
        .run("create vol --customer-key file:key.pem --passphrase-file passphrase")
        .done();
    place.dir("mnt");
    run_within(command("mkfifo", [place.path("pipe")]).arg("-m600"), TIME).done();
    Some(place)
}

/// Number, target and whether it is closed at exec, of each open descriptor.
fn descriptors(pid: i32) -> Vec<(u32, PathBuf, bool)> {
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut descriptors: Vec<(u32, PathBuf, bool)> = listed
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let number: u32 = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            Some((number, target, flags & 0o2_000_000 != 0))
        })
        .collect();
    descriptors.sort();
    descriptors
}

/// Fails unless the daemon has only the descriptors open that it needs.
#[track_caller]
fn only_expected(place: &Place, pid: i32, detached: bool) {
    let descriptors = descriptors(pid);
    let all = format!("{descriptors:#?}");
    for (number, target, closed_at_exec) in descriptors {
        if number <= 2 {
            assert!(!detached || target == Path::new("/dev/null"), "{all}");
            continue;
        }
        assert!(closed_at_exec, "children inherit {number}: {all}");
        let text = target.to_string_lossy();
        let expected = target.starts_with(place.path("vol"))
            || target.starts_with(place.path("keystore"))
            || target == place.path("log")
            || text == "/dev/fuse"
            || text.starts_with("socket:")
            || text.starts_with("anon_inode:")
            // The clock that the kernel uses for times of files.
            || text.starts_with("/memfd:clock");
        assert!(expected, "{number}: {all}");
    }
}

/// Started with a file to write, a pipe to read, one to write, and the passphrase in a file or a
/// pipe, each open at a different number.
#[test]
fn a_daemon_inherits_nothing() {
    let Some(place) = place("attack-descriptors") else {
        return;
    };
    for passphrase in ["7<passphrase", "7< <(cat passphrase)"] {
        let script = format!(
            "exec {passphrase} 5>extra 6<>pipe 200>pipe 1000<key.pem
             exec \"$BILAYER\" mount vol mnt -o passphrase_fd=7,log_file=log"
        );
        let mut shell = command("bash", ["-c", &script]);
        place.environment(&mut shell);
        shell.env("BILAYER", crate::real::BILAYER);
        run_within(&mut shell, TIME).done();
        let mounted = place.mounted(&place.path("mnt"));
        fs::write(mounted.path("file"), "contents").unwrap();
        only_expected(&place, mounted.pid, true);
        mounted.unmount();
    }
}

/// A reader of the command's output sees its end when the command ends.
#[test]
fn a_pipe_behind_the_command_ends_with_it() {
    let Some(place) = place("attack-pipe") else {
        return;
    };
    for redirected in ["2>&1", "9>&1"] {
        let script =
            format!("\"$BILAYER\" mount vol mnt -o passphrase_file=passphrase {redirected} | cat");
        let mut shell = command("bash", ["-c", &script]);
        place.environment(&mut shell);
        shell.env("BILAYER", crate::real::BILAYER);
        run_within(&mut shell, Duration::from_secs(30)).done();
        place.mounted(&place.path("mnt")).unmount();
    }
}

/// In the foreground, under a supervisor, only the standard streams stay.
#[test]
fn a_daemon_in_the_foreground_inherits_only_the_standard_streams() {
    let Some(place) = place("attack-foreground") else {
        return;
    };
    let script = "exec 7<passphrase 5>extra 6<>pipe
                  exec \"$BILAYER\" mount --foreground vol mnt -o passphrase_fd=7";
    let mut shell = command("bash", ["-c", script]);
    place.environment(&mut shell);
    shell.env("BILAYER", crate::real::BILAYER);
    let quiet = shell.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child: Child = quiet.stderr(Stdio::null()).spawn().unwrap();
    place.take_charge(child.id() as i32);
    let there = || crate::real::is_mount_point(&place.path("mnt"));
    assert!(wait_until(Duration::from_secs(30), there));
    let mounted = place.mounted(&place.path("mnt"));
    only_expected(&place, mounted.pid, false);
    mounted.unmount();
    assert!(child.wait().unwrap().success());
}
