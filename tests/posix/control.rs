//! Runs the same script on ext4 and on a mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::real::{Place, command, have, need, run, run_within};

/// Time for one test.
pub(crate) const LIMIT: Duration = Duration::from_secs(400);

const PRELUDE: &str = include_str!("prelude.py");

/// Mount options with which devices and set-id bits have an effect.
pub(crate) const OPTIONS: &str = "dev,suid";

/// A place for a test that runs scripts; `None`, after a message, if it cannot run.
pub(crate) fn place(test: &'static str) -> Option<Place> {
    let place = Place::new(test, LIMIT)?;
    let tools = [
        ("python3", "python3"),
        ("mkfs.ext4", "e2fsprogs"),
        ("setfacl", "acl"),
    ];
    let there = tools.iter().all(|(program, package)| {
        let missing = format!("{program} is missing; install {package}");
        need(have(program), test, &missing)
    });
    there.then_some(place)
}

/// An ext4 filesystem in a file, mounted; removed on drop.
pub(crate) struct Ext4(PathBuf);

impl Ext4 {
    /// `None`, after a message, if no image can be mounted.
    pub(crate) fn new(place: &Place, test: &str, megabytes: u64, mkfs: &[&str]) -> Option<Self> {
        let image = place.path("ext4.image");
        let file = fs::File::create(&image).unwrap();
        file.set_len(megabytes << 20).unwrap();
        let mut make = command("mkfs.ext4", ["-q", "-b", "4096", "-I", "256"]);
        run(make.args(mkfs).arg(&image)).done();
        let dir = place.dir("ext4");
        let mounted = run(command("mount", ["-o", "loop"]).arg(&image).arg(&dir));
        let why = format!("an image cannot be mounted: {}", mounted.stderr.trim());
        need(mounted.code == 0, test, &why).then_some(Self(dir))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Runs a script in a new directory below `parent` and returns its output.
#[track_caller]
pub(crate) fn run_script(place: &Place, parent: &Path, script: &str, words: &[&str]) -> String {
    let dir = parent.join("work");
    fs::create_dir(&dir).unwrap();
    let text = format!("{PRELUDE}\n{script}");
    // As a file: a script is too long for an argument, and errors refer to its lines.
    let path = place.path("script.py");
    fs::write(&path, text).unwrap();
    let mut python = command("python3", [&path, &dir]);
    python.args(words).env("PYTHONDONTWRITEBYTECODE", "1");
    let outcome = run_within(python.current_dir(place.path("")), LIMIT).done();
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

/// Runs a script on both filesystems. The lines in which they differ must be those of
/// `differences`: the line on ext4, and the one on the mount.
#[track_caller]
pub(crate) fn same_as_ext4(test: &'static str, script: &str, differences: &[(&str, &str)]) {
    let Some(place) = place(test) else { return };
    let Some(ext4) = Ext4::new(&place, test, 256, &["-O", "ea_inode"]) else {
        return;
    };
    let expected = run_script(&place, ext4.dir(), script, &[]);
    let mounted = place.fresh("", OPTIONS);
    let actual = run_script(&place, mounted.dir(), script, &[]);
    compare(&expected, &actual, differences);
    fs::remove_dir_all(mounted.path("work")).unwrap();
    mounted.unmount();
    assert_eq!(objects(&place.path("vol/objects")), 0, "objects of nothing");
}

#[track_caller]
fn compare(expected: &str, actual: &str, differences: &[(&str, &str)]) {
    let mut unmet: Vec<_> = differences.iter().collect();
    let mut complaints = Vec::new();
    let mut section = "";
    for (ext4, here) in expected.lines().zip(actual.lines()) {
        if ext4.starts_with('#') {
            section = ext4;
        }
        if ext4 == here {
            continue;
        }
        match unmet.iter().position(|known| **known == (ext4, here)) {
            Some(at) => drop(unmet.remove(at)),
            None => complaints.push(format!("{section}\n  ext4: {ext4}\n  here: {here}")),
        }
    }
    complaints.extend(unmet.iter().map(|known| format!("no such line: {known:?}")));
    let lengths = (expected.lines().count(), actual.lines().count());
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    assert_eq!(lengths.0, lengths.1, "\n{expected}\n---\n{actual}");
    assert!(lengths.0 > 1, "the script said nothing");
}

/// Files below a directory.
pub(crate) fn objects(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => objects(&entry.path()),
            false => 1,
        })
        .sum()
}
