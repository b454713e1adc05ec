//! The flags of a mount that the options ask for.

use super::RequestedOptions;
use crate::fs::AccessTimes;
use crate::sys::mounts::MountFlags;

impl RequestedOptions {
    /// Adds the options that mount(8) means but leaves out: it passes on no option that is its own
    /// default (`suid`, `dev`, `exec`, `async`), not even when it remounts.
    #[must_use]
    pub(crate) fn with_defaults_of_mount(self) -> Self {
        Self {
            read_only: self.read_only.or(Some(false)),
            dev: self.dev.or(Some(true)),
            suid: self.suid.or(Some(true)),
            exec: self.exec.or(Some(true)),
            sync: self.sync.or(Some(false)),
            dirsync: self.dirsync.or(Some(false)),
            by_mount: true,
            ..self
        }
    }

    /// Flags of a new mount. `nodev` and `nosuid` are the default of a user's mount. They are not
    /// the default of root's: mount(8) does not pass on `dev` and `suid`, so root could not ask for
    /// them.
    pub(in crate::daemon) fn flags(&self, by_root: bool) -> MountFlags {
        self.flags_over(MountFlags {
            nodev: !by_root,
            nosuid: !by_root,
            ..MountFlags::default()
        })
    }

    /// Adds `nosuid` and `nodev` to the wanted flags unless the options explicitly ask for set-id
    /// programs and devices: for a volume whose contents came from others. mount(8) passes on
    /// neither `suid` nor `dev`, so there is `trusted`.
    #[must_use]
    pub(in crate::daemon) fn restricted(&self, wanted: MountFlags) -> MountFlags {
        let asked = |option: Option<bool>| self.trusted || (!self.by_mount && option == Some(true));
        MountFlags {
            nosuid: wanted.nosuid || !asked(self.suid),
            nodev: wanted.nodev || !asked(self.dev),
            ..wanted
        }
    }

    /// Flags of a mount that has the flags `now`, after the options are applied.
    pub(in crate::daemon) fn flags_over(&self, now: MountFlags) -> MountFlags {
        MountFlags {
            read_only: self.read_only.unwrap_or(now.read_only),
            nodev: self.dev.map_or(now.nodev, |dev| !dev),
            nosuid: self.suid.map_or(now.nosuid, |suid| !suid),
            noexec: self.exec.map_or(now.noexec, |exec| !exec),
            noatime: match self.access_times {
                Some(times) => times == AccessTimes::Never,
                // mount(8) repeats `noatime` if the mount has it.
                None => now.noatime && !self.by_mount,
            },
            strictatime: match self.access_times {
                Some(times) => times == AccessTimes::Strict,
                None => now.strictatime,
            },
            sync: self.sync.unwrap_or(now.sync),
            dirsync: self.dirsync.unwrap_or(now.dirsync),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    #[test]
    fn flags_depend_on_user_origin_and_mount() {
        let theirs = MountFlags {
            nodev: true,
            nosuid: true,
            ..MountFlags::default()
        };
        assert_eq!(parse("").unwrap().flags(false), theirs);
        assert_eq!(parse("").unwrap().flags(true), MountFlags::default());
        assert_eq!(parse("nodev,nosuid").unwrap().flags(true), theirs);
        let flags = parse("dev,suid,noexec,noatime,sync,dirsync,ro")
            .unwrap()
            .flags(false);
        let all = MountFlags {
            read_only: true,
            nodev: false,
            nosuid: false,
            noexec: true,
            noatime: true,
            strictatime: false,
            sync: true,
            dirsync: true,
        };
        assert_eq!(flags, all);
        let restricted = |text: &str| {
            let options = parse(text).unwrap();
            options.restricted(options.flags(true))
        };
        assert_eq!(restricted(""), theirs);
        assert_eq!(restricted("suid,dev"), MountFlags::default());
        assert_eq!(restricted("trusted"), MountFlags::default());
        let nodev = MountFlags {
            nodev: true,
            ..MountFlags::default()
        };
        assert_eq!(restricted("suid"), nodev);
        assert_eq!(restricted("trusted,nodev"), nodev);
        let theirs_by_mount = parse("").unwrap().with_defaults_of_mount();
        assert_eq!(
            theirs_by_mount.restricted(theirs_by_mount.flags(true)),
            theirs
        );
        let by_mount = parse("trusted").unwrap().with_defaults_of_mount();
        assert_eq!(
            by_mount.restricted(by_mount.flags(true)),
            MountFlags::default()
        );
        let by_mount = parse("nosuid").unwrap().with_defaults_of_mount();
        let nosuid = MountFlags {
            nosuid: true,
            ..MountFlags::default()
        };
        assert_eq!(by_mount.flags(true), nosuid);
        assert_eq!(by_mount.flags_over(all), nosuid);
        let remount = parse("remount,rw,exec").unwrap();
        assert!(remount.remount);
        let after = remount.flags_over(all);
        assert_eq!(
            after,
            MountFlags {
                read_only: false,
                noexec: false,
                ..all
            }
        );
    }
}
