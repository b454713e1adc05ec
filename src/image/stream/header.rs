//! The header of a stream: one line of JSON, read strictly.
//!
//! | field | value |
//! |---|---|
//! | `features` | names of features that a reader must know; none are defined |
//! | `export` | id of this export, 32 hexadecimal digits |
//! | `key_mode` | `"platform-managed"` or `"platform-and-customer"` |
//! | `transport` | who holds the keys of the wraps ([`TransportMethod`]) |
//! | `customer_key` | null, or `{provider, version, algorithm, public_key}` of the customer key |
//! | `meta` | crypto id of the `meta` that follows |
//! | `key_set` | `{id, epoch, customer, infrastructure}`, the two wraps as digits |
//! | `provenance` | `{volume, image, created}`: seconds since 1970 |
//! | `counts` | `{meta_strides, objects, pages}` of what follows |
//!
//! The only key set was drawn for this stream and seals all of it, metadata and contents. No volume
//! used it before, and a volume that imports the stream writes nothing under it.
//!
//! Invariants: the header is parsed once, from exactly the bytes that are authenticated. Duplicate
//! fields, unknown fields and values that are too large are refused. Until it is authenticated
//! ([`UnverifiedExport`]), only the fields that locate and unwrap the keys are used.

use serde::{Deserialize, Serialize};

use super::{MAX_HEADER_BYTES, STREAM_VERSION, STRIDE, StreamError, invalid};
use crate::ids::{CryptoId, Epoch, ExportId, KeySetId, VolumeId};
use crate::keys::encoding::{hex_bytes, hex_id};
use crate::keys::transport::{MAX_WRAP_BYTES, TransportMethod};
use crate::keys::{KeyError, KeyVersion, WrapAlgorithm, WrappingKey};
use crate::layers::ExportKeys;
use crate::layers::export::MAC_BYTES;
use crate::sealed::PAGE_BYTES;
use crate::volume::KeyMode;
use crate::volume::header::epoch_number;

const MAX_NAME_BYTES: usize = 255;
const MAX_TEXT_BYTES: usize = 4096;
/// More pages than any volume can hold, and far below where lengths in bytes overflow.
const MAX_PAGES: u64 = 1 << 48;

/// A key set, wrapped for transport.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportedKeySet {
    /// Its id.
    #[serde(with = "hex_id")]
    pub id: KeySetId,
    /// Its number, here and in volumes that import it.
    #[serde(with = "epoch_number")]
    pub epoch: Epoch,
    /// The customer DEK, wrapped.
    #[serde(with = "hex_bytes")]
    pub customer: Vec<u8>,
    /// The infrastructure DEK, wrapped.
    #[serde(with = "hex_bytes")]
    pub infrastructure: Vec<u8>,
}

/// Identifies a customer key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomerKeyClaim {
    /// Its URI where the image was exported; shown to people and never used.
    pub provider: String,
    /// The provider's name of its version.
    pub version: Option<String>,
    /// Its wrapping algorithm.
    pub algorithm: WrapAlgorithm,
    /// SubjectPublicKeyInfo (RFC 5280) in DER.
    #[serde(with = "hex_bytes")]
    pub public_key: Vec<u8>,
}

impl CustomerKeyClaim {
    /// Names a key.
    pub(crate) fn new(provider: String, version: &KeyVersion) -> Self {
        Self {
            provider,
            version: version.name.clone(),
            algorithm: version.key.algorithm(),
            public_key: version.key.spki().to_vec(),
        }
    }

    /// The key in the form that providers use.
    ///
    /// # Errors
    /// When the public key is not one that is accepted.
    pub(crate) fn to_version(&self) -> Result<KeyVersion, KeyError> {
        Ok(KeyVersion {
            name: self.version.clone(),
            key: WrappingKey::from_spki(&self.public_key, self.algorithm)?,
        })
    }
}

/// Where the image came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportProvenance {
    /// The volume that it was an image of.
    #[serde(with = "hex_id")]
    pub volume: VolumeId,
    /// Name of the image.
    pub image: String,
    /// When the image was taken: seconds since 1970.
    pub created: i64,
}

/// Numbers of what follows the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Strides of `meta`.
    pub meta_strides: u64,
    /// Objects.
    pub objects: u64,
    /// Pages of all objects.
    pub pages: u64,
}

impl Counts {
    /// Bytes of all strides and pages.
    pub const fn sealed_bytes(&self) -> u64 {
        self.meta_strides * STRIDE + self.pages * PAGE_BYTES as u64
    }
}

/// The contents of a header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportHeader {
    /// Features that a reader must know.
    pub features: Vec<String>,
    /// Id of this export.
    #[serde(with = "hex_id")]
    pub export: ExportId,
    /// Key mode of the image.
    pub key_mode: KeyMode,
    /// Who holds the keys of the wraps.
    pub transport: TransportMethod,
    /// The customer key of a customer-managed image.
    pub customer_key: Option<CustomerKeyClaim>,
    /// Crypto id of `meta`.
    #[serde(with = "hex_id")]
    pub meta: CryptoId,
    /// The key set that all of it is sealed under.
    pub key_set: TransportedKeySet,
    /// Where the image came from.
    pub provenance: ExportProvenance,
    /// Numbers of what follows the header.
    pub counts: Counts,
}

impl ExportHeader {
    /// Parses and checks one line of JSON.
    fn parse(line: &[u8]) -> Result<Self, StreamError> {
        let header: Self =
            serde_json::from_slice(line).map_err(|error| invalid(error.to_string()))?;
        header.check()?;
        Ok(header)
    }

    /// Checks that all fields are within bounds and consistent.
    fn check(&self) -> Result<(), StreamError> {
        self.check_features()?;
        if !self.transport.is_well_formed() {
            return Err(invalid("the wrapping of its keys is not valid"));
        }
        self.check_customer_key()?;
        self.check_key_set()?;
        let name = &self.provenance.image;
        if name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            return Err(invalid("its provenance is not a name"));
        }
        let counts = [
            self.counts.meta_strides,
            self.counts.objects,
            self.counts.pages,
        ];
        if counts.iter().any(|count| *count > MAX_PAGES) || self.counts.meta_strides < 2 {
            return Err(invalid("its counts are out of range"));
        }
        Ok(())
    }

    fn check_features(&self) -> Result<(), StreamError> {
        let name_ok = |name: &String| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if self.features.is_empty() {
            Ok(())
        } else if self.features.len() > 32 || !self.features.iter().all(name_ok) {
            Err(invalid("its features are not names"))
        } else {
            Err(StreamError::UnknownFeatures(self.features.join(", ")))
        }
    }

    fn check_customer_key(&self) -> Result<(), StreamError> {
        let customer_managed = self.key_mode == KeyMode::PlatformAndCustomer;
        let Some(key) = &self.customer_key else {
            return match customer_managed {
                true => Err(invalid("its customer key is not named")),
                false => Ok(()),
            };
        };
        let text_ok = |text: &String| {
            (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.contains(char::is_control)
        };
        if !customer_managed || !text_ok(&key.provider) || !key.version.iter().all(text_ok) {
            return Err(invalid("its customer key does not fit its key mode"));
        }
        if key.to_version().is_err() {
            return Err(invalid("its customer key is not one that is accepted"));
        }
        Ok(())
    }

    fn check_key_set(&self) -> Result<(), StreamError> {
        let set = &self.key_set;
        if set.epoch.0 == u32::MAX {
            return Err(invalid("no key set can follow its own"));
        }
        let wraps = [&set.customer, &set.infrastructure];
        if !wraps
            .iter()
            .all(|wrap| (1..=MAX_WRAP_BYTES).contains(&wrap.len()))
        {
            return Err(invalid("a wrapped key is empty or too long"));
        }
        Ok(())
    }

    /// Encodes both lines, and the line of their MAC.
    ///
    /// # Errors
    /// The contents break a rule or are too long.
    pub(super) fn seal(&self, keys: &ExportKeys) -> Result<Vec<u8>, StreamError> {
        self.check()?;
        let line = serde_json::to_vec(self).map_err(|error| invalid(error.to_string()))?;
        if line.len() > MAX_HEADER_BYTES {
            return Err(invalid("it would be too long"));
        }
        let mut bytes = first_line(STREAM_VERSION).into_bytes();
        bytes.extend_from_slice(&line);
        bytes.push(b'\n');
        let mac = keys
            .header_mac(&bytes)
            .map_err(|_| invalid("its MAC cannot be computed"))?;
        bytes.extend_from_slice(hex::encode(mac).as_bytes());
        bytes.push(b'\n');
        Ok(bytes)
    }
}

fn first_line(version: u32) -> String {
    format!("{}{version}\n", super::FIRST_WORD)
}

/// A header that has not been authenticated: its contents are claims.
#[derive(Clone, Debug)]
pub struct UnverifiedExport {
    /// Both lines, newlines included.
    bytes: Vec<u8>,
    mac: [u8; MAC_BYTES],
    header: ExportHeader,
}

impl UnverifiedExport {
    /// Parses the second line, without its newline.
    pub(super) fn parse(line: &[u8], mac: [u8; MAC_BYTES]) -> Result<Self, StreamError> {
        let header = ExportHeader::parse(line)?;
        let bytes = [first_line(STREAM_VERSION).as_bytes(), line, b"\n"].concat();
        Ok(Self { bytes, mac, header })
    }

    /// The unauthenticated contents.
    pub fn claims(&self) -> &ExportHeader {
        &self.header
    }

    /// Verifies the MAC and returns the header.
    ///
    /// # Errors
    /// [`StreamError::HeaderTampered`] if the MAC does not match.
    pub fn verify(self, keys: &ExportKeys) -> Result<ExportHeader, StreamError> {
        if keys.verify_header(&self.bytes, &self.mac) {
            Ok(self.header)
        } else {
            Err(StreamError::HeaderTampered)
        }
    }
}
