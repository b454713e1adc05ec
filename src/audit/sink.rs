//! Where records of the audit go: a file, the system's log, standard error, the first that takes it.
//!
//! The file is opened for each record and not kept open: records are few, a file that was renamed,
//! removed or could not be written for a while needs nobody's care, and the filesystem that it is on
//! can be made read-only. A record is one `write` to the end of it (`O_APPEND`), which other
//! processes' do not break. What stands in the way of it is an error in the log, once until it has
//! been overcome.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::sys::owned::open_to_append;
use crate::sys::syslog::{Facility, Severity, SystemLog};

/// Name of the file in the state directory.
const FILE_NAME: &str = "audit.log";

/// Where records are to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// To the end of a file, which is created where it is missing.
    File(PathBuf),
    /// The same in a state directory, which is one if it has a file of the second name: what somebody
    /// named by mistake stays as it is.
    StateDirectory(PathBuf, &'static str),
    /// To the system's log, facility `auth`.
    SystemLog,
}

impl Destination {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::StateDirectory(dir, _) => Some(dir.join(FILE_NAME)),
            Self::SystemLog => None,
        }
    }
}

#[derive(Debug)]
struct Sink {
    destination: Destination,
    system: SystemLog,
    /// The file could not be written, and that was said.
    is_failing: AtomicBool,
    /// The system's log did not take it, and that was said.
    is_unheard: AtomicBool,
    /// The file ends within a record.
    is_torn: AtomicBool,
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

pub(super) fn start(destination: Destination) {
    *SINK.write() = Some(Sink::new(destination, SystemLog::new(Facility::Auth)));
}

pub(super) fn is_started() -> bool {
    SINK.read().is_some()
}

pub(super) fn file() -> Option<PathBuf> {
    SINK.read().as_ref()?.destination.path()
}

pub(super) fn write(line: &[u8]) {
    if let Some(sink) = &*SINK.read() {
        sink.write(line, &mut io::stderr());
    }
}

impl Sink {
    fn new(destination: Destination, system: SystemLog) -> Self {
        Self {
            destination,
            system,
            is_failing: AtomicBool::new(false),
            is_unheard: AtomicBool::new(false),
            is_torn: AtomicBool::new(false),
        }
    }

    fn write(&self, line: &[u8], last_resort: &mut dyn Write) {
        if let Some(path) = self.destination.path() {
            match self.append(&path, line) {
                Ok(()) => return self.is_failing.store(false, Ordering::Relaxed),
                Err(error) if !self.is_failing.swap(true, Ordering::Relaxed) => tracing::error!(
                    %error,
                    "the audit cannot be written to {}: it goes to the system's log, or to standard \
                     error where there is none",
                    path.display()
                ),
                Err(_) => {}
            }
        }
        match self.system.send(Severity::Notice, line) {
            Ok(()) => self.is_unheard.store(false, Ordering::Relaxed),
            Err(error) => {
                // There is no place left to report that nobody takes it.
                let _ = last_resort.write_all(line);
                let first_choice = self.destination == Destination::SystemLog;
                if first_choice && !self.is_unheard.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        %error,
                        "the system's log does not take the audit: it goes to standard error"
                    );
                }
            }
        }
    }

    fn append(&self, path: &Path, line: &[u8]) -> io::Result<()> {
        if let Destination::StateDirectory(dir, has) = &self.destination {
            std::fs::metadata(dir.join(has)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    io::Error::new(error.kind(), format!("there is no {has} beside it"))
                }
                _ => error,
            })?;
        }
        let mut file = open_to_append(path)?;
        let ended;
        let bytes = match self.is_torn.load(Ordering::Relaxed) {
            true => {
                ended = [b"\n", line].concat();
                &ended
            }
            false => line,
        };
        let written = file.write(bytes)?;
        self.is_torn.store(written < bytes.len(), Ordering::Relaxed);
        if written < bytes.len() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    struct Place {
        dir: tempfile::TempDir,
        sink: Sink,
    }

    impl Place {
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
    fn a_file_that_was_renamed_or_removed_is_made_anew() {
        let place = Place::new("audit");
        let write = |line: &[u8]| place.sink.write(line, &mut io::sink());
        write(b"one\n");
        std::fs::rename(place.path("audit"), place.path("audit.1")).unwrap();
        write(b"two\n");
        std::fs::remove_file(place.path("audit")).unwrap();
        write(b"three\n");
        assert_eq!(
            (place.read("audit.1"), place.read("audit")),
            ("one\n".into(), "three\n".into())
        );
    }

    #[test]
    fn what_the_file_does_not_take_goes_elsewhere() {
        let place = Place::new("missing/audit");
        let mut errors = Vec::new();
        place.sink.write(b"one\n", &mut errors);
        assert_eq!(errors, b"one\n");
        let log = UnixDatagram::bind(place.path("log")).unwrap();
        place.sink.write(b"two\n", &mut errors);
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
        std::fs::create_dir(place.path("missing")).unwrap();
        place.sink.write(b"three\n", &mut errors);
        assert_eq!(place.read("missing/audit"), "three\n");
        assert_eq!(errors, b"one\n");
    }

    #[test]
    fn a_directory_that_is_none_of_state_stays_as_it_is() {
        let place = Place::new("");
        let dir = place.dir.path().to_path_buf();
        let destination = Destination::StateDirectory(dir, "state");
        let sink = Sink::new(
            destination,
            SystemLog::at(&place.path("log"), Facility::Auth),
        );
        let mut errors = Vec::new();
        sink.write(b"one\n", &mut errors);
        assert_eq!(errors, b"one\n");
        assert!(!place.path(FILE_NAME).exists());
        std::fs::write(place.path("state"), "").unwrap();
        sink.write(b"two\n", &mut errors);
        assert_eq!(place.read(FILE_NAME), "two\n");
    }

    #[test]
    fn records_of_several_writers_are_whole() {
        let place = Place::new("audit");
        let lines = 200;
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let sink = Sink::new(
                    place.sink.destination.clone(),
                    SystemLog::new(Facility::Auth),
                );
                scope.spawn(move || {
                    let line = [vec![b'a' + writer; 3000], b"\n".to_vec()].concat();
                    (0..lines).for_each(|_| sink.write(&line, &mut io::sink()));
                });
            }
        });
        let text = place.read("audit");
        assert_eq!(text.lines().count(), 4 * lines);
        for line in text.lines() {
            let first = line.as_bytes()[0];
            assert!(line.len() == 3000 && line.bytes().all(|byte| byte == first));
        }
    }
}
