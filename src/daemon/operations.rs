//! Operations on an open volume, for the daemon of a mounted volume and for a command that has
//! opened the volume itself.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::create::NewVolumeDirectory;
use crate::audit::{self, Record};
use crate::check::{CheckError, CheckOptions, CheckProgress, Report, Stage};
use crate::control::request::{Operation, PathBytes};
use crate::control::response::{BytesDone, DeployReport, ExportReport, Outcome, Receiver};
use crate::control::wire::CHUNK_BYTES;
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::Filesystem;
use crate::ids::VolumeId;
use crate::image::{DeployOptions, ExportOptions, Progress, Transport};
use crate::keys::{KeyUri, PassphraseSource};

/// Performs an operation and sends its intermediate responses to `to`.
///
/// # Errors
/// The operation or the receiver fails. The command ends with this error.
pub(crate) fn perform(
    filesystem: &Arc<Filesystem>,
    operation: &Operation,
    to: &mut dyn Receiver,
) -> Result<Outcome, UserError> {
    let failed = |error| UserError::view(operation.doing(), &error);
    match operation {
        Operation::List { kind } => {
            for view in filesystem.views((*kind).into()).map_err(failed)? {
                to.view(view.into())
                    .map_err(|error| receiver_failed(operation, &error))?;
            }
        }
        Operation::Create {
            kind,
            name,
            from,
            description,
        } => {
            let made = filesystem.create_view((*kind).into(), name, from.as_deref(), description);
            return Ok(Outcome::Created(made.map_err(failed)?.into()));
        }
        Operation::Delete { kind, name } => {
            filesystem
                .delete_view((*kind).into(), name)
                .map_err(failed)?;
        }
        Operation::Rename { kind, name, to } => {
            filesystem
                .rename_view((*kind).into(), name, to)
                .map_err(failed)?;
        }
        Operation::Diff { from, to: until } => {
            // Collected first, so that a slow receiver does not block snapshots.
            let mut changes = Vec::new();
            filesystem
                .diff_views(from, until.as_deref(), &mut |change| changes.push(change))
                .map_err(failed)?;
            for change in changes {
                to.change(change.into())
                    .map_err(|error| receiver_failed(operation, &error))?;
            }
        }
        Operation::Restore { snapshot, path } => {
            let path = path.as_ref().map(PathBytes::path);
            filesystem
                .restore(snapshot, path.as_deref())
                .map_err(failed)?;
        }
        Operation::ChangeSlots { change, consent } => {
            let changed = filesystem.volume().change_slots(change, consent);
            let slot = changed.map_err(|error| UserError::volume(operation.doing(), &error))?;
            return Ok(Outcome::Slot(slot.0));
        }
        Operation::RewrapPlatform { keystore, version } => {
            return rewrap_platform(filesystem, operation, keystore, *version);
        }
        Operation::Deploy { .. } => return deploy(filesystem, operation, to),
        Operation::Export { .. } => return export(filesystem, operation, to),
        Operation::Check { jobs, quick } => {
            let options = CheckOptions {
                jobs: *jobs,
                contents: !quick,
                ..CheckOptions::default()
            };
            let begin = Instant::now();
            let report = with_progress(to, &|state| filesystem.check(&options, state));
            let report = report.unwrap_or(Err(CheckError::Fault));
            audit_check(filesystem.volume().header().volume_id(), begin, &report);
            return send_findings(
                report.map_err(|error| UserError::check(operation.doing(), &error))?,
                to,
            );
        }
    }
    Ok(Outcome::Nothing)
}

/// Writes the audit record of a check: how many faults it has found.
pub(crate) fn audit_check(volume: VolumeId, begin: Instant, report: &Result<Report, CheckError>) {
    let mut audited = Record::new("check").volume(volume).since(begin);
    if let Ok(report) = report {
        let faults = report.faults().count() as u64 + report.omitted_faults;
        audited = audited.with("faults", faults);
    }
    audited.outcome(report);
}

fn rewrap_platform(
    filesystem: &Arc<Filesystem>,
    operation: &Operation,
    keystore: &str,
    version: u32,
) -> Result<Outcome, UserError> {
    let refused = |why: String| {
        let message = format!("{}: {why}", operation.doing());
        UserError::new(ExitCode::Key, message)
    };
    let own = filesystem.volume().keystore();
    if own.id() != keystore {
        let why = format!(
            "the daemon uses the platform keystore {}",
            own.directory().display()
        );
        return Err(refused(why).with_hint("rotate that keystore: --platform-keystore DIR"));
    }
    if filesystem.is_read_only() {
        return Ok(Outcome::ReadOnly);
    }
    filesystem
        .rewrap_platform()
        .map_err(|error| UserError::filesystem(operation.doing(), &error))?;
    match filesystem.volume().keystore().current_version() {
        current if current >= version => Ok(Outcome::Nothing),
        current => Err(
            refused(format!("the newest that the daemon sees is {current}"))
                .with_hint("see that both use the same directory: --platform-keystore DIR"),
        ),
    }
}

fn receiver_failed(operation: &Operation, error: &io::Error) -> UserError {
    UserError::io(operation.doing(), error)
}

fn deploy(
    filesystem: &Arc<Filesystem>,
    operation: &Operation,
    to: &mut dyn Receiver,
) -> Result<Outcome, UserError> {
    let Operation::Deploy {
        image,
        target,
        customer_key,
        passphrase,
        size_bytes,
        keystore,
    } = operation
    else {
        return Ok(Outcome::Nothing);
    };
    let customer_key = customer_key.as_deref().map(KeyUri::parse).transpose();
    let options = DeployOptions {
        customer_key: customer_key.map_err(|error| UserError::key(operation.doing(), &error))?,
        passphrase: passphrase.source(),
        size_bytes: *size_bytes,
        keystore: match keystore {
            Some(named) => named.path(),
            None => filesystem.volume().keystore().directory().to_path_buf(),
        },
    };
    let _about = audit::for_volume(&target.path());
    let directory = NewVolumeDirectory::claim(&target.path(), operation.doing())
        .inspect_err(|error| filesystem.refused_deployment(image).refused(&error.message))?;
    let made = with_progress(to, &|state| {
        filesystem.deploy_image(image, directory.store(), &options, state)
    });
    let made = made.ok_or_else(|| {
        let message = format!("{}: a thread failed", operation.doing());
        UserError::new(ExitCode::System, message).with_hint("see the log")
    })?;
    let made = made.map_err(|error| UserError::view(operation.doing(), &error))?;
    directory.keep();
    Ok(Outcome::Deployed(DeployReport {
        volume: made.volume.to_string(),
        inodes: made.inodes,
        objects: made.objects,
        linked: made.linked,
        reflinked: made.reflinked,
        copied: made.copied,
        resealed: made.resealed,
        bytes: made.bytes,
    }))
}

fn export(
    filesystem: &Arc<Filesystem>,
    operation: &Operation,
    to: &mut dyn Receiver,
) -> Result<Outcome, UserError> {
    let Operation::Export {
        image,
        passphrase_file,
        customer_key,
        passphrase,
    } = operation
    else {
        return Ok(Outcome::Nothing);
    };
    let customer_key = customer_key.as_deref().map(KeyUri::parse).transpose();
    let options = ExportOptions {
        transport: match passphrase_file {
            Some(path) => Transport::Passphrase(PassphraseSource::File(path.path())),
            None => Transport::Keystore,
        },
        customer_key: customer_key.map_err(|error| UserError::key(operation.doing(), &error))?,
        passphrase: passphrase.source(),
    };
    let state = WorkState::default();
    let stream = Stream {
        to,
        state: &state,
        total_sent: false,
    };
    let mut stream = BufWriter::with_capacity(CHUNK_BYTES, stream);
    let made = filesystem
        .export_image(image, &options, &mut stream, &state)
        .map_err(|error| UserError::view(operation.doing(), &error))?;
    stream
        .flush()
        .map_err(|error| receiver_failed(operation, &error))?;
    Ok(Outcome::Exported(ExportReport {
        export: made.export.to_string(),
        objects: made.objects,
        bytes: made.bytes,
    }))
}

/// Counters of the working threads, and whether they should stop.
#[derive(Debug, Default)]
pub(crate) struct WorkState {
    bytes: AtomicU64,
    /// One more than the total number of bytes; 0 while it is not known.
    total_plus_one: AtomicU64,
    cancelled: AtomicBool,
}

impl WorkState {
    fn bytes_done(&self) -> BytesDone {
        BytesDone {
            bytes: self.bytes.load(Ordering::Relaxed),
            total_bytes: self.total_plus_one.load(Ordering::Relaxed).checked_sub(1),
        }
    }
}

impl CheckProgress for WorkState {
    fn begin(&self, _: Stage, total_bytes: Option<u64>) {
        let total_plus_one = total_bytes.map_or(0, |total| total.saturating_add(1));
        self.bytes.store(0, Ordering::Relaxed);
        self.total_plus_one.store(total_plus_one, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Progress for WorkState {
    fn begin(&self, total_bytes: u64) {
        self.bytes.store(0, Ordering::Relaxed);
        self.total_plus_one
            .store(total_bytes.saturating_add(1), Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Runs `work` in a thread and sends its progress to the receiver. If sending fails, the work is
/// cancelled. `None`: the work panicked.
pub(crate) fn with_progress<T: Send>(
    to: &mut dyn Receiver,
    work: &(dyn Fn(&WorkState) -> T + Sync),
) -> Option<T> {
    const EVERY: Duration = Duration::from_millis(200);
    let state = WorkState::default();
    let context = audit::Context::here();
    std::thread::scope(|scope| {
        let (ends, ended) = mpsc::channel::<()>();
        let state = &state;
        let working = scope.spawn(move || {
            let _ends = ends;
            let _context = context.enter();
            work(state)
        });
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            if to.progress(state.bytes_done()).is_err() {
                state.cancelled.store(true, Ordering::Relaxed);
            }
        }
        working.join().ok()
    })
}

/// Sends the findings of a check.
///
/// # Errors
/// The receiver failed.
pub(crate) fn send_findings(report: Report, to: &mut dyn Receiver) -> Result<Outcome, UserError> {
    let summary = (&report).into();
    for finding in report.findings {
        to.finding(finding.into())
            .map_err(|error| UserError::io("cannot send the findings", &error))?;
    }
    Ok(Outcome::Checked(summary))
}

/// A writer that passes a stream to a receiver.
struct Stream<'a> {
    to: &'a mut dyn Receiver,
    state: &'a WorkState,
    /// The total length was sent.
    total_sent: bool,
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.total_sent {
            self.total_sent = true;
            let BytesDone { total_bytes, .. } = self.state.bytes_done();
            self.to.progress(BytesDone {
                bytes: 0,
                total_bytes,
            })?;
        }
        let chunk = &bytes[..bytes.len().min(CHUNK_BYTES)];
        self.to.bytes(chunk)?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
