//! Writing a stream. The caller passes the sections in order.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::header::{Counts, ExportHeader};
use super::{StreamError, TAG_END, TAG_META, TAG_OBJECT, invalid};
use crate::layers::ExportKeys;
use crate::meta::records::ObjectName;

/// Writes a stream.
pub struct StreamWriter<'a> {
    to: &'a mut dyn Write,
    digest: Sha256,
    bytes: u64,
    keys: &'a ExportKeys,
    counts: Counts,
}

impl<'a> StreamWriter<'a> {
    /// Writes the header.
    ///
    /// # Errors
    /// The header breaks a rule, or cannot be written.
    pub fn begin(
        to: &'a mut dyn Write,
        header: &ExportHeader,
        keys: &'a ExportKeys,
    ) -> Result<Self, StreamError> {
        let sealed = header.seal(keys)?;
        let mut this = Self {
            to,
            digest: Sha256::new(),
            bytes: 0,
            keys,
            counts: header.counts,
        };
        this.put(&sealed)?;
        Ok(this)
    }

    /// Writes the header of the section `meta`. As many strides as this returns follow by
    /// [`Self::put`].
    ///
    /// # Errors
    /// The section cannot be written.
    pub fn meta(&mut self) -> Result<u64, StreamError> {
        let strides = self.counts.meta_strides;
        self.put(&[TAG_META])?;
        self.put(&strides.to_le_bytes())?;
        Ok(strides)
    }

    /// Writes the header of an object's section. Its pages follow by [`Self::put`].
    ///
    /// # Errors
    /// The section cannot be written.
    pub fn object(&mut self, name: ObjectName, pages: u32) -> Result<(), StreamError> {
        self.put(&[TAG_OBJECT])?;
        self.put(&name.folder.0.to_le_bytes())?;
        self.put(&name.object.0)?;
        self.put(&pages.to_le_bytes())
    }

    /// Writes sealed bytes.
    ///
    /// # Errors
    /// The bytes cannot be written.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.to
            .write_all(bytes)
            .map_err(StreamError::io("cannot write the export"))
    }

    /// Writes the end mark, and returns the length of the stream in bytes.
    ///
    /// # Errors
    /// The end mark cannot be written.
    pub fn end(mut self) -> Result<u64, StreamError> {
        let Counts { objects, pages, .. } = self.counts;
        self.put(&[TAG_END])?;
        for number in [objects, pages, self.counts.sealed_bytes()] {
            self.put(&number.to_le_bytes())?;
        }
        let digest = self.digest.clone().finalize().into();
        let mac = self
            .keys
            .end_mac(&digest)
            .map_err(|_| invalid("the MAC of its end cannot be computed"))?;
        self.put(&mac)?;
        self.to
            .flush()
            .map_err(StreamError::io("cannot write the export"))?;
        Ok(self.bytes)
    }
}
