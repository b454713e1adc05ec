//! Finds the token that a URI describes.

use std::fmt;
use std::path::Path;

use cryptoki::context::{Function, Pkcs11};
use cryptoki::error::{Error, Rv, RvError};
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CKF_LOGIN_REQUIRED, CKF_PROTECTED_AUTHENTICATION_PATH, CKF_TOKEN_INITIALIZED,
    CKF_USER_PIN_FINAL_TRY,
};

use super::failure::Failure;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{KeyUri, TokenUri};
use crate::sys::token_info::{TokenInfo, TokenInfoReader};

/// At most this many labels of other tokens are part of an error.
const MAX_LISTED: usize = 8;

/// A token in a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) slot: Slot,
    label: String,
    manufacturer: String,
    model: String,
    serial: String,
    is_initialized: bool,
    needs_login: bool,
    has_pin_pad: bool,
    has_final_try: bool,
}

impl Token {
    /// The token in a slot.
    ///
    /// `cryptoki` refuses the whole information if the token's clock is malformed, and then it is
    /// read without it. That is not the usual way, because p11-kit gives each user of its module a
    /// list of functions of its own, of which only that of `cryptoki` is initialised.
    fn read(library: &Pkcs11, reader: &TokenInfoReader, slot: Slot) -> Result<Self, Error> {
        match library.get_token_info(slot) {
            Ok(info) => Ok(Self {
                slot,
                label: text(info.label().as_bytes()),
                manufacturer: text(info.manufacturer_id().as_bytes()),
                model: text(info.model().as_bytes()),
                serial: text(info.serial_number().as_bytes()),
                is_initialized: info.token_initialized(),
                needs_login: info.login_required(),
                has_pin_pad: info.protected_authentication_path(),
                has_final_try: info.user_pin_final_try(),
            }),
            Err(error @ Error::Pkcs11(..)) => Err(error),
            Err(malformed) => {
                tracing::debug!(%malformed, "information about a token is read again");
                let info = reader.token_info(slot.id()).map_err(|code| {
                    let code = match Rv::from(code) {
                        Rv::Error(code) => code,
                        Rv::Ok => RvError::GeneralError,
                    };
                    Error::Pkcs11(code, Function::GetTokenInfo)
                })?;
                Ok(Self::from_unchecked(slot, &info))
            }
        }
    }

    fn from_unchecked(slot: Slot, info: &TokenInfo) -> Self {
        let has = |flag| info.flags & flag != 0;
        Self {
            slot,
            label: text(&info.label),
            manufacturer: text(&info.manufacturer),
            model: text(&info.model),
            serial: text(&info.serial),
            is_initialized: has(CKF_TOKEN_INITIALIZED),
            needs_login: has(CKF_LOGIN_REQUIRED),
            has_pin_pad: has(CKF_PROTECTED_AUTHENTICATION_PATH),
            has_final_try: has(CKF_USER_PIN_FINAL_TRY),
        }
    }

    /// True if its private keys are usable only after a login.
    pub(super) fn needs_login(&self) -> bool {
        self.needs_login
    }

    /// True if the PIN is typed on the token or its reader.
    pub(super) fn has_pin_pad(&self) -> bool {
        self.has_pin_pad
    }

    /// True if the next wrong PIN locks it.
    pub(super) fn has_final_try(&self) -> bool {
        self.has_final_try
    }

    /// Identifies it among all tokens of all modules.
    pub(super) fn identity(&self, module: &Path) -> String {
        format!("{}\n{}\n{}", module.display(), self.serial, self.label)
    }

    fn matches(&self, wanted: &TokenUri) -> bool {
        let same = |wanted: &Option<String>, found: &str| match wanted {
            Some(text) => text == found,
            None => true,
        };
        wanted.slot_id.is_none_or(|number| number == self.slot.id())
            && same(&wanted.token, &self.label)
            && same(&wanted.manufacturer, &self.manufacturer)
            && same(&wanted.model, &self.model)
            && same(&wanted.serial, &self.serial)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = match self.label.as_str() {
            "" => format!("serial {}", self.serial),
            label => label.to_owned(),
        };
        let printable = shown.chars().map(|c| if c.is_control() { '?' } else { c });
        f.write_str(&printable.collect::<String>())
    }
}

/// The one token that `wanted` describes.
pub(super) fn find(
    library: &Pkcs11,
    reader: &TokenInfoReader,
    uri: &KeyUri,
    wanted: &TokenUri,
) -> Result<Token, Failure> {
    let mut matching = Vec::new();
    let mut others = Vec::new();
    let mut failed = None;
    for slot in library.get_slots_with_token()? {
        match Token::read(library, reader, slot) {
            // One bad token must not hide the others.
            Err(error) => failed = Some(error),
            Ok(token) if !token.is_initialized => {}
            Ok(token) if token.matches(wanted) => matching.push(token),
            Ok(token) => others.push(token),
        }
    }
    match (matching.len(), failed) {
        (1, _) => Ok(matching.remove(0)),
        (0, Some(error)) if others.is_empty() => Err(error.into()),
        (0, _) => Err(Failure::TokenGone(not_there(uri, &others))),
        (count, _) => {
            let message = format!("{uri}: {count} tokens match");
            let hint = "name one of them by its serial number: pkcs11:serial=...;token=...";
            Err(KeyError::new(ErrorKind::Usage, message)
                .with_hint(hint)
                .into())
        }
    }
}

/// True if the wanted token is still in that slot. Some modules find no object, without an error,
/// once the token is gone.
pub(super) fn is_there(
    library: &Pkcs11,
    reader: &TokenInfoReader,
    slot: Slot,
    wanted: &TokenUri,
) -> bool {
    Token::read(library, reader, slot).is_ok_and(|token| token.matches(wanted))
}

fn not_there(uri: &KeyUri, others: &[Token]) -> KeyError {
    let error = KeyError::new(
        ErrorKind::KeyUnreachable,
        format!("{uri}: the token is not there"),
    );
    if others.is_empty() {
        return error.with_hint(
            "insert the token, and see that its module lists it: pkcs11-tool -L, or \
             p11tool --list-tokens",
        );
    }
    let listed = others.iter().take(MAX_LISTED).map(ToString::to_string);
    error.with_hint(format!(
        "insert it, or correct the URI; the module has these tokens: {}",
        listed.collect::<Vec<_>>().join(", ")
    ))
}

/// Text without the blanks, or the zero bytes of careless modules, that fill its field.
fn text(field: &[u8]) -> String {
    let end = field.iter().rposition(|byte| !matches!(byte, b' ' | 0));
    String::from_utf8_lossy(&field[..end.map_or(0, |last| last + 1)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::uri::Scheme;

    fn token(label: &[u8]) -> Token {
        let mut info = TokenInfo {
            label: [b' '; 32],
            manufacturer: [b' '; 32],
            model: [0; 16],
            serial: *b"0123456789abcdef",
            flags: CKF_TOKEN_INITIALIZED | CKF_USER_PIN_FINAL_TRY,
        };
        info.label[..label.len()].copy_from_slice(label);
        Token::from_unchecked(Slot::try_from(3u64).expect("a number"), &info)
    }

    fn wanted(text: &str) -> TokenUri {
        let uri = KeyUri::parse(&format!("pkcs11:object=k;{text}")).expect("valid");
        match uri.scheme() {
            Scheme::Pkcs11(uri) => uri.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_given_attributes_have_to_match() {
        let token = token("Täst 1".as_bytes());
        for text in [
            "token=T%c3%a4st%201",
            "serial=0123456789abcdef;slot-id=3;manufacturer=;model=",
            "",
        ] {
            assert!(token.matches(&wanted(text)), "{text}");
        }
        for text in [
            "token=T",
            "token=",
            "slot-id=4",
            "serial=0",
            "model=x",
            "manufacturer=x",
        ] {
            assert!(!token.matches(&wanted(text)), "{text}");
        }
    }

    #[test]
    fn information_of_any_form_is_tolerated_and_printable() {
        let odd = token(b"a\x1b[1m\xff");
        assert_eq!(odd.to_string(), "a?[1m\u{fffd}");
        assert!(odd.is_initialized && odd.has_final_try() && !odd.has_pin_pad());
        assert_eq!(token(b"").to_string(), "serial 0123456789abcdef");
    }
}
