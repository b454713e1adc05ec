//! `bilayer image`: makes images, and volumes from them, on this machine or another one.

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
use crate::cli::session::{Access, Session, unexpected_outcome};
use crate::cli::views::{self, DeleteArgs, ListArgs};
use crate::control::directory::DirectoryId;
use crate::control::paths;
use crate::control::request::{Kind, Operation, Passphrase, PathBytes};
use crate::control::response::{BytesDone, Discard, Outcome, Receiver};
use crate::daemon::create::NewVolumeDirectory;
use crate::daemon::new_keystore::NewKeystore;
use crate::daemon::{options, size};
use crate::diagnostics::UserError;
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
    /// Of this snapshot [default: of the live contents]
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

/// Options of a new volume; without them it has those of its source.
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

/// The customer key of the receiver of an image.
#[derive(Args, Debug)]
pub(in crate::cli) struct ReceiverArgs {
    /// Customer key of the receiver; its public half is enough [default: that of the source]
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

/// Runs a subcommand.
///
/// # Errors
/// An argument is wrong, the volume cannot be opened, or the operation fails.
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

fn create(args: CreateArgs) -> Result<(), UserError> {
    let mut session = Session::open(&args.volume, Access::Write, &args.open.keys()?)?;
    let operation = Operation::Create {
        kind: Kind::Image,
        name: args.name,
        from: args.from,
        description: args.description,
    };
    let made = match session.ask(&operation, &mut Discard)? {
        Outcome::Created(made) => made,
        other => return Err(unexpected_outcome(&operation, &other)),
    };
    session.close()?;
    if args.json {
        return print_json(&made);
    }
    print(&format!("image {} made\n", format::printable(&made.name)))
}

impl ReceiverArgs {
    /// The URI of the receiver's customer key, if an option names it.
    fn uri(&self) -> Result<Option<String>, UserError> {
        Ok(named_key(self.customer_key.as_deref())?.map(|uri| uri.to_string()))
    }

    /// The source of that key's passphrase.
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
    /// The new volume's platform keystore, if an option names it.
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
    let keystore = args.new.keystore(&args.open)?;
    let operation = Operation::Deploy {
        image: args.name.clone(),
        target: PathBytes::of(&target),
        customer_key: args.new.key.uri()?,
        passphrase: args.new.key.passphrase(&args.open)?,
        size_bytes: size::size_option(args.new.size.as_deref())?,
        keystore: keystore.as_deref().map(PathBytes::of),
    };
    let new_keystore = keystore.as_deref().map(NewKeystore::watch);
    let mut session = Session::open(&args.volume, Access::Write, &args.open.keys()?)?;
    refuse_inside(&session, &target, &operation)?;
    // A signal is an error of the operation, so that an incomplete volume is removed.
    let _watch = Watch::begin();
    let progress = Progress::start("deploying", None);
    let outcome = session.ask(&operation, &mut Bar(&progress));
    let made = match outcome {
        Ok(Outcome::Deployed(made)) => Ok((progress.finish(made.bytes), made)),
        Ok(other) => Err(unexpected_outcome(&operation, &other)),
        Err(error) => Err(error),
    };
    let closed = session.close();
    let (took, made) = made?;
    closed?;
    new_keystore.into_iter().for_each(NewKeystore::announce);
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

/// Adds the duration and the throughput to a report.
fn with_rate(report: &impl Serialize, took: Took) -> Result<Value, UserError> {
    let mut value = serde_json::to_value(report)
        .map_err(|error| UserError::io("cannot print the report", &error.into()))?;
    value["milliseconds"] = took.milliseconds().into();
    value["bytes_per_second"] = took.bytes_per_second().into();
    Ok(value)
}

/// Refuses a new volume inside its own source: the next image would contain it, and the source's
/// daemon would wait for itself while it creates it.
fn refuse_inside(session: &Session, target: &Path, operation: &Operation) -> Result<(), UserError> {
    let parent = target
        .ancestors()
        .find_map(|dir| std::fs::canonicalize(dir).ok());
    let Some(parent) = parent else {
        return Ok(());
    };
    let device = std::fs::metadata(&parent)
        .ok()
        .map(|metadata| metadata.dev());
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
        return Err(UserError::usage(
            "--json and the image cannot both be written to standard output",
        )
        .with_hint("name a file for the image, or leave --json out"));
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
    let mut session = Session::open(&args.volume, Access::Read, &args.open.keys()?)?;
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
        Ok(other) => Err(unexpected_outcome(&operation, &other)),
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

/// Writes an export to a temporary file that only its owner can read, and renames it when it is
/// complete and on disk. A path that is no plain file (`/dev/stdout`, a pipe) is written to
/// directly.
fn stream_to_file(
    session: &mut Session,
    operation: &Operation,
    path: &Path,
    progress: &Progress,
) -> Result<Outcome, UserError> {
    let failed =
        |error: io::Error| UserError::io(format_args!("cannot write {}", path.display()), &error);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Ok(metadata) if !metadata.is_file() => {
            let file = owned::open_to_write(path);
            let mut file = file.map_err(failed)?;
            return stream(session, operation, &mut file, progress);
        }
        _ => {}
    }
    // A link that others may have created is replaced by the file; a link of our own is followed.
    let path = match std::fs::canonicalize(path) {
        Ok(target) if owned::is_controlled_by_us(path) => target,
        _ => std::path::absolute(path).map_err(failed)?,
    };
    let parent = path.parent().unwrap_or(Path::new("/"));
    // Created with mode 0600, and removed if anything fails, or a signal arrives, before the
    // rename.
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

/// Fails if a signal has arrived.
fn check_interrupted() -> io::Result<()> {
    interrupt::arrived().map_or(Ok(()), |_| Err(interrupt::interrupted()))
}

/// Shows the progress of an operation.
struct Bar<'a>(&'a Progress);

impl Receiver for Bar<'_> {
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
    let new_keystore = NewKeystore::watch(&options.keystore);
    let mut from = BufReader::with_capacity(1 << 20, source(&args.file)?);
    // A signal is an error of the import, so that an incomplete volume is removed.
    let _watch = Watch::begin();
    audit::set_volume(&target);
    let new_directory = NewVolumeDirectory::claim(&target, doing())
        .inspect_err(|error| Record::new("import-image").refused(&error.message))?;
    let progress = Progress::start("importing", None);
    let made = image::import(&mut from, new_directory.store(), &options, &progress)
        .map_err(|error| UserError::image(doing(), &error))?;
    new_directory.keep();
    new_keystore.announce();
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

/// Opens the file to import, or standard input.
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
    // Not through the buffer of `Stdin`: `wait_readable` does not see bytes that are already in it.
    let file = standard.as_fd().try_clone_to_owned().map_err(failed)?;
    Ok(Source(File::from(file)))
}

/// A file or a pipe. Reading from it fails when a signal arrives.
struct Source(File);

impl Read for Source {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        interrupt::wait_readable(self.0.as_fd())?;
        self.0.read(bytes)
    }
}

impl KeystoreArg {
    /// The directory of the platform keystore, if an option names it.
    fn named(&self) -> Result<Option<PathBuf>, UserError> {
        let named = self.platform_keystore.as_deref();
        named.map(paths::absolute).transpose()
    }
}
