//! POSIX access control lists (POSIX.1e draft 17) and how they relate to the mode.
//!
//! The kernel checks access with them. The filesystem follows three rules: setting an access ACL
//! sets the mode, changing the mode changes the ACL, and a new inode inherits its directory's
//! default ACL in place of the umask.
//!
//! Layout of the attribute (`linux/posix_acl_xattr.h`): version 2 (4 bytes), then entries of tag
//! (2), permissions (2), id (4), all little-endian, in order of tag and id.

use super::types::FileKind;
use super::{Filesystem, live_node};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::meta::Batch;

/// Attribute of the access ACL.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute of the default ACL.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// An access control list.
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return Err(Errno::EINVAL);
        }
        let (entries, _) = rest.as_chunks::<8>();
        let entries: Vec<Entry> = entries
            .iter()
            .map(|e| Entry {
                tag: u16::from_le_bytes([e[0], e[1]]),
                perm: u16::from_le_bytes([e[2], e[3]]),
                id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
            })
            .collect();
        let acl = Self(entries);
        acl.check()?;
        Ok(acl)
    }

    fn check(&self) -> Result<(), Errno> {
        let known = |e: &Entry| {
            matches!(e.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER) && e.perm <= 7
        };
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let complete = count(USER_OBJ) == 1 && count(GROUP_OBJ) == 1 && count(OTHER) == 1;
        let masked = count(MASK) == 1 || (count(MASK) == 0 && named == 0);
        if self.0.iter().all(known) && complete && masked {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn perm(&self, tag: u16) -> Option<u16> {
        self.0
            .iter()
            .find(|entry| entry.tag == tag)
            .map(|entry| entry.perm)
    }

    /// The nine mode bits that correspond to the list.
    pub(super) fn mode(&self) -> u16 {
        let group = self
            .perm(MASK)
            .or_else(|| self.perm(GROUP_OBJ))
            .unwrap_or(0);
        self.perm(USER_OBJ).unwrap_or(0) << 6 | group << 3 | self.perm(OTHER).unwrap_or(0)
    }

    /// True if the list is equivalent to the mode.
    pub(super) fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// Changes the entries that correspond to mode bits: `change` returns new permissions for the
    /// permissions of an entry and the bits of its class in `mode`.
    fn change_classes(&mut self, mode: u16, change: impl Fn(u16, u16) -> u16) {
        let group_class = if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        };
        for entry in &mut self.0 {
            let bits = match entry.tag {
                USER_OBJ => mode >> 6 & 7,
                OTHER => mode & 7,
                tag if tag == group_class => mode >> 3 & 7,
                _ => continue,
            };
            entry.perm = change(entry.perm, bits);
        }
    }
}

impl Filesystem {
    /// Updates an access ACL after a change of the mode.
    pub(super) fn acl_after_chmod(
        &self,
        batch: &mut Batch,
        ino: Ino,
        perm: u16,
    ) -> Result<(), Errno> {
        let Some(value) = self.xattr_value(live_node(ino)?, ACCESS)? else {
            return Ok(());
        };
        let mut acl = Acl::parse(&value).map_err(|_| Errno::EIO)?;
        acl.change_classes(perm, |_, bits| bits);
        Ok(self
            .meta
            .put_xattr(batch, ino, ACCESS, Some(&acl.encode()))?)
    }

    /// Lets a new inode inherit the directory's default ACL. Returns its mode if there is one.
    pub(super) fn inherit_acl(
        &self,
        batch: &mut Batch,
        parent: Ino,
        ino: Ino,
        kind: FileKind,
        perm: u16,
    ) -> Result<Option<u16>, Errno> {
        let Some(value) = self.xattr_value(live_node(parent)?, DEFAULT)? else {
            return Ok(None);
        };
        let mut acl = Acl::parse(&value).map_err(|_| Errno::EIO)?;
        acl.change_classes(perm, |perm, bits| perm & bits);
        if !acl.is_minimal() {
            self.meta
                .put_xattr(batch, ino, ACCESS, Some(&acl.encode()))?;
        }
        if kind == FileKind::Directory {
            self.meta.put_xattr(batch, ino, DEFAULT, Some(&value))?;
        }
        Ok(Some(perm & !0o777 | acl.mode()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|&(tag, perm, id)| Entry { tag, perm, id })
            .collect())
    }

    #[test]
    fn refuses_incomplete_lists() {
        let unmasked = acl(&[
            (USER_OBJ, 6, 0),
            (USER, 4, 7),
            (GROUP_OBJ, 4, 0),
            (OTHER, 0, 0),
        ]);
        assert!(Acl::parse(&unmasked.encode()).is_err());
        assert!(Acl::parse(&[]).is_err());
        assert!(Acl::parse(&[2, 0, 0, 0, 1]).is_err());
        let minimal = acl(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        assert_eq!(Acl::parse(&minimal.encode()).unwrap().mode(), 0o640);
    }

    #[test]
    fn the_mask_is_the_group_class() {
        let mut list = acl(&[
            (USER_OBJ, 7, 0),
            (USER, 7, 9),
            (GROUP_OBJ, 5, 0),
            (MASK, 7, 0),
            (OTHER, 5, 0),
        ]);
        assert_eq!(list.mode(), 0o775);
        list.change_classes(0o640, |_, bits| bits);
        assert_eq!(list.mode(), 0o640);
        assert_eq!(list.perm(GROUP_OBJ), Some(5));
    }
}
