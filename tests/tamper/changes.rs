//! All changes of a page and of a file.

use crate::case::{Case, Edit, META_PAGE, Stale, is_meta, stride};
use crate::victim::{Files, Foreign, State, Victim};

/// Where to flip a bit: name, first byte, number of bytes.
const HEADER: [(&str, usize, usize); 6] = [
    ("flip: nonce", 0, 12),
    ("flip: outer tag", 12, 16),
    ("flip: inner tag", 28, 16),
    ("flip: epoch", 44, 4),
    ("flip: sequence", 48, 8),
    ("flip: reserved", 56, 8),
];
const PAYLOAD: usize = 64;

/// How many of the changes are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One bit of each field of each page.
    All,
    /// One bit of each page, fields in turn.
    Some,
    /// Every bit of the header, one of each byte of the payload.
    Full,
}

/// A page of a file.
#[derive(Clone, Copy)]
struct Page<'a> {
    files: &'a Files,
    path: &'a str,
    /// Its position in the file.
    index: usize,
}

impl<'a> Page<'a> {
    fn start(self) -> usize {
        self.index * stride(self.path)
    }

    fn bytes(self) -> &'a [u8] {
        let bytes = &self.files[self.path];
        &bytes[self.start()..bytes.len().min(self.start() + stride(self.path))]
    }

    fn put(self, bytes: Vec<u8>) -> Edit {
        let (path, at) = (self.path.to_owned(), self.start());
        Edit::Write { path, at, bytes }
    }

    fn case(self, change: &'static str, edits: Vec<Edit>) -> Case {
        let stale = Stale::Nothing;
        let (of, what) = (sort(self.path, self.index), self.name());
        Case {
            of,
            change,
            what,
            edits,
            stale,
            names: Vec::new(),
        }
    }

    fn name(self) -> String {
        format!("page at {} of {}", self.index, self.path)
    }

    fn flipped(self, byte: usize, bit: usize) -> Edit {
        let mut bytes = self.bytes().to_vec();
        bytes[byte] ^= 1 << (bit % 8);
        self.put(bytes)
    }
}

/// The row of the table to which a page belongs.
fn sort(path: &str, index: usize) -> String {
    let sort = match path {
        "meta" if index < 2 => "meta, page 0",
        path if path.starts_with("checkpoints") => "checkpoint",
        path if path.starts_with("objects") => "object",
        path => path,
    };
    sort.to_owned()
}

/// Pages that are not empty, and one in a hundred of those that are.
fn pages(files: &Files) -> Vec<Page<'_>> {
    let mut pages = Vec::new();
    for (path, bytes) in files.iter().filter(|(path, _)| is_sealed(path)) {
        for (index, page) in bytes.chunks(stride(path)).enumerate() {
            let written = page.iter().any(|byte| *byte != 0);
            if written || index % 100 == 0 || crate::is_full() {
                pages.push(Page { files, path, index });
            }
        }
    }
    pages
}

fn is_sealed(path: &str) -> bool {
    is_meta(path) || path.starts_with("objects")
}

/// Unpredictable bytes, the same in every run.
fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn flips(page: Page<'_>, number: usize, extent: Extent) -> Vec<Case> {
    let end = if is_meta(page.path) {
        META_PAGE
    } else {
        page.bytes().len()
    };
    let payload = [
        ("flip: payload, start", PAYLOAD, 16),
        ("flip: payload, middle", end / 2, 16),
        ("flip: payload, end", end - 16, 16),
    ];
    let padding = is_meta(page.path).then_some(("flip: padding", end, page.bytes().len() - end));
    let fields = HEADER.into_iter().chain(payload).chain(padding);
    let mut cases = Vec::new();
    for (turn, (change, first, len)) in fields.enumerate() {
        match extent {
            Extent::Some if number % 9 != turn && !change.ends_with("padding") => {}
            Extent::Full if first < PAYLOAD => cases.extend(
                (0..len * 8).map(|bit| page.case(change, vec![page.flipped(first + bit / 8, bit)])),
            ),
            Extent::Full => cases.extend(
                (0..len).map(|byte| page.case(change, vec![page.flipped(first + byte, byte)])),
            ),
            _ => {
                let byte = first + number % len;
                cases.push(page.case(change, vec![page.flipped(byte, number + turn)]));
            }
        }
    }
    cases
}

/// Exchanges two pages, as far as both have bytes.
fn exchange(a: Page<'_>, b: Page<'_>) -> Vec<Edit> {
    let len = a.bytes().len().min(b.bytes().len());
    vec![
        a.put(b.bytes()[..len].to_vec()),
        b.put(a.bytes()[..len].to_vec()),
    ]
}

fn exchanges(all: &[Page<'_>], number: usize) -> Vec<Case> {
    let page = all[number];
    let others = all.iter().cycle().skip(number + 1).take(all.len());
    let same_file = others
        .clone()
        .find(|other| other.path == page.path && other.index != page.index);
    // The same position in another file, or any other position if no file has that.
    let elsewhere = others.clone().filter(|other| other.path != page.path);
    let same_place = elsewhere
        .clone()
        .find(|other| other.index == page.index && page.path != "meta");
    let other_file = same_place.or_else(|| elsewhere.clone().next());
    let mut cases = Vec::new();
    if let Some(other) = same_file {
        cases.push(page.case("exchange in the file", exchange(page, *other)));
    }
    if let Some(other) = other_file {
        let len = page.bytes().len().min(other.bytes().len());
        let put = page.put(other.bytes()[..len].to_vec());
        cases.push(page.case("page of another file", vec![put]));
        if stride(other.path) == stride(page.path) {
            cases.push(page.case("exchange with another file", exchange(page, *other)));
        }
    }
    cases
}

/// Changes of a page by itself.
pub fn of_pages(state: &State, extent: Extent) -> Vec<Case> {
    let all = pages(&state.files);
    let mut cases = Vec::new();
    for (number, page) in all.iter().enumerate() {
        cases.extend(flips(*page, number, extent));
        let len = page.bytes().len();
        cases.push(page.case("zeros", vec![page.put(vec![0; len])]));
        cases.push(page.case("random bytes", vec![page.put(noise(len, number + 77))]));
        cases.extend(exchanges(&all, number));
        let set_len = |len| {
            let path = page.path.to_owned();
            vec![Edit::Len { path, len }]
        };
        cases.push(page.case("file truncated before the page", set_len(page.start())));
        let within = [1, 64, 100, 512, len - 1][number % 5].min(len - 1);
        cases.push(page.case(
            "file truncated within the page",
            set_len(page.start() + within),
        ));
    }
    cases
}

/// Pages and files of other volumes, at the same position.
pub fn of_others(victim: &Victim, state: &State) -> Vec<Case> {
    let mut cases = Vec::new();
    for foreign in &victim.foreign {
        let stale = if foreign.same_ids {
            Stale::OtherHistory
        } else {
            Stale::Nothing
        };
        for (path, theirs) in pairs(&state.files, foreign) {
            for page in pages(&state.files)
                .into_iter()
                .filter(|page| page.path == path)
            {
                let there = Page {
                    files: &foreign.files,
                    path: theirs,
                    ..page
                };
                if there.start() >= foreign.files[theirs].len() || there.bytes() == page.bytes() {
                    continue;
                }
                let edits = vec![page.put(there.bytes().to_vec())];
                let what = format!("{} of {}", page.name(), foreign.what);
                let of = format!("{}: {}", sort(path, page.index), foreign.what);
                cases.push(Case {
                    of,
                    change: "page",
                    what,
                    edits,
                    stale,
                    names: Vec::new(),
                });
            }
            if foreign.files[theirs] != state.files[path] {
                let (what, bytes) = (
                    format!("{path} of {}", foreign.what),
                    foreign.files[theirs].clone(),
                );
                let (of, path) = (
                    format!("{}: {}", sort(path, 9), foreign.what),
                    path.to_owned(),
                );
                let edits = vec![Edit::Whole { path, bytes }];
                cases.push(Case {
                    of,
                    change: "file",
                    what,
                    edits,
                    stale,
                    names: Vec::new(),
                });
            }
        }
    }
    cases
}

/// Files of the victim with the files of the other volume that replace them: those of the same
/// name, else any other.
fn pairs<'a>(ours: &'a Files, foreign: &'a Foreign) -> Vec<(&'a str, &'a str)> {
    let objects: Vec<&String> = foreign
        .files
        .keys()
        .filter(|path| path.starts_with("objects"))
        .collect();
    let ours = ours.keys().filter(|path| *path != "lock").enumerate();
    ours.map(|(number, path)| match foreign.files.get_key_value(path) {
        Some((same, _)) => (path.as_str(), same.as_str()),
        None => (path.as_str(), objects[number % objects.len()].as_str()),
    })
    .collect()
}

/// Older copies, of pages and of files.
pub fn of_older(victim: &Victim, state: &State) -> Vec<Case> {
    let stale = Stale::Older;
    let mut cases = Vec::new();
    for (path, before) in victim
        .older
        .iter()
        .filter(|(path, _)| state.files.contains_key(*path))
    {
        for page in pages(&state.files)
            .into_iter()
            .filter(|page| page.path == path)
        {
            let there = Page {
                files: &victim.older,
                ..page
            };
            if there.start() < before.len() && there.bytes() != page.bytes() {
                let put = page.put(there.bytes().to_vec());
                cases.push(Case {
                    stale,
                    ..page.case("older page", vec![put])
                });
            }
        }
        if *before != state.files[path] {
            let (what, of) = (path.clone(), sort(path, 9));
            let (path, bytes) = (path.clone(), before.clone());
            let edits = vec![Edit::Whole { path, bytes }];
            cases.push(Case {
                of,
                change: "older file",
                what,
                edits,
                stale,
                names: Vec::new(),
            });
        }
    }
    cases
}

/// Both slots of page 0 of `meta`, each in every way.
pub fn of_slots(victim: &Victim, state: &State) -> Vec<Case> {
    let slot = |files: &Files, index: usize| {
        Page {
            files,
            path: "meta",
            index,
        }
        .bytes()
        .to_vec()
    };
    let ways = |index: usize| {
        let now = slot(&state.files, index);
        let mut flipped = now.clone();
        flipped[70] ^= 4;
        vec![
            ("as it is", now.clone()),
            ("zeros", vec![0; now.len()]),
            ("random", noise(now.len(), index + 5)),
            ("flipped", flipped),
            ("older", slot(&victim.older, index)),
            ("the other", slot(&state.files, 1 - index)),
            ("the older other", slot(&victim.older, 1 - index)),
        ]
    };
    let mut cases = Vec::new();
    for (first, a) in ways(0) {
        for (second, b) in ways(1) {
            let put = |at: usize, bytes: &[u8]| {
                let (path, bytes) = ("meta".to_owned(), bytes.to_vec());
                Edit::Write { path, at, bytes }
            };
            cases.push(Case {
                of: "meta, page 0".to_owned(),
                change: "both slots",
                what: format!("A {first}, B {second}"),
                edits: vec![put(0, &a), put(a.len(), &b)],
                stale: Stale::Older,
                names: Vec::new(),
            });
        }
    }
    cases
}

/// Changes of a file as a whole: its length, and its absence.
pub fn of_files(state: &State) -> Vec<Case> {
    let mut cases = Vec::new();
    for (path, bytes) in &state.files {
        let len = bytes.len();
        let mut add = |change: &'static str, edit: Edit| {
            let (of, what, edits) = (sort(path, 9), path.clone(), vec![edit]);
            cases.push(Case {
                of,
                change,
                what,
                edits,
                stale: Stale::Nothing,
                names: Vec::new(),
            });
        };
        let path = || path.clone();
        add("removed", Edit::Remove { path: path() });
        for more in [1, 100, stride(&path()), 9000, 1 << 20] {
            add(
                "longer by zeros",
                Edit::Len {
                    path: path(),
                    len: len + more,
                },
            );
            let bytes = noise(more, len);
            add(
                "longer by random bytes",
                Edit::Write {
                    path: path(),
                    at: len,
                    bytes,
                },
            );
        }
        if len > 0 {
            add(
                "empty",
                Edit::Len {
                    path: path(),
                    len: 0,
                },
            );
            add(
                "one byte short",
                Edit::Len {
                    path: path(),
                    len: len - 1,
                },
            );
            add(
                "random bytes",
                Edit::Whole {
                    path: path(),
                    bytes: noise(len, 3),
                },
            );
        }
    }
    cases
}

/// Every bit of the superblock.
pub fn of_superblock(state: &State) -> Vec<Case> {
    let bytes = &state.files["volume.json"];
    let bits = (0..bytes.len() * 8).map(|bit| {
        let (path, at) = ("volume.json".to_owned(), bit / 8);
        let bytes = vec![bytes[at] ^ 1 << (bit % 8)];
        Case {
            of: "volume.json".to_owned(),
            change: "flip: every bit",
            what: format!("bit {bit}"),
            edits: vec![Edit::Write { path, at, bytes }],
            stale: Stale::Nothing,
            names: Vec::new(),
        }
    });
    bits.collect()
}
