//! The matrix: how the directory that is mounted relates to the volume that the keystore remembers,
//! whether the volume itself is mounted at the same time, and how the directory is mounted.
//!
//! `cargo test --test identity matrix -- --nocapture` prints it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::end;
use crate::real::{Outcome, Place, command, run};

const TEST: &str = "identity-matrix";
const LIMIT: Duration = Duration::from_secs(900);

/// The outcome of mounting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cell {
    /// It is mounted as the volume, or read-only as a copy.
    Mounts,
    /// It is mounted as a volume of its own.
    OwnVolume,
    /// Refused: it is a copy.
    Copy,
    /// Refused: it may be a copy.
    CannotTell,
    /// Refused: the volume is in use.
    InUse,
    /// Refused: it shares files with the volume, which is in use.
    SharesFiles,
    /// Refused: it is not a copy.
    NoCopy,
    /// There is no such case.
    None,
}

impl Cell {
    const fn says(self) -> &'static str {
        match self {
            Self::Copy => "this directory is a copy of the volume in",
            Self::CannotTell => "this directory may be a copy of the volume that was in",
            Self::InUse => "in use",
            Self::SharesFiles => "shares files with the volume",
            Self::NoCopy => "the volume itself and no copy",
            Self::Mounts | Self::OwnVolume | Self::None => "",
        }
    }

    const fn shown(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::OwnVolume => "its own volume",
            Self::Copy => "refused: a copy",
            Self::CannotTell => "refused: cannot tell",
            Self::InUse => "refused: in use",
            Self::SharesFiles => "refused: shares files",
            Self::NoCopy => "refused: no copy",
            Self::None => "-",
        }
    }
}

/// The kinds of mounts.
const HOW: [(&str, &str); 3] = [
    ("read-only", "-o ro"),
    ("for writing", "-o rw"),
    ("new identity", "--new-identity"),
];

/// A case: its name; the commands that create the directory `this` beside the volume `srv/vol`; the
/// outcomes for each of [`HOW`], with the volume unmounted and mounted.
struct Case {
    name: &'static str,
    make: fn(&Place),
    unmounted: [Cell; 3],
    mounted: [Cell; 3],
    /// The volume itself, at its path.
    stays: bool,
    keystore: &'static str,
}

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

/// A copy, and then more changes to the original: the copy is older.
const CHANGED_LATER: &str = "changed-later";

const CASES: &[Case] = {
    use Cell::{CannotTell, Copy, InUse, Mounts, NoCopy, None, OwnVolume, SharesFiles};
    &[
        Case {
            name: "copy",
            make: |place| sh(place, "cp -a srv/vol this"),
            unmounted: [Mounts, Copy, OwnVolume],
            mounted: [Mounts, Copy, OwnVolume],
            stays: true,
            keystore: "keystore",
        },
        Case {
            name: "older copy",
            make: |place| {
                sh(place, "cp -a srv/vol this");
                let mounted = place.mount("srv/vol", "mnt", "");
                fs::write(mounted.path(CHANGED_LATER), "later").unwrap();
                mounted.unmount();
            },
            unmounted: [Mounts, Copy, OwnVolume],
            mounted: [Mounts, Copy, OwnVolume],
            stays: true,
            keystore: "keystore",
        },
        Case {
            name: "copy of a copy",
            make: |place| sh(place, "cp -a srv/vol first; cp -a first this"),
            unmounted: [Mounts, Copy, OwnVolume],
            mounted: [Mounts, Copy, OwnVolume],
            stays: true,
            keystore: "keystore",
        },
        Case {
            name: "hard links",
            make: |place| sh(place, "cp -al srv/vol this"),
            unmounted: [Mounts, Copy, OwnVolume],
            mounted: [Mounts, Copy, SharesFiles],
            stays: true,
            keystore: "keystore",
        },
        Case {
            name: "moved",
            make: |place| sh(place, "mv srv/vol this"),
            unmounted: [Mounts, Mounts, OwnVolume],
            mounted: [InUse, InUse, InUse],
            stays: false,
            keystore: "keystore",
        },
        Case {
            name: "parent renamed",
            make: |place| sh(place, "mv srv away; ln -s away/vol this"),
            unmounted: [Mounts, Mounts, OwnVolume],
            mounted: [InUse, InUse, InUse],
            stays: false,
            keystore: "keystore",
        },
        Case {
            name: "moved to another disk",
            make: |place| {
                sh(
                    place,
                    "mkdir disk; mount -t tmpfs tmpfs disk; cp -a srv/vol disk/vol; rm -r srv/vol; \
                     ln -s disk/vol this",
                );
            },
            unmounted: [Mounts, Mounts, OwnVolume],
            mounted: [None; 3],
            stays: false,
            keystore: "keystore",
        },
        Case {
            name: "parent over-mounted by a disk",
            make: |place| sh(place, "cp -a srv/vol this; mount -t tmpfs tmpfs srv"),
            unmounted: [Mounts, CannotTell, OwnVolume],
            mounted: [Mounts, CannotTell, OwnVolume],
            stays: false,
            keystore: "keystore",
        },
        Case {
            name: "parent over-mounted by a directory",
            make: |place| {
                sh(
                    place,
                    "cp -a srv/vol this; mkdir empty; mount --bind empty srv",
                );
            },
            unmounted: [Mounts, CannotTell, OwnVolume],
            mounted: [Mounts, CannotTell, OwnVolume],
            stays: false,
            keystore: "keystore",
        },
        Case {
            name: "bind mount",
            make: |place| sh(place, "mkdir this; mount --bind srv/vol this"),
            unmounted: [Mounts, Mounts, NoCopy],
            mounted: [InUse, InUse, InUse],
            stays: true,
            keystore: "keystore",
        },
        Case {
            name: "two keystores",
            make: |place| sh(place, "cp -a srv/vol this; cp -a keystore other"),
            unmounted: [Mounts, Copy, OwnVolume],
            mounted: [Mounts, Copy, OwnVolume],
            stays: true,
            keystore: "other",
        },
        Case {
            name: "other inode numbers at its path",
            make: |place| {
                sh(
                    place,
                    "cp -a srv/vol other; rm -r srv/vol; mv other srv/vol; ln -s srv/vol this",
                );
            },
            unmounted: [Mounts, Mounts, NoCopy],
            mounted: [None; 3],
            stays: true,
            keystore: "keystore",
        },
    ]
};

/// A volume with a file in it.
fn prepare(test: &'static str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    place.dir("srv");
    place.run("create srv/vol").done();
    let mounted = place.mount("srv/vol", "mnt", "");
    fs::write(mounted.path("file"), vec![7; 20_000]).unwrap();
    mounted.unmount();
    place.dir("seen");
    Some(place)
}

fn record(place: &Place) -> (PathBuf, Vec<u8>) {
    let records = fs::read_dir(place.path("keystore/volumes")).unwrap();
    let mut paths = records.map(|entry| entry.unwrap().path());
    let path = paths.find(|path| path.extension().is_some_and(|it| it == "json"));
    let path = path.unwrap();
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

fn id(place: &Place, volume: &str) -> String {
    let mut inspect = place.bilayer(["inspect", "--json", volume]);
    let report: serde_json::Value = serde_json::from_str(&run(&mut inspect).done().stdout).unwrap();
    report["header"]["volume_id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn judge(outcome: &Outcome, expected: Cell, what: &str) {
    match expected {
        Cell::Mounts | Cell::OwnVolume => {
            assert_eq!(outcome.code, 0, "{what}: {}", outcome.stderr);
        }
        _ => {
            let code = if expected == Cell::NoCopy { 1 } else { 32 };
            assert_eq!(outcome.code, code, "{what}: {}", outcome.stderr);
            let says = expected.says();
            assert!(
                outcome.stderr.contains(says),
                "{what}: {says:?} is not said: {}",
                outcome.stderr
            );
        }
    }
}

/// Runs one cell of the matrix: the outcome is the expected one, and the original is unharmed.
fn cell(case: &Case, mounted: bool, how: usize, expected: Cell) -> Option<()> {
    let place = prepare(TEST)?;
    let (name, options) = HOW[how];
    let what = format!("{}, mounted {mounted}, {name}", case.name);
    let before = id(&place, "srv/vol");
    if !mounted {
        (case.make)(&place);
    }
    // A hard-linked copy is made before the lock is taken; the copy of a volume in use is made
    // after.
    let linked = case.name == "hard links" || case.name == "older copy";
    if mounted && linked {
        (case.make)(&place);
    }
    let original = mounted.then(|| place.mount("srv/vol", "mnt", ""));
    if mounted && !linked {
        (case.make)(&place);
    }
    let (path, known) = record(&place);
    let outcome = place.run(&format!(
        "mount this seen --platform-keystore {} {options}",
        case.keystore
    ));
    judge(&outcome, expected, &what);
    if matches!(expected, Cell::Mounts | Cell::OwnVolume) {
        let seen = place.mounted(&place.path("seen"));
        assert_eq!(
            fs::read(seen.path("file")).unwrap(),
            vec![7; 20_000],
            "{what}"
        );
        if name != "read-only" {
            fs::write(seen.path("mine"), "mine").unwrap();
        }
        seen.unmount();
    }
    let is_new = expected == Cell::OwnVolume;
    assert_eq!(id(&place, "this") != before, is_new, "{what}");
    // The original reports neither a look at it, nor a refusal, nor a copy that became a volume of
    // its own.
    let is_quiet = name != "for writing" || expected != Cell::Mounts;
    if !mounted && is_quiet {
        assert!(
            fs::read(&path).unwrap() == known,
            "{what}: the record changed"
        );
    }
    if let Some(original) = original {
        assert_eq!(fs::read(original.path("file")).unwrap(), vec![7; 20_000]);
        end(original);
    }
    if case.stays {
        let original = place.mount("srv/vol", "mnt", "");
        assert_eq!(fs::read(original.path("file")).unwrap(), vec![7; 20_000]);
        assert_eq!(
            original.path("mine").exists(),
            expected == Cell::Mounts && name == "for writing",
            "{what}"
        );
        fs::write(original.path("file"), "goes on").unwrap();
        original.unmount();
    }
    if is_new {
        // From now on it is used like any other, without the option.
        let again = place.run(&format!(
            "mount this seen --platform-keystore {}",
            case.keystore
        ));
        again.done();
        let seen = place.mounted(&place.path("seen"));
        assert_eq!(fs::read(seen.path("mine")).unwrap(), b"mine");
        assert_eq!(
            fs::read(seen.path("file")).unwrap(),
            vec![7; 20_000],
            "{what}"
        );
        seen.unmount();
        let mut check = place.bilayer(["check", "this", "--platform-keystore", case.keystore]);
        run(&mut check).done();
    }
    Some(())
}

#[test]
fn matrix() {
    let mut table = format!(
        "{:36}{:10}{:24}{:24}{:24}\n",
        "the directory is", "original", HOW[0].0, HOW[1].0, HOW[2].0
    );
    for case in CASES {
        for (mounted, expected) in [(false, case.unmounted), (true, case.mounted)] {
            if expected == [Cell::None; 3] {
                continue;
            }
            let state = if mounted { "mounted" } else { "at rest" };
            table += &format!("{:36}{state:10}", case.name);
            for (how, expected) in expected.into_iter().enumerate() {
                if cell(case, mounted, how, expected).is_none() {
                    return;
                }
                table += &format!("{:24}", expected.shown());
            }
            table += "\n";
        }
    }
    println!("{table}");
}
