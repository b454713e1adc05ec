//! `bilayer audit`: shows the audit, and verifies that nothing is missing in it.
//!
//! Only verified records are printed to standard output. Breaks of the chain, with file and line,
//! are printed to standard error.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde_json::Value;

use crate::audit::{self, Event, Head, KeptHead, LogReader};
use crate::cli::args::KeystoreArg;
use crate::cli::output::format::printable;
use crate::cli::output::{print_error, print_unless_closed};
use crate::control::client::ControlClient;
use crate::control::line::RESPONSE_TIMEOUT;
use crate::control::locate::{Holder, Located, find};
use crate::control::report::report_claims;
use crate::control::request::Request;
use crate::control::response::Response;
use crate::diagnostics::{ExitCode, UserError};
use crate::fs::{Filesystem, FilesystemOptions};
use crate::ids::VolumeId;
use crate::keys::{AuditHeads, PassphraseSource};
use crate::store::directory::DirectoryStore;
use crate::volume::{self, OpenOptions};

pub(in crate::cli) const HELP: &str = "\
TIME is a time (2027-01-31T08:00:00Z), a date (2027-01-31) or how long ago (2h, 3d).

The log is compared with the number of records and the hash of the last one that the platform
keystore keeps and, with --volume, with those that the volume's metadata keeps. Exit code 5: lines
were changed, removed or added; standard error names them. Records are still printed, except those
that are not verified.

Examples:
  bilayer audit --since 3d --volume /srv/vault
  bilayer audit --json --follow | jq -r 'select(.outcome == \"refused\") | .reason'";

/// How often `--follow` looks for new records.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// Output is collected up to this length.
const OUTPUT_BYTES: usize = 64 << 10;

/// Fields that every record has, and that have columns of their own.
const COLUMNS: [&str; 13] = [
    "seq",
    "previous",
    "time",
    "action",
    "outcome",
    "volume",
    "path",
    "mount_point",
    "uid",
    "pid",
    "sudo_uid",
    "version",
    "reason",
];

#[derive(Args, Debug)]
pub(in crate::cli) struct AuditArgs {
    /// Only records from this time on
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Only records of this volume: its directory, where it is mounted, or its id
    #[arg(long, value_name = "VOLUME")]
    volume: Option<PathBuf>,
    /// The lines of the log as they are
    #[arg(long)]
    json: bool,
    /// Wait for further records, and print them as they come
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    keystore: KeystoreArg,
}

/// `bilayer audit`.
///
/// # Errors
/// There is no log, it cannot be read, or its chain is broken.
pub(in crate::cli) fn run(args: &AuditArgs) -> Result<(), UserError> {
    let keystore = args.keystore.dir()?;
    let Some(log) = audit::file() else {
        return Err(
            UserError::usage("the audit is in the system's log, not in a file")
                .with_hint("see it there: journalctl SYSLOG_IDENTIFIER=bilayer SYSLOG_FACILITY=4"),
        );
    };
    let (filter, kept) = match &args.volume {
        Some(volume) => find_volume(volume, &keystore)?,
        None => (None, None),
    };
    let failed = |error| {
        UserError::io(
            format_args!("cannot read the audit {}", log.display()),
            &error,
        )
    };
    let mut output = Output {
        filter,
        since: args.since,
        json: args.json,
        text: String::new(),
        is_closed: false,
        failure: None,
    };
    let mut reader = LogReader::open(
        &log,
        &AuditHeads::new(&keystore),
        kept.into_iter().collect(),
    )
    .map_err(|error| explain(failed(error)))?;
    let verified = reader
        .verify(&mut |event| output.event(event))
        .map_err(failed)?;
    output.flush()?;
    if args.follow {
        while !output.is_closed {
            thread::sleep(FOLLOW_INTERVAL);
            reader
                .poll(&mut |event| output.event(event))
                .map_err(failed)?;
            output.flush()?;
        }
    }
    match verified.problems {
        0 => Ok(()),
        problems => Err(UserError::new(
            ExitCode::Integrity,
            format!(
                "the audit {} is not whole: {}",
                log.display(),
                breaks(problems)
            ),
        )
        .with_hint(
            "find out who changed it; the heads in the system's log, if it has any, say how far it \
             went: journalctl SYSLOG_IDENTIFIER=bilayer SYSLOG_FACILITY=4",
        )),
    }
}

fn breaks(problems: u64) -> String {
    match problems {
        1 => "its chain is broken in 1 place".to_owned(),
        _ => format!("its chain is broken in {problems} places"),
    }
}

fn explain(error: UserError) -> UserError {
    match error.code {
        ExitCode::NotFound => error.with_hint(
            "name it, or the keystore that it is in: --audit-log FILE, --platform-keystore DIR",
        ),
        _ => error,
    }
}

/// The records to show.
struct VolumeFilter {
    id: Option<String>,
    /// The directory, if the volume is not known by an id.
    path: Option<String>,
}

impl VolumeFilter {
    fn admits(&self, record: &Value) -> bool {
        let is = |name: &str, wanted: &Option<String>| {
            wanted.is_some() && record[name].as_str() == wanted.as_deref()
        };
        is("volume", &self.id)
            || is("source_volume", &self.id)
            || (record["volume"].is_null() && is("path", &self.path))
    }
}

/// The volume that the user names, and the head that its metadata keeps.
fn find_volume(
    named: &Path,
    keystore: &Path,
) -> Result<(Option<VolumeFilter>, Option<KeptHead>), UserError> {
    let id = named.to_str().and_then(VolumeId::from_hex);
    if let (Some(id), false) = (id, named.exists()) {
        let id = Some(id.to_string());
        return Ok((Some(VolumeFilter { id, path: None }), None));
    }
    let mut located = find(named)?;
    let holder = std::mem::replace(&mut located.holder, Holder::Nobody);
    let store = open_store(&located)?;
    let claims = report_claims(&located.path, &store)?;
    let head = match holder {
        Holder::Daemon { control, .. } => head_of_daemon(control),
        Holder::Nobody => head_of_volume(&located, store, keystore),
        Holder::Mount(_) | Holder::Unknown(_) => Err("its daemon cannot be asked".to_owned()),
    };
    let directory = located.path.display();
    let head = head.unwrap_or_else(|why| {
        print_error(&format_args!(
            "note: the log is not compared with what the volume {directory} knows: {why}"
        ));
        None
    });
    let filter = VolumeFilter {
        id: Some(claims.header.volume_id),
        path: Some(located.path.to_string_lossy().into_owned()),
    };
    let keeper = format!("the volume {directory}");
    Ok((Some(filter), head.map(|head| KeptHead { keeper, head })))
}

fn open_store(located: &Located) -> Result<DirectoryStore, UserError> {
    DirectoryStore::open(&located.access_path()?).map_err(|error| {
        UserError::io(
            format_args!("cannot open {}", located.path.display()),
            &error,
        )
    })
}

fn head_of_daemon(mut daemon: ControlClient) -> Result<Option<Head>, String> {
    let report = match daemon.ask(&Request::Status, Some(RESPONSE_TIMEOUT)) {
        Ok(Response::Status(report)) => *report,
        Ok(Response::Failed(failure)) => return Err(failure.message),
        Ok(_) => return Err("its daemon is of another version".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let head = report.usage.as_ref().map(|usage| &usage["audit_head"]);
    Ok(head.and_then(|head| {
        let (chain, hash) = (head["chain"].as_str()?, head["head"].as_str()?);
        Head::from_hex(chain, head["count"].as_u64()?, hash)
    }))
}

/// Opens the volume if no passphrase has to be typed.
fn head_of_volume(
    located: &Located,
    store: DirectoryStore,
    keystore: &Path,
) -> Result<Option<Head>, String> {
    audit::set_volume(&located.path);
    let options = OpenOptions {
        keystore: keystore.to_path_buf(),
        path: Some(located.path.clone()),
        named: located.named.clone(),
        passphrase: PassphraseSource::None,
        read_only: true,
        ..OpenOptions::default()
    };
    let volume = volume::open(Arc::new(store), &options).map_err(|error| error.to_string())?;
    let options = FilesystemOptions {
        read_only: true,
        ..FilesystemOptions::default()
    };
    let filesystem = Filesystem::open(volume, options).map_err(|error| error.to_string())?;
    filesystem.audit_head().map_err(|error| error.to_string())
}

/// Parses the argument of `--since`.
///
/// # Errors
/// It is no time.
fn parse_since(text: &str) -> Result<Timestamp, String> {
    since(text, &Zoned::now()).ok_or_else(|| {
        "expected a time (2027-01-31T08:00:00Z), a date (2027-01-31) or how long ago (2h, 3d)"
            .to_owned()
    })
}

fn since(text: &str, now: &Zoned) -> Option<Timestamp> {
    let time_of_date = |date: Date| Some(date.to_zoned(now.time_zone().clone()).ok()?.timestamp());
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if let Ok(date) = text.parse::<Date>() {
        return time_of_date(date);
    }
    let ago: Span = text.parse().ok().filter(|ago: &Span| !ago.is_negative())?;
    Some(now.checked_sub(ago).ok()?.timestamp())
}

/// Collects what is printed.
struct Output {
    filter: Option<VolumeFilter>,
    since: Option<Timestamp>,
    json: bool,
    text: String,
    is_closed: bool,
    failure: Option<UserError>,
}

impl Output {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Record(line) => self.record(line),
            Event::Problem(text) => self.remark("broken", &text),
            Event::Note(text) => self.remark("note", &text),
        }
        if self.text.len() >= OUTPUT_BYTES {
            self.failure = self.flush().err().or(self.failure.take());
        }
    }

    /// Prints a remark behind the records before it.
    fn remark(&mut self, kind: &str, text: &str) {
        self.failure = self.flush().err().or(self.failure.take());
        print_error(&format_args!("{kind}: {}", printable(text)));
    }

    fn record(&mut self, line: &[u8]) {
        let (Ok(text), Ok(record)) = (
            std::str::from_utf8(line),
            serde_json::from_slice::<Value>(line),
        ) else {
            return;
        };
        let is_since = |since: Timestamp| {
            let time = record["time"].as_str().and_then(|time| time.parse().ok());
            time.is_none_or(|time: Timestamp| time >= since)
        };
        if !self.since.is_none_or(is_since)
            || !self.filter.as_ref().is_none_or(|it| it.admits(&record))
        {
            return;
        }
        match self.json {
            true => self.text.push_str(text),
            false => self.text.push_str(&human(&record)),
        }
        self.text.push('\n');
    }

    fn flush(&mut self) -> Result<(), UserError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if !self.is_closed && !self.text.is_empty() {
            self.is_closed = !print_unless_closed(&self.text)?;
        }
        self.text.clear();
        Ok(())
    }
}

/// A record as a line for people.
fn human(record: &Value) -> String {
    let text = |name: &str| shown(&record[name]);
    let time = record["time"].as_str().and_then(|time| time.parse().ok());
    let time = time.map_or_else(
        || text("time"),
        |time: Timestamp| {
            let local = time.to_zoned(TimeZone::system());
            local.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
        },
    );
    let volume = record["volume"].as_str().unwrap_or("-");
    let volume: String = volume.chars().take(8).collect();
    let place = ["mount_point", "path"]
        .into_iter()
        .find(|name| !record[name].is_null());
    let place = place.map_or_else(|| "-".to_owned(), text);
    let mut line = format!(
        "{time:<23}  {:>6}  {:<7}  {:<20}  {:>5}/{:<7}  {volume:<8}  {place}",
        text("seq"),
        text("outcome"),
        text("action"),
        text("uid"),
        text("pid"),
    );
    let details = record.as_object().into_iter().flatten();
    for (name, value) in details.filter(|(name, _)| !COLUMNS.contains(&name.as_str())) {
        line.push_str(&format!("  {}={}", printable(name), shown(value)));
    }
    if let Some(reason) = record["reason"].as_str() {
        line.push_str(&format!("  {}", printable(reason)));
    }
    line
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        value => printable(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_dates_and_durations() {
        let now: Zoned = "2027-03-01T12:00:00+01:00[Europe/Vienna]".parse().unwrap();
        for (text, expected) in [
            ("2027-01-31T08:00:00Z", "2027-01-31T08:00:00Z"),
            ("2027-01-31T08:00:00.5+02:00", "2027-01-31T06:00:00.5Z"),
            ("2027-01-31", "2027-01-30T23:00:00Z"),
            ("2h", "2027-03-01T09:00:00Z"),
            ("3d", "2027-02-26T11:00:00Z"),
            ("90m", "2027-03-01T09:30:00Z"),
            ("1h30m", "2027-03-01T09:30:00Z"),
        ] {
            assert_eq!(since(text, &now), Some(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "x", "3", "-3d", "2027-02-30", "99999999999y"] {
            assert_eq!(since(text, &now), None, "{text}");
        }
    }

    #[test]
    fn a_line_for_people_is_one_line() {
        let record = serde_json::json!({
            "seq": 7, "previous": "00", "time": "2027-01-31T08:00:00.123456Z", "action": "unwrap",
            "outcome": "refused", "volume": "00112233445566778899aabbccddeeff", "path": "/a\nb",
            "mount_point": null, "uid": 0, "pid": 4711, "version": "0", "role": "customer",
            "reason": "no\u{1b}[31m key",
        });
        let line = human(&record);
        assert!(!line.contains(char::is_control), "{line}");
        for part in [
            "     7",
            "refused",
            "unwrap",
            "0/4711",
            "00112233",
            "role=customer",
            "key",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
