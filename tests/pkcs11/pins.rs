//! PINs: where they come from, and that a wrong one is not tried again.

use bilayer::keys::{ErrorKind, PassphraseSource};

use super::token::{Kind, NewKey, PIN, alone};
use super::{open_with, refused, round_trip};

#[test]
fn a_pin_comes_from_the_passphrase_file_or_the_uri() {
    let name = "pins::a_pin_comes_from_the_passphrase_file_or_the_uri";
    alone(Kind::SoftHsm, name, |token| {
        token.generate(NewKey::default());
        let uri = token.uri("id=%01");
        let file = token.secret("pin", PIN);
        let wrong = token.secret("wrong", "wrong-pin");
        let with_source = format!("{uri}&pin-source=file:{}", file.display());
        for (uri, source) in [
            (&uri, PassphraseSource::File(file)),
            (&with_source, PassphraseSource::None),
            (&with_source, PassphraseSource::File(wrong)),
        ] {
            let key = open_with(uri, &source).unwrap();
            round_trip(&*key, &key.current().unwrap());
        }
        // Another provider is logged in: no PIN is needed, whether or not there is one.
        let first = open_with(&with_source, &PassphraseSource::None).unwrap();
        let second = open_with(&uri, &PassphraseSource::None).unwrap();
        round_trip(&*second, &second.current().unwrap());
        drop((first, second));

        let missing = PassphraseSource::File(token.directory.join("missing"));
        let empty = PassphraseSource::File(token.secret("empty", ""));
        for (source, part) in [
            (PassphraseSource::None, "token token 1 needs its PIN"),
            (PassphraseSource::Prompt, "no terminal"),
            (missing, "cannot read"),
            (empty, "empty"),
        ] {
            let opened = open_with(&uri, &source);
            let text = refused(opened, ErrorKind::KeyUnavailable, part);
            assert!(text.contains("pin-source=file:/path"), "{text}");
        }
        assert!(!token.has_wrong_pins());
    });
}

#[test]
fn a_wrong_pin_is_tried_once_by_a_process() {
    let name = "pins::a_wrong_pin_is_tried_once_by_a_process";
    alone(Kind::Kryoptic, name, |token| {
        token.generate(NewKey::default());
        let uri = token.uri("id=%01");
        let pin = token.secret("pin", "wrong-pin");
        let source = PassphraseSource::File(pin);
        refused(
            open_with(&uri, &source),
            ErrorKind::WrongKey,
            "CKR_PIN_INCORRECT",
        );
        // It locks after ten.
        for _ in 0..12 {
            refused(
                open_with(&uri, &source),
                ErrorKind::WrongKey,
                "not tried again",
            );
        }
        token.try_pin(PIN).unwrap();
        token.secret("pin", PIN);
        let key = open_with(&uri, &source).unwrap();
        round_trip(&*key, &key.current().unwrap());
    });
}

#[test]
fn a_locked_token_and_one_before_its_last_try_are_left_alone() {
    let name = "pins::a_locked_token_and_one_before_its_last_try_are_left_alone";
    alone(Kind::Kryoptic, name, |token| {
        token.generate(NewKey::default());
        let uri = token.uri("id=%01");
        let right = PassphraseSource::File(token.secret("pin", PIN));
        for _ in 0..9 {
            token.try_pin("wrong-pin").unwrap_err();
        }
        refused(
            open_with(&uri, &right),
            ErrorKind::KeyForbidden,
            "one try left",
        );
        token.try_pin(PIN).unwrap();
        let key = open_with(&uri, &right).unwrap();
        round_trip(&*key, &key.current().unwrap());
        drop(key);
        for _ in 0..10 {
            token.try_pin("wrong-pin").unwrap_err();
        }
        refused(
            open_with(&uri, &right),
            ErrorKind::KeyForbidden,
            "CKR_PIN_LOCKED",
        );
    });
}
