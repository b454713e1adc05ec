use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use rsa::pkcs1::{EncodeRsaPrivateKey, EncodeRsaPublicKey};
use rsa::pkcs8::EncodePublicKey;
use rsa::traits::PublicKeyParts;

use super::*;
use crate::keys::customer;

/// One key for the whole test process: making one takes long.
pub(crate) fn test_key() -> &'static RsaPrivateKey {
    static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
    KEY.get_or_init(|| RsaPrivateKey::new(&mut OsRng, 2048).expect("key"))
}

/// Writes `text` to a file of its own in `directory` and gives its URI.
pub(crate) fn key_file(directory: &Path, name: &str, text: &str) -> KeyUri {
    let path = directory.join(name);
    // Written over where it is there already, as what it was.
    let mut file = OpenOptions::new();
    let file = file.create(true).truncate(true).write(true).mode(0o600);
    let mut file = file.open(&path).expect("key file");
    file.write_all(text.as_bytes()).expect("write key");
    KeyUri::from_file(&path).expect("absolute")
}

pub(crate) fn private_pem() -> Zeroizing<String> {
    test_key().to_pkcs8_pem(LineEnding::LF).expect("pem")
}

pub(crate) fn public_pem() -> String {
    test_key()
        .to_public_key()
        .to_public_key_pem(LineEnding::LF)
        .expect("pem")
}

fn open(uri: &KeyUri) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    customer::open(uri, &PassphraseSource::None)
}

fn fingerprint(key: &dyn CustomerKeyProvider) -> String {
    key.current().expect("current").key.fingerprint().to_owned()
}

fn round_trip(wrapping: &dyn CustomerKeyProvider, unwrapping: &dyn CustomerKeyProvider) {
    let plain = [0xA5; 93];
    let version = wrapping.current().expect("current");
    for algorithm in [WrapAlgorithm::RsaOaepSha256, WrapAlgorithm::RsaOaepSha1] {
        let version = KeyVersion {
            key: version.key.clone().with_algorithm(algorithm),
            ..version.clone()
        };
        let wrapped = version.key.wrap(&plain).expect("wrap");
        assert_eq!(wrapped.len(), 256);
        let unwrapped = unwrapping.unwrap(&version, &wrapped).expect("unwrap");
        assert_eq!(unwrapped[..], plain);
    }
}

#[test]
fn every_pem_form_of_one_key_is_the_same_key() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let pkcs1 = test_key().to_pkcs1_pem(LineEnding::LF).expect("pem");
    let public_pkcs1 = test_key()
        .to_public_key()
        .to_pkcs1_pem(LineEnding::LF)
        .expect("pem");
    let private = open(&key_file(at, "a", &private_pem())).expect("PKCS#8");
    let others = [
        open(&key_file(at, "b", &pkcs1)).expect("PKCS#1"),
        open(&key_file(at, "c", &public_pem())).expect("SPKI"),
        open(&key_file(at, "d", &public_pkcs1)).expect("PKCS#1 public"),
    ];
    let version = fingerprint(&*private);
    for other in &others {
        assert_eq!(fingerprint(&**other), version);
        round_trip(&**other, &*private);
    }
    round_trip(&*private, &*others[0]);
    for public in &others[1..] {
        assert!(!public.can_unwrap());
        let version = public.current().expect("current");
        let error = public.unwrap(&version, &[0; 256]).expect_err("public only");
        assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
        assert!(error.to_string().contains("public half"), "{error}");
    }
}

#[test]
fn what_was_wrapped_and_changed_does_not_unwrap() {
    let directory = tempfile::tempdir().expect("tempdir");
    let key = open(&key_file(directory.path(), "k", &private_pem())).expect("key");
    let version = key.current().expect("current");
    let mut wrapped = version.key.wrap(b"plain").expect("wrap");
    wrapped[200] ^= 1;
    let bad = [
        wrapped,
        vec![0; 256],
        vec![0xFF; 256],
        vec![1; 255],
        Vec::new(),
    ];
    for bytes in bad {
        let error = key.unwrap(&version, &bytes).expect_err("changed");
        assert_eq!(error.kind(), ErrorKind::Tampered);
    }
    assert!(
        version.key.wrap(&[0; 191]).is_err(),
        "longer than OAEP takes"
    );
}

#[test]
fn the_rsa_crate_and_the_provider_agree() {
    let directory = tempfile::tempdir().expect("tempdir");
    let key = open(&key_file(directory.path(), "k", &private_pem())).expect("key");
    let wrapped = key.current().expect("current").key.wrap(b"plain");
    let plain = test_key()
        .decrypt(
            WrapAlgorithm::RsaOaepSha256.padding().expect("RSA"),
            &wrapped.expect("wrap"),
        )
        .expect("decrypt");
    assert_eq!(plain, b"plain");
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let passphrase = Passphrase::from_bytes(b"correct horse").expect("memory");
    let text = encrypted_pem(test_key(), &passphrase).expect("encrypt");
    assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    let uri = key_file(at, "k", &text);
    let error = open(&uri).expect_err("no passphrase");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    let from = |text: &str| -> PassphraseSource {
        let path = at.join("passphrase");
        std::fs::write(&path, text).expect("write");
        PassphraseSource::File(path)
    };
    let error = customer::open(&uri, &from("wrong\n")).expect_err("wrong passphrase");
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    let key = customer::open(&uri, &from("correct horse\n")).expect("right passphrase");
    round_trip(&*key, &*key);
}

#[test]
fn a_passphrase_that_is_not_needed_is_not_asked_for() {
    let directory = tempfile::tempdir().expect("tempdir");
    let uri = key_file(directory.path(), "k", &private_pem());
    let missing = PassphraseSource::File(PathBuf::from("/nonexistent/passphrase"));
    assert!(customer::open(&uri, &missing).is_ok());
}

#[test]
fn keys_of_other_sizes_and_exponents_are_refused() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let short = RsaPrivateKey::new(&mut OsRng, 1024).expect("key");
    let public = short
        .to_public_key()
        .to_public_key_pem(LineEnding::LF)
        .expect("pem");
    let small_exponent = rsa::RsaPublicKey::new(test_key().n().clone(), 3u32.into()).expect("key");
    let cases = [
        (
            short.to_pkcs8_pem(LineEnding::LF).expect("pem").to_string(),
            "1024 bits",
        ),
        (public, "1024 bits"),
        (
            small_exponent
                .to_public_key_pem(LineEnding::LF)
                .expect("pem"),
            "exponent 3",
        ),
    ];
    for (text, expected) in cases {
        let error = open(&key_file(at, "k", &text)).expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn other_files_are_refused_with_advice() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n";
    for (text, expected) in [
        ("no key".to_owned(), "no PEM"),
        (block("CERTIFICATE"), "certificate"),
        (block("EC PRIVATE KEY"), "EC PRIVATE KEY"),
        (block("OPENSSH PRIVATE KEY"), "OpenSSH"),
        (block("PRIVATE KEY"), "no usable RSA"),
        (block("ENCRYPTED PRIVATE KEY"), "not supported"),
        (old.to_owned(), "legacy format"),
        (private_pem().replace("MII", "MIJ"), "RSA"),
    ] {
        let error = open(&key_file(at, "k", &text)).expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(expected), "{error} / {expected}");
    }
    let long = "x".repeat(MAX_KEY_FILE_BYTES as usize + 1);
    let error = open(&key_file(at, "long", &long)).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    let missing = KeyUri::from_file(&at.join("missing")).expect("absolute");
    let error = open(&missing).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn errors_and_debug_show_no_key() {
    let directory = tempfile::tempdir().expect("tempdir");
    let key = open(&key_file(directory.path(), "k", &private_pem())).expect("key");
    let shown = format!("{key:?}");
    assert!(
        shown.contains("fingerprint") && shown.len() < 600,
        "{shown}"
    );
}

#[test]
fn generated_keys_are_private_whole_and_never_replaced() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("new.pem");
    let passphrase = Passphrase::from_bytes(b"p").expect("memory");
    let made = generate(&path, 2048, Some(&passphrase)).expect("generate");
    let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let passphrase_file = directory.path().join("p");
    std::fs::write(&passphrase_file, "p\n").expect("write");
    let source = PassphraseSource::File(passphrase_file);
    let uri = KeyUri::from_file(&path).expect("uri");
    let opened = customer::open(&uri, &source).expect("open");
    assert_eq!(opened.current().expect("current").key, made);
    let before = std::fs::read(&path).expect("read");
    let error = generate(&path, 2048, None).expect_err("exists");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(std::fs::read(&path).expect("read"), before);
    let other = directory.path().join("odd.pem");
    assert_eq!(
        generate(&other, 1024, None).expect_err("size").kind(),
        ErrorKind::Usage
    );
    assert!(!other.exists());
}

/// Runs `openssl`; `None`, with a word about it, where there is none.
fn openssl(arguments: &[&str]) -> Option<bool> {
    match std::process::Command::new("openssl")
        .args(arguments)
        .output()
    {
        Ok(output) => Some(output.status.success()),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "skipped: openssl cannot be run: {error}");
            None
        }
    }
}

#[test]
fn encrypted_keys_go_to_and_come_from_openssl() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let passphrase = Passphrase::from_bytes(b"p").expect("memory");
    let text = encrypted_pem(test_key(), &passphrase).expect("encrypt");
    std::fs::write(at("ours"), &*text).expect("write");
    let convert = ["pkcs8", "-topk8", "-in", &at("ours"), "-passin", "pass:p"];
    for (name, encryption) in [
        ("pbkdf2", &["-v2", "aes-256-cbc", "-passout", "pass:p"][..]),
        ("scrypt", &["-scrypt", "-passout", "pass:p"]),
        ("plain", &["-nocrypt"]),
    ] {
        let out = at(name);
        let arguments = [&convert[..], encryption, &["-out", &out]].concat();
        match openssl(&arguments) {
            Some(done) => assert!(done, "{name}: openssl does not read our key"),
            None => return,
        }
        std::fs::write(at("passphrase"), "p").expect("write");
        let source = PassphraseSource::File(at("passphrase").into());
        let uri = KeyUri::from_file(Path::new(&out)).expect("uri");
        let key = customer::open(&uri, &source).expect(name);
        let own = WrappingKey::new(test_key().to_public_key(), WrapAlgorithm::RsaOaepSha256);
        assert_eq!(fingerprint(&*key), own.expect("key").fingerprint());
    }
}

/// Another key, which opens nothing of the first one's.
pub(crate) fn other_private_pem() -> Zeroizing<String> {
    static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
    let key = KEY.get_or_init(|| RsaPrivateKey::new(&mut OsRng, 2048).expect("key"));
    key.to_pkcs8_pem(LineEnding::LF).expect("pem")
}

#[test]
fn a_private_key_is_its_owners_alone() {
    let directory = tempfile::tempdir().expect("dir");
    let at = directory.path();
    let passphrase = Passphrase::from_bytes(b"open sesame").expect("memory");
    let encrypted = encrypted_pem(test_key(), &passphrase).expect("encrypt");
    let set_mode = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(at.join(name), permissions).expect("chmod");
    };
    for (name, text) in [("plain", &private_pem()), ("encrypted", &encrypted)] {
        let uri = key_file(at, name, text);
        for mode in [0o640, 0o604, 0o620, 0o644] {
            set_mode(name, mode);
            let error = open(&uri).expect_err("open to others");
            assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
            assert!(
                error.to_string().contains(&format!("{mode:04o}")),
                "{error}"
            );
            let hint = error.hint().expect("hint");
            assert!(
                hint.starts_with("chmod 600 ") && hint.ends_with(name),
                "{hint}"
            );
        }
        set_mode(name, 0o400);
        if name == "plain" {
            open(&uri).expect("its owner's alone");
        }
        if effective_user() == 0 {
            std::os::unix::fs::chown(at.join(name), Some(1), None).expect("chown");
            let error = open(&uri).expect_err("of somebody else");
            assert!(error.to_string().contains("belongs to user 1"), "{error}");
        }
    }
    let uri = key_file(at, "public", &public_pem());
    set_mode("public", 0o644);
    open(&uri).expect("public keys are for everybody");
}

#[test]
fn a_new_passphrase_replaces_the_old_one_and_keeps_the_key() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let source = |name: &str, text: &str| {
        key_file(at, name, text);
        PassphraseSource::File(at.join(name))
    };
    let (first, second) = (source("first", "one\n"), source("second", "two\n"));
    let uri = key_file(at, "key", &private_pem());
    let path = at.join("key");
    let version = fingerprint(&*open(&uri).expect("key"));
    // The key has no passphrase yet, so none is asked for.
    change_passphrase(&path, &PassphraseSource::None, &first).expect("first");
    assert_eq!(
        open(&uri).expect_err("encrypted").kind(),
        ErrorKind::KeyUnavailable
    );
    change_passphrase(&path, &first, &second).expect("second");
    let old = customer::open(&uri, &first).expect_err("the old one");
    assert_eq!(old.kind(), ErrorKind::WrongKey);
    let new = customer::open(&uri, &second).expect("the new one");
    assert_eq!(fingerprint(&*new), version);
    round_trip(&*new, &*new);
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_refused_change_of_passphrase_changes_nothing() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let source = |name: &str, text: &str| {
        key_file(at, name, text);
        PassphraseSource::File(at.join(name))
    };
    let (right, wrong) = (source("right", "one\n"), source("wrong", "two\n"));
    let empty = source("empty", "\n");
    let path = at.join("key");
    key_file(at, "key", &private_pem());
    change_passphrase(&path, &PassphraseSource::None, &right).expect("encrypted");
    let before = fs::read(&path).expect("text");
    for (old, new, kind) in [
        (&wrong, &right, ErrorKind::WrongKey),
        (&PassphraseSource::None, &right, ErrorKind::KeyUnavailable),
        (&right, &empty, ErrorKind::KeyUnavailable),
        (&right, &PassphraseSource::None, ErrorKind::KeyUnavailable),
    ] {
        let error = change_passphrase(&path, old, new).expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(fs::read(&path).expect("text"), before);
    }
    key_file(at, "public", &public_pem());
    let error = change_passphrase(&at.join("public"), &right, &right).expect_err("public");
    assert!(error.to_string().contains("public half"), "{error}");
    let error = change_passphrase(at, &right, &right).expect_err("a directory");
    assert!(error.to_string().contains("plain file"), "{error}");
    let names = fs::read_dir(at).expect("list").count();
    assert_eq!(names, 5, "nothing is left beside the files");
}

#[test]
fn a_link_to_a_key_stays_when_its_passphrase_changes() {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let passphrase = PassphraseSource::File(at.join("passphrase"));
    key_file(at, "passphrase", "one\n");
    fs::create_dir(at.join("safe")).expect("directory");
    key_file(&at.join("safe"), "key", &private_pem());
    std::os::unix::fs::symlink("safe/key", at.join("link")).expect("link");
    change_passphrase(&at.join("link"), &PassphraseSource::None, &passphrase).expect("changed");
    let link = fs::symlink_metadata(at.join("link")).expect("link");
    assert!(link.is_symlink());
    let uri = KeyUri::from_file(&at.join("safe/key")).expect("absolute");
    customer::open(&uri, &passphrase).expect("the file behind the link");
}
