//! Planted bugs: each must be found within a few hundred scenarios, or the simulator finds nothing.

use bilayer::planted::Bug;

use crate::{faults, forged};
use crate::{machine, search};

/// Plants bugs and searches for them. True if each was found.
pub fn find(name: &str, seeds: std::ops::Range<u64>) -> bool {
    let bugs: Vec<Bug> = match name {
        "all" => Bug::ALL.to_vec(),
        _ => {
            let mut all = Bug::ALL.into_iter();
            all.find(|bug| format!("{bug:?}") == name)
                .into_iter()
                .collect()
        }
    };
    if bugs.is_empty() {
        println!("no such bug: {name}; there are {:?}", Bug::ALL);
        return false;
    }
    if !can_plant() {
        println!("this simulator was built without --features planted-bugs: use tests/crash --bug");
        return false;
    }
    machine::prepare();
    let mut all_found = true;
    for bug in bugs {
        plant(Some(bug));
        let found = match bug {
            // Found only by faults other than a power cut.
            Bug::FailedSyncForgotten => faults::find(),
            // Found only with an attacker: no power cut has this effect.
            Bug::PageUnderAnySet => forged::find(),
            _ => search(seeds.clone(), 1, false)
                .failed
                .first()
                .map(|(seed, failure)| {
                    let message = failure.message.lines().next().unwrap_or_default();
                    format!("seed {seed}: {message:.100}")
                }),
        };
        plant(None);
        all_found &= found.is_some();
        let found = found.unwrap_or_else(|| "NOT FOUND".to_owned());
        println!("{:24} {found}", format!("{bug:?}"));
    }
    all_found
}

#[cfg(feature = "planted-bugs")]
fn plant(bug: Option<Bug>) {
    bilayer::planted::plant(bug);
}

#[cfg(feature = "planted-bugs")]
const fn can_plant() -> bool {
    true
}

#[cfg(not(feature = "planted-bugs"))]
const fn plant(_: Option<Bug>) {}

#[cfg(not(feature = "planted-bugs"))]
const fn can_plant() -> bool {
    false
}
