//! Requests about snapshots and images over the control socket.
//!
//! A request is one line of JSON with a `verb`. The answer is lines of JSON, each one [`Message`],
//! the last one `done` or `failed`:
//!
//! ```text
//! {"verb":"list","kind":"snapshot"}
//!                                     {"view":{"name":"monday",…}}
//!                                     {"done":"nothing"}
//! {"verb":"check","jobs":0,"quick":false}
//!                                     {"progress":{"bytes":0,"total_bytes":null}}
//!                                     {"finding":{"kind":"page-damaged",…}}
//!                                     {"done":{"checked":{"inodes":3,…}}}
//! {"verb":"export","image":"base","passphrase_file":null,…}
//!                                     {"progress":{"bytes":0,"total_bytes":9437184}}
//!                                     {"bytes":262144}     so many raw bytes follow the newline
//!                                     {"done":{"exported":{"objects":3,…}}}
//! ```

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::line::is_timeout;
use super::obstacle::{Obstacle, refusal};
use super::request::{
    BytesDone, ChangeReport, FindingReport, Outcome, Receiver, Request, ViewReport,
};
use crate::diagnostics::{ExitCode, UserError};

/// Raw bytes of a stream that are handed on at a time.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// What to do about a daemon that answers something else than it should.
pub(crate) const OTHER_VERSION: &str =
    "the daemon is of another version: unmount the volume and mount it again";

/// How one ended that did not: a [`UserError`], so that the command ends the same either way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl From<UserError> for Failure {
    fn from(error: UserError) -> Self {
        Self {
            code: error.code as u8,
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<Failure> for UserError {
    fn from(failure: Failure) -> Self {
        Self {
            code: ExitCode::of_number(failure.code),
            message: failure.message,
            hint: failure.hint,
        }
    }
}

/// One line of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub(crate) enum Message {
    View(ViewReport),
    Change(ChangeReport),
    Finding(FindingReport),
    Progress(BytesDone),
    /// So many raw bytes follow.
    Bytes(usize),
    Done(Outcome),
    Failed(Failure),
}

/// The daemon's side of a connection: writes messages.
pub(crate) struct Lines<W: Write>(pub(crate) W);

impl<W: Write> Lines<W> {
    pub(crate) fn send(&mut self, message: &Message) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, message)?;
        self.0.write_all(b"\n")
    }
}

impl<W: Write> Receiver for Lines<W> {
    fn view(&mut self, view: ViewReport) -> io::Result<()> {
        self.send(&Message::View(view))
    }

    fn change(&mut self, change: ChangeReport) -> io::Result<()> {
        self.send(&Message::Change(change))
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(&Message::Bytes(bytes.len()))?;
        self.0.write_all(bytes)
    }

    fn finding(&mut self, finding: FindingReport) -> io::Result<()> {
        self.send(&Message::Finding(finding))
    }

    fn progress(&mut self, progress: BytesDone) -> io::Result<()> {
        self.send(&Message::Progress(progress))?;
        // So that who asked sees it, and who is gone is noticed.
        self.0.flush()
    }
}

/// Where the asking side reads answers from.
pub(crate) trait Answers {
    /// The next line, without its end.
    fn line(&mut self) -> io::Result<String>;
    /// So many raw bytes.
    fn raw(&mut self, count: usize) -> io::Result<Vec<u8>>;
}

/// Hands on what comes, until the outcome.
///
/// # Errors
/// The failure as the daemon tells it, or that the daemon ended or is of another version.
pub(super) fn receive(
    from: &mut impl Answers,
    request: &Request,
    to: &mut dyn Receiver,
) -> Result<Outcome, UserError> {
    let here = |error: io::Error| UserError::io(request.doing(), &error);
    loop {
        let line = from.line().map_err(|error| ended(request, &error))?;
        let message = serde_json::from_str(&line).map_err(|_| strange(request))?;
        match message {
            Message::View(view) => to.view(view).map_err(here)?,
            Message::Change(change) => to.change(change).map_err(here)?,
            Message::Finding(finding) => to.finding(finding).map_err(here)?,
            Message::Progress(progress) => to.progress(progress).map_err(here)?,
            Message::Bytes(count) if count <= CHUNK_BYTES => {
                let bytes = from.raw(count).map_err(|error| ended(request, &error))?;
                to.bytes(&bytes).map_err(here)?;
            }
            Message::Bytes(_) => return Err(strange(request)),
            Message::Done(outcome) => return Ok(outcome),
            Message::Failed(failure) => return Err(failure.into()),
        }
    }
}

fn ended(request: &Request, error: &io::Error) -> UserError {
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
    .with_hint("look whether it was done, and at the daemon's log")
}

fn strange(request: &Request) -> UserError {
    UserError::new(
        ExitCode::System,
        format!(
            "{}: the daemon that has the volume mounted does not understand it",
            request.doing()
        ),
    )
    .with_hint(OTHER_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::request::{Difference, Kind, Nobody, Passphrase, PathBytes};
    use std::io::{BufRead, BufReader, Read};
    use std::path::Path;

    struct Recorded(BufReader<io::Cursor<Vec<u8>>>);

    impl Answers for Recorded {
        fn line(&mut self) -> io::Result<String> {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            line.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(line)
        }

        fn raw(&mut self, count: usize) -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; count];
            self.0.read_exact(&mut bytes)?;
            Ok(bytes)
        }
    }

    fn recorded(bytes: Vec<u8>) -> Recorded {
        Recorded(BufReader::new(io::Cursor::new(bytes)))
    }

    #[derive(Default)]
    struct Kept {
        views: Vec<ViewReport>,
        changes: Vec<ChangeReport>,
        bytes: Vec<u8>,
        progress: Vec<BytesDone>,
    }

    impl Receiver for Kept {
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

    fn list() -> Request {
        Request::List {
            kind: Kind::Snapshot,
        }
    }

    #[test]
    fn answers_go_both_ways() {
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
        let mut lines = Lines(Vec::new());
        lines.view(view.clone()).unwrap();
        lines.change(change.clone()).unwrap();
        let done = BytesDone {
            bytes: 5,
            total_bytes: Some(7),
        };
        lines.progress(done).unwrap();
        lines.bytes(b"raw\n{\0").unwrap();
        lines.bytes(b"").unwrap();
        let last = Message::Done(Outcome::Created(view.clone()));
        lines.send(&last).unwrap();
        let mut kept = Kept::default();
        let outcome = receive(&mut recorded(lines.0), &list(), &mut kept).unwrap();
        assert_eq!(outcome, Outcome::Created(view.clone()));
        assert_eq!((kept.views, kept.changes), (vec![view], vec![change]));
        assert_eq!(kept.bytes, b"raw\n{\0");
        assert_eq!(kept.progress, [done]);
    }

    #[test]
    fn failures_keep_code_and_hint() {
        let error = UserError::new(ExitCode::InUse, "it is").with_hint("wait");
        let mut lines = Lines(Vec::new());
        lines.send(&Message::Failed(error.clone().into())).unwrap();
        let told = receive(&mut recorded(lines.0), &list(), &mut Nobody).unwrap_err();
        assert_eq!(told, error);
        for broken in [
            "",
            "{\"bytes\":4}\nab",
            "{\"bytes\":99999999}\n",
            "{\"error\":\"x\"}\n",
        ] {
            let from = broken.as_bytes().to_vec();
            let told = receive(&mut recorded(from), &list(), &mut Nobody).unwrap_err();
            assert_eq!(told.code, ExitCode::System, "{broken}");
            assert!(told.hint.is_some(), "{broken}");
        }
    }

    #[test]
    fn requests_are_one_line_and_have_their_verb() {
        let requests = [
            list(),
            Request::Restore {
                snapshot: "a\nb".to_owned(),
                path: Some(PathBytes(b"x\n\xff".to_vec())),
            },
            Request::Deploy {
                image: "base".to_owned(),
                target: PathBytes::of(Path::new("/new")),
                customer_key: None,
                passphrase: Passphrase::File(PathBytes::of(Path::new("/p"))),
                size_bytes: Some(1),
                keystore: None,
            },
        ];
        for request in requests {
            let line = serde_json::to_string(&request).unwrap();
            assert!(
                !line.contains('\n') && line.starts_with("{\"verb\":"),
                "{line}"
            );
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
        assert!(serde_json::from_str::<Request>("{\"verb\":\"format\"}").is_err());
    }
}
