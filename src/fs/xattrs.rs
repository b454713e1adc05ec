//! Extended attributes. The kernel checks who may see and set which (`xattr(7)`).

use super::privileges::{Privileges, SETGID};
use super::types::{FileKind, NodeId, Timespec, XattrMode};
use super::{Filesystem, acl};
use crate::errno::Errno;
use crate::meta::Batch;
use crate::meta::keys::{self, Table};
use crate::meta::records::decode_xattr;

/// The longest name, in bytes (`XATTR_NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;
/// The longest value, in bytes (`XATTR_SIZE_MAX`).
const VALUE_BYTES_MAX: usize = 65_536;
/// All names together, in bytes (`XATTR_LIST_MAX`).
const LIST_BYTES_MAX: usize = 65_536;
/// All values of one inode together, in bytes.
const ALL_BYTES_MAX: usize = 1 << 20;
/// SELinux's label. If SELinux is in use, the kernel answers for it from its policy, and no request
/// arrives here.
const SELINUX: &[u8] = b"security.selinux";

impl Filesystem {
    /// Sets an attribute on behalf of a process with these privileges: an access ACL that is set by
    /// a process outside the file's group removes its set-group-id bit.
    ///
    /// # Errors
    /// EEXIST or ENODATA depending on `mode`, E2BIG for a long value, ERANGE for a long name,
    /// ENOTSUP for an unknown namespace, EINVAL for an invalid ACL, EACCES for a default ACL of
    /// anything but a directory, ENOSPC, EROFS, or an error of the metadata.
    pub fn set_xattr(
        &self,
        privileges: &dyn Privileges,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), Errno> {
        check_name(name)?;
        if value.len() > VALUE_BYTES_MAX {
            self.check_change(node)?;
            return Err(Errno::E2BIG);
        }
        self.retry_after_reclaim(|| self.set_xattr_once(privileges, node, name, value, mode))
    }

    fn set_xattr_once(
        &self,
        privileges: &dyn Privileges,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), Errno> {
        let _permit = self.begin_change(node)?;
        let _inode = self.meta.lock_inode(node.ino());
        let exists = self.xattr_value(node, name)?.is_some();
        match mode {
            XattrMode::Create | XattrMode::CreateAndReplace if exists => return Err(Errno::EEXIST),
            XattrMode::Replace | XattrMode::CreateAndReplace if !exists => {
                return Err(Errno::ENODATA);
            }
            _ => {}
        }
        self.check_limits(node, name, value)?;
        let mut batch = Batch::new();
        let mut mode = None;
        let mut loses_setgid = false;
        let mut stored = Some(value);
        if name == acl::ACCESS {
            let record = self.inode(node)?;
            let acl = acl::Acl::parse(value)?;
            mode = Some(acl.mode());
            loses_setgid =
                record.perm & SETGID != 0 && !privileges.is_of_group(record.uid, record.gid);
            // An ACL that is equivalent to the mode is not stored.
            if acl.is_minimal() {
                stored = None;
            }
        } else if name == acl::DEFAULT {
            if self.inode(node)?.kind != FileKind::Directory {
                return Err(Errno::EACCES);
            }
            acl::Acl::parse(value)?;
        }
        self.meta.put_xattr(&mut batch, node.ino(), name, stored)?;
        self.amend_inode(&mut batch, node.ino(), |record| {
            record.ctime = Timespec::now();
            if let Some(mode) = mode {
                record.perm = record.perm & !0o777 | mode;
            }
            if loses_setgid {
                record.perm &= !SETGID;
            }
        })?;
        self.contents
            .check_space_for_records(batch.record_bytes(), 0)?;
        self.meta.apply(batch)?;
        Ok(())
    }

    /// Fails if the attributes could not be listed, or would make every listing long.
    fn check_limits(&self, node: NodeId, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        let (mut names, mut bytes) = (name.len() + 1, value.len());
        self.meta
            .visit_xattrs(node.ino(), self.view(node)?, &mut |other, len| {
                if other != name {
                    names += other.len() + 1;
                    bytes += len;
                }
            })?;
        if names > LIST_BYTES_MAX || bytes > ALL_BYTES_MAX {
            Err(Errno::ENOSPC)
        } else {
            Ok(())
        }
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// ENODATA if there is none, but ENOTSUP for SELinux's label: GNU `ls -l` asks for it for each
    /// file, which the kernel does not cache, and stops asking a filesystem that does not support
    /// it. ERANGE or ENOTSUP for a name that is not allowed.
    pub fn get_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        check_name(name)?;
        match self.xattr_value(node, name)? {
            Some(value) => Ok(value),
            None if name == SELINUX => self.inode(node).and(Err(Errno::ENOTSUP)),
            None => self.inode(node).and(Err(Errno::ENODATA)),
        }
    }

    /// Names of all attributes that the caller may see, each followed by a NUL. The kernel refuses
    /// to read a `trusted.` attribute without the right to; here it is not listed either.
    ///
    /// # Errors
    /// E2BIG if the list is too long, ESTALE if the inode is gone, or an error of the metadata.
    pub fn list_xattr(&self, privileges: &dyn Privileges, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.inode(node)?;
        let mut list = Vec::new();
        for name in self.meta.xattr_names(node.ino(), self.view(node)?)? {
            if name.starts_with(b"trusted.") && !privileges.sees_trusted() {
                continue;
            }
            list.extend_from_slice(&name);
            list.push(0);
        }
        if list.len() > LIST_BYTES_MAX {
            Err(Errno::E2BIG)
        } else {
            Ok(list)
        }
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// ENODATA if there is none, ERANGE or ENOTSUP for a name that is not allowed, EROFS, or an
    /// error of the metadata.
    pub fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let _permit = self.begin_change(node)?;
        let _inode = self.meta.lock_inode(node.ino());
        if self.xattr_value(node, name)?.is_none() {
            // The mode always counts as an access ACL. Linux allows removing one that does not
            // exist.
            let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
            return if is_acl { Ok(()) } else { Err(Errno::ENODATA) };
        }
        let mut batch = Batch::new();
        self.meta.put_xattr(&mut batch, node.ino(), name, None)?;
        self.amend_inode(&mut batch, node.ino(), |record| {
            record.ctime = Timespec::now();
        })?;
        self.meta.apply(batch)?;
        Ok(())
    }

    /// The value of an attribute, whatever its name is.
    pub(super) fn xattr_value(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let key = keys::xattr(node.ino(), name);
        let Some(bytes) = self.meta.get(Table::Xattr, &key, self.view(node)?)? else {
            return Ok(None);
        };
        decode_xattr(&bytes)
            .map(|value| Some(value.to_vec()))
            .ok_or(Errno::EIO)
    }
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ERANGE);
    }
    let namespaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if namespaces.contains(&name) {
        return Err(Errno::EINVAL);
    }
    let known = namespaces.iter().any(|prefix| name.starts_with(prefix))
        || name == acl::ACCESS
        || name == acl::DEFAULT;
    if known && !name.contains(&0) {
        Ok(())
    } else {
        Err(Errno::ENOTSUP)
    }
}
