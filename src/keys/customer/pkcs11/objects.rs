//! The key objects of a token, as versions of a key.

use std::cmp::Reverse;

use cryptoki::error::Error;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rsa::{BigUint, RsaPublicKey};

use super::failure::Failure;
use crate::keys::customer::{WrapAlgorithm, WrappingKey};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{KeyUri, TokenUri};

/// At most this many bytes of a `CKA_ID` are part of a version's name.
const MAX_NAMED_ID_BYTES: usize = 32;
/// Larger keys are not looked at. Which sizes are accepted is decided by [`WrappingKey::new`].
const MAX_RSA_BITS: usize = 16384;

/// A day, which compares as its number `yyyymmdd` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Day(u32);

impl Day {
    /// The day as PKCS#11 writes it (`CK_DATE`); `None` for the empty date, and for text that is no
    /// date, as of tokens that fill the field with zeros or blanks.
    fn parse(year: &[u8; 4], month: &[u8; 2], day: &[u8; 2]) -> Option<Self> {
        let number = |digits: &[u8]| -> Option<u32> {
            let text = std::str::from_utf8(digits).ok()?;
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (year, month, day) = (number(year)?, number(month)?, number(day)?);
        let real = year > 0 && (1..=12).contains(&month) && (1..=31).contains(&day);
        real.then_some(Self(year * 10_000 + month * 100 + day))
    }

    /// Today in UTC: a `CK_DATE` has no time zone.
    fn today() -> Self {
        let date = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let part = |number: i8| u32::from(number.unsigned_abs());
        let year = u32::from(date.year().unsigned_abs());
        Self(year * 10_000 + part(date.month()) * 100 + part(date.day()))
    }
}

impl std::fmt::Display for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(number) = self;
        let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// A private key object.
pub(super) struct PrivateKey {
    pub(super) handle: ObjectHandle,
    id: Vec<u8>,
    start: Option<Day>,
    end: Option<Day>,
    /// False if the token's owner disabled it.
    decrypts: bool,
    /// True if every use needs the PIN again.
    asks_always: bool,
    /// Its public half, or why it is not accepted.
    public: Result<WrappingKey, String>,
}

impl PrivateKey {
    /// The name of the version: its `CKA_ID` in hexadecimal, shortened if it is long.
    pub(super) fn version_name(&self) -> Option<String> {
        let shown = &self.id[..self.id.len().min(MAX_NAMED_ID_BYTES)];
        (!shown.is_empty()).then(|| hex::encode(shown))
    }

    /// Its public half, if it is accepted.
    pub(super) fn public(&self, uri: &KeyUri) -> Result<&WrappingKey, KeyError> {
        self.public.as_ref().map_err(|why| {
            error(ErrorKind::Usage, uri, &format!("is not accepted: {why}"))
                .with_hint("RSA keys of 2048, 3072 and 4096 bits are accepted")
        })
    }

    /// True if this is the private half of `key`.
    pub(super) fn is_half_of(&self, key: &WrappingKey) -> bool {
        self.public
            .as_ref()
            .is_ok_and(|public| public.is_same_key(key))
    }

    /// The position among the versions: the highest is the newest.
    fn order(&self) -> (Option<Day>, usize, &[u8]) {
        let zeros = self.id.iter().take_while(|byte| **byte == 0).count();
        let number = &self.id[zeros..];
        (self.start, number.len(), number)
    }

    /// Refuses a key that may not unwrap.
    pub(super) fn check_unwraps(&self, uri: &KeyUri) -> Result<(), KeyError> {
        if !self.decrypts {
            return Err(disabled(uri, "may not decrypt (its CKA_DECRYPT is false)"));
        }
        if self.asks_always {
            let what = "asks for the PIN at every use (its CKA_ALWAYS_AUTHENTICATE is true)";
            return Err(error(ErrorKind::KeyUnavailable, uri, what).with_hint(
                "a mounted filesystem uses its key at any time: name a key without that attribute",
            ));
        }
        Ok(())
    }

    /// Refuses a key to which nothing may be wrapped today.
    fn check_wraps(&self, uri: &KeyUri, today: Day) -> Result<(), KeyError> {
        self.public(uri)?;
        self.check_unwraps(uri)?;
        let expired = match (self.start, self.end) {
            (Some(start), _) if today < start => format!("is not valid before {start}"),
            (_, Some(end)) if today > end => format!("is not valid after {end}"),
            _ => return Ok(()),
        };
        Err(error(ErrorKind::KeyExpired, uri, &expired).with_hint(
            "change CKA_START_DATE or CKA_END_DATE on the token, or make a new key of the same \
             label; what is wrapped to this one still opens",
        ))
    }
}

/// All private keys that match the URI, the newest first.
pub(super) fn private_keys(
    session: &Session,
    wanted: &TokenUri,
) -> Result<Vec<PrivateKey>, Failure> {
    let handles = session.find_objects(&template(ObjectClass::PRIVATE_KEY, wanted))?;
    let mut keys = Vec::new();
    for handle in handles {
        keys.push(private_key(session, handle)?);
    }
    keys.sort_by(|one, other| {
        let newest_first = Reverse(one.order()).cmp(&Reverse(other.order()));
        newest_first.then_with(|| spki(one).cmp(&spki(other)))
    });
    Ok(keys)
}

fn spki(key: &PrivateKey) -> Option<&[u8]> {
    key.public.as_ref().ok().map(WrappingKey::spki)
}

/// The newest version that can be used, of keys that are in this order. If there is none, the error
/// is about the newest: the others are superseded anyway.
pub(super) fn current<'a>(
    keys: &'a [PrivateKey],
    uri: &KeyUri,
) -> Result<&'a PrivateKey, KeyError> {
    let today = Day::today();
    let mut refused = None;
    for key in keys {
        match key.check_wraps(uri, today) {
            Ok(()) => return Ok(key),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| error(ErrorKind::KeyDeleted, uri, "is not on the token")))
}

/// The error if no private key matches the URI, though the token is there.
pub(super) fn none_found(session: &Session, uri: &KeyUri, wanted: &TokenUri) -> Failure {
    match session.find_objects(&template(ObjectClass::PUBLIC_KEY, wanted)) {
        Err(error) => error.into(),
        Ok(public) if public.is_empty() => {
            let message = format!("{uri}: there is no such key on the token");
            let hint = "see what is there: pkcs11-tool --login -O, or p11tool --login \
                        --list-privkeys; restore the key from the token's backup if it was deleted";
            KeyError::new(ErrorKind::KeyDeleted, message)
                .with_hint(hint)
                .into()
        }
        Ok(_) => disabled(uri, "has only its public half on the token").into(),
    }
}

fn template(class: ObjectClass, wanted: &TokenUri) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(class), Attribute::Token(true)];
    if let Some(label) = &wanted.object {
        template.push(Attribute::Label(label.clone().into_bytes()));
    }
    if let Some(id) = &wanted.id {
        template.push(Attribute::Id(id.clone()));
    }
    template
}

fn private_key(session: &Session, handle: ObjectHandle) -> Result<PrivateKey, Failure> {
    let mut key = PrivateKey {
        handle,
        id: Vec::new(),
        start: None,
        end: None,
        decrypts: false,
        asks_always: false,
        public: Err("it is no RSA key".to_owned()),
    };
    let (mut is_rsa, mut facts) = (false, Facts::default());
    let wanted = [
        AttributeType::KeyType,
        AttributeType::Id,
        AttributeType::Decrypt,
        AttributeType::AlwaysAuthenticate,
    ];
    for attribute in attributes(session, handle, &[&wanted[..], &Facts::TYPES].concat())? {
        match attribute {
            Attribute::KeyType(kind) => is_rsa = kind == KeyType::RSA,
            Attribute::Id(id) => key.id = id,
            Attribute::Decrypt(allowed) => key.decrypts = allowed,
            Attribute::AlwaysAuthenticate(always) => key.asks_always = always,
            other => facts.take(other),
        }
    }
    if !is_rsa {
        return Ok(key);
    }
    if !facts.are_complete() {
        facts.complete(public_half(session, &key.id, facts.modulus.as_deref())?);
    }
    key.start = facts.start.flatten();
    key.end = facts.end.flatten();
    key.public = facts
        .key()
        .ok_or_else(|| "the token does not tell its public half".to_owned())
        .and_then(|key| {
            WrappingKey::new(key, WrapAlgorithm::RsaOaepSha256).map_err(|error| error.to_string())
        });
    Ok(key)
}

/// What both halves of a key have on a token. Not every token tells all of it about a private key:
/// some do not keep the exponent, and SoftHSM cannot read the dates.
#[derive(Default)]
struct Facts {
    modulus: Option<Vec<u8>>,
    exponent: Option<Vec<u8>>,
    /// `Some(None)` if there is no date.
    start: Option<Option<Day>>,
    end: Option<Option<Day>>,
}

impl Facts {
    const TYPES: [AttributeType; 4] = [
        AttributeType::Modulus,
        AttributeType::PublicExponent,
        AttributeType::StartDate,
        AttributeType::EndDate,
    ];

    fn take(&mut self, attribute: Attribute) {
        match attribute {
            Attribute::Modulus(bytes) if !bytes.is_empty() => self.modulus = Some(bytes),
            Attribute::PublicExponent(bytes) if !bytes.is_empty() => self.exponent = Some(bytes),
            Attribute::StartDate(date) => {
                self.start = Some(Day::parse(&date.year, &date.month, &date.day));
            }
            Attribute::EndDate(date) => {
                self.end = Some(Day::parse(&date.year, &date.month, &date.day));
            }
            _ => {}
        }
    }

    fn are_complete(&self) -> bool {
        self.modulus.is_some()
            && self.exponent.is_some()
            && self.start.is_some()
            && self.end.is_some()
    }

    /// Adds what is missing.
    fn complete(&mut self, other: Self) {
        self.modulus = self.modulus.take().or(other.modulus);
        self.exponent = self.exponent.take().or(other.exponent);
        self.start = self.start.or(other.start);
        self.end = self.end.or(other.end);
    }

    fn key(&self) -> Option<RsaPublicKey> {
        let modulus = BigUint::from_bytes_be(self.modulus.as_deref()?);
        let exponent = BigUint::from_bytes_be(self.exponent.as_deref()?);
        RsaPublicKey::new_with_max_size(modulus, exponent, MAX_RSA_BITS).ok()
    }
}

/// What the token tells about the public half of a key; nothing if it has none.
fn public_half(session: &Session, id: &[u8], modulus: Option<&[u8]>) -> Result<Facts, Failure> {
    if id.is_empty() {
        return Ok(Facts::default());
    }
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Id(id.to_vec()),
    ];
    for handle in session.find_objects(&template)? {
        let mut facts = Facts::default();
        for attribute in attributes(session, handle, &Facts::TYPES)? {
            facts.take(attribute);
        }
        if modulus.is_none() || facts.modulus.as_deref() == modulus {
            return Ok(facts);
        }
    }
    Ok(Facts::default())
}

/// The attributes of an object that the token has in a form that can be parsed. Some tokens answer
/// for none if they cannot for one, and dates are often malformed.
fn attributes(
    session: &Session,
    object: ObjectHandle,
    wanted: &[AttributeType],
) -> Result<Vec<Attribute>, Failure> {
    if let Ok(all) = session.get_attributes(object, wanted) {
        return Ok(all);
    }
    let mut found = Vec::new();
    for attribute in wanted {
        match session.get_attributes(object, std::slice::from_ref(attribute)) {
            Ok(one) => found.extend(one),
            Err(Error::Pkcs11(code, function)) => {
                let failure = Failure::Call(Error::Pkcs11(code, function));
                // The first one is of every key, so its error is about the object.
                if failure.session_is_lost() || found.is_empty() {
                    return Err(failure);
                }
            }
            Err(error) => tracing::debug!(%error, ?attribute, "a malformed attribute"),
        }
    }
    Ok(found)
}

fn disabled(uri: &KeyUri, what: &str) -> KeyError {
    error(ErrorKind::KeyDisabled, uri, what)
        .with_hint("enable the key on the token, or name another slot's key")
}

fn error(kind: ErrorKind, uri: &KeyUri, what: &str) -> KeyError {
    KeyError::new(kind, format!("{uri}: the key {what}"))
}
