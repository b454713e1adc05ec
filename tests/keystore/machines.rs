//! A keystore that is lost or moved: backups restored on another machine, which is another keystore
//! directory with the volumes at other paths.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::real::{Place, command, run};
use crate::{LIMIT, json, passphrase, versions_of};

/// Copies a volume as a disk that is carried to another machine.
fn carry(place: &Place, from: &str, to: &str) {
    run(command("cp", ["-a", from, to]).current_dir(place.path(""))).silent();
}

#[test]
fn volumes_mount_on_a_second_machine_with_the_restored_backup() {
    let Some(place) = Place::new("keystore-second", LIMIT) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    place.run("create plain").done();
    place
        .run("create managed --customer-key file:key.pem")
        .done();
    for volume in ["plain", "managed"] {
        let mounted = place.mount(volume, "mnt", "");
        fs::write(mounted.path("file"), volume).unwrap();
        mounted.unmount();
    }
    json(&place, "keystore rotate");
    place.mount("plain", "mnt", "").unmount();
    passphrase(&place, "passphrase", "correct horse\n");
    place.dir("mnt");
    let made = json(
        &place,
        "keystore backup keys.backup --passphrase-file passphrase",
    );
    assert_eq!(
        (&made["versions"], &made["volumes"]),
        (&2.into(), &2.into())
    );
    let mode = fs::metadata(place.path("keys.backup"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);

    let there = "--platform-keystore second";
    let restore = format!("keystore restore keys.backup --passphrase-file passphrase {there}");
    for volume in ["plain", "managed"] {
        carry(&place, volume, &format!("{volume}-there"));
        let words = format!("mount {volume}-there mnt {there}");
        assert_eq!(place.run(&words).code, 32);
    }
    let done = json(&place, &restore);
    assert_eq!(
        (&done["is_new"], &done["versions_added"]),
        (&true.into(), &2.into())
    );
    for volume in ["plain", "managed"] {
        place
            .run(&format!("mount {volume}-there mnt {there}"))
            .done();
        let mounted = place.mounted(&place.path("mnt"));
        assert_eq!(fs::read(mounted.path("file")).unwrap(), volume.as_bytes());
        fs::write(mounted.path("more"), "written there").unwrap();
        mounted.unmount();
        let header = place.path(&format!("{volume}-there/volume.json"));
        assert_eq!(versions_of(&header), ["2"]);
    }
    let list = json(&place, &format!("keystore list {there}"));
    let paths: Vec<&str> = list["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["directory"].as_str().unwrap())
        .collect();
    assert!(
        paths.iter().all(|path| path.ends_with("-there")),
        "{paths:?}"
    );
    // An older copy is noticed there as well, from the first record on.
    carry(&place, "plain", "older");
    fs::remove_dir_all(place.path("plain-there")).unwrap();
    fs::rename(place.path("older"), place.path("plain-there")).unwrap();
    let refused = place.run(&format!("mount plain-there mnt {there}"));
    assert_eq!(refused.code, 32);
    assert!(
        refused.stderr.contains("not the newest state"),
        "{}",
        refused.stderr
    );
    // Restoring the backup again, which knows less, changes nothing about that.
    json(&place, &restore);
    assert_eq!(
        place.run(&format!("mount plain-there mnt {there}")).code,
        32
    );
}

#[test]
fn a_machine_with_a_keystore_of_its_own_adopts_the_volumes_of_another() {
    let Some(place) = Place::new("keystore-adopted", LIMIT) else {
        return;
    };
    passphrase(&place, "passphrase", "correct horse\n");
    place.dir("mnt");
    let (here, there) = ("--platform-keystore one", "--platform-keystore two");
    for (volume, keystore) in [("ours", here), ("theirs", there)] {
        place.run(&format!("create {volume} {keystore}")).done();
        place.run(&format!("mount {volume} mnt {keystore}")).done();
        let mounted = place.mounted(&place.path("mnt"));
        fs::write(mounted.path("file"), volume).unwrap();
        mounted.unmount();
    }
    let backup = format!("keystore backup theirs.backup --passphrase-file passphrase {there}");
    json(&place, &backup);
    assert_eq!(place.run(&format!("mount theirs mnt {here}")).code, 32);
    let restore = format!("keystore restore theirs.backup --passphrase-file passphrase {here}");
    let done = json(&place, &restore);
    assert_eq!(
        (&done["adopted"], &done["is_new"]),
        (&true.into(), &false.into())
    );
    let use_it = |volume: &str, keystore: &str| {
        place.run(&format!("mount {volume} mnt {keystore}")).done();
        let mounted = place.mounted(&place.path("mnt"));
        assert_eq!(fs::read(mounted.path("file")).unwrap(), volume.as_bytes());
        mounted.unmount();
    };
    use_it("theirs", here);
    use_it("ours", here);
    // It can still go back to where it came from.
    use_it("theirs", there);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    json(&place, &format!("keystore rotate {here}"));
    use_it("theirs", here);
    use_it("ours", here);
    for volume in ["ours", "theirs"] {
        assert_eq!(
            versions_of(&place.path(&format!("{volume}/volume.json"))),
            ["2"]
        );
    }
    let status = json(&place, &format!("keystore status {here}"));
    assert_eq!(status["versions"].as_array().unwrap().len(), 1, "{status}");
    // Now it needs the new keystore, and a backup of that.
    let refused = place.run(&format!("mount theirs mnt {there}"));
    assert_eq!(refused.code, 32);
    assert!(
        refused.stderr.contains("keystore restore"),
        "{}",
        refused.stderr
    );
    json(
        &place,
        &format!("keystore backup ours.backup --passphrase-file passphrase {here}"),
    );
    json(
        &place,
        &format!("keystore restore ours.backup --passphrase-file passphrase {there}"),
    );
    use_it("theirs", there);
}

#[test]
fn a_lost_keystore_is_restored_in_its_place() {
    let Some(place) = Place::new("keystore-lost", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "kept").unwrap();
    passphrase(&place, "passphrase", "correct horse\n");
    place.dir("mnt");
    json(
        &place,
        "keystore backup keys.backup --passphrase-file passphrase",
    );
    mounted.unmount();
    fs::remove_dir_all(place.path("keystore")).unwrap();
    assert_eq!(place.run("mount vol mnt").code, 32);
    // In the middle of it the process is killed, at many moments.
    for delay in 0..12u64 {
        let words = [
            "keystore",
            "restore",
            "keys.backup",
            "--passphrase-file",
            "passphrase",
        ];
        let mut restoring = place.bilayer(words);
        restoring
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut restoring = restoring.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 + delay * 40));
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        // Either there is no keystore yet, or a whole one.
        let status = place.run("keystore status");
        assert!([0, 4].contains(&status.code), "{}", status.stderr);
    }
    json(
        &place,
        "keystore restore keys.backup --passphrase-file passphrase",
    );
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"kept");
    mounted.unmount();
}
