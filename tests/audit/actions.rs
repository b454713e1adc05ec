//! Every audited action leaves a record, whatever the level of the log.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::real::{Place, command, run};
use crate::{LIMIT, clear_records, of_action, records};

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).silent();
}

/// Runs a command that logs nothing.
fn quietly(place: &Place, words: &str) -> crate::real::Outcome {
    let words = words.split_whitespace();
    run(place.bilayer(words).env("BILAYER_LOG", "off"))
}

/// An expected record: action, outcome, directory of the volume, mount point.
type Wanted = (&'static str, &'static str, &'static str, &'static str);

/// Runs an action, and fails unless it left these records, each with the id of a volume.
#[track_caller]
fn leaves(place: &Place, wanted: &[Wanted], doing: impl FnOnce()) -> Vec<Value> {
    clear_records(place);
    doing();
    let recorded = records(place);
    for (action, outcome, path, mount_point) in wanted {
        let as_path = |name: &str| match name {
            "" => Value::Null,
            name => place.path(name).to_str().unwrap().into(),
        };
        let is_it = |record: &&Value| {
            record["action"] == *action
                && record["outcome"] == *outcome
                && record["path"] == as_path(path)
                && record["mount_point"] == as_path(mount_point)
                && record["volume"].as_str().is_some_and(|id| id.len() == 32)
                && record["uid"] == 0
                && record["pid"].as_u64().is_some_and(|pid| pid > 1)
        };
        let record = recorded.iter().find(is_it);
        let record =
            record.unwrap_or_else(|| panic!("no {action} {outcome} {path}: {recorded:#?}"));
        assert_eq!(
            *outcome == "refused",
            record["reason"].is_string(),
            "{record}"
        );
    }
    recorded
}

#[test]
fn volumes_and_their_keys() {
    let Some(place) = Place::new("audit-volumes", LIMIT) else {
        return;
    };
    let quiet = |words: &str| quietly(&place, words);
    fs::write(place.path("right"), "the right one\n").unwrap();
    fs::write(place.path("wrong"), "another one\n").unwrap();
    sh(&place, "chmod 600 right wrong");
    quiet("keygen key.pem --bits 2048 --passphrase-file right").done();
    for dir in ["mnt", "mnt2"] {
        place.dir(dir);
    }
    let create = "create vol --customer-key file:key.pem --passphrase-file";
    clear_records(&place);
    assert_ne!(quiet(&format!("{create} wrong")).code, 0);
    leaves(
        &place,
        &[
            ("create-volume", "done", "vol", ""),
            ("wrap", "done", "vol", ""),
        ],
        || drop(quiet(&format!("{create} right")).done()),
    );
    let refused = leaves(
        &place,
        &[
            ("open-volume", "refused", "vol", "mnt"),
            ("mount", "refused", "vol", "mnt"),
        ],
        || assert_ne!(quiet("mount vol mnt -o passphrase_file=wrong").code, 0),
    );
    let opened = |record: &&Value| record["action"] == "open-volume";
    assert_eq!(refused.iter().find(opened).unwrap()["kind"], "wrong-key");
    leaves(
        &place,
        &[
            ("unwrap", "done", "vol", "mnt"),
            ("open-volume", "done", "vol", "mnt"),
            ("mount", "done", "vol", "mnt"),
            ("unmount", "done", "vol", "mnt"),
        ],
        || {
            quiet("mount vol mnt -o passphrase_file=right").done();
            place.mounted(&place.path("mnt")).unmount();
        },
    );
    let pinned = "fingerprint=00112233445566778899";
    let words = format!("mount vol mnt -o passphrase_file=right,{pinned}");
    let refused = leaves(&place, &[("open-volume", "refused", "vol", "mnt")], || {
        assert_ne!(quiet(&words).code, 0);
    });
    let reason = refused.last().unwrap()["reason"].as_str().unwrap();
    assert!(reason.contains("fingerprint"), "{reason}");
}

#[test]
fn changes_of_identity() {
    let Some(place) = Place::new("audit-identity", LIMIT) else {
        return;
    };
    let quiet = |words: &str| quietly(&place, words);
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "of then").unwrap();
    mounted.unmount();
    sh(&place, "cp -a vol copy; cp -a vol backup; mkdir mnt2");
    let made = leaves(&place, &[("new-identity", "done", "copy", "mnt2")], || {
        quiet("mount --new-identity copy mnt2").done();
        place.mounted(&place.path("mnt2")).unmount();
    });
    let is_it = |record: &&Value| record["action"] == "new-identity";
    let made = made.iter().find(is_it).unwrap();
    assert_ne!(made["volume"], made["copy_of"]);
    place.mount("vol", "mnt", "").unmount();
    sh(&place, "find vol -mindepth 1 -delete; cp -a backup/. vol");
    leaves(
        &place,
        &[
            ("open-filesystem", "refused", "vol", "mnt"),
            ("mount", "refused", "vol", "mnt"),
        ],
        || assert_ne!(quiet("mount vol mnt").code, 0),
    );
    leaves(&place, &[("accept-restored", "done", "vol", "mnt")], || {
        quiet("mount --accept-restored vol mnt").done();
        place.mounted(&place.path("mnt")).unmount();
    });
    leaves(&place, &[("open-to-salvage", "done", "vol", "")], || {
        quiet("salvage vol out --quiet").done();
    });
}

/// Both with a mounted volume and with a command that opens the volume itself.
#[test]
fn snapshots_and_images() {
    let Some(place) = Place::new("audit-views", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "contents").unwrap();
    for (volume, dir) in [("mnt", "mnt"), ("vol", "")] {
        if dir.is_empty() {
            run(place.bilayer(["unmount"]).arg(place.path("mnt"))).silent();
        }
        let wanted: Vec<Wanted> = [
            ("create-snapshot", "done"),
            ("create-snapshot", "refused"),
            ("rename-snapshot", "done"),
            ("restore-snapshot", "done"),
            ("delete-snapshot", "done"),
            ("delete-snapshot", "refused"),
            ("create-image", "done"),
            ("export-image", "done"),
            ("delete-image", "done"),
        ]
        .map(|(action, outcome)| (action, outcome, "vol", dir))
        .to_vec();
        let made: [Wanted; 2] = [
            ("deploy-image", "done", "linked", ""),
            ("deploy-image", "done", "resealed", ""),
        ];
        leaves(&place, &[&wanted[..], &made].concat(), || {
            for words in [
                "snapshot create VOLUME one",
                "snapshot rename VOLUME one two",
                "snapshot restore VOLUME two --path file",
                "snapshot restore VOLUME two --yes",
                "image create VOLUME base --from two",
                "image deploy VOLUME base linked",
                "image deploy VOLUME base resealed --new-platform-keystore other",
                "image export VOLUME base stream",
                "image delete VOLUME base",
                "snapshot delete VOLUME two",
            ] {
                quietly(&place, &words.replace("VOLUME", volume)).done();
            }
            quietly(&place, &format!("snapshot create {volume} .."));
            quietly(&place, &format!("snapshot delete {volume} gone"));
        });
        let resealed = of_action(&place, "deploy-image");
        assert_eq!(resealed[1]["inherited_key_sets"], 0);
        assert_eq!(resealed[1]["source_image"], "base");
        leaves(&place, &[("import-image", "done", "imported", "")], || {
            quietly(&place, "image import stream imported").done();
        });
        sh(&place, "rm -r linked resealed imported stream");
    }
    sh(&place, "head -c 1000 /dev/zero > stream");
    clear_records(&place);
    assert_ne!(quietly(&place, "image import stream imported").code, 0);
    assert_eq!(of_action(&place, "import-image")[0]["outcome"], "refused");
}

/// Before the volume exists.
#[test]
fn early_refusals() {
    let Some(place) = Place::new("audit-at-once", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    quietly(&place, "image create mnt base").done();
    sh(&place, "mkdir occupied other; touch occupied/file");
    for (words, action, path) in [
        ("create occupied", "create-volume", "occupied"),
        ("create missing/new", "create-volume", "missing/new"),
        ("image deploy mnt base occupied", "deploy-image", "occupied"),
        ("image deploy mnt gone new", "deploy-image", "new"),
        ("check --repair mnt", "repair", "vol"),
        ("mount vol other -o log_file=/dev/full", "mount", "vol"),
    ] {
        clear_records(&place);
        assert_ne!(quietly(&place, words).code, 0, "{words}");
        let recorded = of_action(&place, action);
        assert_eq!(recorded.len(), 1, "{words}: {recorded:#?}");
        assert_eq!(recorded[0]["outcome"], "refused", "{words}");
        assert_eq!(recorded[0]["path"], place.path(path).to_str().unwrap());
        assert!(recorded[0]["reason"].is_string(), "{words}");
        if action == "deploy-image" {
            assert!(
                recorded[0]["source_image"].is_string() && recorded[0]["source_volume"].is_string()
            );
        }
    }
    mounted.unmount();
    let repaired = leaves(&place, &[("repair", "done", "vol", "")], || {
        quietly(&place, "check --repair vol").done();
    });
    let repaired = repaired.last().unwrap();
    assert_eq!(
        (&repaired["repaired"], &repaired["left"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn no_level_of_the_log_turns_it_off() {
    let Some(place) = Place::new("audit-levels", LIMIT) else {
        return;
    };
    for level in [
        "off",
        "error",
        "warn",
        "bilayer=off",
        "audit=off",
        "bilayer::audit=off",
    ] {
        clear_records(&place);
        run(place.bilayer(["create", "vol"]).env("BILAYER_LOG", level)).done();
        place.dir("mnt");
        run(place
            .bilayer(["mount", "vol", "mnt"])
            .env("BILAYER_LOG", level))
        .done();
        let mounted = place.mounted(&place.path("mnt"));
        fs::create_dir(mounted.path(".snapshots/one")).unwrap();
        mounted.unmount();
        for action in ["create-volume", "mount", "create-snapshot", "unmount"] {
            assert_eq!(of_action(&place, action).len(), 1, "{level}: {action}");
        }
        fs::remove_dir_all(place.path("vol")).unwrap();
    }
}

/// Waiting for a process that has the volume open is no refusal, and several attempts leave one
/// record.
#[test]
fn a_volume_in_use_is_refused_once() {
    let Some(place) = Place::new("audit-in-use", LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    place.dir("mnt2");
    clear_records(&place);
    assert_ne!(place.run("mount vol mnt2").code, 0);
    let refused = of_action(&place, "open-volume");
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert_eq!(refused[0]["kind"], "in-use");
    assert_eq!(
        Path::new(refused[0]["mount_point"].as_str().unwrap()),
        place.path("mnt2")
    );
    mounted.unmount();
}

/// The same if the keys are unwrapped before the volume turns out to be in use.
#[test]
fn a_volume_written_elsewhere_has_its_keys_unwrapped_once() {
    let Some(place) = Place::new("audit-elsewhere", LIMIT) else {
        return;
    };
    place.run("create vol").done();
    place.dir("mnt");
    place.mount("vol", "mnt", "").unmount();
    let locks = fs::read_dir(place.path("keystore/volumes")).unwrap();
    let mut locks = locks.map(|entry| entry.unwrap().path());
    let lock = locks.find(|path| path.extension().is_some_and(|it| it == "lock"));
    let held = fs::File::open(lock.unwrap()).unwrap();
    held.lock().unwrap();
    clear_records(&place);
    assert_ne!(place.run("mount vol mnt").code, 0);
    let refused = of_action(&place, "open-volume");
    assert_eq!(refused.len(), 1, "{refused:#?}");
    let reason = refused[0]["reason"].as_str().unwrap();
    assert!(reason.contains("open for writing"), "{reason}");
    let unwrapped = of_action(&place, "unwrap");
    let mut roles: Vec<_> = unwrapped.iter().map(|it| it["role"].as_str()).collect();
    roles.sort_unstable();
    assert_eq!(roles, [Some("customer"), Some("infrastructure")]);
}
