//! Mistakes on purpose: what the power-cut simulator must be able to find.
//!
//! Only with the feature `planted-bugs`, which no program that is shipped has. Without it
//! [`planted`] is false at compile time, and nothing of this is left in the program.

/// Where the program goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Bug {
    CommitBeforeDataSync = 1,
    FolderNotSynced,
    UnlinkBeforeCommit,
    PunchBeforeCommit,
    PresenceAhead,
    OneSlotOfPage0,
    RenameUnordered,
    TruncationUnordered,
    KeptViewWrittenInPlace,
    CloneNotMarkedShared,
    NotMarkedInUse,
    NoSyncAfterKill,
    FsyncWithoutCommit,
    DeployedWithoutSync,
    UnlinkedNotSynced,
    FailedSyncForgotten,
    PageUnderAnySet,
    CountersFromStream,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::CommitBeforeDataSync,
        Self::FolderNotSynced,
        Self::UnlinkBeforeCommit,
        Self::PunchBeforeCommit,
        Self::PresenceAhead,
        Self::OneSlotOfPage0,
        Self::RenameUnordered,
        Self::TruncationUnordered,
        Self::KeptViewWrittenInPlace,
        Self::CloneNotMarkedShared,
        Self::NotMarkedInUse,
        Self::NoSyncAfterKill,
        Self::FsyncWithoutCommit,
        Self::DeployedWithoutSync,
        Self::UnlinkedNotSynced,
        Self::FailedSyncForgotten,
        Self::PageUnderAnySet,
        Self::CountersFromStream,
    ];
}

#[cfg(feature = "planted-bugs")]
static NOW: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants one mistake in place of the former one; `None` is a program without.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    let number = bug.map_or(0, |bug| bug as u8);
    NOW.store(number, std::sync::atomic::Ordering::Relaxed);
}

/// True where this mistake is to be made.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    NOW.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// False: this program was built without mistakes on purpose.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn planted(_bug: Bug) -> bool {
    false
}
