//! Looks up the paths of inodes, for people, after all findings are known.
//!
//! A file's record does not say where it is, so all names are read once more, and only if there are
//! findings. A directory's record names its parent.

use std::collections::{BTreeMap, HashMap};

use super::names::dirent_key;
use super::stream::{Group, Groups, ViewRange};
use super::{CheckError, PathHint, Run};
use crate::ids::Ino;
use crate::meta::keys::{self, Table};
use crate::meta::records::{DirentRecord, InodeRecord};

/// Maximum number of paths of one finding.
const PATHS_MAX: usize = 8;
/// Maximum number of names kept for one inode.
const NAMES_MAX: usize = 16;
/// Maximum depth of a path. No sequence of system calls makes a deeper tree.
const DEPTH_MAX: usize = 4096;

/// A name and its directory, in some views.
#[derive(Clone, Debug)]
struct NameAt {
    parent: Ino,
    name: Vec<u8>,
    seen_by: ViewRange,
}

/// The name of a directory.
#[derive(Clone, Debug)]
struct DirectoryName {
    parent: Ino,
    name: Vec<u8>,
}

/// Names of directories that have been looked up, by inode and view. `None` for a directory that
/// has none.
type Known = HashMap<(Ino, usize), Option<DirectoryName>>;

impl Run<'_> {
    /// Adds paths to all findings.
    pub(super) fn find_paths(&mut self) -> Result<(), CheckError> {
        let mut names: BTreeMap<Ino, Vec<NameAt>> = BTreeMap::new();
        for pending in &self.pending {
            if let PathHint::Inode(ino) = pending.path_hint {
                names.insert(ino, Vec::new());
            }
        }
        if !names.is_empty() {
            self.read_names_of(&mut names)?;
        }
        let mut known = Known::new();
        for index in 0..self.pending.len() {
            self.check_cancelled()?;
            let pending = &self.pending[index];
            let at: Vec<NameAt> = match &pending.path_hint {
                PathHint::None => continue,
                PathHint::Entry { parent, name } => vec![NameAt {
                    parent: *parent,
                    name: name.clone(),
                    seen_by: pending.seen_by.clone(),
                }],
                PathHint::Inode(ino) => names.get(ino).cloned().unwrap_or_default(),
            };
            let seen_by = pending.seen_by.clone();
            let is_root = matches!(pending.path_hint, PathHint::Inode(ino) if ino == Ino::ROOT);
            let paths = self.paths_of(&at, seen_by, is_root, &mut known)?;
            self.pending[index].finding.paths = paths;
        }
        Ok(())
    }

    fn read_names_of(&self, names: &mut BTreeMap<Ino, Vec<NameAt>>) -> Result<(), CheckError> {
        let mut groups = Groups::new(&self.stored, &self.views, Table::Dirent, Vec::new());
        while let Some(group) = groups.next()? {
            self.check_cancelled()?;
            for (version, value) in group.present() {
                let Some(entry) = DirentRecord::decode(value) else {
                    continue;
                };
                let (Some(list), Some(named)) =
                    (names.get_mut(&entry.ino), dirent_key(&group.logical))
                else {
                    continue;
                };
                if list.len() < NAMES_MAX {
                    list.push(NameAt {
                        parent: named.parent,
                        name: named.name.to_vec(),
                        seen_by: version.seen_by.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Paths of some names: first in the live view, then in the newest kept views.
    fn paths_of(
        &self,
        names: &[NameAt],
        seen_by: ViewRange,
        is_root: bool,
        known: &mut Known,
    ) -> Result<Vec<Vec<u8>>, CheckError> {
        let mut paths = Vec::new();
        for view in seen_by.rev() {
            if is_root {
                paths.push(self.prefixed(view, &[]));
            }
            for name in names.iter().filter(|name| name.seen_by.contains(&view)) {
                if paths.len() < PATHS_MAX
                    && let Some(path) = self.path_to(name, view, known)?
                {
                    paths.push(self.prefixed(view, &path));
                }
            }
            if paths.len() >= PATHS_MAX {
                break;
            }
        }
        Ok(paths)
    }

    /// A path from the root of the volume, for a path from the root of a view.
    fn prefixed(&self, view: usize, path: &[u8]) -> Vec<u8> {
        let mut entry = Vec::new();
        if let Some(prefix) = self.prefixes.get(view) {
            entry.push(b'/');
            entry.extend_from_slice(prefix);
        }
        entry.extend_from_slice(path);
        if entry.is_empty() {
            entry.push(b'/');
        }
        entry
    }

    /// The path to a name in a view, with a slash before each component. `None` if the directories
    /// above do not lead to the root.
    fn path_to(
        &self,
        name: &NameAt,
        view: usize,
        known: &mut Known,
    ) -> Result<Option<Vec<u8>>, CheckError> {
        let mut parts = vec![name.name.clone()];
        let mut at = name.parent;
        while at != Ino::ROOT {
            if parts.len() > DEPTH_MAX {
                return Ok(None);
            }
            let directory = match known.get(&(at, view)) {
                Some(directory) => directory.clone(),
                None => {
                    let directory = self.directory_name(at, view)?;
                    known.insert((at, view), directory.clone());
                    directory
                }
            };
            let Some(directory) = directory else {
                return Ok(None);
            };
            parts.push(directory.name);
            at = directory.parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Ok(Some(path))
    }

    /// The name of a directory in a view, if it has one.
    fn directory_name(&self, ino: Ino, view: usize) -> Result<Option<DirectoryName>, CheckError> {
        let low = keys::inode(ino);
        let mut inodes = Groups::new(&self.stored, &self.views, Table::Inode, low.clone());
        let Some(group) = inodes.next()?.filter(|group| group.logical == low) else {
            return Ok(None);
        };
        let record = value_in(&group, view).and_then(InodeRecord::decode);
        let Some(parent) = record.map(|record| record.parent) else {
            return Ok(None);
        };
        let low = keys::number(parent.0);
        let mut names = Groups::new(&self.stored, &self.views, Table::Dirent, low);
        while names.peek_ino()? == Some(parent) {
            let Some(group) = names.next()? else { break };
            let entry = value_in(&group, view).and_then(DirentRecord::decode);
            if entry.is_some_and(|entry| entry.ino == ino)
                && let Some(named) = dirent_key(&group.logical)
            {
                let name = named.name.to_vec();
                return Ok(Some(DirectoryName { parent, name }));
            }
        }
        Ok(None)
    }
}

/// The value of a record in a view.
fn value_in(group: &Group, view: usize) -> Option<&[u8]> {
    let mut present = group.present();
    let seen = present.find(|(version, _)| version.seen_by.contains(&view));
    seen.map(|(_, value)| value)
}
