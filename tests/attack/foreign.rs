//! The attacker fills a volume on a machine of theirs with a set-id program owned by root and a
//! device that anybody may open, and sends its image. Root imports and mounts it, and the attacker
//! is an ordinary user there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::real::{Mounted, Outcome, Place, as_user, can_switch_users, run};

const LIMIT: Duration = Duration::from_secs(150);
/// An ordinary user.
const USER: u32 = 1000;

/// A place that ordinary users may enter, with a volume of the attacker's and its stream.
fn place(test: &'static str) -> Option<Place> {
    drop(Place::new(test, LIMIT)?);
    if !can_switch_users(test) {
        return None;
    }
    let place = Place::at(test, LIMIT, Path::new("/var/tmp"));
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.path("pass"), "between us\n").unwrap();
    theirs(&place, "create theirs").done();
    place.dir("mnt");
    theirs(&place, "mount theirs mnt").done();
    let mounted = place.mounted(&place.path("mnt"));
    fill(&mounted);
    mounted.unmount();
    theirs(&place, "image create theirs base").done();
    theirs(
        &place,
        "image export theirs base stream --transport-passphrase-file pass",
    )
    .done();
    Some(place)
}

/// That is, on the attacker's machine, with their keystore.
fn theirs(place: &Place, words: &str) -> Outcome {
    let mut command = place.bilayer(words.split_whitespace());
    command.env("BILAYER_PLATFORM_KEYSTORE", place.path("their-keystore"));
    run(&mut command)
}

fn fill(mounted: &Mounted<'_>) {
    let program = mounted.path("become");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let device = mounted.path("device");
    let null = makedev(1, 3);
    mknodat(CWD, &device, FileType::CharacterDevice, Mode::RUSR, null).unwrap();
    fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).unwrap();
}

/// Whether an ordinary user becomes root by the program, and can open the device.
fn works(mounted: &Mounted<'_>) -> (bool, bool) {
    let program = mounted.path("become");
    let said = run(as_user(USER).arg(&program).arg("-u")).done();
    let becomes_root = said.stdout.trim() == "0";
    let opened = run(as_user(USER).arg("cat").arg(mounted.path("device")));
    (becomes_root, opened.code == 0)
}

#[track_caller]
fn mount_and_try(place: &Place, volume: &str, options: &str) -> (bool, bool) {
    let mounted = place.mount(volume, "mnt", options);
    let worked = works(&mounted);
    mounted.unmount();
    worked
}

fn is_foreign(place: &Place, volume: &str) -> bool {
    place.status(&place.path(volume))["header"]["foreign"] == true
}

#[test]
fn set_id_programs_and_devices_of_an_imported_image_do_nothing() {
    let Some(place) = place("attack-foreign") else {
        return;
    };
    place
        .run("image import stream copy --transport-passphrase-file pass")
        .done();
    assert!(is_foreign(&place, "copy"));
    let inspected = place.run("inspect copy").done().stdout;
    assert!(inspected.contains("came from elsewhere"), "{inspected}");
    assert_eq!(
        mount_and_try(&place, "copy", "log_file=log"),
        (false, false)
    );
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(log.contains("the volume came from elsewhere"), "{log}");
    // They are available on request.
    assert_eq!(mount_and_try(&place, "copy", "suid"), (true, false));
    assert_eq!(mount_and_try(&place, "copy", "dev"), (false, true));
    assert_eq!(mount_and_try(&place, "copy", "suid,dev"), (true, true));
    assert_eq!(mount_and_try(&place, "copy", "trusted"), (true, true));
    assert_eq!(
        mount_and_try(&place, "copy", "trusted,nosuid"),
        (false, true)
    );
}

#[test]
fn a_remount_restores_no_set_id_programs_or_devices() {
    let Some(place) = place("attack-foreign-remount") else {
        return;
    };
    place
        .run("image import stream copy --transport-passphrase-file pass")
        .done();
    let mounted = place.mount("copy", "mnt", "");
    for words in ["remount,ro", "remount,rw", "remount,noatime"] {
        place.run(&format!("mount copy mnt -o {words}")).done();
        assert_eq!(works(&mounted), (false, false), "{words}");
    }
    place.run("mount copy mnt -o remount,suid,dev").done();
    assert_eq!(works(&mounted), (true, true), "asked for");
    place.run("mount copy mnt -o remount,ro").done();
    assert_eq!(works(&mounted), (true, true), "kept");
    mounted.unmount();
}

/// A volume made from it is no more trusted, after any number of steps; a volume made from one's
/// own is trusted.
#[test]
fn a_deployed_volume_is_as_foreign_as_its_source_and_its_keys() {
    let Some(place) = place("attack-foreign-deploy") else {
        return;
    };
    place
        .run("image import stream copy --transport-passphrase-file pass")
        .done();
    place.run("image create copy base").done();
    place.run("image deploy copy base again").done();
    assert!(is_foreign(&place, "again"));
    assert_eq!(mount_and_try(&place, "again", ""), (false, false));

    theirs(&place, "image deploy theirs base own").done();
    let status = theirs(&place, "status --json own").done().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["header"]["foreign"], false, "the same holder");
    theirs(&place, "mount own mnt").done();
    let mounted = place.mounted(&place.path("mnt"));
    assert_eq!(works(&mounted), (true, true));
    mounted.unmount();

    // Made by the attacker for the holder of another customer key.
    theirs(&place, "keygen key.pem --bits 2048").done();
    theirs(
        &place,
        "image deploy theirs base given --customer-key file:key.pem",
    )
    .done();
    let status = theirs(&place, "status --json given").done().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["header"]["foreign"], true, "another holder");
}
