//! The rename matrix.

use bilayer::errno::Errno;
use bilayer::fs::types::{DirentRef, FileKind, RenameFlags};

use crate::support::{Mount, ROOT, USER, fork, pattern};

const PLAIN: RenameFlags = RenameFlags {
    no_replace: false,
    exchange: false,
    whiteout: false,
};

fn rename(mount: &Mount, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    let split = |path: &str| match path.rsplit_once('/') {
        Some((dir, name)) => (mount.at(dir), name.as_bytes().to_vec()),
        None => (ROOT, path.as_bytes().to_vec()),
    };
    let ((dir, name), (to_dir, to_name)) = (split(from), split(to));
    mount.fs.rename(
        &USER,
        DirentRef::new(dir, &name),
        DirentRef::new(to_dir, &to_name),
        flags,
    )
}

fn tree() -> Mount {
    let mount = Mount::new();
    mount.file(ROOT, "file", b"file");
    mount.file(ROOT, "other", b"other");
    mount.mkdir(ROOT, "empty");
    let full = mount.mkdir(ROOT, "full");
    mount.file(full, "inside", b"inside");
    let deep = mount.mkdir(full, "deep");
    mount.mkdir(deep, "deeper");
    mount
}

#[test]
fn a_rename_over_existing_names() {
    for (from, to, expected) in [
        ("file", "new", Ok(())),
        ("file", "other", Ok(())),
        ("file", "empty", Err(Errno::EISDIR)),
        ("file", "full", Err(Errno::EISDIR)),
        ("empty", "file", Err(Errno::ENOTDIR)),
        ("empty", "full", Err(Errno::ENOTEMPTY)),
        ("full", "empty", Ok(())),
        ("full", "full/deep", Err(Errno::EINVAL)),
        ("full", "full/deep/deeper/x", Err(Errno::EINVAL)),
        ("full/deep", "full", Err(Errno::ENOTEMPTY)),
        ("full/deep/deeper", "empty", Ok(())),
        ("full/inside", "file", Ok(())),
        ("none", "file", Err(Errno::ENOENT)),
        ("file", "file", Ok(())),
    ] {
        let mount = tree();
        let moved = mount.lookup(ROOT, from.as_bytes()).map(|attr| attr.node);
        assert_eq!(rename(&mount, from, to, PLAIN), expected, "{from} to {to}");
        if let (Ok(moved), Ok(())) = (moved, expected) {
            assert_eq!(mount.at(to), moved);
        }
        // The audit checks link counts and parents.
        mount.reopen().finish();
    }
}

#[test]
fn two_names_of_one_inode_stay() {
    let mount = tree();
    mount.fs.link(mount.at("file"), ROOT, b"again").unwrap();
    assert_eq!(rename(&mount, "file", "again", PLAIN), Ok(()));
    assert_eq!(mount.at("file"), mount.at("again"));
    assert_eq!(mount.fs.getattr(mount.at("file")).unwrap().nlink, 2);
}

#[test]
fn no_replace() {
    let mount = tree();
    let flags = RenameFlags {
        no_replace: true,
        ..PLAIN
    };
    assert_eq!(rename(&mount, "file", "other", flags), Err(Errno::EEXIST));
    assert_eq!(rename(&mount, "file", "file", flags), Err(Errno::EEXIST));
    assert_eq!(rename(&mount, "file", "new", flags), Ok(()));
    mount.finish();
}

#[test]
fn exchange() {
    let flags = RenameFlags {
        exchange: true,
        ..PLAIN
    };
    for (from, to, expected) in [
        ("file", "other", Ok(())),
        ("file", "full", Ok(())),
        ("file", "full/deep", Ok(())),
        ("empty", "full/deep", Ok(())),
        ("full", "full/deep", Err(Errno::EINVAL)),
        ("full/deep", "full", Err(Errno::EINVAL)),
        ("file", "none", Err(Errno::ENOENT)),
    ] {
        let mount = tree();
        let nodes = (mount.at(from), mount.lookup(ROOT, to.as_bytes()));
        let second = if to == "none" {
            None
        } else {
            Some(mount.at(to))
        };
        assert_eq!(rename(&mount, from, to, flags), expected, "{from} and {to}");
        if expected.is_ok() {
            assert_eq!((mount.at(to), Some(mount.at(from))), (nodes.0, second));
        }
        mount.reopen().finish();
    }
    let mount = tree();
    let both = RenameFlags {
        no_replace: true,
        ..flags
    };
    assert_eq!(rename(&mount, "file", "other", both), Err(Errno::EINVAL));
}

#[test]
fn whiteout() {
    let mount = tree();
    let flags = RenameFlags {
        whiteout: true,
        ..PLAIN
    };
    assert_eq!(rename(&mount, "file", "full/inside", flags), Ok(()));
    let left = mount.fs.getattr(mount.at("file")).unwrap();
    assert_eq!(
        (left.kind, left.rdev, left.nlink),
        (FileKind::CharDevice, 0, 1)
    );
    assert_eq!(mount.contents(mount.at("full/inside")), b"file");
    mount.finish();
}

#[test]
fn renaming_over_commits_contents_first() {
    let mount = Mount::new();
    mount.file(ROOT, "name", &pattern(1, 0, 50_000));
    mount.commit();
    mount.file(ROOT, "new", &pattern(2, 0, 60_000));
    assert_eq!(rename(&mount, "new", "name", PLAIN), Ok(()));
    // A commit of names alone: contents are made durable first anyway.
    mount.commit();
    for seed in 0..20 {
        let survivor = mount.store.survivor(seed);
        let (keystore, options) = (fork(&mount.keystore), mount.options.clone());
        let after = Mount::open(survivor, keystore, options).unwrap();
        assert_eq!(after.contents(after.at("name")), pattern(2, 0, 60_000));
        after.fs.close().unwrap();
    }
}
