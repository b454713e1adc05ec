//! A machine with the helpers of mount(8), installed as by `mount-helper/install`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::real::{BILAYER, Outcome, Place, command, helper, run, run_when_free};

const LIMIT: Duration = Duration::from_secs(100);

/// A place, and a namespace of its own whose /sbin has the helpers.
pub struct Machine {
    /// The namespace in which its helpers are installed.
    pub namespace: Namespace,
    /// The directory in which it works.
    pub place: Place,
}

impl Machine {
    /// A machine for a test; `None`, after a message, if there can be none.
    pub fn new(test: &'static str) -> Option<Self> {
        Self::in_place(Place::new(test, LIMIT)?, test)
    }

    /// A machine in a directory that other users may enter.
    pub fn open_to_users(test: &'static str) -> Option<Self> {
        drop(Place::new(test, LIMIT)?);
        let place = Place::at(test, LIMIT, Path::new("/var/tmp"));
        for dir in ["", "home"] {
            fs::set_permissions(place.path(dir), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self::in_place(place, test)
    }

    fn in_place(place: Place, test: &str) -> Option<Self> {
        let namespace = Namespace::new(&place, test)?;
        let built = helper("mount-bilayer");
        helper("umount-bilayer");
        let install = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../mount-helper/install"
        ));
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

    /// A command of these words, to be run in the namespace.
    pub fn command(&self, words: &str) -> Command {
        let mut words = words.split_whitespace();
        let mut command = command(words.next().unwrap(), words);
        self.place.environment(&mut command);
        self.namespace.inside(&command)
    }

    /// Runs a command that must succeed and print nothing.
    #[track_caller]
    pub fn run(&self, words: &str) {
        run_when_free(&mut self.command(words)).silent();
    }

    /// Fails unless the command fails with that code, and a message that begins with `says`.
    #[track_caller]
    pub fn refused(&self, words: &str, code: i32, beginning: &str) {
        let outcome = run(&mut self.command(words));
        assert_eq!(outcome.code, code, "{words}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(beginning),
            "{words}: {}",
            outcome.stderr
        );
    }

    /// The daemon of the mount on `mnt`.
    #[track_caller]
    pub fn daemon(&self) -> i32 {
        self.daemon_of("mnt")
    }

    /// The daemon of the mount there.
    #[track_caller]
    pub fn daemon_of(&self, dir: &str) -> i32 {
        let outcome = self
            .end_of(&format!("{BILAYER} status --json {dir}"))
            .done();
        let status: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let pid = status["daemon"]["pid"].as_i64();
        let pid = pid.unwrap_or_else(|| panic!("no daemon answers: {status}")) as i32;
        self.place.take_charge(pid);
        pid
    }

    /// The target of `mnt` of the place.
    pub fn mount_point(&self) -> PathBuf {
        self.place.path("mnt").canonicalize().unwrap()
    }

    /// A path of the place, as seen from outside the namespace.
    pub fn see(&self, name: &str) -> PathBuf {
        self.namespace.see(&self.place.path(name))
    }

    /// Runs a command to its end, with any outcome.
    #[track_caller]
    pub fn end_of(&self, words: &str) -> Outcome {
        run(&mut self.command(words))
    }

    /// The output of a command.
    #[track_caller]
    pub fn output(&self, words: &str) -> String {
        self.end_of(words).done().stdout
    }

    /// A path of the place without symbolic links, as text.
    pub fn path(&self, name: &str) -> String {
        let path = self.place.path("").canonicalize().unwrap().join(name);
        path.to_str().unwrap().to_owned()
    }

    /// Covers /etc/fstab with these lines. Only once.
    pub fn fstab(&self, lines: &str) {
        fs::write(self.place.path("fstab"), lines).unwrap();
        self.run("mount --bind fstab /etc/fstab");
    }

    /// The mounts of this filesystem in the place, in the order in which they were made.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.namespace.mounts_in(&self.place.path(""))
    }
}
