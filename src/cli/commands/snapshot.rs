//! `bilayer snapshot`: takes, lists, compares, restores and deletes snapshots.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Component, Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use crate::cli::args::OpenArgs;
use crate::cli::output::format::{self, dated_name};
use crate::cli::output::{print, print_error, print_json};
use crate::cli::retention::Keep;
use crate::cli::session::{Access, Session, unexpected_outcome};
use crate::cli::views::{DeleteArgs, ListArgs, delete, list};
use crate::control::report::ViewReport;
use crate::control::request::{Kind, Operation, PathBytes};
use crate::control::response::{ChangeReport, Difference, Discard, Outcome, Receiver};
use crate::diagnostics::{ExitCode, UserError};

/// The hint for a wrong use of `--prune`.
const PRUNE_HINT: &str =
    "such as: bilayer snapshot create VOLUME --prefix NAME --prune --keep-daily N";
/// Limit on the snapshots that are named after the same second.
const DATED_NAMES_MAX: u32 = 1000;

/// `bilayer snapshot …`
#[derive(Subcommand, Debug)]
pub(in crate::cli) enum SnapshotCommand {
    /// Take a snapshot: at once, however large the volume is
    #[command(after_help = "Examples:\n  \
        bilayer snapshot create /srv/vault before-upgrade\n  \
        bilayer snapshot create /srv/vault\n  \
        bilayer snapshot create /srv/vault --prefix auto --prune --keep-hourly 24 --keep-daily 7")]
    Create(CreateArgs),
    /// List snapshots, oldest first, with what each holds alone (used) and shows (refers)
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  bilayer snapshot list /mnt --json"
    )]
    List(ListArgs),
    /// Delete snapshots; what no other one needs becomes free in the background
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  bilayer snapshot delete /mnt before-upgrade"
    )]
    Delete(DeleteArgs),
    /// Rename a snapshot
    #[command(after_help = "Example:\n  bilayer snapshot rename /mnt monday last-monday")]
    Rename(RenameArgs),
    /// Show which paths differ between two snapshots, or between one and the present
    #[command(
        after_help = "Lines begin with + for what is new, - for what is gone, M for what changed \
        (contents or attributes), R for what was renamed. The root is an empty \
        path.\n\nExample:\n  bilayer snapshot diff /mnt monday tuesday"
    )]
    Diff(DiffArgs),
    /// Take the volume, or one path of it, back to a snapshot
    #[command(
        after_help = "Newer snapshots stay. Of one path a copy is made that shares the stored \
        bytes and takes the place\nof what is there. When all of a mounted volume goes back, \
        programs that have a file open which changes\nhave to open it again.\n\nExamples:\n  \
        bilayer snapshot restore /mnt monday --path etc/fstab\n  \
        bilayer snapshot restore /mnt before-upgrade --yes"
    )]
    Restore(RestoreArgs),
    /// Delete the snapshots that no --keep option keeps
    #[command(
        after_help = "Each option keeps the newest snapshot of each of the last N hours (days, \
        ...) that have one; what any of them keeps stays. Days are those of the local time \
        zone.\n\nExample:\n  bilayer snapshot prune /mnt --prefix auto --keep-hourly 24 \
        --keep-daily 7 --dry-run"
    )]
    Prune(PruneArgs),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct CreateArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// Name of the snapshot, without a / or an @ in it [default: the time in UTC]
    #[arg(conflicts_with = "prefix")]
    name: Option<String>,
    /// Name it after the time, with this before it: PREFIX-2026-11-22T04-30-00Z
    #[arg(long)]
    prefix: Option<String>,
    /// Then delete those with this prefix that no --keep option keeps
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    keep: Keep,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RenameArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// Its name now
    name: String,
    /// Its name from now on
    new_name: String,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct DiffArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// A snapshot
    #[arg(value_name = "A")]
    from: String,
    /// A later one [default: the present]
    #[arg(value_name = "B")]
    to: Option<String>,
    /// One JSON object for each path, each on a line of its own
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RestoreArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// The snapshot
    name: String,
    /// Only this file or directory, by its path within the volume
    #[arg(long)]
    path: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct PruneArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    #[command(flatten)]
    keep: Keep,
    /// Look only at snapshots whose names begin with PREFIX and a hyphen
    #[arg(long)]
    prefix: Option<String>,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// One JSON object: what was kept, and what was deleted
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs a subcommand.
///
/// # Errors
/// An argument is wrong, the volume cannot be opened, or the operation fails.
pub(crate) fn run(command: SnapshotCommand) -> Result<(), UserError> {
    match command {
        SnapshotCommand::Create(args) => create(args),
        SnapshotCommand::List(args) => list(Kind::Snapshot, &args),
        SnapshotCommand::Delete(args) => delete(Kind::Snapshot, &args),
        SnapshotCommand::Rename(args) => rename(args),
        SnapshotCommand::Diff(args) => diff(args),
        SnapshotCommand::Restore(args) => restore(args),
        SnapshotCommand::Prune(args) => prune(&args),
    }
}

fn create(args: CreateArgs) -> Result<(), UserError> {
    // Checked before a snapshot is taken.
    if !args.prune && !args.keep.is_empty() {
        return Err(UserError::usage("--keep options need --prune").with_hint(PRUNE_HINT));
    }
    if args.prune && (args.prefix.is_none() || args.keep.is_empty()) {
        return Err(
            UserError::usage("--prune needs --prefix and at least one --keep option")
                .with_hint(PRUNE_HINT),
        );
    }
    let mut session = Session::open(&args.volume, Access::Write, &args.open.keys()?)?;
    let made = match args.name {
        Some(name) => take(&mut session, name)?,
        None => take_dated(&mut session, args.prefix.as_deref())?,
    };
    let mut pruned = Pruned::default();
    if args.prune {
        pruned = delete_unkept(&mut session, &args.keep, args.prefix.as_deref(), false)?;
    }
    session.close()?;
    if args.json {
        return print_json(&json!({ "snapshot": made, "deleted": pruned.deleted }));
    }
    let deleted = pruned.deleted.iter();
    let deleted: String = deleted
        .map(|name| format!("snapshot {} deleted\n", format::printable(name)))
        .collect();
    print(&format!(
        "snapshot {} taken\n{deleted}",
        format::printable(&made.name)
    ))
}

fn take(session: &mut Session, name: String) -> Result<ViewReport, UserError> {
    let operation = Operation::Create {
        kind: Kind::Snapshot,
        name,
        from: None,
        description: String::new(),
    };
    match session.ask(&operation, &mut Discard)? {
        Outcome::Created(made) => Ok(made),
        other => Err(unexpected_outcome(&operation, &other)),
    }
}

/// Takes a snapshot that is named after the current second, with a number appended if a snapshot of
/// that name exists.
fn take_dated(session: &mut Session, prefix: Option<&str>) -> Result<ViewReport, UserError> {
    let name = dated_name(prefix, Timestamp::now());
    let mut made = take(session, name.clone());
    for number in 2..DATED_NAMES_MAX {
        match &made {
            Err(error) if error.code == ExitCode::InUse => {
                made = take(session, format!("{name}-{number}"));
            }
            _ => break,
        }
    }
    made
}

fn rename(args: RenameArgs) -> Result<(), UserError> {
    let mut session = Session::open(&args.volume, Access::Write, &args.open.keys()?)?;
    let operation = Operation::Rename {
        kind: Kind::Snapshot,
        name: args.name,
        to: args.new_name,
    };
    session.ask(&operation, &mut Discard)?;
    session.close()
}

fn diff(args: DiffArgs) -> Result<(), UserError> {
    let mut session = Session::open(&args.volume, Access::Read, &args.open.keys()?)?;
    let operation = Operation::Diff {
        from: args.from,
        to: args.to,
    };
    let mut shown = ChangePrinter::new(BufWriter::new(io::stdout().lock()), args.json);
    let outcome = session.ask(&operation, &mut shown).map(drop);
    let flushed = shown.to.flush();
    let outcome = match (shown.failed.or(flushed.err()), outcome) {
        // A closed pipe (`| head`) is no failure.
        (Some(error), _) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        (Some(error), _) => Err(UserError::io("cannot write to standard output", &error)),
        (None, outcome) => outcome,
    };
    // Discards the buffer: dropping the writer would try to write it again.
    let _ = shown.to.into_parts();
    let closed = session.close();
    outcome.and(closed)
}

/// Prints differences as they arrive.
struct ChangePrinter<W: Write> {
    to: W,
    json: bool,
    /// The first failure to print.
    failed: Option<io::Error>,
}

impl<W: Write> ChangePrinter<W> {
    fn new(to: W, json: bool) -> Self {
        Self {
            to,
            json,
            failed: None,
        }
    }

    fn line(&mut self, line: impl Display) -> io::Result<()> {
        writeln!(self.to, "{line}").map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }
}

impl<W: Write> Receiver for ChangePrinter<W> {
    fn change(&mut self, change: ChangeReport) -> io::Result<()> {
        if self.json {
            let line = change_json(&change);
            return self.line(line);
        }
        let sign = match change.change {
            Difference::Added => '+',
            Difference::Removed => '-',
            Difference::Changed => 'M',
            Difference::Renamed => 'R',
        };
        let shown = |path: &PathBytes| {
            let slash = if change.directory { "/" } else { "" };
            format!("{}{slash}", format::path(&path.0))
        };
        let path = shown(&change.path);
        match &change.from {
            Some(from) => self.line(format_args!("{sign} {} -> {path}", shown(from))),
            None => self.line(format_args!("{sign} {path}")),
        }
    }
}

/// JSON has no bytes: a path that is not UTF-8 appears a second time, in hexadecimal digits.
fn change_json(change: &ChangeReport) -> serde_json::Value {
    let mut object = json!({ "change": change.change, "directory": change.directory });
    for (name, path) in [("path", Some(&change.path)), ("from", change.from.as_ref())] {
        let Some(path) = path else {
            continue;
        };
        object[name] = String::from_utf8_lossy(&path.0).into();
        if std::str::from_utf8(&path.0).is_err() {
            object[format!("{name}_bytes")] = hex::encode(&path.0).into();
        }
    }
    object
}

fn restore(args: RestoreArgs) -> Result<(), UserError> {
    let whole = args.path.as_deref().is_none_or(is_root);
    if whole && !args.yes {
        confirm(&args.volume, &args.name)?;
    }
    let mut session = Session::open(&args.volume, Access::Write, &args.open.keys()?)?;
    let operation = Operation::Restore {
        snapshot: args.name,
        path: args.path.as_deref().map(PathBytes::of),
    };
    let progress = crate::cli::output::progress::Progress::start("restoring", None);
    let outcome = session.ask(&operation, &mut Discard);
    drop(progress);
    let closed = session.close();
    outcome.and(closed)
}

/// True for the spellings of the root, such as `/` and `.`: the whole volume is restored.
fn is_root(path: &Path) -> bool {
    let mut components = path.components();
    components.all(|part| matches!(part, Component::RootDir | Component::CurDir))
}

/// Asks the user for confirmation. Without a terminal this is a usage error.
fn confirm(volume: &Path, name: &str) -> Result<(), UserError> {
    if !io::stdin().is_terminal() {
        return Err(UserError::usage(format!(
            "restoring all of {} needs --yes where there is no terminal to ask",
            volume.display()
        ))
        .with_hint("bilayer snapshot restore VOLUME NAME --yes"));
    }
    // If the question cannot be printed, the answer will not be yes.
    let _ = write!(
        io::stderr(),
        "Everything changed in {} since the snapshot {} will be lost. Restore it? [y/N] ",
        format::printable(&volume.to_string_lossy()),
        format::printable(name)
    );
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| UserError::io("cannot read the answer", &error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(UserError::usage("not restored")),
    }
}

/// The outcome of pruning: names of snapshots.
#[derive(Default)]
struct Pruned {
    kept: Vec<String>,
    deleted: Vec<String>,
}

fn prune(args: &PruneArgs) -> Result<(), UserError> {
    if args.keep.is_empty() {
        return Err(
            UserError::usage("no option says which snapshots to keep").with_hint(
                "name at least one of --keep-last, --keep-hourly, --keep-daily, --keep-weekly, \
             --keep-monthly, --keep-yearly",
            ),
        );
    }
    let access = match args.dry_run {
        true => Access::Read,
        false => Access::Write,
    };
    let mut session = Session::open(&args.volume, access, &args.open.keys()?)?;
    let pruned = delete_unkept(
        &mut session,
        &args.keep,
        args.prefix.as_deref(),
        args.dry_run,
    );
    let closed = session.close();
    let pruned = pruned.and_then(|pruned| closed.map(|()| pruned))?;
    if args.json {
        return print_json(&json!({
            "kept": pruned.kept,
            "deleted": pruned.deleted,
            "dry_run": args.dry_run,
        }));
    }
    let verb = match args.dry_run {
        true => "would be deleted",
        false => "deleted",
    };
    let lines = pruned.deleted.iter();
    let lines: String = lines
        .map(|name| format!("snapshot {} {verb}\n", format::printable(name)))
        .collect();
    print(&lines)
}

/// Deletes the snapshots that no rule keeps. Skips a snapshot that is in use or no longer exists:
/// another prune may run at the same time.
fn delete_unkept(
    session: &mut Session,
    keep: &Keep,
    prefix: Option<&str>,
    dry_run: bool,
) -> Result<Pruned, UserError> {
    let mut views = session.list(Kind::Snapshot)?;
    views.retain(|view| prefix.is_none_or(|prefix| has_prefix(&view.name, prefix)));
    let times: Option<Vec<Timestamp>> = views.iter().map(|view| view.created).collect();
    let times = times.ok_or_else(|| {
        UserError::new(
            ExitCode::System,
            "cannot prune: the times of the snapshots are not known",
        )
        .with_hint("prune as root, or as the user who mounted the volume")
    })?;
    let kept = keep.kept(&times, &TimeZone::system());
    let mut pruned = Pruned::default();
    for (view, kept) in views.into_iter().zip(kept) {
        if kept {
            pruned.kept.push(view.name);
            continue;
        }
        let operation = Operation::Delete {
            kind: Kind::Snapshot,
            name: view.name.clone(),
        };
        let deleted = match dry_run {
            true => Ok(Outcome::Nothing),
            false => session.ask(&operation, &mut Discard),
        };
        match deleted {
            Ok(_) => pruned.deleted.push(view.name),
            Err(error) if error.code == ExitCode::NotFound => {}
            Err(error) if error.code == ExitCode::InUse => {
                print_error(&error);
                pruned.kept.push(view.name);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(pruned)
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_hyphen() {
        assert!(has_prefix("auto-2026-11-22T04-30-00Z", "auto"));
        assert!(!has_prefix("automatic-2026", "auto"));
        assert!(!has_prefix("auto", "auto"));
        assert!(has_prefix("a-b-c", "a-b"));
    }

    #[test]
    fn differences_are_lines() {
        let change = |change, path: &[u8], from: Option<&[u8]>, directory| ChangeReport {
            change,
            path: PathBytes(path.to_vec()),
            from: from.map(|from| PathBytes(from.to_vec())),
            directory,
        };
        let changes = [
            change(Difference::Added, b"a b", None, true),
            change(Difference::Removed, b"x\ny", None, false),
            change(Difference::Changed, b"\xff", None, false),
            change(Difference::Renamed, b"new", Some(b"old"), true),
        ];
        let show = |json| {
            let mut shown = ChangePrinter::new(Vec::new(), json);
            for change in changes.clone() {
                shown.change(change).unwrap();
            }
            String::from_utf8(shown.to).unwrap()
        };
        let lines = "+ a b/\n- x\\012y\nM \\377\nR old/ -> new/\n";
        assert_eq!(show(false), lines);
        let json = show(true);
        let lines: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let expected = [
            json!({"change": "added", "directory": true, "path": "a b"}),
            json!({"change": "removed", "directory": false, "path": "x\ny"}),
            json!({
                "change": "changed", "directory": false, "path": "\u{fffd}", "path_bytes": "ff",
            }),
            json!({"change": "renamed", "directory": true, "path": "new", "from": "old"}),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_root_has_many_spellings() {
        for root in ["", "/", ".", "/.", "././/"] {
            assert!(is_root(Path::new(root)), "{root}");
        }
        for path in ["a", "/a", "./a", ".."] {
            assert!(!is_root(Path::new(path)), "{path}");
        }
    }
}
