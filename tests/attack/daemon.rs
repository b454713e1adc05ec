//! The attacker is an ordinary user who impersonates the daemon of another user's volume: with a
//! mount whose source names that volume, and with sockets where a daemon's would be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::impostor::{ATTACKER, Impostor, VICTIM, as_user, bilayer, dir_of, machine};
use crate::machine::Machine;
use crate::real::{BILAYER, is_alive, run, run_within, wait_until};

const PROOFS: [&str; 4] = ["none", "own", "theirs", "mixed"];

fn status(machine: &Machine, path: &str) -> Value {
    let outcome = bilayer(machine, &format!("status --json {path}")).done();
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn snapshots(machine: &Machine, path: &str) -> Vec<String> {
    let outcome = bilayer(machine, &format!("snapshot list --json {path}")).done();
    let views: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let name = |view: &Value| view["name"].as_str().unwrap().to_owned();
    views.iter().map(name).collect()
}

/// The daemon of `vol` performs everything that root requests, and the attacker performs nothing.
fn root_asks(machine: &Machine, round: &str) {
    let fingerprint = status(machine, "vol")["fingerprint"].clone();
    assert!(
        fingerprint.as_str().is_some_and(|text| text.contains('-')),
        "{round}: {fingerprint}"
    );
    assert_eq!(
        status(machine, "vol")["header"]["key_mode"],
        "platform-managed"
    );
    bilayer(machine, &format!("snapshot create vol {round}")).done();
    let timer = "snapshot create --prefix auto --prune --keep-last 1 -- vol";
    let taken = bilayer(machine, timer).done().stdout;
    assert!(taken.starts_with("snapshot auto-"), "{round}: {taken}");
    let names = snapshots(machine, "vol");
    assert!(names.contains(&round.to_owned()), "{round}: {names:?}");
    assert!(
        !names.contains(&"IMPOSTOR".to_owned()),
        "{round}: {names:?}"
    );
    bilayer(machine, &format!("snapshot delete vol {round}")).done();
    let checked = bilayer(machine, "check --json vol").done().stdout;
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert!(checked["objects"].as_u64() > Some(0), "{round}: {checked}");
    let file = format!("export-{round}");
    bilayer(machine, &format!("image export vol base {file}")).done();
    let stream = fs::read(machine.place.path(&file)).unwrap();
    assert!(stream.len() > 100_000, "{round}: the attacker's bytes");
}

#[test]
fn another_users_process_does_not_answer_root() {
    let Some(machine) = machine("attack-daemon") else {
        return;
    };
    let place = &machine.place;
    place.run("create vol").done();
    fs::set_permissions(place.path("vol"), PermissionsExt::from_mode(0o755)).unwrap();
    place.dir("mnt");
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    fs::write(machine.see("mnt/file"), crate::real::noise(1, 200_000)).unwrap();
    bilayer(&machine, "image create vol base").done();
    machine.run("umount mnt");
    for proof in PROOFS {
        // A copy that was made with a loose umask: others can open its lock.
        fs::set_permissions(place.path("vol/lock"), PermissionsExt::from_mode(0o644)).unwrap();
        let vol = machine.path("vol");
        let impostor = Impostor::start(&machine, &vol, "vol", proof);
        root_asks(&machine, &format!("unmounted-{proof}"));
        // It is not mounted, so there is nothing to unmount, and it can be salvaged.
        machine.refused(&format!("{BILAYER} unmount vol"), 2, "nothing of bilayer");
        let salvage = format!("salvage vol salvaged-{proof}");
        bilayer(&machine, &salvage).done();
        machine.run("mount -t bilayer vol mnt");
        let daemon = machine.daemon();
        root_asks(&machine, &format!("mounted-{proof}"));
        assert_eq!(
            status(&machine, "vol")["mounts"].as_array().unwrap().len(),
            1
        );
        machine.run(&format!("{BILAYER} unmount vol"));
        assert!(!is_alive(daemon));
        assert_eq!(impostor.asked(), [""; 0], "{proof}");
    }
}

#[test]
fn another_users_mount_stands_for_no_volume_of_root() {
    let Some(machine) = machine("attack-bait") else {
        return;
    };
    machine.place.run("create vol").done();
    fs::set_permissions(machine.place.path("vol"), PermissionsExt::from_mode(0o755)).unwrap();
    for proof in ["none", "mixed"] {
        let impostor = Impostor::start(&machine, &machine.path("vol"), "vol", proof);
        let bait = format!("bait-{proof}");
        for words in [
            format!("status {bait}"),
            format!("inspect {bait}"),
            format!("check {bait}"),
            format!("snapshot create {bait} s1"),
            format!("snapshot create --prefix auto --prune --keep-last 1 -- {bait}"),
            format!("snapshot list {bait}"),
            format!("snapshot delete {bait} s1"),
            format!("image export {bait} base out"),
            format!("salvage {bait} out"),
        ] {
            let outcome = bilayer(&machine, &words);
            assert_ne!(outcome.code, 0, "{words}: {}", outcome.stdout);
            assert!(
                outcome.stderr.contains("proved"),
                "{words}: {}",
                outcome.stderr
            );
            assert!(outcome.stderr.contains("\nhint: "), "{words}");
            assert!(!outcome.stdout.contains("IMPOSTOR"), "{words}");
        }
        let remount = format!("mount -o remount,ro {bait}");
        machine.refused(&remount, 32, "proved");
        // And no operation is performed in that mount instead of the volume.
        assert_eq!(impostor.asked(), [""; 0]);
        // It is unmounted, and the command does not report success.
        let outcome = bilayer(&machine, &format!("unmount {bait}"));
        assert_eq!(outcome.code, 6, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("not known"), "{}", outcome.stderr);
        assert!(machine.mounted().is_empty());
    }
    // A daemon that proves it has a volume of its own is trusted for that volume alone.
    let _impostor = Impostor::start(&machine, &machine.path("vol"), "vol", "own");
    let shown = status(&machine, "bait-own");
    assert_eq!(shown["volume"], machine.path("own-own"));
}

#[test]
fn the_source_that_a_mount_claims_is_ignored() {
    let Some(machine) = machine("attack-hang") else {
        return;
    };
    machine.place.run("create vol").done();
    fs::set_permissions(machine.place.path("vol"), PermissionsExt::from_mode(0o755)).unwrap();
    // A lookup in the first mount never returns; the second one claims that the first is its
    // source.
    let silent = Impostor::start(&machine, "/x", "vol", "silent");
    let trap = machine.path("bait-silent") + "/trap";
    let _second = Impostor::start(&machine, &trap, "vol", "none");
    let begin = Instant::now();
    assert!(status(&machine, "vol")["fingerprint"].is_string());
    bilayer(&machine, "snapshot create vol one").done();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    // The descriptor that is handed over may be of a filesystem that answers nothing.
    let _third = Impostor::start(&machine, "/x", "vol", "trap");
    // A command that names one of them does not hang either; it does not unmount it, and says so.
    for words in [
        "status bait-silent",
        "snapshot create bait-silent s",
        "status bait-trap",
        "snapshot create bait-trap s",
    ] {
        let outcome = bilayer(&machine, words);
        assert_ne!(outcome.code, 0, "{words}");
    }
    let outcome = bilayer(&machine, "unmount bait-silent");
    assert_eq!(outcome.code, 6, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("does not answer"),
        "{}",
        outcome.stderr
    );
    bilayer(&machine, "unmount --force bait-silent").done();
    assert_eq!(machine.mounted().len(), 2);
    drop(silent);
}

#[test]
fn a_users_directory_for_sockets_is_squatted() {
    let Some(machine) = machine("attack-squatted") else {
        return;
    };
    let place = &machine.place;
    let home = dir_of(&machine, "victim", VICTIM);
    let user = |words: &str| {
        let mut command = as_user(&machine, VICTIM, words);
        command.env("HOME", &home);
        command.env("BILAYER_PLATFORM_KEYSTORE", home.join("keystore"));
        run_within(&mut command, Duration::from_secs(60))
    };
    user("bilayer create victim/vol").done();
    fs::set_permissions(&home, PermissionsExt::from_mode(0o755)).unwrap();
    dir_of(&machine, "victim/mnt", VICTIM);
    // The attacker creates the directory before the volume is mounted.
    let impostor = Impostor::start(&machine, "", "victim/vol", "own");
    let squatted = format!("/tmp/bilayer-{VICTIM} should be user {VICTIM}'s alone");
    let mounted = user("bilayer mount victim/vol victim/mnt").done();
    assert!(mounted.stderr.contains(&squatted), "{}", mounted.stderr);
    assert!(
        mounted.stderr.contains("no control socket"),
        "{}",
        mounted.stderr
    );
    let daemon = machine.output(&format!("pgrep -u {VICTIM} -n bilayer"));
    let daemon = daemon.trim().parse().unwrap();
    place.take_charge(daemon);
    for words in [
        "bilayer snapshot create victim/vol one",
        "bilayer snapshot list victim/vol",
        "bilayer check victim/vol",
    ] {
        let outcome = user(words);
        assert_eq!(
            outcome.code,
            if words.contains("check") { 8 } else { 3 },
            "{words}"
        );
        assert!(
            outcome.stderr.contains(&squatted),
            "{words}: {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains("hint: "),
            "{words}: {}",
            outcome.stderr
        );
    }
    let shown = user("bilayer status --json victim/vol").done();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["verified"], false);
    let why = shown["not_verified_because"].as_str().unwrap();
    assert!(why.contains(&squatted), "{why}");
    // Root also looks there, for the daemon of the volume's owner.
    let root = bilayer(&machine, "snapshot create victim/vol two");
    assert_ne!(root.code, 0);
    assert!(root.stderr.contains(&squatted), "{}", root.stderr);
    // Through the mount, the volume is certain.
    user("bilayer snapshot create victim/mnt three").done();
    let names = user("bilayer snapshot list victim/mnt").done().stdout;
    assert!(names.contains("three"), "{names}");
    assert_eq!(impostor.asked(), [""; 0]);
    // It is unmounted, and the outcome is not known.
    let unmounted = user("bilayer unmount victim/mnt");
    assert_eq!(unmounted.code, 6);
    assert!(
        unmounted.stderr.contains("not known"),
        "{}",
        unmounted.stderr
    );
    assert!(wait_until(Duration::from_secs(20), || !is_alive(daemon)));

    // Without the squatter everything works, for the owner and for root.
    drop(impostor);
    fs::remove_dir_all(
        machine
            .namespace
            .see(format!("/tmp/bilayer-{VICTIM}").as_ref()),
    )
    .unwrap();
    user("bilayer mount victim/vol victim/mnt").silent();
    let pid = || {
        let shown = user("bilayer status --json victim/vol").done();
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        shown["daemon"]["pid"].as_i64().expect("a daemon") as i32
    };
    let daemon = pid();
    place.take_charge(daemon);
    user("bilayer snapshot create victim/vol four").done();
    bilayer(&machine, "snapshot create victim/vol five").done();
    bilayer(&machine, "snapshot create victim/mnt six").done();
    let names = snapshots(&machine, "victim/mnt");
    assert_eq!(names, ["three", "four", "five", "six"]);
    machine.run(&format!("{BILAYER} unmount victim/mnt"));
    assert!(!is_alive(daemon));
}

/// The daemon of another user is not asked, whatever it holds. A lock file that others could open
/// is closed to them.
#[test]
fn a_lock_that_others_may_open_is_closed_to_them() {
    let Some(machine) = machine("attack-lock") else {
        return;
    };
    let place = &machine.place;
    place.run("create vol").done();
    fs::set_permissions(place.path("vol"), PermissionsExt::from_mode(0o755)).unwrap();
    let lock = place.path("vol/lock");
    fs::set_permissions(&lock, PermissionsExt::from_mode(0o666)).unwrap();
    place.dir("mnt");
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let mode = fs::metadata(&lock).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // A volume that belongs to another user, and root's daemon: that one answers root.
    chown(place.path("vol"), Some(VICTIM), Some(VICTIM)).unwrap();
    bilayer(&machine, "snapshot create vol one").done();
    // The daemon does not answer the owner, and the command says so.
    let words = format!("bilayer snapshot list {}", machine.path("vol"));
    let outcome = run(&mut as_user(&machine, VICTIM, &words));
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("name the mount"),
        "{}",
        outcome.stderr
    );
    let words = format!("bilayer snapshot list {}", machine.path("mnt"));
    let listed = run(&mut as_user(&machine, ATTACKER, &words)).done();
    assert!(listed.stdout.contains("one"), "{}", listed.stdout);
    machine.run("umount mnt");
    assert!(!is_alive(daemon));
}

/// Any user who may open a directory may lock it. A lock on the volume's own directory has no
/// effect, and removing the lock file admits nobody either.
#[test]
fn a_lock_on_the_directory_excludes_nobody() {
    let Some(machine) = machine("attack-flock") else {
        return;
    };
    let place = &machine.place;
    let vol = place.dir("vol");
    let set_mode = |mode| fs::set_permissions(&vol, PermissionsExt::from_mode(mode)).unwrap();
    let mode = || fs::metadata(&vol).unwrap().permissions().mode() & 0o777;
    set_mode(0o755);
    let words = format!("flock --no-fork -x {} sleep 90", machine.path("vol"));
    let mut attacker = as_user(&machine, ATTACKER, &words).spawn().unwrap();
    let is_locked = || {
        let directory = fs::File::open(&vol).unwrap();
        directory.try_lock_shared().is_err()
    };
    assert!(wait_until(Duration::from_secs(20), is_locked));
    place.run("create vol").done();
    assert_eq!(mode(), 0o700);
    place.dir("mnt");
    place.dir("other");
    for loose in [false, true] {
        if loose {
            set_mode(0o755);
        }
        machine.run("mount -t bilayer vol mnt");
        let daemon = machine.daemon();
        fs::remove_file(place.path("vol/lock")).unwrap();
        machine.refused(&format!("{BILAYER} mount vol other"), 32, "in use");
        machine.run("umount mnt");
        assert!(wait_until(Duration::from_secs(20), || !is_alive(daemon)));
        bilayer(&machine, &format!("snapshot create vol loose-{loose}")).done();
        bilayer(&machine, &format!("salvage vol out-{loose}")).done();
        assert!(is_locked(), "the attacker has let go");
    }
    attacker.kill().unwrap();
    attacker.wait().unwrap();
}
