//! The log: lines on standard error while the process has a terminal, then in a file or the
//! system's log.
//!
//! `BILAYER_LOG` chooses what is logged (`debug`, `bilayer=trace`, ...; see tracing-subscriber's
//! `EnvFilter`). Without it, a command logs errors and warnings, and a daemon also logs what it
//! does. The [`audit`](crate::audit) does not use the log.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::sys::owned::open_link_to_append;
use crate::sys::syslog::{Facility, Severity, SystemLog};

/// The filter unless `BILAYER_LOG` sets another. Without `fuser::reply=off` fuser would log replies
/// to requests that the kernel has abandoned, as it does at every unmount.
const DEFAULT_FILTER: &str = "info,fuser=warn,fuser::reply=off";

/// Which lines a process writes to standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verbosity {
    /// Errors and warnings.
    Warnings,
    /// All lines that the filter lets through.
    Everything,
}

enum Sink {
    StandardError(Verbosity),
    File {
        file: File,
        path: PathBuf,
    },
    System(SystemLog),
    #[cfg(test)]
    Discard,
}

/// The log of this process.
#[derive(Clone)]
pub(crate) struct Log(Arc<RwLock<Sink>>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// Starts logging to standard error, of panics too. `BILAYER_LOG` overrides the verbosity. Call
    /// it once.
    pub(crate) fn start(verbosity: Verbosity) -> Self {
        let chosen = EnvFilter::try_from_env("BILAYER_LOG");
        let verbosity = match chosen {
            Ok(_) => Verbosity::Everything,
            Err(_) => verbosity,
        };
        let log = Self(Arc::new(RwLock::new(Sink::StandardError(verbosity))));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(log.clone())
            .with_ansi(false)
            .with_filter(chosen.unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER)));
        let started = tracing_subscriber::registry().with(lines).try_init();
        if started.is_ok() {
            std::panic::set_hook(Box::new(|panic| {
                tracing::error!("{panic}");
            }));
        }
        log
    }

    /// A log for tests, which discards everything.
    #[cfg(test)]
    pub(crate) fn discarding() -> Self {
        Self(Arc::new(RwLock::new(Sink::Discard)))
    }

    /// Continues in a file, which is created (mode 0600) or appended to. The log reveals the use of
    /// keys: so the file must not belong to another user, or be a link that another user may have
    /// created.
    ///
    /// # Errors
    /// The file cannot be opened, or another user controls it.
    pub(super) fn to_file(&self, path: &Path) -> io::Result<()> {
        self.switch_to(open_link_to_append(path)?, path);
        Ok(())
    }

    fn switch_to(&self, file: File, path: &Path) {
        let path = path.to_path_buf();
        *self.0.write() = Sink::File { file, path };
    }

    /// Reopens the file, which was renamed or removed. If it cannot be opened, an error is logged
    /// and the log stays where it was. A file on `own_device`, the mount's, is not used either: it
    /// would keep the mount busy for ever.
    pub(super) fn reopen(&self, own_device: Option<u64>) {
        let Some(path) = self.file_path() else {
            return;
        };
        let opened = open_link_to_append(&path).and_then(|file| {
            match Some(file.metadata()?.dev()) == own_device {
                true => Err(io::Error::other("it is in the mount whose log it would be")),
                false => Ok(file),
            }
        });
        match opened.map(|file| self.switch_to(file, &path)) {
            Ok(()) => tracing::info!("the log was reopened"),
            Err(error) => tracing::error!(
                %error,
                "the log cannot be reopened and continues in the old file: {}",
                path.display()
            ),
        }
    }

    fn file_path(&self) -> Option<PathBuf> {
        match &*self.0.read() {
            Sink::File { path, .. } => Some(path.clone()),
            _ => None,
        }
    }

    /// Continues in the system's log, unless a file was chosen.
    pub(super) fn leave_standard_error(&self) {
        let mut sink = self.0.write();
        if matches!(*sink, Sink::StandardError(_)) {
            *sink = Sink::System(SystemLog::new(Facility::Daemon));
        }
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warning,
        Level::INFO => Severity::Info,
        Level::DEBUG | Level::TRACE => Severity::Debug,
    }
}

/// One line of the log, which is written when this is dropped.
pub(crate) struct Line {
    log: Log,
    level: Level,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        escape_controls(&mut self.text);
        // A failure to write the log cannot be reported anywhere.
        let _ = match &*self.log.0.read() {
            Sink::StandardError(Verbosity::Warnings) if self.level > Level::WARN => Ok(()),
            Sink::StandardError(_) => io::stderr().write_all(&self.text),
            Sink::File { file, .. } => (&*file).write_all(&self.text),
            Sink::System(system) => system.send(severity(self.level), &self.text),
            #[cfg(test)]
            Sink::Discard => Ok(()),
        };
    }
}

/// Escapes control characters except the newline at the end. Names of files may contain them, and
/// must neither look like another line nor control a terminal.
fn escape_controls(text: &mut Vec<u8>) {
    let end = text.trim_ascii_end().len();
    if !text[..end].iter().any(u8::is_ascii_control) {
        return;
    }
    let escape = |&byte: &u8| match byte.is_ascii_control() {
        true => byte.escape_ascii().collect(),
        false => vec![byte],
    };
    let escaped: Vec<u8> = text[..end].iter().flat_map(escape).collect();
    text.splice(..end, escaped);
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            log: self.clone(),
            level: Level::INFO,
            text: Vec::new(),
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let mut line = self.make_writer();
        line.level = *metadata.level();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_whatever_names_are_in_it() {
        let escaped = |text: &str| {
            let mut text = text.as_bytes().to_vec();
            escape_controls(&mut text);
            String::from_utf8(text).unwrap()
        };
        assert_eq!(escaped("INFO mounted /é\n"), "INFO mounted /é\n");
        let forged = escaped("of a\nERROR forged\x1b[31m\n");
        assert_eq!(forged, "of a\\nERROR forged\\x1b[31m\n");
    }

    #[test]
    fn a_chosen_file_is_used_and_a_new_one_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let log = Log::discarding();
        let write = |text: &str| log.make_writer().write_all(text.as_bytes()).unwrap();
        write("lost\n");
        log.to_file(&path).unwrap();
        log.leave_standard_error();
        write("kept\n");
        std::fs::rename(&path, &old).unwrap();
        write("kept there\n");
        log.reopen(None);
        write("new\n");
        assert_eq!(std::fs::read(&old).unwrap(), b"kept\nkept there\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        // If the new file cannot be opened, the old one is kept.
        std::fs::rename(&path, &old).unwrap();
        std::fs::create_dir(&path).unwrap();
        log.reopen(None);
        write("still\n");
        std::fs::remove_dir(&path).unwrap();
        log.reopen(Some(dir.path().metadata().unwrap().dev()));
        write("there\n");
        assert_eq!(std::fs::read(&old).unwrap(), b"new\nstill\nthere\n");
    }
}
