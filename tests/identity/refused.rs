//! Mounts that fail although they were requested to change the volume's identity.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::fails;
use crate::real::{BILAYER, Outcome, Place, command, need, run};

const LIMIT: Duration = Duration::from_secs(200);
/// `/dev/fuse` exists and cannot be opened.
const NO_DEVICE: &str = "touch plain; mount --bind plain /dev/fuse; \
    mount -o remount,bind,ro /dev/fuse; exec \"$@\"";
/// It can be opened, and nothing can be mounted.
const NO_RIGHT: &str = "exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin -- \"$@\"";

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

fn header(place: &Place) -> Value {
    let mut inspect = place.bilayer(["inspect", "--json", "copy"]);
    let report: Value = serde_json::from_str(&run(&mut inspect).done().stdout).unwrap();
    report["header"].clone()
}

/// Mounts `copy` in a namespace of its own in which that fails.
fn attempt(place: &Place, hindrance: &str, option: &str) -> Outcome {
    let mut shell = command("unshare", ["-m", "sh", "-ec", hindrance, "sh", &BILAYER]);
    shell.args(["mount", "copy", "mnt", option]);
    place.environment(&mut shell);
    run(&mut shell)
}

/// A volume that was used again after it was copied, and the older copy.
fn older_copy(test: &'static str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    let mounted = place.fresh("", "");
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    sh(&place, "cp -a vol copy");
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "goes on").unwrap();
    mounted.unmount();
    Some(place)
}

#[test]
fn nothing_is_changed_where_the_device_cannot_be_opened() {
    let Some(place) = older_copy("refused-device") else {
        return;
    };
    let before = header(&place);
    let refused = attempt(&place, NO_DEVICE, "--new-identity");
    fails(&refused, 32, "cannot open /dev/fuse");
    assert!(header(&place) == before, "{}", refused.stderr);
    sh(&place, "rm -r vol; mv copy vol; ln -s vol copy");
    let refused = attempt(&place, NO_DEVICE, "--accept-restored");
    fails(&refused, 32, "cannot open /dev/fuse");
    assert!(header(&place) == before, "{}", refused.stderr);
}

#[test]
fn a_change_is_reported() {
    for (option, changed, says) in [
        ("--new-identity", "volume_id", "is now a volume of its own"),
        (
            "--accept-restored",
            "incarnation",
            "restored volume is now accepted",
        ),
    ] {
        let Some(place) = older_copy("refused-mount") else {
            return;
        };
        let probe = [NO_RIGHT, "sh", "true"];
        let can = run(command("sh", ["-ec"]).args(probe)).code == 0;
        if !need(can, "refused-mount", "setpriv cannot drop a capability") {
            return;
        }
        if option == "--accept-restored" {
            sh(&place, "rm -r vol; mv copy vol; ln -s vol copy");
        }
        let before = header(&place);
        let failed = attempt(&place, NO_RIGHT, option);
        fails(&failed, 32, says);
        let hint = format!("mount it without {option}");
        assert!(failed.stderr.contains(&hint), "{}", failed.stderr);
        assert_ne!(header(&place)[changed], before[changed]);
        let mounted = place.mount("copy", "mnt", "");
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
        mounted.unmount();
        // An ordinary failure does not mention it.
        let failed = attempt(&place, NO_RIGHT, "-orw");
        fails(&failed, 32, "cannot mount");
        assert!(!failed.stderr.contains("already"), "{}", failed.stderr);
    }
}
