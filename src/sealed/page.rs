//! The page: the unit in which all bytes are sealed and opened.
//!
//! ```text
//!  0       12          28          44      48         56         64
//!  | nonce | outer tag | inner tag | epoch | sequence | reserved | payload …
//! ```
//! Numbers little-endian; epoch 4 bytes, sequence 8, reserved 8 and zero. Both layers
//! authenticate the same 64 bytes of additional data (AAD), which ends with a copy of the page's
//! bytes 44..64:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | format: 1 |
//! | 2 | 16 | key-set id |
//! | 18 | 16 | crypto id |
//! | 34 | 8 | page index |
//! | 42 | 2 | slot: 1 for slot B of `meta`'s page 0, else 0 |
//! | 44 | 4 | epoch |
//! | 48 | 8 | sequence |
//! | 56 | 8 | reserved: zero |
//!
//! To seal: the payload is encrypted by the customer layer as data unit *page index*; its tag is
//! the inner tag; the infrastructure layer encrypts inner tag ‖ ciphertext (in this order, one
//! message) under the nonce; its tag is the outer tag. To open, the steps are reversed, and each
//! tag is verified before the bytes that it covers are used.
//!
//! The infrastructure layer works in place. Meanwhile the inner tag is stored at 48..64, right
//! before the payload; sequence and reserved bytes are written there afterwards.
//!
//! Stages are types: [`Plain`] → [`CustomerSealed`] → [`Sealed`] and, reading, [`Received`] →
//! [`OuterOpened`] → plaintext.

use aes::cipher::inout::InOutBuf;

use super::Refusal;
use super::geometry::{HEADER_BYTES, Slot};
use super::keys::SegmentKeys;
use crate::ids::{CryptoId, Epoch, KeySetId, PageIndex, Sequence};
use crate::layers::infrastructure::NONCE_BYTES;
use crate::layers::{FORMAT, TAG_BYTES};

/// Bytes of additional authenticated data.
pub(super) const AAD_BYTES: usize = 64;

const OUTER_TAG: std::ops::Range<usize> = 12..28;
const INNER_TAG: std::ops::Range<usize> = 28..44;
const FIELDS: std::ops::Range<usize> = 44..64;
/// Position of the inner tag while the infrastructure layer works.
const MESSAGE_START: usize = 48;

const _: () =
    assert!(OUTER_TAG.start == NONCE_BYTES && OUTER_TAG.end - OUTER_TAG.start == TAG_BYTES);
const _: () = assert!(MESSAGE_START + TAG_BYTES == HEADER_BYTES && FIELDS.end == HEADER_BYTES);

/// A fresh random nonce.
pub(super) type Nonce = [u8; NONCE_BYTES];

/// Everything that a page is bound to, apart from its bytes and keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageContext {
    pub(super) key_set: KeySetId,
    pub(super) crypto: CryptoId,
    pub(super) page: PageIndex,
    pub(super) slot: Slot,
    pub(super) epoch: Epoch,
    pub(super) sequence: Sequence,
}

impl PageContext {
    /// The additional authenticated data, laid out as in the module's table.
    fn aad(&self) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad[0..2].copy_from_slice(&FORMAT.to_le_bytes());
        aad[2..18].copy_from_slice(&self.key_set.0);
        aad[18..34].copy_from_slice(&self.crypto.0);
        aad[34..42].copy_from_slice(&self.page.0.to_le_bytes());
        aad[42..44].copy_from_slice(&u16::from(self.slot.number()).to_le_bytes());
        aad[44..48].copy_from_slice(&self.epoch.0.to_le_bytes());
        aad[48..56].copy_from_slice(&self.sequence.0.to_le_bytes());
        aad
    }
}

/// A page's plaintext, and the bytes it is to be sealed into.
pub(super) struct Plain<'a> {
    page: &'a mut [u8],
    elsewhere: Option<&'a [u8]>,
}

impl<'a> Plain<'a> {
    /// The plaintext is already in the page, from byte 64 on.
    pub(super) fn in_place(page: &'a mut [u8]) -> Self {
        let elsewhere = None;
        Self { page, elsewhere }
    }

    /// The plaintext, as long as the page's payload, is elsewhere and is encrypted into the page.
    pub(super) fn from_elsewhere(page: &'a mut [u8], payload: &'a [u8]) -> Self {
        let elsewhere = Some(payload);
        Self { page, elsewhere }
    }

    /// Encrypts and authenticates by the inner layer. `None` if the plaintext is not as long as the
    /// page's payload.
    pub(super) fn seal_customer(
        self,
        keys: &SegmentKeys,
        context: &PageContext,
    ) -> Option<CustomerSealed<'a>> {
        let aad = context.aad();
        let blocks = self.page[HEADER_BYTES..].as_chunks_mut().0;
        let blocks = match self.elsewhere {
            None => blocks.into(),
            Some(plain) => InOutBuf::new(plain.as_chunks().0, blocks).ok()?,
        };
        let tag = keys.customer.seal(context.page.0, &aad, blocks);
        self.page[MESSAGE_START..HEADER_BYTES].copy_from_slice(&tag);
        let page = self.page;
        Some(CustomerSealed { page, aad })
    }
}

/// A page sealed by the inner layer alone: not yet fit for the disk.
pub(super) struct CustomerSealed<'a> {
    /// Inner tag at 48..64, ciphertext from 64.
    page: &'a mut [u8],
    aad: [u8; AAD_BYTES],
}

impl<'a> CustomerSealed<'a> {
    /// Encrypts and authenticates by the outer layer, and writes the header. `None` if the cipher
    /// refuses.
    pub(super) fn seal_infrastructure(
        self,
        keys: &SegmentKeys,
        nonce: &Nonce,
    ) -> Option<Sealed<'a>> {
        let Self { page, aad } = self;
        let outer_tag = keys
            .infrastructure
            .seal(nonce, &aad, &mut page[MESSAGE_START..])
            .ok()?;
        page.copy_within(MESSAGE_START..HEADER_BYTES, INNER_TAG.start);
        page[..NONCE_BYTES].copy_from_slice(nonce);
        page[OUTER_TAG].copy_from_slice(&outer_tag);
        page[FIELDS].copy_from_slice(&aad[FIELDS]);
        Some(Sealed { page })
    }
}

/// A page sealed by both layers: the only type that is ever written.
pub(super) struct Sealed<'a> {
    page: &'a [u8],
}

impl Sealed<'_> {
    /// The tag of the outer layer, which identifies the whole page.
    pub(super) fn outer_tag(&self) -> [u8; TAG_BYTES] {
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&self.page[OUTER_TAG]);
        tag
    }
}

/// A page as read from the disk: arbitrary bytes.
pub(super) struct Received<'a> {
    page: &'a mut [u8],
    epoch: Epoch,
    sequence: Sequence,
}

impl<'a> Received<'a> {
    /// Reads the header's plain fields, which are not authenticated yet.
    pub(super) fn parse(page: &'a mut [u8]) -> Result<Self, Refusal> {
        let fields = page
            .get(FIELDS)
            .and_then(<[u8]>::first_chunk::<20>)
            .ok_or(Refusal::Header)?;
        let [
            e0,
            e1,
            e2,
            e3,
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            reserved @ ..,
        ] = *fields;
        if reserved != [0; 8] {
            return Err(Refusal::Header);
        }
        Ok(Self {
            page,
            epoch: Epoch(u32::from_le_bytes([e0, e1, e2, e3])),
            sequence: Sequence(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
        })
    }

    /// The key set that the page claims to be sealed under.
    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Verifies and decrypts by the outer layer.
    pub(super) fn open_infrastructure(
        self,
        keys: &SegmentKeys,
        crypto: CryptoId,
        index: PageIndex,
        slot: Slot,
    ) -> Result<OuterOpened<'a>, Refusal> {
        let Self {
            page,
            epoch,
            sequence,
        } = self;
        let context = PageContext {
            key_set: keys.key_set,
            crypto,
            page: index,
            slot,
            epoch,
            sequence,
        };
        let aad = context.aad();
        let nonce = *page.first_chunk().ok_or(Refusal::Header)?;
        let outer_tag = *page[OUTER_TAG].first_chunk().ok_or(Refusal::Header)?;
        page.copy_within(INNER_TAG, MESSAGE_START);
        keys.infrastructure
            .open(&nonce, &aad, &outer_tag, &mut page[MESSAGE_START..])
            .map_err(|_| Refusal::Outer)?;
        let inner_tag = *page[MESSAGE_START..].first_chunk().ok_or(Refusal::Header)?;
        Ok(OuterOpened {
            page,
            context,
            aad,
            inner_tag,
            outer_tag,
        })
    }
}

/// A page that the outer layer has opened: the customer layer's ciphertext and tag.
pub(super) struct OuterOpened<'a> {
    page: &'a mut [u8],
    context: PageContext,
    aad: [u8; AAD_BYTES],
    inner_tag: [u8; TAG_BYTES],
    pub(super) outer_tag: [u8; TAG_BYTES],
}

impl<'a> OuterOpened<'a> {
    /// The commit under which it was sealed; authenticated by the outer layer.
    pub(super) const fn sequence(&self) -> Sequence {
        self.context.sequence
    }

    /// Verifies by the inner layer without decrypting.
    pub(super) fn verify_customer(self, keys: &SegmentKeys) -> Result<(), Refusal> {
        let payload = self.page[HEADER_BYTES..].as_chunks().0;
        keys.customer
            .verify(&self.aad, &self.inner_tag, payload)
            .map_err(|_| Refusal::Inner)
    }

    /// Verifies and decrypts by the inner layer, in place.
    pub(super) fn open_customer(self, keys: &SegmentKeys) -> Result<&'a mut [u8], Refusal> {
        let payload = &mut self.page[HEADER_BYTES..];
        keys.customer
            .open(
                self.context.page.0,
                &self.aad,
                &self.inner_tag,
                payload.as_chunks_mut().0.into(),
            )
            .map_err(|_| Refusal::Inner)?;
        Ok(payload)
    }

    /// Verifies and decrypts by the inner layer directly into the reader's bytes, which must be as
    /// long as the payload. No plaintext is left in the page.
    pub(super) fn open_customer_into(
        self,
        keys: &SegmentKeys,
        out: &mut [u8],
    ) -> Result<(), Refusal> {
        let payload = &self.page[HEADER_BYTES..];
        let both = InOutBuf::new(payload.as_chunks().0, out.as_chunks_mut().0)
            .map_err(|_| Refusal::Inner)?;
        keys.customer
            .open(self.context.page.0, &self.aad, &self.inner_tag, both)
            .map_err(|_| Refusal::Inner)
    }
}
