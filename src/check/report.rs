//! The report of a check: its findings.

use std::ops::Range;

use crate::ids::Ino;
use crate::meta::records::ObjectName;

/// Severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Not a fault: something that the next mount handles, or that is good to know.
    Note,
    /// A fault without harm so far: a wrong number, or space that is not freed.
    Warning,
    /// Something is lost, unreachable, or would fail.
    Error,
}

impl Severity {
    /// The word for the severity.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $name:literal, $severity:ident;)*) => {
        /// Kind of finding.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name for programs, which never changes.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// Severity of the kind.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$kind => Severity::$severity,)*
                }
            }
        }
    };
}

kinds! {
    /// The volume was not left clean: the next mount recovers it.
    Unclean => "unclean", Note;
    /// It is being restored from a snapshot: the next mount continues that.
    HalfRestored => "half-restored", Note;
    /// The metadata cannot be read: a page does not open, or the database does not match its
    /// checksums.
    Metadata => "metadata", Error;
    /// The volume is an older copy of itself, as the keystore or a checkpoint shows.
    RolledBack => "rolled-back", Error;
    /// The metadata was not compared with itself, since some of it cannot be read.
    NotCompared => "not-compared", Note;
    /// A checkpoint of the metadata that could not be used.
    Checkpoint => "checkpoint", Warning;
    /// One of the two slots of page 0 of `meta` does not open.
    MetadataSlot => "metadata-slot", Warning;
    /// The database's record of its free pages is wrong.
    MetadataSpace => "metadata-space", Note;
    /// A record that cannot be decoded.
    Record => "record", Error;
    /// A record of a future generation.
    FutureRecord => "future-record", Error;
    /// A kept view that would change with the live one, or two views of one name.
    View => "view", Error;
    /// A kept view's count of pages or inodes is wrong.
    ViewCount => "view-count", Warning;
    /// There is no root directory.
    NoRoot => "no-root", Error;
    /// A name leads to an inode that does not exist.
    NameLeadsNowhere => "name-leads-nowhere", Error;
    /// A name records another kind of file than its inode.
    NameKind => "name-kind", Error;
    /// A name that a lookup does not find, or that no program could use.
    NameMisplaced => "name-misplaced", Error;
    /// Names in an inode that is not a directory.
    NamesOfNoDirectory => "names-of-no-directory", Error;
    /// A directory has more than one name.
    DirectoryNames => "directory-names", Error;
    /// A directory's recorded parent is not the directory that names it.
    Parent => "parent", Error;
    /// A directory is not below the root.
    Detached => "detached", Error;
    /// An inode without a name that is not listed for removal.
    NoName => "no-name", Error;
    /// An inode's link count is wrong.
    LinkCount => "link-count", Error;
    /// Records of an inode number that a new inode may get.
    InodeNumber => "inode-number", Error;
    /// An inode's page count is wrong.
    PageCount => "page-count", Warning;
    /// An extended attribute without an inode.
    AttributeOfNothing => "attribute-of-nothing", Warning;
    /// Contents without a file.
    ContentsOfNothing => "contents-of-nothing", Error;
    /// Contents beyond the end of the file.
    BeyondSize => "beyond-size", Error;
    /// An extent without parts.
    EmptyExtent => "empty-extent", Warning;
    /// Two extents name one object.
    ObjectTwice => "object-twice", Error;
    /// An object that an extent names is listed for removal.
    GarbageInUse => "garbage-in-use", Error;
    /// A row of `garbage` that a new row may overwrite.
    GarbageNumber => "garbage-number", Error;
    /// An object waits to be removed.
    Garbage => "garbage", Note;
    /// An unlinked file waits to be removed.
    Orphan => "orphan", Note;
    /// An inode with a name is listed for removal, or the listed inode does not exist.
    OrphanInUse => "orphan-in-use", Warning;
    /// An object that no extent names.
    ObjectUnnamed => "object-unnamed", Warning;
    /// A record that no view needs.
    RecordUnneeded => "record-unneeded", Warning;
    /// A record whose change is not in the table `change`.
    ChangeMissing => "change-missing", Error;
    /// A row of the table `change` that no view needs.
    ChangeUnneeded => "change-unneeded", Warning;
    /// The volume's count of used pages is wrong.
    UsedPages => "used-pages", Warning;
    /// The volume's count of bytes of records is wrong.
    RecordBytes => "record-bytes", Warning;
    /// The volume's count of inodes is wrong.
    InodeCount => "inode-count", Warning;
    /// An object that an extent names does not exist.
    ObjectMissing => "object-missing", Error;
    /// An object ends before pages that it should contain.
    ObjectShort => "object-short", Error;
    /// Pages that are not the ones that were written.
    PageDamaged => "page-damaged", Error;
    /// An object sealed under a key set that the volume does not have.
    KeySetMissing => "key-set-missing", Error;
    /// The backing filesystem could not read an object.
    Unreadable => "unreadable", Error;
}

/// One finding of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What kind of finding it is.
    pub kind: Kind,
    /// Severity.
    pub severity: Severity,
    /// The object concerned.
    pub object: Option<ObjectName>,
    /// Pages of that object or, without one, of `meta`.
    pub pages: Vec<Range<u64>>,
    /// The inode concerned.
    pub ino: Option<Ino>,
    /// Paths of the inode or the name, from the root of the volume. Paths in kept views begin with
    /// `.snapshots/NAME` or `.images/NAME`. If there are very many, only some of them.
    pub paths: Vec<Vec<u8>>,
    /// The details, for people.
    pub message: String,
    /// Whether it has been repaired.
    pub repaired: bool,
}

impl Finding {
    /// A finding of this kind without further context.
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            severity: kind.severity(),
            object: None,
            pages: Vec::new(),
            ino: None,
            paths: Vec::new(),
            message: message.into(),
            repaired: false,
        }
    }

    pub(super) fn inode(mut self, ino: Ino) -> Self {
        self.ino = Some(ino);
        self
    }

    pub(super) fn object(mut self, object: ObjectName) -> Self {
        self.object = Some(object);
        self
    }

    /// The finding in one line, for people.
    pub fn summary(&self) -> String {
        let path = self.paths.first();
        let path = path.map(|path| format!(" ({:?})", String::from_utf8_lossy(path)));
        let path = path.unwrap_or_default();
        match self.ino {
            Some(ino) => format!("{}: inode {ino}{path}: {}", self.kind.name(), self.message),
            None => format!("{}: {}", self.kind.name(), self.message),
        }
    }

    /// The file in the volume's directory that is concerned.
    pub fn file(&self) -> Option<String> {
        match (self.object, self.kind) {
            (Some(name), _) => Some(format!("objects/{:08x}/{}", name.folder.0, name.object)),
            (None, Kind::Metadata | Kind::MetadataSlot) => Some("meta".to_owned()),
            _ => None,
        }
    }
}

/// Result of a check: what the volume contains, and the findings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The findings, up to [`FINDINGS_MAX`](super::FINDINGS_MAX).
    pub findings: Vec<Finding>,
    /// Number of further findings.
    pub omitted: u64,
    /// Number of the further findings that are faults.
    pub omitted_faults: u64,
    /// Live inodes with a name.
    pub inodes: u64,
    /// Pages of the live view's contents, as counted by the check.
    pub used_pages: u64,
    /// Bytes of the live view's records, as counted by the check.
    pub record_bytes: u64,
    /// Number of kept views.
    pub views: u64,
    /// Number of objects that extents name.
    pub objects: u64,
    /// Number of verified pages of objects.
    pub pages: u64,
    /// Number of verified bytes, metadata included.
    pub bytes: u64,
    /// Whether contents were verified.
    pub contents_checked: bool,
}

impl Report {
    /// True if there is no fault. Notes are not faults.
    pub fn is_clean(&self) -> bool {
        self.omitted_faults == 0 && self.faults().next().is_none()
    }

    /// True if a fault was repaired.
    pub fn is_corrected(&self) -> bool {
        self.faults().any(|finding| finding.repaired)
    }

    /// True if a fault remains.
    pub fn is_uncorrected(&self) -> bool {
        self.omitted_faults > 0 || self.faults().any(|finding| !finding.repaired)
    }

    /// All findings that are faults.
    pub fn faults(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.severity > Severity::Note)
    }
}

/// A number with a regular noun: `1 page`, `2 pages`.
pub(super) fn count(number: impl Into<i128>, noun: &str) -> String {
    match number.into() {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}
