//! `bilayer image` on volumes that are not mounted: its output, its results, and its failures.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::real::{Place, noise, run, write_synced};
use crate::{Victim, fails};

#[track_caller]
fn json(place: &Place, words: &str) -> Value {
    let outcome = place.run(&format!("{words} --json")).done();
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// The volume has the file of its source, and its status names the source.
#[track_caller]
fn provenance(place: &Place, volume: &str, source: &str) {
    let mounted = place.mount(volume, "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
    fs::write(mounted.path("new"), "new").unwrap();
    mounted.unmount();
    let status = place.status(&place.path(volume));
    assert_eq!(status["verified"], true);
    assert_eq!(status["header"]["provenance"], source);
    let sets = status["header"]["key_sets"].as_array().unwrap();
    let active: Vec<bool> = sets.iter().map(|set| set["active"] == true).collect();
    assert_eq!(active, [false, true]);
    let inspect = place.run(&format!("inspect {volume}")).done().stdout;
    let line = inspect
        .lines()
        .find(|line| line.starts_with("deployed from"));
    let line = line.unwrap_or_else(|| panic!("{inspect}"));
    assert!(
        line.contains(source) && line.ends_with("(unverified)"),
        "{line}"
    );
}

#[test]
fn images_are_made_deployed_exported_and_imported() {
    for customer in [false, true] {
        let Some(victim) = Victim::new("cli-images", customer) else {
            return;
        };
        let place = &victim.place;
        let id = place.status(&place.path("vol"))["header"]["volume_id"].clone();
        let source = format!("{}/base", id.as_str().unwrap());
        place.run("snapshot create vol monday").done();
        let made = place.run("image create vol base --from monday --description first");
        assert_eq!(made.done().stdout, "image base made\n");
        let listed = json(place, "image list vol");
        assert_eq!(listed[0]["from"], "monday");
        assert_eq!(listed[0]["description"], "first");
        let list = place.run("image list vol").done().stdout;
        assert!(
            list.lines().nth(1).unwrap().ends_with("monday  first"),
            "{list}"
        );

        let made = json(place, "image deploy vol base copy");
        let ways = ["linked", "reflinked", "copied", "resealed"];
        let ways = ways.map(|way| made[way].as_u64().unwrap());
        assert_eq!(made["objects"], ways.iter().sum::<u64>());
        assert_eq!(ways[3], 0);
        provenance(place, "copy", &source);

        write_synced(&place.path("pass"), b"between us\n").unwrap();
        let words = "image export vol base out --transport-passphrase-file pass";
        let stdout = place.run(words).done().stdout;
        assert!(stdout.starts_with("image base exported: "), "{stdout}");
        let mode = fs::metadata(place.path("out"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        let key = if customer {
            "--customer-key file:key.pem"
        } else {
            ""
        };
        let import = format!("image import out import --transport-passphrase-file pass {key}");
        let stdout = place.run(&import).done().stdout;
        assert!(
            stdout.starts_with("volume ") && stdout.contains(" made in "),
            "{stdout}"
        );
        provenance(place, "import", &source);

        place.run("image delete vol base").silent();
        place.run("image list vol").silent();
        provenance(place, "copy", &source);
        victim.is_unharmed();
    }
}

/// Figures: amounts, durations and rates.
#[track_caller]
fn assert_rate(report: &Value, bytes: u64) {
    assert_eq!(report["bytes"], bytes, "{report}");
    let milliseconds = report["milliseconds"].as_u64().unwrap();
    let rate = report["bytes_per_second"].as_u64().unwrap();
    let least = bytes * 1000 / (milliseconds + 1);
    assert!(rate >= least, "{report}");
    assert!(milliseconds == 0 || rate <= bytes * 1000 / milliseconds);
}

/// For another key or keystore everything is re-sealed, and the command says so, with amounts and
/// rates.
#[test]
fn images_for_another_holder() {
    for mounted in [false, true] {
        let Some(victim) = Victim::new("cli-image-holder", false) else {
            return;
        };
        let place = &victim.place;
        let large = noise(1, 3 << 20);
        let mount = place.mount("vol", "mnt", "");
        write_synced(&mount.path("large"), &large).unwrap();
        let mut mount = Some(mount);
        if !mounted {
            mount.take().unwrap().unmount();
        }
        place.run("image create vol base").done();
        place.run("keygen key.pem --bits 2048").done();
        let pages = (3_u64 << 20).div_ceil(4032);
        let with = "--customer-key file:key.pem --new-platform-keystore theirs";
        let made = json(place, &format!("image deploy vol base copy {with}"));
        assert_eq!(made["resealed"], made["objects"]);
        assert_rate(&made, pages * 4096);
        let line = place.run("image deploy vol base again --new-platform-keystore theirs");
        let line = line.done();
        assert_eq!(line.stderr, "", "no progress where there is no terminal");
        let words = line.stdout;
        assert!(
            words.contains("3.1 MiB in ") && words.contains("iB/s, "),
            "{words}"
        );
        assert!(words.ends_with(" sealed anew\n"), "{words}");
        write_synced(&place.path("pass"), b"between us\n").unwrap();
        let made = json(
            place,
            "image export vol base out --transport-passphrase-file pass",
        );
        assert_rate(&made, fs::metadata(place.path("out")).unwrap().len());
        let keyed = "image export vol base keyed --customer-key file:key.pem";
        place.run(keyed).done();
        if let Some(mount) = mount {
            mount.unmount();
        }
        let made = json(
            place,
            "image import out there --transport-passphrase-file pass --platform-keystore third",
        );
        assert_rate(&made, pages * 4096);
        fails(
            &place.run("image import keyed mine"),
            4,
            "needs its customer key",
        );
        let import = "image import keyed mine --customer-key file:key.pem";
        place.run(import).done();
        for (volume, keystore) in [
            ("copy", "theirs"),
            ("again", "theirs"),
            ("there", "third"),
            ("mine", "keystore"),
        ] {
            let options = format!("platform_keystore={keystore}");
            let options = match volume {
                "copy" | "mine" => format!("{options},customer_key=file:key.pem"),
                _ => options,
            };
            let copy = place.mount(volume, "mnt", &options);
            assert!(fs::read(copy.path("large")).unwrap() == large);
            assert_eq!(fs::read(copy.path("file")).unwrap(), b"as it was");
            copy.unmount();
        }
        victim.is_unharmed();
    }
}

#[test]
fn a_stream_passes_through_a_pipe() {
    let Some(victim) = Victim::new("cli-image-pipe", false) else {
        return;
    };
    let place = &victim.place;
    let mounted = place.mount("vol", "mnt", "");
    write_synced(&mounted.path("large"), &noise(1, 3 << 20)).unwrap();
    mounted.unmount();
    place.run("image create vol base").done();
    let mut pipe = crate::real::command(
        "sh",
        [
            "-c",
            "\"$0\" image export vol base - | \"$0\" image import - copy",
        ],
    );
    place.environment(pipe.arg(crate::real::BILAYER));
    let said = run(&mut pipe).done();
    assert!(
        said.stderr.starts_with("image base exported: "),
        "{}",
        said.stderr
    );
    assert!(said.stdout.starts_with("volume "), "{}", said.stdout);
    let mounted = place.mount("copy", "mnt", "");
    assert!(fs::read(mounted.path("large")).unwrap() == noise(1, 3 << 20));
    mounted.unmount();
}

#[test]
fn failures_are_explained() {
    let Some(victim) = Victim::new("cli-image-failures", true) else {
        return;
    };
    let place = &victim.place;
    place.run("image create vol base").done();
    place.dir("full");
    place.dir("dir");
    fs::write(place.path("full/file"), "x").unwrap();
    fs::write(place.path("noise"), noise(2, 5000)).unwrap();
    fs::write(place.path("kept"), "kept").unwrap();
    for (words, code, says) in [
        ("create vol base", 3, "image \"base\" already"),
        ("create vol new --from gone", 2, "no snapshot \"gone\""),
        ("create vol a/b", 1, "a/b"),
        ("create gone base", 2, "cannot find gone"),
        ("delete vol gone", 2, "no image \"gone\""),
        ("deploy vol gone new", 2, "no image \"gone\""),
        ("deploy vol base full", 1, "file"),
        ("deploy vol base vol", 1, "vol"),
        ("deploy vol base vol/objects/new", 1, "inside its source"),
        ("deploy vol base gone/new", 2, "gone/new"),
        ("deploy vol base new --size much", 1, "--size"),
        (
            "deploy vol base new --customer-key key.pem",
            1,
            "customer key",
        ),
        (
            "deploy vol base new --customer-key file:gone.pem",
            4,
            "gone.pem",
        ),
        ("export vol gone kept", 2, "no image \"gone\""),
        ("export vol base gone/out", 2, "gone/out"),
        ("export vol base dir", 6, "dir"),
        ("export vol base - --json", 1, "standard output"),
        (
            "export vol base kept --transport-passphrase-file gone",
            4,
            "gone",
        ),
        ("import gone new", 2, "gone"),
        ("import noise full", 1, "file"),
    ] {
        fails(&place.run(&format!("image {words}")), code, says);
        assert!(!place.path("new").exists(), "{words}");
        assert!(!place.path("vol/objects/new").exists(), "{words}");
    }
    let noise = place.run("image import noise new");
    assert!([4, 5].contains(&noise.code), "{}", noise.stderr);
    fails(&noise, noise.code, "noise");
    assert!(!place.path("new").exists());
    // The file that a failed export would have replaced is intact, and nothing else was created.
    assert_eq!(fs::read(place.path("kept")).unwrap(), b"kept");
    let left = fs::read_dir(place.path("")).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with('.')
    });
    assert_eq!(left.count(), 0);
    victim.is_unharmed();
}
