//! What a check found.

use std::ops::Range;

use crate::ids::Ino;
use crate::meta::records::ObjectName;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// No fault: something that the next mount sees to, or that is good to know.
    Note,
    /// A fault that harms nobody yet: a number that is off, space that nobody gives back.
    Warning,
    /// Something is lost, cannot be reached, or would go wrong.
    Error,
}

impl Severity {
    /// The word for it.
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
        /// What is wrong.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name for programs, which stays what it is.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// How bad it is.
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
    /// It is being taken back to a snapshot: the next mount goes on with it.
    HalfRestored => "half-restored", Note;
    /// The metadata cannot be read: a page does not open, or the database is not what its checksums
    /// say.
    Metadata => "metadata", Error;
    /// The volume is older than this machine knows it to be.
    RolledBack => "rolled-back", Error;
    /// What the metadata say was not compared with each other, since some cannot be read.
    NotCompared => "not-compared", Note;
    /// A copy of the metadata that could not be used.
    Checkpoint => "checkpoint", Warning;
    /// One of the two places of the page 0 of `meta` does not open.
    MetadataSlot => "metadata-slot", Warning;
    /// The database's record of which of its pages are free is off.
    MetadataSpace => "metadata-space", Note;
    /// A record that this version did not write.
    Record => "record", Error;
    /// A record of a generation that has not begun.
    FutureRecord => "future-record", Error;
    /// A kept view that would change with the live one, or two of one name.
    View => "view", Error;
    /// A kept view counts other pages or inodes than it has.
    ViewCount => "view-count", Warning;
    /// There is no root directory.
    NoRoot => "no-root", Error;
    /// A name leads to an inode that is not there.
    NameLeadsNowhere => "name-leads-nowhere", Error;
    /// A name says another kind of file than its inode.
    NameKind => "name-kind", Error;
    /// A name where looking it up does not find it, or that no program could use.
    NameMisplaced => "name-misplaced", Error;
    /// Names in a directory that is none.
    NamesOfNoDirectory => "names-of-no-directory", Error;
    /// A directory has more than one name.
    DirectoryNames => "directory-names", Error;
    /// A directory says that it is in another one than its name is.
    Parent => "parent", Error;
    /// A directory is not below the root.
    Detached => "detached", Error;
    /// An inode has no name, and nobody knows that it is to go.
    NoName => "no-name", Error;
    /// An inode counts other names than it has.
    LinkCount => "link-count", Error;
    /// An inode, or what is one's, that a new one may be mixed up with.
    InodeNumber => "inode-number", Error;
    /// An inode counts other pages than it has.
    PageCount => "page-count", Warning;
    /// An extended attribute of no inode.
    AttributeOfNothing => "attribute-of-nothing", Warning;
    /// Contents of no file.
    ContentsOfNothing => "contents-of-nothing", Error;
    /// Contents behind the end of the file.
    BeyondSize => "beyond-size", Error;
    /// An extent that names nothing.
    EmptyExtent => "empty-extent", Warning;
    /// An object is named by two extents.
    ObjectTwice => "object-twice", Error;
    /// An object that is named is to be removed.
    GarbageInUse => "garbage-in-use", Error;
    /// A row of `garbage` that a new one may take the place of.
    GarbageNumber => "garbage-number", Error;
    /// An object waits to be removed.
    Garbage => "garbage", Note;
    /// An unlinked file waits to be removed.
    Orphan => "orphan", Note;
    /// Something with a name is to be removed, or what is to be removed is not there.
    OrphanInUse => "orphan-in-use", Warning;
    /// An object that nobody names.
    ObjectUnnamed => "object-unnamed", Warning;
    /// A record that nobody needs.
    RecordUnneeded => "record-unneeded", Warning;
    /// A record of which it is not noted when it changed.
    ChangeMissing => "change-missing", Error;
    /// A note of a change that nobody needs.
    ChangeUnneeded => "change-unneeded", Warning;
    /// The volume counts other pages than it has.
    UsedPages => "used-pages", Warning;
    /// Another number of bytes of records than is counted.
    RecordBytes => "record-bytes", Warning;
    /// The volume counts other inodes than it has.
    InodeCount => "inode-count", Warning;
    /// An object that an extent names is not there.
    ObjectMissing => "object-missing", Error;
    /// An object ends before pages that it should have.
    ObjectShort => "object-short", Error;
    /// Pages that are not the ones that were written.
    PageDamaged => "page-damaged", Error;
    /// An object sealed under a key set that the volume does not have.
    KeySetMissing => "key-set-missing", Error;
    /// The backing filesystem could not read it.
    Unreadable => "unreadable", Error;
}

/// Something that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// The object that it is about.
    pub object: Option<ObjectName>,
    /// Pages of that object or, without one, of `meta`.
    pub pages: Vec<Range<u64>>,
    /// The inode that it is about.
    pub ino: Option<Ino>,
    /// Where that is, or what has that name, from the root of the volume on; paths in kept views
    /// begin with `.snapshots/NAME` or `.images/NAME`. Some of them where there are very many.
    pub paths: Vec<Vec<u8>>,
    /// The rest, for people.
    pub message: String,
    /// It is mended.
    pub repaired: bool,
}

impl Finding {
    /// Of this kind, about nothing in particular.
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

    pub(super) fn inode(mut self, ino: u64) -> Self {
        self.ino = Some(Ino(ino));
        self
    }

    pub(super) fn object(mut self, object: ObjectName) -> Self {
        self.object = Some(object);
        self
    }

    /// All of it in one line, for people.
    pub fn summary(&self) -> String {
        let path = self.paths.first();
        let path = path.map(|path| format!(" ({:?})", String::from_utf8_lossy(path)));
        let path = path.unwrap_or_default();
        match self.ino {
            Some(ino) => format!("{}: inode {ino}{path}: {}", self.kind.name(), self.message),
            None => format!("{}: {}", self.kind.name(), self.message),
        }
    }

    /// The file in the volume's directory that it is about.
    pub fn file(&self) -> Option<String> {
        match (self.object, self.kind) {
            (Some(name), _) => Some(format!("objects/{:08x}/{}", name.folder.0, name.object)),
            (None, Kind::Metadata | Kind::MetadataSlot) => Some("meta".to_owned()),
            _ => None,
        }
    }
}

/// What there is, and what of it is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Everything that was found, as far as there was room for it.
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub omitted: u64,
    /// How many of those left out were faults.
    pub omitted_faults: u64,
    /// Live inodes with a name.
    pub inodes: u64,
    /// Pages of the live view's contents, as they are counted.
    pub used_pages: u64,
    /// Bytes that the live view's records take, as they are counted.
    pub record_bytes: u64,
    /// Kept views.
    pub views: u64,
    /// Objects that are named.
    pub objects: u64,
    /// Pages of objects that were verified.
    pub pages: u64,
    /// Bytes that were verified, metadata included.
    pub bytes: u64,
    /// Pages of contents were verified.
    pub contents_checked: bool,
}

impl Report {
    /// True when nothing is wrong; notes are nothing wrong.
    pub fn is_clean(&self) -> bool {
        self.omitted_faults == 0 && self.faults().next().is_none()
    }

    /// True when something was wrong and is mended.
    pub fn is_corrected(&self) -> bool {
        self.faults().any(|finding| finding.repaired)
    }

    /// True when something is wrong and stays so.
    pub fn is_uncorrected(&self) -> bool {
        self.omitted_faults > 0 || self.faults().any(|finding| !finding.repaired)
    }

    /// Everything that is wrong.
    pub fn faults(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.severity > Severity::Note)
    }
}
/// So many of something whose name takes an s: `1 page`, `2 pages`.
pub(super) fn count(number: impl Into<i128>, one: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    }
}
