//! What was taken out and what was lost, as one JSON object that is written while it comes to be:
//! there may be more losses than memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use serde::Serialize;
use serde_json::{Value, json};

/// Version of the report's shape.
const VERSION: u32 = 1;

/// Something that is not in the directory as it was in the volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Loss {
    /// Where, below the directory; empty for the volume as a whole.
    pub path: String,
    /// `contents`, `file`, `name`, `names`, `attributes`, `object` or `records`; or `older`, which is
    /// there as it was once; or `unset`, which could not be set here.
    pub what: &'static str,
    /// First byte of contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Bytes of contents, which are zeros now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Why.
    pub reason: String,
}

/// How much there is of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// Plain files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Pipes, sockets and devices.
    pub special: u64,
    /// Further names of files.
    pub links: u64,
    /// Bytes of contents that were read.
    pub bytes: u64,
    /// Inodes and directories without a place, in `lost+found/inodes`.
    pub without_name: u64,
    /// Objects that no record names, in `lost+found/objects`.
    pub objects: u64,
    /// Losses.
    pub lost: u64,
    /// Of these, bytes of contents.
    pub bytes_lost: u64,
    /// Files and directories as they were at an earlier time.
    pub older: u64,
    /// Attributes that could not be set here.
    pub unset: u64,
}

/// The report, being written.
#[derive(Debug)]
pub struct Report {
    to: BufWriter<File>,
    first: bool,
    /// How much there is of everything so far.
    pub counts: Counts,
}

impl Report {
    /// Begins with what is known from the start.
    pub fn begin(file: File, known: &Value) -> io::Result<Self> {
        let mut to = BufWriter::new(file);
        write!(
            to,
            "{{\"version\":{VERSION},\"source\":{known},\n\"losses\":["
        )?;
        Ok(Self {
            to,
            first: true,
            counts: Counts::default(),
        })
    }

    /// Takes note of a loss.
    pub fn lose(&mut self, loss: &Loss) -> io::Result<()> {
        match loss.what {
            "older" => self.counts.older += 1,
            "unset" => self.counts.unset += 1,
            _ => self.counts.lost += 1,
        }
        self.counts.bytes_lost += loss.length.unwrap_or(0);
        let separator = if std::mem::take(&mut self.first) {
            "\n"
        } else {
            ",\n"
        };
        write!(self.to, "{separator}{}", json!(loss))
    }

    /// Ends it; on disk when this returns.
    pub fn end(mut self) -> io::Result<Counts> {
        write!(self.to, "\n],\n\"counts\":{}}}\n", json!(self.counts))?;
        let file = self
            .to
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(self.counts)
    }
}
