//! Comparing snapshots, and restoring a volume or one path of it.

use bilayer::fs::snapshots::{Change, ChangeKind, ViewError};
use bilayer::fs::types::{DirentRef, RenameFlags};

use super::snapshots::{drop_it, overwrite, restore, take};
use crate::support::{CHUNK, Mount, PAGE, ROOT, USER, pattern};

pub(super) fn differences(mount: &Mount, from: &str, to: Option<&str>) -> Vec<String> {
    let mut lines = Vec::new();
    let each = &mut |change: Change| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let sign = match change.kind {
            ChangeKind::Added => "+",
            ChangeKind::Removed => "-",
            ChangeKind::Changed => "M",
            ChangeKind::Renamed => "R",
        };
        let from = change.from.map(|from| format!("{} -> ", text(&from)));
        lines.push(format!(
            "{sign} {}{}",
            from.unwrap_or_default(),
            text(&change.path)
        ));
    };
    mount.fs.diff_views(from, to, each).unwrap();
    lines
}

#[test]
fn the_whole_volume_is_restored() {
    let mount = Mount::new();
    let large = pattern(1, 0, CHUNK + 70_000);
    let dir = mount.mkdir(ROOT, "dir");
    mount.file(dir, "large", &large);
    mount.file(ROOT, "gone", &pattern(2, 0, 50_000));
    mount.file(ROOT, "same", b"same");
    take(&mount, "one");
    let used = mount.fs.usage();
    overwrite(&mount, "dir/large", 5_000, &pattern(9, 0, 3 * PAGE));
    mount.fs.unlink(ROOT, b"gone").unwrap();
    mount
        .fs
        .rename(
            &USER,
            DirentRef::new(ROOT, b"dir"),
            DirentRef::new(ROOT, b"moved"),
            RenameFlags::default(),
        )
        .unwrap();
    let new = mount.mkdir(ROOT, "new");
    mount.file(new, "file", &pattern(3, 0, 90_000));
    let (open, handle) = mount.create(ROOT, "open");
    mount.put(open, handle, 0, &pattern(4, 0, 10_000));
    take(&mount, "two");
    assert_eq!(
        differences(&mount, "one", None),
        [
            "M ",
            "- gone",
            "R dir -> moved",
            "M moved/large",
            "+ new",
            "+ new/file",
            "+ open"
        ]
    );
    restore(&mount, "one", None);
    assert_eq!(differences(&mount, "one", None), [""; 0]);
    assert_eq!(
        differences(&mount, "two", Some("one")),
        [
            "M ",
            "R moved -> dir",
            "M dir/large",
            "+ gone",
            "- new",
            "- new/file",
            "- open"
        ]
    );
    let check = |mount: &Mount| {
        assert_eq!(mount.names(ROOT), ["dir", "gone", "same"]);
        assert!(mount.contents(mount.at("dir/large")) == large);
        assert!(mount.contents(mount.at("gone")) == pattern(2, 0, 50_000));
        assert_eq!(
            mount.names(mount.at(".snapshots/two")),
            ["moved", "new", "open", "same"]
        );
    };
    check(&mount);
    assert_eq!(
        mount.contents_of(open, handle).unwrap(),
        pattern(4, 0, 10_000)
    );
    mount.fs.release(open, handle);
    assert_eq!(mount.fs.usage().contents_bytes, used.contents_bytes);
    assert_eq!(mount.fs.usage().inodes, used.inodes);
    overwrite(&mount, "dir/large", 0, b"again");
    assert!(mount.contents(mount.at(".snapshots/one/dir/large")) == large);
    let mut large = large.clone();
    large[..5].copy_from_slice(b"again");
    assert!(mount.contents(mount.at("dir/large")) == large);
    let mount = mount.reopen();
    drop_it(&mount, "one");
    drop_it(&mount, "two");
    mount.fs.finish_purge().unwrap();
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("dir/large")) == large);
    mount.finish();
}

/// A write is visible to a diff at once, also if nothing but the contents changed.
#[test]
fn unsynced_writes_differ() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "file");
    mount.put(node, handle, 0, &pattern(1, 0, 10_000));
    for number in 0..10 {
        let name = number.to_string();
        take(&mount, &name);
        assert_eq!(differences(&mount, &name, None), [""; 0]);
        mount.put(node, handle, 5_000, &[number; 10]);
        assert_eq!(differences(&mount, &name, None), ["M file"]);
    }
    assert_eq!(differences(&mount, "9", Some("8")), ["M file"]);
    mount.fs.release(node, handle);
    mount.finish();
}

#[test]
fn one_path_is_restored() {
    let mount = Mount::new();
    let large = pattern(1, 0, CHUNK + 1_500_000);
    let dir = mount.mkdir(ROOT, "dir");
    let below = mount.mkdir(dir, "below");
    mount.file(below, "large", &large);
    let small = mount.file(dir, "small", b"small");
    mount.fs.link(small, below, b"link").unwrap();
    mount.fs.forget(small, 1);
    mount
        .fs
        .set_xattr(
            &USER,
            small,
            b"user.x",
            b"value",
            bilayer::fs::types::XattrMode::Any,
        )
        .unwrap();
    mount.file(ROOT, "other", b"before");
    take(&mount, "one");
    overwrite(&mount, "dir/below/large", 0, b"changed");
    overwrite(&mount, "other", 0, b"after!");
    mount.fs.unlink(dir, b"small").unwrap();
    mount.file(below, "new", b"new");
    restore(&mount, "one", Some("/dir/"));
    let check = |mount: &Mount| {
        assert_eq!(mount.names(mount.at("dir")), ["below", "small"]);
        assert_eq!(mount.names(mount.at("dir/below")), ["large", "link"]);
        assert!(mount.contents(mount.at("dir/below/large")) == large);
        let small = mount.at("dir/small");
        assert_eq!(small, mount.at("dir/below/link"));
        assert_eq!(mount.fs.get_xattr(small, b"user.x").unwrap(), b"value");
        assert_eq!(mount.contents(mount.at("other")), b"after!");
    };
    check(&mount);
    let old = mount
        .fs
        .getattr(mount.at(".snapshots/one/dir/below/large"))
        .unwrap();
    assert_eq!(
        mount.fs.getattr(mount.at("dir/below/large")).unwrap().mtime,
        old.mtime
    );
    restore(&mount, "one", Some("other"));
    assert_eq!(mount.contents(mount.at("other")), b"before");
    overwrite(&mount, "other", 0, b"after!");
    // The copy shares its objects; the snapshot is deleted, and either file changes alone.
    overwrite(&mount, "dir/below/large", 9, b"changed");
    drop_it(&mount, "one");
    mount.fs.finish_purge().unwrap();
    overwrite(&mount, "dir/below/large", 9, &large[9..16]);
    let mount = mount.reopen();
    check(&mount);
    mount.finish();
    let mount = Mount::new();
    take(&mount, "one");
    let missing = mount
        .fs
        .restore("one", Some(std::path::Path::new("no/such")));
    assert!(matches!(missing, Err(ViewError::NoSuchPath { .. })));
    mount.finish();
}
