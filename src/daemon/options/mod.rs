//! The one parser of mount options: `bilayer mount -o`, the mount helpers, `/etc/fstab`, systemd.
//!
//! Options are separated by commas; `\,` and `\\` stand for a comma and a backslash within a value.
//! Of options that contradict each other the last one counts.
//!
//! | option | meaning |
//! |---|---|
//! | `ro`, `rw` | nothing is written; the default is `rw` |
//! | `allow_other`, `noallow_other` | for other users too; the default for root's mounts |
//! | `customer_key=URI` | the customer key, such as `file:/etc/keys/backup.pem` |
//! | `platform_keystore=DIR` | the platform keystore, where it is not in its usual place |
//! | `passphrase_file=FILE`, `passphrase_fd=N` | where the customer key's passphrase is |
//! | `key_check=SECONDS` | how often the customer key is followed to its newest version |
//! | `fingerprint=HEX` | the volume must have this fingerprint |
//! | `commit=SECONDS` | longest time before a change is on disk without fsync |
//! | `checkpoint=SECONDS` | minimum interval between copies of the metadata; 0 for none |
//! | `workers=N` | threads for contents |
//! | `follow_caller=on\|off` | the reading thread stays on its caller's CPU |
//! | `nfs_export=on\|off` | file handles stay valid when the kernel has forgotten the file |
//! | `nowriteback`, `writeback` | every write reaches the filesystem at once, or is gathered |
//! | `max_background=N` | limit on the kernel's own requests in progress |
//! | `meta_cache=SIZE`, `pending=SIZE` | memory for metadata, and for changes not yet on disk |
//! | `open_objects=N` | files of the volume held open |
//! | `snapshot_dir=NAME\|off` | the directory of snapshots; `off`: none, nor of images |
//! | `log_file=FILE` | the file of the daemon's log, instead of the system's log |
//! | `audit_log=FILE\|syslog` | the destination of the audit, instead of the keystore's directory |
//! | `nodev` `dev` `nosuid` `suid` | as in mount(8); a user's mount is `nodev,nosuid` |
//! | `noexec` `exec` `noatime` `atime` `sync` `async` `dirsync` | as in mount(8) |
//! | `trusted` | `suid` and `dev` also for a volume that came from elsewhere |
//! | `relatime`, `strictatime` | when times of access change; `atime` is `relatime` |
//! | `remount` | change `ro`, `rw` and the options of mount(8) of an existing mount |
//!
//! [`IGNORED_OPTIONS`] are accepted and have no effect. `values` parses values; `flags` has the
//! flags of the mount that result.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::Destination;
use crate::diagnostics::UserError;
use crate::fs::{AccessTimes, SnapshotDir};
use crate::keys::{KeyUri, PassphraseSource};

mod flags;
mod values;

pub(crate) use values::{audit_log, key_uri};

/// Options that other programs act on (mount(8), systemd), that always apply
/// (`default_permissions`), or that mean nothing to this filesystem.
const IGNORED_OPTIONS: [&str; 27] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "_netdev",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "mand",
    "nomand",
    "default_permissions",
    "seclabel",
];
/// Prefixes of further options that are accepted and ignored. The last four are the kernel's own,
/// which mount(8) repeats when it remounts.
const IGNORED_PREFIXES: [&str; 10] = [
    "x-",
    "X-",
    "comment=",
    "user=",
    "helper=",
    "uhelper=",
    "user_id=",
    "group_id=",
    "max_read=",
    "rootmode=",
];

/// The options that were requested; `None`: the default applies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RequestedOptions {
    /// `ro`, `rw`.
    pub(crate) read_only: Option<bool>,
    /// `dev`, `nodev`.
    pub(crate) dev: Option<bool>,
    /// `suid`, `nosuid`.
    pub(crate) suid: Option<bool>,
    /// `exec`, `noexec`.
    pub(crate) exec: Option<bool>,
    /// `atime`, `relatime`, `strictatime`, `noatime`.
    pub(crate) access_times: Option<AccessTimes>,
    /// `sync`, `async`.
    pub(crate) sync: Option<bool>,
    /// `dirsync`.
    pub(crate) dirsync: Option<bool>,
    /// `trusted`: a volume that came from elsewhere is mounted as if it had not.
    pub(crate) trusted: bool,
    /// `remount`.
    pub(crate) remount: bool,
    /// The options come from mount(8), which leaves some out.
    pub(crate) by_mount: bool,
    /// `allow_other`, `noallow_other`.
    pub(crate) allow_other: Option<bool>,
    /// `writeback`, `nowriteback`.
    pub(crate) writeback: Option<bool>,
    /// `follow_caller=`.
    pub(crate) follow_caller: Option<bool>,
    /// `nfs_export=`.
    pub(crate) nfs_export: Option<bool>,
    /// `customer_key=`.
    pub(crate) customer_key: Option<KeyUri>,
    /// `platform_keystore=`.
    pub(crate) platform_keystore: Option<PathBuf>,
    /// `passphrase_file=`, `passphrase_fd=`.
    pub(crate) passphrase: Option<PassphraseSource>,
    /// `key_check=`.
    pub(crate) key_check: Option<Duration>,
    /// `fingerprint=`.
    pub(crate) fingerprint: Option<String>,
    /// `commit=`.
    pub(crate) commit: Option<Duration>,
    /// `checkpoint=`; zero for never.
    pub(crate) checkpoint: Option<Duration>,
    /// `workers=`.
    pub(crate) workers: Option<usize>,
    /// `max_background=`.
    pub(crate) max_background: Option<u16>,
    /// `meta_cache=`, in bytes.
    pub(crate) meta_cache_bytes: Option<usize>,
    /// `pending=`, in bytes.
    pub(crate) pending_bytes: Option<usize>,
    /// `open_objects=`.
    pub(crate) open_objects: Option<usize>,
    /// `snapshot_dir=`.
    pub(crate) snapshot_dir: Option<SnapshotDir>,
    /// `log_file=`.
    pub(crate) log_file: Option<PathBuf>,
    /// `audit_log=`.
    pub(crate) audit_log: Option<Destination>,
}

impl RequestedOptions {
    /// Parses the arguments of `-o`, one after the other. Relative paths start at `directory`.
    ///
    /// # Errors
    /// A usage error that names the option which is unknown or has a wrong value.
    pub(crate) fn parse<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
        directory: &Path,
    ) -> Result<Self, UserError> {
        let (options, unknown_options) = Self::parse_sloppy(arguments, directory)?;
        match unknown_options.first() {
            Some(word) => Err(values::unknown_option(word)),
            None => Ok(options),
        }
    }

    /// Parses the arguments of `-o`, and returns unknown options instead of refusing them
    /// (`mount -s`).
    ///
    /// # Errors
    /// A usage error that names an option with a wrong value.
    pub(crate) fn parse_sloppy<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
        directory: &Path,
    ) -> Result<(Self, Vec<String>), UserError> {
        let mut options = Self::default();
        let mut unknown_options = Vec::new();
        for word in arguments.into_iter().flat_map(values::split) {
            if !options.parse_option(&word, directory)? {
                unknown_options.push(word);
            }
        }
        Ok((options, unknown_options))
    }

    /// Applies one option; false if it is unknown.
    fn parse_option(&mut self, word: &str, directory: &Path) -> Result<bool, UserError> {
        if word.is_empty() || self.parse_flag(word) || self.parse_access_times(word) {
            return Ok(true);
        }
        if let Some((name, value)) = word.split_once('=')
            && self.parse_value(name, value, directory)?
        {
            return Ok(true);
        }
        let mut prefixes = IGNORED_PREFIXES.iter();
        Ok(IGNORED_OPTIONS.contains(&word) || prefixes.any(|prefix| word.starts_with(prefix)))
    }

    fn parse_access_times(&mut self, word: &str) -> bool {
        self.access_times = Some(match word {
            "atime" | "relatime" => AccessTimes::Relative,
            "strictatime" => AccessTimes::Strict,
            "noatime" => AccessTimes::Never,
            _ => return false,
        });
        true
    }

    fn parse_flag(&mut self, word: &str) -> bool {
        let (flag, value) = match word {
            "ro" => (&mut self.read_only, true),
            "rw" => (&mut self.read_only, false),
            "dev" => (&mut self.dev, true),
            "nodev" => (&mut self.dev, false),
            "suid" => (&mut self.suid, true),
            "nosuid" => (&mut self.suid, false),
            "exec" => (&mut self.exec, true),
            "noexec" => (&mut self.exec, false),
            "sync" => (&mut self.sync, true),
            "async" => (&mut self.sync, false),
            "dirsync" => (&mut self.dirsync, true),
            "allow_other" => (&mut self.allow_other, true),
            "noallow_other" => (&mut self.allow_other, false),
            "writeback" => (&mut self.writeback, true),
            "nowriteback" => (&mut self.writeback, false),
            "remount" => {
                self.remount = true;
                return true;
            }
            "trusted" => {
                self.trusted = true;
                return true;
            }
            _ => return false,
        };
        *flag = Some(value);
        true
    }

    /// Applies one option with a value; false if the name is unknown.
    fn parse_value(
        &mut self,
        name: &str,
        value: &str,
        directory: &Path,
    ) -> Result<bool, UserError> {
        match name {
            "customer_key" => self.customer_key = Some(key_uri(value, directory)?),
            "platform_keystore" => {
                self.platform_keystore = Some(values::path(name, value, directory)?);
            }
            "passphrase_file" => {
                self.passphrase = Some(PassphraseSource::File(values::path(
                    name, value, directory,
                )?));
            }
            "passphrase_fd" => {
                let descriptor = values::passphrase_descriptor(name, value)?;
                self.passphrase = Some(PassphraseSource::Descriptor(descriptor));
            }
            "key_check" => {
                self.key_check = Some(Duration::from_secs(values::number(name, value, 1, 3600)?));
            }
            "fingerprint" => self.fingerprint = Some(values::fingerprint(value)?),
            "commit" => {
                self.commit = Some(Duration::from_secs(values::number(name, value, 1, 3600)?));
            }
            "checkpoint" => {
                let most = 365 * 24 * 3600;
                self.checkpoint = Some(Duration::from_secs(values::number(name, value, 0, most)?));
            }
            "workers" => self.workers = Some(values::number(name, value, 2, 256)? as usize),
            "max_background" => {
                self.max_background = Some(values::number(name, value, 1, 4096)? as u16);
            }
            "open_objects" => {
                self.open_objects = Some(values::number(name, value, 8, 1 << 20)? as usize);
            }
            "meta_cache" => self.meta_cache_bytes = Some(values::memory(name, value)?),
            "pending" => self.pending_bytes = Some(values::memory(name, value)?),
            "snapshot_dir" => self.snapshot_dir = Some(values::snapshot_dir(name, value)?),
            "log_file" => self.log_file = Some(values::path(name, value, directory)?),
            "audit_log" => self.audit_log = Some(audit_log(Path::new(value), directory)?),
            "follow_caller" => self.follow_caller = Some(values::on_or_off(name, value)?),
            "nfs_export" => self.nfs_export = Some(values::on_or_off(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(text: &str) -> Result<RequestedOptions, UserError> {
        RequestedOptions::parse([text], Path::new("/here"))
    }

    #[test]
    fn flags_and_values() {
        let options = parse(
            "rw,ro,noallow_other,allow_other,customer_key=file:k.pem,platform_keystore=/p\\,q,\
             passphrase_file=pass,fingerprint=00112233-44556677,workers=3,commit=5,\
             nowriteback,checkpoint=0,follow_caller=off,nfs_export=on,max_background=8,\
             meta_cache=64M,pending=1GiB,open_objects=100,\
             log_file=/var/log/b,audit_log=a,snapshot_dir=.zeitpunkte,,",
        )
        .unwrap();
        let expected = RequestedOptions {
            read_only: Some(true),
            allow_other: Some(true),
            customer_key: Some(KeyUri::parse("file:/here/k.pem").unwrap()),
            platform_keystore: Some("/p,q".into()),
            passphrase: Some(PassphraseSource::File("/here/pass".into())),
            fingerprint: Some("00112233-44556677".to_owned()),
            workers: Some(3),
            commit: Some(Duration::from_secs(5)),
            checkpoint: Some(Duration::ZERO),
            writeback: Some(false),
            follow_caller: Some(false),
            nfs_export: Some(true),
            max_background: Some(8),
            meta_cache_bytes: Some(64 << 20),
            pending_bytes: Some(1 << 30),
            open_objects: Some(100),
            log_file: Some("/var/log/b".into()),
            audit_log: Some(Destination::File("/here/a".into())),
            snapshot_dir: Some(SnapshotDir::Named(".zeitpunkte".to_owned())),
            ..RequestedOptions::default()
        };
        assert_eq!(options, expected);
        let descriptor = parse("passphrase_fd=7").unwrap().passphrase;
        assert_eq!(descriptor, Some(PassphraseSource::Descriptor(7)));
    }

    #[test]
    fn options_without_meaning_here_are_accepted() {
        for word in IGNORED_OPTIONS {
            assert_eq!(parse(word).unwrap(), RequestedOptions::default(), "{word}");
        }
        let text = "x-systemd.automount,x-gvfs-show,comment=my \
             disk,user=me,uhelper=fuse,X-mount.mkdir,user_id=0,group_id=0";
        assert_eq!(parse(text).unwrap(), RequestedOptions::default());
        assert_eq!(parse("").unwrap(), RequestedOptions::default());
    }

    #[test]
    fn sloppy_parsing_returns_unknown_options() {
        let (options, unknown) =
            RequestedOptions::parse_sloppy(["ro,errors=remount-ro", "quota"], Path::new("/"))
                .unwrap();
        assert_eq!(options.read_only, Some(true));
        assert_eq!(unknown, ["errors=remount-ro", "quota"]);
        assert!(RequestedOptions::parse_sloppy(["workers=none"], Path::new("/")).is_err());
    }

    #[test]
    fn wrong_options_are_named() {
        for word in [
            "readonly",
            "Ro",
            "customer_key",
            "customer_key=",
            "customer_key=https://x/k",
            "platform_keystore=",
            "passphrase=secret",
            "passphrase_fd=-1",
            "passphrase_fd=x",
            "fingerprint=xyz",
            "fingerprint=1234",
            "workers=0",
            "workers=1",
            "workers=",
            "commit=0",
            "commit=9999",
            "commit=1.5",
            "checkpoint=-1",
            "checkpoint=often",
            "follow_caller=maybe",
            "nfs_export=1",
            "max_background=0",
            "meta_cache=4K",
            "meta_cache=big",
            "open_objects=1",
            "snapshot_dir=",
            "snapshot_dir=.",
            "snapshot_dir=..",
            "snapshot_dir=a/b",
            "snapshot_dir=.images",
            "exec=1",
            "rw=1",
            "blah=",
        ] {
            let error = parse(&format!("rw,{word},noexec")).unwrap_err();
            assert_eq!(error.code, crate::diagnostics::ExitCode::Usage, "{word}");
            let name = word.split('=').next().unwrap();
            assert!(
                error.message.contains(name) || error.message.contains("customer key"),
                "{word}: {}",
                error.message
            );
        }
    }

    #[test]
    fn errors_do_not_show_values_that_may_be_secret() {
        for word in [
            "passphrase=hunter2",
            "passphrase_fd=hunter2",
            "customer_key=hunter2",
            "customer_key=pkcs11:token=a?pin-value=hunter2",
            "customer_key=https://me:hunter2@host/key",
            "customer_key=file://me:hunter2@host/key",
            "customer_key=file:/key?passphrase=hunter2",
            "customer_key=file:/key#hunter2",
            "hunter=hunter2",
        ] {
            let error = parse(word).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{word}: {error}");
        }
    }
}
