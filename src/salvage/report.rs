//! The report of everything that was extracted or lost, as one JSON object. It is written
//! incrementally, since the losses may not fit into memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use serde::Serialize;
use serde_json::{Value, json};

/// Version of the report's shape.
const VERSION: u32 = 1;

/// Something that differs between the output and the volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Loss {
    /// Path below the output directory; empty for the volume as a whole.
    pub path: String,
    /// `contents`, `file`, `name`, `names`, `attributes`, `object` or `records`; or `older` for
    /// something of an earlier time; or `unset` for something that could not be set here.
    pub what: &'static str,
    /// Offset of the first lost byte of contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Number of lost bytes of contents, which are zeros in the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The reason.
    pub reason: String,
}

/// What was extracted and lost, in numbers.
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
    /// Inodes and directories that no directory names, in `lost+found/inodes`.
    pub without_name: u64,
    /// Objects that no record names, in `lost+found/objects`.
    pub objects: u64,
    /// Number of losses.
    pub lost: u64,
    /// Lost bytes of contents.
    pub bytes_lost: u64,
    /// Files and directories as of an earlier time.
    pub older: u64,
    /// Attributes that could not be set here.
    pub unset: u64,
}

/// The report while it is written.
#[derive(Debug)]
pub struct Report {
    to: BufWriter<File>,
    is_first_loss: bool,
    /// The numbers so far.
    pub counts: Counts,
}

impl Report {
    /// Starts the report with the description of the sources.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(file: File, sources: &Value) -> io::Result<Self> {
        let mut to = BufWriter::new(file);
        write!(
            to,
            "{{\"version\":{VERSION},\"source\":{sources},\n\"losses\":["
        )?;
        Ok(Self {
            to,
            is_first_loss: true,
            counts: Counts::default(),
        })
    }

    /// Adds a loss.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_loss(&mut self, loss: &Loss) -> io::Result<()> {
        match loss.what {
            "older" => self.counts.older += 1,
            "unset" => self.counts.unset += 1,
            _ => self.counts.lost += 1,
        }
        self.counts.bytes_lost += loss.length.unwrap_or(0);
        let separator = if std::mem::take(&mut self.is_first_loss) {
            "\n"
        } else {
            ",\n"
        };
        write!(self.to, "{separator}{}", json!(loss))
    }

    /// Finishes the report. It is durable on return.
    ///
    /// # Errors
    /// The file cannot be written or synced.
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
