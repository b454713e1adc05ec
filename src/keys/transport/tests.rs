//! Wraps for transport: what opens, what does not, and what a header may ask for.

use super::*;
use crate::keys::customer;
use crate::keys::customer::file::tests::{key_file, private_pem};
use crate::keys::passphrase::PassphraseSource;

const EXPORT: ExportId = ExportId([4; 16]);
const CHEAP: Argon2idCost = Argon2idCost {
    memory_kib: 64,
    passes: 1,
    lanes: 2,
};

fn context() -> TransportContext {
    TransportContext {
        export: EXPORT,
        key_set: KeySetId([2; 16]),
        epoch: Epoch(3),
    }
}

/// Everything that differs in one place.
fn others() -> [TransportContext; 3] {
    let right = context();
    [
        TransportContext {
            export: ExportId([5; 16]),
            ..right
        },
        TransportContext {
            key_set: KeySetId([5; 16]),
            ..right
        },
        TransportContext {
            epoch: Epoch(5),
            ..right
        },
    ]
}

fn keys_of(passphrase: &[u8], export: ExportId) -> TransportKeys {
    let passphrase = Passphrase::from_bytes(passphrase).expect("memory");
    TransportKeys::from_passphrase(&passphrase, CHEAP, &[9; 16], export).expect("keys")
}

/// RFC 9106 section 5.3 takes a secret and associated data, which are not used here. This is the
/// answer of the reference implementation's own test: Argon2id v19, 256 KiB, two passes, one lane.
#[test]
fn argon2id_gives_the_published_answer() {
    let passphrase = Passphrase::from_bytes(b"password").expect("memory");
    let cost = Argon2idCost {
        memory_kib: 256,
        passes: 2,
        lanes: 1,
    };
    let params = Params::new(256, 2, 1, Some(32)).expect("parameters");
    let mut root = [0; 32];
    let mut memory = vec![Block::new(); params.block_count()];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(b"password", b"somesalt", &mut root, &mut memory)
        .expect("computed");
    assert_eq!(
        hex::encode(root),
        "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"
    );
    let ours = argon2id(&passphrase, cost, &[9; 16]).expect("computed");
    assert_ne!(*ours, root);
    let again = argon2id(&passphrase, cost, &[9; 16]).expect("computed");
    assert_eq!(*ours, *again);
}

#[test]
fn a_header_cannot_ask_for_gigabytes_or_hours() {
    assert!(Argon2idCost::DEFAULT.is_within_limits() && CHEAP.is_within_limits());
    let passphrase = Passphrase::from_bytes(b"secret").expect("memory");
    for (memory_kib, passes, lanes) in [
        (u32::MAX, 1, 1),
        (MAX_MEMORY_KIB + 1, 1, 1),
        (MAX_MEMORY_KIB, 5, 1),
        (64, u32::MAX, 1),
        (64, 0, 1),
        (64, 1, 0),
        (7, 1, 1),
        (127, 1, 16),
        (1 << 20, 1, 17),
        (u32::MAX, u32::MAX, u32::MAX),
    ] {
        let cost = Argon2idCost {
            memory_kib,
            passes,
            lanes,
        };
        let error = TransportKeys::from_passphrase(&passphrase, cost, &[9; 16], EXPORT)
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::HeaderInvalid);
        let method = TransportMethod::Passphrase {
            argon2id: cost,
            salt: [9; 16],
        };
        assert!(!method.is_well_formed());
    }
}

#[test]
fn deks_come_back_under_the_same_passphrase_only() {
    let keys = keys_of(b"secret", EXPORT);
    let infrastructure = InfrastructureDek::from_bytes(&[6; 32]).expect("memory");
    let customer = CustomerDek::from_bytes(&[7; 64]).expect("memory");
    let outer = keys
        .wrap_infrastructure(&context(), &infrastructure)
        .expect("wrap");
    let inner = keys.wrap_customer(&context(), &customer).expect("wrap");
    assert_eq!(
        (outer.len(), inner.len()),
        (12 + 45 + 32 + 16, 12 + 45 + 64 + 16)
    );

    let same = keys_of(b"secret", EXPORT);
    let opened = same
        .unwrap_infrastructure(&context(), &outer)
        .expect("opens");
    assert_eq!(opened.expose(), infrastructure.expose());
    let opened = same.unwrap_customer(&context(), &inner).expect("opens");
    assert_eq!(opened.expose(), customer.expose());

    for other in [
        keys_of(b"secreu", EXPORT),
        keys_of(b"secret", ExportId([5; 16])),
    ] {
        let error = other
            .unwrap_infrastructure(&context(), &outer)
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(error.hint().is_some_and(|hint| hint.contains("passphrase")));
        assert!(other.unwrap_customer(&context(), &inner).is_err());
    }
    for other in others() {
        assert!(same.unwrap_infrastructure(&other, &outer).is_err());
        assert!(same.unwrap_customer(&other, &inner).is_err());
    }
    for bit in 0..outer.len() * 8 {
        let mut forged = outer.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(same.unwrap_infrastructure(&context(), &forged).is_err());
    }
    for len in 0..inner.len() {
        assert!(same.unwrap_customer(&context(), &inner[..len]).is_err());
    }
}

/// Each role has a key of its own: the one's does not open what the other's has sealed, though
/// both come from one passphrase.
#[test]
fn the_roles_have_keys_of_their_own() {
    let keys = keys_of(b"secret", EXPORT);
    assert_ne!(keys.infrastructure.expose(), keys.customer.expose());
    let dek = InfrastructureDek::from_bytes(&[6; 32]).expect("memory");
    let wrapped = keys.wrap_infrastructure(&context(), &dek).expect("wrap");
    assert!(keys.unwrap_customer(&context(), &wrapped).is_err());
}

#[test]
fn a_customer_key_opens_what_was_wrapped_for_this_export() {
    let directory = tempfile::tempdir().expect("tempdir");
    let uri = key_file(directory.path(), "private.pem", &private_pem());
    let provider = customer::open(&uri, &PassphraseSource::None).expect("key");
    let version = provider.current().expect("current");
    let dek = CustomerDek::from_bytes(&[7; 64]).expect("memory");
    let wrapped = wrap_with_customer_key(&version.key, &context(), &dek).expect("wrap");
    assert!(wrapped.len() <= MAX_WRAP_BYTES);
    let opened =
        unwrap_with_customer_key(&*provider, &version, &context(), &wrapped).expect("opens");
    assert_eq!(opened.expose(), dek.expose());
    for other in others() {
        let error =
            unwrap_with_customer_key(&*provider, &version, &other, &wrapped).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Tampered);
    }
}

#[test]
fn methods_are_read_strictly() {
    let cheap = TransportMethod::Passphrase {
        argon2id: CHEAP,
        salt: [9; 16],
    };
    let text = serde_json::to_string(&cheap).expect("text");
    assert_eq!(
        text,
        format!(
            "{{\"kind\":\"passphrase\",\"argon2id\":{{\"memory_kib\":64,\"passes\":1,\"lanes\":2}},\
             \"salt\":\"{}\"}}",
            "09".repeat(16)
        )
    );
    let read = |text: &str| serde_json::from_str::<TransportMethod>(text).ok();
    assert_eq!(read(&text), Some(cheap));
    for (from, to) in [
        (
            "\"kind\":\"passphrase\"",
            "\"kind\":\"passphrase\",\"kind\":\"passphrase\"",
        ),
        ("\"salt\"", "\"more\":1,\"salt\""),
        ("\"lanes\":2", "\"lanes\":2,\"lanes\":2"),
        ("\"lanes\":2", "\"lanes\":-2"),
        ("\"lanes\":2", "\"lanes\":2,\"more\":2"),
        ("0909", "09"),
        ("passphrase", "nothing"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        assert_eq!(read(&changed), None, "{changed}");
    }
    let salts = text.replacen("\"salt\"", "\"salt\":\"00\",\"salt\"", 1);
    assert_eq!(read(&salts), None);
}
