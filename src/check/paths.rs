//! Looks up the paths of inodes, for people, after all findings are known.
//!
//! A file's record does not say where it is, so all names are read once more, and only if there are
//! findings. A directory's record names its parent.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::names::dirent_key;
use super::stream::{Group, Groups};
use super::{CheckError, PathHint, Run};
use crate::ids::Ino;
use crate::meta::keys::{self, Table};
use crate::meta::records::{DirentRecord, InodeRecord};

/// Maximum number of paths of one finding.
const PATHS_MAX: usize = 8;
/// Maximum number of names kept for one inode.
const NAMES_MAX: usize = 16;
/// Deeper than any tree that system calls could have made.
const DEPTH_MAX: usize = 4096;

/// A name and its directory, in some views.
#[derive(Clone, Debug)]
struct NameAt {
    parent: Ino,
    name: Vec<u8>,
    seen: Range<usize>,
}

/// Parent and name of directories, by inode and view.
type Known = HashMap<(Ino, usize), Option<(Ino, Vec<u8>)>>;

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
                    seen: pending.seen.clone(),
                }],
                PathHint::Inode(ino) => names.get(ino).cloned().unwrap_or_default(),
            };
            let seen = pending.seen.clone();
            let is_root = matches!(pending.path_hint, PathHint::Inode(ino) if ino == Ino::ROOT);
            let paths = self.paths_of(&at, seen, is_root, &mut known)?;
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
                        seen: version.seen.clone(),
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
        seen: Range<usize>,
        is_root: bool,
        known: &mut Known,
    ) -> Result<Vec<Vec<u8>>, CheckError> {
        let mut paths = Vec::new();
        for view in seen.rev() {
            if is_root {
                paths.push(self.prefixed(view, &[]));
            }
            for name in names.iter().filter(|name| name.seen.contains(&view)) {
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
            let place = match known.get(&(at, view)) {
                Some(place) => place.clone(),
                None => {
                    let place = self.directory_in(at, view)?;
                    known.insert((at, view), place.clone());
                    place
                }
            };
            let Some((parent, name)) = place else {
                return Ok(None);
            };
            parts.push(name);
            at = parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Ok(Some(path))
    }

    /// The parent of a directory, and its name there.
    fn directory_in(&self, ino: Ino, view: usize) -> Result<Option<(Ino, Vec<u8>)>, CheckError> {
        let low = keys::inode(ino);
        let mut inodes = Groups::new(&self.stored, &self.views, Table::Inode, low.clone());
        let Some(group) = inodes.next()?.filter(|group| group.logical == low) else {
            return Ok(None);
        };
        let record = seen_by(&group, view).and_then(InodeRecord::decode);
        let Some(parent) = record.map(|record| record.parent) else {
            return Ok(None);
        };
        let low = keys::number(parent.0);
        let mut names = Groups::new(&self.stored, &self.views, Table::Dirent, low);
        while names.peek_ino()? == Some(parent) {
            let Some(group) = names.next()? else { break };
            let entry = seen_by(&group, view).and_then(DirentRecord::decode);
            if entry.is_some_and(|entry| entry.ino == ino)
                && let Some(named) = dirent_key(&group.logical)
            {
                return Ok(Some((parent, named.name.to_vec())));
            }
        }
        Ok(None)
    }
}

fn seen_by(group: &Group, view: usize) -> Option<&[u8]> {
    let mut present = group.present();
    let found = present.find(|(version, _)| version.seen.contains(&view));
    found.map(|(_, value)| value)
}
