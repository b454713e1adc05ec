//! `bilayer mount`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{KeystoreArg, keystore_dir, start_audit};
use crate::control::paths;
use crate::daemon::log::Log;
use crate::daemon::mount;
use crate::daemon::mount_request::MountRequest;
use crate::daemon::options::{self, RequestedOptions};
use crate::diagnostics::UserError;

/// The help on options, signals and examples, for `bilayer mount --help` and `mount.bilayer
/// --help`.
pub(in crate::cli) const MOUNT_HELP: &str = "\
Options (-o):
  ro, rw                     write nothing; the default is rw
  allow_other, noallow_other
                             for other users too; the default for root's mounts
  customer_key=URI           the customer key, such as file:/etc/keys/k.pem; also
                             pkcs11:, openbao:, azure-kv:, exec:, recovery: (docs/KEYS.md)
  platform_keystore=DIR      the platform keystore
  passphrase_file=FILE       first line: the passphrase of the customer key, or its token's PIN
  passphrase_fd=N            first line of that open descriptor: the same passphrase
  key_check=SECONDS          how often the customer key is followed to its newest version, at
                             most 3600; the default is 60
  fingerprint=HEX            refuse the volume unless it has this fingerprint
  commit=SECONDS             longest time before a change is on disk without fsync
  checkpoint=SECONDS         how often the metadata is copied to checkpoints/; default 600, 0 never
  workers=N                  threads for contents
  follow_caller=on|off       keep the reading thread on its caller's CPU
  nfs_export=on|off          keep file handles valid, for an NFS server; the default is off
  writeback, nowriteback     let the kernel gather writes; the default is writeback
  max_background=N           limit on the kernel's own requests in progress
  meta_cache=SIZE            memory for metadata
  pending=SIZE               memory for changes that are not on disk yet
  open_objects=N             files of the volume held open
  snapshot_dir=NAME|off      the directory of snapshots in the root, instead of .snapshots; off
                             for none, and no .images
  log_file=FILE              the daemon's log, instead of the system's log
  audit_log=FILE|syslog      the audit, instead of audit.log in the platform keystore's directory
  trusted                    suid and dev also for a volume that was imported, or deployed to other
                             keys: such a one is mounted nosuid,nodev unless suid,dev is asked for
                             (in fstab only this option reaches bilayer)
  remount                    change ro, rw and the options on the next lines while mounted
  nodev dev nosuid suid noexec exec noatime atime sync async dirsync
                             as in mount(8); nodev,nosuid unless root mounts
  relatime, strictatime      when times of access change; atime is relatime
Options that other programs act on (nofail, _netdev, noauto, user, x-..., comment=...) are accepted.

Signals to the daemon: SIGTERM and SIGINT make everything durable and unmount; SIGHUP makes it
reopen its log file (with --foreground in a terminal it unmounts).

Examples:
  bilayer mount --create ~/vault ~/private
  bilayer mount /srv/vault /mnt -o ro,customer_key=file:/media/key.pem
  In /etc/fstab:
  /srv/vault /mnt/vault bilayer rw,nofail,customer_key=file:/etc/keys/k.pem 0 0";

#[derive(Args, Debug)]
pub(in crate::cli) struct MountArgs {
    /// Directory of the volume
    volume: PathBuf,
    /// Where to mount it
    dir: PathBuf,
    /// Make the volume and DIR where there is none, and none is known
    #[arg(long)]
    create: bool,
    /// Take a volume that was restored from a backup as it is, though it is older than this machine
    /// knows it to be. Other copies of it are refused from then on, and objects that it does not
    /// know are removed. With -o ro it is only looked at
    #[arg(long)]
    accept_restored: bool,
    /// Make this copy of a volume a volume of its own, which lives beside the original: with an id,
    /// a fingerprint and a key for new data of its own. The original is not touched
    #[arg(long, conflicts_with_all = ["accept_restored", "create"])]
    new_identity: bool,
    /// Do not go into the background
    #[arg(long)]
    pub(in crate::cli) foreground: bool,
    /// Options, separated by commas (--help lists them)
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    keystore: KeystoreArg,
}

/// Mounts, in a separate process unless `--foreground` is given.
///
/// # Errors
/// An option is unknown or its value is wrong, no keystore directory is known, or the mount fails.
pub(in crate::cli) fn run(args: MountArgs, log: &Log) -> Result<(), UserError> {
    let directory = paths::working_directory()?;
    let options = RequestedOptions::parse(args.options.iter().map(String::as_str), &directory)?;
    let option = args.keystore.platform_keystore.as_deref();
    let keystore = keystore_dir(option.or(options.platform_keystore.as_deref()))?;
    let named = args.keystore.audit_log.as_deref();
    let named = named.map(|log| options::audit_log(log, &directory));
    start_audit(
        named.transpose()?.or_else(|| options.audit_log.clone()),
        &keystore,
    );
    let request = MountRequest {
        volume: args.volume,
        dir: args.dir,
        create: args.create,
        accept_restored: args.accept_restored,
        new_identity: args.new_identity,
        foreground: args.foreground,
        options,
        keystore,
    };
    mount::mount(request, log)
}
