//! The destinations of audit records. A record is written to the first one that accepts it: a file,
//! the system's log, standard error; or, if the system's log was requested: that log, the file in
//! the state directory, standard error.
//!
//! A record of a key operation is different: it counts only in the requested destination, or, if
//! that is the system's log, in the file in the state directory. If it is written in neither, the
//! operation is refused ([`require`]).
//!
//! Files hold a chain of records ([`super::chain`]), to which [`super::append`] adds. They are
//! opened for each record and not kept open. Records are rare, a file that was renamed, removed or
//! temporarily unwritable needs no special handling, and its filesystem can be remounted read-only.
//! A failure to write a record is logged as an error, once until it is resolved.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde_json::json;

use super::append::{Appended, ROTATION_BYTES, append};
use super::chain::{Head, HeadStore};
use crate::sys::syslog::{Facility, Severity, SystemLog};

/// Name of the file in the state directory.
const FILE_NAME: &str = "audit.log";

/// How long a record waits for the reader of the system's log.
const SYSTEM_LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// Limit on the records that wait for the state directory to be created.
const WAITING_MAX: usize = 64;

/// Where records are to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// A file, which is created if it is missing.
    File(PathBuf),
    /// The audit file in a state directory. A directory without the file `marker` is not one, so a
    /// directory that was named by mistake stays unchanged.
    StateDirectory {
        /// The directory.
        dir: PathBuf,
        /// Name of a file that every state directory contains.
        marker: &'static str,
    },
    /// The system's log, facility `auth`.
    SystemLog,
}

impl Destination {
    /// The file of this destination, if it is one.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::StateDirectory { dir, .. } => Some(dir.join(FILE_NAME)),
            Self::SystemLog => None,
        }
    }

    /// True if it is a state directory that has not been created.
    fn is_missing(&self) -> bool {
        let Self::StateDirectory { dir, marker } = self else {
            return false;
        };
        let metadata = std::fs::metadata(dir.join(marker));
        metadata.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

/// A record of a key operation that was not written.
#[derive(Debug)]
pub struct Unwritten {
    /// Its destination, for messages.
    pub destination: String,
    /// Why.
    pub error: io::Error,
}

struct Sink {
    destination: Destination,
    /// Used if the system's log was requested and does not accept a record.
    fallback: Option<Destination>,
    heads: Box<dyn HeadStore>,
    system: SystemLog,
    /// Gets the heads of files. Separate, since it is not told of records that were lost.
    heads_log: SystemLog,
    /// Records of key operations from before the state directory was created.
    waiting: Mutex<Vec<Vec<u8>>>,
    /// A failure to write the file was logged.
    is_failing: AtomicBool,
    /// A failure of the system's log was logged.
    is_system_log_failing: AtomicBool,
    /// A failure to keep the head was logged.
    is_head_failing: AtomicBool,
    /// The newest head that this process has written.
    head: Mutex<Option<Head>>,
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

pub(super) fn start(destination: Destination, fallback: Destination, heads: Box<dyn HeadStore>) {
    let system = || SystemLog::new(Facility::Auth);
    let patient = system().patient(SYSTEM_LOG_TIMEOUT);
    let mut sink = Sink::new(destination, heads, patient, system());
    sink.fallback = Some(fallback);
    *SINK.write() = Some(sink);
}

pub(super) fn is_started() -> bool {
    SINK.read().is_some()
}

pub(super) fn file() -> Option<PathBuf> {
    SINK.read().as_ref()?.destination.path()
}

pub(super) fn head() -> Option<Head> {
    *SINK.read().as_ref()?.head.lock()
}

/// Writes a record. Refusals to a user without a state directory go to the system's log.
pub(super) fn write(body: &[u8], time: &str, is_refusal: bool) {
    if let Some(sink) = &*SINK.read() {
        match is_refusal && sink.destination.is_missing() {
            true => sink.send_to_system_log(body),
            false => sink.write(body, time, &mut io::stderr()),
        }
    }
}

/// Writes the record of a key operation.
///
/// # Errors
/// It could not be written.
pub(super) fn require(body: &[u8], time: &str) -> Result<(), Unwritten> {
    match &*SINK.read() {
        Some(sink) => sink.require(body, time),
        None => Ok(()),
    }
}

impl Sink {
    fn new(
        destination: Destination,
        heads: Box<dyn HeadStore>,
        system: SystemLog,
        heads_log: SystemLog,
    ) -> Self {
        Self {
            destination,
            fallback: None,
            heads,
            system,
            heads_log,
            waiting: Mutex::default(),
            is_failing: AtomicBool::new(false),
            is_system_log_failing: AtomicBool::new(false),
            is_head_failing: AtomicBool::new(false),
            head: Mutex::default(),
        }
    }

    /// Sends a record to the system's log, if there is one.
    fn send_to_system_log(&self, body: &[u8]) {
        let _ = self.system.send(Severity::Notice, &line_of(body));
    }

    fn require(&self, body: &[u8], time: &str) -> Result<(), Unwritten> {
        let failed = |path: &Path| {
            let destination = path.display().to_string();
            move |error| Unwritten { destination, error }
        };
        if self.destination == Destination::SystemLog {
            let Err(error) = self.system.send(Severity::Notice, &line_of(body)) else {
                return Ok(());
            };
            let destination = "the system's log".to_owned();
            return match self.fallback_path() {
                Some(path) => self.append(&path, body, time).map_err(failed(&path)),
                None => Err(Unwritten { destination, error }),
            };
        }
        let Some(path) = self.destination.path() else {
            return Ok(());
        };
        if self.destination.is_missing() {
            return self.keep_waiting(body).map_err(failed(&path));
        }
        let head = self.append(&path, body, time);
        match head.inspect(|()| self.is_failing.store(false, Ordering::Relaxed)) {
            Ok(()) => {
                self.publish_head(&path);
                Ok(())
            }
            Err(error) => Err(failed(&path)(error)),
        }
    }

    fn fallback_path(&self) -> Option<PathBuf> {
        let fallback = self.fallback.as_ref();
        fallback.filter(|it| !it.is_missing())?.path()
    }

    /// Keeps a record until the state directory has been created: it is written before the next one
    /// then. An operation that needs no state directory, such as reading an export, comes before.
    fn keep_waiting(&self, body: &[u8]) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "there is no platform keystore in its directory",
            ));
        }
        waiting.push(body.to_vec());
        Ok(())
    }

    fn append(&self, path: &Path, body: &[u8], time: &str) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        let mut bodies = waiting.clone();
        bodies.push(body.to_vec());
        let appended = append(path, &*self.heads, &bodies, time, ROTATION_BYTES)?;
        waiting.clear();
        drop(waiting);
        if let Some(appended) = appended {
            self.note(path, appended);
        }
        Ok(())
    }

    /// Logs what is wrong with a file that was appended to.
    fn note(&self, path: &Path, appended: Appended) {
        let path = path.display();
        if let Some(broken) = appended.broken {
            tracing::error!("the audit {path} was changed: {broken}; see: bilayer audit");
        }
        match appended.head_failure {
            None => self.is_head_failing.store(false, Ordering::Relaxed),
            Some(error) if !self.is_head_failing.swap(true, Ordering::Relaxed) => tracing::error!(
                %error,
                "the platform keystore cannot keep the head of the audit {path}: until it can, a \
                 truncated audit would not be noticed"
            ),
            Some(_) => {}
        }
        *self.head.lock() = Some(appended.head);
    }

    /// Sends the head to the system's log, if there is one, where whoever can change the file may
    /// not be able to.
    fn publish_head(&self, path: &Path) {
        if let Some(head) = *self.head.lock() {
            let line = json!({
                "action": "audit-head",
                "file": path.to_string_lossy(),
                "chain": hex::encode(head.chain.0),
                "count": head.count,
                "head": hex::encode(head.hash),
            });
            let line = line.to_string();
            let _ = self.heads_log.send(Severity::Notice, line.as_bytes());
        }
    }

    fn write(&self, body: &[u8], time: &str, last_resort: &mut dyn Write) {
        if let Some(path) = self.destination.path() {
            match self.append_unless_missing(&path, body, time) {
                Ok(()) => return self.is_failing.store(false, Ordering::Relaxed),
                Err(error) if !self.is_failing.swap(true, Ordering::Relaxed) => tracing::error!(
                    %error,
                    "the audit cannot be written to {}: it is written to the system's log, or to \
                     standard error if there is none",
                    path.display()
                ),
                Err(_) => {}
            }
        }
        let line = line_of(body);
        match self.system.send(Severity::Notice, &line) {
            Ok(()) => self.is_system_log_failing.store(false, Ordering::Relaxed),
            Err(error) if self.destination == Destination::SystemLog => {
                self.write_without_system_log(body, time, &error, last_resort);
            }
            // There is no destination left to report the failure to.
            Err(_) => drop(last_resort.write_all(&line)),
        }
    }

    fn append_unless_missing(&self, path: &Path, body: &[u8], time: &str) -> io::Result<()> {
        if let Destination::StateDirectory { dir, marker } = &self.destination {
            std::fs::metadata(dir.join(marker)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => io::Error::new(
                    error.kind(),
                    format!("there is no {marker} in its directory"),
                ),
                _ => error,
            })?;
        }
        self.append(path, body, time)
    }

    /// Writes a record that the system's log did not accept.
    fn write_without_system_log(
        &self,
        body: &[u8],
        time: &str,
        error: &io::Error,
        last_resort: &mut dyn Write,
    ) {
        let path = self.fallback_path();
        let accepted = path.filter(|path| self.append(path, body, time).is_ok());
        let written_to = match &accepted {
            Some(path) => path.display().to_string(),
            None => "standard error".to_owned(),
        };
        if accepted.is_none() {
            let _ = last_resort.write_all(&line_of(body));
        }
        if !self.is_system_log_failing.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %error,
                "the system's log does not accept the audit: it is written to {written_to}"
            );
        }
    }
}

/// A record as it is written outside a file, where it has no place in a chain.
fn line_of(body: &[u8]) -> Vec<u8> {
    [body, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    use crate::audit::tests::{Heads, LogFile, TIME};

    struct Setup {
        dir: tempfile::TempDir,
        sink: Sink,
        heads: Heads,
    }

    impl Setup {
        fn new(destination: impl FnOnce(&Path) -> Destination) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let system = || SystemLog::at(&dir.path().join("log"), Facility::Auth);
            let heads = Heads::default();
            let destination = destination(dir.path());
            let sink = Sink::new(destination, Box::new(heads.clone()), system(), system());
            Self { dir, sink, heads }
        }

        fn file(name: &str) -> Self {
            Self::new(|dir| Destination::File(dir.join(name)))
        }

        fn state_directory() -> Self {
            Self::new(state_directory)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Writes records with these actions.
        fn write(&self, actions: &[&str], last_resort: &mut dyn Write) {
            for action in actions {
                self.sink.write(&body(action), TIME, last_resort);
            }
        }

        /// The actions in a log, which is verified together with its rotated files.
        #[track_caller]
        fn actions(&self, name: &str) -> Vec<String> {
            LogFile(self.path(name)).verified(&self.heads)
        }
    }

    fn state_directory(dir: &Path) -> Destination {
        Destination::StateDirectory {
            dir: dir.to_path_buf(),
            marker: "state",
        }
    }

    fn body(action: &str) -> Vec<u8> {
        format!("{{\"action\":\"{action}\"}}").into_bytes()
    }

    #[test]
    fn the_chain_continues_in_a_file_that_is_created_again() {
        let setup = Setup::file("audit");
        setup.write(&["one"], &mut io::sink());
        std::fs::rename(setup.path("audit"), setup.path("audit.1")).unwrap();
        setup.write(&["two", "three"], &mut io::sink());
        let expected = ["audit-begin", "one", "audit-begin", "two", "three"];
        assert_eq!(setup.actions("audit"), expected);
    }

    #[test]
    fn records_that_the_file_does_not_accept_are_written_elsewhere() {
        let setup = Setup::file("missing/audit");
        let mut errors = Vec::new();
        setup.write(&["one"], &mut errors);
        assert_eq!(errors, line_of(&body("one")));
        let log = UnixDatagram::bind(setup.path("log")).unwrap();
        setup.write(&["two"], &mut errors);
        assert_eq!(errors, line_of(&body("one")));
        let mut bytes = [0; 128];
        let mut read = || {
            let len = log.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        };
        assert!(read().contains("did not take"));
        let line = read();
        assert!(
            line.starts_with("<37>bilayer[") && line.contains("\"two\""),
            "{line}"
        );
        std::fs::create_dir(setup.path("missing")).unwrap();
        setup.write(&["three"], &mut errors);
        assert_eq!(setup.actions("missing/audit"), ["audit-begin", "three"]);
        assert_eq!(errors, line_of(&body("one")));
    }

    /// The head in the system's log is the one of the file.
    #[test]
    fn a_key_operation_is_refused_unless_it_is_in_the_file() {
        let setup = Setup::file("missing/audit");
        let log = UnixDatagram::bind(setup.path("log")).unwrap();
        log.set_nonblocking(true).unwrap();
        let error = setup.sink.require(&body("one"), TIME).unwrap_err();
        assert_eq!(error.error.kind(), io::ErrorKind::NotFound);
        assert!(error.destination.ends_with("missing/audit"));
        let mut bytes = [0; 1024];
        assert!(log.recv(&mut bytes).is_err(), "it is not in the log");
        std::fs::create_dir(setup.path("missing")).unwrap();
        setup.sink.require(&body("two"), TIME).unwrap();
        assert_eq!(setup.actions("missing/audit"), ["audit-begin", "two"]);
        let len = log.recv(&mut bytes).unwrap();
        let line = String::from_utf8_lossy(&bytes[..len]).into_owned();
        let (_, json) = line.split_once("]: ").unwrap();
        let head: serde_json::Value = serde_json::from_str(json).unwrap();
        let kept = setup.heads.load(&setup.path("missing/audit")).unwrap();
        let kept = kept.unwrap();
        assert_eq!(head["count"], 2);
        assert_eq!(head["head"], hex::encode(kept.hash));
        assert_eq!(setup.sink.head.lock().unwrap(), kept);
    }

    #[test]
    fn the_null_device_is_no_audit() {
        let setup = Setup::new(|_| Destination::File("/dev/null".into()));
        setup.sink.require(&body("one"), TIME).unwrap();
        setup.write(&["two"], &mut io::sink());
        assert_eq!(*setup.sink.head.lock(), None);
    }

    #[test]
    fn records_that_the_system_log_does_not_accept_are_written_to_the_state_directory() {
        let mut setup = Setup::new(|_| Destination::SystemLog);
        setup.sink.fallback = Some(state_directory(setup.dir.path()));
        let mut errors = Vec::new();
        setup.write(&["one"], &mut errors);
        assert_eq!(errors, line_of(&body("one")));
        assert!(setup.sink.require(&body("refused"), TIME).is_err());
        std::fs::write(setup.path("state"), "").unwrap();
        setup.write(&["two"], &mut errors);
        setup.sink.require(&body("unwrap"), TIME).unwrap();
        assert_eq!(errors, line_of(&body("one")));
        let expected = ["audit-begin", "two", "unwrap"];
        assert_eq!(setup.actions(FILE_NAME), expected);
        let log = UnixDatagram::bind(setup.path("log")).unwrap();
        setup.write(&["three"], &mut errors);
        setup.sink.require(&body("four"), TIME).unwrap();
        assert_eq!(setup.actions(FILE_NAME), expected);
        assert!(log.recv(&mut [0; 128]).unwrap() > 0);
    }

    /// Only what needs no state directory can come before it is created.
    #[test]
    fn key_operations_before_there_is_a_state_directory_are_recorded_later() {
        let setup = Setup::state_directory();
        let mut errors = Vec::new();
        setup.write(&["lost"], &mut errors);
        assert_eq!(errors, line_of(&body("lost")));
        setup.sink.require(&body("early"), TIME).unwrap();
        assert!(!setup.path(FILE_NAME).exists());
        std::fs::write(setup.path("state"), "").unwrap();
        setup.sink.require(&body("next"), TIME).unwrap();
        assert_eq!(setup.actions(FILE_NAME), ["audit-begin", "early", "next"]);
        let setup = Setup::state_directory();
        for _ in 0..WAITING_MAX {
            setup.sink.require(&body("early"), TIME).unwrap();
        }
        assert!(setup.sink.require(&body("early"), TIME).is_err());
    }
}
