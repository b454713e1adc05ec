//! Set-id bits and `security.capability`: which changes remove them, as in Linux (`fs/attr.c`,
//! `setattr_should_drop_suidgid` and `setattr_prepare`).
//!
//! | change | `S_ISUID`, `S_ISGID` with group execution | `S_ISGID` without | capability |
//! |---|---|---|---|
//! | of contents or length | removed without `CAP_FSETID` | likewise, outside the group | removed |
//! | of the owner, also to the same | removed | removed outside the group | removed |
//! | of the access list | kept | either kind: removed outside the group | kept |
//!
//! To be in the group is to be a member, or to have `CAP_FSETID` over the inode in a user namespace
//! that maps its owner and its group.
//!
//! The kernel checks who may change an owner, with one exception: a chown to the same owner
//! requires none of the rights that it checks, and still removes bits. Linux then requires the
//! owner of the file, or `CAP_FOWNER`.

use super::types::{Caller, FileKind, ImpliedChange, SetAttr};
use crate::errno::Errno;
use crate::meta::records::InodeRecord;

pub(super) const SETUID: u16 = 0o4000;
pub(super) const SETGID: u16 = 0o2000;
const SET_IDS: u16 = SETUID | SETGID;
const GROUP_EXECUTE: u16 = 0o010;
/// The attribute that holds a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// The rights of the calling process. They are expensive to look up, so they are queried only if
/// they decide something.
pub trait Privileges {
    /// True if set-id bits survive a write by the caller: `CAP_FSETID` in the machine's first user
    /// namespace.
    fn keeps_set_ids(&self) -> bool;
    /// True if the caller is in that group, or has `CAP_FSETID` over an inode of that owner and
    /// group.
    fn is_of_group(&self, owner: u32, group: u32) -> bool;
    /// True if the caller is that user, or has `CAP_FOWNER` over files of that user.
    fn is_owner(&self, owner: u32) -> bool;
    /// True if the caller may see `trusted.` attributes: `CAP_SYS_ADMIN` in the machine's first
    /// user namespace.
    fn sees_trusted(&self) -> bool;
}

/// A caller of which only the ids are known: uid 0 has all capabilities, and every caller is
/// treated as a member of every group and as an owner.
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

/// The privileges that a change removes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kill {
    Nothing,
    /// Only the file's capabilities.
    Capability,
    /// The privileges that executing the file would give, and its capabilities.
    Executable,
    /// Also a set-group-id bit without group execution.
    AllSetIds,
}

impl Kill {
    /// The privileges that `changes` remove.
    ///
    /// # Errors
    /// EPERM if the change of an owner by another user would remove set-id bits.
    pub(super) fn by(
        record: &InodeRecord,
        changes: &SetAttr,
        privileges: &dyn Privileges,
    ) -> Result<Self, Errno> {
        let change = match changes.implied {
            _ if record.kind == FileKind::Directory => ImpliedChange::Nothing,
            _ if changes.uid.is_some() || changes.gid.is_some() => ImpliedChange::Owner,
            // Only regular files have contents that a request can announce to write.
            ImpliedChange::Contents | ImpliedChange::Either if record.kind != FileKind::Regular => {
                ImpliedChange::Owner
            }
            // If it announces a write, the write itself will remove them.
            ImpliedChange::Either if !privileges.is_owner(record.uid) => ImpliedChange::Nothing,
            ImpliedChange::Either => ImpliedChange::Owner,
            ImpliedChange::Nothing if changes.size.is_some() => ImpliedChange::Contents,
            change => change,
        };
        match change {
            ImpliedChange::Nothing => Ok(Self::Nothing),
            ImpliedChange::Contents => Ok(Self::by_writing(record, privileges)),
            ImpliedChange::Owner | ImpliedChange::Either => {
                Self::by_owning(record, changes, privileges)
            }
        }
    }

    fn by_owning(
        record: &InodeRecord,
        changes: &SetAttr,
        privileges: &dyn Privileges,
    ) -> Result<Self, Errno> {
        let of = |group| privileges.is_of_group(record.uid, group);
        // With set-user-id the mode is computed again, for the new group.
        let keeps_setgid = !asks_for_locks(record.perm)
            || (of(record.gid) && (record.perm & SETUID == 0 || changes.gid.is_none_or(of)));
        let kill = if keeps_setgid {
            Self::Executable
        } else {
            Self::AllSetIds
        };
        if kill.leaves(record.perm) != record.perm && !privileges.is_owner(record.uid) {
            return Err(Errno::EPERM);
        }
        Ok(kill)
    }

    /// The privileges that a change of contents removes.
    pub(super) fn by_writing(record: &InodeRecord, privileges: &dyn Privileges) -> Self {
        if record.perm & SET_IDS != 0 && privileges.keeps_set_ids() {
            Self::Capability
        } else if asks_for_locks(record.perm) && !privileges.is_of_group(record.uid, record.gid) {
            Self::AllSetIds
        } else {
            Self::Executable
        }
    }

    /// The permission bits that remain.
    pub(super) fn leaves(self, perm: u16) -> u16 {
        match self {
            Self::Nothing | Self::Capability => perm,
            Self::Executable if asks_for_locks(perm) => perm & !SETUID,
            Self::Executable | Self::AllSetIds => perm & !SET_IDS,
        }
    }
}

/// True for set-group-id without group execution, by which a file once asked for mandatory locks.
fn asks_for_locks(perm: u16) -> bool {
    perm & (SETGID | GROUP_EXECUTE) == SETGID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_mode_bits() {
        for (kill, perm, remaining) in [
            (Kill::Nothing, 0o6755, 0o6755),
            (Kill::Capability, 0o6755, 0o6755),
            (Kill::Executable, 0o6755, 0o755),
            (Kill::Executable, 0o6644, 0o2644),
            (Kill::AllSetIds, 0o6644, 0o644),
            (Kill::Executable, 0o1644, 0o1644),
        ] {
            assert_eq!(kill.leaves(perm), remaining, "{kill:?} {perm:o}");
        }
    }
}
