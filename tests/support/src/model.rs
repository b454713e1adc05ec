//! A simple model of a filesystem, with which the real one is compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::types::{FileKind, RenameFlags, Timespec, XattrMode};

/// The number of an inode.
pub type Number = u64;

/// An inode with its contents.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Kind of file.
    pub kind: FileKind,
    /// Permission bits.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// The directory that holds this directory; 0 for others.
    pub parent: Number,
    /// Known only if it was set and nothing has changed since.
    pub mtime: Option<Timespec>,
    /// Contents of a regular file.
    pub data: Arc<Vec<u8>>,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Names in a directory.
    pub entries: BTreeMap<Vec<u8>, Number>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Inode {
    /// An inode of the ordinary user, with nothing in it.
    pub fn new(kind: FileKind, perm: u16) -> Self {
        Self {
            kind,
            perm,
            uid: 1000,
            gid: 1000,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            parent: 0,
            mtime: None,
            data: Arc::default(),
            target: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        }
    }

    /// True for a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// A whole filesystem.
#[derive(Clone, Debug)]
pub struct Model {
    /// All inodes, including those without a name that are in use.
    pub inodes: BTreeMap<Number, Inode>,
}

/// The root directory.
pub const ROOT: Number = 1;

impl Model {
    /// A filesystem with an empty root directory.
    pub fn new() -> Self {
        let mut root = Inode::new(FileKind::Directory, 0o755);
        (root.uid, root.gid, root.parent) = (0, 0, ROOT);
        Self {
            inodes: BTreeMap::from([(ROOT, root)]),
        }
    }

    /// An inode that exists.
    pub fn inode(&self, number: Number) -> &Inode {
        &self.inodes[&number]
    }

    /// An inode that exists, to be changed.
    pub fn inode_mut(&mut self, number: Number) -> &mut Inode {
        self.inodes.get_mut(&number).expect("an inode of the model")
    }

    /// The inode of a name in a directory.
    pub fn entry(&self, dir: Number, name: &[u8]) -> Result<Number, Errno> {
        let entry = self.inode(dir).entries.get(name);
        entry.copied().ok_or(Errno::ENOENT)
    }

    /// Directories that have a name.
    pub fn directories(&self) -> Vec<Number> {
        self.numbers(|inode| inode.is_directory() && inode.nlink > 0)
    }

    /// Regular files that have a name.
    pub fn files(&self) -> Vec<Number> {
        self.numbers(|inode| inode.kind == FileKind::Regular && inode.nlink > 0)
    }

    fn numbers(&self, wanted: impl Fn(&Inode) -> bool) -> Vec<Number> {
        let inodes = self.inodes.iter().filter(|(_, inode)| wanted(inode));
        inodes.map(|(number, _)| *number).collect()
    }

    /// Whether a name can be created in a directory.
    pub fn may_make(&self, dir: Number, name: &[u8]) -> Result<(), Errno> {
        match self.entry(dir, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(_) => Ok(()),
        }
    }

    /// Adds an inode under a name.
    pub fn make(&mut self, dir: Number, name: &[u8], number: Number, mut inode: Inode) {
        if inode.is_directory() {
            inode.parent = dir;
            self.inode_mut(dir).nlink += 1;
        }
        self.inodes.insert(number, inode);
        self.touch(dir);
        self.inode_mut(dir).entries.insert(name.to_vec(), number);
    }

    /// Adds a name to an inode.
    pub fn link(&mut self, number: Number, dir: Number, name: &[u8]) -> Result<(), Errno> {
        if self.inode(number).is_directory() {
            return Err(Errno::EPERM);
        }
        if self.inode(number).nlink == 0 {
            return Err(Errno::ENOENT);
        }
        self.may_make(dir, name)?;
        self.inode_mut(number).nlink += 1;
        self.inode_mut(dir).entries.insert(name.to_vec(), number);
        self.touch(dir);
        Ok(())
    }

    /// Removes a name of a file.
    pub fn unlink(&mut self, dir: Number, name: &[u8]) -> Result<(), Errno> {
        let number = self.entry(dir, name)?;
        if self.inode(number).is_directory() {
            return Err(Errno::EISDIR);
        }
        self.inode_mut(dir).entries.remove(name);
        self.touch(dir);
        self.inode_mut(number).nlink -= 1;
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&mut self, dir: Number, name: &[u8]) -> Result<(), Errno> {
        let number = self.entry(dir, name)?;
        if !self.inode(number).is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if !self.inode(number).entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.inode_mut(dir).entries.remove(name);
        self.touch(dir);
        self.inode_mut(dir).nlink -= 1;
        self.inode_mut(number).nlink = 0;
        Ok(())
    }

    fn is_below(&self, mut at: Number, top: Number) -> bool {
        loop {
            if at == top {
                return true;
            }
            if at == ROOT {
                return false;
            }
            at = self.inode(at).parent;
        }
    }

    /// Renames as rename(2) and renameat2(2) do.
    pub fn rename(
        &mut self,
        (dir, name): (Number, &[u8]),
        (to_dir, to_name): (Number, &[u8]),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        if flags.exchange {
            return self.exchange((dir, name), (to_dir, to_name));
        }
        let moved = self.entry(dir, name)?;
        let replaced = self.entry(to_dir, to_name).ok();
        if flags.no_replace && replaced.is_some() {
            return Err(Errno::EEXIST);
        }
        if replaced == Some(moved) {
            return Ok(());
        }
        let is_directory = self.inode(moved).is_directory();
        if is_directory && self.is_below(to_dir, moved) {
            return Err(Errno::EINVAL);
        }
        if let Some(other) = replaced {
            match (is_directory, self.inode(other).is_directory()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.inode(other).entries.is_empty() => {
                    return Err(Errno::ENOTEMPTY);
                }
                _ => {}
            }
            if is_directory {
                self.rmdir(to_dir, to_name)?;
            } else {
                self.unlink(to_dir, to_name)?;
            }
        }
        self.inode_mut(dir).entries.remove(name);
        self.inode_mut(to_dir)
            .entries
            .insert(to_name.to_vec(), moved);
        if is_directory {
            self.inode_mut(dir).nlink -= 1;
            self.inode_mut(to_dir).nlink += 1;
            self.inode_mut(moved).parent = to_dir;
        }
        self.touch(dir);
        self.touch(to_dir);
        Ok(())
    }

    fn exchange(
        &mut self,
        (dir, name): (Number, &[u8]),
        (to_dir, to_name): (Number, &[u8]),
    ) -> Result<(), Errno> {
        let (first, second) = (self.entry(dir, name)?, self.entry(to_dir, to_name)?);
        for (moved, into) in [(first, to_dir), (second, dir)] {
            if self.inode(moved).is_directory() && self.is_below(into, moved) {
                return Err(Errno::EINVAL);
            }
        }
        for (moved, from, into, name) in
            [(first, dir, to_dir, to_name), (second, to_dir, dir, name)]
        {
            self.inode_mut(into).entries.insert(name.to_vec(), moved);
            if self.inode(moved).is_directory() {
                self.inode_mut(from).nlink -= 1;
                self.inode_mut(into).nlink += 1;
                self.inode_mut(moved).parent = into;
            }
        }
        self.touch(dir);
        self.touch(to_dir);
        Ok(())
    }

    /// Drops inodes without a name that are not among those in use.
    pub fn forget_unused(&mut self, in_use: &[Number]) {
        self.inodes
            .retain(|number, inode| inode.nlink > 0 || in_use.contains(number));
    }

    /// Notes that the time of modification is not known any more.
    pub fn touch(&mut self, number: Number) {
        self.inode_mut(number).mtime = None;
    }

    // ---- contents --------------------------------------------------------------------------

    fn change(&mut self, number: Number) -> &mut Vec<u8> {
        self.touch(number);
        Arc::make_mut(&mut self.inode_mut(number).data)
    }

    /// Writes bytes; a gap before them becomes zeros.
    pub fn write(&mut self, number: Number, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let data = self.change(number);
        let end = offset + bytes.len();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[offset..end].copy_from_slice(bytes);
    }

    /// Sets the length of a file.
    pub fn truncate(&mut self, number: Number, size: usize) {
        self.change(number).resize(size, 0);
    }

    /// Writes zeros within the length of a file.
    pub fn zero(&mut self, number: Number, offset: usize, len: usize) {
        let data = self.change(number);
        let end = data.len().min(offset + len);
        if offset < end {
            data[offset..end].fill(0);
        }
    }

    /// Makes a file at least as long.
    pub fn extend(&mut self, number: Number, end: usize) {
        if self.inode(number).data.len() < end {
            self.truncate(number, end);
        }
    }

    // ---- extended attributes -----------------------------------------------------------------

    /// Sets an extended attribute.
    pub fn set_xattr(
        &mut self,
        number: Number,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), Errno> {
        let xattrs = &mut self.inode_mut(number).xattrs;
        match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => Err(Errno::EEXIST),
            (XattrMode::Replace, false) => Err(Errno::ENODATA),
            _ => {
                xattrs.insert(name.to_vec(), value.to_vec());
                Ok(())
            }
        }
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&mut self, number: Number, name: &[u8]) -> Result<(), Errno> {
        let removed = self.inode_mut(number).xattrs.remove(name);
        removed.map(|_| ()).ok_or(Errno::ENODATA)
    }

    // ---- what a power cut may leave -------------------------------------------------------------

    /// Names, kinds, owners, modes and attributes by path: all but contents and lengths.
    pub fn namespace(&self) -> BTreeMap<String, String> {
        let mut lines = BTreeMap::new();
        self.describe(ROOT, String::from("/"), &mut lines);
        lines
    }

    fn describe(&self, number: Number, path: String, lines: &mut BTreeMap<String, String>) {
        let inode = self.inode(number);
        for (name, child) in &inode.entries {
            let name = String::from_utf8_lossy(name);
            self.describe(*child, format!("{path}{name}/"), lines);
        }
        let text = format!(
            "{number} {:?} {:o} {}:{} links {} {:?} {:?}",
            inode.kind, inode.perm, inode.uid, inode.gid, inode.nlink, inode.target, inode.xattrs
        );
        lines.insert(path, text);
    }
}
