//! The destinations of audit records. A record is written to the first one that accepts it: a file,
//! the system's log, standard error; or, if the system's log was requested: that log, the file in
//! the state directory, standard error.
//!
//! The file is opened for each record and not kept open. Records are rare, a file that was renamed,
//! removed or temporarily unwritable needs no special handling, and its filesystem can be remounted
//! read-only. A record is one `write` to the end of the file (`O_APPEND`), which writes of other
//! processes do not split. If the disk was full or a size limit was reached, the file may end in
//! the middle of a record, which its last byte shows. Then the next writer, in any process, ends
//! that line first. A failure to write a record is logged as an error, once until it is resolved.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::sys::owned::open_to_append;
use crate::sys::syslog::{Facility, Severity, SystemLog};

/// Name of the file in the state directory.
const FILE_NAME: &str = "audit.log";

/// How long a record waits for the reader of the system's log.
const SYSTEM_LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// Time within which a record is normally written.
const WRITE_TIME: Duration = Duration::from_millis(2);

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
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::StateDirectory { dir, .. } => Some(dir.join(FILE_NAME)),
            Self::SystemLog => None,
        }
    }
}

#[derive(Debug)]
struct Sink {
    destination: Destination,
    /// Used if the system's log was requested and does not accept a record.
    fallback: Option<Destination>,
    system: SystemLog,
    /// A failure to write the file was logged.
    is_failing: AtomicBool,
    /// A failure of the system's log was logged.
    is_system_log_failing: AtomicBool,
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

pub(super) fn start(destination: Destination, fallback: Destination) {
    let system = SystemLog::new(Facility::Auth).patient(SYSTEM_LOG_TIMEOUT);
    let mut sink = Sink::new(destination, system);
    sink.fallback = Some(fallback);
    *SINK.write() = Some(sink);
}

pub(super) fn is_started() -> bool {
    SINK.read().is_some()
}

pub(super) fn file() -> Option<PathBuf> {
    SINK.read().as_ref()?.destination.path()
}

/// Writes a record. Refusals to a user without a state directory go to the system's log.
pub(super) fn write(line: &[u8], is_refusal: bool) {
    if let Some(sink) = &*SINK.read() {
        match is_refusal && sink.has_no_state() {
            true => sink.send_to_system_log(line),
            false => sink.write(line, &mut io::stderr()),
        }
    }
}

impl Sink {
    fn new(destination: Destination, system: SystemLog) -> Self {
        Self {
            destination,
            fallback: None,
            system,
            is_failing: AtomicBool::new(false),
            is_system_log_failing: AtomicBool::new(false),
        }
    }

    /// True if there is no state directory: nothing of this user is audited yet.
    fn has_no_state(&self) -> bool {
        let Destination::StateDirectory { dir, marker } = &self.destination else {
            return false;
        };
        let metadata = std::fs::metadata(dir.join(marker));
        metadata.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Sends a line to the system's log, if there is one.
    fn send_to_system_log(&self, line: &[u8]) {
        let _ = self.system.send(Severity::Notice, line);
    }

    fn write(&self, line: &[u8], last_resort: &mut dyn Write) {
        if let Some(path) = self.destination.path() {
            match append(&self.destination, &path, line) {
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
        match self.system.send(Severity::Notice, line) {
            Ok(()) => self.is_system_log_failing.store(false, Ordering::Relaxed),
            Err(error) if self.destination == Destination::SystemLog => {
                self.write_without_system_log(line, &error, last_resort);
            }
            // There is no destination left to report the failure to.
            Err(_) => drop(last_resort.write_all(line)),
        }
    }

    /// Writes a line that the system's log did not accept.
    fn write_without_system_log(
        &self,
        line: &[u8],
        error: &io::Error,
        last_resort: &mut dyn Write,
    ) {
        let fallback = self.fallback.as_ref();
        let fallback = fallback.and_then(|fallback| Some((fallback, fallback.path()?)));
        let accepted = fallback.filter(|(fallback, path)| append(fallback, path, line).is_ok());
        let written_to = match &accepted {
            Some((_, path)) => path.display().to_string(),
            None => "standard error".to_owned(),
        };
        if accepted.is_none() {
            let _ = last_resort.write_all(line);
        }
        if !self.is_system_log_failing.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %error,
                "the system's log does not accept the audit: it is written to {written_to}"
            );
        }
    }
}

fn append(destination: &Destination, path: &Path, line: &[u8]) -> io::Result<()> {
    if let Destination::StateDirectory { dir, marker } = destination {
        std::fs::metadata(dir.join(marker)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                error.kind(),
                format!("there is no {marker} in its directory"),
            ),
            _ => error,
        })?;
    }
    let mut file = open_to_append(path)?;
    let after_newline;
    let bytes = match is_torn(&file) {
        true => {
            after_newline = [b"\n", line].concat();
            &after_newline
        }
        false => line,
    };
    let written = file.write(bytes)?;
    if written < bytes.len() {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    Ok(())
}

/// True if a file ends in the middle of a record. A file that can be appended to but not read is
/// assumed to be whole.
fn is_torn(file: &File) -> bool {
    let within = || end_within_line(file).ok().flatten();
    let Some(end) = within() else {
        return false;
    };
    // A record that is being written grows page by page; a torn one stays as it is. A wrong
    // decision only leaves an empty line.
    std::thread::sleep(WRITE_TIME);
    within() == Some(end)
}

/// The length of a file whose last byte does not end a line.
fn end_within_line(file: &File) -> io::Result<Option<u64>> {
    let len = file.metadata()?.len();
    let Some(last) = len.checked_sub(1) else {
        return Ok(None);
    };
    // This very file, even if its name now belongs to another one.
    let readable = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut byte = [0];
    readable.read_exact_at(&mut byte, last)?;
    Ok((byte != *b"\n").then_some(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    struct Setup {
        dir: tempfile::TempDir,
        sink: Sink,
    }

    impl Setup {
        fn new(name: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let system = SystemLog::at(&dir.path().join("log"), Facility::Auth);
            let sink = Sink::new(Destination::File(dir.path().join(name)), system);
            Self { dir, sink }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.path(name)).unwrap()
        }
    }

    #[test]
    fn a_file_that_was_renamed_or_removed_is_created_again() {
        let setup = Setup::new("audit");
        let write = |line: &[u8]| setup.sink.write(line, &mut io::sink());
        write(b"one\n");
        std::fs::rename(setup.path("audit"), setup.path("audit.1")).unwrap();
        write(b"two\n");
        std::fs::remove_file(setup.path("audit")).unwrap();
        write(b"three\n");
        assert_eq!(
            (setup.read("audit.1"), setup.read("audit")),
            ("one\n".into(), "three\n".into())
        );
    }

    /// The torn record was written by another process, or by one that no longer exists.
    #[test]
    fn a_record_after_a_torn_one_starts_on_a_new_line() {
        let setup = Setup::new("audit");
        for (before, after) in [("", ""), ("one\n", "one\n"), ("one\ntw", "one\ntw\n")] {
            std::fs::write(setup.path("audit"), before).unwrap();
            setup.sink.write(b"new\n", &mut io::sink());
            setup.sink.write(b"newer\n", &mut io::sink());
            assert_eq!(setup.read("audit"), format!("{after}new\nnewer\n"));
        }
    }

    #[test]
    fn records_that_the_file_does_not_accept_are_written_elsewhere() {
        let setup = Setup::new("missing/audit");
        let mut errors = Vec::new();
        setup.sink.write(b"one\n", &mut errors);
        assert_eq!(errors, b"one\n");
        let log = UnixDatagram::bind(setup.path("log")).unwrap();
        setup.sink.write(b"two\n", &mut errors);
        assert_eq!(errors, b"one\n");
        let mut bytes = [0; 128];
        let mut read = || {
            let len = log.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        };
        assert!(read().contains("did not take"));
        let line = read();
        assert!(
            line.starts_with("<37>bilayer[") && line.ends_with("]: two"),
            "{line}"
        );
        std::fs::create_dir(setup.path("missing")).unwrap();
        setup.sink.write(b"three\n", &mut errors);
        assert_eq!(setup.read("missing/audit"), "three\n");
        assert_eq!(errors, b"one\n");
    }

    #[test]
    fn records_that_the_system_log_does_not_accept_are_written_to_the_state_directory() {
        let setup = Setup::new("");
        let system = SystemLog::at(&setup.path("log"), Facility::Auth);
        let mut sink = Sink::new(Destination::SystemLog, system);
        let dir = setup.dir.path().to_path_buf();
        sink.fallback = Some(Destination::StateDirectory {
            dir,
            marker: "state",
        });
        let mut errors = Vec::new();
        sink.write(b"one\n", &mut errors);
        assert_eq!(errors, b"one\n");
        std::fs::write(setup.path("state"), "").unwrap();
        sink.write(b"two\n", &mut errors);
        assert_eq!(errors, b"one\n");
        assert_eq!(setup.read(FILE_NAME), "two\n");
        let log = UnixDatagram::bind(setup.path("log")).unwrap();
        sink.write(b"three\n", &mut errors);
        assert_eq!(setup.read(FILE_NAME), "two\n");
        assert!(log.recv(&mut [0; 128]).unwrap() > 0);
    }

    #[test]
    fn a_directory_that_is_no_state_directory_is_unchanged() {
        let setup = Setup::new("");
        let dir = setup.dir.path().to_path_buf();
        let destination = Destination::StateDirectory {
            dir,
            marker: "state",
        };
        let sink = Sink::new(
            destination,
            SystemLog::at(&setup.path("log"), Facility::Auth),
        );
        let mut errors = Vec::new();
        sink.write(b"one\n", &mut errors);
        assert_eq!(errors, b"one\n");
        assert!(!setup.path(FILE_NAME).exists());
        std::fs::write(setup.path("state"), "").unwrap();
        sink.write(b"two\n", &mut errors);
        assert_eq!(setup.read(FILE_NAME), "two\n");
    }

    #[test]
    fn records_of_several_writers_are_whole() {
        let setup = Setup::new("audit");
        let lines = 200;
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let sink = Sink::new(
                    setup.sink.destination.clone(),
                    SystemLog::new(Facility::Auth),
                );
                scope.spawn(move || {
                    let line = [vec![b'a' + writer; 3000], b"\n".to_vec()].concat();
                    (0..lines).for_each(|_| sink.write(&line, &mut io::sink()));
                });
            }
        });
        let text = setup.read("audit");
        let records: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(records.len(), 4 * lines);
        for line in records {
            let first = line.as_bytes()[0];
            assert!(line.len() == 3000 && line.bytes().all(|byte| byte == first));
        }
    }
}
