//! Set-id bits and `security.capability`: which change takes them away, as in Linux (`fs/attr.c`,
//! `setattr_should_drop_suidgid` and `setattr_prepare`).
//!
//! | change | set-user-id, set-group-id with group execution | set-group-id that is only a mark | `security.capability` |
//! |---|---|---|---|
//! | of contents or length | go, unless the asker has `CAP_FSETID` | the same, and where the asker is not of the group | goes |
//! | of the owner, also to the same | go | goes where the asker is not of the group | goes |
//! | of the access list | stay | goes where the asker is not of the group, either kind | stays |
//!
//! To be of the group is to be a member, or to have `CAP_FSETID` over the inode in a user namespace
//! that maps its owner and its group.
//!
//! Who may change an owner is checked by the kernel, but for one case: a chown to the same owner asks
//! for nothing that it would check, and takes bits away all the same. Linux then wants the owner of
//! the file, or `CAP_FOWNER`.

use super::types::{Caller, FileKind, SetAttr};
use crate::errno::Errno;
use crate::meta::records::InodeRecord;

pub(super) const SETUID: u16 = 0o4000;
pub(super) const SETGID: u16 = 0o2000;
const SET_IDS: u16 = SETUID | SETGID;
const GROUP_EXECUTE: u16 = 0o010;
/// The attribute that holds a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// What an asker is allowed. It costs something to find out, so it is asked only where it decides.
pub trait Privileges {
    /// What the asker writes keeps its set-id bits: `CAP_FSETID` in the machine's first user
    /// namespace.
    fn keeps_set_ids(&self) -> bool;
    /// In that group, or has `CAP_FSETID` over an inode of that owner and group.
    fn is_of_group(&self, owner: u32, group: u32) -> bool;
    /// Owns what that user owns, or has `CAP_FOWNER` over it.
    fn is_owner(&self, owner: u32) -> bool;
    /// May see `trusted.` attributes: `CAP_SYS_ADMIN` in the machine's first user namespace.
    fn sees_trusted(&self) -> bool;
}

/// Of whom no more is known than the numbers: uid 0 has all, and everybody is of every group and
/// may do what is asked.
impl Privileges for Caller {
    fn keeps_set_ids(&self) -> bool {
        self.uid == 0
    }

    fn is_of_group(&self, _: u32, _: u32) -> bool {
        true
    }

    fn is_owner(&self, _: u32) -> bool {
        true
    }

    fn sees_trusted(&self) -> bool {
        self.uid == 0
    }
}

/// What a change of attributes is to privileges, where its fields do not say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Touch {
    /// Nothing.
    #[default]
    Nothing,
    /// As a change of contents.
    Contents,
    /// As a change of the owner.
    Owner,
    /// One of both, and it cannot be told which.
    Either,
}

/// Privileges that a change takes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kill {
    Nothing,
    /// The file's capabilities alone.
    Capability,
    /// Those that executing the file would give, and its capabilities.
    Executable,
    /// The set-group-id bit too that is only a mark.
    AllSetIds,
}

impl Kill {
    /// What `changes` take away.
    ///
    /// # Errors
    /// `EPERM`: set-id bits would go with the change of an owner by somebody else.
    pub(super) fn by(
        record: &InodeRecord,
        changes: &SetAttr,
        who: &dyn Privileges,
    ) -> Result<Self, Errno> {
        let touch = match changes.touch {
            _ if record.kind == FileKind::Directory => Touch::Nothing,
            _ if changes.uid.is_some() || changes.gid.is_some() => Touch::Owner,
            // Only files have contents that somebody can be about to write.
            Touch::Contents | Touch::Either if record.kind != FileKind::Regular => Touch::Owner,
            // If it announces a write, that says once more what goes.
            Touch::Either if !who.is_owner(record.uid) => Touch::Nothing,
            Touch::Either => Touch::Owner,
            Touch::Nothing if changes.size.is_some() => Touch::Contents,
            touch => touch,
        };
        match touch {
            Touch::Nothing => Ok(Self::Nothing),
            Touch::Contents => Ok(Self::by_writing(record, who)),
            Touch::Owner | Touch::Either => Self::by_owning(record, changes, who),
        }
    }

    fn by_owning(
        record: &InodeRecord,
        changes: &SetAttr,
        who: &dyn Privileges,
    ) -> Result<Self, Errno> {
        let of = |group| who.is_of_group(record.uid, group);
        // With set-user-id the mode is set anew, for the new group.
        let stays = !is_marked(record.perm)
            || (of(record.gid) && (record.perm & SETUID == 0 || changes.gid.is_none_or(of)));
        let kill = if stays {
            Self::Executable
        } else {
            Self::AllSetIds
        };
        if kill.leaves(record.perm) != record.perm && !who.is_owner(record.uid) {
            return Err(Errno::EPERM);
        }
        Ok(kill)
    }

    /// What a change of contents takes away.
    pub(super) fn by_writing(record: &InodeRecord, who: &dyn Privileges) -> Self {
        if record.perm & SET_IDS != 0 && who.keeps_set_ids() {
            Self::Capability
        } else if is_marked(record.perm) && !who.is_of_group(record.uid, record.gid) {
            Self::AllSetIds
        } else {
            Self::Executable
        }
    }

    /// The permission bits that are left.
    pub(super) fn leaves(self, perm: u16) -> u16 {
        match self {
            Self::Nothing | Self::Capability => perm,
            Self::Executable if is_marked(perm) => perm & !SETUID,
            Self::Executable | Self::AllSetIds => perm & !SET_IDS,
        }
    }
}

/// Set-group-id without group execution, which once asked for mandatory locks.
fn is_marked(perm: u16) -> bool {
    perm & (SETGID | GROUP_EXECUTE) == SETGID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_the_mode() {
        for (kill, perm, left) in [
            (Kill::Nothing, 0o6755, 0o6755),
            (Kill::Capability, 0o6755, 0o6755),
            (Kill::Executable, 0o6755, 0o755),
            (Kill::Executable, 0o6644, 0o2644),
            (Kill::AllSetIds, 0o6644, 0o644),
            (Kill::Executable, 0o1644, 0o1644),
        ] {
            assert_eq!(kill.leaves(perm), left, "{kill:?} {perm:o}");
        }
    }
}
