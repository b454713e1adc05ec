//! The command line: `bilayer` and the helpers of mount(8).
//!
//! Each command is a module that returns a value or a [`CliError`]. Only this one prints, and those
//! of commands with verbs of their own, `snapshot` and `image`, and `check`.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use clap::error::ErrorKind as ClapError;
use clap::{Args, CommandFactory, Parser, Subcommand};

mod answers;
mod changed;
mod check;
pub mod control;
pub mod create;
mod daemon;
pub mod error;
mod format;
mod generate;
mod health;
pub mod helper;
#[cfg(test)]
mod hints;
mod image;
mod io_hints;
mod locate;
pub mod log;
pub mod mount;
mod mount_record;
pub mod options;
mod paths;
mod patient;
mod progress;
pub mod proof;
mod prune;
pub mod remount;
pub mod request;
mod salvage;
mod serve;
mod session;
pub mod size;
mod snapshot;
pub mod status;
mod status_text;
pub mod unmount;
mod utab;
pub mod wire;

pub use error::{CliError, ExitCode};

use crate::audit::{self, Destination, Requester};
use crate::keys::{PassphraseSource, keystore};
use crate::layers;
use crate::sys::interrupt;
use crate::sys::limits;
use crate::sys::memory::disable_core_dumps;
use log::Log;
use options::MountWords;
use unmount::{Left, UnmountRequest};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 usage, 2 no such volume, mount, snapshot or image, 3 in use,
4 key missing or wrong, 5 damaged, not authentic or too new, 6 the operating system refused.
`mount` has those of mount(8): 0 done, 1 usage, 2 the operating system refused, 32 failed;
`check` those of fsck(8).";

/// A filesystem that keeps everything it stores under two independent layers of encryption.
#[derive(Parser, Debug)]
#[command(name = "bilayer", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a volume: a directory that holds one encrypted filesystem
    #[command(
        after_help = "Example:\n  bilayer create /srv/vault --customer-key file:/media/key.pem"
    )]
    Create(CreateArgs),
    /// Mount a volume
    #[command(
        after_help = "Example:\n  bilayer mount --create ~/vault ~/private\n\n\
        In /etc/fstab:\n  /srv/vault /mnt/vault bilayer rw,nofail,customer_key=file:/etc/keys/k.pem 0 0",
        after_long_help = MOUNT_HELP
    )]
    Mount(MountArgs),
    /// Unmount; returns when everything is on disk and the daemon is gone
    #[command(
        visible_alias = "umount",
        after_help = "Example:\n  bilayer unmount ~/private"
    )]
    Unmount(UnmountArgs),
    /// Take, list, compare, restore and delete snapshots
    #[command(
        subcommand,
        visible_alias = "snap",
        after_help = "Example:\n  bilayer snapshot create /mnt before-upgrade\n\n\
        On a mounted volume plain tools do too: mkdir /mnt/.snapshots/NAME takes one, rmdir drops it,\n\
        mv renames it, and ls, cp, diff, rsync read it."
    )]
    Snapshot(snapshot::SnapshotCommand),
    /// Make images, and volumes of them, here or on another machine
    #[command(
        subcommand,
        after_help = "Example:\n  bilayer image create /srv/vault base\n  \
        bilayer image deploy /srv/vault base /srv/copy"
    )]
    Image(image::ImageCommand),
    /// Show a volume: keys, layers, usage, where it is mounted
    #[command(
        after_help = "Examples:\n  bilayer status /srv/vault --json\n  bilayer status /srv/vault@monday"
    )]
    Status(StatusArgs),
    /// Verify everything in a volume, mounted or not, and mend what can be mended
    #[command(after_help = check::HELP)]
    Check(check::CheckArgs),
    /// Show what a volume's superblock says, without any key
    #[command(after_help = "Example:\n  bilayer inspect /srv/vault")]
    Inspect(InspectArgs),
    /// Take out of a damaged volume what can be read of it, as plain files
    #[command(after_help = salvage::HELP)]
    Salvage(salvage::SalvageArgs),
    /// Make a customer key: RSA, in a file that only its owner may read
    #[command(after_help = "Example:\n  bilayer keygen /media/key.pem --bits 4096")]
    Keygen(KeygenArgs),
    /// Write man pages and completions for shells below a directory
    #[command(
        hide = true,
        after_help = "Example:\n  bilayer generate /usr/local/share"
    )]
    Generate {
        /// Such as /usr/local/share
        dir: PathBuf,
    },
}

const MOUNT_HELP: &str = "\
Options (-o):
  ro, rw                     write nothing; the default is rw
  allow_other, noallow_other for other users too; the default for root's mounts
  customer_key=URI           the customer key, such as file:/etc/keys/k.pem
  platform_keystore=DIR      the platform keystore
  passphrase_file=FILE       first line: the passphrase of the customer key
  passphrase_fd=N            the same from an open descriptor
  fingerprint=HEX            refuse the volume unless it has this fingerprint
  commit=SECONDS             longest time before a change is on disk without fsync
  checkpoint=SECONDS         how often a copy of the metadata is put beside them; 600, 0 for never
  workers=N                  threads for contents
  follow_caller=on|off       keep the reading thread on its caller's CPU
  nfs_export=on|off          keep file handles good, for an NFS server; the default is off
  writeback, nowriteback     let the kernel gather writes; the default is writeback
  max_background=N           requests of the kernel's own under way
  meta_cache=SIZE            memory for metadata
  pending=SIZE               memory for changes that are not on disk yet
  open_objects=N             files of the volume held open
  snapshot_dir=NAME|off      the directory of snapshots in the root, instead of .snapshots; off
                             for none, and no .images
  log_file=FILE              the daemon's log, instead of the system's
  audit_log=FILE|syslog      the audit, instead of audit.log in the platform keystore's directory
  trusted                    suid and dev also for a volume that was imported, or deployed to other
                             keys: such a one is mounted nosuid,nodev unless suid,dev is asked for
                             (in fstab only this word reaches bilayer)
  remount                    change ro, rw and the next line's words of a mount
  nodev dev nosuid suid noexec exec noatime atime sync async dirsync
                             as in mount(8); nodev,nosuid unless root mounts
  relatime, strictatime      when times of access change; atime is relatime
Words that others act on (nofail, _netdev, noauto, user, x-..., comment=...) are accepted.

Signals to the daemon: SIGTERM and SIGINT make everything durable and unmount; SIGHUP has it open
its log file anew (with --foreground in a terminal it unmounts).

Examples:
  bilayer mount --create ~/vault ~/private
  bilayer mount /srv/vault /mnt -o ro,customer_key=file:/media/key.pem
  In /etc/fstab:
  /srv/vault /mnt/vault bilayer rw,nofail,customer_key=file:/etc/keys/k.pem 0 0";

#[derive(Args, Debug)]
struct KeystoreArg {
    /// Directory of the platform keystore [default: /var/lib/bilayer/platform for root, else the
    /// user's data directory; or $BILAYER_PLATFORM_KEYSTORE]
    #[arg(long, value_name = "DIR")]
    platform_keystore: Option<PathBuf>,
    /// File that the audit is added to, or syslog for the system's log [default: audit.log in the
    /// directory of the platform keystore]
    #[arg(long, value_name = "FILE|syslog")]
    audit_log: Option<PathBuf>,
}

impl KeystoreArg {
    /// Where the platform keystore is. The audit begins.
    fn dir(&self) -> Result<PathBuf, CliError> {
        let dir = keystore_dir(self.platform_keystore.as_deref())?;
        let log = self.audit_log.as_deref();
        let log = log.map(|log| options::audit_log(log, &paths::working_directory()?));
        start_audit(log.transpose()?, &dir);
        Ok(dir)
    }
}

/// Begins the audit: to where an option says, else to the directory of the platform keystore.
fn start_audit(chosen: Option<Destination>, dir: &Path) {
    let usual = Destination::StateDirectory(dir.to_path_buf(), keystore::IDENTITY);
    let destination = chosen.unwrap_or_else(|| usual.clone());
    audit::start(destination, usual, Requester::this_process());
}

#[derive(Args, Debug)]
struct PassphraseArg {
    /// File whose first line is the passphrase of the customer key
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// What it takes to open a volume that is not mounted.
#[derive(Args, Debug)]
struct OpenArgs {
    #[command(flatten)]
    keystore: KeystoreArg,
    #[command(flatten)]
    passphrase: PassphraseArg,
}

impl OpenArgs {
    fn keys(&self) -> Result<session::Keys, CliError> {
        Ok(session::Keys {
            keystore: self.keystore.dir()?,
            passphrase: passphrase_source(&self.passphrase)?,
        })
    }
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Directory of the volume: made if missing, empty otherwise
    volume: PathBuf,
    /// Customer key that wraps the customer's half of the keys; without one the platform wraps both
    #[arg(long, value_name = "URI")]
    customer_key: Option<String>,
    /// Largest size of the contents, in bytes or as 10G; what snapshots alone hold does not count
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    size: Option<String>,
    #[command(flatten)]
    keystore: KeystoreArg,
    #[command(flatten)]
    passphrase: PassphraseArg,
}

#[derive(Args, Debug)]
struct MountArgs {
    /// Directory of the volume
    volume: PathBuf,
    /// Where to mount it
    dir: PathBuf,
    /// Make the volume and DIR where there is none, and none is known
    #[arg(long)]
    create: bool,
    /// Take a volume that was restored from a backup as it is, though it is older than this machine
    /// knows it to be. Other copies of it are refused from then on, and objects that it does not know are
    /// removed. With -o ro it is only looked at
    #[arg(long)]
    accept_restored: bool,
    /// Make this copy of a volume a volume of its own, which lives beside the original: with an id, a
    /// fingerprint and a key for new data of its own. The original is not touched
    #[arg(long, conflicts_with_all = ["accept_restored", "create"])]
    new_identity: bool,
    /// Do not go into the background
    #[arg(long)]
    foreground: bool,
    /// Options, separated by commas (--help lists them)
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    keystore: KeystoreArg,
}

#[derive(Args, Debug)]
struct UnmountArgs {
    /// Where it is mounted
    dir: PathBuf,
    /// Detach at once, even if it is in use, and do not wait
    #[arg(long)]
    lazy: bool,
    /// Unmount also if the daemon does not answer any more; what it has not written is lost
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
struct StatusArgs {
    /// Directory of the volume, or where it is mounted; VOLUME@NAME or DIR/.snapshots/NAME for a
    /// snapshot or an image
    #[arg(value_name = "VOLUME|DIR")]
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keystore: KeystoreArg,
}

#[derive(Args, Debug)]
struct InspectArgs {
    /// Directory of the volume
    volume: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct KeygenArgs {
    /// File to make; one that exists is never written over
    file: PathBuf,
    /// Size of the key: 2048, 3072 or 4096
    #[arg(
        long,
        default_value_t = 3072,
        allow_negative_numbers = true,
        value_parser = size::parse_count
    )]
    bits: usize,
    #[command(flatten)]
    passphrase: PassphraseArg,
}

/// The whole of the program.
pub fn run() -> process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let foreground = matches!(&cli.command, Command::Mount(args) if args.foreground);
    let code_of: fn(&CliError) -> u8 = match cli.command {
        Command::Mount(_) => |error| error.code.for_mount(),
        Command::Check(_) => check::exit_code,
        _ => |error| error.code as u8,
    };
    let log = Log::start(foreground);
    let code = execute(cli.command, &log).unwrap_or_else(|error| {
        let code = code_of(&error);
        complain(&error.unless_asked_to_end());
        code
    });
    interrupt::exit_by_signal();
    process::ExitCode::from(code)
}

/// Help and version are no failures; everything else is a usage error.
fn refuse(error: &clap::Error) -> process::ExitCode {
    // Nothing is left to be done if even this cannot be printed.
    let _ = error.print();
    match error.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => process::ExitCode::SUCCESS,
        _ if std::env::args_os()
            .nth(1)
            .is_some_and(|verb| verb == "check") =>
        {
            process::ExitCode::from(check::exit_code(&CliError::usage("")))
        }
        _ => process::ExitCode::from(ExitCode::Usage as u8),
    }
}

/// Runs a command that ended well, with its exit code.
fn execute(command: Command, log: &Log) -> Result<u8, CliError> {
    harden()?;
    match command {
        Command::Check(args) => return check::run(&args),
        Command::Create(args) => run_create(args),
        Command::Mount(args) => run_mount(args, log),
        Command::Unmount(args) => {
            let request = UnmountRequest {
                lazy: args.lazy,
                force: args.force,
                or_read_only: false,
            };
            unmount::unmount(&args.dir, request).map(|left| tell_left(&args.dir, &left))
        }
        Command::Status(args) => {
            let keystore = args.keystore.dir()?;
            show(&status::status(&args.path, &keystore)?, args.json)
        }
        Command::Inspect(args) => show(&status::inspect(&args.volume)?, args.json),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Image(command) => image::run(command),
        Command::Salvage(args) => salvage::run(&args),
        Command::Keygen(args) => run_keygen(&args),
        Command::Generate { dir } => generate::generate(Cli::command(), &dir),
    }?;
    Ok(ExitCode::Done as u8)
}

/// What every process that may hold keys does first: no core dumps, and a test that both layers
/// still compute what they should.
fn harden() -> Result<(), CliError> {
    limits::keep_owner_mode_bits();
    limits::ignore_file_size_signal();
    if let Err(error) = disable_core_dumps() {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
    layers::self_test().map_err(|error| {
        CliError::new(
            ExitCode::Integrity,
            format!("the self-test failed: {error}"),
        )
        .with_hint("do not use this program on this machine; reinstall it or check the memory")
    })
}

/// The platform keystore: option, environment, default, in this order.
fn keystore_dir(option: Option<&Path>) -> Result<PathBuf, CliError> {
    let environment = std::env::var_os(keystore::ENVIRONMENT);
    let dir = keystore::resolve(option, environment.as_deref(), keystore::default_dir())
        .map_err(|error| CliError::key("cannot find the platform keystore", &error))?;
    paths::absolute(&dir)
}

/// Where a passphrase comes from: a file that was named, else whoever sits there.
fn passphrase_source(argument: &PassphraseArg) -> Result<PassphraseSource, CliError> {
    match &argument.passphrase_file {
        Some(path) => Ok(PassphraseSource::File(paths::absolute(path)?)),
        None => Ok(PassphraseSource::Prompt),
    }
}

fn run_create(args: CreateArgs) -> Result<(), CliError> {
    let customer_key = match &args.customer_key {
        Some(uri) => Some(options::key_uri(uri, &paths::working_directory()?)?),
        None => None,
    };
    let size_bytes = size::size_option(args.size.as_deref())?;
    let new = create::NewVolume {
        path: paths::absolute(&args.volume)?,
        customer_key,
        size_bytes,
        keystore: args.keystore.dir()?,
        passphrase: passphrase_source(&args.passphrase)?,
    };
    let id = create::create(&new)?;
    print(&format!("volume {id} made in {}\n", new.path.display()))
}

fn run_mount(args: MountArgs, log: &Log) -> Result<(), CliError> {
    let directory = paths::working_directory()?;
    let words = MountWords::parse(args.options.iter().map(String::as_str), &directory)?;
    let option = args.keystore.platform_keystore.as_deref();
    let keystore = keystore_dir(option.or(words.platform_keystore.as_deref()))?;
    let named = args.keystore.audit_log.as_deref();
    let named = named.map(|log| options::audit_log(log, &directory));
    start_audit(
        named.transpose()?.or_else(|| words.audit_log.clone()),
        &keystore,
    );
    let request = mount::MountRequest {
        volume: args.volume,
        dir: args.dir,
        create: args.create,
        accept_restored: args.accept_restored,
        new_identity: args.new_identity,
        foreground: args.foreground,
        words,
        keystore,
    };
    mount::mount(request, log)
}

fn run_keygen(args: &KeygenArgs) -> Result<(), CliError> {
    let passphrase = match &args.passphrase.passphrase_file {
        Some(path) => PassphraseSource::File(paths::absolute(path)?),
        None => PassphraseSource::None,
    };
    let key = create::keygen(&paths::absolute(&args.file)?, args.bits, &passphrase)?;
    print(&format!(
        "{} ({} bits, version {})\n",
        key.uri, key.bits, key.key_version
    ))
}

/// One line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let line = serde_json::to_string(value)
        .map_err(|error| CliError::new(ExitCode::System, format!("cannot write JSON: {error}")))?;
    print(&(line + "\n"))
}

fn show(report: &status::Report, json: bool) -> Result<(), CliError> {
    if json {
        print(&(status::to_json(report)? + "\n"))
    } else {
        print(&status_text::to_text(report))
    }
}

/// Says what nobody here can see: that the mount lives on.
fn tell_left(dir: &Path, left: &Left) {
    let dir = dir.display();
    match left {
        Left::OtherNamespaces(processes) => complain(&format_args!(
            "bilayer: {dir} is unmounted here and everything is on disk; another mount namespace has \
             the volume mounted still{}",
            format::processes(processes)
        )),
        Left::Detached => complain(&format_args!(
            "bilayer: {dir} is detached: its daemon is dead; whoever works in it gets errors until \
             they leave"
        )),
        Left::Nothing | Left::OtherPlaces => {}
    }
}

/// To standard error, if there is anybody who reads it.
fn complain(line: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// To standard output. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::io("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines() {
        for line in [
            "create v",
            "create v --customer-key file:/k --size 10G --platform-keystore p --passphrase-file f",
            "mount v d",
            "mount v d --new-identity",
            "mount v d --create --foreground -o ro,noexec -o commit=1 --platform-keystore p",
            "mount -o ro v d",
            "unmount d",
            "umount d --lazy",
            "status v --json",
            "check v",
            "check v --repair --jobs 2 --json --quiet --quick",
            "inspect v",
            "keygen f --bits 4096",
            "salvage v o",
            "salvage v o --view a --view b --header h --customer-key file:/k --json --quiet",
            "salvage v o --all-views --platform-keystore p --passphrase-file f",
            "snapshot create v n",
            "snapshot create v",
            "snapshot create v --prefix auto",
            "snapshot create v --prefix auto --prune --keep-hourly 24 --keep-daily 7",
            "snap ls v --json --platform-keystore p --passphrase-file f",
            "snapshot delete v n m",
            "snapshot rename v n m",
            "snapshot diff v a",
            "snapshot diff v a b --json",
            "snapshot restore v n --path p/q",
            "snapshot restore v n --yes",
            "snapshot prune v --keep-last 1 --keep-weekly 2 --prefix auto --dry-run --json",
            "image create v n --from s --description d",
            "image list v",
            "image delete v n",
            "image deploy v n w --customer-key file:/k --size 10G --json",
            "image export v n - --transport-passphrase-file f",
            "image deploy v n w --customer-key file:/k --customer-key-passphrase-file p",
            "image deploy v n w --new-platform-keystore d",
            "image export v n f --customer-key file:/k --customer-key-passphrase-file p",
            "image import f w --customer-key file:/k --new-customer-key file:/l --size 1G",
        ] {
            let words = std::iter::once("bilayer").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "",
            "create",
            "mount v",
            "status",
            "mount v d e",
            "mount v d --new-identity --accept-restored",
            "keygen f --bits x",
            "salvage v",
            "salvage v o --view a --all-views",
            "frob",
            "snapshot",
            "snapshot create v n --prefix auto",
            "snapshot delete v",
            "check",
            "check v --jobs x",
            "snapshot prune v --keep-last -1",
            "snapshot prune v --keep-last 99999999999999999999",
            "image export v n",
            "image deploy v n w --customer-key-passphrase-file p",
        ] {
            let words = std::iter::once("bilayer").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn the_timers_service_runs_a_command_that_there_is() {
        let unit = include_str!("../../mount-helper/systemd/bilayer-snapshot@.service");
        let value = |beginning| {
            let line = unit.lines().find_map(|line| line.strip_prefix(beginning));
            line.unwrap_or_else(|| panic!("no {beginning}"))
        };
        let keep = value("Environment=\"BILAYER_KEEP=").trim_end_matches('"');
        let line = value("ExecStart=").replace("$BILAYER_KEEP", keep);
        let words = line.split(' ').map(|word| match word {
            "%f" => "/srv/a vault",
            word => word,
        });
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
    }

    #[test]
    fn every_option_of_mount_is_in_its_help() {
        let documented = include_str!("options.rs");
        let table = documented
            .lines()
            .filter(|line| line.starts_with("//! | `"));
        let words: Vec<&str> = table
            .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split('`'))
            .map(|word| word.trim().trim_end_matches(','))
            .map(|word| word.split('=').next().unwrap_or_default())
            .filter(|word| !word.is_empty() && *word != "default_permissions" && *word != "on\\")
            .collect();
        assert!(words.len() > 20, "{words:?}");
        for word in words {
            assert!(MOUNT_HELP.contains(word), "{word}");
        }
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let verbs = command.get_subcommands();
            for command in std::iter::once(command).chain(verbs) {
                let help = command.clone().render_long_help().to_string();
                assert!(help.contains("Example"), "{}", command.get_name());
            }
        }
    }
}
