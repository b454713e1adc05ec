//! `bilayer keystore`: the platform keys of this machine.
//!
//! The JSON of each command is one object with stable names; a name without a value is null.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::args::{KeystoreArg, PassphraseArg, passphrase_source};
use crate::cli::output::format::{count, local_time, path, printable, table};
use crate::cli::output::{print, print_json};
use crate::control::known_volumes::{
    RotatedVolume, VolumeState, directory_of, locate, rewrap_mounted,
};
use crate::control::paths;
use crate::diagnostics::{ExitCode, UserError};
use crate::keys::PlatformKeystore;
use crate::keys::keystore::{KnownVolume, ROTATION_AGE_DAYS};
use crate::keys::wrap::PlatformVersion;
use crate::sys::clock;

/// `bilayer keystore …`
#[derive(Subcommand, Debug)]
pub(in crate::cli) enum KeystoreCommand {
    /// Show the keystore: its versions, which volumes need them, its last backup
    #[command(after_help = "Example:\n  bilayer keystore status --json")]
    Status(ShowArgs),
    /// List every volume that the keystore knows, with directory, state and keys
    #[command(visible_alias = "ls", after_help = "Example:\n  bilayer keystore list")]
    List(ShowArgs),
    /// Make a new version of the platform keys, and wrap the keys of all volumes with it
    #[command(after_help = ROTATE_HELP)]
    Rotate(ShowArgs),
    /// Write everything in the keystore to one file, under a passphrase
    #[command(after_help = BACKUP_HELP)]
    Backup(BackupArgs),
    /// Restore a backup, here or on another machine, and merge it with what is there
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
}

const ROTATE_HELP: &str = "\
Mounted volumes are wrapped with the new version at once, while they are in use; others at their \
next\nmount for writing. An old version stays until no known volume needs it. Daemons do the same \
by\nthemselves when the version is 90 days old.\n\nA backup of the keystore from before lacks the \
new version: make another one. Keep the old one as\nlong as copies of volumes from before: only it \
opens them.\n\nExample:\n  bilayer keystore rotate && bilayer keystore backup --force \
/media/usb/keystore.backup";

const BACKUP_HELP: &str = "\
Without its keystore no volume can be opened: keep the file away from this machine, and the\n\
passphrase away from the file.\n\nExample:\n  bilayer keystore backup /media/usb/keystore.backup";

const RESTORE_HELP: &str = "\
Nothing that is there is lost: versions are united, and of two records of a volume the newer\n\
marks stay. A keystore with another id keeps its id and adopts the versions of the backup: it\n\
opens those volumes, and wraps their keys with its own version after its next rotation.\n\n\
Example:\n  bilayer \
keystore restore /media/usb/keystore.backup";

/// Arguments of `status`, `list` and `rotate`.
#[derive(Args, Debug)]
pub(in crate::cli) struct ShowArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keystore: KeystoreArg,
}

/// Arguments of `backup`.
#[derive(Args, Debug)]
pub(in crate::cli) struct BackupArgs {
    /// File to make
    file: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keystore: KeystoreArg,
    /// File whose first line is the passphrase of the backup [default: asked for twice]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Arguments of `restore`.
#[derive(Args, Debug)]
pub(in crate::cli) struct RestoreArgs {
    /// File that `backup` made
    file: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keystore: KeystoreArg,
    /// File whose first line is the passphrase of the backup [default: asked for]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Runs one of the commands.
///
/// # Errors
/// There is no keystore, it cannot be read or written, or a passphrase is missing or wrong.
pub(in crate::cli) fn run(command: KeystoreCommand) -> Result<(), UserError> {
    match command {
        KeystoreCommand::Status(args) => status(&args),
        KeystoreCommand::List(args) => list(&args),
        KeystoreCommand::Rotate(args) => rotate(&args),
        KeystoreCommand::Backup(args) => backup(&args),
        KeystoreCommand::Restore(args) => restore(&args),
    }
}

fn open(directory: &Path, doing: &str) -> Result<PlatformKeystore, UserError> {
    PlatformKeystore::open(directory).map_err(|error| UserError::key(doing, &error))
}

/// A path in JSON: parts that are not UTF-8 become U+FFFD.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn shown(directory: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path(directory.as_os_str().as_bytes())
}

/// RFC 3339, in UTC; `None` if the clock was not set at that time.
fn utc(secs: i64) -> Option<String> {
    let time = Timestamp::from_second(secs).ok();
    time.filter(|_| clock::is_set(secs))
        .map(|time| time.to_string())
}

fn local(secs: Option<i64>) -> String {
    let time = secs.and_then(|secs| Timestamp::from_second(secs).ok());
    time.map_or_else(|| "unknown".to_owned(), local_time)
}

#[derive(Serialize)]
struct StatusReport {
    directory: String,
    keystore: String,
    current_version: u32,
    created: Option<String>,
    rotation_age_days: i64,
    rotation_is_due: bool,
    versions: Vec<VersionReport>,
    volumes: usize,
    backup: Option<BackupReport>,
}

#[derive(Serialize)]
struct VersionReport {
    keystore: String,
    version: u32,
    current: bool,
    created: Option<String>,
    restored: Option<String>,
    needed_by: usize,
    exports: bool,
    /// Sealed to the machine's TPM.
    sealed: bool,
}

#[derive(Serialize)]
struct BackupReport {
    made: Option<String>,
    /// The keystore has nothing newer.
    complete: bool,
}

fn status(args: &ShowArgs) -> Result<(), UserError> {
    const DOING: &str = "cannot show the platform keystore";
    let directory = args.keystore.dir()?;
    let keystore = open(&directory, DOING)?;
    let failed = |error| UserError::key(DOING, &error);
    let known = keystore.volumes().map_err(failed)?;
    let created = keystore.current_created();
    let needs = |name: PlatformVersion| {
        let needs = |known: &&KnownVolume| {
            let record = known.record.as_ref().ok();
            let platform = record.and_then(|record| record.platform.as_ref());
            platform.is_none_or(|platform| platform.contains(&name))
        };
        known.iter().filter(needs).count()
    };
    let versions = keystore
        .versions()
        .into_iter()
        .map(|version| VersionReport {
            keystore: hex::encode(version.name.keystore),
            version: version.name.version,
            current: version.name == keystore.current_name(),
            created: version.created.and_then(utc),
            restored: version.restored.and_then(utc),
            needed_by: needs(version.name),
            exports: version.is_exported,
            sealed: version.is_sealed,
        });
    let note = keystore.last_backup().unwrap_or_else(|error| {
        tracing::warn!(%error, "the note of the last backup cannot be read");
        None
    });
    let report = StatusReport {
        directory: text(&directory),
        keystore: keystore.id(),
        current_version: keystore.current_version(),
        created: created.and_then(utc),
        rotation_age_days: ROTATION_AGE_DAYS,
        rotation_is_due: keystore.is_due(clock::coarse_time().secs),
        versions: versions.collect(),
        volumes: known.len(),
        backup: note.as_ref().map(|note| BackupReport {
            made: utc(note.made),
            complete: note.is_complete(&keystore),
        }),
    };
    if args.json {
        return print_json(&report);
    }
    let due = match report.rotation_is_due {
        true => ", which is due for rotation",
        false => "",
    };
    let backup = match &note {
        None => "none: make one: bilayer keystore backup FILE".to_owned(),
        Some(note) if note.is_complete(&keystore) => local(Some(note.made)),
        Some(note) => format!(
            "{}, which lacks newer keys: make another: bilayer keystore backup FILE",
            local(Some(note.made))
        ),
    };
    let mut lines = vec![
        format!("platform keystore  {}", shown(&directory)),
        format!("id                 {}", report.keystore),
        format!(
            "current version    {}, made {}{due}",
            report.current_version,
            local(created)
        ),
        format!("last backup        {backup}"),
        format!("volumes            {}", report.volumes),
    ];
    let mut rows = vec![
        ["KEYSTORE", "VERSION", "MADE", "NEEDED BY"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (version, info) in report.versions.iter().zip(keystore.versions()) {
        let mut needed = count(version.needed_by as u64, "volume", "volumes");
        if version.exports {
            needed += ", exports";
        }
        if version.sealed {
            needed += ", sealed to the TPM";
        }
        if version.current {
            needed += ", new wraps";
        }
        rows.push(vec![
            version.keystore.clone(),
            version.version.to_string(),
            local(info.created),
            needed,
        ]);
    }
    lines.push(String::new());
    print(&(lines.join("\n") + "\n" + &table(&rows, &[1])))
}

#[derive(Serialize)]
struct ListReport {
    directory: String,
    keystore: String,
    volumes: Vec<VolumeReport>,
}

#[derive(Serialize)]
struct VolumeReport {
    volume: String,
    directory: Option<String>,
    state: &'static str,
    mounts: Vec<String>,
    /// The versions that wrap its keys; null if an older program wrote the record.
    platform_keys: Option<Vec<PlatformKeyReport>>,
    customer_key: Option<String>,
    last_used: Option<String>,
    /// Why the record cannot be read.
    error: Option<String>,
}

#[derive(Serialize)]
struct PlatformKeyReport {
    keystore: String,
    version: u32,
}

fn list(args: &ShowArgs) -> Result<(), UserError> {
    const DOING: &str = "cannot list the volumes of the platform keystore";
    let directory = args.keystore.dir()?;
    let keystore = open(&directory, DOING)?;
    let known = keystore
        .volumes()
        .map_err(|error| UserError::key(DOING, &error))?;
    let header = [
        "VOLUME",
        "STATE",
        "KEY",
        "CUSTOMER KEY",
        "LAST USED",
        "DIRECTORY",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut volumes = Vec::with_capacity(known.len());
    for known in known {
        let (report, row) = volume_report(&keystore, &known);
        volumes.push(report);
        rows.push(row);
    }
    if args.json {
        return print_json(&ListReport {
            directory: text(&directory),
            keystore: keystore.id(),
            volumes,
        });
    }
    print(&table(&rows, &[]))
}

/// The report of a volume for JSON, and its row for people.
fn volume_report(keystore: &PlatformKeystore, known: &KnownVolume) -> (VolumeReport, Vec<String>) {
    let (record, error) = match &known.record {
        Ok(record) => (Some(record), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let directory = directory_of(known);
    let located = locate(known);
    let platform = record.and_then(|record| record.platform.as_ref());
    let written = record.and_then(|record| record.written);
    let customer_key = record.and_then(|record| record.customer_key.clone());
    let mut versions: Vec<String> = platform
        .into_iter()
        .flatten()
        .map(
            |name| match name.keystore == keystore.current_name().keystore {
                true => name.version.to_string(),
                false => format!("{} of {}", name.version, hex::encode(name.keystore)),
            },
        )
        .collect();
    if versions.is_empty() {
        versions.push("not known".to_owned());
    }
    let state = match &error {
        Some(_) => "record damaged",
        None => located.state.name(),
    };
    let row = vec![
        known.volume.to_string(),
        state.to_owned(),
        versions.join(", "),
        customer_key
            .as_deref()
            .map_or_else(|| "none".to_owned(), printable),
        local(written),
        directory.map_or_else(|| "not known".to_owned(), shown),
    ];
    let report = VolumeReport {
        volume: known.volume.to_string(),
        directory: directory.map(text),
        state,
        mounts: located.mounts.iter().map(|dir| text(dir)).collect(),
        platform_keys: platform.map(|names| names.iter().map(key_report).collect()),
        customer_key,
        last_used: written.and_then(utc),
        error,
    };
    (report, row)
}

fn key_report(name: &PlatformVersion) -> PlatformKeyReport {
    PlatformKeyReport {
        keystore: hex::encode(name.keystore),
        version: name.version,
    }
}

#[derive(Serialize)]
struct RotateReport {
    directory: String,
    keystore: String,
    current_version: u32,
    volumes: Vec<RotatedReport>,
    dropped_versions: Vec<PlatformKeyReport>,
}

#[derive(Serialize)]
struct RotatedReport {
    volume: String,
    directory: Option<String>,
    state: &'static str,
    /// `done`, `next mount` or `failed`.
    rewrap: &'static str,
    error: Option<String>,
}

fn rotate(args: &ShowArgs) -> Result<(), UserError> {
    const DOING: &str = "cannot rotate the platform keystore";
    let directory = args.keystore.dir()?;
    let failed = |error| UserError::key(DOING, &error);
    let keystore = PlatformKeystore::rotate(&directory).map_err(failed)?;
    let version = keystore.current_version();
    let volumes = rewrap_mounted(&keystore).map_err(failed)?;
    let dropped = keystore.drop_unneeded_versions().map_err(failed)?;
    let failures = volumes
        .iter()
        .filter(|volume| outcome(volume).0 == "failed")
        .count();
    if args.json {
        let reports = volumes.iter().map(|volume| {
            let (rewrap, error) = outcome(volume);
            RotatedReport {
                volume: volume.volume.clone(),
                directory: volume.directory.as_deref().map(text),
                state: volume.state.name(),
                rewrap,
                error,
            }
        });
        print_json(&RotateReport {
            directory: text(&directory),
            keystore: keystore.id(),
            current_version: version,
            volumes: reports.collect(),
            dropped_versions: dropped.iter().map(key_report).collect(),
        })?;
    } else {
        print(&rotate_text(&directory, version, &volumes, &dropped))?;
    }
    match failures {
        0 => Ok(()),
        _ => Err(UserError::new(
            ExitCode::System,
            format!(
                "platform key version {version} was made, but {} not wrapped with it yet",
                match failures {
                    1 => "1 mounted volume is".to_owned(),
                    _ => format!("{failures} mounted volumes are"),
                }
            ),
        )
        .with_hint("they open as before; their daemons try again within ten minutes")),
    }
}

fn outcome(volume: &RotatedVolume) -> (&'static str, Option<String>) {
    match (&volume.rewrapped, volume.state) {
        (Some(Ok(())), _) => ("done", None),
        (Some(Err(error)), _) => ("failed", Some(error.message.clone())),
        (None, VolumeState::InUse) => {
            let why = "the process that has it open cannot be asked";
            ("next mount", Some(why.to_owned()))
        }
        (None, _) => ("next mount", None),
    }
}

fn rotate_text(
    directory: &Path,
    version: u32,
    volumes: &[RotatedVolume],
    dropped: &[PlatformVersion],
) -> String {
    let mut lines = vec![format!(
        "platform key version {version} made in {}",
        shown(directory)
    )];
    for volume in volumes {
        let name = match &volume.directory {
            Some(directory) => shown(directory),
            None => volume.volume.clone(),
        };
        lines.push(match outcome(volume) {
            ("done", _) => format!("{name}: wrapped with it"),
            ("failed", error) => {
                format!(
                    "{name}: not wrapped with it: {}",
                    printable(&error.unwrap_or_default())
                )
            }
            (_, _) => format!("{name}: will be wrapped with it at its next mount for writing"),
        });
    }
    for name in dropped {
        lines.push(format!(
            "platform key version {name} dropped: nothing needs it"
        ));
    }
    lines.push("make a new backup: bilayer keystore backup FILE".to_owned());
    lines.join("\n") + "\n"
}

#[derive(Serialize)]
struct BackedUpReport {
    file: String,
    keystore: String,
    current_version: u32,
    versions: usize,
    volumes: usize,
}

fn backup(args: &BackupArgs) -> Result<(), UserError> {
    let directory = args.keystore.dir()?;
    let file = paths::absolute(&args.file)?;
    let source = passphrase_source(&PassphraseArg {
        passphrase_file: args.passphrase_file.clone(),
    })?;
    let doing = || {
        format!(
            "cannot back up the platform keystore {}",
            directory.display()
        )
    };
    let made = PlatformKeystore::backup(&directory, &file, &source, args.force)
        .map_err(|error| UserError::key(doing(), &error))?;
    if args.json {
        return print_json(&BackedUpReport {
            file: text(&file),
            keystore: made.keystore,
            current_version: made.current_version,
            versions: made.versions,
            volumes: made.volumes,
        });
    }
    print(&format!(
        "{} and the records of {} in {}\n",
        count(made.versions as u64, "version", "versions"),
        count(made.volumes as u64, "volume", "volumes"),
        shown(&file)
    ))
}

#[derive(Serialize)]
struct RestoredReport {
    directory: String,
    /// The keystore's id in the backup.
    keystore: String,
    made: Option<String>,
    is_new: bool,
    /// The keystore here has another id, and adopted the versions.
    adopted: bool,
    versions_added: usize,
    versions_repaired: usize,
    records_added: usize,
    records_updated: usize,
}

fn restore(args: &RestoreArgs) -> Result<(), UserError> {
    let directory = args.keystore.dir()?;
    let file = paths::absolute(&args.file)?;
    let source = passphrase_source(&PassphraseArg {
        passphrase_file: args.passphrase_file.clone(),
    })?;
    let doing = || {
        format!(
            "cannot restore the platform keystore {}",
            directory.display()
        )
    };
    let done = PlatformKeystore::restore(&directory, &file, &source)
        .map_err(|error| UserError::key(doing(), &error))?;
    if args.json {
        return print_json(&RestoredReport {
            directory: text(&directory),
            keystore: done.keystore,
            made: utc(done.made),
            is_new: done.is_new,
            adopted: done.is_adopted,
            versions_added: done.versions_added,
            versions_repaired: done.versions_repaired,
            records_added: done.records_added,
            records_updated: done.records_updated,
        });
    }
    let adopted = match done.is_adopted {
        true => ", which has another id and adopted them",
        false => "",
    };
    print(&format!(
        "{} and the records of {} added to {}{adopted}\n{} repaired, {} updated\n",
        count(done.versions_added as u64, "version", "versions"),
        count(done.records_added as u64, "volume", "volumes"),
        shown(&directory),
        count(done.versions_repaired as u64, "version", "versions"),
        count(done.records_updated as u64, "record", "records"),
    ))
}
