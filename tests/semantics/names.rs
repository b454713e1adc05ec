//! Creating and removing names.

use bilayer::errno::Errno;
use bilayer::fs::types::FileKind;

use crate::support::{Mount, ROOT, USER};

#[test]
fn refusals() {
    let mount = Mount::new();
    let fs = &mount.fs;
    let dir = mount.mkdir(ROOT, "dir");
    let file = mount.file(ROOT, "file", b"x");
    mount.file(dir, "inside", b"");
    let long = [b'n'; 256];
    assert_eq!(
        fs.mkdir(&USER, ROOT, b"file", 0o755).err(),
        Some(Errno::EEXIST)
    );
    assert_eq!(
        fs.mknod(&USER, ROOT, b"dir", 0o644, 0).err(),
        Some(Errno::EEXIST)
    );
    assert_eq!(
        fs.symlink(&USER, ROOT, b"dir", b"t").err(),
        Some(Errno::EEXIST)
    );
    assert_eq!(fs.lookup(ROOT, b"none").err(), Some(Errno::ENOENT));
    assert_eq!(fs.lookup(file, b"none").err(), Some(Errno::ENOTDIR));
    assert_eq!(
        fs.mkdir(&USER, file, b"d", 0o755).err(),
        Some(Errno::ENOTDIR)
    );
    assert_eq!(fs.unlink(ROOT, b"none").err(), Some(Errno::ENOENT));
    assert_eq!(fs.unlink(ROOT, b"dir").err(), Some(Errno::EISDIR));
    assert_eq!(fs.rmdir(ROOT, b"file").err(), Some(Errno::ENOTDIR));
    assert_eq!(fs.rmdir(ROOT, b"dir").err(), Some(Errno::ENOTEMPTY));
    assert_eq!(fs.rmdir(ROOT, b".").err(), Some(Errno::EINVAL));
    assert_eq!(fs.rmdir(ROOT, b"..").err(), Some(Errno::ENOTEMPTY));
    for name in [&long[..], b"a/b", b"a\0b", b".", b"..", b""] {
        let expected = match name {
            [] => Errno::ENOENT,
            _ if name.len() > 255 => Errno::ENAMETOOLONG,
            _ => Errno::EINVAL,
        };
        assert_eq!(fs.mkdir(&USER, ROOT, name, 0o755).err(), Some(expected));
        assert_eq!(fs.link(file, ROOT, name).err(), Some(expected));
        assert_eq!(fs.unlink(ROOT, name).err(), Some(expected));
    }
    assert_eq!(fs.lookup(ROOT, &long).err(), Some(Errno::ENAMETOOLONG));
    assert_eq!(fs.link(dir, ROOT, b"l").err(), Some(Errno::EPERM));
    assert_eq!(
        fs.symlink(&USER, ROOT, b"s", b"").err(),
        Some(Errno::ENOENT)
    );
    let far = [b't'; 4096];
    assert_eq!(
        fs.symlink(&USER, ROOT, b"s", &far).err(),
        Some(Errno::ENAMETOOLONG)
    );
    assert_eq!(fs.readlink(file).err(), Some(Errno::EINVAL));
    let flags = libc::O_RDONLY;
    assert_eq!(fs.open_file(&USER, dir, flags).err(), Some(Errno::EISDIR));
    assert_eq!(fs.open_dir(file).err(), Some(Errno::ENOTDIR));
    mount.finish();
}

#[test]
fn the_longest_names_and_targets() {
    let mount = Mount::new();
    let name = "n".repeat(255);
    let file = mount.file(ROOT, &name, b"x");
    let attr = mount.fs.symlink(&USER, ROOT, b"s", &[b't'; 4095]).unwrap();
    assert_eq!(
        (attr.kind, attr.size, attr.perm),
        (FileKind::Symlink, 4095, 0o777)
    );
    let mount = mount.reopen();
    assert_eq!(mount.at(&name), file);
    assert_eq!(mount.fs.readlink(mount.at("s")).unwrap(), [b't'; 4095]);
}

#[test]
fn directories_count_their_children() {
    let mount = Mount::new();
    let links = |node| mount.fs.getattr(node).unwrap().nlink;
    let top = mount.mkdir(ROOT, "top");
    assert_eq!((links(ROOT), links(top)), (3, 2));
    let below = mount.mkdir(top, "below");
    mount.file(top, "file", b"");
    assert_eq!(links(top), 3);
    assert_eq!(mount.lookup(below, b"..").unwrap().node, top);
    mount.fs.rmdir(top, b"below").unwrap();
    assert_eq!(links(top), 2);
    assert_eq!(
        mount.fs.mkdir(&USER, below, b"late", 0o755).err(),
        Some(Errno::ESTALE)
    );
    mount.finish();
}

#[test]
fn nothing_is_made_in_a_removed_directory() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "dir");
    let handle = mount.fs.open_dir(dir).unwrap();
    mount.fs.rmdir(ROOT, b"dir").unwrap();
    assert_eq!(
        mount.fs.mkdir(&USER, dir, b"late", 0o755).err(),
        Some(Errno::ENOENT)
    );
    assert!(mount.names(dir).is_empty());
    mount.fs.release_dir(dir, handle);
    assert_eq!(mount.fs.getattr(dir).err(), Some(Errno::ESTALE));
    mount.finish();
}

#[test]
fn hard_links() {
    let mount = Mount::new();
    let file = mount.file(ROOT, "one", b"contents");
    let attr = mount.fs.link(file, ROOT, b"two").unwrap();
    assert_eq!((attr.node, attr.nlink), (file, 2));
    assert_eq!(mount.fs.link(file, ROOT, b"two").err(), Some(Errno::EEXIST));
    mount.fs.forget(file, 1);
    mount.fs.unlink(ROOT, b"one").unwrap();
    assert_eq!(mount.fs.getattr(file).unwrap().nlink, 1);
    let mount = mount.reopen();
    assert_eq!(mount.contents(mount.at("two")), b"contents");
    assert_eq!(mount.finish().inodes, 2);
}

#[test]
fn special_files_keep_their_numbers() {
    let mount = Mount::new();
    for (name, kind, expected) in [
        ("fifo", libc::S_IFIFO, FileKind::Fifo),
        ("socket", libc::S_IFSOCK, FileKind::Socket),
        ("char", libc::S_IFCHR, FileKind::CharDevice),
        ("block", libc::S_IFBLK, FileKind::BlockDevice),
    ] {
        let made = mount
            .fs
            .mknod(&USER, ROOT, name.as_bytes(), kind | 0o600, 0x0102_0304);
        assert_eq!(
            (made.unwrap().kind, made.unwrap().rdev),
            (expected, 0x0102_0304)
        );
        let node = made.unwrap().node;
        assert_eq!(mount.fs.open_file(&USER, node, 0).err(), Some(Errno::ENXIO));
    }
    let directory = mount.fs.mknod(&USER, ROOT, b"d", libc::S_IFDIR, 0);
    assert_eq!(directory.err(), Some(Errno::EPERM));
    let mount = mount.reopen();
    assert_eq!(
        mount.fs.getattr(mount.at("char")).unwrap().rdev,
        0x0102_0304
    );
}
