//! `recovery:` keys: a code on paper, for the day on which every other key is lost.
//!
//! The code holds a random seed of 32 bytes, which gives a key pair (`hpke`). DEKs are
//! wrapped to its public half. So DEKs that are drawn later are wrapped for the code too, without
//! the code.

mod code;

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use super::hpke;
use super::wrapping_key::{WrapAlgorithm, WrappingKey};
use super::{CustomerKeyProvider, KeyVersion, does_not_decrypt, not_this_key};
use crate::keys::error::KeyError;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::secret::Passphrase;
use crate::keys::uri::KeyUri;
use crate::sys::wipe::with_secrets;

use code::{Code, Seed};

pub use code::Split;

/// Bytes of the seed.
pub const SEED_BYTES: usize = 32;
/// What prompts and errors call it.
const SHOWN: &str = "the recovery code";

/// A recovery code.
pub struct RecoveryKey {
    uri: KeyUri,
    key: WrappingKey,
    private: hpke::PrivateKey,
    seed: Seed,
}

impl RecoveryKey {
    /// Draws a new code.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn random() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new(vec![0; SEED_BYTES]);
        getrandom::fill(&mut seed)
            .map_err(|error| KeyError::random(std::io::Error::other(error.to_string())))?;
        with_secrets(|| Self::from_seed(seed))
    }

    /// Asks for the code, and for further shares if it is split.
    pub(super) fn open(uri: &KeyUri, source: &PassphraseSource) -> Result<Self, KeyError> {
        let seed = source.obtain_that_opens(Path::new(SHOWN), |first| {
            let mut codes = parse(first)?;
            let needed = codes.first().map_or(0, Code::needed);
            while codes.len() < usize::from(needed) && *source == PassphraseSource::Prompt {
                let shown = format!("share {} of {needed} of {SHOWN}", codes.len() + 1);
                let next = source.obtain(Path::new(&shown))?;
                codes.extend(parse(&next)?);
            }
            Code::combine(&codes)
        })?;
        let this = Self::from_seed(seed)?;
        Ok(Self {
            uri: uri.clone(),
            ..this
        })
    }

    fn from_seed(seed: Seed) -> Result<Self, KeyError> {
        let (private, public) = hpke::key_pair(&seed);
        Ok(Self {
            uri: KeyUri::recovery(),
            key: WrappingKey::from_x25519(&public)?,
            private,
            seed,
        })
    }

    /// The code as text; one text for each share if it is split.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn to_texts(&self, split: Option<Split>) -> Result<Vec<Zeroizing<String>>, KeyError> {
        let fingerprint = hex::decode(self.key.fingerprint()).unwrap_or_default();
        let codes = match split {
            None => vec![Code::whole(&self.seed, &fingerprint)],
            Some(split) => with_secrets(|| Code::split(&self.seed, &fingerprint, split)),
        };
        codes.iter().map(Code::to_text).collect()
    }
}

fn parse(passphrase: &Passphrase) -> Result<Vec<Code>, KeyError> {
    let text = std::str::from_utf8(passphrase.expose()).unwrap_or_default();
    Code::parse_all(text)
}

impl CustomerKeyProvider for RecoveryKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn current(&self) -> Result<KeyVersion, KeyError> {
        Ok(KeyVersion {
            name: None,
            key: self.key.clone(),
        })
    }

    fn unwrap(
        &self,
        version: &KeyVersion,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if !version.key.is_same_key(&self.key) {
            return Err(not_this_key(&self.uri, version));
        }
        if version.key.algorithm() != WrapAlgorithm::HpkeX25519 {
            return Err(does_not_decrypt(&self.uri));
        }
        with_secrets(|| hpke::open(&self.private, ciphertext))
            .ok_or_else(|| does_not_decrypt(&self.uri))
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryKey")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::error::ErrorKind;

    fn written(directory: &Path, text: &str) -> PassphraseSource {
        let path = directory.join("code");
        std::fs::write(&path, text).expect("write");
        PassphraseSource::File(path)
    }

    #[test]
    fn a_code_opens_what_was_wrapped_to_it_in_any_spelling() {
        let directory = tempfile::tempdir().expect("tempdir");
        let made = RecoveryKey::random().expect("random");
        let version = made.current().expect("current");
        let wrapped = version.key.wrap(&[7; 109]).expect("wrap");
        assert_eq!(wrapped.len(), version.key.ciphertext_bytes(109));
        let text = made.to_texts(None).expect("text").remove(0);
        assert_eq!(text.replace(' ', "").len(), 75);
        for spelling in [
            text.to_string(),
            text.to_lowercase(),
            text.replace(' ', "-"),
            text.replace(' ', ""),
        ] {
            let source = written(directory.path(), &spelling);
            let opened = RecoveryKey::open(&KeyUri::recovery(), &source).expect("open");
            let plain = opened.unwrap(&version, &wrapped).expect("unwrap");
            assert_eq!(plain.as_slice(), [7; 109]);
        }
        let mut changed = wrapped.clone();
        changed[40] ^= 1;
        for bad in [changed.as_slice(), &wrapped[..156], &[], &[0; 157]] {
            let error = made.unwrap(&version, bad).expect_err("changed");
            assert_eq!(error.kind(), ErrorKind::Tampered);
        }
        let other = RecoveryKey::random().expect("random");
        let error = other.unwrap(&version, &wrapped).expect_err("another");
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(!format!("{made:?}").contains(&text.replace(' ', "")[20..40]));
    }

    #[test]
    fn every_mistyped_character_shows() {
        let directory = tempfile::tempdir().expect("tempdir");
        let made = RecoveryKey::random().expect("random");
        let text = made
            .to_texts(None)
            .expect("text")
            .remove(0)
            .replace(' ', "");
        for place in 0..text.len() {
            let mut typed: Vec<u8> = text.clone().into_bytes();
            typed[place] = if typed[place] == b'Q' { b'P' } else { b'Q' };
            let source = written(directory.path(), &String::from_utf8(typed).expect("ASCII"));
            let error = RecoveryKey::open(&KeyUri::recovery(), &source).expect_err("mistyped");
            assert_eq!(error.kind(), ErrorKind::WrongKey, "{place}");
        }
        for other in ["", "bilayer1", "BILAYER1 QQQQQ", &text[..70], "\u{e9}"] {
            let source = written(directory.path(), other);
            assert!(
                RecoveryKey::open(&KeyUri::recovery(), &source).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn any_two_of_three_shares_suffice_and_one_does_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let made = RecoveryKey::random().expect("random");
        let split: Split = "2/3".parse().expect("split");
        let shares = made.to_texts(Some(split)).expect("shares");
        let open =
            |text: &str| RecoveryKey::open(&KeyUri::recovery(), &written(directory.path(), text));
        for (one, two) in [(0, 1), (1, 2), (2, 0)] {
            let both = format!("{} {}", *shares[one], *shares[two]);
            assert_eq!(open(&both).expect("opens").key, made.key);
        }
        for alone in &shares {
            for text in [alone.to_string(), format!("{} {}", **alone, **alone)] {
                let error = open(&text).expect_err("too few");
                assert!(error.to_string().contains("2 different shares"), "{error}");
            }
        }
        let other = RecoveryKey::random().expect("random");
        let foreign = other.to_texts(Some(split)).expect("shares").remove(0);
        let error = open(&format!("{} {}", *shares[0], *foreign)).expect_err("mixed");
        assert!(error.to_string().contains("belong together"), "{error}");
        for wrong in ["1/3", "4/3", "2", "2/17", "x/y"] {
            assert!(wrong.parse::<Split>().is_err(), "{wrong}");
        }
    }
}
