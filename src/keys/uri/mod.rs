//! The name of a customer key: a URI.
//!
//! ```text
//! file:/absolute/path/key.pem      also file:///absolute/path/key.pem
//! file:/absolute/path/key          with files key.v1.pem, key.v2.pem ...
//! exec:/absolute/path/program?key=NAME
//! openbao:https://HOST:PORT/MOUNT/KEY
//! azure-kv:https://VAULT/keys/NAME
//! pkcs11:token=NAME;object=LABEL   a key on a token
//! ```
//!
//! Source: RFC 3986 (percent-encoding), RFC 8089 (`file`), RFC 7512 (`pkcs11`). A relative path is
//! accepted too if the working directory is known ([`KeyUri::parse_at`]). It is made absolute
//! there, once, so that the stored URI means the same wherever the next command runs.
//!
//! Invariants: a `KeyUri` contains no secret: no user, no password and no PIN. Its text has no
//! control characters, so it can be printed and logged. Errors show nothing of a refused URI but
//! its scheme: the rest may be a secret. Two spellings of the same key are equal.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::{ErrorKind, KeyError};

mod authority;
mod azure;
mod exec;
mod file;
mod pkcs11;

#[cfg(feature = "pkcs11")]
pub(crate) use pkcs11::ModuleRef;
pub(crate) use pkcs11::TokenUri;
mod openbao;
mod query;

pub(crate) use azure::AzureKey;
#[cfg(feature = "azure-kv")]
pub(crate) use azure::{AzureIds, AzureLogin, parse_version as parse_azure_version};
pub(crate) use exec::ProgramKey;
#[cfg(feature = "openbao")]
pub(crate) use openbao::Login;
pub(crate) use openbao::OpenBaoKey;

/// Length limit of a URI, in bytes of text.
pub const MAX_URI_BYTES: usize = 4096;

const SUPPORTED: &str = "a customer key is named as file:/path/to/key.pem, \
                         pkcs11:token=NAME;object=LABEL, openbao:https://HOST/MOUNT/KEY, \
                         azure-kv:https://VAULT/keys/NAME, \
                         exec:/path/to/program?key=NAME, or recovery:";

/// Names a customer key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KeyUri(Scheme);

/// The location, by scheme.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Scheme {
    /// A PEM file; the path is absolute and has no `.` component.
    File(PathBuf),
    /// A recovery code, which is asked for.
    Recovery,
    /// A key on a PKCS#11 token.
    Pkcs11(TokenUri),
    /// A program that speaks the protocol of docs/KEYS.md.
    Exec(ProgramKey),
    /// A key of a transit engine of OpenBao or Vault.
    OpenBao(Box<OpenBaoKey>),
    /// A key in Azure Key Vault.
    Azure(Box<AzureKey>),
}

impl KeyUri {
    /// Parses a URI with an absolute path.
    ///
    /// # Errors
    /// Kind `Usage` for an unknown scheme, a relative path, or anything besides a path.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Self::parse_with(text, None)
    }

    /// Parses a URI. A relative path is resolved against `directory`, which is absolute.
    ///
    /// # Errors
    /// Kind `Usage` for an unknown scheme, or anything besides a path.
    pub fn parse_at(text: &str, directory: &Path) -> Result<Self, KeyError> {
        Self::parse_with(text, Some(directory))
    }

    /// The URI of a key file.
    ///
    /// # Errors
    /// Kind `Usage` if the path is not absolute or too long.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let uri = Self(Scheme::File(file::absolute(path, None)?));
        if uri.to_string().len() > MAX_URI_BYTES {
            return Err(usage("the path of the key is too long"));
        }
        Ok(uri)
    }

    /// The URI of a recovery code: `recovery:`.
    pub fn recovery() -> Self {
        Self(Scheme::Recovery)
    }

    /// The location, by scheme.
    pub(crate) fn scheme(&self) -> &Scheme {
        &self.0
    }

    fn parse_with(text: &str, directory: Option<&Path>) -> Result<Self, KeyError> {
        if text.len() > MAX_URI_BYTES {
            return Err(usage("the URI of the key is too long"));
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(usage("it is no URI, since it has no scheme"));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "recovery" if rest.is_empty() => Ok(Self::recovery()),
            "file" => Ok(Self(Scheme::File(file::parse(rest, directory)?))),
            "pkcs11" => Ok(Self(Scheme::Pkcs11(pkcs11::parse(rest, directory)?))),
            "exec" => Ok(Self(Scheme::Exec(exec::parse(rest)?))),
            "openbao" | "vault" => {
                let key = openbao::parse(rest, directory)?;
                Ok(Self(Scheme::OpenBao(Box::new(key))))
            }
            "azure-kv" => {
                let key = azure::parse(rest, directory)?;
                Ok(Self(Scheme::Azure(Box::new(key))))
            }
            _ => Err(usage(format!(
                "keys of scheme {scheme:?} are not supported"
            ))),
        }
    }
}

impl FromStr for KeyUri {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Scheme::File(path) => file::write(path, f),
            Scheme::Recovery => f.write_str("recovery:"),
            Scheme::Pkcs11(uri) => pkcs11::write(uri, f),
            Scheme::Exec(key) => exec::write(key, f),
            Scheme::OpenBao(key) => openbao::write(key, f),
            Scheme::Azure(key) => azure::write(key, f),
        }
    }
}

fn usage(message: impl Into<String>) -> KeyError {
    KeyError::new(ErrorKind::Usage, message).with_hint(SUPPORTED)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn spellings_of_one_path_are_equal_and_print_alike() {
        let one = KeyUri::parse("file:/etc/keys/a.pem").expect("plain");
        for other in [
            "file:///etc/keys/a.pem",
            "file://localhost/etc/keys/a.pem",
            "FILE:/etc//keys/./a.pem",
            "file:/etc/keys/%61.pem",
        ] {
            assert_eq!(one, KeyUri::parse(other).expect(other), "{other}");
        }
        assert_eq!(one.to_string(), "file:/etc/keys/a.pem");
        let relative = KeyUri::parse_at("file:keys/a.pem", Path::new("/etc")).expect("relative");
        assert_eq!(one, relative);
    }

    #[test]
    fn a_printed_uri_parses_to_the_same_uri() {
        for path in [&b"/a b/\xc3\xa9%,?#\"\\"[..], b"/\xff\xfe/\n\x7f", b"/"] {
            let uri = KeyUri::from_file(Path::new(OsStr::from_bytes(path))).expect("absolute");
            let text = uri.to_string();
            assert!(
                !text.contains(|c: char| c.is_control() || c == ','),
                "{text}"
            );
            assert_eq!(KeyUri::parse(&text).expect(&text), uri);
        }
    }

    #[test]
    fn programs_have_a_key_and_a_version() {
        let uri = KeyUri::parse("EXEC:/opt//a/./key%20tool?version=v%31&key=a%2cb%26c/d");
        let uri = uri.expect("program");
        let text = "exec:/opt/a/key tool?key=a%2cb%26c/d&version=v1";
        assert_eq!(uri.to_string(), text);
        assert_eq!(KeyUri::parse(text).expect("the same"), uri);
        let Scheme::Exec(program) = uri.scheme() else {
            panic!("another scheme");
        };
        assert_eq!(program.key.as_deref(), Some("a,b&c/d"));
        let plain = KeyUri::parse("exec:/opt/key").expect("plain");
        assert_eq!(plain.to_string(), "exec:/opt/key");
    }

    #[test]
    fn other_uris_are_refused_and_the_hint_names_the_supported_scheme() {
        for text in [
            "",
            "key.pem",
            "/etc/key.pem",
            "file:",
            "file:key.pem",
            "exec:bin/sh",
            "exec:",
            "exec:/",
            "exec:///bin/sh",
            "exec:/bin/sh?",
            "exec:/bin/sh?arg=-c",
            "exec:/bin/sh?key=a&key=b",
            "exec:/bin/sh?key=",
            "exec:/bin/sh?key=%0a",
            "exec:/bin/sh?key=%zz",
            "exec:/bin/sh#key",
            "pkcs11:token=a?pin-value=1",
            "https://vault/key",
            "file://host/etc/key",
            "file:/key?passphrase=x",
            "file:/key#1",
            "file:/%0",
            "file:/%zz",
            "file:/a%00b",
            "file://localhost",
        ] {
            let error = KeyUri::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(
                error.hint().is_some_and(|hint| hint.contains("file:/")),
                "{text}"
            );
        }
    }
}
