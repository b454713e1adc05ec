//! A volume on a filesystem that is mounted read-only: mounted read-only with a warning, as
//! mount(8) does with a write-protected disk, unless the caller requests writing.

use std::fs;

use crate::machine::Machine;
use crate::real::run;

const WARNING: &str =
    "is write-protected, since its filesystem is mounted read-only: mounted read-only";

#[test]
fn it_is_mounted_read_only_with_a_warning() {
    let Some(machine) = Machine::new("medium") else {
        return;
    };
    let place = &machine.place;
    place.run("create vol").done();
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "text").unwrap();
    mounted.unmount();
    place.dir("bound");
    machine.run("mount --bind vol bound");
    machine.run("mount -o remount,bind,ro bound");
    let log = place.path("log");
    let bilayer = env!("CARGO_BIN_EXE_bilayer");
    for words in [
        "mount -t bilayer bound mnt",
        "mount -t bilayer bound mnt -o rw",
        &format!("{bilayer} mount bound mnt"),
        &format!("{bilayer} mount bound mnt -o log_file={}", log.display()),
    ] {
        let outcome = run(&mut machine.command(words)).done();
        assert!(
            outcome.stderr.contains(WARNING),
            "{words}: {}",
            outcome.stderr
        );
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        machine.daemon();
        let options = machine.output("findmnt -n -o OPTIONS mnt");
        assert!(options.starts_with("ro,"), "{words}: {options}");
        assert_eq!(fs::read(machine.see("mnt/file")).unwrap(), b"text");
        let error = fs::write(machine.see("mnt/file"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        machine.run("umount mnt");
    }
    assert!(fs::read_to_string(&log).unwrap().contains(WARNING));
    // A request to write is refused; a request for reading only gets no warning.
    machine.refused(
        &format!("{bilayer} mount bound mnt -o rw"),
        2,
        "bilayer mount -o ro",
    );
    machine.run("mount -t bilayer bound mnt -o ro");
    machine.daemon();
    machine.run("umount mnt");
    machine.run("umount bound");
}
