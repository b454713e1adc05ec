//! The README's first command, with nothing configured.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::real::{Place, can_switch_users, is_alive, run, run_when_free};

#[test]
fn the_first_command_makes_and_mounts_a_volume() {
    let Some(place) = Place::new("first-command", Duration::from_secs(60)) else {
        return;
    };
    // As a user types it: no keystore given, nothing exists yet. Root's keystore is the machine's;
    // the environment keeps this one in the test's own directory.
    let outcome = place.run("mount --create vault private").done();
    assert_eq!(outcome.stdout, "");
    let keystore = place.path("keystore");
    let notice = format!(
        "bilayer: the platform keystore was made in {}; ",
        keystore.display()
    );
    assert!(outcome.stderr.starts_with(&notice), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("bilayer keystore backup FILE"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    let mounted = place.mounted(&place.path("private"));
    fs::write(mounted.path("hello"), "world\n").unwrap();
    assert_eq!(
        fs::read_to_string(mounted.path("hello")).unwrap(),
        "world\n"
    );

    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = mounted.dir().to_str().unwrap();
    let line = mounts.lines().find(|line| line.contains(dir)).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[0], place.path("vault").to_str().unwrap());
    assert_eq!(words[2], "fuse.bilayer");
    for word in ["rw", "default_permissions", "allow_other"] {
        assert!(words[3].split(',').any(|found| found == word), "{line}");
    }
    let mode = |path: &str| fs::metadata(place.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("keystore"), 0o700);

    let pid = mounted.pid;
    mounted.unmount();
    assert!(!is_alive(pid));
    assert_eq!(fs::read_dir(place.path("private")).unwrap().count(), 0);

    // The same command again mounts the existing volume.
    place.run("mount --create vault private").silent();
    let mounted = place.mounted(&place.path("private"));
    assert_eq!(
        fs::read_to_string(mounted.path("hello")).unwrap(),
        "world\n"
    );
    run_when_free(&mut place.bilayer(["umount", "private"])).silent();
    assert!(!is_alive(mounted.pid));
}

#[test]
fn without_the_environment_the_keystore_is_in_the_users_data_directory() {
    let test = "keystore-in-home";
    let Some(place) = Place::new(test, Duration::from_secs(60)) else {
        return;
    };
    if !can_switch_users(test) {
        return;
    }
    // Other users may not be able to enter the target directory, so the test uses one that they
    // can.
    let open = Place::at(
        test,
        Duration::from_secs(60),
        std::path::Path::new("/var/tmp"),
    );
    crate::users::give_to_nobody(&open);
    let mut create = crate::users::as_nobody(&open, &["create", "vol"]);
    run(create.env_remove("BILAYER_PLATFORM_KEYSTORE")).done();
    assert!(open.path("home/.local/share/bilayer/platform").is_dir());
    drop(place);
}
