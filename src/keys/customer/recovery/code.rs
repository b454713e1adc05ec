//! A recovery code as text, fit for paper.
//!
//! ```text
//! 0         1           2        3        6
//! | version | threshold | number | set id | 32 bytes: the seed, or a share of it |
//! ```
//!
//! in Bech32m (BIP 350) behind `bilayer1`: 75 characters, of which any four may be wrong and it
//! shows. They are printed in upper case, which QR codes store compactly, and in groups of five;
//! blanks, hyphens and case do not count when it is read.
//!
//! The threshold is how many different shares give the seed (Shamir), and the number is that of the
//! share, from 1; both are 0 for a whole code. The set id is the beginning of the fingerprint of
//! the public key, by which shares that do not belong together are told apart.

use bech32::{Bech32m, Hrp};
use blahaj::{Share, Sharks};
use zeroize::Zeroizing;

use super::SEED_BYTES;
use crate::keys::error::{ErrorKind, KeyError};

/// What every code begins with.
const PREFIX: &str = "bilayer";
/// Version of the layout.
const VERSION: u8 = 1;
const SET_BYTES: usize = 3;
const PAYLOAD_BYTES: usize = 3 + SET_BYTES + SEED_BYTES;
/// Characters in a printed group.
const GROUP: usize = 5;

/// The seed of a recovery key.
pub(super) type Seed = Zeroizing<Vec<u8>>;

/// A whole code, or one share of one.
pub(super) struct Code {
    /// How many shares give the seed; 0 for a whole code.
    threshold: u8,
    /// The number of the share; 0 for a whole code.
    number: u8,
    set: [u8; SET_BYTES],
    secret: Seed,
}

/// How a code is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// How many shares are needed, at least 2.
    pub needed: u8,
    /// How many there are.
    pub shares: u8,
}

impl std::str::FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "it has to be M/N, such as 2/3: any M of N shares".to_owned();
        let (needed, shares) = text.split_once('/').ok_or_else(wrong)?;
        let this = Self {
            needed: needed.parse().map_err(|_| wrong())?,
            shares: shares.parse().map_err(|_| wrong())?,
        };
        match (2..=this.shares).contains(&this.needed) && this.shares <= 16 {
            true => Ok(this),
            false => Err("at least 2 shares are needed, of at most 16".to_owned()),
        }
    }
}

impl Code {
    /// The whole code of a seed.
    pub(super) fn whole(seed: &[u8], fingerprint: &[u8]) -> Self {
        Self {
            threshold: 0,
            number: 0,
            set: set_of(fingerprint),
            secret: Zeroizing::new(seed.to_vec()),
        }
    }

    /// The shares of a seed.
    pub(super) fn split(seed: &[u8], fingerprint: &[u8], split: Split) -> Vec<Self> {
        let dealer = Sharks(split.needed);
        let shares = dealer.dealer(seed).take(usize::from(split.shares));
        let share = |share: Share| {
            let bytes = Zeroizing::new(Vec::from(&share));
            Self {
                threshold: split.needed,
                number: bytes[0],
                set: set_of(fingerprint),
                secret: Zeroizing::new(bytes[1..].to_vec()),
            }
        };
        shares.map(share).collect()
    }

    /// How many further shares are needed if there is only this one.
    pub(super) fn needed(&self) -> u8 {
        self.threshold.max(1)
    }

    /// The text, in groups.
    pub(super) fn to_text(&self) -> Result<Zeroizing<String>, KeyError> {
        let mut payload = Zeroizing::new(Vec::with_capacity(PAYLOAD_BYTES));
        payload.extend([VERSION, self.threshold, self.number]);
        payload.extend(self.set);
        payload.extend(&*self.secret);
        let failed = || KeyError::new(ErrorKind::Io, "the recovery code cannot be encoded");
        let prefix = Hrp::parse(PREFIX).map_err(|_| failed())?;
        let text = bech32::encode_upper::<Bech32m>(prefix, &payload).map_err(|_| failed())?;
        let text = Zeroizing::new(text);
        let mut grouped = Zeroizing::new(String::with_capacity(2 * text.len()));
        for (place, character) in text.chars().enumerate() {
            if place > 0 && place % GROUP == 0 {
                grouped.push(' ');
            }
            grouped.push(character);
        }
        Ok(grouped)
    }

    /// Reads one or several codes in any spelling.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, KeyError> {
        let mut joined = Zeroizing::new(String::with_capacity(text.len()));
        let kept = text.chars().filter(|c| !c.is_whitespace() && *c != '-');
        joined.extend(kept.map(|c| c.to_ascii_lowercase()));
        let marker = format!("{PREFIX}1");
        let Some(rest) = joined.strip_prefix(&marker) else {
            return Err(refused("it does not begin with BILAYER1"));
        };
        let codes = rest.split(&marker);
        let whole = codes.map(|code| Zeroizing::new(format!("{marker}{code}")));
        whole.map(|code| Self::parse(&code)).collect()
    }

    fn parse(text: &str) -> Result<Self, KeyError> {
        let mistyped = || refused("it is mistyped: its checksum is wrong");
        let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32m>(text)
            .map_err(|_| mistyped())?;
        let payload: Zeroizing<Vec<u8>> = Zeroizing::new(checked.byte_iter().collect());
        if payload.len() != PAYLOAD_BYTES {
            return Err(refused("it has another length"));
        }
        if payload[0] != VERSION {
            return Err(refused("it was made by a newer version of this program"));
        }
        let mut set = [0; SET_BYTES];
        set.copy_from_slice(&payload[3..3 + SET_BYTES]);
        let this = Self {
            threshold: payload[1],
            number: payload[2],
            set,
            secret: Zeroizing::new(payload[3 + SET_BYTES..].to_vec()),
        };
        match (this.threshold == 0) == (this.number == 0) && this.threshold != 1 {
            true => Ok(this),
            false => Err(refused("it is no code and no share")),
        }
    }

    /// The seed that these codes give: a whole one, or enough different shares.
    pub(super) fn combine(codes: &[Self]) -> Result<Seed, KeyError> {
        let first = codes.first().ok_or_else(|| refused("there is none"))?;
        if first.threshold == 0 {
            return Ok(first.secret.clone());
        }
        let belongs = |code: &Self| (code.threshold, code.set) == (first.threshold, first.set);
        if !codes.iter().all(belongs) {
            return Err(refused("the shares do not belong together"));
        }
        let mut numbers: Vec<u8> = codes.iter().map(|code| code.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() < usize::from(first.threshold) {
            return Err(refused(&format!(
                "{} different shares are needed, and there are {}",
                first.threshold,
                numbers.len()
            )));
        }
        let mut shares = Vec::with_capacity(numbers.len());
        for number in numbers {
            let Some(code) = codes.iter().find(|code| code.number == number) else {
                continue;
            };
            let mut bytes = Zeroizing::new(vec![number]);
            bytes.extend(&*code.secret);
            let share = Share::try_from(bytes.as_slice());
            shares.push(share.map_err(|_| refused("a share is damaged"))?);
        }
        let dealer = Sharks(first.threshold);
        let seed = dealer.recover(&shares);
        Ok(Zeroizing::new(
            seed.map_err(|_| refused("the shares give no code"))?,
        ))
    }
}

fn set_of(fingerprint: &[u8]) -> [u8; SET_BYTES] {
    let mut set = [0; SET_BYTES];
    for (to, from) in set.iter_mut().zip(fingerprint) {
        *to = *from;
    }
    set
}

fn refused(why: &str) -> KeyError {
    KeyError::new(
        ErrorKind::WrongKey,
        format!("this is no usable recovery code: {why}"),
    )
    .with_hint(
        "compare it with the paper; blanks and case do not count, and shares follow each other",
    )
}
