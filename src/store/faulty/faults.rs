//! Which calls of the faulty store fail, and how.

use std::fmt;

use super::super::StorePath;
use crate::errno::Errno;

/// The kind of a call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CallKind {
    /// Opening a file that exists.
    Open,
    /// Opening with `CreateNew`.
    Create,
    /// `StoreFile::read_at`.
    Read,
    /// `StoreFile::write_at`.
    Write,
    /// `StoreFile::set_len`.
    SetLen,
    /// `StoreFile::punch`.
    Punch,
    /// `StoreFile::reserve`.
    Reserve,
    /// `StoreFile::sync`.
    Sync,
    /// `StoreFile::len`, and `info` of either trait.
    Info,
    /// `Store::rename`.
    Rename,
    /// `Store::link`.
    Link,
    /// `Store::unlink`.
    Unlink,
    /// `Store::create_dir`.
    CreateDir,
    /// `Store::remove_dir`.
    RemoveDir,
    /// `Store::list`.
    List,
    /// `Store::sync_dir`.
    SyncDir,
    /// `Store::sync_all`.
    SyncAll,
    /// `Store::space`.
    Space,
    /// `Store::lock`.
    Lock,
}

impl CallKind {
    /// True if a cut in the middle of the call may leave some of its effect behind.
    const fn changes(self) -> bool {
        match self {
            Self::Create
            | Self::Write
            | Self::SetLen
            | Self::Punch
            | Self::Reserve
            | Self::Rename
            | Self::Link
            | Self::Unlink
            | Self::CreateDir
            | Self::RemoveDir => true,
            Self::Open
            | Self::Read
            | Self::Sync
            | Self::Info
            | Self::List
            | Self::SyncDir
            | Self::SyncAll
            | Self::Space
            | Self::Lock => false,
        }
    }
}

/// A call, as a rule sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Counted from 1 since the store was made.
    pub number: u64,
    /// Its kind.
    pub kind: CallKind,
    /// Its path: the first of two paths; for a file the path by which it was opened.
    pub path: &'a StorePath,
}

/// The call during which the power was cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutCall {
    /// Counted from 1 since the store was made.
    pub number: u64,
    /// Its kind.
    pub kind: CallKind,
    /// Its path, as in [`Call`].
    pub path: StorePath,
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is done and the error is reported. A failing sync gives up its dirty pages.
    Error(Errno),
    /// A write stores this many bytes from its start and reports ENOSPC; another call reports EIO.
    ShortWrite {
        /// Bytes stored.
        bytes: usize,
    },
}

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Proceed,
    /// Do nothing.
    Refuse(Errno),
    /// Store this many bytes, then report ENOSPC.
    Shorten(usize),
    /// Do it, then report EIO: the power is cut during this call.
    CutAfter,
    /// A sync: give up the dirty pages, then report the error.
    GiveUp(Errno),
}

struct Rule {
    matches: Box<dyn Fn(&Call<'_>) -> bool + Send + Sync>,
    fault: Fault,
}

/// Counter, cut and rules.
#[derive(Default)]
pub(super) struct FaultPlan {
    calls: u64,
    cut_at: Option<u64>,
    /// The call during which the power was cut.
    cut_call: Option<CutCall>,
    stopped: bool,
    rules: Vec<Rule>,
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultPlan")
            .field("calls", &self.calls)
            .field("cut_at", &self.cut_at)
            .field("stopped", &self.stopped)
            .field("rules", &self.rules.len())
            .finish()
    }
}

impl FaultPlan {
    pub(super) const fn calls(&self) -> u64 {
        self.calls
    }

    pub(super) const fn stopped(&self) -> bool {
        self.stopped
    }

    pub(super) const fn cut_call(&self) -> Option<&CutCall> {
        self.cut_call.as_ref()
    }

    pub(super) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) const fn cut_at(&mut self, number: u64) {
        self.cut_at = Some(number);
    }

    pub(super) const fn resume(&mut self) {
        self.stopped = false;
        self.cut_at = None;
    }

    pub(super) fn add(
        &mut self,
        matches: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) {
        self.rules.push(Rule {
            matches: Box::new(matches),
            fault,
        });
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Counts the call and decides what happens to it. The first matching rule decides.
    pub(super) fn admit(&mut self, kind: CallKind, path: &StorePath) -> Verdict {
        if self.stopped {
            return Verdict::Refuse(Errno::EIO);
        }
        self.calls += 1;
        let call = Call {
            number: self.calls,
            kind,
            path,
        };
        if self.cut_at.is_some_and(|number| call.number >= number) {
            self.stopped = true;
            self.cut_call = Some(CutCall {
                number: call.number,
                kind,
                path: path.clone(),
            });
            return match kind.changes() {
                true => Verdict::CutAfter,
                false => Verdict::Refuse(Errno::EIO),
            };
        }
        let rule = self.rules.iter().find(|rule| (rule.matches)(&call));
        let errno = match rule.map(|rule| rule.fault) {
            None => return Verdict::Proceed,
            Some(Fault::ShortWrite { bytes }) if kind == CallKind::Write => {
                return Verdict::Shorten(bytes);
            }
            Some(Fault::ShortWrite { .. }) => Errno::EIO,
            Some(Fault::Error(errno)) => errno,
        };
        match kind {
            CallKind::Sync | CallKind::SyncAll => Verdict::GiveUp(errno),
            _ => Verdict::Refuse(errno),
        }
    }
}
