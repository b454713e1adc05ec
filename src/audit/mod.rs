//! The audit: a record of each action on a volume or its keys, and of the user who requested it. It
//! has its own destination, which no level and no filter of the log turns off.
//!
//! A record is one line of JSON that is appended to a file, which several processes may share:
//!
//! | field | |
//! |---|---|
//! | `seq`, `previous` | number in the chain, hash of the line before; in files only |
//! | `time` | RFC 3339, UTC, microseconds |
//! | `action` | such as `open-volume` |
//! | `outcome` | `done`, `refused` with `reason`, or `begun`: another record says how it ended |
//! | `volume` | id of the volume, or null; of a refused one the id that its superblock claims |
//! | `path` | the volume's directory, or null |
//! | `mount_point` | where it is mounted, or null |
//! | `uid`, `pid` | user and process of the requester; null if the kernel does not report them |
//! | `sudo_uid` | user who called sudo, if the requester is root through sudo |
//! | `version` | of this program |
//! | `duration_ms` | how long a key operation took |
//!
//! and the details of the action. A record never contains a secret.
//!
//! Records of key operations are written by [`Record::require`]: an operation whose record cannot
//! be written is refused. Records of other actions are written by [`Record::done`] and
//! [`Record::refused`], and go elsewhere if they have to.
//!
//! The code that makes a record knows the volume and the details; the rest comes from the context.
//! At its start a process declares its caller and the volume that it works on ([`start`],
//! [`set_volume`], [`set_mount_point`]). Code that serves a request declares, for the duration of
//! the request, the requester ([`requested_by`]) and any other volume that it concerns
//! ([`for_volume`]). These two apply to one thread. Code that passes work to another thread passes
//! [`Context::here`] with it.
//!
//! [`LogReader`] verifies the chain.

use std::cell::RefCell;
use std::fmt::Display;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Instant;

use parking_lot::RwLock;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ids::VolumeId;
use crate::sys::identity::real_user;

mod append;
mod chain;
mod files;
mod reader;
mod sink;
mod tail;
#[cfg(test)]
mod tests;
mod verify;

pub use chain::{ChainId, Head, HeadStore};
pub use reader::{LogReader, Verified};
pub use sink::{Destination, Unwritten};
pub use verify::{Event, KeptHead, OnEvent};

const BEGUN: &str = "begun";
const DONE: &str = "done";
const REFUSED: &str = "refused";

static PROCESS: RwLock<Context> = RwLock::new(Context::EMPTY);

thread_local! {
    static HERE: RefCell<Context> = const { RefCell::new(Context::EMPTY) };
    /// Records of this thread since [`deduplicate`].
    static WRITTEN: RefCell<Option<Vec<WrittenRecord>>> = const { RefCell::new(None) };
}

#[derive(PartialEq, Debug)]
struct WrittenRecord {
    outcome: &'static str,
    action: &'static str,
    volume: Option<VolumeId>,
    details: Map<String, Value>,
}

/// The user and the process that requested an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requester {
    uid: Option<u32>,
    pid: Option<u32>,
    sudo_uid: Option<u32>,
}

impl Requester {
    /// A requester that the kernel does not report.
    pub const UNKNOWN: Self = Self {
        uid: None,
        pid: None,
        sudo_uid: None,
    };

    /// A process. Its number is 0 if it is in another pid namespace.
    pub fn process(uid: u32, pid: u32) -> Self {
        Self {
            uid: Some(uid),
            pid: Some(pid).filter(|pid| *pid != 0),
            sudo_uid: None,
        }
    }

    /// This process, as a request of its real user. sudo records its caller in the environment.
    pub fn this_process() -> Self {
        let uid = real_user();
        let sudo = std::env::var("SUDO_UID").ok();
        Self {
            sudo_uid: sudo.filter(|_| uid == 0).and_then(|sudo| sudo.parse().ok()),
            ..Self::process(uid, std::process::id())
        }
    }
}

/// The context that a record includes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    requester: Option<Requester>,
    paths: Option<VolumePaths>,
}

/// The paths of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct VolumePaths {
    path: PathBuf,
    mount_point: Option<PathBuf>,
}

impl Context {
    const EMPTY: Self = Self {
        requester: None,
        paths: None,
    };

    /// The context of this thread, to be passed to another one.
    pub fn here() -> Self {
        HERE.with_borrow(Self::clone)
    }

    /// Makes this the context of the thread until the scope ends.
    pub fn enter(self) -> Scope {
        Scope {
            before: HERE.replace(self),
            not_send: PhantomData,
        }
    }

    /// Fills in the context of the process where this thread has none.
    fn completed(self) -> Self {
        let process = PROCESS.read();
        Self {
            requester: self.requester.or(process.requester),
            paths: self.paths.or_else(|| process.paths.clone()),
        }
    }
}

/// The context of this thread applies until this is dropped.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Scope {
    before: Context,
    not_send: PhantomData<*const ()>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        HERE.set(std::mem::take(&mut self.before));
    }
}

/// Starts the audit: records go to `destination` and name `requester`. If `destination` is the
/// system's log, records that it does not accept go to `fallback`. `heads` keeps the heads of the
/// files. Records made before this call are dropped.
pub fn start(
    destination: Destination,
    fallback: Destination,
    heads: Box<dyn HeadStore>,
    requester: Requester,
) {
    PROCESS.write().requester = Some(requester);
    sink::start(destination, fallback, heads);
}

/// The head of the file that records go to, as this process last wrote it; `None` if it has written
/// none.
pub fn head() -> Option<Head> {
    sink::head()
}

/// The file that records go to; `None` before [`start`], or if they go elsewhere.
pub fn file() -> Option<PathBuf> {
    sink::file()
}

/// Declares that this process works on the volume in that directory.
pub fn set_volume(path: &Path) {
    PROCESS.write().paths = Some(VolumePaths {
        path: path.to_path_buf(),
        mount_point: None,
    });
}

/// Declares where the volume of this process is, or will be, mounted.
pub fn set_mount_point(dir: &Path) {
    let mut process = PROCESS.write();
    process.paths.get_or_insert_default().mount_point = Some(dir.to_path_buf());
}

/// Declares that `requester` requested the actions of this thread until the scope ends.
pub fn requested_by(requester: Requester) -> Scope {
    Context {
        requester: Some(requester),
        ..Context::here()
    }
    .enter()
}

/// Declares that the actions of this thread until the scope ends concern the unmounted volume in
/// that directory.
pub fn for_volume(path: &Path) -> Scope {
    let paths = VolumePaths {
        path: path.to_path_buf(),
        mount_point: None,
    };
    Context {
        paths: Some(paths),
        ..Context::here()
    }
    .enter()
}

/// While this exists, a record that repeats an earlier one is not written.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Deduplication {
    before: Option<Vec<WrittenRecord>>,
    not_send: PhantomData<*const ()>,
}

impl Drop for Deduplication {
    fn drop(&mut self) {
        WRITTEN.set(self.before.take());
    }
}

/// Declares that this thread may repeat actions in several attempts until the scope ends: each
/// record is written once.
pub fn deduplicate() -> Deduplication {
    Deduplication {
        before: WRITTEN.replace(Some(Vec::new())),
        not_send: PhantomData,
    }
}

/// An action that was performed or refused. It is written by [`Self::done`] or [`Self::refused`].
#[must_use = "it is written by `done` or `refused`"]
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    action: &'static str,
    volume: Option<VolumeId>,
    details: Map<String, Value>,
    begin: Option<Instant>,
}

/// A record as it is written.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    action: &'static str,
    outcome: &'static str,
    volume: Option<String>,
    path: Option<String>,
    mount_point: Option<String>,
    uid: Option<u32>,
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sudo_uid: Option<u32>,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(flatten)]
    details: &'a Map<String, Value>,
}

impl Record {
    /// A record of this action.
    pub fn new(action: &'static str) -> Self {
        Self {
            action,
            volume: None,
            details: Map::new(),
            begin: None,
        }
    }

    /// Sets when the action began, from which its duration is computed.
    pub fn since(mut self, begin: Instant) -> Self {
        self.begin = Some(begin);
        self
    }

    /// Adds the provider and the URI of a key. Secrets that a URI might contain are left out.
    pub fn key(self, uri: &str) -> Self {
        let provider = uri.split_once(':').map_or(uri, |(scheme, _)| scheme);
        self.with("provider", provider)
            .with("key", without_secrets(uri))
    }

    /// Adds the number of a key slot.
    pub fn slot(self, slot: u32) -> Self {
        self.with("slot", slot)
    }

    /// Sets the volume.
    pub fn volume(mut self, volume: impl Into<Option<VolumeId>>) -> Self {
        self.volume = volume.into();
        self
    }

    /// Adds a detail: a number, a text or a boolean.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a detail in its displayed form.
    pub fn with_text(self, name: &'static str, value: impl Display) -> Self {
        self.with(name, value.to_string())
    }

    /// Writes that the action was performed.
    pub fn done(self) {
        self.write(DONE);
    }

    /// Writes that the action was refused, or failed.
    pub fn refused(self, reason: impl Display) {
        self.with_text("reason", reason).write(REFUSED);
    }

    /// Writes the outcome according to `result`.
    pub fn outcome<T, E: Display>(self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.done(),
            Err(error) => self.refused(error),
        }
    }

    /// Writes the outcome of a key operation, which must not take effect, or be acknowledged,
    /// unless this succeeds. Durable on return.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn require<T, E: Display>(self, result: &Result<T, E>) -> Result<(), Unwritten> {
        match result {
            Ok(_) => self.write_durably(DONE),
            Err(error) => self.with_text("reason", error).write_durably(REFUSED),
        }
    }

    /// Writes that a key operation is about to change something durable, so that the audit shows
    /// it whatever happens next. Durable on return.
    ///
    /// # Errors
    /// The record could not be written. Nothing must be changed then.
    pub fn begun(self) -> Result<(), Unwritten> {
        self.write_durably(BEGUN)
    }

    fn write_durably(self, outcome: &'static str) -> Result<(), Unwritten> {
        if !sink::is_started() || self.is_repeated(outcome) {
            return Ok(());
        }
        let time = now();
        let body = self.body(outcome, &time, Context::here().completed());
        sink::require(&body, &time)?;
        self.note_written(outcome);
        Ok(())
    }

    fn write(self, outcome: &'static str) {
        if sink::is_started() && !self.is_repeated(outcome) {
            let time = now();
            let body = self.body(outcome, &time, Context::here().completed());
            sink::write(&body, &time, outcome == REFUSED);
            self.note_written(outcome);
        }
    }

    fn as_written(&self, outcome: &'static str) -> WrittenRecord {
        WrittenRecord {
            outcome,
            action: self.action,
            volume: self.volume,
            details: self.details.clone(),
        }
    }

    /// True if the same record was written by an earlier attempt.
    fn is_repeated(&self, outcome: &'static str) -> bool {
        WRITTEN.with_borrow(|written| {
            let written = written.as_ref();
            written.is_some_and(|written| written.contains(&self.as_written(outcome)))
        })
    }

    fn note_written(&self, outcome: &'static str) {
        WRITTEN.with_borrow_mut(|written| {
            if let Some(written) = written {
                written.push(self.as_written(outcome));
            }
        });
    }

    /// The record as a JSON object.
    fn body(&self, outcome: &'static str, time: &str, context: Context) -> Vec<u8> {
        let requester = context.requester.unwrap_or(Requester::UNKNOWN);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (path, mount_point) = context.paths.map_or((None, None), |paths| {
            (Some(text(paths.path)), paths.mount_point.map(text))
        });
        let line = Line {
            time: time.to_owned(),
            action: self.action,
            outcome,
            volume: self.volume.map(|volume| volume.to_string()),
            path,
            mount_point,
            uid: requester.uid,
            pid: requester.pid,
            sudo_uid: requester.sudo_uid,
            version: env!("CARGO_PKG_VERSION"),
            duration_ms: self
                .begin
                .map(|begin| u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)),
            details: &self.details,
        };
        // Serialization of these types never fails.
        serde_json::to_vec(&line).unwrap_or_default()
    }
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A key's URI without parts that may be a PIN, a password or a token. Paths of files are kept.
fn without_secrets(uri: &str) -> String {
    if uri.starts_with("file:") || uri.starts_with("platform:") {
        return uri.to_owned();
    }
    // The query of a PKCS #11 URI has its PIN (RFC 7512), that of others may have a token.
    let uri = uri.split(['?', '#']).next().unwrap_or_default();
    let parts = uri.split(';').filter(|part| !part.contains("pin-"));
    let uri = parts.collect::<Vec<_>>().join(";");
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.split('/').next().unwrap_or_default();
            let user = authority.rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[user..])
        }
        None => uri,
    }
}
