//! Another volume at the path of the one that this machine knows there.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::real::{Outcome, Place, command, run};
use crate::{end, fails};

const LIMIT: Duration = Duration::from_secs(300);
const SAYS: &str = "this machine knows the volume";

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

/// Creates volumes, each with a file that contains the volume's name.
fn volumes(test: &'static str, names: &[&str]) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    for name in names {
        place.run(&format!("create {name}")).done();
        fill(&place, name, name);
    }
    Some(place)
}

fn fill(place: &Place, volume: &str, text: &str) {
    let mounted = place.mount(volume, "mnt", "");
    fs::write(mounted.path("file"), text).unwrap();
    mounted.unmount();
}

#[track_caller]
fn holds(place: &Place, volume: &str, options: &str, text: &str) {
    let mounted = place.mount(volume, "mnt", options);
    assert_eq!(fs::read_to_string(mounted.path("file")).unwrap(), text);
    mounted.unmount();
}

fn id(place: &Place, volume: &str) -> String {
    let mut inspect = place.bilayer(["inspect", "--json", volume]);
    let report: Value = serde_json::from_str(&run(&mut inspect).done().stdout).unwrap();
    report["header"]["volume_id"].as_str().unwrap().to_owned()
}

/// Refused for reading and for writing, by every command that opens the volume.
#[track_caller]
fn refused(place: &Place, volume: &str, known: &str) -> Outcome {
    for (words, code) in [
        ("snapshot list", 5),
        ("check", 8),
        ("mount -o ro", 32),
        ("mount --accept-restored", 32),
    ] {
        let dir = if words.starts_with("mount") {
            "mnt"
        } else {
            ""
        };
        let outcome = place.run(&format!("{words} {volume} {dir}"));
        fails(&outcome, code, SAYS);
    }
    let status = place.status(&place.path(volume));
    let why = status["not_verified_because"].as_str().unwrap_or_default();
    assert!(why.contains(SAYS), "{status}");
    let outcome = place.run(&format!("mount {volume} mnt"));
    fails(&outcome, 32, SAYS);
    for said in [known, &id(place, volume), "fingerprint="] {
        assert!(outcome.stderr.contains(said), "{said}: {}", outcome.stderr);
    }
    outcome
}

/// The option in the hint.
fn hinted_pin(outcome: &Outcome) -> String {
    let at = outcome.stderr.find("fingerprint=").unwrap();
    let pin = outcome.stderr[at..].split_whitespace().next().unwrap();
    pin.to_owned()
}

/// A volume that this machine has never opened, created elsewhere under its platform keys.
#[test]
fn a_volume_never_seen_does_not_pass_for_another() {
    for customer in [false, true] {
        let Some(place) = Place::new("replaced-unseen", LIMIT) else {
            return;
        };
        let create = if customer {
            place.run("keygen key.pem --bits 2048").done();
            "--customer-key file:key.pem"
        } else {
            ""
        };
        let mounted = place.fresh(create, "");
        fs::write(mounted.path("file"), "genuine").unwrap();
        mounted.unmount();
        sh(&place, "cp -a keystore stolen; rm stolen/volumes/*");
        place.run("create evil --platform-keystore stolen").done();
        let known = id(&place, "vol");
        // At a fresh path it is mounted as usual, here or there.
        sh(&place, "cp -a evil fresh");
        place.mount("fresh", "mnt", "ro").unmount();
        sh(&place, "rm -r fresh; mv vol aside; mv evil vol");
        refused(&place, "vol", &known);
        // Through another path to the same directory, too.
        sh(
            &place,
            "ln -s vol link; mkdir bound; mount --bind vol bound",
        );
        fails(&place.run("mount link mnt -o ro"), 32, SAYS);
        fails(&place.run("mount bound mnt -o ro"), 32, SAYS);
        sh(&place, "umount bound; rm -r vol; mv aside vol");
        holds(&place, "vol", "", "genuine");
    }
}

/// Both belong to this machine: only the user who moved them can distinguish a swap from an attack.
#[test]
fn two_known_volumes_that_were_swapped() {
    let Some(place) = volumes("replaced-swapped", &["one", "two"]) else {
        return;
    };
    let (one, two) = (id(&place, "one"), id(&place, "two"));
    sh(&place, "mv one aside; mv two one; mv aside two");
    let outcome = refused(&place, "one", &one);
    refused(&place, "two", &two);
    let wrong = hinted_pin(&place.run("mount two mnt"));
    fails(&place.run(&format!("mount one mnt -o {wrong}")), 32, "not");
    // Looking at it changes nothing; once it was mounted for writing it is at home.
    let pin = hinted_pin(&outcome);
    holds(&place, "one", &format!("ro,{pin}"), "two");
    fails(&place.run("mount one mnt"), 32, SAYS);
    holds(&place, "one", &pin, "two");
    for _ in 0..2 {
        holds(&place, "one", "", "two");
        holds(&place, "two", "", "one");
    }
    place.run("check one").done();
    // Now the previous volume is the unexpected one.
    sh(&place, "mv two aside; mv one gone; mv aside one");
    refused(&place, "one", &two);
}

/// `mv A B; mv C A`: the new path of A is known once it was mounted there.
#[test]
fn a_place_is_free_when_its_volume_is_known_elsewhere() {
    let Some(place) = volumes("replaced-moved", &["a", "c"]) else {
        return;
    };
    let known = id(&place, "a");
    sh(&place, "mv a b; mv c a");
    refused(&place, "a", &known);
    holds(&place, "b", "", "a");
    holds(&place, "a", "", "c");
    // A volume whose directory was moved while it was mounted.
    let mounted = place.mount("a", "mnt", "commit=1");
    sh(&place, "mv a d");
    fs::write(mounted.path("file"), "moved").unwrap();
    end(mounted);
    // It may have been moved by somebody else: its former path is free once it is opened at the new
    // one.
    let known = id(&place, "d");
    sh(&place, "mv b a");
    refused(&place, "a", &known);
    holds(&place, "d", "", "moved");
    holds(&place, "a", "", "a");
    // And once more, back and forth.
    let mounted = place.mount("a", "mnt", "commit=1");
    for script in ["mv a e", "mv e a"] {
        sh(&place, script);
        fs::write(mounted.path("file"), script).unwrap();
        run(command("sync", ["-f"]).arg(mounted.dir())).done();
    }
    mounted.unmount();
    let record = place.path(&format!("keystore/volumes/{}.json", id(&place, "a")));
    let record = fs::read_to_string(record).unwrap();
    assert!(!record.contains("former"), "{record}");
    holds(&place, "a", "", "mv e a");
}

/// A symbolic link at the path of a volume, or of a directory above it, does not make that another
/// path.
#[test]
fn a_link_at_the_path_of_a_volume_is_no_other_path() {
    let Some(place) = volumes("replaced-link", &["one", "two"]) else {
        return;
    };
    let one = id(&place, "one");
    sh(&place, "mkdir top; mv one top");
    holds(&place, "top/one", "", "one");
    for (put, back) in [
        (
            "mv top/one aside; ln -s ../two top/one",
            "rm top/one; mv aside top/one",
        ),
        (
            "mv top aside; mkdir new; mv two new/one; ln -s new top",
            "rm top; mv new/one two; rmdir new; mv aside top",
        ),
    ] {
        sh(&place, put);
        let pin = hinted_pin(&refused(&place, "top/one", &one));
        // The volume is still at its own path.
        holds(&place, "top/one", &format!("ro,{pin}"), "two");
        sh(&place, back);
        holds(&place, "top/one", "", "one");
    }
    holds(&place, "two", "", "two");
    sh(
        &place,
        "mv top/one aside; mkdir empty; ln -s ../empty top/one",
    );
    let outcome = place.run("mount top/one mnt --create");
    fails(&outcome, 32, "and no volume is there now");
    // The volume itself may be moved and reached through a link.
    sh(&place, "rm top/one; ln -s ../aside top/one");
    for _ in 0..2 {
        holds(&place, "top/one", "", "one");
    }
    sh(&place, "ln -s aside link");
    holds(&place, "link", "", "one");
}

/// Somebody moves a volume that is open to the path of another one: only its owner may confirm that
/// it belongs there.
#[test]
fn a_volume_moved_while_it_is_mounted_takes_over_no_path() {
    let Some(place) = volumes("replaced-taken", &["a", "c"]) else {
        return;
    };
    let known = id(&place, "c");
    let mounted = place.mount("a", "mnt", "commit=1");
    sh(&place, "mv c aside; mv a c");
    fs::write(mounted.path("file"), "moved").unwrap();
    end(mounted);
    let pin = hinted_pin(&refused(&place, "c", &known));
    // Both are at home again, and neither is anywhere else.
    sh(&place, "mv c a; mv aside c");
    holds(&place, "a", "", "moved");
    holds(&place, "c", "", "c");
    // The confirmed volume may be moved away and back while it is open.
    sh(&place, "mv c aside; mv a c");
    let mounted = place.mount("c", "mnt", &format!("commit=1,{pin}"));
    for script in ["mv c a", "mv a c"] {
        sh(&place, script);
        fs::write(mounted.path("file"), script).unwrap();
        run(command("sync", ["-f"]).arg(mounted.dir())).done();
    }
    end(mounted);
    holds(&place, "c", "", "mv a c");
}

/// Every operation that creates a volume takes over the path of the volume that was there.
#[test]
fn a_new_volume_takes_over_the_path() {
    let Some(place) = volumes("replaced-made", &["vol", "source"]) else {
        return;
    };
    place.run("image create source base").done();
    for make in ["create vol", "image deploy source base vol", "create vol"] {
        let before = id(&place, "vol");
        // As if the clock had been set back since.
        sh(
            &place,
            "sed -i 's/\"written\":[0-9]*/\"written\":9000000000/' keystore/volumes/*.json",
        );
        sh(&place, "rm -r vol");
        place.run(make).done();
        place.mount("vol", "mnt", "").unmount();
        assert_ne!(id(&place, "vol"), before);
        place.mount("vol", "mnt", "ro").unmount();
        // And it stays at home there.
        sh(
            &place,
            "sed -i 's/\"clean\":true/\"clean\":false/' keystore/volumes/*.json",
        );
        place.mount("vol", "mnt", "").unmount();
    }
    // A copy that becomes a volume of its own, each day at the same path.
    for _ in 0..2 {
        sh(&place, "rm -rf drill; cp -a source drill");
        place.run("mount drill mnt --new-identity").done();
        place.mounted(&place.path("mnt")).unmount();
        holds(&place, "drill", "", "source");
        holds(&place, "source", "", "source");
    }
    // A copy of another volume does not belong there.
    let known = id(&place, "drill");
    sh(&place, "rm -r drill; cp -a source drill");
    refused(&place, "drill", &known);
}

/// An older volume at the path of one that was created there later.
#[test]
fn the_volume_before_does_not_come_back() {
    let Some(place) = volumes("replaced-former", &["vol"]) else {
        return;
    };
    sh(&place, "mv vol former");
    place.run("create vol").done();
    fill(&place, "vol", "later");
    let known = id(&place, "vol");
    sh(&place, "mv vol later; mv former vol");
    refused(&place, "vol", &known);
}

/// `--create` creates a volume where there was none, not where one was removed.
#[test]
fn a_removed_volume_is_not_created_again() {
    let Some(place) = Place::new("replaced-vanished", LIMIT) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    place
        .run("mount vol mnt --create -o customer_key=file:key.pem")
        .done();
    place.mounted(&place.path("mnt")).unmount();
    for script in ["mv vol aside", "mkdir vol"] {
        sh(&place, script);
        let outcome = place.run("mount vol mnt --create");
        fails(&outcome, 32, "and no volume is there now");
        assert!(
            outcome.stderr.contains("bilayer create"),
            "{}",
            outcome.stderr
        );
    }
    sh(&place, "rmdir vol; mv aside vol");
    place.run("mount vol mnt --create").done();
    place.mounted(&place.path("mnt")).unmount();
}

/// Nor if its disk is mounted elsewhere than before.
#[test]
fn a_volume_removed_with_its_disk_is_not_created_again() {
    let Some(place) = Place::new("replaced-vanished-disk", LIMIT) else {
        return;
    };
    sh(&place, "mkdir before now; mount -t tmpfs tmpfs before");
    place.run("create before/vol").done();
    fill(&place, "before/vol", "text");
    sh(
        &place,
        "mount --bind before now; umount before; mv now/vol now/aside",
    );
    let outcome = place.run("mount now/vol mnt --create");
    fails(&outcome, 32, "and no volume is there now");
    sh(&place, "mv now/aside now/vol");
    holds(&place, "now/vol", "", "text");
    sh(&place, "umount now");
}

/// Disks that alternate at one mount point, each with a volume that is known there.
#[test]
fn each_disk_has_its_own_volume_at_the_same_path() {
    let Some(place) = Place::new("replaced-disks", LIMIT) else {
        return;
    };
    sh(
        &place,
        "mkdir disk first second; mount -t tmpfs tmpfs first; mount -t tmpfs tmpfs second",
    );
    let turn = |name: &str| sh(&place, &format!("mount --bind {name} disk"));
    for name in ["first", "second"] {
        turn(name);
        place.run("create disk/vol").done();
        fill(&place, "disk/vol", name);
        sh(&place, "umount disk");
    }
    for name in ["first", "second", "first"] {
        turn(name);
        holds(&place, "disk/vol", "", name);
        sh(&place, "umount disk");
    }
    // On the other disk it is another volume.
    sh(
        &place,
        "mv second/vol second/aside; cp -a first/vol second/vol",
    );
    turn("second");
    fails(&place.run("mount disk/vol mnt -o ro"), 32, SAYS);
    sh(&place, "umount disk; umount first; umount second");
}

/// Records of other volumes delay no command, and block nothing if they cannot be read.
#[test]
fn thousands_of_records() {
    const RECORDS: u32 = 2000;
    let Some(place) = volumes("replaced-many", &["vol"]) else {
        return;
    };
    let folder = place.path("keystore/volumes");
    let own = folder.join(format!("{}.json", id(&place, "vol")));
    let text = fs::read_to_string(&own).unwrap();
    let known = id(&place, "vol");
    let path = |path: &Path| hex::encode(path.to_str().unwrap());
    let vol = place.path("vol").canonicalize().unwrap();
    let once = || {
        let begin = Instant::now();
        for _ in 0..5 {
            place.run("snapshot list vol").done();
        }
        begin.elapsed() / 5
    };
    let alone = once();
    for number in 0..RECORDS {
        let volume = format!("{number:032x}");
        let elsewhere = vol.with_file_name(format!("elsewhere{number}"));
        let text = text.replace(&known, &volume);
        let text = text.replace(&path(&vol), &path(&elsewhere));
        fs::write(folder.join(format!("{volume}.json")), text).unwrap();
    }
    let among = once();
    println!("snapshot list: {alone:?} alone, {among:?} among {RECORDS} records");
    assert!(among < alone + Duration::from_secs(2), "{among:?}");
    let broken = text
        .replace(&known, &"f".repeat(32))
        .replace("\"clean\"", "\"?\"");
    fs::write(folder.join(format!("{}.json", "f".repeat(32))), broken).unwrap();
    fs::create_dir(folder.join(format!("{}.json", "e".repeat(32)))).unwrap();
    holds(&place, "vol", "", "vol");
}
