//! How requests and responses are written: lines of JSON, each with the protocol's version.
//!
//! ```text
//! {"version":1,"body":"ping"}
//!                                     {"version":1,"body":"alive"}
//! {"version":1,"body":{"operation":{"verb":"list","kind":"snapshot"}}}
//!                                     {"version":1,"body":{"view":{"name":"monday",…}}}
//!                                     {"version":1,"body":{"done":"nothing"}}
//! {"version":1,"body":{"operation":{"verb":"export","image":"base",…}}}
//!                                     {"version":1,"body":{"progress":{"bytes":0,…}}}
//!                                     {"version":1,"body":{"bytes":262144}}
//!                                     that many raw bytes follow the newline
//!                                     {"version":1,"body":{"done":{"exported":{…}}}}
//! ```
//! The last response to an operation is `done` or `failed`. A daemon keeps running when another
//! version of the program is installed; so each side refuses lines of any version but its own.

use std::io::{self, Write};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::line::is_timeout;
use super::obstacle::{Obstacle, refusal};
use super::report::ViewReport;
use super::request::Operation;
use super::response::{BytesDone, ChangeReport, FindingReport, Outcome, Receiver, Response};
use crate::diagnostics::{ExitCode, UserError};

/// Version of requests and responses; raised whenever one of them changes.
const VERSION: u32 = 1;

/// Largest number of raw bytes in one response.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// The hint for a daemon whose responses are not understood.
pub(crate) const VERSION_HINT: &str =
    "the daemon is of another version: unmount the volume and mount it again";

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    body: T,
}

/// Why a line cannot be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Another version of this program wrote it.
    #[error("it speaks version {0} of the protocol, and this program version {VERSION}")]
    OtherVersion(u32),
    /// It is no request or response.
    #[error("it does not speak the protocol")]
    Malformed,
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A request or a response as a line, with its end.
///
/// # Errors
/// The body cannot be serialized.
pub(crate) fn encode(body: &impl Serialize) -> io::Result<Vec<u8>> {
    let version = VERSION;
    let mut line = serde_json::to_vec(&Versioned { version, body })?;
    line.push(b'\n');
    Ok(line)
}

/// The request or the response of a line.
///
/// # Errors
/// The line is of another version, or is no such message.
pub(crate) fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, DecodeError> {
    let malformed = |_| DecodeError::Malformed;
    // The body of another version may have any form.
    let Versioned { version, .. } =
        serde_json::from_slice::<Versioned<IgnoredAny>>(line).map_err(malformed)?;
    if version != VERSION {
        return Err(DecodeError::OtherVersion(version));
    }
    let line: Versioned<T> = serde_json::from_slice(line).map_err(malformed)?;
    Ok(line.body)
}

/// The daemon's side of a connection: writes responses.
pub(crate) struct ResponseWriter<W: Write>(pub(crate) W);

impl<W: Write> ResponseWriter<W> {
    /// Writes one response.
    ///
    /// # Errors
    /// The connection cannot be written.
    pub(crate) fn send(&mut self, response: &Response) -> io::Result<()> {
        self.0.write_all(&encode(response)?)
    }
}

impl<W: Write> Receiver for ResponseWriter<W> {
    fn view(&mut self, view: ViewReport) -> io::Result<()> {
        self.send(&Response::View(view))
    }

    fn change(&mut self, change: ChangeReport) -> io::Result<()> {
        self.send(&Response::Change(change))
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(&Response::Bytes(bytes.len()))?;
        self.0.write_all(bytes)
    }

    fn finding(&mut self, finding: FindingReport) -> io::Result<()> {
        self.send(&Response::Finding(finding))
    }

    fn progress(&mut self, progress: BytesDone) -> io::Result<()> {
        self.send(&Response::Progress(progress))?;
        // So that the peer sees it now, and a closed connection is noticed.
        self.0.flush()
    }
}

/// The source of a command's responses.
pub(super) trait ResponseSource {
    /// The next line, without its end.
    fn read_line(&mut self) -> io::Result<String>;
    /// Reads this many raw bytes.
    fn read_bytes(&mut self, count: usize) -> io::Result<Vec<u8>>;
}

/// Passes intermediate responses to `to` until the outcome arrives.
///
/// # Errors
/// The daemon's failure; or the daemon ended, or is of another version.
pub(super) fn receive(
    from: &mut impl ResponseSource,
    request: &Operation,
    to: &mut dyn Receiver,
) -> Result<Outcome, UserError> {
    let failed = |error: io::Error| UserError::io(request.doing(), &error);
    loop {
        let line = from
            .read_line()
            .map_err(|error| daemon_gone(request, &error))?;
        let response = decode(line.as_bytes()).map_err(|_| protocol_error(request))?;
        match response {
            Response::View(view) => to.view(view).map_err(failed)?,
            Response::Change(change) => to.change(change).map_err(failed)?,
            Response::Finding(finding) => to.finding(finding).map_err(failed)?,
            Response::Progress(progress) => to.progress(progress).map_err(failed)?,
            Response::Bytes(count) if count <= CHUNK_BYTES => {
                let bytes = from
                    .read_bytes(count)
                    .map_err(|error| daemon_gone(request, &error))?;
                to.bytes(&bytes).map_err(failed)?;
            }
            Response::Done(outcome) => return Ok(outcome),
            Response::Failed(failure) => return Err(failure.into()),
            _ => return Err(protocol_error(request)),
        }
    }
}

fn daemon_gone(request: &Operation, error: &io::Error) -> UserError {
    if is_timeout(error) {
        return refusal(request.doing(), &[Obstacle::Silent]);
    }
    UserError::new(
        ExitCode::System,
        format!(
            "{}: the daemon that has the volume mounted ended: {error}",
            request.doing()
        ),
    )
    .with_hint("check whether it was done, and see the daemon's log")
}

fn protocol_error(request: &Operation) -> UserError {
    UserError::new(
        ExitCode::System,
        format!(
            "{}: the daemon that has the volume mounted does not understand the request",
            request.doing()
        ),
    )
    .with_hint(VERSION_HINT)
}

#[cfg(test)]
mod tests {
    use super::super::request::{Kind, Passphrase, PathBytes, Request};
    use super::super::response::{Difference, Discard};
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::path::Path;

    struct Recorded(BufReader<io::Cursor<Vec<u8>>>);

    impl ResponseSource for Recorded {
        fn read_line(&mut self) -> io::Result<String> {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            line.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(line)
        }

        fn read_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; count];
            self.0.read_exact(&mut bytes)?;
            Ok(bytes)
        }
    }

    fn recorded(bytes: Vec<u8>) -> Recorded {
        Recorded(BufReader::new(io::Cursor::new(bytes)))
    }

    #[derive(Default)]
    struct Collected {
        views: Vec<ViewReport>,
        changes: Vec<ChangeReport>,
        bytes: Vec<u8>,
        progress: Vec<BytesDone>,
    }

    impl Receiver for Collected {
        fn progress(&mut self, done: BytesDone) -> io::Result<()> {
            self.progress.push(done);
            Ok(())
        }

        fn view(&mut self, view: ViewReport) -> io::Result<()> {
            self.views.push(view);
            Ok(())
        }

        fn change(&mut self, change: ChangeReport) -> io::Result<()> {
            self.changes.push(change);
            Ok(())
        }

        fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.bytes.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn list() -> Operation {
        Operation::List {
            kind: Kind::Snapshot,
        }
    }

    #[test]
    fn responses_survive_a_round_trip() {
        let view = ViewReport {
            kind: Kind::Image,
            name: "a\n\u{e9}".to_owned(),
            created: Some("2026-11-22T04:30:00.123456789Z".parse().unwrap()),
            generation: Some(7),
            used_bytes: None,
            refers_bytes: Some(u64::MAX),
            inodes: Some(1),
            from: None,
            description: "{".to_owned(),
        };
        let change = ChangeReport {
            change: Difference::Removed,
            path: PathBytes(b"a\xff\n/b".to_vec()),
            from: Some(PathBytes(b"c\xfe".to_vec())),
            directory: false,
        };
        let mut writer = ResponseWriter(Vec::new());
        writer.view(view.clone()).unwrap();
        writer.change(change.clone()).unwrap();
        let done = BytesDone {
            bytes: 5,
            total_bytes: Some(7),
        };
        writer.progress(done).unwrap();
        writer.bytes(b"raw\n{\0").unwrap();
        writer.bytes(b"").unwrap();
        let last = Response::Done(Outcome::Created(view.clone()));
        writer.send(&last).unwrap();
        let mut collected = Collected::default();
        let outcome = receive(&mut recorded(writer.0), &list(), &mut collected).unwrap();
        assert_eq!(outcome, Outcome::Created(view.clone()));
        assert_eq!(
            (collected.views, collected.changes),
            (vec![view], vec![change])
        );
        assert_eq!(collected.bytes, b"raw\n{\0");
        assert_eq!(collected.progress, [done]);
    }

    #[test]
    fn failures_keep_code_and_hint() {
        let error = UserError::new(ExitCode::InUse, "it is").with_hint("wait");
        let mut writer = ResponseWriter(Vec::new());
        writer
            .send(&Response::Failed(error.clone().into()))
            .unwrap();
        let received = receive(&mut recorded(writer.0), &list(), &mut Discard).unwrap_err();
        assert_eq!(received, error);
        for broken in [
            "",
            "{\"version\":1,\"body\":{\"bytes\":4}}\nab",
            "{\"version\":1,\"body\":{\"bytes\":99999999}}\n",
            "{\"error\":\"x\"}\n",
        ] {
            let from = broken.as_bytes().to_vec();
            let error = receive(&mut recorded(from), &list(), &mut Discard).unwrap_err();
            assert_eq!(error.code, ExitCode::System, "{broken}");
            assert!(error.hint.is_some(), "{broken}");
        }
    }

    #[test]
    fn requests_are_one_line_with_their_verb() {
        let requests = [
            list(),
            Operation::Restore {
                snapshot: "a\nb".to_owned(),
                path: Some(PathBytes(b"x\n\xff".to_vec())),
            },
            Operation::Deploy {
                image: "base".to_owned(),
                target: PathBytes::of(Path::new("/new")),
                customer_key: None,
                passphrase: Passphrase::File(PathBytes::of(Path::new("/p"))),
                size_bytes: Some(1),
                keystore: None,
            },
        ];
        for request in requests {
            let line = encode(&Request::Operation(request.clone())).unwrap();
            let (end, body) = line.split_last().unwrap();
            assert!(*end == b'\n' && !body.contains(end));
            assert_eq!(decode(&line), Ok(Request::Operation(request)));
        }
        for (line, why) in [
            (
                "{\"version\":1,\"body\":{\"operation\":{\"verb\":\"format\"}}}",
                DecodeError::Malformed,
            ),
            (
                "{\"version\":2,\"body\":\"ping\"}",
                DecodeError::OtherVersion(2),
            ),
            ("{\"body\":\"ping\"}", DecodeError::Malformed),
            ("ping", DecodeError::Malformed),
        ] {
            assert_eq!(decode::<Request>(line.as_bytes()), Err(why), "{line}");
        }
    }
}
