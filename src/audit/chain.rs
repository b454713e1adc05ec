//! The chain of records: the number of each, and the hash of the one before it.
//!
//! A line of the audit begins with `{"seq":N,"previous":"H",`. `N` counts the records of the chain
//! from 1. `H` is the SHA-256, as 64 lowercase hexadecimal digits, of the exact bytes of the line
//! before, without its newline; of the first record it is 64 zeros. A chain has a random id, which
//! is in the first record of each of its files (`chain`). The *head* is the id, the number of the
//! last record and the hash of its line.

use std::io;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Action of the first record of a file.
pub(super) const BEGIN: &str = "audit-begin";
/// Action of the record after the remains of an interrupted write.
pub(super) const TORN: &str = "audit-torn";
/// Action of the record after which the file is not what it was.
pub(super) const BREAK: &str = "audit-break";

/// Limit on the bytes of a line. Records are far shorter: paths are the longest texts in them.
pub(super) const MAX_LINE_BYTES: u64 = 1 << 20;

/// The SHA-256 of a line.
pub(super) type LineHash = [u8; 32];

/// The hash of a line without its newline.
pub(super) fn hash_of(line: &[u8]) -> LineHash {
    Sha256::digest(line).into()
}

/// The id of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainId(pub [u8; 16]);

impl ChainId {
    /// Draws an id.
    pub(super) fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self(id))
    }

    fn from_hex(digits: &str) -> Option<Self> {
        from_hex(digits).map(Self)
    }
}

/// The last record of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The chain.
    pub chain: ChainId,
    /// The number of the record.
    pub count: u64,
    /// The hash of its line.
    pub hash: [u8; 32],
}

impl Head {
    /// Length of its encoding.
    pub const BYTES: usize = 56;

    /// Encodes it: chain 16, count 8 (big-endian), hash 32.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.chain.0);
        bytes[16..24].copy_from_slice(&self.count.to_be_bytes());
        bytes[24..].copy_from_slice(&self.hash);
        bytes
    }

    /// Decodes what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (chain, rest) = bytes.split_first_chunk()?;
        let (count, hash) = rest.split_first_chunk()?;
        Some(Self {
            chain: ChainId(*chain),
            count: u64::from_be_bytes(*count),
            hash: hash.try_into().ok()?,
        })
    }

    /// Parses a head from its number and hexadecimal digits.
    pub fn from_hex(chain: &str, count: u64, hash: &str) -> Option<Self> {
        Some(Self {
            chain: ChainId::from_hex(chain)?,
            count,
            hash: from_hex(hash)?,
        })
    }

    pub(super) fn link(&self) -> Link {
        Link {
            seq: self.count,
            hash: self.hash,
        }
    }
}

/// Keeps the head of a log outside the log.
pub trait HeadStore: Send + Sync {
    /// The head that is kept for the log in this file; `None` if none is.
    ///
    /// # Errors
    /// The head cannot be read, or is damaged (`InvalidData`).
    fn load(&self, log: &Path) -> io::Result<Option<Head>>;

    /// Keeps a head, in place of the former one.
    ///
    /// # Errors
    /// It cannot be written.
    fn store(&self, log: &Path, head: &Head) -> io::Result<()>;
}

/// A record's number and the hash of its line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) hash: LineHash,
}

impl Link {
    /// What precedes the first record.
    pub(super) const START: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// The line of the record that follows, without its newline, and its link. `body` is a JSON
    /// object with at least one field.
    pub(super) fn next(self, body: &[u8]) -> (Vec<u8>, Self) {
        let seq = self.seq.saturating_add(1);
        let fields = body.strip_prefix(b"{").unwrap_or(body);
        let previous = hex::encode(self.hash);
        let mut line = format!("{{\"seq\":{seq},\"previous\":\"{previous}\",").into_bytes();
        line.extend_from_slice(fields);
        let hash = hash_of(&line);
        (line, Self { seq, hash })
    }
}

/// The fields of a line that link it to others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Linked {
    pub(super) seq: u64,
    pub(super) previous: LineHash,
    pub(super) action: String,
    pub(super) chain: Option<ChainId>,
    /// In the first record of a file: the file before it.
    pub(super) continues: Option<String>,
    /// [`TORN`]: the hash of the remains.
    pub(super) torn: Option<LineHash>,
    /// [`BREAK`]: what was noticed.
    pub(super) reason: Option<String>,
}

#[derive(Deserialize)]
struct LinkFields {
    seq: u64,
    previous: String,
    action: String,
    chain: Option<String>,
    continues: Option<String>,
    torn_sha256: Option<String>,
    reason: Option<String>,
}

impl Linked {
    /// Parses a line without its newline; `None` if it is no record of a chain.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let fields: LinkFields = serde_json::from_slice(line).ok()?;
        Some(Self {
            seq: Some(fields.seq).filter(|seq| *seq > 0)?,
            previous: from_hex(&fields.previous)?,
            action: fields.action,
            chain: fields.chain.as_deref().and_then(ChainId::from_hex),
            continues: fields.continues,
            torn: fields.torn_sha256.as_deref().and_then(from_hex),
            reason: fields.reason,
        })
    }

    /// True if this is the record after that one.
    pub(super) fn follows(&self, before: Link) -> bool {
        before.seq.checked_add(1) == Some(self.seq) && self.previous == before.hash
    }
}

fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_lowercase = !digits.bytes().any(|byte| byte.is_ascii_uppercase());
    (is_lowercase && hex::decode_to_slice(digits, &mut bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_one_before_it() {
        let (first, link) = Link::START.next(b"{\"action\":\"a\"}");
        assert_eq!(
            String::from_utf8(first.clone()).unwrap(),
            format!(
                "{{\"seq\":1,\"previous\":\"{}\",\"action\":\"a\"}}",
                "0".repeat(64)
            )
        );
        // As anybody computes it: sha256sum of the line.
        assert_eq!(link.hash, <[u8; 32]>::from(Sha256::digest(&first)));
        let (second, _) = link.next(b"{\"action\":\"b\"}");
        let parsed = Linked::parse(&second).unwrap();
        assert!(parsed.follows(link) && !parsed.follows(Link::START));
        assert!(Linked::parse(&first).unwrap().follows(Link::START));
    }

    #[test]
    fn other_lines_are_no_records() {
        let zeros = "0".repeat(64);
        for line in [
            String::new(),
            "{}".to_owned(),
            "[1]".to_owned(),
            format!("{{\"seq\":0,\"previous\":\"{zeros}\",\"action\":\"a\"}}"),
            format!("{{\"seq\":-1,\"previous\":\"{zeros}\",\"action\":\"a\"}}"),
            format!(
                "{{\"seq\":1,\"previous\":\"{}\",\"action\":\"a\"}}",
                &zeros[1..]
            ),
            format!("{{\"seq\":1,\"seq\":2,\"previous\":\"{zeros}\",\"action\":\"a\"}}"),
            format!(
                "{{\"seq\":1,\"previous\":\"{}\",\"action\":\"a\"}}",
                "F".repeat(64)
            ),
        ] {
            assert_eq!(Linked::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_head_has_one_encoding() {
        let head = Head {
            chain: ChainId([1; 16]),
            count: 0x0102_0304_0506_0708,
            hash: [9; 32],
        };
        let bytes = head.encode();
        assert_eq!(bytes[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Head::decode(&bytes), Some(head));
        assert_eq!(Head::decode(&bytes[1..]), None);
        assert_eq!(Head::decode(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
