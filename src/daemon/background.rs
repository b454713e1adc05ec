//! Moving to the background, and reporting the outcome to the waiting parent.
//!
//! The process forks before it has any thread. The child keeps the terminal (it may have to ask
//! for a passphrase) until the filesystem answers. Then it leaves the terminal and sends one record
//! through a pipe. The parent prints its message and exits with its code:
//!
//! ```text
//! exit code (1 byte) | message | newline | hint       after the code 0 nothing follows
//! ```

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use super::log::Log;
use crate::diagnostics::{ExitCode, UserError};
use crate::sys::interrupt::{self, Watch};
use crate::sys::process::{self, Child, Forked};

/// Length limit of a record, in bytes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// The child's side: reports the outcome once.
#[derive(Debug)]
pub(super) struct Readiness {
    to_parent: Option<PipeWriter>,
    log: Log,
}

impl Readiness {
    /// For a process that stays in the foreground.
    pub(crate) fn foreground(log: Log) -> Self {
        Self {
            to_parent: None,
            log,
        }
    }

    /// The filesystem answers: detaches from the terminal and releases the parent.
    pub(crate) fn ready(&mut self) {
        let Some(mut to_parent) = self.to_parent.take() else {
            return;
        };
        self.log.leave_standard_error();
        if let Err(error) = process::detach_from_terminal() {
            tracing::warn!(%error, "the process could not detach from the terminal");
        }
        send(&mut to_parent, &[ExitCode::Done as u8]);
    }

    /// Reports a failure: through the parent, or in the log if the parent was released.
    fn failed(&mut self, error: &UserError) {
        match self.to_parent.take() {
            Some(mut to_parent) => send(&mut to_parent, &encode(error)),
            None => tracing::error!(hint = error.hint.as_deref(), "{}", error.message),
        }
    }
}

fn send(to_parent: &mut PipeWriter, record: &[u8]) {
    // Fails only if the parent was killed; then no process waits.
    let _ = to_parent.write_all(record);
}

fn encode(error: &UserError) -> Vec<u8> {
    let mut record = vec![error.code as u8];
    record.extend_from_slice(error.message.replace('\n', " ").as_bytes());
    if let Some(hint) = &error.hint {
        record.push(b'\n');
        record.extend_from_slice(hint.replace('\n', " ").as_bytes());
    }
    record
}

fn decode(record: &[u8]) -> Option<Result<(), UserError>> {
    let (&code, text) = record.split_first()?;
    let code = match ExitCode::of_number(code) {
        ExitCode::Done => return Some(Ok(())),
        code => code,
    };
    let text = String::from_utf8_lossy(text);
    let (message, hint) = match text.split_once('\n') {
        Some((message, hint)) => (message, Some(hint.to_owned())),
        None => (text.as_ref(), None),
    };
    Some(Err(UserError {
        code,
        message: message.to_owned(),
        hint,
    }))
}

/// Runs `daemon` in a child and returns its report in the parent. The child ends with `daemon`.
///
/// # Errors
/// The daemon fails before it is ready, cannot be started, or dies.
pub(super) fn in_background(
    log: &Log,
    daemon: impl FnOnce(&mut Readiness) -> Result<(), UserError>,
) -> Result<(), UserError> {
    let forked =
        process::fork().map_err(|error| UserError::io("cannot start the daemon", &error))?;
    let (child, from_child) = match forked {
        Forked::Child { to_parent } => run_child(Some(to_parent), log.clone(), daemon),
        Forked::Parent { child, from_child } => (child, from_child),
    };
    let record = read_report(&child, from_child)
        .map_err(|error| UserError::io("cannot read the daemon's report", &error))?;
    decode(&record).unwrap_or_else(|| Err(daemon_died(&child.wait(), &child)))
}

/// Reads the child's report. A signal is passed on to the child, and waiting continues: the child
/// may have to restore the terminal's echo or to unmount.
fn read_report(child: &Child, mut from_child: PipeReader) -> io::Result<Vec<u8>> {
    let watch = Watch::begin();
    if interrupt::wait_readable(from_child.as_fd()).is_err()
        && let Some(signal) = interrupt::arrived()
    {
        child.signal(signal);
    }
    let mut record = Vec::new();
    from_child
        .by_ref()
        .take(RECORD_BYTES_MAX)
        .read_to_end(&mut record)?;
    drop(watch);
    Ok(record)
}

fn run_child(
    to_parent: Option<PipeWriter>,
    log: Log,
    daemon: impl FnOnce(&mut Readiness) -> Result<(), UserError>,
) -> ! {
    let mut readiness = Readiness { to_parent, log };
    let code = match daemon(&mut readiness) {
        Ok(()) => 0,
        Err(error) => {
            readiness.failed(&error);
            error.code.for_mount()
        }
    };
    std::process::exit(i32::from(code))
}

fn daemon_died(end: &io::Result<i32>, child: &Child) -> UserError {
    let how = match end {
        Ok(code) if *code < 0 => format!("was killed by signal {}", -code),
        Ok(code) => format!("ended with code {code}"),
        Err(error) => format!("({child:?}) cannot be asked: {error}"),
    };
    UserError::new(
        ExitCode::System,
        format!("the daemon {how} before it was ready"),
    )
    .with_hint("to see why: bilayer mount --foreground VOLUME DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_round_trip() {
        let plain = UserError::new(ExitCode::InUse, "it is\nin use");
        let with_hint = UserError::new(ExitCode::Key, "no key").with_hint("get one");
        assert_eq!(
            decode(&encode(&plain)).unwrap().unwrap_err(),
            UserError::new(ExitCode::InUse, "it is in use")
        );
        assert_eq!(decode(&encode(&with_hint)).unwrap().unwrap_err(), with_hint);
        assert_eq!(decode(&[0]), Some(Ok(())));
        assert_eq!(decode(&[]), None);
        assert_eq!(
            decode(&[200, b'x']).unwrap().unwrap_err().code,
            ExitCode::System
        );
    }
}
