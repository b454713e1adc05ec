//! Attackers who hold keys: a set that the volume only reads with, sets of their own that the
//! machine can unwrap, and wraps of other volumes.

use std::sync::{Arc, LazyLock};

use bilayer::ids::{CryptoId, Epoch, PageIndex, Sequence};
use bilayer::layers::{KeyRing, KeySet};
use serde_json::{Value, json};

use crate::case::{Case, Edit, OBJECT_STRIDE, Stale, is_meta, run, stride};
use crate::matrix;
use crate::support::forge::{self, Forger};
use crate::table::Outcome;
use crate::victim::{Keyed, State, Victim};

static DEPLOYED: LazyLock<Arc<Victim>> = LazyLock::new(|| Arc::new(Victim::deployed()));
static CHECKPOINTED: LazyLock<Arc<Victim>> =
    LazyLock::new(|| Arc::new(Victim::deployed_with_checkpoints()));

/// A commit that is newer than any.
const NEWEST: Sequence = Sequence(1 << 40);

fn case(of: &str, change: &'static str, what: String, edits: Vec<Edit>) -> Case {
    Case {
        of: of.to_owned(),
        change,
        what,
        edits,
        stale: Stale::Nothing,
        names: Vec::new(),
    }
}

fn read_only(keys: &KeyRing) -> &Arc<KeySet> {
    let active = keys.active().epoch;
    let mut others = keys.iter().filter(|set| set.epoch != active);
    others.next().expect("a set that is only read with")
}

/// The epoch that a page of an object states.
fn epoch_of(page: &[u8]) -> Option<Epoch> {
    let bytes = page.get(44..48)?.first_chunk()?;
    Some(Epoch(u32::from_le_bytes(*bytes)))
}

/// Every page of every file that is sealed under the active set, sealed by the holder of another.
fn pages_under_a_read_only_set(state: &State, keyed: &Keyed) -> Vec<Case> {
    let set = read_only(&keyed.keys);
    let active = keyed.keys.active().epoch;
    let mut cases = Vec::new();
    for (path, bytes) in &state.files {
        let name = path.rsplit('/').next().expect("a name");
        let crypto = if path == "meta" {
            Some(keyed.meta)
        } else {
            CryptoId::from_hex(name)
        };
        let Some(crypto) = crypto else { continue };
        for (index, page) in bytes.chunks(stride(path)).enumerate() {
            let written = page.iter().any(|byte| *byte != 0);
            if !written || epoch_of(page) != Some(active) {
                continue;
            }
            let forged = if is_meta(path) {
                forge::meta_stride(set, crypto, index, NEWEST, 7)
            } else {
                assert_eq!(page.len(), OBJECT_STRIDE);
                forge::contents_page(set, crypto, PageIndex(index as u64), NEWEST, 7)
            };
            let edit = Edit::Write {
                path: path.clone(),
                at: index * stride(path),
                bytes: forged,
            };
            let of = match path.as_str() {
                "meta" if index < 2 => "meta, page 0",
                "meta" => "meta",
                path if is_meta(path) => "checkpoint",
                _ => "object",
            };
            let what = format!("page at {index} of {path}");
            cases.push(case(of, "page under a read-only set", what, vec![edit]));
        }
    }
    cases
}

/// The whole of `meta`, with an empty tree that anybody may write to, sealed by the holder of a
/// read-only set and newer than any.
fn meta_under_a_read_only_set(keyed: &Keyed) -> Case {
    let bytes = forge::meta_of_an_empty_tree(read_only(&keyed.keys), keyed.meta, NEWEST);
    let what = "an empty tree".to_owned();
    let path = "meta".to_owned();
    let edits = vec![Edit::Whole { path, bytes }];
    case("meta", "file under a read-only set", what, edits)
}

fn superblock(what: &str, change: &'static str, bytes: Vec<u8>) -> Case {
    let path = "volume.json".to_owned();
    let edits = vec![Edit::Whole { path, bytes }];
    case("volume.json", change, what.to_owned(), edits)
}

/// Active sets of the attacker's own, wrapped so that the victim's machine unwraps them.
fn superblocks_with_a_foreign_active_set(victim: &Victim, state: &State) -> Vec<Case> {
    const CHANGE: &str = "foreign active set";
    let contents = forge::contents_of(&state.files["volume.json"]);
    let keyed = victim.keyed(state);
    let keystore = victim.keystore.path();
    let forger = Forger {
        keystore: &keystore,
        customer: None,
    };
    let active = keyed.keys.active();
    let own = KeySet::random(Epoch(active.epoch.0 + 1)).unwrap();
    let entry = forger.key_set(keyed.volume, &own, "active");
    let beside = forge::take_over(&contents, entry.clone());
    let mut stated = beside.clone();
    stated["key_sets"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap()["succeeds"] = json!({
        "key_set": active.id.to_string(),
        "incarnation": contents["incarnation"],
        "commit": NEWEST.0,
        "mac": "00".repeat(32),
    });
    let mut alone = contents.clone();
    alone["key_sets"] = json!([entry]);
    // The id of the victim's set, with other keys.
    let twin = KeySet {
        id: active.id,
        epoch: active.epoch,
        ..KeySet::random(Epoch(1)).unwrap()
    };
    let mut same_id = contents;
    same_id["key_sets"] = json!([forger.key_set(keyed.volume, &twin, "active")]);
    vec![
        superblock(
            "beside the victim's",
            CHANGE,
            forge::superblock(&beside, &[&own]),
        ),
        superblock(
            "beside, with a statement",
            CHANGE,
            forge::superblock(&stated, &[&own]),
        ),
        superblock(
            "beside, its MAC twice",
            CHANGE,
            forge::superblock(&beside, &[&own, &own]),
        ),
        superblock("alone", CHANGE, forge::superblock(&alone, &[&own])),
        superblock(
            "alone, of the same id",
            CHANGE,
            forge::superblock(&same_id, &[&twin]),
        ),
    ]
}

/// Each wrap in turn is that of another volume under the same keys.
fn superblocks_with_wraps_of_another_volume(victim: &Victim, state: &State) -> Vec<Case> {
    let line = state.files["volume.json"].clone();
    let contents = forge::contents_of(&line);
    let mac = line.splitn(2, |byte| *byte == b'\n').nth(1).unwrap();
    let mut cases = Vec::new();
    for foreign in &victim.foreign {
        let theirs = forge::contents_of(&foreign.files["volume.json"]);
        if theirs["volume"] == contents["volume"] {
            continue;
        }
        for (number, _) in contents["key_sets"].as_array().unwrap().iter().enumerate() {
            for role in ["customer", "infrastructure"] {
                let mut changed: Value = contents.clone();
                let wrap = theirs["key_sets"][0][role][0].clone();
                changed["key_sets"][number][role][0] = wrap;
                let mut bytes = serde_json::to_vec(&changed).unwrap();
                bytes.push(b'\n');
                bytes.extend(mac);
                let what = format!("{role} wrap of set {number}, of {}", foreign.what);
                cases.push(superblock(&what, "wrap of another volume", bytes));
            }
        }
    }
    cases
}

/// A state of a victim.
type StateOf = fn(&Victim) -> &State;

/// In every state: clean, after a kill, and under a keystore that knows nothing newer.
#[test]
fn a_holder_of_a_read_only_set_can_seal_nothing_new() {
    const CHANGE: &str = "page under a read-only set";
    let states: [(&str, StateOf); 3] = [
        ("closed", |victim| &victim.closed),
        ("killed", |victim| &victim.killed),
        ("never seen", |victim| &victim.unseen),
    ];
    for (name, of) in states {
        let state = of(&DEPLOYED);
        let keyed = DEPLOYED.keyed(state);
        let mut cases = pages_under_a_read_only_set(state, &keyed);
        cases.push(meta_under_a_read_only_set(&keyed));
        if name != "closed" {
            // Without its newest slot the database has the state of the previous commit.
            matrix::page_0_may_be_torn(&mut cases);
        }
        let table = run(&DEPLOYED, of, cases);
        table.finish(&format!(
            "Sealed under a set that is only read with ({name})"
        ));
        let count = |of, change, outcome| table.count(of, change, outcome);
        assert!(count("object", CHANGE, Outcome::Error) > 3);
        let of_meta = [Outcome::Refused, Outcome::Error].map(|it| count("meta", CHANGE, it));
        assert!(of_meta.iter().sum::<u64>() > 3);
        let file = "file under a read-only set";
        assert_eq!(count("meta", file, Outcome::Refused), 1);
    }
}

/// Checkpoints are not read while the volume is whole.
#[test]
fn checkpoints_under_a_read_only_set_change_nothing() {
    let state = &CHECKPOINTED.closed;
    let keyed = CHECKPOINTED.keyed(state);
    let mut cases = pages_under_a_read_only_set(state, &keyed);
    cases.retain(|case| case.of == "checkpoint");
    let many = cases.len() as u64;
    assert!(many > 3);
    let table = run(&CHECKPOINTED, |victim| &victim.closed, cases);
    table.finish("Checkpoints sealed under a set that the volume only reads with");
    assert_eq!(table.all(Outcome::Right), many);
}

#[test]
fn superblocks_of_somebody_who_can_only_wrap_are_refused() {
    let state = &DEPLOYED.closed;
    let mut cases = superblocks_with_a_foreign_active_set(&DEPLOYED, state);
    cases.extend(superblocks_with_wraps_of_another_volume(&DEPLOYED, state));
    let many = cases.len() as u64;
    assert!(many > 10);
    let table = run(&DEPLOYED, |victim| &victim.closed, cases);
    table.finish("Superblocks made without the volume's data keys");
    assert_eq!(table.all(Outcome::Refused), many);
}
