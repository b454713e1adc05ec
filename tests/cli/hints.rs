//! The advice in every `hint:` line can be followed, and helps.

use std::fs;

use crate::real::{Outcome, Place, command, run, wait_until};
use crate::{Victim, fails};

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

fn hint_of(outcome: &Outcome) -> &str {
    let mut lines = outcome.stderr.lines();
    let hint = lines.find_map(|line| line.strip_prefix("hint: "));
    hint.unwrap_or_else(|| panic!("no hint: {}\n{}", outcome.what, outcome.stderr))
}

/// A failed command, its code, and what its hint contains and does not contain.
type Case = (
    &'static str,
    i32,
    &'static [&'static str],
    &'static [&'static str],
);

#[track_caller]
fn judge(place: &Place, cases: &[Case]) {
    for (words, code, says, says_not) in cases {
        let outcome = place.run(words);
        fails(&outcome, *code, "");
        let hint = hint_of(&outcome);
        for said in *says {
            assert!(hint.contains(said), "{words}: {said:?} is not said: {hint}");
        }
        for said in *says_not {
            assert!(!hint.contains(said), "{words}: {said:?} is said: {hint}");
        }
        // An option of mounting must name its command, unless it answers a mount.
        let rest = hint
            .replace("bilayer mount -o ", "")
            .replace("mount -o ", "");
        let bare = rest.contains("-o ") && !rest.contains("without -o ro");
        assert!(!bare, "{words}: {hint}");
    }
}

const OWN: &str = "bilayer mount --new-identity VOLUME DIR";

#[test]
fn a_copy_becomes_a_volume_and_is_not_remounted() {
    let Some(victim) = Victim::new("cli-hints-copy", false) else {
        return;
    };
    let place = &victim.place;
    place.run("image create vol base").done();
    sh(place, "cp -a vol copy; mkdir seen");
    judge(
        place,
        &[
            ("mount copy seen", 32, &["bilayer mount -o ro", OWN], &[]),
            ("check copy --repair", 8, &[OWN], &[]),
            ("snapshot create copy s", 3, &[OWN], &[]),
            ("snapshot delete copy s", 3, &[OWN], &[]),
            ("snapshot restore copy s --yes", 3, &[OWN], &[]),
            ("image create copy i", 3, &[OWN], &[]),
            ("image deploy copy base new", 3, &[OWN], &[]),
        ],
    );
    let seen = place.mount("copy", "seen", "ro");
    judge(
        place,
        &[
            ("snapshot create seen s", 6, &[OWN], &["remount"]),
            ("image create copy i", 6, &[OWN], &["remount"]),
            ("mount copy seen -o remount,rw", 32, &[OWN], &["with rw"]),
        ],
    );
    seen.unmount();
    place.run("mount copy seen --new-identity").done();
    place.mounted(&place.path("seen")).unmount();
    victim.is_unharmed();
}

#[test]
fn the_hint_makes_a_read_only_mount_writable() {
    let Some(victim) = Victim::new("cli-hints-ro", false) else {
        return;
    };
    let place = &victim.place;
    let mounted = place.mount("vol", "mnt", "ro");
    judge(
        place,
        &[
            ("snapshot create mnt s", 6, &["without -o ro"], &["remount"]),
            (
                "mount vol mnt -o remount,rw",
                32,
                &["without -o ro"],
                &["--new-identity"],
            ),
        ],
    );
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    place.run("mount vol mnt -o remount,ro").done();
    judge(
        place,
        &[("snapshot create mnt s", 6, &["mount -o remount,rw"], &[])],
    );
    place.run("mount vol mnt -o remount,rw").done();
    place.run("snapshot create mnt s").done();
    mounted.unmount();
}

#[test]
fn a_read_only_medium_can_be_mounted() {
    let Some(victim) = Victim::new("cli-hints-medium", false) else {
        return;
    };
    let place = &victim.place;
    sh(
        place,
        "mkdir bound; mount --bind vol bound; mount -o remount,bind,ro bound",
    );
    let look: &[&str] = &["bilayer mount -o ro VOLUME DIR"];
    judge(
        place,
        &[
            ("mount bound mnt -o rw", 2, look, &[]),
            ("snapshot create bound s", 6, look, &[]),
            ("check bound --repair", 8, look, &[]),
        ],
    );
    let mounted = place.mount("bound", "mnt", "ro");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
    mounted.unmount();
    sh(place, "umount bound");
    victim.is_unharmed();
}

/// A hard-linked copy shares the lock. A reader of it on a read-only medium keeps the lock, and
/// excludes the original; the hint helps to find that reader.
#[test]
fn the_holder_of_a_shared_lock_is_found() {
    let Some(victim) = Victim::new("cli-hints-linked", false) else {
        return;
    };
    let place = &victim.place;
    sh(
        place,
        "cp -al vol copy; mkdir bound seen; mount --bind copy bound; \
         mount -o remount,bind,ro bound",
    );
    let seen = place.mount("bound", "seen", "ro");
    let find: &[&str] = &["shares its files", "fuser -v VOLUME/lock"];
    judge(
        place,
        &[
            ("mount vol mnt", 32, find, &["unmount the original first"]),
            ("salvage vol out", 3, find, &[]),
        ],
    );
    let output = run(command("fuser", ["vol/lock"]).current_dir(place.path("")));
    let output = format!("{} {}", output.stdout, output.stderr);
    assert!(output.contains(&seen.pid.to_string()), "{output}");
    seen.unmount();
    sh(place, "umount bound");
    victim.is_unharmed();
    // The lock is not shared any more: other holders are found too.
    let held = fs::File::open(place.path("vol/objects")).unwrap();
    held.lock().unwrap();
    judge(place, &[("mount vol mnt", 32, &["VOLUME/objects"], &[])]);
    drop(held);
    assert!(wait_until(std::time::Duration::from_secs(5), || {
        let free = fs::File::open(place.path("vol/objects")).unwrap();
        free.try_lock().is_ok()
    }));
    victim.is_unharmed();
}

#[test]
fn a_key_that_is_not_remembered_is_named() {
    let Some(victim) = Victim::new("cli-hints-key", true) else {
        return;
    };
    let place = &victim.place;
    sh(place, "mkdir aside; mv keystore/volumes/*.json aside");
    judge(
        place,
        &[
            (
                "snapshot list vol",
                4,
                &["bilayer mount -o customer_key=URI"],
                &[],
            ),
            ("salvage vol out", 4, &["--customer-key URI"], &["mount"]),
        ],
    );
    place
        .mount("vol", "mnt", "customer_key=file:key.pem")
        .unmount();
    place.run("snapshot list vol").done();
}

#[test]
fn the_hint_repairs_a_key_that_was_moved_or_is_open_to_others() {
    let Some(victim) = Victim::new("cli-hints-moved-key", true) else {
        return;
    };
    let place = &victim.place;
    sh(place, "mv key.pem elsewhere.pem");
    let named: &[&str] = &["key.pem", "bilayer mount -o customer_key=URI VOLUME DIR"];
    let gone: &[Case] = &[
        ("mount vol mnt", 32, named, &[]),
        ("snapshot list vol", 4, named, &[]),
        ("salvage vol out", 4, &["--customer-key URI"], &["mount"]),
    ];
    judge(place, gone);
    let mounted = place.mount("vol", "mnt", "customer_key=file:elsewhere.pem");
    place.run("snapshot list mnt").done();
    mounted.unmount();
    // It was valid for that mount alone.
    judge(place, gone);
    sh(place, "chmod 644 elsewhere.pem");
    judge(
        place,
        &[(
            "mount vol mnt -o customer_key=file:elsewhere.pem",
            32,
            &["chmod 600 ", "elsewhere.pem"],
            &[],
        )],
    );
    sh(place, "chmod 600 elsewhere.pem; mv elsewhere.pem key.pem");
    victim.is_unharmed();
}
