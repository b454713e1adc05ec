//! mount(8), umount(8) and fstab, with the helpers installed as `mount-helper/install` does it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::real::{Place, command, helper, is_alive, noise, run, run_when_free};

const TEST: &str = "mount-helpers";

/// A place, and a namespace of its own whose /sbin has the helpers.
struct Machine {
    namespace: Namespace,
    place: Place,
}

impl Machine {
    fn new() -> Option<Self> {
        let place = Place::new(TEST, Duration::from_secs(100))?;
        let namespace = Namespace::new(&place, TEST)?;
        let built = helper("mount-bilayer");
        helper("umount-bilayer");
        let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helper/install");
        let mut install = command(install, [built.parent().unwrap()]);
        let outcome = run(install.env("DESTDIR", place.path("stage"))).done();
        assert!(
            outcome.stdout.starts_with("installed "),
            "{}",
            outcome.stdout
        );
        for name in ["mount", "umount"] {
            for kind in ["bilayer", "fuse.bilayer"] {
                assert!(place.path(&format!("stage/sbin/{name}.{kind}")).is_file());
            }
        }
        namespace.add_to_sbin(&place.path("stage/sbin"));
        Some(Self { namespace, place })
    }

    fn command(&self, words: &str) -> Command {
        let mut words = words.split_whitespace();
        let mut command = command(words.next().unwrap(), words);
        self.place.environment(&mut command);
        self.namespace.inside(&command)
    }

    #[track_caller]
    fn run(&self, words: &str) {
        run_when_free(&mut self.command(words)).silent();
    }

    /// Fails with that code and says so in words that begin like this.
    #[track_caller]
    fn refused(&self, words: &str, code: i32, beginning: &str) {
        let outcome = run(&mut self.command(words));
        assert_eq!(outcome.code, code, "{words}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(beginning),
            "{words}: {}",
            outcome.stderr
        );
    }

    /// The daemon of the mount on `mnt`.
    fn daemon(&self) -> i32 {
        let bilayer = env!("CARGO_BIN_EXE_bilayer");
        let outcome = run(&mut self.command(&format!("{bilayer} status --json mnt"))).done();
        let status: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let pid = status["daemon"]["pid"].as_i64();
        let pid = pid.unwrap_or_else(|| panic!("no daemon answers: {status}")) as i32;
        self.place.take_charge(pid);
        pid
    }

    fn mount_point(&self) -> PathBuf {
        self.place.path("mnt").canonicalize().unwrap()
    }

    fn see(&self, name: &str) -> PathBuf {
        self.namespace.see(&self.place.path(name))
    }

    #[track_caller]
    fn type_of_mount(&self) -> String {
        let outcome = run(&mut self.command("findmnt -n -o FSTYPE,SOURCE mnt")).done();
        outcome.stdout.trim().to_owned()
    }
}

#[test]
fn mount_and_umount_know_the_type() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let place = &machine.place;
    place.run("keygen key.pem --bits 2048").done();
    place.run("create vol --customer-key file:key.pem").done();
    place.dir("mnt");
    for (number, kind) in ["bilayer", "fuse.bilayer"].into_iter().enumerate() {
        machine.run(&format!("mount -t {kind} vol mnt -o rw,noexec,nofail"));
        let daemon = machine.daemon();
        let listed = machine.type_of_mount();
        assert!(listed.starts_with("fuse.bilayer"), "{listed}");
        assert!(listed.ends_with(place.path("vol").canonicalize().unwrap().to_str().unwrap()));
        // Much that is dirty: umount(8) is to come back when it is on disk and not before.
        let bytes = noise(number as u64, 40_000_000);
        fs::write(machine.see("mnt/file"), &bytes).unwrap();
        machine.run("umount mnt");
        assert!(
            !is_alive(daemon),
            "umount came back before the daemon had gone"
        );
        assert!(!machine.namespace.is_mount_point(&machine.mount_point()));
        let status = place.status(&place.path("vol"));
        assert_eq!(status["record"]["clean"], true);
        machine.run(&format!("mount -r -t {kind} vol mnt"));
        machine.daemon();
        assert!(fs::read(machine.see("mnt/file")).unwrap() == bytes);
        let error = fs::write(machine.see("mnt/file"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        machine.run("umount mnt");
    }
    machine.refused("mount -t bilayer nowhere mnt", 32, "bilayer: cannot find");
    machine.refused(
        "mount -t bilayer vol mnt -o blah",
        1,
        "bilayer: unknown mount option",
    );
    machine.refused("mount -t bilayer vol/objects mnt", 32, "no bilayer volume");
    machine.run("mount -f -t bilayer vol mnt");
    assert!(!machine.namespace.is_mount_point(&machine.mount_point()));
}

#[test]
fn fstab_and_remount() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let place = &machine.place;
    place.run("keygen key.pem --bits 2048").done();
    place.run("create vol --customer-key file:key.pem").done();
    place.dir("mnt");
    let path = |name: &str| {
        place
            .path(name)
            .canonicalize()
            .unwrap()
            .display()
            .to_string()
    };
    let line = format!(
        "{} {} bilayer rw,noauto,nofail,_netdev,x-systemd.device-timeout=5,customer_key=file:{},\
         platform_keystore={} 0 0\n",
        path("vol"),
        path("mnt"),
        path("key.pem"),
        path("keystore"),
    );
    fs::write(place.path("fstab"), line).unwrap();
    machine.run(&format!("mount --fstab fstab {}", path("mnt")));
    let daemon = machine.daemon();
    fs::write(machine.see("mnt/file"), "one").unwrap();

    machine.run("mount -o remount,ro mnt");
    let error = fs::write(machine.see("mnt/file"), "two").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read(machine.see("mnt/file")).unwrap(), b"one");
    machine.run("mount -o remount,rw,noexec mnt");
    fs::write(machine.see("mnt/file"), "three").unwrap();
    assert_eq!(machine.daemon(), daemon, "a remount is no new mount");
    machine.run("umount mnt");
    assert!(!is_alive(daemon));

    // A mount that holds no right to write does not get it by a remount.
    machine.run(&format!("mount --fstab fstab -o ro {}", path("mnt")));
    machine.daemon();
    machine.refused("mount -o remount,rw mnt", 32, "it was mounted read-only");
    assert_eq!(fs::read(machine.see("mnt/file")).unwrap(), b"three");
    machine.run("umount mnt");
}

#[test]
fn a_busy_mount_stays_until_it_is_detached() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let held = fs::File::create(machine.see("mnt/held")).unwrap();
    machine.refused("umount mnt", 32, "in use");
    assert!(is_alive(daemon));
    machine.run("umount -l mnt");
    use std::os::unix::fs::FileExt;
    held.write_all_at(b"to the last", 0).unwrap();
    drop(held);
    let gone = crate::real::wait_until(Duration::from_secs(20), || !is_alive(daemon));
    assert!(gone, "the daemon stays after the last user has gone");
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    assert_eq!(fs::read(machine.see("mnt/held")).unwrap(), b"to the last");
    machine.run("umount mnt");
}
