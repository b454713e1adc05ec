//! `bilayer check` on the same changes: it reports all that a use of the volume would meet, and
//! older pages of the metadata, which a use does not notice.

use std::collections::BTreeSet;
use std::sync::Arc;

use bilayer::check::{CheckOptions, NoProgress, check};
use bilayer::volume::{self, OpenOptions};

use crate::case::{Case, Edit, Stale, attempt};
use crate::changes::{self, Extent};
use crate::matrix::PLAIN;
use crate::table::{Outcome, Table};
use crate::victim::{Keystore, State};

/// The result of checking a changed copy.
fn checked(case: &Case, state: &State, keystore: &Keystore) -> Outcome {
    let store = state.disk.copy_at(PLAIN.name);
    case.edits.iter().for_each(|edit| edit.apply(&*store));
    keystore.remember(&state.records);
    let options = OpenOptions {
        keystore: keystore.path(),
        read_only: true,
        ..OpenOptions::default()
    };
    let Ok(volume) = volume::open(store, &options) else {
        return Outcome::Refused;
    };
    let options = CheckOptions {
        jobs: 1,
        ..CheckOptions::default()
    };
    match check(&volume, &options, &NoProgress) {
        Ok(report) if report.is_clean() => Outcome::Right,
        Ok(_) => Outcome::Error,
        Err(_) => Outcome::Refused,
    }
}

/// One change of each kind for each page, and all older versions.
fn cases(state: &State) -> Vec<Case> {
    let mut seen = BTreeSet::new();
    let mut cases = changes::of_pages(state, Extent::Some);
    cases.retain(|case| {
        let flip = case.change.starts_with("flip") && !case.change.ends_with("padding");
        flip || case.change == "zeros" || seen.insert((case.of.clone(), case.change))
    });
    cases.extend(changes::of_older(&PLAIN, state));
    cases
}

#[test]
fn a_check_finds_all_damage_that_a_use_would_meet_and_older_pages_of_the_metadata() {
    let state = &PLAIN.closed;
    let keystore = Arc::new(PLAIN.keystore.copy());
    let mut table = Table::default();
    let mut stale_metadata = 0;
    for case in cases(state) {
        let store = state.disk.copy_at(PLAIN.name);
        case.edits.iter().for_each(|edit| edit.apply(&*store));
        let (used, what) = attempt(&PLAIN, state, &keystore, store, &case, false);
        let outcome = checked(&case, state, &keystore);
        let of_meta = case.edits.iter().map(Edit::path).any(|path| path == "meta");
        let older_metadata = case.stale == Stale::Older && of_meta;
        let must_be_reported = match used {
            Outcome::Right => false,
            // A page of contents that was replaced by an older version is authentic.
            Outcome::Older => older_metadata,
            _ => true,
        };
        stale_metadata += u64::from(older_metadata && must_be_reported);
        let missed = must_be_reported && outcome == Outcome::Right;
        let outcome = if missed { Outcome::Unnoticed } else { outcome };
        table.add(&case.of, case.change, outcome, &what);
    }
    table.finish("What a check finds (right: nothing)");
    assert!(
        stale_metadata > 2,
        "older pages that do harm: {stale_metadata}"
    );
    assert!(table.count("object", "zeros", Outcome::Error) > 10);
    assert!(table.count("object", "older page", Outcome::Right) > 0);
}
