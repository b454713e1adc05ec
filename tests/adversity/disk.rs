//! A small ext4 filesystem in a file, mounted through a loop device of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::real::{Place, command, have, need, run};

/// The disk; on drop it is unmounted and its device is freed.
pub(crate) struct SmallDisk {
    pub(crate) dir: PathBuf,
    image: PathBuf,
}

impl SmallDisk {
    /// A disk of this many MiB at `disk` in this place; `None`, after a message, if there can be
    /// none.
    pub(crate) fn new(place: &Place, megabytes: u64, test: &str) -> Option<Self> {
        if !need(
            have("mkfs.ext4"),
            test,
            "mkfs.ext4 is missing; install e2fsprogs",
        ) {
            return None;
        }
        let image = place.path("image");
        let file = fs::File::create(&image).unwrap();
        file.set_len(megabytes << 20).unwrap();
        run(command("mkfs.ext4", ["-q", "-m", "0"]).arg(&image)).done();
        let dir = place.dir("disk");
        let disk = Self { dir, image };
        let why = format!("an image cannot be mounted: {:?}", disk.mount().err());
        need(disk.is_mounted(), test, &why).then_some(disk)
    }

    /// Mounts it (again). On an error of the filesystem it becomes read-only.
    pub(crate) fn mount(&self) -> Result<(), String> {
        if self.is_mounted() {
            return Ok(());
        }
        let options = ["-o", "loop,errors=remount-ro"];
        let mounted = run(command("mount", options).arg(&self.image).arg(&self.dir));
        if mounted.code == 0 {
            Ok(())
        } else {
            Err(mounted.stderr)
        }
    }

    /// Unmounts it and repairs it.
    pub(crate) fn repair(&self) {
        run(&mut command("umount", [&self.dir])).done();
        let checked = run(command("e2fsck", ["-fy"]).arg(&self.image));
        // 1: repaired.
        assert!(checked.code <= 1, "{checked:?}");
    }

    fn is_mounted(&self) -> bool {
        crate::real::is_mount_point(&self.dir)
    }

    /// The name of its device, such as `loop3`.
    pub(crate) fn device(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(4).map(Path::new) == Some(&self.dir));
        let source = line
            .and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1))
            .unwrap();
        source.trim_start_matches("/dev/").to_owned()
    }

    /// Fills it to the last byte with files beside the volume.
    pub(crate) fn fill(&self, megabytes: usize) {
        let filled = fs::write(self.ballast(), vec![1; megabytes << 20]).unwrap_err();
        assert!(crate::full::is_full(&filled), "{filled}");
    }

    /// Removes what [`Self::fill`] has written.
    pub(crate) fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}
