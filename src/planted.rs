//! Deliberate mistakes that the power-cut simulator must be able to find.
//!
//! They exist only with the feature `planted-bugs`, which no released program has. Without it
//! [`planted`] is false at compile time, and nothing of this remains in the program.

/// The mistake that the program makes.
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

/// Plants one mistake instead of the previous one; `None` makes the program correct again.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    let number = bug.map_or(0, |bug| bug as u8);
    NOW.store(number, std::sync::atomic::Ordering::Relaxed);
}

/// True if this mistake is to be made.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    NOW.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Always false: this program was built without deliberate mistakes.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn planted(_bug: Bug) -> bool {
    false
}
