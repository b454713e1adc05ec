//! Volumes and mount points whose names need quoting.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::machine::Machine;
use crate::real::{command, is_alive, run};

const TEST: &str = "odd-places";

#[test]
fn names_with_every_kind_of_byte() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    let place = &machine.place;
    for name in [
        &b"with space and\ttab"[..],
        b"comma, and = sign",
        b"back\\slash \\040",
        b"new\nline",
        b"not utf-8 \xff\xfe",
        b"-dash #hash",
        "ünï\u{1F512}".as_bytes(),
    ] {
        let name = OsStr::from_bytes(name);
        let top = place.path("").canonicalize().unwrap();
        let (volume, dir) = (top.join("vols").join(name), top.join("mnts").join(name));
        fs::create_dir_all(volume.parent().unwrap()).unwrap();
        fs::create_dir_all(&dir).unwrap();
        let inside = |program: &str, words: &[&OsStr]| {
            let mut command = command(program, words);
            place.environment(&mut command);
            run(&mut machine.namespace.inside(&command))
        };
        run(place.bilayer(["create"]).arg(&volume)).done();
        let kind = [OsStr::new("-t"), OsStr::new("bilayer")];
        let what = [kind[0], kind[1], volume.as_os_str(), dir.as_os_str()];
        inside("mount", &what).silent();
        let status = inside(
            &crate::real::BILAYER,
            &["status".as_ref(), "--json".as_ref(), dir.as_os_str()],
        );
        let status: serde_json::Value = serde_json::from_str(&status.done().stdout).unwrap();
        let pid = status["daemon"]["pid"].as_i64().expect("a daemon") as i32;
        place.take_charge(pid);
        fs::write(machine.namespace.see(&dir).join("file"), "x").unwrap();
        let target = ["-n", "-o", "FSTYPE", "--target"].map(OsStr::new);
        let shown = inside("findmnt", &[&target[..], &[dir.as_os_str()]].concat()).done();
        assert_eq!(shown.stdout.trim(), "fuse.bilayer", "{name:?}");
        let again = inside("mount", &what);
        assert_eq!(again.code, 32, "{name:?}");
        assert_eq!(
            again.stderr.lines().count(),
            2,
            "{name:?}: {}",
            again.stderr
        );
        let remount = ["-o", "remount,ro"].map(OsStr::new);
        inside("mount", &[&remount[..], &[dir.as_os_str()]].concat()).silent();
        inside("umount", &[dir.as_os_str()]).silent();
        assert!(!is_alive(pid), "{name:?}: umount came back too early");
        assert!(machine.mounted().is_empty(), "{name:?}");
    }
}
