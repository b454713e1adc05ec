//! `bilayer image`: making images, and volumes of them, here or on another machine.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use crate::audit::{self, Record};
use crate::cli::args::{KeystoreArg, OpenArgs, passphrase_source};
use crate::cli::output::format;
use crate::cli::output::progress::{Progress, Took};
use crate::cli::output::{print, print_error, print_json};
use crate::cli::session::Session;
use crate::cli::views::{self, DeleteArgs, ListArgs};
use crate::control::directory::DirectoryId;
use crate::control::paths;
use crate::control::report::ViewReport;
use crate::control::request::{Kind, Operation, Passphrase, PathBytes};
use crate::control::response::{BytesDone, ChangeReport, Discard, Outcome, Receiver};
use crate::control::wire::VERSION_HINT;
use crate::daemon::create::NewVolumeDirectory;
use crate::daemon::{options, size};
use crate::diagnostics::{ExitCode, UserError};
use crate::image::{self, ImportOptions};
use crate::keys::{KeyUri, PassphraseSource};
use crate::sys::interrupt::{self, Watch};
use crate::sys::owned;

/// Stands for standard input or output.
const STANDARD: &str = "-";

/// `bilayer image …`
#[derive(Subcommand, Debug)]
pub(in crate::cli) enum ImageCommand {
    /// Make an image of a volume, or of one of its snapshots
    #[command(
        after_help = "Example:\n  bilayer image create /srv/vault base --description 'before the \
             first user'"
    )]
    Create(CreateArgs),
    /// List images, oldest first
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  bilayer image list /srv/vault"
    )]
    List(ListArgs),
    /// Delete images; volumes that were deployed from them stay
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  bilayer image delete /srv/vault base"
    )]
    Delete(DeleteArgs),
    /// Make an independent volume of an image, under both layers
    ///
    /// Under the customer key and the platform keystore of the source it shares the source's sealed
    /// bytes. Under any other key or keystore everything is sealed anew on the way: no data key of
    /// the source leaves.
    #[command(after_help = "Examples:\n  \
        bilayer image deploy /srv/vault base /srv/copy\n  \
        bilayer image deploy /srv/vault base /srv/copy --customer-key file:/keys/other.pem")]
    Deploy(DeployArgs),
    /// Write an image to a file, as one sealed stream for another machine
    ///
    /// Everything is sealed anew, under keys that are drawn for this stream: whoever can open it
    /// has the image and nothing else of the volume.
    #[command(after_help = "Examples:\n  \
        bilayer image export /srv/vault base base.bilayer --transport-passphrase-file p\n  \
        bilayer image export /srv/vault base - | ssh there bilayer image import - /srv/copy")]
    Export(ExportArgs),
    /// Make a volume of an exported image
    #[command(
        after_help = "Example:\n  bilayer image import base.bilayer /srv/copy \
             --transport-passphrase-file p"
    )]
    Import(ImportArgs),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct CreateArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// Name of the image
    name: String,
    /// Of this snapshot [default: of the present]
    #[arg(long, value_name = "SNAPSHOT")]
    from: Option<String>,
    /// What it is
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct DeployArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// The image
    name: String,
    /// Directory of the new volume: made if missing, empty otherwise; on the filesystem of the
    /// source nothing is copied
    new_volume: PathBuf,
    #[command(flatten)]
    new: NewArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// What a new volume can have of its own.
#[derive(Args, Debug)]
pub(in crate::cli) struct NewArgs {
    #[command(flatten)]
    key: ReceiverArgs,
    /// Platform keystore of the new volume; made where missing [default: that of the source]
    #[arg(long, value_name = "DIR")]
    new_platform_keystore: Option<PathBuf>,
    /// Largest size of the contents, in bytes or as 10G [default: that of the source]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    size: Option<String>,
}

/// Whose key it is sealed for.
#[derive(Args, Debug)]
pub(in crate::cli) struct ReceiverArgs {
    /// Customer key of whoever gets it; its public half is enough [default: that of the source]
    #[arg(long, value_name = "URI")]
    customer_key: Option<String>,
    /// File whose first line is the passphrase of that key [default: --passphrase-file]
    #[arg(long, value_name = "FILE", requires = "customer_key")]
    customer_key_passphrase_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ExportArgs {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// The image
    name: String,
    /// File to write, or - for standard output
    file: PathBuf,
    /// File whose first line is a passphrase under which the platform's key travels [default: it
    /// travels under the platform keystore, which the other machine must have]
    #[arg(long, value_name = "FILE")]
    transport_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    key: ReceiverArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ImportArgs {
    /// File to read, or - for standard input
    file: PathBuf,
    /// Directory of the new volume: made if missing, empty otherwise
    new_volume: PathBuf,
    /// File whose first line is the passphrase that the image was exported under
    #[arg(long, value_name = "FILE")]
    transport_passphrase_file: Option<PathBuf>,
    /// Customer key that the image is under, with its private half
    #[arg(long, value_name = "URI")]
    customer_key: Option<String>,
    /// Customer key of the new volume [default: that of the image]
    #[arg(long, value_name = "URI")]
    new_customer_key: Option<String>,
    /// Largest size of the contents, in bytes or as 10G [default: that of the source]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    size: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs one of them.
///
/// # Errors
/// An argument is wrong, or the operation fails.
pub(crate) fn run(command: ImageCommand) -> Result<(), UserError> {
    match command {
        ImageCommand::Create(args) => create(args),
        ImageCommand::List(args) => views::list(Kind::Image, &args),
        ImageCommand::Delete(args) => views::delete(Kind::Image, &args),
        ImageCommand::Deploy(args) => deploy(&args),
        ImageCommand::Export(args) => export(&args),
        ImageCommand::Import(args) => import(&args),
    }
}

fn unexpected(operation: &Operation, outcome: &Outcome) -> UserError {
    UserError::new(
        ExitCode::System,
        format!("{}: unexpected answer {outcome:?}", operation.doing()),
    )
    .with_hint(VERSION_HINT)
}

fn create(args: CreateArgs) -> Result<(), UserError> {
    let mut session = Session::open(&args.volume, true, &args.open.keys()?)?;
    let operation = Operation::Create {
        kind: Kind::Image,
        name: args.name,
        from: args.from,
        description: args.description,
    };
    let made = match session.ask(&operation, &mut Discard)? {
        Outcome::Created(made) => made,
        other => return Err(unexpected(&operation, &other)),
    };
    session.close()?;
    if args.json {
        return print_json(&made);
    }
    print(&format!("image {} made\n", format::printable(&made.name)))
}

impl ReceiverArgs {
    /// The receiver's customer key.
    fn uri(&self) -> Result<Option<String>, UserError> {
        Ok(named_key(self.customer_key.as_deref())?.map(|uri| uri.to_string()))
    }

    /// Its passphrase.
    fn passphrase(&self, open: &OpenArgs) -> Result<Passphrase, UserError> {
        let source = match &self.customer_key_passphrase_file {
            Some(path) => PassphraseSource::File(paths::absolute(path)?),
            None => passphrase_source(&open.passphrase)?,
        };
        Ok(match source {
            PassphraseSource::File(path) => Passphrase::File(PathBytes::of(&path)),
            PassphraseSource::Prompt => Passphrase::Prompt,
            PassphraseSource::None | PassphraseSource::Descriptor(_) => Passphrase::None,
        })
    }
}

impl NewArgs {
    /// The new volume's platform keystore, if an option says so.
    fn keystore(&self, open: &OpenArgs) -> Result<Option<PathBuf>, UserError> {
        match &self.new_platform_keystore {
            Some(path) => paths::absolute(path).map(Some),
            None => open.keystore.named(),
        }
    }
}

fn named_key(uri: Option<&str>) -> Result<Option<KeyUri>, UserError> {
    let directory = paths::working_directory()?;
    uri.map(|uri| options::key_uri(uri, &directory)).transpose()
}

fn deploy(args: &DeployArgs) -> Result<(), UserError> {
    let target = paths::absolute(&args.new_volume)?;
    let operation = Operation::Deploy {
        image: args.name.clone(),
        target: PathBytes::of(&target),
        customer_key: args.new.key.uri()?,
        passphrase: args.new.key.passphrase(&args.open)?,
        size_bytes: size::size_option(args.new.size.as_deref())?,
        keystore: args.new.keystore(&args.open)?.as_deref().map(PathBytes::of),
    };
    let mut session = Session::open(&args.volume, true, &args.open.keys()?)?;
    refuse_inside(&session, &target, &operation)?;
    // What was made of the volume goes if it does not become one, whatever the reason.
    let _watch = Watch::begin();
    let progress = Progress::start("deploying", None);
    let outcome = session.ask(&operation, &mut Bar(&progress));
    let made = match outcome {
        Ok(Outcome::Deployed(made)) => Ok((progress.finish(made.bytes), made)),
        Ok(other) => Err(unexpected(&operation, &other)),
        Err(error) => Err(error),
    };
    let closed = session.close();
    let (took, made) = made?;
    closed?;
    if args.json {
        return print_json(&with_rate(&made, took)?);
    }
    let methods = [
        (made.linked, "linked"),
        (made.reflinked, "reflinked"),
        (made.copied, "copied"),
        (made.resealed, "sealed anew"),
    ];
    let methods = methods.iter().filter(|(count, _)| *count > 0);
    let methods: String = methods
        .map(|(count, method)| format!(", {count} {method}"))
        .collect();
    print(&format!(
        "volume {} made in {}: {took}{methods}\n",
        made.volume,
        target.display()
    ))
}

/// A report with how long it took and how fast it was.
fn with_rate(report: &impl Serialize, took: Took) -> Result<Value, UserError> {
    let mut value = serde_json::to_value(report)
        .map_err(|error| UserError::io("cannot print the report", &error.into()))?;
    value["milliseconds"] = took.milliseconds().into();
    value["bytes_per_second"] = took.bytes_per_second().into();
    Ok(value)
}

/// A volume within its own source would be in the next image of it, and in the way of the daemon
/// that makes it.
fn refuse_inside(session: &Session, target: &Path, operation: &Operation) -> Result<(), UserError> {
    let parent = target
        .ancestors()
        .find_map(|dir| std::fs::canonicalize(dir).ok());
    let Some(parent) = parent else {
        return Ok(());
    };
    let device = std::fs::metadata(&parent).ok().map(|found| found.dev());
    let in_mount = session.mount.is_some() && session.mount == device;
    let in_volume = session.directory.is_some()
        && parent
            .ancestors()
            .any(|dir| DirectoryId::of_path(dir).ok() == session.directory);
    if in_volume || in_mount {
        return Err(
            UserError::usage(format!("{}: that is inside its source", operation.doing()))
                .with_hint("choose a directory elsewhere"),
        );
    }
    Ok(())
}

fn export(args: &ExportArgs) -> Result<(), UserError> {
    let standard = args.file == Path::new(STANDARD);
    if standard && args.json {
        return Err(
            UserError::usage("--json and the image cannot both go to standard output")
                .with_hint("name a file for the image, or leave --json out"),
        );
    }
    if standard && io::stdout().is_terminal() {
        return Err(UserError::usage("an image is not written to a terminal")
            .with_hint("name a file, or redirect the output"));
    }
    let passphrase_file = match &args.transport_passphrase_file {
        Some(path) => Some(PathBytes::of(&paths::absolute(path)?)),
        None => None,
    };
    let operation = Operation::Export {
        image: args.name.clone(),
        passphrase_file,
        customer_key: args.key.uri()?,
        passphrase: args.key.passphrase(&args.open)?,
    };
    let mut session = Session::open(&args.volume, false, &args.open.keys()?)?;
    let progress = Progress::start("exporting", None);
    let outcome = if standard {
        stream(
            &mut session,
            &operation,
            &mut io::stdout().lock(),
            &progress,
        )
    } else {
        stream_to_file(&mut session, &operation, &args.file, &progress)
    };
    let made = match outcome {
        Ok(Outcome::Exported(made)) => Ok((progress.finish(made.bytes), made)),
        Ok(other) => Err(unexpected(&operation, &other)),
        Err(error) => Err(error),
    };
    let closed = session.close();
    let (took, made) = made?;
    closed?;
    if args.json {
        return print_json(&with_rate(&made, took)?);
    }
    let line = format!("image {} exported: {took}", format::printable(&args.name));
    if standard {
        print_error(&line);
        return Ok(());
    }
    print(&format!("{line}\n"))
}

fn stream(
    session: &mut Session,
    operation: &Operation,
    to: &mut dyn Write,
    progress: &Progress,
) -> Result<Outcome, UserError> {
    let mut stream = Stream { to, progress };
    let outcome = session.ask(operation, &mut stream)?;
    let flushed = stream.to.flush();
    flushed.map_err(|error| UserError::io(operation.doing(), &error))?;
    Ok(outcome)
}

/// Written aside, for its owner alone, and given its name when it is whole and on disk. A name that
/// is no plain file (`/dev/stdout`, a pipe) is written to as it is.
fn stream_to_file(
    session: &mut Session,
    operation: &Operation,
    path: &Path,
    progress: &Progress,
) -> Result<Outcome, UserError> {
    let failed =
        |error: io::Error| UserError::io(format_args!("cannot write {}", path.display()), &error);
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Ok(found) if !found.is_file() => {
            let file = owned::open_to_write(path);
            let mut file = file.map_err(failed)?;
            return stream(session, operation, &mut file, progress);
        }
        _ => {}
    }
    // A link that others may have put there gives way to the file; one of our own leads to it.
    let path = match std::fs::canonicalize(path) {
        Ok(found) if owned::is_controlled_by_us(path) => found,
        _ => std::path::absolute(path).map_err(failed)?,
    };
    let parent = path.parent().unwrap_or(Path::new("/"));
    // Made with mode 0600, and taken away if it does not get its name, whatever the reason.
    let watch = Watch::begin();
    let mut aside = tempfile::Builder::new()
        .prefix(".bilayer-export-")
        .tempfile_in(parent)
        .map_err(failed)?;
    let outcome = stream(session, operation, aside.as_file_mut(), progress)?;
    aside.as_file().sync_all().map_err(failed)?;
    aside.persist(&path).map_err(|error| failed(error.error))?;
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(failed)?;
    drop(watch);
    Ok(outcome)
}

struct Stream<'a> {
    to: &'a mut dyn Write,
    progress: &'a Progress,
}

impl Receiver for Stream<'_> {
    fn view(&mut self, _: ViewReport) -> io::Result<()> {
        Ok(())
    }

    fn change(&mut self, _: ChangeReport) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        check_interrupted()?;
        self.progress.add(bytes.len() as u64);
        self.to.write_all(bytes)
    }

    fn progress(&mut self, done: BytesDone) -> io::Result<()> {
        check_interrupted()?;
        if let Some(total) = done.total_bytes {
            self.progress.set_total(total);
        }
        Ok(())
    }
}

/// An error once a signal has come.
fn check_interrupted() -> io::Result<()> {
    interrupt::arrived().map_or(Ok(()), |_| Err(interrupt::interrupted()))
}

/// Shows how far it is.
struct Bar<'a>(&'a Progress);

impl Receiver for Bar<'_> {
    fn view(&mut self, _: ViewReport) -> io::Result<()> {
        Ok(())
    }

    fn change(&mut self, _: ChangeReport) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn progress(&mut self, done: BytesDone) -> io::Result<()> {
        check_interrupted()?;
        if let Some(total) = done.total_bytes {
            self.0.set_total(total);
        }
        self.0.set(done.bytes);
        Ok(())
    }
}

fn import(args: &ImportArgs) -> Result<(), UserError> {
    let target = paths::absolute(&args.new_volume)?;
    let doing = || {
        let (from, to) = (args.file.display(), target.display());
        format!("cannot import {from} to {to}")
    };
    let options = ImportOptions {
        customer_key: named_key(args.customer_key.as_deref())?,
        new_customer_key: named_key(args.new_customer_key.as_deref())?,
        passphrase: passphrase_source(&args.open.passphrase)?,
        export_passphrase: match &args.transport_passphrase_file {
            Some(path) => PassphraseSource::File(paths::absolute(path)?),
            None => PassphraseSource::Prompt,
        },
        size_bytes: size::size_option(args.size.as_deref())?,
        keystore: args.open.keystore.dir()?,
    };
    let mut from = BufReader::with_capacity(1 << 20, source(&args.file)?);
    // What was made of the volume goes if it does not become one, whatever the reason.
    let _watch = Watch::begin();
    audit::set_volume(&target);
    let new_directory = NewVolumeDirectory::claim(&target, doing())
        .inspect_err(|error| Record::new("import-image").refused(&error.message))?;
    let progress = Progress::start("importing", None);
    let made = image::import(&mut from, new_directory.store(), &options, &progress)
        .map_err(|error| UserError::image(doing(), &error))?;
    new_directory.keep();
    let took = progress.finish(made.bytes);
    if args.json {
        let report = json!({
            "volume": made.volume.to_string(),
            "inodes": made.inodes,
            "objects": made.objects,
            "bytes": made.bytes,
        });
        return print_json(&with_rate(&report, took)?);
    }
    print(&format!(
        "volume {} made in {}: {took}\n",
        made.volume,
        target.display()
    ))
}

/// What to read.
fn source(path: &Path) -> Result<Source, UserError> {
    let failed =
        |error: io::Error| UserError::io(format_args!("cannot read {}", path.display()), &error);
    if path != Path::new(STANDARD) {
        return File::open(path).map(Source).map_err(failed);
    }
    let standard = io::stdin();
    if standard.is_terminal() {
        return Err(UserError::usage("an image is not read from a terminal")
            .with_hint("name a file, or redirect the input"));
    }
    // Without the buffer of the standard library: what is in there is not waited for.
    let file = standard.as_fd().try_clone_to_owned().map_err(failed)?;
    Ok(Source(File::from(file)))
}

/// A file or a pipe that gives up waiting when a signal has come.
struct Source(File);

impl Read for Source {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        interrupt::wait_readable(self.0.as_fd())?;
        self.0.read(bytes)
    }
}

/// Where the platform keystore is, if an option says so.
impl KeystoreArg {
    fn named(&self) -> Result<Option<PathBuf>, UserError> {
        let named = self.platform_keystore.as_deref();
        named.map(paths::absolute).transpose()
    }
}
