//! What went wrong on a token: the return codes of PKCS#11 (version 3.1, section 5.1) as errors
//! with a kind and advice.

use std::fmt;

use cryptoki::error::{Error, RvError};

use crate::keys::error::{ErrorKind, KeyError};

/// A failed call, or a finding that is an error.
#[derive(Debug)]
pub(super) enum Failure {
    /// The module's answer to a call.
    Call(Error),
    /// The token, or the session with it, is not there any more.
    TokenGone(KeyError),
    /// Anything else.
    Refused(KeyError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::Refused(error)
    }
}

impl Failure {
    /// True if another session may succeed where this one did not.
    pub(super) fn session_is_lost(&self) -> bool {
        match self {
            Self::TokenGone(_) => true,
            Self::Refused(_) => false,
            Self::Call(error) => matches!(
                error,
                Error::Pkcs11(
                    RvError::SessionClosed
                        | RvError::SessionHandleInvalid
                        | RvError::DeviceRemoved
                        | RvError::DeviceError
                        | RvError::TokenNotPresent
                        | RvError::TokenNotRecognized
                        | RvError::SlotIdInvalid
                        | RvError::UserNotLoggedIn
                        | RvError::CryptokiNotInitialized,
                    _
                )
            ),
        }
    }

    /// The error for people; `subject` says what was used: the key's URI, or a module.
    pub(super) fn into_error(self, subject: &dyn fmt::Display) -> KeyError {
        match self {
            Self::Call(error) => of_call(&error, subject),
            Self::TokenGone(error) | Self::Refused(error) => error,
        }
    }
}

fn of_call(error: &Error, subject: &dyn fmt::Display) -> KeyError {
    let Error::Pkcs11(code, function) = error else {
        return of_module(error, subject);
    };
    let (kind, what, hint) = meaning(*code);
    let call = format!("C_{function:?}: {}", name_of(*code));
    KeyError::new(kind, format!("{subject}: {what} ({call})")).with_hint(hint)
}

/// The error for a failure of the module itself, or of the way to it.
fn of_module(error: &Error, subject: &dyn fmt::Display) -> KeyError {
    let (message, hint) = match error {
        Error::LibraryLoading(_) => (
            format!("{subject}: the PKCS#11 module cannot be loaded: {error}"),
            "name the module of the token: ...?module-path=/path/to/module.so",
        ),
        Error::MissingSymbol(_) | Error::NullFunctionPointer => (
            format!("{subject}: the module is no PKCS#11 module, or lacks a function: {error}"),
            "name the module of the token: ...?module-path=/path/to/module.so",
        ),
        _ => (
            format!("{subject}: the token's answer is malformed: {error}"),
            "try a newer version of the token's module",
        ),
    };
    KeyError::new(ErrorKind::KeyUnavailable, message).with_hint(hint)
}

const WRONG_PIN_HINT: &str = "give the user PIN of the token. It is tried once and no more, since \
                              tokens lock after a few wrong PINs";

/// Kind, meaning and advice of a return code.
fn meaning(code: RvError) -> (ErrorKind, &'static str, &'static str) {
    use ErrorKind::{
        KeyDeleted, KeyDisabled, KeyForbidden, KeyUnavailable, KeyUnreachable, WrongKey,
    };
    match code {
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => {
            (WrongKey, "the token refuses the PIN", WRONG_PIN_HINT)
        }
        RvError::PinLocked => (
            KeyForbidden,
            "the token is locked after too many wrong PINs",
            "its security officer unlocks it: pkcs11-tool --login --login-type so --init-pin",
        ),
        RvError::PinExpired => (
            KeyForbidden,
            "the PIN of the token has expired",
            "change it: pkcs11-tool --login --change-pin",
        ),
        RvError::UserPinNotInitialized => (
            KeyForbidden,
            "the token has no user PIN yet",
            "its security officer sets it: pkcs11-tool --login --login-type so --init-pin",
        ),
        RvError::UserAnotherAlreadyLoggedIn
        | RvError::UserTooManyTypes
        | RvError::UserTypeInvalid
        | RvError::UserNotLoggedIn
        | RvError::ActionProhibited
        | RvError::FunctionRejected => (
            KeyForbidden,
            "the token does not let this user use the key",
            "see who is logged in on the token, and what its policy allows",
        ),
        RvError::KeyFunctionNotPermitted => (
            KeyDisabled,
            "the key may not decrypt",
            "allow it on the token (CKA_DECRYPT), or name another key",
        ),
        RvError::KeyHandleInvalid | RvError::ObjectHandleInvalid => (
            KeyDeleted,
            "the key is not on the token any more",
            "restore the key from the token's backup, or name another key",
        ),
        RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::DeviceRemoved
        | RvError::SlotIdInvalid => (
            KeyUnreachable,
            "the token is not there",
            "insert it, and see that it is listed: pkcs11-tool -L, or p11tool --list-tokens",
        ),
        RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::CryptokiNotInitialized => (
            KeyUnreachable,
            "the session with the token has ended",
            "see that the token is there, then try again",
        ),
        RvError::SessionCount | RvError::HostMemory | RvError::DeviceMemory => (
            KeyUnreachable,
            "the token allows no further session",
            "end other programs that use the token, then try again",
        ),
        RvError::FunctionNotSupported
        | RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent => (
            KeyUnavailable,
            "the token cannot decrypt RSA-OAEP with this key",
            "see what it can: pkcs11-tool -M, and look for RSA-PKCS-OAEP with decrypt",
        ),
        _ => (
            KeyUnreachable,
            "the token failed",
            "see the log of the token's module or service, then try again",
        ),
    }
}

/// The name of a return code in the standard.
fn name_of(code: RvError) -> String {
    match code {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => format!("{code:#x}"),
        named => {
            let mut name = "CKR".to_owned();
            for letter in format!("{named:?}").chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    fn error(code: RvError) -> KeyError {
        Failure::Call(Error::Pkcs11(code, Function::Login)).into_error(&"pkcs11:object=k")
    }

    #[test]
    fn return_codes_have_a_kind_a_name_and_advice() {
        for (code, kind, name) in [
            (
                RvError::PinIncorrect,
                ErrorKind::WrongKey,
                "CKR_PIN_INCORRECT",
            ),
            (
                RvError::PinLocked,
                ErrorKind::KeyForbidden,
                "CKR_PIN_LOCKED",
            ),
            (
                RvError::PinExpired,
                ErrorKind::KeyForbidden,
                "CKR_PIN_EXPIRED",
            ),
            (
                RvError::DeviceRemoved,
                ErrorKind::KeyUnreachable,
                "CKR_DEVICE_REMOVED",
            ),
            (
                RvError::DeviceError,
                ErrorKind::KeyUnreachable,
                "CKR_DEVICE_ERROR",
            ),
            (
                RvError::KeyHandleInvalid,
                ErrorKind::KeyDeleted,
                "CKR_KEY_HANDLE_INVALID",
            ),
            (
                RvError::MechanismInvalid,
                ErrorKind::KeyUnavailable,
                "CKR_MECHANISM_INVALID",
            ),
            (
                RvError::VendorDefined(0x8000_0001),
                ErrorKind::KeyUnreachable,
                "0x80000001",
            ),
        ] {
            let error = error(code);
            assert_eq!(error.kind(), kind, "{code:?}");
            let text = error.to_string();
            assert!(text.starts_with("pkcs11:object=k: the "), "{text}");
            assert!(text.ends_with(&format!("(C_Login: {name})")), "{text}");
            assert!(error.hint().is_some_and(|hint| hint.len() > 20));
        }
    }

    #[test]
    fn no_code_of_a_refused_pin_asks_for_another_session() {
        for code in [
            RvError::PinIncorrect,
            RvError::PinLocked,
            RvError::PinExpired,
        ] {
            let failure = Failure::Call(Error::Pkcs11(code, Function::Login));
            assert!(!failure.session_is_lost(), "{code:?}");
        }
    }
}
