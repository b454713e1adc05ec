//! Rotation of the platform keys.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::real::{Place, noise, run, wait_until, write_synced};
use crate::{LIMIT, json, listed, versions_of};

#[test]
fn a_mounted_volume_is_wrapped_anew_while_it_is_written_to() {
    let Some(place) = Place::new("keystore-mounted", LIMIT) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    let mounted = place.fresh("--customer-key file:key.pem", "checkpoint=1,commit=1");
    write_synced(&mounted.path("before"), &noise(1, 1 << 20)).unwrap();
    let spare = place.path("vol/checkpoints/volume.json");
    assert!(wait_until(Duration::from_secs(20), || spare.exists()));
    let sequence = |status: &serde_json::Value| status["header"]["sequence"].as_u64().unwrap();
    let before = sequence(&place.status(mounted.dir()));

    let done = AtomicBool::new(false);
    let (longest, writes) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut file = fs::File::create(mounted.path("growing")).unwrap();
            let (mut longest, mut writes) = (Duration::ZERO, 0u64);
            while !done.load(Ordering::SeqCst) {
                let begin = Instant::now();
                file.seek(SeekFrom::Start(writes % 64 * 4096)).unwrap();
                file.write_all(&noise(writes, 4096)).unwrap();
                file.sync_data().unwrap();
                longest = longest.max(begin.elapsed());
                writes += 1;
            }
            (longest, writes)
        });
        for version in 2..=6 {
            let report = json(&place, "keystore rotate");
            assert_eq!(report["current_version"], version);
            assert_eq!(report["volumes"][0]["rewrap"], "done", "{report}");
            // When the command has returned, nothing needs the old version any more.
            assert_eq!(
                report["dropped_versions"][0]["version"],
                version - 1,
                "{report}"
            );
            let version = [version.to_string()];
            assert_eq!(versions_of(&place.path("vol/volume.json")), version);
            assert_eq!(versions_of(&spare), version);
        }
        done.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    assert!(writes > 20, "{writes}");
    assert!(longest < Duration::from_secs(5), "a write took {longest:?}");
    let status = place.status(mounted.dir());
    assert_eq!(sequence(&status), before + 10);
    assert_eq!(status["usage"]["latched"], serde_json::Value::Null);
    let entry = listed(&place, &place.path("vol"));
    assert_eq!(entry["state"], "mounted");
    assert_eq!(entry["mounts"][0], mounted.dir().to_str().unwrap());
    assert_eq!(entry["platform_keys"][0]["version"], 6);
    assert!(entry["customer_key"].as_str().unwrap().ends_with("key.pem"));
    // The record is the newest: a kill and the next mount need nothing else.
    mounted.kill();
    mounted.take_away();
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("before")).unwrap(), noise(1, 1 << 20));
    mounted.unmount();
    place.run("check vol").done();
    // The spare copy is of use without the superblock.
    fs::remove_file(place.path("vol/volume.json")).unwrap();
    place
        .run("salvage vol out --customer-key file:key.pem")
        .done();
    let saved = fs::read(place.path("out/files/before"));
    assert_eq!(saved.unwrap(), noise(1, 1 << 20));
}

#[test]
fn an_unmounted_volume_follows_at_its_next_mount_and_keeps_the_old_version_until_then() {
    let Some(place) = Place::new("keystore-unmounted", LIMIT) else {
        return;
    };
    for volume in ["one", "two"] {
        place.run(&format!("create {volume}")).done();
        let mounted = place.mount(volume, "mnt", "");
        fs::write(mounted.path("file"), volume).unwrap();
        mounted.unmount();
    }
    let report = json(&place, "keystore rotate");
    assert_eq!(report["volumes"][0]["rewrap"], "next mount");
    assert_eq!(report["dropped_versions"], serde_json::json!([]));
    let header = place.path("one/volume.json");
    assert_eq!(versions_of(&header), ["1"]);
    // Nothing changes in a volume that is only read, not even by a rotation.
    let before = fs::read(&header).unwrap();
    let reading = place.mount("one", "mnt", "ro");
    let report = json(&place, "keystore rotate");
    let of_one = report["volumes"].as_array().unwrap().iter();
    let mut of_one = of_one.filter(|entry| entry["state"] == "mounted");
    assert_eq!(of_one.next().unwrap()["rewrap"], "next mount", "{report}");
    reading.unmount();
    assert_eq!(fs::read(&header).unwrap(), before);

    let mounted = place.mount("one", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"one");
    assert_eq!(versions_of(&header), ["3"]);
    mounted.unmount();
    let needed = |version: u64| {
        let status = json(&place, "keystore status");
        let versions = status["versions"].as_array().unwrap().clone();
        let found = versions.iter().find(|entry| entry["version"] == version);
        found.map(|entry| entry["needed_by"].as_u64().unwrap())
    };
    assert_eq!((needed(1), needed(2), needed(3)), (Some(1), None, Some(1)));
    let entry = listed(&place, &place.path("two"));
    assert_eq!(
        (&entry["state"], &entry["platform_keys"][0]["version"]),
        (&"present".into(), &1.into())
    );
    place.mount("two", "mnt", "").unmount();
    assert_eq!((needed(1), needed(3)), (None, Some(2)));
    for volume in ["one", "two"] {
        let mounted = place.mount(volume, "mnt", "");
        assert_eq!(fs::read(mounted.path("file")).unwrap(), volume.as_bytes());
        mounted.unmount();
    }
    // A volume that is gone keeps its version.
    fs::rename(place.path("two"), place.path("away")).unwrap();
    fs::create_dir(place.path("two")).unwrap();
    json(&place, "keystore rotate");
    place.mount("one", "mnt", "").unmount();
    assert_eq!(listed(&place, &place.path("two"))["state"], "absent");
    assert_eq!(needed(3), Some(1));
}

#[test]
fn an_old_version_is_replaced_by_the_daemon_of_a_mount() {
    let Some(place) = Place::new("keystore-age", LIMIT) else {
        return;
    };
    for volume in ["one", "two"] {
        place.run(&format!("create {volume}")).done();
    }
    let other = place.mount("two", "mnt2", "");
    let file = place.path("keystore/versions/00000001.json");
    let text = fs::read_to_string(&file).unwrap();
    let (begin, rest) = text.split_once("\"created\":").unwrap();
    let rest = rest.split_once(',').unwrap().1;
    fs::write(&file, format!("{begin}\"created\":1700000000,{rest}")).unwrap();
    assert_eq!(json(&place, "keystore status")["rotation_is_due"], true);
    let log = place.path("log");
    let mounted = place.mount("one", "mnt", &format!("log_file={}", log.display()));
    // Its own volume, and that of the other daemon.
    for volume in ["one", "two"] {
        let header = place.path(volume).join("volume.json");
        let wrapped = || versions_of(&header) == ["2"];
        assert!(wait_until(Duration::from_secs(30), wrapped), "{volume}");
    }
    let text = || fs::read_to_string(&log).unwrap();
    assert!(wait_until(Duration::from_secs(10), || text()
        .contains("bilayer keystore backup")));
    assert!(wait_until(Duration::from_secs(10), || !file.exists()));
    assert_eq!(json(&place, "keystore status")["rotation_is_due"], false);
    mounted.unmount();
    other.unmount();
}

#[test]
fn an_export_keeps_the_version_that_it_was_made_for() {
    let Some(place) = Place::new("keystore-export", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "of then").unwrap();
    place.run("image create vol base").done();
    place.run("image export vol base base.bilayer").done();
    json(&place, "keystore rotate");
    let status = json(&place, "keystore status");
    assert_eq!(status["versions"][0]["exports"], true, "{status}");
    // The next export is made for the new version.
    place.run("image export vol base newer.bilayer").done();
    mounted.unmount();
    for (file, volume) in [("base.bilayer", "copy"), ("newer.bilayer", "copy2")] {
        place.run(&format!("image import {file} {volume}")).done();
        let mounted = place.mount(volume, "mnt", "");
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"of then");
        mounted.unmount();
    }
}

#[test]
fn a_kill_while_keys_are_rotated_leaves_volumes_that_mount() {
    let Some(place) = Place::new("keystore-kill", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    place.run("create other").done();
    let mounted = place.mount("vol", "mnt", "");
    write_synced(&mounted.path("file"), b"kept").unwrap();
    for attempt in 0..20u64 {
        let mut rotating = place.bilayer(["keystore", "rotate"]);
        rotating
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut rotating = rotating.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(attempt * 7));
        rotating.kill().unwrap();
        rotating.wait().unwrap();
        json(&place, "keystore status");
    }
    // The daemon, too, is killed in the middle of a re-wrap.
    let mut rotating = place.bilayer(["keystore", "rotate"]);
    rotating
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut rotating = rotating.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(15));
    mounted.kill();
    rotating.wait().unwrap();
    mounted.take_away();
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"kept");
    let newest = json(&place, "keystore rotate")["current_version"]
        .as_u64()
        .unwrap();
    assert_eq!(
        versions_of(&place.path("vol/volume.json")),
        [newest.to_string()]
    );
    mounted.unmount();
    place.mount("other", "mnt", "").unmount();
    let status = json(&place, "keystore status");
    assert_eq!(status["versions"].as_array().unwrap().len(), 1, "{status}");
}

#[test]
fn two_rotations_at_once_both_succeed() {
    let Some(place) = Place::new("keystore-twice", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let rotate = || run(&mut place.bilayer(["keystore", "rotate", "--json"])).done();
            scope.spawn(rotate);
        }
    });
    assert_eq!(json(&place, "keystore status")["current_version"], 5);
    assert_eq!(versions_of(&place.path("vol/volume.json")), ["5"]);
    mounted.unmount();
    place.mount("vol", "mnt", "").unmount();
}
