//! The audit: a record of each action on a volume or its keys, and of the user who requested it. It
//! has its own destination, which no level and no filter of the log turns off.
//!
//! A record is one line of JSON that is appended to a file with one call, so several processes may
//! share the file:
//!
//! | field | |
//! |---|---|
//! | `time` | RFC 3339, UTC, microseconds |
//! | `action` | such as `open-volume` |
//! | `outcome` | `done`, or `refused` with `reason` |
//! | `volume` | id of the volume, or null; of a refused one the id that its superblock claims |
//! | `path` | the volume's directory, or null |
//! | `mount_point` | where it is mounted, or null |
//! | `uid`, `pid` | user and process of the requester; null if the kernel does not report them |
//! | `sudo_uid` | user who called sudo, if the requester is root through sudo |
//! | `version` | of this program |
//!
//! and the details of the action. A record never contains a secret.
//!
//! The code that makes a record knows the volume and the details; the rest comes from the context.
//! At its start a process declares its caller and the volume that it works on ([`start`],
//! [`set_volume`], [`set_mount_point`]). Code that serves a request declares, for the duration of
//! the request, the requester ([`requested_by`]) and any other volume that it concerns
//! ([`for_volume`]). These two apply to one thread. Code that passes work to another thread passes
//! [`Context::here`] with it.

use std::cell::RefCell;
use std::fmt::Display;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ids::VolumeId;
use crate::sys::identity::real_user;

mod sink;

pub use sink::Destination;

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
    record: Record,
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
/// system's log, records that it does not accept go to `fallback`. Records made before this call
/// are dropped.
pub fn start(destination: Destination, fallback: Destination, requester: Requester) {
    PROCESS.write().requester = Some(requester);
    sink::start(destination, fallback);
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
        }
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

    fn write(self, outcome: &'static str) {
        if sink::is_started() && !self.is_repeated(outcome) {
            let line = self.line(outcome, Context::here().completed());
            sink::write(&line, outcome == REFUSED);
        }
    }

    /// True if the same record was written by an earlier attempt.
    fn is_repeated(&self, outcome: &'static str) -> bool {
        WRITTEN.with_borrow_mut(|written| {
            let Some(written) = written else {
                return false;
            };
            let record = self.clone();
            let this = WrittenRecord { outcome, record };
            let is_repeated = written.contains(&this);
            if !is_repeated {
                written.push(this);
            }
            is_repeated
        })
    }

    fn line(&self, outcome: &'static str, context: Context) -> Vec<u8> {
        let requester = context.requester.unwrap_or(Requester::UNKNOWN);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (path, mount_point) = context.paths.map_or((None, None), |paths| {
            (Some(text(paths.path)), paths.mount_point.map(text))
        });
        let line = Line {
            time: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
                .to_string(),
            action: self.action,
            outcome,
            volume: self.volume.map(|volume| volume.to_string()),
            path,
            mount_point,
            uid: requester.uid,
            pid: requester.pid,
            sudo_uid: requester.sudo_uid,
            version: env!("CARGO_PKG_VERSION"),
            details: &self.details,
        };
        // Serialization of these types never fails.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(record: &Record, context: Context) -> Value {
        let line = record.line("done", context);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_record_is_one_line_with_all_fields() {
        let record = Record::new("test")
            .volume(VolumeId([7; 16]))
            .with("name", "two\nlines")
            .with("count", 3u64);
        let line = parsed(&record, Context::EMPTY);
        for field in [
            "time",
            "volume",
            "path",
            "mount_point",
            "uid",
            "pid",
            "version",
        ] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
        assert_eq!(line["volume"], VolumeId([7; 16]).to_string());
        assert_eq!(
            (&line["name"], &line["count"]),
            (&"two\nlines".into(), &3.into())
        );
        let time: jiff::Timestamp = line["time"].as_str().unwrap().parse().unwrap();
        assert!(time.duration_until(jiff::Timestamp::now()).as_secs() < 60);
    }

    #[test]
    fn several_attempts_leave_each_record_once() {
        let record = |epoch: u64| Record::new("unwrap").with("epoch", epoch);
        assert!(!record(1).is_repeated(DONE) && !record(1).is_repeated(DONE));
        let once = deduplicate();
        assert!(!record(1).is_repeated(DONE) && record(1).is_repeated(DONE));
        assert!(!record(2).is_repeated(DONE) && !record(1).is_repeated(REFUSED));
        drop(once);
        assert!(!record(1).is_repeated(DONE) && !record(1).is_repeated(DONE));
    }

    #[test]
    fn scopes_end_and_can_be_passed_to_other_threads() {
        let context = || {
            let line = parsed(&Record::new("test"), Context::here());
            (
                line["uid"].clone(),
                line["pid"].clone(),
                line["path"].clone(),
            )
        };
        let nothing = (Value::Null, Value::Null, Value::Null);
        assert_eq!(context(), nothing);
        {
            let _requester = requested_by(Requester::process(7, 8));
            let both = (7.into(), 8.into(), "/v".into());
            {
                let _volume = for_volume(Path::new("/v"));
                assert_eq!(context(), both);
                let here = Context::here();
                std::thread::scope(|scope| {
                    scope.spawn(|| assert_eq!(context(), nothing));
                    scope.spawn(|| {
                        let _here = here.enter();
                        assert_eq!(context(), both);
                    });
                });
            }
            assert_eq!(context(), (7.into(), 8.into(), Value::Null));
            let _other_requester = requested_by(Requester::process(9, 0));
            assert_eq!(context(), (9.into(), Value::Null, Value::Null));
        }
        assert_eq!(context(), nothing);
    }
}
