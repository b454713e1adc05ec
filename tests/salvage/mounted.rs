//! End to end: a real mount is written to, the volume is damaged, and the output is compared.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::real::{Place, command, noise, run};

/// Fills a directory with files of every kind; deterministic.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/large"), noise(1, 5_000_000)).unwrap();
    fs::write(root.join("a/small"), b"small").unwrap();
    fs::hard_link(root.join("a/large"), root.join("a/b/again")).unwrap();
    symlink("../no/where", root.join("a/link")).unwrap();
    let mut sparse = fs::File::create(root.join("a/b/sparse")).unwrap();
    sparse.seek(SeekFrom::Start(9_000_000)).unwrap();
    sparse.write_all(b"behind a hole").unwrap();
    sparse.set_len(20_000_000).unwrap();
    run(command("mkfifo", [root.join("a/b/fifo")]).current_dir("/")).done();
    for number in 0..200u64 {
        fs::write(root.join(format!("a/b/c/{number}")), noise(number, 3000)).unwrap();
    }
    let attribute = rustix::fs::setxattr(
        root.join("a/small"),
        "user.comment",
        b"attributes too",
        rustix::fs::XattrFlags::empty(),
    );
    attribute.unwrap();
    fs::set_permissions(root.join("a/small"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(root.join("a/b"), Some(1000), Some(1001)).unwrap();
    let past = std::time::UNIX_EPOCH + Duration::new(981_000_000, 123_456_789);
    for path in ["a/small", "a/b/c"] {
        fs::File::open(root.join(path))
            .unwrap()
            .set_modified(past)
            .unwrap();
    }
}

/// One line for everything below a directory.
fn listing(root: &Path) -> Vec<String> {
    let format = "%P %y %m %U:%G %s %T@ %n %l\\n";
    let listing = run(Command::new("find")
        .arg(root)
        .args(["-mindepth", "1", "-printf", format]))
    .done();
    // The size of a directory depends on its filesystem.
    let line = |line: &str| match line.split_once(" d ") {
        Some((path, rest)) => format!("{path} d {}", rest.replacen(" 4096 ", " 0 ", 1)),
        None => line.to_owned(),
    };
    let mut lines: Vec<String> = listing.stdout.lines().map(line).collect();
    lines.sort();
    lines
}

#[track_caller]
fn same(one: &Path, before: &[String], other: &Path) {
    run(command("diff", ["-r", "--no-dereference"])
        .args(["--exclude", "fifo"])
        .args([one, other]))
    .silent();
    let after = listing(other);
    let other = before
        .iter()
        .zip(&after)
        .find(|(before, after)| before != after);
    assert_eq!(other, None);
    assert_eq!(before.len(), after.len());
}

#[test]
fn a_mounted_tree_is_extracted_unchanged() {
    let Some(place) = Place::new("salvage", Duration::from_secs(300)) else {
        return;
    };
    let twin = place.dir("twin");
    let mounted = place.fresh("", "checkpoint=100000");
    fill(&twin);
    fill(mounted.dir());
    let refused = place.run("salvage vol out");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    let before = listing(mounted.dir());
    mounted.unmount();

    let taken = place.run("salvage vol out --json").done();
    let report: serde_json::Value = serde_json::from_str(&taken.stdout).unwrap();
    assert_eq!(report["counts"]["files"], 203);
    assert_eq!(report["source"]["meta"], "whole");
    same(&twin, &before, &place.path("out/files"));
    let value = {
        let mut value = [0; 100];
        let path = place.path("out/files/a/small");
        let len = rustix::fs::getxattr(path, "user.comment", &mut value).unwrap();
        value[..len].to_vec()
    };
    assert_eq!(value, b"attributes too");
    let mode = |path: &str| place.path(path).metadata().unwrap().mode() & 0o777;
    assert_eq!(
        (mode("out"), mode("out/salvage-report.json")),
        (0o700, 0o600)
    );
    let blocks = place
        .path("out/files/a/b/sparse")
        .metadata()
        .unwrap()
        .blocks();
    assert!(blocks * 512 < 100_000);

    // It does not extract into a directory that is not empty, nor into the volume itself.
    assert_eq!(place.run("salvage vol out").code, 1);
    assert_eq!(place.run("salvage vol vol/out").code, 1);
    assert!(!place.path("vol/out").exists());

    // Without metadata and superblock everything is still there, as of the unmount.
    fs::remove_file(place.path("vol/meta")).unwrap();
    fs::remove_file(place.path("vol/volume.json")).unwrap();
    let taken = place.run("salvage vol out2");
    assert_eq!(taken.code, 5, "{}", taken.stderr);
    assert!(
        taken.stderr.contains("salvage-report.json"),
        "{}",
        taken.stderr
    );
    same(&twin, &before, &place.path("out2/files"));

    // Without anything but objects, contents are still there.
    fs::remove_dir_all(place.path("vol/checkpoints")).unwrap();
    assert_eq!(place.run("salvage vol out3").code, 2);
}
