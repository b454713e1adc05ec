//! Keys on tokens through the built program: create, mount, rotate, prompts, users without rights.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use cryptoki::object::{Attribute, ObjectClass};

use super::copy_with_mode;
use super::real::{BILAYER, Place, as_user, can_switch_users, command, have, need, run};
use super::token::{Kind, NewKey, PIN, Token, alone};

/// Time limit of one test.
const LIMIT: Duration = Duration::from_secs(120);

/// No program without the rights of root has this user.
const NOBODY: u32 = 65534;

/// Exit code of commands whose key is not available or refused.
const KEY_FAILED: i32 = 4;

/// Exit code of a mount that failed, as mount(8) defines it.
const MOUNT_FAILED: i32 = 32;

/// The options that a `create` of this test needs, as words.
fn created_with(token: &Token) -> String {
    let pin = token.secret("pin", PIN);
    let uri = token.uri("object=key%201");
    format!("--customer-key {uri} --passphrase-file {}", pin.display())
}

#[track_caller]
fn fails(place: &Place, words: &str, code: i32, part: &str) {
    let outcome = run(&mut place.bilayer(words.split_whitespace()));
    assert_eq!(outcome.code, code, "{words}: {}", outcome.stderr);
    assert!(outcome.stderr.contains(part), "{words}: {}", outcome.stderr);
    assert!(
        outcome.stderr.contains("hint"),
        "{words}: {}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains(PIN), "{words}: {}", outcome.stderr);
}

/// True if a file below this directory contains the text.
fn is_anywhere(text: &str, directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => is_anywhere(text, &path),
            false => {
                let bytes = fs::read(path).unwrap_or_default();
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            }
        }
    })
}

fn a_volume_lives_under_a_token(token: &Token, name: &'static str, algorithm: &str) {
    let Some(place) = Place::new(name, LIMIT) else {
        return;
    };
    token.generate(NewKey::default());
    let pin = token.secret("pin", PIN);
    let options = format!("passphrase_file={}", pin.display());
    let mounted = place.fresh(&created_with(token), &options);
    fs::write(mounted.path("file"), "under a token").unwrap();
    mounted.unmount();
    let list = place.run("key list vol --json").done().stdout;
    assert!(list.contains(&format!("\"{algorithm}\"")), "{list}");

    // By an option, with the PIN's file in the URI.
    let uri = token.uri("id=%01");
    let options = format!("customer_key={uri}&pin-source=file:{}", pin.display());
    let mounted = place.mount("vol", "mnt", &options);
    let text = fs::read_to_string(mounted.path("file")).unwrap();
    assert_eq!(text, "under a token");
    mounted.unmount();

    let wrong = token.secret("wrong", "wrong-pin");
    let words = format!("mount vol mnt -o passphrase_file={}", wrong.display());
    fails(&place, &words, MOUNT_FAILED, "CKR_PIN_INCORRECT");
    fails(
        &place,
        "mount vol mnt",
        MOUNT_FAILED,
        "terminal to ask for the PIN of token token 1",
    );
    token.try_pin(PIN).unwrap();
    token.change(&[1], Attribute::Decrypt(false));
    let words = format!("mount vol mnt -o passphrase_file={}", pin.display());
    fails(&place, &words, MOUNT_FAILED, "CKA_DECRYPT");
    token.change(&[1], Attribute::Decrypt(true));

    assert!(!is_anywhere(PIN, &place.path("vol")));
    assert!(!is_anywhere(PIN, &place.path("keystore")));
}

#[test]
fn a_volume_lives_under_a_key_in_softhsm() {
    let name = "mounts::a_volume_lives_under_a_key_in_softhsm";
    alone(Kind::SoftHsm, name, |token| {
        a_volume_lives_under_a_token(token, "pkcs11-softhsm", "RSA-OAEP");
    });
}

#[test]
fn a_volume_lives_under_a_key_in_kryoptic() {
    let name = "mounts::a_volume_lives_under_a_key_in_kryoptic";
    alone(Kind::Kryoptic, name, |token| {
        a_volume_lives_under_a_token(token, "pkcs11-kryoptic", "RSA-OAEP-256");
    });
}

#[test]
fn a_new_key_of_the_same_label_is_rotated_to() {
    let name = "mounts::a_new_key_of_the_same_label_is_rotated_to";
    alone(Kind::SoftHsm, name, |token| {
        let Some(place) = Place::new("pkcs11-rotate", LIMIT) else {
            return;
        };
        token.generate(NewKey::default());
        place
            .run(&format!("create vol {}", created_with(token)))
            .done();
        let pin = format!("--passphrase-file {}", token.secret("pin", PIN).display());
        token.generate(NewKey {
            id: &[2],
            bits: 3072,
            ..NewKey::default()
        });
        // The old one opens it still, and then it is not needed any more.
        place.run(&format!("key test vol {pin}")).done();
        place.run(&format!("key rotate vol {pin}")).done();
        token.delete(ObjectClass::PRIVATE_KEY, &[1]);
        token.delete(ObjectClass::PUBLIC_KEY, &[1]);
        place.run(&format!("key test vol {pin}")).done();
        token.delete(ObjectClass::PRIVATE_KEY, &[2]);
        token.delete(ObjectClass::PUBLIC_KEY, &[2]);
        let words = format!("key test vol {pin}");
        fails(&place, &words, KEY_FAILED, "no such key on the token");
    });
}

/// Types the PIN at each question for one, and shows all that was on the terminal.
const TYPIST: &str = r"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
seen, asked = '', 0
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    seen += part.decode(errors='replace')
    if seen.count('PIN of token token 1: ') > asked:
        asked += 1
        os.write(terminal, (sys.argv[1] + '\n').encode())
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(seen, 'asked', asked, 'ended', code)
";

#[test]
fn a_pin_is_asked_for_once_on_a_terminal() {
    let name = "mounts::a_pin_is_asked_for_once_on_a_terminal";
    alone(Kind::SoftHsm, name, |token| {
        let Some(place) = Place::new("pkcs11-prompt", LIMIT) else {
            return;
        };
        if !need(have("python3"), name, "python3 is missing; install it") {
            return;
        }
        token.generate(NewKey::default());
        place
            .run(&format!("create vol {}", created_with(token)))
            .done();
        for (pin, end) in [("wrong-pin", "asked 1 ended 32"), (PIN, "asked 1 ended 0")] {
            place.dir("mnt");
            let mut typist = command("python3", ["-c", TYPIST, pin, &BILAYER, "mount"]);
            place.environment(typist.args(["vol", "mnt"]));
            let shown = run(&mut typist).done().stdout;
            assert!(shown.contains(end), "{shown}");
            assert!(!shown.contains(pin), "{shown}");
        }
        place.mounted(&place.path("mnt")).unmount();
    });
}

#[test]
fn a_user_without_rights_to_the_module_is_told_so() {
    let name = "mounts::a_user_without_rights_to_the_module_is_told_so";
    alone(Kind::SoftHsm, name, |token| {
        let Some(place) = Place::new("pkcs11-user", LIMIT) else {
            return;
        };
        if !can_switch_users(name) {
            return;
        }
        token.generate(NewKey::default());
        let module = place.path("module.so");
        copy_with_mode(&token.module, &module, 0o600);
        // The program itself, at a place that others reach.
        let open = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let at = |name: &str| open.path().join(name);
        copy_with_mode(Path::new(&*BILAYER), &at("bilayer"), 0o755);
        copy_with_mode(&token.module, &at("module.so"), 0o600);
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let uri = format!("pkcs11:object=k?module-path={}", at("module.so").display());
        let mut create = as_user(NOBODY);
        create.arg(at("bilayer")).arg("create").arg(at("new"));
        create
            .args(["--customer-key", &uri, "--platform-keystore"])
            .arg(at("keystore"));
        create.env("HOME", open.path()).current_dir(open.path());
        let outcome = run(&mut create);
        assert_eq!(outcome.code, KEY_FAILED, "{}", outcome.stderr);
        assert!(
            outcome.stderr.contains("Permission denied"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains("hint"), "{}", outcome.stderr);
    });
}
