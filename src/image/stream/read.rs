//! Reading a stream, section by section, in its only order.

use std::io::{BufRead, BufReader, ErrorKind, Read};

use sha2::{Digest, Sha256};

use super::header::{Counts, UnverifiedExport};
use super::{
    FIRST_WORD, MAX_HEADER_BYTES, STREAM_VERSION, StreamError, TAG_END, TAG_META, TAG_OBJECT,
    invalid,
};
use crate::ids::{FolderNumber, ObjectId};
use crate::keys::encoding::strict;
use crate::layers::ExportKeys;
use crate::layers::export::MAC_BYTES;
use crate::meta::records::ObjectName;

/// Longest first line, in bytes: the prefix and a number.
const MAX_FIRST_LINE: usize = 40;
const MAC_DIGITS: usize = 2 * MAC_BYTES;
/// Size of the read buffer, in bytes.
const BUFFER_BYTES: usize = 64 << 10;

/// Reads a stream.
pub struct StreamReader<'a> {
    from: BufReader<&'a mut dyn Read>,
    digest: Sha256,
}

impl<'a> StreamReader<'a> {
    /// Reads the header, which is not authenticated yet.
    ///
    /// # Errors
    /// The data is not a stream, is of another version, needs unknown features, has an invalid
    /// header, ends too early, or cannot be read.
    pub fn begin(from: &'a mut dyn Read) -> Result<(Self, UnverifiedExport), StreamError> {
        let mut this = Self {
            from: BufReader::with_capacity(BUFFER_BYTES, from),
            digest: Sha256::new(),
        };
        this.first_line()?;
        let line = this.line(MAX_HEADER_BYTES)?;
        let digits = this.line(MAC_DIGITS)?;
        let mac = std::str::from_utf8(&digits)
            .ok()
            .and_then(strict)
            .and_then(|mac| mac.try_into().ok())
            .ok_or_else(|| invalid("its third line is no MAC"))?;
        let unverified = UnverifiedExport::parse(&line, mac)?;
        Ok((this, unverified))
    }

    fn first_line(&mut self) -> Result<(), StreamError> {
        let line = match self.line(MAX_FIRST_LINE) {
            Err(StreamError::Truncated { .. } | StreamError::HeaderInvalid(_)) => {
                return Err(StreamError::NotAnExport);
            }
            result => result?,
        };
        let text = std::str::from_utf8(&line).ok();
        let number = text.and_then(|text| text.strip_prefix(FIRST_WORD));
        let plain = number.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let format: u64 = plain
            .and_then(|digits| digits.parse().ok())
            .ok_or(StreamError::NotAnExport)?;
        if format > u64::from(STREAM_VERSION) {
            return Err(StreamError::NewerFormat {
                format,
                supported: STREAM_VERSION,
            });
        }
        if line != format!("{FIRST_WORD}{format}").into_bytes() || format == 0 {
            return Err(StreamError::NotAnExport);
        }
        if format < u64::from(STREAM_VERSION) {
            return Err(StreamError::OlderFormat {
                format,
                supported: STREAM_VERSION,
            });
        }
        Ok(())
    }

    /// One line of the header, without its newline, of at most `max_bytes` bytes.
    fn line(&mut self, max_bytes: usize) -> Result<Vec<u8>, StreamError> {
        let mut line = Vec::new();
        let bound = max_bytes as u64 + 1;
        (&mut self.from)
            .take(bound)
            .read_until(b'\n', &mut line)
            .map_err(StreamError::io("cannot read the export"))?;
        self.digest.update(&line);
        match line.pop() {
            Some(b'\n') => Ok(line),
            Some(_) if line.len() as u64 + 1 == bound => Err(invalid("a line of it is too long")),
            _ => Err(StreamError::Truncated {
                within: "its header",
            }),
        }
    }

    /// Fills `buffer` with sealed bytes. `within` names the section for errors.
    ///
    /// # Errors
    /// The stream ends too early or cannot be read.
    pub fn fill(&mut self, buffer: &mut [u8], within: &'static str) -> Result<(), StreamError> {
        self.fill_unhashed(buffer, within)?;
        self.digest.update(&*buffer);
        Ok(())
    }

    fn fill_unhashed(
        &mut self,
        buffer: &mut [u8],
        within: &'static str,
    ) -> Result<(), StreamError> {
        self.from
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => StreamError::Truncated { within },
                _ => StreamError::io("cannot read the export")(error),
            })
    }

    fn array<const N: usize>(&mut self, within: &'static str) -> Result<[u8; N], StreamError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, within)?;
        Ok(bytes)
    }

    fn number(&mut self, within: &'static str) -> Result<u64, StreamError> {
        self.array(within).map(u64::from_le_bytes)
    }

    fn tag(&mut self, wanted: u8, section: &dyn Fn() -> String) -> Result<(), StreamError> {
        let within = "the list of its objects";
        let [actual] = self.array(within)?;
        if actual == wanted {
            return Ok(());
        }
        Err(StreamError::OutOfOrder {
            wanted: section(),
            actual: match actual {
                TAG_META => "metadata".to_owned(),
                TAG_OBJECT => "another object".to_owned(),
                TAG_END => "the end".to_owned(),
                other => format!("the byte {other:#04x}"),
            },
        })
    }

    /// Reads the header of the section `meta`, which must be as long as the authenticated header
    /// says.
    ///
    /// # Errors
    /// Another section follows, or the stream ends too early or cannot be read.
    pub fn meta(&mut self, counts: &Counts) -> Result<(), StreamError> {
        let wanted = || format!("metadata of {} strides", counts.meta_strides);
        self.tag(TAG_META, &wanted)?;
        let strides = self.number("its metadata")?;
        if strides != counts.meta_strides {
            return Err(StreamError::OutOfOrder {
                wanted: wanted(),
                actual: format!("{strides} strides"),
            });
        }
        Ok(())
    }

    /// Reads the header of an object's section, which must be this object with that number of
    /// pages.
    ///
    /// # Errors
    /// Another section follows, or the stream ends too early or cannot be read.
    pub fn object(&mut self, name: ObjectName, pages: u32) -> Result<(), StreamError> {
        let within = "the list of its objects";
        let describe = |name: ObjectName, pages: u32| {
            format!(
                "object {} of folder {:08x} with {pages} pages",
                name.object, name.folder.0
            )
        };
        self.tag(TAG_OBJECT, &|| describe(name, pages))?;
        let actual_name = ObjectName {
            folder: FolderNumber(self.number(within)?),
            object: ObjectId(self.array(within)?),
        };
        let actual_pages = u32::from_le_bytes(self.array(within)?);
        if (actual_name, actual_pages) != (name, pages) {
            return Err(StreamError::OutOfOrder {
                wanted: describe(name, pages),
                actual: describe(actual_name, actual_pages),
            });
        }
        Ok(())
    }

    /// Reads the end mark, and authenticates everything that was read. `counts` are those of the
    /// authenticated header; the caller has compared them with what was read.
    ///
    /// # Errors
    /// The end mark does not authenticate the stream, another section or further data follows, or
    /// the stream ends too early or cannot be read.
    pub fn end(&mut self, counts: &Counts, keys: &ExportKeys) -> Result<(), StreamError> {
        let within = "its end mark";
        self.tag(TAG_END, &|| "the end".to_owned())?;
        let claimed: [u64; 3] = [
            self.number(within)?,
            self.number(within)?,
            self.number(within)?,
        ];
        let digest = self.digest.clone().finalize().into();
        let mut mac = [0; MAC_BYTES];
        self.fill_unhashed(&mut mac, within)?;
        if !keys.verify_end(&digest, &mac) {
            return Err(StreamError::Tampered {
                what: "end mark does not match",
            });
        }
        if claimed != [counts.objects, counts.pages, counts.sealed_bytes()] {
            return Err(StreamError::Tampered {
                what: "counts do not match",
            });
        }
        match self.fill_unhashed(&mut [0], within) {
            Err(StreamError::Truncated { .. }) => Ok(()),
            Ok(()) => Err(StreamError::Trailing),
            failed => failed,
        }
    }
}
