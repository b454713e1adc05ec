//! Attributes, extended ones among them, and access control lists.

use bilayer::errno::Errno;
use bilayer::fs::types::{Caller, SetAttr, SetTime, Timespec, XattrMode};

use crate::support::{ADMIN, Mount, ROOT, USER};

#[test]
fn attributes_that_are_set_stay() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", b"x");
    let time = |secs| Timespec {
        secs,
        nanos: 999_999_999,
    };
    let changes = SetAttr {
        perm: Some(0o1640),
        uid: Some(7),
        gid: Some(u32::MAX - 1),
        atime: Some(SetTime::At(time(-1))),
        mtime: Some(SetTime::At(time(1 << 40))),
        ..SetAttr::default()
    };
    mount.fs.setattr(&USER, node, &changes).unwrap();
    let mount = mount.reopen();
    let attr = mount.fs.getattr(node).unwrap();
    assert_eq!((attr.perm, attr.uid, attr.gid), (0o1640, 7, u32::MAX - 1));
    assert_eq!((attr.atime, attr.mtime), (time(-1), time(1 << 40)));
    assert!(attr.ctime >= attr.crtime);
}

#[test]
fn a_time_set_after_a_write_is_not_overwritten_by_it() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &[1; 10_000]);
    let time = Timespec { secs: 5, nanos: 6 };
    let changes = SetAttr {
        mtime: Some(SetTime::At(time)),
        ..SetAttr::default()
    };
    mount.fs.setattr(&USER, node, &changes).unwrap();
    assert_eq!(mount.fs.getattr(node).unwrap().mtime, time);
    mount.fs.fsync(node, handle, false).unwrap();
    assert_eq!(mount.fs.getattr(node).unwrap().mtime, time);
    mount.put(node, handle, 0, b"y");
    assert!(mount.fs.getattr(node).unwrap().mtime > time);
}

/// The record learns of a write later; this must not set the inode's newer time back.
#[test]
fn the_time_of_change_never_goes_back() {
    let mount = Mount::new();
    let (node, handle) = mount.create(ROOT, "f");
    mount.put(node, handle, 0, &[7; 10_000]);
    let written = mount.fs.getattr(node).unwrap().ctime;
    let changed = loop {
        mount
            .fs
            .set_xattr(&USER, node, b"user.x", b"y", XattrMode::Any)
            .unwrap();
        let now = mount.fs.getattr(node).unwrap().ctime;
        if now > written {
            break now;
        }
    };
    mount.fs.fsync(node, handle, false).unwrap();
    let attr = mount.fs.getattr(node).unwrap();
    assert_eq!((attr.mtime, attr.ctime), (written, changed));
    mount.fs.release(node, handle);
    mount.finish();
}

#[test]
fn mode_and_group_of_new_inodes() {
    let mount = Mount::new();
    let masked = Caller {
        umask: 0o027,
        ..USER
    };
    let attr = mount.fs.mknod(&masked, ROOT, b"f", 0o666, 0).unwrap();
    assert_eq!(attr.perm, 0o640);
    let dir = mount.mkdir(ROOT, "d");
    let changes = SetAttr {
        perm: Some(0o2755),
        gid: Some(50),
        ..SetAttr::default()
    };
    // A change of a directory's owner clears no bits.
    mount.fs.setattr(&USER, dir, &changes).unwrap();
    let file = mount.fs.mknod(&USER, dir, b"f", 0o644, 0).unwrap();
    assert_eq!((file.gid, file.perm), (50, 0o644));
    let below = mount.fs.mkdir(&USER, dir, b"d", 0o755).unwrap();
    assert_eq!((below.gid, below.perm), (50, 0o2755));
}

#[test]
fn extended_attributes() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", b"x");
    let fs = &mount.fs;
    let set = |name: &[u8], value: &[u8], mode| fs.set_xattr(&USER, node, name, value, mode);
    let (any, create, replace) = (XattrMode::Any, XattrMode::Create, XattrMode::Replace);
    assert_eq!(set(b"user.a", b"1", replace), Err(Errno::ENODATA));
    assert_eq!(set(b"user.a", b"1", create), Ok(()));
    assert_eq!(set(b"user.a", b"2", create), Err(Errno::EEXIST));
    assert_eq!(set(b"user.a", b"2", replace), Ok(()));
    assert_eq!(set(b"trusted.b", b"", any), Ok(()));
    assert_eq!(set(b"security.c", &[7; 65_536], any), Ok(()));
    assert_eq!(set(b"security.c", &[7; 65_537], any), Err(Errno::E2BIG));
    assert_eq!(set(b"system.x", b"", any), Err(Errno::ENOTSUP));
    assert_eq!(set(b"user.", b"", any), Err(Errno::EINVAL));
    assert_eq!(set(&[b'u'; 256], b"", any), Err(Errno::ERANGE));
    assert_eq!(fs.get_xattr(node, b"user.a").unwrap(), b"2");
    assert_eq!(fs.get_xattr(node, b"user.none").err(), Some(Errno::ENODATA));
    let label = b"security.selinux";
    assert_eq!(fs.get_xattr(node, label).err(), Some(Errno::ENOTSUP));
    set(label, b"system_u:object_r:etc_t:s0", XattrMode::Create).unwrap();
    assert_eq!(
        fs.get_xattr(node, label).unwrap(),
        b"system_u:object_r:etc_t:s0"
    );
    fs.remove_xattr(node, label).unwrap();
    assert_eq!(fs.get_xattr(node, label).err(), Some(Errno::ENOTSUP));
    let mount = mount.reopen();
    let list = mount.fs.list_xattr(&ADMIN, node).unwrap();
    let mut names: Vec<&[u8]> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"security.c"[..], b"trusted.b", b"user.a"]);
    assert_eq!(
        mount.fs.get_xattr(node, b"security.c").unwrap(),
        [7; 65_536]
    );
    mount.fs.remove_xattr(node, b"user.a").unwrap();
    let again = mount.fs.remove_xattr(node, b"user.a");
    assert_eq!(again, Err(Errno::ENODATA));
    mount.fs.unlink(ROOT, b"f").unwrap();
    mount.finish();
}

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Entries of tag, permissions and id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NONE: u32 = u32::MAX;

fn extended() -> Vec<u8> {
    acl(&[
        (1, 7, NONE),
        (2, 6, 5),
        (4, 5, NONE),
        (16, 6, NONE),
        (32, 0, NONE),
    ])
}

#[test]
fn lists_and_modes_follow_one_another() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "f", b"x");
    let fs = &mount.fs;
    let any = XattrMode::Any;
    assert_eq!(
        fs.set_xattr(&USER, node, ACCESS, b"junk", any),
        Err(Errno::EINVAL)
    );
    fs.set_xattr(&USER, node, ACCESS, &extended(), any).unwrap();
    assert_eq!(fs.getattr(node).unwrap().perm, 0o760);
    let changes = SetAttr {
        perm: Some(0o640),
        ..SetAttr::default()
    };
    fs.setattr(&USER, node, &changes).unwrap();
    let expected = acl(&[
        (1, 6, NONE),
        (2, 6, 5),
        (4, 5, NONE),
        (16, 4, NONE),
        (32, 0, NONE),
    ]);
    assert_eq!(fs.get_xattr(node, ACCESS).unwrap(), expected);
    // A list equivalent to the mode is stored as the mode.
    let minimal = acl(&[(1, 7, NONE), (4, 1, NONE), (32, 1, NONE)]);
    fs.set_xattr(&USER, node, ACCESS, &minimal, any).unwrap();
    assert_eq!(fs.getattr(node).unwrap().perm, 0o711);
    assert_eq!(fs.get_xattr(node, ACCESS).err(), Some(Errno::ENODATA));
}

#[test]
fn new_inodes_take_the_default_list() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "d");
    let fs = &mount.fs;
    fs.set_xattr(&USER, dir, DEFAULT, &extended(), XattrMode::Any)
        .unwrap();
    let masked = Caller {
        umask: 0o077,
        ..USER
    };
    let file = fs.mknod(&masked, dir, b"f", 0o664, 0).unwrap();
    // The list takes the place of the umask.
    assert_eq!(file.perm, 0o660);
    let expected = acl(&[
        (1, 6, NONE),
        (2, 6, 5),
        (4, 5, NONE),
        (16, 6, NONE),
        (32, 0, NONE),
    ]);
    assert_eq!(fs.get_xattr(file.node, ACCESS).unwrap(), expected);
    assert_eq!(fs.get_xattr(file.node, DEFAULT).err(), Some(Errno::ENODATA));
    let below = fs.mkdir(&masked, dir, b"d", 0o777).unwrap();
    assert_eq!(fs.get_xattr(below.node, DEFAULT).unwrap(), extended());
}
