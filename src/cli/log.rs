//! Where log lines go: standard error while a person watches, then a file or the system's log.
//!
//! `BILAYER_LOG` chooses what is logged (`debug`, `bilayer=trace`, ...; see tracing-subscriber's
//! `EnvFilter`). Without it: errors and warnings, and on its way as a daemon also what it does.
//! Events of target `audit` (every use and refusal of a key) are lines of JSON. They are for the
//! record and not for who types: while standard error is the log they go to the system's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// What is logged unless `BILAYER_LOG` says otherwise. fuser reports replies to requests that the
/// kernel has given up, as it does at every unmount.
const DEFAULT_FILTER: &str = "info,fuser=warn,fuser::reply=off";
/// Target of events for the record.
const AUDIT: &str = "audit";
/// Where the system's log is reached.
const SYSTEM_LOG: &str = "/dev/log";
/// Facility `daemon` of syslog(3).
const FACILITY_DAEMON: u8 = 3 << 3;

enum Sink {
    StandardError { everything: bool },
    File(File),
    System(UnixDatagram),
    Nowhere,
}

/// The log of this process.
#[derive(Clone)]
pub struct Log(Arc<RwLock<Sink>>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// Starts logging to standard error: warnings, or `everything` that the filter lets through.
    /// To be called once. Panics are logged too from then on.
    pub fn start(everything: bool) -> Self {
        let chosen = EnvFilter::try_from_env("BILAYER_LOG");
        let everything = everything || chosen.is_ok();
        let log = Self(Arc::new(RwLock::new(Sink::StandardError { everything })));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(log.clone())
            .with_ansi(false)
            .with_filter(filter_fn(|event| event.target() != AUDIT));
        let audit = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(log.clone())
            .with_filter(filter_fn(|event| event.target() == AUDIT));
        let started = tracing_subscriber::registry()
            .with(chosen.unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER)))
            .with(lines)
            .with(audit)
            .try_init();
        if started.is_ok() {
            std::panic::set_hook(Box::new(|panic| {
                tracing::error!("{panic}");
            }));
        }
        log
    }

    /// For tests of what needs a log to be there.
    #[cfg(test)]
    pub(super) fn nowhere() -> Self {
        Self(Arc::new(RwLock::new(Sink::Nowhere)))
    }

    /// Goes on in that file, which is made (mode 0600) or added to. It tells what is done with keys:
    /// nobody else's file, and no link that somebody else may have put there.
    pub fn to_file(&self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        let file = super::paths::open_to_write(path, options)?;
        *self.0.write() = Sink::File(file);
        Ok(())
    }

    /// Goes on in the system's log, or nowhere if there is none. A file that was chosen stays.
    pub fn leave_standard_error(&self) {
        let mut sink = self.0.write();
        if matches!(*sink, Sink::StandardError { .. }) {
            *sink = connect_system_log().map_or(Sink::Nowhere, Sink::System);
        }
    }
}

fn connect_system_log() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSTEM_LOG)?;
    // A log that is not read must not stop the filesystem.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Priority of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// One line; written when it is dropped.
pub struct Line {
    log: Log,
    level: Level,
    audit: bool,
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
        // There is no place to report that the log cannot be written.
        let _ = match &*self.log.0.read() {
            Sink::StandardError { everything: false } if self.audit => connect_system_log()
                .and_then(|log| log.send(&system_line(self.level, &self.text)))
                .map(|_| ()),
            Sink::StandardError { everything } if *everything || self.level <= Level::WARN => {
                io::stderr().write_all(&self.text)
            }
            Sink::File(file) => (&*file).write_all(&self.text),
            Sink::System(socket) => socket
                .send(&system_line(self.level, &self.text))
                .map(|_| ()),
            Sink::StandardError { .. } | Sink::Nowhere => Ok(()),
        };
    }
}

/// A message of the local syslog protocol: `<priority>name[pid]: text`.
fn system_line(level: Level, text: &[u8]) -> Vec<u8> {
    let priority = FACILITY_DAEMON | severity(level);
    let mut line = format!("<{priority}>bilayer[{}]: ", std::process::id()).into_bytes();
    line.extend_from_slice(text.trim_ascii_end());
    line
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            log: self.clone(),
            level: Level::INFO,
            audit: false,
            text: Vec::new(),
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let mut line = self.make_writer();
        line.level = *metadata.level();
        line.audit = metadata.target() == AUDIT;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_a_file_once_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Log::nowhere();
        log.make_writer().write_all(b"lost\n").unwrap();
        log.to_file(&path).unwrap();
        log.leave_standard_error();
        log.make_writer().write_all(b"kept\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"kept\n");
    }

    #[test]
    fn system_lines() {
        let line = String::from_utf8(system_line(Level::ERROR, b"it broke\n")).unwrap();
        assert!(
            line.starts_with("<27>bilayer[") && line.ends_with("]: it broke"),
            "{line}"
        );
        assert_eq!(severity(Level::TRACE), 7);
    }
}
