//! The scripts, and where a mount differs from ext4 in them.

use crate::control::{Ext4, OPTIONS, place, run_script, same_as_ext4};

#[test]
fn access_control_lists() {
    same_as_ext4("acl", include_str!("acl.py"), &[]);
}

#[test]
fn extended_attributes() {
    same_as_ext4("xattr", include_str!("xattr.py"), &[]);
}

/// By capability and user namespace, and not by uid 0.
#[test]
fn set_ids_and_capabilities() {
    same_as_ext4("privileges", include_str!("privileges.py"), &[]);
}

#[test]
fn renaming() {
    same_as_ext4("rename", include_str!("rename.py"), &[]);
}

#[test]
fn links() {
    // The crate fuser does not support FUSE_TMPFILE, so the kernel returns this error.
    let unnamed = ("O_TMPFILE opened", "O_TMPFILE ENOTSUP");
    same_as_ext4("links", include_str!("links.py"), &[unnamed]);
}

#[test]
fn files_without_names() {
    same_as_ext4("nameless", include_str!("unlinked.py"), &[]);
}

#[test]
fn reading_and_writing() {
    same_as_ext4("io", include_str!("io.py"), &[]);
}

#[test]
fn locks_and_leases() {
    same_as_ext4("locks", include_str!("locks.py"), &[]);
}

#[test]
fn holes_and_allocation() {
    // The kernel has neither for FUSE.
    let differences = [
        ("collapse 0", "collapse ENOTSUP"),
        ("insert 0", "insert ENOTSUP"),
    ];
    same_as_ext4("sparse", include_str!("sparse.py"), &differences);
}

#[test]
fn times() {
    let differences = [
        // The kernel maintains these times itself, and updates them with the length alone.
        (
            "truncate to the same f:mtime+ctime",
            "truncate to the same f:none",
        ),
        // The crate fuser does not support FUSE_STATX.
        ("birth True", "birth False"),
    ];
    same_as_ext4("times", include_str!("times.py"), &differences);
}

/// Programs that compare times (make, rsync) must not see a later change as older, whether the
/// kernel or the daemon set the times.
#[test]
fn times_are_in_order_with_those_of_other_filesystems() {
    let Some(place) = place("order") else { return };
    let Some(ext4) = Ext4::new(&place, "order", 64, &[]) else {
        return;
    };
    let script = include_str!("order.py");
    let words = [ext4.dir().to_str().unwrap()];
    let mounted = place.fresh("", OPTIONS);
    for dir in [ext4.dir(), mounted.dir()] {
        let said = run_script(&place, dir, script, &words);
        let lines = said.lines().map(str::trim);
        let wrong: Vec<_> = lines
            .clone()
            .filter(|line| !line.ends_with("early 0 late 0"))
            .collect();
        assert_eq!(wrong, ["in order"], "{}", dir.display());
        assert!(lines.count() > 30, "{said}");
    }
    mounted.unmount();
}

/// Programs store the numbers that they are shown in less than 64 bits.
#[test]
fn numbers_that_programs_can_hold() {
    let Some(place) = place("numbers") else {
        return;
    };
    let Some(ext4) = Ext4::new(&place, "numbers", 256, &[]) else {
        return;
    };
    let script = include_str!("numbers.py");
    let mounted = place.fresh("", OPTIONS);
    let expected = run_script(&place, ext4.dir(), script, &[]);
    let actual = run_script(&place, mounted.dir(), script, &["views"]);
    // ext4 gives offsets of 63 bits to programs with 64-bit offsets; programs with 32-bit offsets
    // get fewer.
    let more = ["d_off fits into 31 bits", "telldir fits into 31 bits"];
    for (ext4, here) in expected.lines().zip(actual.lines()) {
        let is_less_there = more.iter().any(|words| ext4.contains(words));
        assert!(is_less_there || ext4 == here, "ext4: {ext4}\nhere: {here}");
    }
    let wrong: Vec<_> = actual
        .lines()
        .filter(|line| line.contains("False"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(
        actual.lines().count() > expected.lines().count() + 30,
        "{actual}"
    );
    mounted.unmount();
}

#[test]
fn names_targets_and_paths() {
    same_as_ext4("names", include_str!("names.py"), &[]);
}

#[test]
fn special_files_and_programs() {
    same_as_ext4("special", include_str!("special.py"), &[]);
}

#[test]
fn directories() {
    same_as_ext4("directories", include_str!("directories.py"), &[]);
}
