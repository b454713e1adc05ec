//! Ids and bytes as JSON strings of lower-case hexadecimal digits. Parsing is strict: it accepts
//! exactly the digits that would be written.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

use crate::ids::{CryptoId, ExportId, IncarnationId, KeySetId, VolumeId};

/// An id with 32 hexadecimal digits as its text.
pub(crate) trait HexId: Sized + std::fmt::Display {
    /// Reads exactly 32 lower-case digits.
    fn from_digits(text: &str) -> Option<Self>;
}

macro_rules! hex_ids {
    ($($name:ident),*) => {
        $(impl HexId for $name {
            fn from_digits(text: &str) -> Option<Self> {
                Self::from_hex(text)
            }
        })*
    };
}

hex_ids!(CryptoId, ExportId, IncarnationId, KeySetId, VolumeId);

/// `#[serde(with = "hex_id")]` for ids.
pub(crate) mod hex_id {
    use super::*;

    pub(crate) fn serialize<T: HexId, S: Serializer>(id: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(crate) fn deserialize<'de, T: HexId, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        T::from_digits(&text).ok_or_else(|| D::Error::custom("not 32 lower-case hex digits"))
    }
}

/// `#[serde(with = "hex_bytes")]` for bytes of any length.
pub(crate) mod hex_bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        strict(&text).ok_or_else(|| D::Error::custom("not lower-case hex digits"))
    }
}

/// `#[serde(with = "hex_array")]` for a fixed number of bytes.
pub(crate) mod hex_array {
    use super::*;

    pub(crate) fn serialize<const N: usize, S: Serializer>(
        bytes: &[u8; N],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
        from: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(from)?;
        strict(&text)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| D::Error::custom("not lower-case hex digits, or not as many as needed"))
    }
}

/// Decodes lower-case hexadecimal digits.
pub(crate) fn strict(text: &str) -> Option<Vec<u8>> {
    let lower = text
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if lower { hex::decode(text).ok() } else { None }
}
