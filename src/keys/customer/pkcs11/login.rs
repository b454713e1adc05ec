//! Opens a session with a token and logs in, with at most one attempt.

use std::time::Duration;

use cryptoki::error::{Error, RvError};
use cryptoki::session::{SessionState, UserType};
use cryptoki::types::RawAuthPin;
use parking_lot::Mutex;

use super::failure::Failure;
use super::module::{CALL_LIMIT, ModuleUser};
use super::token::{self, Token};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::secret::Passphrase;
use crate::keys::uri::{KeyUri, TokenUri};
use crate::sys::wipe::with_secrets;

/// How long somebody may take to type a PIN on a token's own keys.
const PIN_PAD_LIMIT: Duration = Duration::from_secs(120);

/// PINs that tokens refused, by the token's identity. A process that checks its key again and again
/// with a PIN from a file would lock the token within minutes.
static REFUSED: Mutex<Vec<(String, Passphrase)>> = Mutex::new(Vec::new());

/// Opens a session with the token, in the place of the one before, and logs in if the token asks
/// for it and this process is not logged in.
pub(super) fn open_session(
    user: &ModuleUser,
    uri: &KeyUri,
    wanted: &TokenUri,
    passphrase: &PassphraseSource,
) -> Result<(), Failure> {
    let (shown, described) = (uri.clone(), wanted.clone());
    let (token, logged_in) = user.call(move |tokens, id| {
        let (library, reader) = tokens.library()?;
        let token = token::find(library, reader, &shown, &described)?;
        let session = library.open_ro_session(token.slot)?;
        let state = session.get_session_info().map(|info| info.session_state());
        let logged_in = matches!(state, Ok(SessionState::RoUser | SessionState::RwUser));
        tokens.keep_session(id, session);
        Ok((token, logged_in))
    })?;
    if logged_in || !token.needs_login() {
        return Ok(());
    }
    let source = match &wanted.pin_file {
        Some(path) => PassphraseSource::File(path.clone()),
        None => passphrase.clone(),
    };
    let result = log_in(user, uri, &token, &source);
    if result.is_err() {
        // The first error says more than one of ending the session.
        let _ = user.call(|tokens, id| {
            tokens.end_session(id);
            Ok(())
        });
    }
    result
}

fn log_in(
    user: &ModuleUser,
    uri: &KeyUri,
    token: &Token,
    source: &PassphraseSource,
) -> Result<(), Failure> {
    let by_hand = *source == PassphraseSource::Prompt;
    let on_token = token.has_pin_pad() && (by_hand || *source == PassphraseSource::None);
    if token.has_final_try() && !by_hand && !on_token {
        let message = format!("{uri}: the token has one try left before it locks");
        return Err(KeyError::new(ErrorKind::KeyForbidden, message)
            .with_hint(
                "log in once by hand, with the right PIN: pkcs11-tool --login --list-objects",
            )
            .into());
    }
    if on_token {
        tracing::info!(%uri, "type the PIN on the token or its reader");
        let logged_in = user.call_within(PIN_PAD_LIMIT, |tokens, id| {
            Ok(tokens.session(id)?.login(UserType::User, None))
        })?;
        return accepted(logged_in);
    }
    let identity = token.identity(user.path());
    let pin = source.obtain_pin(&token.to_string())?;
    if !by_hand && was_refused(&identity, &pin) {
        let message =
            format!("{uri}: the token refused this PIN before, and it is not tried again");
        return Err(KeyError::new(ErrorKind::WrongKey, message)
            .with_hint("give the right PIN; a token locks after a few wrong ones")
            .into());
    }
    let (logged_in, pin) = user.call_within(CALL_LIMIT, move |tokens, id| {
        let session = tokens.session(id)?;
        let logged_in = with_secrets(|| {
            let raw = RawAuthPin::new(Box::new(pin.expose().to_vec()));
            session.login_with_raw(UserType::User, &raw)
        });
        Ok((logged_in, pin))
    })?;
    let mut refused = REFUSED.lock();
    match &logged_in {
        Err(Error::Pkcs11(
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
            _,
        )) => {
            refused.push((identity, pin));
        }
        Ok(()) => refused.retain(|(other, _)| *other != identity),
        Err(_) => {}
    }
    accepted(logged_in)
}

fn accepted(logged_in: cryptoki::error::Result<()>) -> Result<(), Failure> {
    match logged_in {
        // Another provider logged in meanwhile.
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn was_refused(identity: &str, pin: &Passphrase) -> bool {
    REFUSED
        .lock()
        .iter()
        .any(|(other, refused)| other == identity && refused.expose() == pin.expose())
}
