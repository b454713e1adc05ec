//! Appending to a log file.
//!
//! Writers in several processes take turns: each holds a lock (`flock(2)`) on the file `LOG.lock`
//! while it reads the end of the log, appends and keeps the new head. The log itself cannot be the
//! lock, since it is renamed when it is rotated.
//!
//! Order of writes: the lines, in one call; the log is synced, and its directory if the log is new;
//! the head is kept. So the head that is kept is never ahead of the log: a log that ends before it
//! was truncated.
//!
//! A writer continues the chain from the last line of the file, if the record that the kept head
//! names is there. Otherwise the file is not what it was: then the writer continues from the kept
//! head, with a record of the break, so that no later record hides what is missing. Remains of an
//! interrupted write stay where they are; the next record contains their hash.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use super::chain::{BEGIN, BREAK, ChainId, Head, HeadStore, Link, TORN};
use super::files::{is_rotated, lock_path};
use super::tail::{Found, Tail, first_record};
use crate::sys::owned::{open_to_append, open_to_read};

/// How long a writer waits for others.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A log is rotated before it grows beyond this length.
pub(super) const ROTATION_BYTES: u64 = 16 << 20;

/// The lock of a log.
#[derive(Debug)]
pub(super) struct LogLock {
    #[expect(dead_code, reason = "held, never read")]
    file: File,
}

impl LogLock {
    pub(super) fn take(log: &Path) -> io::Result<Self> {
        let begin = Instant::now();
        loop {
            // Opened again each time, since somebody may have removed it.
            let file = open_to_append(&lock_path(log))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &lock_path(log)) => return Ok(Self { file }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if begin.elapsed() > LOCK_TIMEOUT {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("another process holds {}", lock_path(log).display()),
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// True if the path leads to this very file.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let same = || -> io::Result<bool> {
        let (ours, there) = (file.metadata()?, std::fs::symlink_metadata(path)?);
        Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    };
    same().unwrap_or(false)
}

/// The outcome of appending.
#[derive(Debug)]
pub(super) struct Appended {
    /// The head of the chain now.
    pub(super) head: Head,
    /// Why the head could not be kept.
    pub(super) head_failure: Option<io::Error>,
    /// What was wrong with the file.
    pub(super) broken: Option<String>,
}

/// Appends records, whose `bodies` are JSON objects, durably and all or none. `time` is that of the
/// records of the log itself. `None` if the log is the null device.
///
/// # Errors
/// The log cannot be opened, locked, read, written or synced. Then nothing was appended, or at most
/// the beginning of a line.
pub(super) fn append(
    log: &Path,
    heads: &dyn HeadStore,
    bodies: &[Vec<u8>],
    time: &str,
    rotation_bytes: u64,
) -> io::Result<Option<Appended>> {
    if std::fs::metadata(log).is_ok_and(|metadata| metadata.file_type().is_char_device()) {
        // Refuses all other devices.
        return open_to_append(log).map(|_| None);
    }
    // Before the lock's file is created beside something that is no log.
    drop(open_to_append(log)?);
    let _lock = LogLock::take(log)?;
    let mut file = open_to_append(log)?;
    let mut tail = Tail::read(&file)?;
    let mut broken = None;
    let kept = heads.load(log).unwrap_or_else(|error| {
        broken = Some(format!("the head that was kept cannot be read: {error}"));
        None
    });
    if tail.has_lines() && broken.is_none() {
        let reason = kept.map(|kept| break_reason(&file, &tail, &kept));
        broken = reason.transpose()?.flatten();
    }
    let is_long = tail.len >= rotation_bytes && tail.torn.is_none() && broken.is_none();
    if is_long && let Some(renamed) = rotate(log, &file)? {
        (file, tail) = renamed;
    }
    let mut text = Text::new(&file, &tail, kept, time)?;
    text.preamble(log, &tail, kept, broken.as_deref())?;
    bodies.iter().for_each(|body| text.add(body));
    write(&mut file, &tail, &text.bytes)?;
    if tail.len == 0 {
        sync_directory(log)?;
    }
    let head = Head {
        chain: text.chain,
        count: text.link.seq,
        hash: text.link.hash,
    };
    let head_failure = heads.store(log, &head).err();
    Ok(Some(Appended {
        head,
        head_failure,
        broken,
    }))
}

/// What contradicts the head that was kept for a file that has a whole line.
fn break_reason(file: &File, tail: &Tail, kept: &Head) -> io::Result<Option<String>> {
    let Some(last) = tail.last else {
        return Ok(Some("the last line is not a record".to_owned()));
    };
    if last.seq < kept.count {
        let (last, kept) = (last.seq, kept.count);
        return Ok(Some(format!(
            "the log ended with record {last}, although there were {kept}"
        )));
    }
    let is_whole = match tail.find(file, kept.count)? {
        Some(Found::Itself(link)) => link.hash == kept.hash,
        Some(Found::Successor(previous)) => previous == kept.hash,
        None => false,
    };
    let count = kept.count;
    Ok((!is_whole).then(|| format!("record {count} is not the one that was written")))
}

/// Renames a log that has become long, and creates the next file. `None` if it stays: the name that
/// it would get is taken.
fn rotate(log: &Path, file: &File) -> io::Result<Option<(File, Tail)>> {
    let Some((first, _)) = first_record(file)? else {
        return Ok(None);
    };
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{first}"));
    let renamed = renameat_with(CWD, log, CWD, PathBuf::from(name), RenameFlags::NOREPLACE);
    if let Err(error) = renamed {
        tracing::warn!(%error, "the audit {} is not rotated", log.display());
        return Ok(None);
    }
    let file = open_to_append(log)?;
    let tail = Tail::read(&file)?;
    Ok(Some((file, tail)))
}

/// The lines to append.
struct Text<'a> {
    bytes: Vec<u8>,
    link: Link,
    chain: ChainId,
    time: &'a str,
}

impl<'a> Text<'a> {
    fn new(file: &File, tail: &Tail, kept: Option<Head>, time: &'a str) -> io::Result<Self> {
        let chain = match kept {
            Some(kept) => Some(kept.chain),
            None => first_record(file)?.and_then(|(_, chain)| chain),
        };
        Ok(Self {
            bytes: Vec::new(),
            link: tail.last.unwrap_or(Link::START),
            chain: chain.map_or_else(ChainId::random, Ok)?,
            time,
        })
    }

    /// Continues the chain where it has to be, with the records that say why.
    fn preamble(
        &mut self,
        log: &Path,
        tail: &Tail,
        kept: Option<Head>,
        broken: Option<&str>,
    ) -> io::Result<()> {
        let kept_link = kept.map(|kept| kept.link());
        let mut fields = json!({});
        if !tail.has_lines() {
            self.link = kept_link.unwrap_or(Link::START);
            fields["chain"] = hex::encode(self.chain.0).into();
            let continues = kept_link.map(|kept| file_that_ends_with(log, kept));
            if let Some(continues) = continues.transpose()?.flatten() {
                fields["continues"] = continues.into();
            }
        }
        let is_no_log = tail.has_lines() && tail.last.is_none();
        let broken = broken.or(is_no_log.then_some("the last line is not a record"));
        if tail.torn.is_some() {
            self.bytes.push(b'\n');
        }
        if let Some(reason) = broken {
            let found = tail.last.map(|last| last.seq);
            self.link = kept_link.unwrap_or(self.link);
            fields["chain"] = hex::encode(self.chain.0).into();
            fields["reason"] = reason.into();
            fields["found"] = found.into();
            self.add_own(BREAK, &fields);
        } else if let Some(torn) = tail.torn {
            fields["bytes"] = torn.bytes.into();
            fields["torn_sha256"] = hex::encode(torn.sha256).into();
            self.add_own(TORN, &fields);
        } else if !tail.has_lines() {
            self.add_own(BEGIN, &fields);
        }
        Ok(())
    }

    /// Adds a record of the log itself.
    fn add_own(&mut self, action: &str, fields: &serde_json::Value) {
        let mut record = json!({
            "time": self.time, "action": action, "outcome": "done", "volume": null, "path": null,
            "mount_point": null, "uid": null, "pid": null, "version": env!("CARGO_PKG_VERSION"),
        });
        if let (Some(record), Some(fields)) = (record.as_object_mut(), fields.as_object()) {
            record.extend(fields.clone());
        }
        self.add(record.to_string().as_bytes());
    }

    fn add(&mut self, body: &[u8]) {
        let (line, link) = self.link.next(body);
        self.bytes.extend_from_slice(&line);
        self.bytes.push(b'\n');
        self.link = link;
    }
}

/// The name of a rotated file whose last record is that one.
fn file_that_ends_with(log: &Path, last: Link) -> io::Result<Option<String>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else {
        return Ok(None);
    };
    for entry in std::fs::read_dir(dir)? {
        let file_name = entry?.file_name();
        if !is_rotated(name, &file_name) {
            continue;
        }
        let ends_with = |file: File| Tail::read(&file).is_ok_and(|tail| tail.last == Some(last));
        if open_to_read(&dir.join(&file_name)).is_ok_and(ends_with) {
            return Ok(Some(file_name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Writes and syncs. What was written of lines that do not fit is removed again, unless the file
/// can only be appended to.
fn write(file: &mut File, tail: &Tail, bytes: &[u8]) -> io::Result<()> {
    let written = file.write_all(bytes).and_then(|()| file.sync_data());
    if written.is_err()
        && let Err(error) = file.set_len(tail.len)
    {
        tracing::debug!(%error, "the audit keeps the beginning of a line");
    }
    written
}

fn sync_directory(log: &Path) -> io::Result<()> {
    match log.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
