//! Every page, every change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::victim::{Files, Outcome, Victim, keystore};

const META_STRIDE: usize = 4608;
const OBJECT_STRIDE: usize = 4096;

/// Counts by change and outcome.
#[derive(Default)]
struct Counts(BTreeMap<(&'static str, Outcome), u32>);

impl Counts {
    fn add(&mut self, change: &'static str, outcome: Outcome) {
        *self.0.entry((change, outcome)).or_default() += 1;
    }

    fn of(&self, change: &'static str, outcome: Outcome) -> u32 {
        self.0.get(&(change, outcome)).copied().unwrap_or(0)
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        for ((change, outcome), count) in &self.0 {
            eprintln!("{change:32} {outcome:?}: {count}");
        }
    }
}

fn stride(path: &str) -> usize {
    if path == "meta" {
        META_STRIDE
    } else {
        OBJECT_STRIDE
    }
}

/// Pages that hold something, by file. The database's file has many that were never written.
fn pages(files: &Files) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (path, bytes) in files {
        let stride = stride(path);
        for (index, page) in bytes.chunks(stride).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                found.push((path.clone(), index * stride));
            }
        }
    }
    found
}

fn changed(files: &Files, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> Files {
    let mut files = files.clone();
    change(files.get_mut(path).expect("there"));
    files
}

#[test]
fn a_changed_page_is_refused_and_nothing_else_comes_out() {
    change_every_page(true);
}

#[test]
fn also_where_the_database_has_to_recover() {
    change_every_page(false);
}

/// `remembered`: the platform keystore knows that the volume was closed.
fn change_every_page(remembered: bool) {
    let mut victim = Victim::new(keystore());
    if !remembered {
        victim.files = victim.killed.clone();
    }
    let victim = victim;
    let mut counts = Counts::default();
    let untouched = victim.attack("untouched", &victim.files, false);
    assert_eq!(untouched, Outcome::Whole);
    let all = pages(&victim.files);
    eprintln!("pages: {}", all.len());
    let mut seen_refused = 0;
    for (number, (path, at)) in all.iter().enumerate() {
        let len = victim.files[path].len();
        let end = len.min(at + stride(path));
        // One bit somewhere: header, tags and payload take turns.
        let places = [3, 20, 30, 45, 50, 60, 64, 2000, 4095];
        let place = (at + places[number % places.len()]).min(end - 1);
        let mut run = |change: &'static str, files: &Files| {
            let what = format!("{change} {path} at {at}");
            if remembered {
                victim.remind();
            }
            // Without its newest first page the database is as the commit before left it.
            let older = !remembered && path == "meta";
            let outcome = victim.attack(&what, files, older);
            seen_refused += u32::from(outcome != Outcome::Whole);
            counts.add(change, outcome);
        };
        run(
            "flip",
            &changed(&victim.files, path, |b| b[place] ^= 1 << (number % 8)),
        );
        run(
            "zero",
            &changed(&victim.files, path, |b| b[*at..end].fill(0)),
        );
        // The neighbour's page in its place, and its own in the neighbour's.
        let (other, other_at) = all
            .iter()
            .cycle()
            .skip(number + 1)
            .find(|(other, _)| stride(other) == stride(path))
            .expect("a page");
        let other_end = victim.files[other].len().min(other_at + stride(other));
        let count = (end - at).min(other_end - other_at);
        let mut files = victim.files.clone();
        let theirs = files[other][*other_at..other_at + count].to_vec();
        let ours = files[path][*at..at + count].to_vec();
        files.get_mut(path).expect("there")[*at..at + count].copy_from_slice(&theirs);
        files.get_mut(other).expect("there")[*other_at..other_at + count].copy_from_slice(&ours);
        run("swap", &files);
        run(
            "truncate",
            &changed(&victim.files, path, |b| b.truncate(*at)),
        );
        run(
            "truncate within",
            &changed(&victim.files, path, |b| b.truncate(at + 100)),
        );
    }
    assert!(seen_refused > 0, "the changes are seen at all");
    // Every page of contents is in use: none of these may go unnoticed.
    for path in victim
        .files
        .keys()
        .filter(|path| path.starts_with("objects"))
    {
        let gone = {
            let mut files = victim.files.clone();
            files.remove(path);
            victim.attack(path, &files, false)
        };
        assert_eq!(gone, Outcome::PartlyRefused, "{path} removed");
        counts.add("delete an object", gone);
        let longer = changed(&victim.files, path, |b| b.extend([0xAB; 9000]));
        let longer = victim.attack(path, &longer, false);
        assert_eq!(longer, Outcome::Whole, "{path} extended");
        counts.add("extend an object", longer);
        let last = victim.files[path].len() - 4096 + 99;
        let flipped = changed(&victim.files, path, |bytes| bytes[last] ^= 1);
        let flipped = victim.attack(path, &flipped, false);
        assert_eq!(flipped, Outcome::PartlyRefused, "{path} flipped");
    }
    for path in ["meta", "volume.json"] {
        let mut files = victim.files.clone();
        files.remove(path);
        let gone = victim.attack(path, &files, false);
        assert_eq!(gone, Outcome::Refused, "{path} removed");
        counts.add("delete another file", gone);
    }
    if remembered {
        assert_eq!(counts.of("flip", Outcome::Older), 0);
    }
}

#[test]
fn meta_that_is_longer_or_shorter() {
    let victim = Victim::new(keystore());
    let mut counts = Counts::default();
    let len = victim.files["meta"].len();
    let mut lens: Vec<usize> = vec![0, 1, 4607, 4608, 9215, 9216, 9217, 13_824, len / 2];
    lens.extend([len - 1, len + 1, len + 4608, len + 9000, 2 * len, 64 << 20]);
    for len in lens {
        for fill in [0, 0xA5] {
            let files = changed(&victim.files, "meta", |bytes| bytes.resize(len, fill));
            let outcome = victim.attack(&format!("meta of {len} bytes"), &files, false);
            counts.add("length of meta", outcome);
        }
    }
}

#[test]
fn what_belongs_to_another_volume_does_not_open() {
    let keystore = keystore();
    let victim = Victim::new(Arc::clone(&keystore));
    let other = Victim::new(keystore);
    let mut counts = Counts::default();
    let objects = |files: &Files| -> Vec<String> {
        let paths = files.keys().filter(|path| path.starts_with("objects"));
        paths.cloned().collect()
    };
    let both = objects(&victim.files)
        .into_iter()
        .zip(objects(&other.files))
        .chain([("meta".to_owned(), "meta".to_owned())]);
    for (path, theirs) in both {
        let files = changed(&victim.files, &path, |bytes| {
            bytes.clone_from(&other.files[&theirs]);
        });
        let outcome = victim.attack(&format!("{path} of another volume"), &files, false);
        assert_ne!(outcome, Outcome::Whole, "{path}");
        counts.add("file of another volume", outcome);
    }
    // The superblock of one with the rest of the other.
    let files = changed(&victim.files, "volume.json", |bytes| {
        bytes.clone_from(&other.files["volume.json"]);
    });
    let outcome = victim.attack("volume.json of another volume", &files, false);
    assert_eq!(outcome, Outcome::Refused);
    // Objects of the same volume in each other's place.
    let paths = objects(&victim.files);
    for pair in paths.windows(2) {
        let mut files = victim.files.clone();
        let (first, second) = (files[&pair[0]].clone(), files[&pair[1]].clone());
        files.insert(pair[0].clone(), second);
        files.insert(pair[1].clone(), first);
        let outcome = victim.attack("objects exchanged", &files, false);
        assert_eq!(outcome, Outcome::PartlyRefused, "{pair:?}");
        counts.add("objects exchanged", outcome);
    }
}

#[test]
fn older_pages_give_older_contents_or_errors() {
    let victim = Victim::new(keystore());
    let mut counts = Counts::default();
    let old = &victim.older.1;
    let whole = victim.attack("an older copy", old, true);
    counts.add("older copy of everything", whole);
    for (path, bytes) in old
        .iter()
        .filter(|(path, _)| victim.files.contains_key(*path))
    {
        let files = changed(&victim.files, path, |now| now.clone_from(bytes));
        let outcome = victim.attack(&format!("older {path}"), &files, true);
        counts.add("older file", outcome);
        let stride = stride(path);
        for at in (0..bytes.len()).step_by(stride) {
            let (Some(before), Some(now)) = (
                bytes.get(at..at + stride),
                victim.files[path].get(at..at + stride),
            ) else {
                continue;
            };
            if before == now {
                continue;
            }
            let files = changed(&victim.files, path, |now| {
                now[at..at + stride].copy_from_slice(before);
            });
            let outcome = victim.attack(&format!("older page of {path} at {at}"), &files, true);
            counts.add("older page", outcome);
        }
    }
    // One slot of the database's first page gone, or older.
    for slot in [0, META_STRIDE] {
        let gone = changed(&victim.files, "meta", |b| {
            b[slot..slot + META_STRIDE].fill(0);
        });
        counts.add("one slot gone", victim.attack("a slot gone", &gone, true));
        let mut both = victim.files.clone();
        let before = old["meta"][slot..slot + META_STRIDE].to_vec();
        let meta = both.get_mut("meta").expect("there");
        meta[slot..slot + META_STRIDE].copy_from_slice(&before);
        let other = META_STRIDE - slot;
        meta[other..other + META_STRIDE].fill(0);
        counts.add(
            "one old slot alone",
            victim.attack("an old slot", &both, true),
        );
    }
}
