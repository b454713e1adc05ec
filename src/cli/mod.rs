//! The command line: `bilayer` and the helpers of mount(8).
//!
//! Each command is a module of `commands` that has its arguments and uses no other command. Code
//! that several commands share is in `args`, `session` and `views`. `output` prints.

use std::path::PathBuf;
use std::process;

use clap::error::ErrorKind as ClapError;
use clap::{CommandFactory, Parser, Subcommand};

mod args;
mod commands;
pub mod helper;
#[cfg(test)]
mod hints;
mod output;
mod retention;
mod session;
mod views;

use crate::daemon::log::{Log, Verbosity};
use crate::diagnostics::{ExitCode, UserError};
use crate::layers;
use crate::sys::interrupt;
use crate::sys::limits;
use crate::sys::memory::disable_core_dumps;
use commands::audit::{self, AuditArgs};
use commands::check::{self, CheckArgs};
use commands::create::{self, CreateArgs};
use commands::generate;
use commands::image::{self, ImageCommand};
use commands::key::{self, KeyCommand};
use commands::keygen::{self, KeygenArgs};
use commands::keystore::{self, KeystoreCommand};
use commands::mount::{self, MOUNT_HELP, MountArgs};
use commands::salvage::{self, SalvageArgs};
use commands::snapshot::{self, SnapshotCommand};
use commands::status::{self, InspectArgs, StatusArgs};
use commands::unmount::{self, UnmountArgs};
use output::print_error;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 usage, 2 no such volume, mount, snapshot or image, 3 in use,
4 key missing or wrong, 5 damaged, not authentic or too new, 6 the operating system refused.
`mount` has those of mount(8): 0 done, 1 usage, 2 the operating system refused, 32 failed;
`check` those of fsck(8).";

/// A filesystem that keeps everything it stores under two independent layers of encryption.
#[derive(Parser, Debug)]
#[command(name = "bilayer", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a volume: a directory that holds one encrypted filesystem
    #[command(
        after_help = "Examples:\n  bilayer create /srv/vault --customer-key file:/media/key.pem\n  \
        bilayer create /srv/vault --customer-key 'pkcs11:token=NAME;object=LABEL'\n  \
        bilayer create /srv/vault --customer-key openbao:https://bao.example:8200/transit/vault\n  \
        bilayer create /srv/vault --customer-key azure-kv:https://NAME.vault.azure.net/keys/vault"
    )]
    Create(CreateArgs),
    /// Mount a volume
    #[command(
        after_help = "Example:\n  bilayer mount --create ~/vault ~/private\n\n\
        In /etc/fstab:\n  /srv/vault /mnt/vault bilayer \
        rw,nofail,customer_key=file:/etc/keys/k.pem 0 0",
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
        On a mounted volume plain tools do too: mkdir /mnt/.snapshots/NAME takes one, rmdir drops \
        it,\nmv renames it, and ls, cp, diff, rsync read it."
    )]
    Snapshot(SnapshotCommand),
    /// Make images, and volumes of them, here or on another machine
    #[command(
        subcommand,
        after_help = "Example:\n  bilayer image create /srv/vault base\n  \
        bilayer image deploy /srv/vault base /srv/copy"
    )]
    Image(ImageCommand),
    /// Show a volume: keys, layers, usage, where it is mounted
    #[command(
        after_help = "Examples:\n  bilayer status /srv/vault --json\n  bilayer status \
             /srv/vault@monday"
    )]
    Status(StatusArgs),
    /// Verify everything in a volume, mounted or not, and repair what can be repaired
    #[command(after_help = check::HELP)]
    Check(CheckArgs),
    /// Show who did what with volumes and keys, and verify that no record is missing
    #[command(after_help = audit::HELP)]
    Audit(AuditArgs),
    /// Show the claims of a volume's superblock, without any key
    #[command(after_help = "Example:\n  bilayer inspect /srv/vault")]
    Inspect(InspectArgs),
    /// Copy the readable data of a damaged volume to plain files
    #[command(after_help = salvage::HELP)]
    Salvage(SalvageArgs),
    /// Make a customer key: RSA, in a file that only its owner may read
    #[command(after_help = "Example:\n  bilayer keygen /media/key.pem --bits 4096")]
    Keygen(KeygenArgs),
    /// List, add, remove, rotate and test the customer keys of a volume
    #[command(subcommand, after_help = "Example:\n  bilayer key list /srv/vault")]
    Key(KeyCommand),
    /// Show, rotate, back up and restore the platform keys of this machine
    #[command(
        subcommand,
        after_help = "Example:\n  bilayer keystore backup /media/usb/keystore.backup"
    )]
    Keystore(KeystoreCommand),
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

/// The main function of `bilayer`.
pub fn run() -> process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_parse_error(&error),
    };
    let verbosity = match &cli.command {
        Command::Mount(args) if args.foreground => Verbosity::Everything,
        _ => Verbosity::Warnings,
    };
    let code_of: fn(&UserError) -> u8 = match cli.command {
        Command::Mount(_) => |error| error.code.for_mount(),
        Command::Check(_) => check::exit_code,
        _ => |error| error.code as u8,
    };
    let log = Log::start(verbosity);
    let code = execute(cli.command, &log).unwrap_or_else(|error| {
        let code = code_of(&error);
        print_error(&error.unless_asked_to_end());
        code
    });
    interrupt::exit_by_signal();
    process::ExitCode::from(code)
}

/// Prints the help, the version or the usage error, and returns the exit code: only the usage error
/// is a failure.
fn report_parse_error(error: &clap::Error) -> process::ExitCode {
    // A failure to print cannot be reported.
    let _ = error.print();
    match error.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => process::ExitCode::SUCCESS,
        _ if std::env::args_os()
            .nth(1)
            .is_some_and(|verb| verb == "check") =>
        {
            process::ExitCode::from(check::exit_code(&UserError::usage("")))
        }
        _ => process::ExitCode::from(ExitCode::Usage as u8),
    }
}

/// Runs a command and returns its exit code.
///
/// # Errors
/// The self-test or the command fails.
fn execute(command: Command, log: &Log) -> Result<u8, UserError> {
    prepare_process()?;
    match command {
        Command::Check(args) => return check::run(&args),
        Command::Create(args) => create::run(args),
        Command::Mount(args) => mount::run(args, log),
        Command::Unmount(args) => unmount::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Inspect(args) => status::run_inspect(&args),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Image(command) => image::run(command),
        Command::Salvage(args) => salvage::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Key(command) => key::run(command),
        Command::Keystore(command) => keystore::run(command),
        Command::Generate { dir } => generate::generate(Cli::command(), &dir),
    }?;
    Ok(ExitCode::Done as u8)
}

/// Prepares every process that may hold keys: no core dumps, and a self-test of both layers.
fn prepare_process() -> Result<(), UserError> {
    limits::keep_owner_mode_bits();
    limits::ignore_file_size_signal();
    if let Err(error) = disable_core_dumps() {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
    layers::self_test().map_err(|error| {
        UserError::new(
            ExitCode::Integrity,
            format!("the self-test failed: {error}"),
        )
        .with_hint("do not use this program on this machine; reinstall it or check the memory")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::daemon::options::RequestedOptions;

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
            "key passwd f",
            "key list v --json",
            "key add v --customer-key file:/k --label l --unlock-with file:/o",
            "key add v --customer-key file:/k --passphrase-file p --new-passphrase-file q",
            "key add v --recovery",
            "key add v --recovery --shares 2/3 --out f --label l",
            "key remove v 2",
            "key rotate v",
            "key rotate v --slot 2 --to file:/k --new-passphrase-file q",
            "key test v 2 --json --customer-key file:/k",
            "key set v file:/k",
            "key passwd f --passphrase-file p --new-passphrase-file q",
            "keystore status --json --platform-keystore d",
            "keystore list --json",
            "keystore ls",
            "keystore rotate --json --platform-keystore d --audit-log syslog",
            "keystore backup f --force --json --passphrase-file p",
            "keystore restore f --json --passphrase-file p --platform-keystore d",
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
            "keystore",
            "keystore backup",
            "keystore restore",
            "keystore rotate f",
            "snapshot",
            "snapshot create v n --prefix auto",
            "snapshot delete v",
            "check",
            "check v --jobs x",
            "key add v",
            "key add v --recovery --customer-key file:/k",
            "key add v --customer-key file:/k --shares 2/3",
            "key add v --recovery --shares 1/3",
            "key remove v",
            "key remove v x",
            "key rotate v --new-passphrase-file q",
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
    fn the_service_of_the_timer_runs_an_existing_command() {
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

    /// The options in the table of the module that parses them, such as `ro` and `workers=N`.
    fn parsed_options() -> BTreeSet<String> {
        let module = include_str!("../daemon/options/mod.rs");
        let rows = module
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `"));
        let cells = rows.filter_map(|row| Some(row.split_once(" | ")?.0.replace('`', "")));
        cells
            .flat_map(|cell| split_names(&cell.replace("\\|", "|")))
            .collect()
    }

    /// The options that a help text lists: the first column of the lines below "Options (-o):".
    fn listed_options(help: &str) -> BTreeSet<String> {
        let lines = help.lines().skip_while(|line| *line != "Options (-o):");
        lines
            .skip(1)
            .map_while(|line| line.strip_prefix("  "))
            .filter(|line| !line.starts_with(' '))
            .flat_map(|line| split_names(line.split("  ").next().unwrap_or_default()))
            .collect()
    }

    fn split_names(cell: &str) -> Vec<String> {
        let names = cell.split([',', ' ']).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    }

    #[test]
    fn parser_help_and_man_page_have_the_same_options() {
        let parsed = parsed_options();
        assert!(parsed.len() > 30, "{parsed:?}");
        assert_eq!(listed_options(MOUNT_HELP), parsed);
        let command = Cli::command().find_subcommand("mount").unwrap().clone();
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap().replace("\\-", "-");
        assert_eq!(listed_options(&page), parsed);
        for option in parsed {
            let known = RequestedOptions::parse_sloppy([&*option], Path::new("/"))
                .map_or(true, |(_, unknown)| unknown.is_empty());
            assert!(known, "{option}");
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
