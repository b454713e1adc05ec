//! Reads a log with its rotated files, oldest first, and verifies its chain.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::append::{LogLock, is_at};
use super::chain::{Head, HeadStore, MAX_LINE_BYTES};
use super::files::{is_rotated, lock_path};
use super::tail::{ReadFrom, first_record};
use super::verify::{Event, KeptHead, OnEvent, Place, Verifier};
use crate::sys::owned::open_to_read;

/// A log that is being read.
#[derive(Debug)]
pub struct LogReader {
    log: PathBuf,
    /// The rotated files, oldest first, then the log; their lengths when they were opened.
    files: Vec<OpenLog>,
    verifier: Verifier,
}

#[derive(Debug)]
struct OpenLog {
    name: Arc<str>,
    reader: BufReader<ReadFrom>,
    lines: u64,
    /// Bytes that may still be read.
    left: u64,
    /// Where the line after these begins.
    begin: u64,
    /// The beginning of that line.
    partial: Vec<u8>,
}

/// How the verification ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    /// The number of the last record.
    pub count: u64,
    /// Number of breaks.
    pub problems: u64,
}

impl LogReader {
    /// Opens a log. `others` are heads that are kept elsewhere than in the keystore.
    ///
    /// # Errors
    /// A file, or the head, cannot be read. `NotFound` if there is neither a file nor a head.
    pub fn open(log: &Path, heads: &dyn HeadStore, others: Vec<KeptHead>) -> io::Result<Self> {
        // Without the right to lock, a writer may come between. The head is read first then.
        let _lock = match lock_path(log).exists() {
            true => LogLock::take(log).ok(),
            false => None,
        };
        let kept = heads.load(log);
        let (kept, head_problem) = match kept {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => (None, Some(error)),
            kept => (kept?, None),
        };
        let files = open_files(log)?;
        if files.is_empty() && kept.is_none() && head_problem.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let keeper = "the platform keystore".to_owned();
        let kept = kept.map(|head: Head| KeptHead { keeper, head });
        let mut verifier = Verifier::new(kept.into_iter().chain(others).collect());
        if let Some(error) = head_problem {
            verifier.note_damaged_head(&error);
        }
        Ok(Self {
            log: log.to_owned(),
            files,
            verifier,
        })
    }

    /// Verifies everything that was there when the log was opened. Memory is bounded by the longest
    /// line.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn verify(&mut self, to: &mut OnEvent<'_>) -> io::Result<Verified> {
        self.read_files(to)?;
        for file in &self.files {
            if file.begin < file.position() {
                let (name, line) = (&file.name, file.lines + 1);
                let text = format!("{name}, line {line} has no end: a write was interrupted");
                to(Event::Note(text));
            }
        }
        self.verifier.finish(to);
        Ok(Verified {
            count: self.verifier.count(),
            problems: self.verifier.problems(),
        })
    }

    fn read_files(&mut self, to: &mut OnEvent<'_>) -> io::Result<()> {
        for file in &mut self.files {
            file.read_lines(&mut self.verifier, to)?;
        }
        // Only the newest one grows.
        let surplus = self.files.len().saturating_sub(1);
        self.files.drain(..surplus);
        Ok(())
    }

    /// Reads what was appended since, also to a log that has been rotated in between, after
    /// [`Self::verify`].
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn poll(&mut self, to: &mut OnEvent<'_>) -> io::Result<()> {
        let is_current = |file: &OpenLog| is_at(&file.reader.get_ref().file, &self.log);
        let is_rotated = !self.files.last().is_some_and(is_current);
        // The writer that is appending to the rotated file must have finished.
        let _lock = match is_rotated && lock_path(&self.log).exists() {
            true => LogLock::take(&self.log).ok(),
            false => None,
        };
        if let Some(file) = self.files.last_mut() {
            let len = file.reader.get_ref().file.metadata()?.len();
            if len < file.begin {
                let text = format!("{} was truncated while it was read", file.name);
                self.verifier.problem(text, to);
                file.begin = 0;
                file.lines = 0;
            }
            // A writer may have removed the beginning of a line for which there was no space.
            file.seek_to_begin();
            file.left = len.saturating_sub(file.position());
            file.read_lines(&mut self.verifier, to)?;
        }
        if is_rotated {
            match open_to_read(&self.log) {
                Ok(file) => {
                    self.files.clear();
                    let mut file = OpenLog::new(&self.log, file)?;
                    file.read_lines(&mut self.verifier, to)?;
                    self.files.push(file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.verifier.flush(to);
        Ok(())
    }
}

/// Opens the files of a log, oldest first.
fn open_files(log: &Path) -> io::Result<Vec<OpenLog>> {
    let mut rotated = Vec::new();
    let (Some(dir), Some(log_name)) = (log.parent(), log.file_name()) else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if is_rotated(log_name, &name) {
            let path = dir.join(&name);
            let file = open_to_read(&path)?;
            let first = first_record(&file)?.map_or(0, |(seq, _)| seq);
            rotated.push((first, OpenLog::new(&path, file)?));
        }
    }
    rotated.sort_by_key(|(first, _)| *first);
    let mut files: Vec<_> = rotated.into_iter().map(|(_, file)| file).collect();
    match open_to_read(log) {
        Ok(file) => files.push(OpenLog::new(log, file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(files)
}

impl OpenLog {
    fn new(path: &Path, file: File) -> io::Result<Self> {
        let left = file.metadata()?.len();
        Ok(Self {
            name: path.display().to_string().into(),
            reader: BufReader::new(ReadFrom { file, at: 0 }),
            lines: 0,
            left,
            begin: 0,
            partial: Vec::new(),
        })
    }

    /// Where the next byte comes from.
    fn position(&self) -> u64 {
        self.reader.get_ref().at - self.reader.buffer().len() as u64
    }

    /// Reads the current line again.
    fn seek_to_begin(&mut self) {
        let buffered = self.reader.buffer().len();
        self.reader.consume(buffered);
        self.reader.get_mut().at = self.begin;
        self.partial.clear();
    }

    fn next_line(&mut self) {
        self.lines += 1;
        self.begin = self.position();
        self.partial.clear();
    }

    fn read_lines(&mut self, verifier: &mut Verifier, to: &mut OnEvent<'_>) -> io::Result<()> {
        while self.left > 0 {
            let room = (MAX_LINE_BYTES + 1).saturating_sub(self.partial.len() as u64);
            let limit = room.min(self.left);
            let mut part = (&mut self.reader).take(limit);
            let read = part.read_until(b'\n', &mut self.partial)? as u64;
            if read == 0 {
                self.left = 0;
                break;
            }
            self.left -= read;
            let place = Place {
                file: Arc::clone(&self.name),
                line: self.lines + 1,
            };
            if let Some(line) = self.partial.strip_suffix(b"\n") {
                verifier.line(place, line, to);
                self.next_line();
            } else if self.partial.len() as u64 > MAX_LINE_BYTES
                && let Some(hash) = self.skip_long_line()?
            {
                verifier.bad_line(place, hash, to);
                self.next_line();
            }
        }
        Ok(())
    }

    /// Reads to the end of a line that is too long to be a record. Returns its hash; `None` if it
    /// has no end.
    fn skip_long_line(&mut self) -> io::Result<Option<[u8; 32]>> {
        let mut hasher = Sha256::new();
        loop {
            if let Some(end) = self.partial.strip_suffix(b"\n") {
                hasher.update(end);
                return Ok(Some(hasher.finalize().into()));
            }
            hasher.update(&self.partial);
            self.partial.clear();
            let mut part = (&mut self.reader).take(self.left.min(1 << 16));
            let read = part.read_until(b'\n', &mut self.partial)? as u64;
            self.left = self.left.saturating_sub(read);
            if read == 0 {
                self.left = 0;
                return Ok(None);
            }
        }
    }
}
