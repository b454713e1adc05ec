//! Directories over which something is mounted: the program does not guess what it cannot see.

use std::fs;
use std::time::Duration;

use crate::real::{Place, command, is_alive, run, run_when_free};
use crate::{end, fails};

const LIMIT: Duration = Duration::from_secs(300);

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

fn with_file(test: &'static str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    Some(place)
}

/// A command whose working directory has no path any more.
#[test]
fn a_copy_at_an_unknown_location_is_not_written_to() {
    let Some(place) = with_file("identity-no-path") else {
        return;
    };
    sh(&place, "mkdir top; cp -a vol top/cp");
    let mounted = place.mount("vol", "mnt", "");
    for words in ["snapshot create . evil", "check . --repair"] {
        let script = "cd top/cp; mount -t tmpfs none ../../top; exec \"$@\"";
        let mut hidden = command("sh", ["-ec", script, "sh"]);
        hidden.arg(crate::real::BILAYER).args(words.split(' '));
        place.environment(&mut hidden);
        let refused = run(hidden.current_dir(place.path("")));
        sh(&place, "umount top");
        assert_ne!(refused.code, 0, "{words}: {}", refused.stderr);
        assert!(
            refused
                .stderr
                .contains("determine the location of the volume's directory"),
            "{words}: {}",
            refused.stderr
        );
    }
    mounted.unmount();
    place.mount("vol", "mnt", "").unmount();
}

#[test]
fn a_copy_mounted_over_the_volume_is_not_the_volume() {
    let Some(place) = with_file("identity-covered") else {
        return;
    };
    sh(&place, "cp -a vol cp; mount --bind cp vol");
    let refused = place.run("mount vol mnt");
    sh(&place, "umount vol");
    fails(&refused, 32, "this directory may be a copy of the volume");
    place.mount("vol", "mnt", "").unmount();
}

/// Nor a copy on a filesystem that cannot be identified: FUSE, as another volume's mount.
#[test]
fn a_copy_on_a_filesystem_without_identity_is_not_the_volume() {
    let Some(place) = with_file("identity-nameless") else {
        return;
    };
    place.run("create host").done();
    let host = place.mount("host", "fuse", "");
    sh(&place, "cp -a vol fuse/cp; mount --bind fuse/cp vol");
    let refused = place.run("mount vol mnt");
    let looked_at = place.mount("vol", "mnt", "ro");
    assert_eq!(fs::read(looked_at.path("file")).unwrap(), b"as it was");
    looked_at.unmount();
    sh(&place, "umount vol");
    fails(&refused, 32, "this directory may be a copy of the volume");
    place.mount("vol", "mnt", "").unmount();
    // A volume on such a filesystem is at home there, and nowhere else.
    place.run("create fuse/vol").done();
    place.mount("fuse/vol", "mnt", "").unmount();
    place.mount("fuse/vol", "mnt", "").unmount();
    sh(&place, "cp -a fuse/vol own");
    host.unmount();
    sh(&place, "cp -a own fuse/vol");
    fails(
        &place.run("mount fuse/vol mnt"),
        32,
        "this directory may be a copy of the volume",
    );
}

/// A volume that is covered while it is used keeps the path that was remembered.
#[test]
fn the_record_names_no_guessed_path() {
    let Some(place) = with_file("identity-guess") else {
        return;
    };
    sh(&place, "cp -a vol cp");
    let mounted = place.mount("vol", "mnt", "");
    sh(&place, "mount --bind cp vol");
    fs::write(mounted.path("file"), "new").unwrap();
    end(mounted);
    sh(&place, "umount vol");
    let status = place.status(&place.path("vol"));
    let known = status["record"]["directory"].as_str().unwrap_or_default();
    let own = place.path("vol").canonicalize().unwrap();
    assert_eq!(known, own.to_str().unwrap(), "{status}");
    sh(&place, "cp -a vol cp3");
    let refused = place.run("mount cp3 mnt");
    fails(&refused, 32, "this directory is a copy of the volume");
    place.mount("vol", "mnt", "").unmount();
}

/// Nothing is recorded in another keystore at the same path, or in none, and the unmount reports
/// it.
#[test]
fn a_covered_keystore_got_no_record() {
    let Some(place) = with_file("identity-keystore") else {
        return;
    };
    for (cover, uncover) in [
        (
            "mount -t tmpfs -o mode=700 tmpfs keystore",
            "umount keystore",
        ),
        ("mv keystore aside", "rm -rf keystore; mv aside keystore"),
    ] {
        let mounted = place.mount("vol", "mnt", "");
        fs::write(mounted.path("file"), "new").unwrap();
        sh(&place, cover);
        let mut unmount = place.bilayer(["unmount"]);
        let outcome = run_when_free(unmount.arg(mounted.dir()));
        fails(
            &outcome,
            6,
            "everything is on disk, but the platform keystore",
        );
        assert!(!is_alive(mounted.pid));
        let made = place.path("keystore/volumes").exists();
        assert!(!made, "a record was written where no keystore is");
        sh(&place, uncover);
    }
    place.mount("vol", "mnt", "").unmount();
}
