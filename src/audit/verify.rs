//! Verifies the chain of a log, line by line, in bounded memory.
//!
//! A line is *verified* when the record after it names its hash, or, for the last one, when the
//! head that is kept does, or knows of no such record yet: a head is kept after its record was
//! written. Lines between which the chain is broken are reported with their file and number, and
//! verification continues behind them.

use std::fmt;
use std::sync::Arc;

use super::chain::{BREAK, ChainId, Head, LineHash, Link, Linked, TORN, hash_of};

/// The position of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// The file.
    pub(super) file: Arc<str>,
    /// The line, from 1.
    pub(super) line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.file, self.line)
    }
}

/// Something that verification has come upon.
#[derive(Debug)]
pub enum Event<'a> {
    /// A verified record: its line without the newline.
    Record(&'a [u8]),
    /// The chain is broken.
    Problem(String),
    /// Worth knowing, and no break.
    Note(String),
}

/// Receives events.
pub type OnEvent<'a> = dyn FnMut(Event<'_>) + 'a;

/// A head that was kept somewhere, with which the log is compared.
#[derive(Clone, Debug)]
pub struct KeptHead {
    /// Who keeps it, for messages.
    pub keeper: String,
    /// The head.
    pub head: Head,
}

#[derive(Debug)]
struct Held {
    place: Place,
    line: Vec<u8>,
    link: Link,
}

#[derive(Debug)]
struct Watched {
    kept: KeptHead,
    is_done: bool,
}

/// The state of verification.
#[derive(Debug, Default)]
pub(super) struct Verifier {
    /// The last record, which the next one verifies.
    held: Option<Held>,
    /// The link of the last record, also if it was passed on already.
    last: Option<Link>,
    /// A line that is no record, and its hash.
    bad: Option<(Place, LineHash)>,
    chain: Option<ChainId>,
    first: Option<u64>,
    watched: Vec<Watched>,
    problems: u64,
    /// Why the keystore's head cannot be used.
    damaged_head: Option<String>,
}

impl Verifier {
    /// Begins a verification; the heads must have been read before the log is.
    pub(super) fn new(heads: Vec<KeptHead>) -> Self {
        let watched = heads.into_iter().map(|kept| Watched {
            kept,
            is_done: false,
        });
        Self {
            watched: watched.collect(),
            ..Self::default()
        }
    }

    /// Number of breaks so far.
    pub(super) const fn problems(&self) -> u64 {
        self.problems
    }

    /// The number of the last record.
    pub(super) fn count(&self) -> u64 {
        self.last.map_or(0, |last| last.seq)
    }

    /// The head in the keystore is no head.
    pub(super) fn note_damaged_head(&mut self, error: &std::io::Error) {
        self.damaged_head = Some(format!("the head of the log cannot be used: {error}"));
    }

    pub(super) fn problem(&mut self, text: String, to: &mut OnEvent<'_>) {
        self.problems += 1;
        to(Event::Problem(text));
    }

    /// Verifies the next line.
    pub(super) fn line(&mut self, place: Place, line: &[u8], to: &mut OnEvent<'_>) {
        match Linked::parse(line) {
            Some(linked) => self.record(place, line, &linked, to),
            None => self.bad_line(place, hash_of(line), to),
        }
    }

    /// A line that is no record: too long, or not parsed.
    pub(super) fn bad_line(&mut self, place: Place, hash: LineHash, to: &mut OnEvent<'_>) {
        self.give_up_bad_line(to);
        self.bad = Some((place, hash));
    }

    fn give_up_bad_line(&mut self, to: &mut OnEvent<'_>) {
        if let Some((place, _)) = self.bad.take() {
            self.problem(format!("{place} is not a record of the audit"), to);
        }
    }

    fn record(&mut self, place: Place, line: &[u8], linked: &Linked, to: &mut OnEvent<'_>) {
        let torn = self.bad.take_if(|(_, hash)| linked.torn == Some(*hash));
        match torn {
            Some((torn, _)) if linked.action == TORN => to(Event::Note(format!(
                "{torn} is what an interrupted write has left"
            ))),
            torn => {
                self.bad = torn.or(self.bad.take());
                self.give_up_bad_line(to);
            }
        }
        self.chain = linked.chain.or(self.chain);
        match self.last {
            None => self.first_record(&place, linked, to),
            Some(before) => self.compare(before, &place, linked, to),
        }
        if linked.action == BREAK {
            let reason = linked.reason.as_deref().unwrap_or("the log was changed");
            let text = format!(
                "{place}: noticed when record {} was written: {reason}",
                linked.seq
            );
            self.problem(text, to);
        }
        let link = Link {
            seq: linked.seq,
            hash: hash_of(line),
        };
        self.held = Some(Held {
            place,
            line: line.to_vec(),
            link,
        });
        self.last = Some(link);
        self.compare_heads(link, to);
    }

    fn first_record(&mut self, place: &Place, linked: &Linked, to: &mut OnEvent<'_>) {
        self.first = Some(linked.seq);
        let before = linked.seq - 1;
        if linked.seq == 1 && !linked.follows(Link::START) {
            self.problem(format!("{place}: the first record names one before it"), to);
        } else if linked.seq > 1 && linked.chain.is_some() && linked.continues.is_some() {
            let file = linked.continues.as_deref().unwrap_or_default();
            to(Event::Note(format!(
                "records 1 to {before} are in older files, which are not here; the last of these \
                 was {file}"
            )));
        } else if linked.seq > 1 {
            let text = format!("{place}: records 1 to {before} before it are missing");
            self.problem(text, to);
        }
    }

    /// Compares a record with the one before it. That one is verified if this one names it.
    fn compare(&mut self, before: Link, place: &Place, linked: &Linked, to: &mut OnEvent<'_>) {
        let held = self.held.take();
        if linked.follows(before) {
            if let Some(held) = held {
                to(Event::Record(&held.line));
            }
            return;
        }
        let (seq, next) = (linked.seq, before.seq.saturating_add(1));
        let problem = if seq > next {
            format!(
                "{place}: records {next} to {} before it are missing",
                seq - 1
            )
        } else if seq < next {
            format!("{place}: record {seq} comes after record {}", before.seq)
        } else {
            match &held {
                Some(held) => format!("{}: record {} was changed", held.place, before.seq),
                None => format!("{place}: record {} before it was changed", before.seq),
            }
        };
        // A gap says nothing against the record in front of it, unless a head does.
        if let (true, Some(held)) = (seq > next, &held)
            && self.is_confirmed(held.link)
        {
            to(Event::Record(&held.line));
        }
        self.problem(problem, to);
    }

    fn compare_heads(&mut self, link: Link, to: &mut OnEvent<'_>) {
        for index in 0..self.watched.len() {
            let KeptHead { keeper, head } = self.watched[index].kept.clone();
            if head.count == link.seq && head.hash != link.hash {
                let text = format!("record {} is not the one that {keeper} knows of", link.seq);
                self.problem(text, to);
            }
            self.watched[index].is_done |= head.count == link.seq;
        }
    }

    /// False if a head says that the record of that number is another one.
    fn is_confirmed(&self, link: Link) -> bool {
        self.watched.iter().all(|watched| {
            let head = watched.kept.head;
            head.count != link.seq || head.hash == link.hash
        })
    }

    /// Passes on the last record although none follows it yet.
    pub(super) fn flush(&mut self, to: &mut OnEvent<'_>) {
        if let Some(held) = self.held.take()
            && self.is_confirmed(held.link)
        {
            to(Event::Record(&held.line));
        }
    }

    /// Ends the verification: passes on the last record, and compares the heads.
    pub(super) fn finish(&mut self, to: &mut OnEvent<'_>) {
        self.give_up_bad_line(to);
        self.flush(to);
        if let Some(text) = self.damaged_head.take() {
            self.problem(text, to);
        }
        let last = self.count();
        for Watched { kept, is_done } in std::mem::take(&mut self.watched) {
            let KeptHead { keeper, head } = kept;
            let count = head.count;
            if is_done {
                continue;
            }
            if self.chain.is_some_and(|chain| chain != head.chain) {
                to(Event::Note(format!(
                    "{keeper} knows {count} records of another log, which is not this one"
                )));
            } else if last < count {
                let text = format!(
                    "records {} to {count} are missing at the end: {keeper} knows of {count}",
                    last + 1
                );
                self.problem(text, to);
            } else if self.first.is_some_and(|first| first <= count) {
                self.problem(
                    format!("record {count}, which {keeper} knows of, is missing"),
                    to,
                );
            }
        }
    }
}
