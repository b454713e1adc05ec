//! Tokens for tests, and what their owner does with them.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::{AuthPin, Date};

use super::real::{need, run_within, scratch_directory};

pub(crate) const PIN: &str = "right-pin";
const OFFICER_PIN: &str = "officer-pin";

const SOFTHSM: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

/// Set in a process that runs one test: the directory of its tokens.
const DIRECTORY: &str = "BILAYER_TEST_TOKENS";

/// Time limit of a test.
const LIMIT: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    SoftHsm,
    Kryoptic,
}

impl Kind {
    /// Its module; `None`, after a message, if it is not there.
    pub(crate) fn module(self, test: &str) -> Option<PathBuf> {
        let (path, missing) = match self {
            Self::SoftHsm => (
                SOFTHSM
                    .iter()
                    .map(PathBuf::from)
                    .find(|path| path.is_file()),
                "SoftHSM is missing; install softhsm2",
            ),
            Self::Kryoptic => (
                Some(kryoptic()).filter(|path| path.is_file()),
                "kryoptic is missing; build it: cargo build --manifest-path \
                 tests/kryoptic/Cargo.toml --target-dir target/kryoptic",
            ),
        };
        need(path.is_some(), test, missing).then_some(path?)
    }

    /// Writes a configuration for tokens in this directory, and names it in the environment.
    pub(crate) fn configure(self, directory: &Path, command: &mut Command) {
        match self {
            Self::SoftHsm => {
                let file = directory.join("softhsm2.conf");
                let tokens = directory.join("tokens");
                fs::create_dir_all(&tokens).unwrap();
                let text = format!(
                    "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                    tokens.display()
                );
                fs::write(&file, text).unwrap();
                command.env("SOFTHSM2_CONF", file);
            }
            Self::Kryoptic => {
                let file = directory.join("kryoptic.conf");
                let slots = [1, 2].map(|slot| {
                    let data = directory.join(format!("token{slot}.sql"));
                    format!("[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = {data:?}\n")
                });
                fs::write(&file, slots.concat()).unwrap();
                command.env("KRYOPTIC_CONF", file);
            }
        }
    }
}

fn kryoptic() -> PathBuf {
    match std::env::var_os("BILAYER_TESTS_KRYOPTIC") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target/kryoptic/debug/libbilayer_kryoptic.so"),
    }
}

/// Runs a test in a process of its own, in which the module of that kind has no token yet.
pub(crate) fn alone(kind: Kind, test: &str, body: impl FnOnce(&Token)) {
    let Some(module) = kind.module(test) else {
        return;
    };
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let token = Token::new(kind, &module, Path::new(&directory), "token 1");
        body(&token);
        return;
    }
    let directory = scratch("pkcs11");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory.path())
        .env("P11_KIT_SERVER_ADDRESS", service_address(directory.path()));
    kind.configure(directory.path(), &mut command);
    let outcome = run_within(&mut command, LIMIT).done();
    assert!(outcome.stdout.contains("1 passed"), "{}", outcome.stdout);
}

/// Where a service of p11-kit is looked for.
fn service_address(directory: &Path) -> String {
    format!("unix:path={}", directory.join("p11-kit.sock").display())
}

/// A directory for tokens.
pub(crate) fn scratch(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(scratch_directory())
        .unwrap()
}

/// A token of this process's module.
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) module: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) label: String,
    library: Pkcs11,
}

/// How a key pair is made.
#[derive(Clone, Copy)]
pub(crate) struct NewKey<'a> {
    pub(crate) label: &'a str,
    pub(crate) id: &'a [u8],
    pub(crate) bits: u64,
    /// First day, such as `20260131`.
    pub(crate) start: Option<&'a str>,
    pub(crate) always_authenticate: bool,
}

impl Default for NewKey<'_> {
    fn default() -> Self {
        Self {
            label: "key 1",
            id: &[1],
            bits: 2048,
            start: None,
            always_authenticate: false,
        }
    }
}

pub(crate) fn date(text: &str) -> Date {
    Date::new_from_str_slice(&text[..4], &text[4..6], &text[6..]).unwrap()
}

impl Token {
    /// Makes a token with a user PIN.
    pub(crate) fn new(kind: Kind, module: &Path, directory: &Path, label: &str) -> Self {
        let this = Self {
            kind,
            module: module.to_owned(),
            directory: directory.to_owned(),
            label: label.to_owned(),
            library: Pkcs11::new(module).unwrap(),
        };
        let ours = this.initialize();
        let officer = AuthPin::new(OFFICER_PIN.into());
        let free = |slot: &Slot| {
            !this
                .library
                .get_token_info(*slot)
                .unwrap()
                .token_initialized()
        };
        let slots = this.library.get_slots_with_token().unwrap();
        let slot = slots.into_iter().find(free).unwrap();
        this.library.init_token(slot, &officer, label).unwrap();
        let session = this.library.open_rw_session(this.slot()).unwrap();
        session.login(UserType::So, Some(&officer)).unwrap();
        session.init_pin(&AuthPin::new(PIN.into())).unwrap();
        drop(session);
        this.finalize(ours);
        this
    }

    /// Another token of the same module.
    pub(crate) fn another(&self, label: &str) -> Self {
        Self::new(self.kind, &self.module, &self.directory, label)
    }

    /// The URI of a key of this token.
    pub(crate) fn uri(&self, key: &str) -> String {
        let label = self.label.replace(' ', "%20");
        let module = self.module.display();
        format!("pkcs11:token={label};{key}?module-path={module}")
    }

    /// Writes a secret to a file that only this user can read.
    pub(crate) fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.join(name);
        let mut options = fs::File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).unwrap();
        std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes()).unwrap();
        path
    }

    /// True if the module was not initialised in this process.
    fn initialize(&self) -> bool {
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match self.library.initialize(arguments) {
            Ok(()) => true,
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn finalize(&self, ours: bool) {
        if ours {
            self.library.clone().finalize().unwrap();
        }
    }

    fn slot(&self) -> Slot {
        let slots = self.library.get_slots_with_token().unwrap().into_iter();
        let named = |slot: &Slot| {
            let info = self.library.get_token_info(*slot);
            info.is_ok_and(|info| info.label() == self.label)
        };
        slots.into_iter().find(named).unwrap()
    }

    /// Does something as the user of the token, with another session of this process if it has one.
    pub(crate) fn as_user<T>(&self, work: impl FnOnce(&Session) -> T) -> T {
        let ours = self.initialize();
        let session = self.library.open_rw_session(self.slot()).unwrap();
        match session.login(UserType::User, Some(&AuthPin::new(PIN.into()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => panic!("{error}"),
        }
        let result = work(&session);
        drop(session);
        self.finalize(ours);
        result
    }

    /// Tries to log in, and returns what the token says.
    pub(crate) fn try_pin(&self, pin: &str) -> Result<(), Error> {
        let ours = self.initialize();
        let session = self.library.open_rw_session(self.slot()).unwrap();
        let result = session.login(UserType::User, Some(&AuthPin::new(pin.into())));
        drop(session);
        self.finalize(ours);
        result
    }

    /// True if a wrong PIN was given since the last right one.
    pub(crate) fn has_wrong_pins(&self) -> bool {
        let ours = self.initialize();
        let info = self.library.get_token_info(self.slot()).unwrap();
        self.finalize(ours);
        info.user_pin_count_low() || info.user_pin_final_try() || info.user_pin_locked()
    }

    /// Makes an RSA key pair, of which the private half cannot be read.
    pub(crate) fn generate(&self, key: NewKey<'_>) {
        let mut public = vec![
            Attribute::Token(true),
            Attribute::Encrypt(true),
            Attribute::ModulusBits(key.bits.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Label(key.label.into()),
            Attribute::Id(key.id.to_vec()),
        ];
        let mut private = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Decrypt(true),
            Attribute::Label(key.label.into()),
            Attribute::Id(key.id.to_vec()),
        ];
        if key.always_authenticate {
            private.push(Attribute::AlwaysAuthenticate(true));
        }
        let start = key.start.map(|day| Attribute::StartDate(date(day)));
        public.extend(start.clone());
        private.extend(start);
        self.as_user(|session| {
            let mechanism = Mechanism::RsaPkcsKeyPairGen;
            session
                .generate_key_pair(&mechanism, &public, &private)
                .unwrap();
        });
    }

    /// Changes an attribute of a private key.
    pub(crate) fn change(&self, id: &[u8], attribute: Attribute) {
        self.as_user(|session| {
            let key = find(session, ObjectClass::PRIVATE_KEY, id);
            session.update_attributes(key, &[attribute]).unwrap();
        });
    }

    /// Changes an attribute of a public key.
    pub(crate) fn change_public(&self, id: &[u8], attribute: Attribute) {
        self.as_user(|session| {
            let key = find(session, ObjectClass::PUBLIC_KEY, id);
            session.update_attributes(key, &[attribute]).unwrap();
        });
    }

    /// Deletes one half of a key.
    pub(crate) fn delete(&self, class: ObjectClass, id: &[u8]) {
        self.as_user(|session| {
            session.destroy_object(find(session, class, id)).unwrap();
        });
    }

    /// True if the token refuses to tell its private exponent.
    pub(crate) fn keeps_secret(&self, id: &[u8]) -> bool {
        self.as_user(|session| {
            let key = find(session, ObjectClass::PRIVATE_KEY, id);
            let told = session.get_attributes(key, &[AttributeType::PrivateExponent]);
            let flags = [AttributeType::Sensitive, AttributeType::Extractable];
            let flags = session.get_attributes(key, &flags).unwrap();
            told.is_ok_and(|told| told.is_empty())
                && flags == [Attribute::Sensitive(true), Attribute::Extractable(false)]
        })
    }
}

fn find(session: &Session, class: ObjectClass, id: &[u8]) -> ObjectHandle {
    let template = [Attribute::Class(class), Attribute::Id(id.to_vec())];
    session.find_objects(&template).unwrap()[0]
}
