//! Every page, every change.

use std::sync::{Arc, LazyLock};

use crate::case::{Case, Edit, Stale, run};
use crate::changes::{self, Extent};
use crate::table::{Outcome, Table};
use crate::victim::{State, Victim};

pub static PLAIN: LazyLock<Arc<Victim>> = LazyLock::new(|| Arc::new(Victim::new()));
static DEPLOYED: LazyLock<Arc<Victim>> = LazyLock::new(|| Arc::new(Victim::deployed()));

/// One bit of each field, or all bits in a full run.
fn extent() -> Extent {
    if crate::is_full() {
        Extent::Full
    } else {
        Extent::All
    }
}

fn untouched() -> Vec<Case> {
    vec![Case {
        of: "nothing".to_owned(),
        change: "untouched",
        what: String::new(),
        edits: Vec::new(),
        stale: Stale::Nothing,
        names: Vec::new(),
    }]
}

fn everything(victim: &Victim, state: &State, extent: Extent) -> Vec<Case> {
    let mut cases = untouched();
    cases.extend(changes::of_pages(state, extent));
    cases.extend(changes::of_files(state));
    cases.extend(changes::of_others(victim, state));
    cases.extend(changes::of_older(victim, state));
    cases.extend(changes::of_slots(victim, state));
    cases
}

/// Without the newest slot of page 0 the database has the state of the previous commit. After a
/// power cut this cannot be distinguished from a torn write, unless the platform keystore knows
/// better.
pub fn page_0_may_be_torn(cases: &mut [Case]) {
    for case in cases {
        if case.stale == Stale::Nothing && case.edits.iter().any(Edit::touches_page_0) {
            case.stale = Stale::Older;
        }
    }
}

/// Changes that at least one page of the metadata does not survive.
const META_CHANGES: [&str; 8] = [
    "zeros",
    "random bytes",
    "exchange in the file",
    "file truncated before the page",
    "file truncated within the page",
    "page of another file",
    "removed",
    "empty",
];

/// Rows that must be in every matrix, so that it cannot be empty.
#[track_caller]
fn check(table: &Table) {
    let count = |of, change, outcome| table.count(of, change, outcome);
    assert_eq!(count("nothing", "untouched", Outcome::Right), 1);
    let flips = |of, outcome| -> u64 {
        let changes = table.changes(of);
        let flips = changes.iter().filter(|change| change.starts_with("flip"));
        flips.map(|change| count(of, change, outcome)).sum()
    };
    for change in table.changes("object") {
        let hurts = [Outcome::Error, Outcome::Older, Outcome::OtherHistory];
        let hurts: u64 = hurts
            .iter()
            .map(|outcome| count("object", change, *outcome))
            .sum();
        let harmless = change.starts_with("longer");
        if !change.starts_with("flip") {
            assert_eq!(hurts == 0, harmless, "object, {change}");
        }
    }
    for change in META_CHANGES {
        let hurts = count("meta", change, Outcome::Error) + count("meta", change, Outcome::Refused);
        assert!(hurts > 0, "meta, {change}");
    }
    assert!(flips("object", Outcome::Error) > 10);
    assert!(flips("meta", Outcome::Refused) > 10);
    for change in [
        "removed",
        "empty",
        "one byte short",
        "longer by zeros",
        "random bytes",
    ] {
        assert_eq!(
            count("volume.json", change, Outcome::Right),
            0,
            "volume.json, {change}"
        );
        assert!(
            count("volume.json", change, Outcome::Refused) > 0,
            "volume.json, {change}"
        );
    }
    assert_eq!(count("meta", "flip: padding", Outcome::Error), 0);
    assert_eq!(count("meta", "flip: padding", Outcome::Refused), 0);
}

#[test]
fn a_closed_volume() {
    let cases = everything(&PLAIN, &PLAIN.closed, extent());
    let table = run(&PLAIN, |victim| &victim.closed, cases);
    table.finish("A volume after a clean unmount");
    check(&table);
    for change in table
        .changes("object")
        .iter()
        .filter(|change| change.starts_with("flip"))
    {
        assert!(
            table.count("object", change, Outcome::Error) > 10,
            "object, {change}"
        );
    }
    assert!(table.count("object", "older page", Outcome::Older) > 0);
    assert!(
        table.count(
            "object: a copy that was used on",
            "page",
            Outcome::OtherHistory
        ) > 0
    );
}

#[test]
fn a_volume_after_a_crash() {
    let mut cases = everything(&PLAIN, &PLAIN.killed, Extent::Some);
    page_0_may_be_torn(&mut cases);
    let table = run(&PLAIN, |victim| &victim.killed, cases);
    table.finish("A volume whose process was killed");
    check(&table);
}

#[test]
fn a_volume_that_the_machine_has_never_seen() {
    let mut cases = everything(&PLAIN, &PLAIN.unseen, Extent::Some);
    page_0_may_be_torn(&mut cases);
    let table = run(&PLAIN, |victim| &victim.unseen, cases);
    table.finish("A volume under a keystore that has never seen it");
    check(&table);
}

#[test]
fn a_deployed_volume() {
    let cases = everything(&DEPLOYED, &DEPLOYED.closed, Extent::Some);
    let table = run(&DEPLOYED, |victim| &victim.closed, cases);
    table.finish("A volume deployed from another one");
    check(&table);
}

/// Nothing is read from a checkpoint while the volume is whole.
#[test]
fn checkpoints_of_the_metadata() {
    let victim = Arc::new(Victim::with_checkpoints());
    let mut cases = everything(&victim, &victim.closed, Extent::Some);
    cases.retain(|case| {
        let mut paths = case.edits.iter().map(Edit::path);
        paths.all(|path| path.starts_with("checkpoints"))
    });
    let many = cases.len() as u64;
    let table = run(&victim, |victim| &victim.closed, cases);
    table.finish("Checkpoints of the metadata");
    assert_eq!(table.all(Outcome::Right), many);
    assert!(table.changes("checkpoint").contains("zeros"));
}

#[test]
fn every_bit_of_the_superblock() {
    let cases = changes::of_superblock(&PLAIN.closed);
    let bits = cases.len() as u64;
    let table = run(&PLAIN, |victim| &victim.closed, cases);
    table.finish("The superblock");
    assert_eq!(
        table.count("volume.json", "flip: every bit", Outcome::Refused),
        bits
    );
    assert!(bits > 4000);
}
