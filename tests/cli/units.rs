//! The units of systemd that take snapshots.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::real::{BILAYER, Place, command, have, need, run};

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/mount-helper/systemd");

#[test]
fn systemd_accepts_the_units() {
    let Some(place) = Place::new("cli-units", Duration::from_secs(100)) else {
        return;
    };
    if !need(
        have("systemd-analyze"),
        "cli-units",
        "systemd-analyze is missing; install systemd",
    ) {
        return;
    }
    let units = place.dir("units");
    for name in ["bilayer-snapshot@.timer", "bilayer-snapshot@.service"] {
        let unit = fs::read_to_string(Path::new(UNITS).join(name)).unwrap();
        // An installed program is on the search path of the units.
        let unit = unit.replace("ExecStart=bilayer ", &format!("ExecStart={BILAYER} "));
        fs::write(units.join(name), unit).unwrap();
    }
    let verify = |what: &str| {
        let mut verify = command("systemd-analyze", ["verify", "--man=no"]);
        verify.arg(units.join(what));
        // No manager runs here that could be asked.
        verify.env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()));
        run(&mut verify)
    };
    let said = verify("bilayer-snapshot@srv-vault.timer").done().stderr;
    assert!(!said.contains("bilayer-snapshot"), "{said}");
    // The command does read the units.
    let service = units.join("bilayer-snapshot@.service");
    let broken = fs::read_to_string(&service).unwrap();
    fs::write(&service, broken.replace(&*BILAYER, "/no/such/program")).unwrap();
    let said = verify("bilayer-snapshot@srv-vault.service");
    assert!(said.stderr.contains("/no/such/program"), "{}", said.stderr);
    assert_ne!(said.code, 0);
}
