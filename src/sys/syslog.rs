//! The system's log (syslog(3), RFC 3164): datagrams to a socket that may be made anew at any time.
//!
//! A daemon of the log that is started again makes its socket anew, and what was connected to the
//! old one is refused. So a line that cannot be sent has the socket connected once more and is sent
//! again. Lines that are lost all the same are counted, and the count is the first thing that is
//! sent when the socket is back. Nothing here waits: a log that is not read must not stop the
//! filesystem.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Where the system's log is reached.
pub const SYSTEM_LOG: &str = "/dev/log";

/// Who logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Facility {
    /// `LOG_DAEMON`.
    Daemon = 3,
    /// `LOG_AUTH`.
    Auth = 4,
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Severity {
    /// `LOG_ERR`.
    Error = 3,
    /// `LOG_WARNING`.
    Warning = 4,
    /// `LOG_NOTICE`.
    Notice = 5,
    /// `LOG_INFO`.
    Info = 6,
    /// `LOG_DEBUG`.
    Debug = 7,
}

/// A connection to the system's log, which comes and goes with its socket.
#[derive(Debug)]
pub struct SystemLog {
    path: PathBuf,
    facility: Facility,
    connection: Mutex<Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    socket: Option<UnixDatagram>,
    /// Lines that were lost since the last one that was sent.
    lost: u64,
}

impl SystemLog {
    /// The machine's.
    pub fn new(facility: Facility) -> Self {
        Self::at(Path::new(SYSTEM_LOG), facility)
    }

    /// The one at that socket, which need not be there yet.
    pub fn at(path: &Path, facility: Facility) -> Self {
        Self {
            path: path.to_path_buf(),
            facility,
            connection: Mutex::default(),
        }
    }

    /// Sends one line.
    ///
    /// # Errors
    /// When nobody takes it; the line is counted as lost then.
    pub fn send(&self, severity: Severity, text: &[u8]) -> io::Result<()> {
        let mut connection = self.connection.lock();
        let sent = self
            .say_what_was_lost(&mut connection)
            .and_then(|()| self.send_on(&mut connection, severity, text));
        if sent.is_err() {
            connection.lost = connection.lost.saturating_add(1);
        }
        sent
    }

    fn say_what_was_lost(&self, connection: &mut Connection) -> io::Result<()> {
        if connection.lost == 0 {
            return Ok(());
        }
        let text = format!(
            "lines that the system's log did not take before this one: {}",
            connection.lost
        );
        self.send_on(connection, Severity::Warning, text.as_bytes())?;
        connection.lost = 0;
        Ok(())
    }

    fn send_on(
        &self,
        connection: &mut Connection,
        severity: Severity,
        text: &[u8],
    ) -> io::Result<()> {
        let line = line(self.facility, severity, text);
        if let Some(socket) = &connection.socket {
            match socket.send(&line) {
                Err(error) if is_gone(&error) => connection.socket = None,
                result => return result.map(drop),
            }
        }
        let socket = connect(&self.path)?;
        socket.send(&line)?;
        connection.socket = Some(socket);
        Ok(())
    }
}

/// True where the socket that was connected to is there no more.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::ENOTCONN | libc::ENOENT | libc::ECONNRESET | libc::EPIPE)
    )
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A message of the local syslog protocol: `<priority>name[pid]: text`.
fn line(facility: Facility, severity: Severity, text: &[u8]) -> Vec<u8> {
    let priority = (facility as u8) << 3 | severity as u8;
    let mut line = format!("<{priority}>bilayer[{}]: ", std::process::id()).into_bytes();
    line.extend_from_slice(text.trim_ascii_end());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let len = socket.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..len]).unwrap();
        text.split_once("]: ").unwrap().1.to_owned()
    }

    #[test]
    fn lines_have_priority_name_and_process() {
        let line = line(Facility::Daemon, Severity::Error, b"it broke\n");
        let line = String::from_utf8(line).unwrap();
        assert!(
            line.starts_with("<27>bilayer[") && line.ends_with("]: it broke"),
            "{line}"
        );
        assert!(super::line(Facility::Auth, Severity::Info, b"").starts_with(b"<38>"));
    }

    #[test]
    fn a_socket_that_is_made_anew_is_connected_to_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = SystemLog::at(&path, Facility::Daemon);
        let send = |text: &str| log.send(Severity::Info, text.as_bytes());
        let first = UnixDatagram::bind(&path).unwrap();
        send("one").unwrap();
        assert_eq!(read(&first), "one");
        drop(first);
        std::fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        send("two").unwrap();
        assert_eq!(read(&second), "two", "nothing is lost by it");
    }

    #[test]
    fn what_was_lost_is_counted_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = SystemLog::at(&path, Facility::Daemon);
        let send = |text: &str| log.send(Severity::Info, text.as_bytes());
        send("nobody is there").unwrap_err();
        let first = UnixDatagram::bind(&path).unwrap();
        send("one").unwrap();
        assert!(read(&first).ends_with("before this one: 1"));
        assert_eq!(read(&first), "one");
        drop(first);
        std::fs::remove_file(&path).unwrap();
        for _ in 0..3 {
            send("nobody is there any more").unwrap_err();
        }
        let second = UnixDatagram::bind(&path).unwrap();
        send("two").unwrap();
        send("three").unwrap();
        assert!(read(&second).ends_with("before this one: 3"));
        assert_eq!(
            (read(&second), read(&second)),
            ("two".into(), "three".into())
        );
    }

    #[test]
    fn a_log_that_is_not_read_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = SystemLog::at(&path, Facility::Daemon);
        let socket = UnixDatagram::bind(&path).unwrap();
        let sent = (0..100_000)
            .take_while(|_| log.send(Severity::Info, b"line").is_ok())
            .count();
        assert!(sent < 100_000);
        (0..sent).for_each(|_| drop(read(&socket)));
        log.send(Severity::Info, b"last").unwrap();
        assert!(read(&socket).ends_with("before this one: 1"));
        assert_eq!(read(&socket), "last");
    }
}
