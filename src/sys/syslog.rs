//! The system's log (syslog(3), RFC 3164): datagrams to a socket that may be recreated at any time,
//! or, for a stream socket (syslog-ng's `unix-stream`), records that end with a NUL.
//!
//! A restarted log daemon recreates its socket, and sends to the old one are refused. So a line
//! that cannot be sent is sent again over a new connection. Lost lines are counted, and the count
//! is the first thing that is sent when the socket is back. Ordinary logging never waits: a log
//! that nobody reads must not stop the filesystem. The audit waits a little
//! ([`SystemLog::patient`]): any user may fill the queue of the socket for a moment, and this must
//! not lose a record.

use std::io;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

/// Socket of the system's log.
pub(crate) const SYSTEM_LOG: &str = "/dev/log";

/// Time limit of one attempt to send with patience.
const ATTEMPT: Duration = Duration::from_millis(250);

/// The source of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Facility {
    /// `LOG_DAEMON`.
    Daemon = 3,
    /// `LOG_AUTH`.
    Auth = 4,
}

/// The severity of a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Severity {
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

/// A connection to the system's log, which is renewed with its socket.
#[derive(Debug)]
pub(crate) struct SystemLog {
    path: PathBuf,
    facility: Facility,
    /// How long a line may wait for a reader; `None` for not at all.
    patience: Option<Duration>,
    connection: Mutex<Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    socket: Option<Socket>,
    /// Number of lines lost since the last one that was sent.
    lost: u64,
    /// A line has waited in vain. No line waits again until the log has accepted one: otherwise
    /// many concurrent requests would wait one after the other.
    is_unread: bool,
}

impl SystemLog {
    /// The log of the machine.
    pub(crate) fn new(facility: Facility) -> Self {
        Self::at(Path::new(SYSTEM_LOG), facility)
    }

    /// The log at that socket, which need not exist yet.
    pub(crate) fn at(path: &Path, facility: Facility) -> Self {
        Self {
            path: path.to_path_buf(),
            facility,
            patience: None,
            connection: Mutex::default(),
        }
    }

    /// Lets lines wait about this long while the queue of the log is full.
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..self
        }
    }

    /// Sends one line.
    ///
    /// # Errors
    /// When the log does not accept the line, which is then counted as lost.
    pub(crate) fn send(&self, severity: Severity, text: &[u8]) -> io::Result<()> {
        let mut connection = self.connection.lock();
        let patience = self.patience.filter(|_| !connection.is_unread);
        let until = patience.map(|patience| Instant::now() + patience);
        let sent = self
            .report_lost_lines(&mut connection, until)
            .and_then(|()| self.send_on(&mut connection, until, severity, text));
        match &sent {
            Ok(()) => connection.is_unread = false,
            Err(error) => {
                connection.lost = connection.lost.saturating_add(1);
                connection.is_unread |= error.kind() == io::ErrorKind::WouldBlock;
            }
        }
        sent
    }

    fn report_lost_lines(
        &self,
        connection: &mut Connection,
        until: Option<Instant>,
    ) -> io::Result<()> {
        if connection.lost == 0 {
            return Ok(());
        }
        let text = format!(
            "lines that the system's log did not take before this one: {}",
            connection.lost
        );
        self.send_on(connection, until, Severity::Warning, text.as_bytes())?;
        connection.lost = 0;
        Ok(())
    }

    fn send_on(
        &self,
        connection: &mut Connection,
        until: Option<Instant>,
        severity: Severity,
        text: &[u8],
    ) -> io::Result<()> {
        let line = line(self.facility, severity, text);
        if let Some(socket) = &connection.socket {
            match socket.send(&line, until) {
                Err(error) if is_gone(&error) => connection.socket = None,
                result => return result,
            }
        }
        let socket = Socket::connect(&self.path, self.patience.is_some())?;
        socket.send(&line, until)?;
        connection.socket = Some(socket);
        Ok(())
    }
}

/// True if the connected socket no longer exists, or received a partial line.
fn is_gone(error: &io::Error) -> bool {
    let is_torn = error.kind() == io::ErrorKind::WriteZero;
    let is_gone = matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::ENOTCONN | libc::ENOENT | libc::ECONNRESET | libc::EPIPE)
    );
    is_torn || is_gone
}

/// A connected socket of the existing kind.
#[derive(Debug)]
enum Socket {
    Datagram(UnixDatagram),
    Stream(UnixStream),
}

impl Socket {
    /// Connects, as syslog(3) does: with datagrams, unless it is a stream socket.
    fn connect(path: &Path, is_patient: bool) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        match socket.connect(path) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {}
            Err(error) => return Err(error),
            Ok(()) if is_patient => {
                socket.set_write_timeout(Some(ATTEMPT))?;
                return Ok(Self::Datagram(socket));
            }
            Ok(()) => {
                socket.set_nonblocking(true)?;
                return Ok(Self::Datagram(socket));
            }
        }
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        let socket = UnixStream::from(socket);
        // Set before connecting: nobody may accept the connection.
        match is_patient {
            true => socket.set_write_timeout(Some(ATTEMPT))?,
            false => socket.set_nonblocking(true)?,
        }
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::Stream(socket))
    }

    /// Sends a line. If the queue is full, retries until that time.
    fn send(&self, line: &[u8], until: Option<Instant>) -> io::Result<()> {
        let stream_line;
        let mut rest = line;
        if let Self::Stream(_) = self {
            stream_line = [line, b"\0"].concat();
            rest = &stream_line;
        }
        let mut flags = SendFlags::NOSIGNAL;
        if until.is_none() {
            flags |= SendFlags::DONTWAIT;
        }
        let mut is_begun = false;
        loop {
            let sent = match self {
                Self::Datagram(socket) => send(socket, rest, flags),
                Self::Stream(socket) => send(socket, rest, flags),
            };
            match sent.map_err(io::Error::from) {
                Ok(sent) if sent == rest.len() => return Ok(()),
                Ok(sent) => (rest, is_begun) = (&rest[sent..], true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && until.is_some_and(|until| Instant::now() < until) => {}
                // Another line must not follow a partial one: on a new connection it is complete.
                Err(_) if is_begun => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) => return Err(error),
            }
        }
    }
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
    fn a_recreated_socket_is_connected_to_again() {
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
    fn lost_lines_are_counted_and_reported() {
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
    fn a_log_that_nobody_reads_blocks_no_writer() {
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

    /// A full queue does not suppress a line that waits, once somebody reads.
    #[test]
    fn a_patient_line_waits_for_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        let fill = || {
            let flood = SystemLog::at(&path, Facility::Daemon);
            while flood.send(Severity::Info, b"flood").is_ok() {}
        };
        let patience = Duration::from_secs(1);
        let log = SystemLog::at(&path, Facility::Auth).patient(patience);
        fill();
        let begin = Instant::now();
        log.send(Severity::Notice, b"nobody reads").unwrap_err();
        let took = begin.elapsed();
        assert!(
            took >= patience && took < patience + 5 * ATTEMPT,
            "{took:?}"
        );
        // One line has waited: those behind it do not wait as long again, each in its turn.
        let begin = Instant::now();
        for _ in 0..8 {
            log.send(Severity::Notice, b"nobody reads").unwrap_err();
        }
        assert!(begin.elapsed() < ATTEMPT, "{:?}", begin.elapsed());
        let log = SystemLog::at(&path, Facility::Auth).patient(patience);
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| log.send(Severity::Notice, b"a record"));
            std::thread::sleep(ATTEMPT + ATTEMPT / 2);
            while read(&socket) != "a record" {}
            sent.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_socket_for_streams_gets_records_that_end_with_a_nul() {
        use std::io::Read;
        use std::os::unix::net::UnixListener;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = SystemLog::at(&path, Facility::Auth);
        for log in [log, SystemLog::at(&path, Facility::Auth).patient(ATTEMPT)] {
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            log.send(Severity::Notice, b"one").unwrap();
            log.send(Severity::Notice, b"two\n").unwrap();
            // More than the socket buffers while nobody reads: the next line uses another
            // connection.
            log.send(Severity::Notice, &vec![b'x'; 1 << 20])
                .unwrap_err();
            log.send(Severity::Notice, b"three").unwrap();
            drop(log);
            let text = || {
                let mut text = String::new();
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_to_string(&mut text).unwrap();
                text
            };
            let first = text();
            let records: Vec<_> = first.split('\0').collect();
            assert_eq!(records.len(), 3);
            assert!(records[0].starts_with("<37>bilayer[") && records[0].ends_with("]: one"));
            assert!(records[1].ends_with("]: two"));
            assert!(text().ends_with("xxx"));
            let last = text();
            assert!(last.contains("before this one: 1\0<37>"), "{last}");
            assert!(last.ends_with("]: three\0"), "{last}");
        }
    }
}
