//! Which key a URI names, which of its versions is current, and what each opens.

use bilayer::keys::{ErrorKind, PassphraseSource, WrapAlgorithm};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};

use super::token::{Kind, NewKey, PIN, Token, alone, date};
use super::{open, open_with, refused, round_trip};

fn wraps_and_unwraps(token: &Token, algorithm: WrapAlgorithm) {
    token.generate(NewKey::default());
    assert!(token.keeps_secret(&[1]), "the key can be read");
    let key = open(token, &token.uri("object=key%201")).unwrap();
    let version = key.current().unwrap();
    assert_eq!(version.key.algorithm(), algorithm);
    assert_eq!(version.key.bits(), 2048);
    assert_eq!(version.name.as_deref(), Some("01"));
    assert!(key.can_unwrap());
    round_trip(&*key, &version);
    // What another program wrapped to the same key opens too, whatever it knows of the version.
    let mut other = version;
    other.name = Some("../../no such name".to_owned());
    round_trip(&*key, &other);
}

#[test]
fn softhsm_does_sha_1_which_is_found_out_and_recorded() {
    let name = "keys::softhsm_does_sha_1_which_is_found_out_and_recorded";
    alone(Kind::SoftHsm, name, |token| {
        wraps_and_unwraps(token, WrapAlgorithm::RsaOaepSha1);
    });
}

#[test]
fn kryoptic_does_sha_256() {
    alone(Kind::Kryoptic, "keys::kryoptic_does_sha_256", |token| {
        wraps_and_unwraps(token, WrapAlgorithm::RsaOaepSha256);
        // A wrap from a time when it could not.
        let key = open(token, &token.uri("id=%01")).unwrap();
        let version = key.current().unwrap();
        let mut old = version;
        old.key = old.key.with_algorithm(WrapAlgorithm::RsaOaepSha1);
        round_trip(&*key, &old);
    });
}

fn refuses_foreign_ciphertexts(token: &Token) {
    token.generate(NewKey::default());
    token.generate(NewKey {
        label: "key 2",
        id: &[2],
        bits: 3072,
        ..NewKey::default()
    });
    let key = open(token, &token.uri("id=%01")).unwrap();
    let version = key.current().unwrap();
    let wrapped = version.key.wrap(b"something").unwrap();
    let mut changed = wrapped.clone();
    changed[100] ^= 1;
    for bad in [&changed[..], &wrapped[1..], b"", &[0; 256], &[0xFF; 256]] {
        refused(
            key.unwrap(&version, bad),
            ErrorKind::Tampered,
            "does not open",
        );
    }
    let other = open(token, &token.uri("id=%02")).unwrap();
    let foreign = other.current().unwrap();
    let to_other = foreign.key.wrap(b"something").unwrap();
    refused(
        key.unwrap(&foreign, &to_other),
        ErrorKind::WrongKey,
        "no version",
    );
    round_trip(&*other, &foreign);
    round_trip(&*key, &version);
}

#[test]
fn softhsm_refuses_what_was_not_wrapped_to_its_key() {
    let name = "keys::softhsm_refuses_what_was_not_wrapped_to_its_key";
    alone(Kind::SoftHsm, name, refuses_foreign_ciphertexts);
}

#[test]
fn kryoptic_refuses_what_was_not_wrapped_to_its_key() {
    let name = "keys::kryoptic_refuses_what_was_not_wrapped_to_its_key";
    alone(Kind::Kryoptic, name, refuses_foreign_ciphertexts);
}

#[test]
fn the_newest_key_of_a_label_is_current_and_the_others_still_open() {
    let name = "keys::the_newest_key_of_a_label_is_current_and_the_others_still_open";
    alone(Kind::SoftHsm, name, |token| {
        let uri = token.uri("object=rotated");
        let versions: [(&[u8], Option<&str>); 4] = [
            (&[1], Some("20250101")),
            (&[2], Some("20240101")),
            (&[9], None),
            (&[0, 8, 0], Some("20250101")),
        ];
        let expected = ["01", "01", "01", "000800"];
        let mut seen = Vec::new();
        for ((id, start), current) in versions.into_iter().zip(expected) {
            token.generate(NewKey {
                label: "rotated",
                id,
                start,
                ..NewKey::default()
            });
            let key = open(token, &uri).unwrap();
            let version = key.current().unwrap();
            assert_eq!(version.name.as_deref(), Some(current));
            seen.push(version);
            for version in &seen {
                round_trip(&*key, version);
            }
        }
        // One of them alone.
        let old = open(token, &token.uri("object=rotated;id=%02")).unwrap();
        let version = old.current().unwrap();
        assert_eq!(version.name.as_deref(), Some("02"));
        round_trip(&*old, &version);
        let wrapped = seen[0].key.wrap(b"x").unwrap();
        refused(
            old.unwrap(&seen[0], &wrapped),
            ErrorKind::WrongKey,
            "no version",
        );
        // Without the newest, the one before is current again.
        token.change(&[0, 8, 0], Attribute::Decrypt(false));
        let key = open(token, &uri).unwrap();
        assert_eq!(key.current().unwrap().name.as_deref(), Some("01"));
        refused(
            key.unwrap(&seen[3], &seen[3].key.wrap(b"x").unwrap()),
            ErrorKind::KeyDisabled,
            "CKA_DECRYPT",
        );
    });
}

fn notices_what_the_owner_does(token: &Token) {
    token.generate(NewKey::default());
    let key = open(token, &token.uri("object=key%201")).unwrap();
    let version = key.current().unwrap();
    let wrapped = version.key.wrap(b"something").unwrap();
    let unwrap = || key.unwrap(&version, &wrapped);

    token.change(&[1], Attribute::Decrypt(false));
    refused(key.current(), ErrorKind::KeyDisabled, "CKA_DECRYPT");
    refused(unwrap(), ErrorKind::KeyDisabled, "CKA_DECRYPT");
    token.change(&[1], Attribute::Decrypt(true));
    assert_eq!(*unwrap().unwrap(), b"something");

    let dates = |attribute: Attribute| {
        token.change(&[1], attribute.clone());
        // SoftHSM does not tell those of the private half.
        token.change_public(&[1], attribute);
    };
    dates(Attribute::EndDate(date("20250630")));
    refused(
        key.current(),
        ErrorKind::KeyExpired,
        "not valid after 2025-06-30",
    );
    assert_eq!(
        *unwrap().unwrap(),
        b"something",
        "dates are about new wraps"
    );
    dates(Attribute::EndDate(date("29990101")));
    dates(Attribute::StartDate(date("29980101")));
    refused(
        key.current(),
        ErrorKind::KeyExpired,
        "not valid before 2998-01-01",
    );
    dates(Attribute::StartDate(date("20250101")));
    assert_eq!(key.current().unwrap(), version);

    token.delete(ObjectClass::PRIVATE_KEY, &[1]);
    refused(
        key.current(),
        ErrorKind::KeyDisabled,
        "only its public half",
    );
    refused(unwrap(), ErrorKind::KeyDisabled, "only its public half");
    token.delete(ObjectClass::PUBLIC_KEY, &[1]);
    refused(key.current(), ErrorKind::KeyDeleted, "no such key");
    refused(unwrap(), ErrorKind::KeyDeleted, "no such key");
}

#[test]
fn softhsm_keys_that_are_disabled_expired_or_deleted_are_noticed() {
    let name = "keys::softhsm_keys_that_are_disabled_expired_or_deleted_are_noticed";
    alone(Kind::SoftHsm, name, notices_what_the_owner_does);
}

#[test]
fn kryoptic_keys_that_are_disabled_expired_or_deleted_are_noticed() {
    let name = "keys::kryoptic_keys_that_are_disabled_expired_or_deleted_are_noticed";
    alone(Kind::Kryoptic, name, notices_what_the_owner_does);
}

#[test]
fn the_public_object_is_not_needed() {
    alone(
        Kind::SoftHsm,
        "keys::the_public_object_is_not_needed",
        |token| {
            token.generate(NewKey::default());
            token.delete(ObjectClass::PUBLIC_KEY, &[1]);
            let key = open(token, &token.uri("id=%01")).unwrap();
            round_trip(&*key, &key.current().unwrap());
        },
    );
}

#[test]
fn keys_that_cannot_serve_are_refused() {
    alone(
        Kind::SoftHsm,
        "keys::keys_that_cannot_serve_are_refused",
        |token| {
            for (label, id, bits, always_authenticate) in [
                ("small", 1, 1024, false),
                ("odd", 2, 2560, false),
                ("asks", 3, 2048, true),
            ] {
                token.generate(NewKey {
                    label,
                    id: &[id],
                    bits,
                    always_authenticate,
                    ..NewKey::default()
                });
            }
            token.as_user(|session| {
                // secp256r1
                let curve = vec![6, 8, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 7];
                let shared = [Attribute::Token(true), Attribute::Label(b"curve".to_vec())];
                let public = [&shared[..], &[Attribute::EcParams(curve)]].concat();
                let mechanism = Mechanism::EccKeyPairGen;
                session
                    .generate_key_pair(&mechanism, &public, &shared)
                    .unwrap();
            });
            let current = |name: &str| open(token, &token.uri(name)).unwrap().current();
            refused(current("object=small"), ErrorKind::Usage, "1024 bits");
            refused(current("object=odd"), ErrorKind::Usage, "2560 bits");
            refused(current("object=curve"), ErrorKind::Usage, "no RSA key");
            let part = "CKA_ALWAYS_AUTHENTICATE";
            refused(current("object=asks"), ErrorKind::KeyUnavailable, part);
            refused(current("object=gone"), ErrorKind::KeyDeleted, "no such key");
            refused(
                current("object=small;id=%09"),
                ErrorKind::KeyDeleted,
                "no such key",
            );
        },
    );
}

#[test]
fn the_token_is_chosen_by_all_that_the_uri_says() {
    let name = "keys::the_token_is_chosen_by_all_that_the_uri_says";
    alone(Kind::Kryoptic, name, |token| {
        let other = token.another("token 2");
        for (token, bits) in [(token, 2048), (&other, 3072)] {
            token.generate(NewKey {
                bits,
                ..NewKey::default()
            });
        }
        let pin = PassphraseSource::File(token.secret("pin", PIN));
        let module = format!("?module-path={}", token.module.display());
        for (uri, bits) in [
            ("token=token%201", 2048),
            ("token=token%202", 3072),
            ("slot-id=1", 2048),
            ("slot-id=2;manufacturer=Kryoptic%20Project", 3072),
        ] {
            let key = open_with(&format!("pkcs11:{uri};id=%01{module}"), &pin).unwrap();
            assert_eq!(key.current().unwrap().key.bits(), bits, "{uri}");
        }
        let open = |uri: &str| open_with(&format!("pkcs11:{uri}object=key%201{module}"), &pin);
        refused(open(""), ErrorKind::Usage, "2 tokens match");
        let text = refused(
            open("token=token%203;"),
            ErrorKind::KeyUnreachable,
            "not there",
        );
        assert!(text.contains("token 1, token 2"), "{text}");
        refused(
            open("slot-id=1;token=token%202;"),
            ErrorKind::KeyUnreachable,
            "not there",
        );
        refused(
            open("serial=nobody;"),
            ErrorKind::KeyUnreachable,
            "not there",
        );
    });
}

#[test]
fn providers_of_one_token_work_at_the_same_time() {
    let name = "keys::providers_of_one_token_work_at_the_same_time";
    alone(Kind::SoftHsm, name, |token| {
        token.generate(NewKey::default());
        let uri = token.uri("id=%01");
        drop(open(token, &uri));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let key = open(token, &uri).unwrap();
                        round_trip(&*key, &key.current().unwrap());
                    }
                });
            }
        });
        // The first is dropped and the second remains logged in.
        let (first, second) = (open(token, &uri).unwrap(), open(token, &uri).unwrap());
        drop(first);
        round_trip(&*second, &second.current().unwrap());
    });
}
