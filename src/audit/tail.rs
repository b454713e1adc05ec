//! The end of a log file, read backwards: where the chain is to be continued.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::chain::{ChainId, LineHash, Link, Linked, MAX_LINE_BYTES, hash_of};

const BLOCK_BYTES: u64 = 8192;

/// Remains of an interrupted write, behind the last newline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Torn {
    pub(super) bytes: u64,
    pub(super) sha256: LineHash,
}

/// The end of a log file.
#[derive(Debug)]
pub(super) struct Tail {
    /// The file's length.
    pub(super) len: u64,
    pub(super) torn: Option<Torn>,
    /// The last whole line; `None` if there is none, or if it is no record of a chain.
    pub(super) last: Option<Link>,
    /// The end of the last whole line, behind its newline.
    lines_end: u64,
}

impl Tail {
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let lines_end = begin_of_line(file, len)?;
        let torn = (lines_end < len).then(|| Torn::read(file, lines_end, len));
        let last = line_before(file, lines_end)?.and_then(|line| line.link());
        Ok(Self {
            len,
            torn: torn.transpose()?,
            last,
            lines_end,
        })
    }

    /// True if the file has a whole line.
    pub(super) const fn has_lines(&self) -> bool {
        self.lines_end > 0
    }

    /// The record of that number, searched from the end; also the first record if it follows that
    /// number. `None` if neither is in the file, or other lines are in between.
    pub(super) fn find(&self, file: &File, seq: u64) -> io::Result<Option<Found>> {
        let mut end = self.lines_end;
        while let Some(line) = line_before(file, end)? {
            let (Some(linked), Some(link)) = (line.linked(), line.link()) else {
                return Ok(None);
            };
            if link.seq == seq {
                return Ok(Some(Found::Itself(link)));
            }
            if line.begin == 0 && linked.seq.checked_sub(1) == Some(seq) {
                return Ok(Some(Found::Successor(linked.previous)));
            }
            if link.seq < seq {
                return Ok(None);
            }
            end = line.begin;
        }
        Ok(None)
    }
}

/// What a file has of a record.
pub(super) enum Found {
    /// The record.
    Itself(Link),
    /// The record after it, which names its hash.
    Successor(LineHash),
}

impl Torn {
    fn read(file: &File, begin: u64, end: u64) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut at = begin;
        let mut block = vec![0; BLOCK_BYTES as usize];
        while at < end {
            let part = &mut block[..(end - at).min(BLOCK_BYTES) as usize];
            file.read_exact_at(part, at)?;
            hasher.update(&*part);
            at += part.len() as u64;
        }
        Ok(Self {
            bytes: end - begin,
            sha256: hasher.finalize().into(),
        })
    }
}

/// A whole line, without its newline.
struct Line {
    begin: u64,
    /// Empty if the line is too long.
    bytes: Vec<u8>,
}

impl Line {
    fn linked(&self) -> Option<Linked> {
        Linked::parse(&self.bytes)
    }

    fn link(&self) -> Option<Link> {
        self.linked().map(|linked| Link {
            seq: linked.seq,
            hash: hash_of(&self.bytes),
        })
    }
}

/// The line whose newline is the byte before `end`.
fn line_before(file: &File, end: u64) -> io::Result<Option<Line>> {
    let Some(newline) = end.checked_sub(1) else {
        return Ok(None);
    };
    let begin = begin_of_line(file, newline)?;
    let mut bytes = Vec::new();
    if newline - begin <= MAX_LINE_BYTES {
        bytes.resize((newline - begin) as usize, 0);
        file.read_exact_at(&mut bytes, begin)?;
    }
    Ok(Some(Line { begin, bytes }))
}

/// The position behind the last newline before `end`.
fn begin_of_line(file: &File, end: u64) -> io::Result<u64> {
    let mut end = end;
    let mut block = vec![0; BLOCK_BYTES as usize];
    while end > 0 {
        let begin = end.saturating_sub(BLOCK_BYTES);
        let part = &mut block[..(end - begin) as usize];
        file.read_exact_at(part, begin)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// The first record of a file, and the id of the chain that it states.
pub(super) fn first_record(file: &File) -> io::Result<Option<(u64, Option<ChainId>)>> {
    let file = file.try_clone()?;
    let mut reader = BufReader::new(ReadFrom { file, at: 0 });
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        if let Some(linked) = line.strip_suffix(b"\n").and_then(Linked::parse) {
            return Ok(Some((linked.seq, linked.chain)));
        }
    }
}

/// Reads a file from a position on, whatever other users of its descriptor read.
#[derive(Debug)]
pub(super) struct ReadFrom {
    pub(super) file: File,
    pub(super) at: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
