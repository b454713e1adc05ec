//! `pkcs11:` URIs (RFC 7512): a private key on a token, and the module that speaks to the token.
//!
//! ```text
//! pkcs11:token=NAME;object=LABEL
//! pkcs11:serial=1234;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin
//! ```
//!
//! | attribute | meaning |
//! |---|---|
//! | `token`, `manufacturer`, `model`, `serial`, `slot-id` | the token; all given ones must match |
//! | `object`, `id` | the key: its label and its `CKA_ID`; at least one of them |
//! | `type` | only `private`, which is implied |
//! | `module-path`, `module-name` | the module; without them that of p11-kit |
//! | `pin-source` | `file:` and the path of a file with the PIN |
//!
//! All other attributes are refused. An unknown one could narrow the choice of the key, and
//! `pin-value` is a secret. The published crates for these URIs print to standard output, panic on
//! malformed text, or open the token themselves.

use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::file;
use super::{ErrorKind, KeyError, MAX_URI_BYTES};

/// What a `pkcs11:` URI says. Two spellings of the same are equal.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct TokenUri {
    /// Label of the token.
    pub(crate) token: Option<String>,
    /// Manufacturer of the token.
    pub(crate) manufacturer: Option<String>,
    /// Model of the token.
    pub(crate) model: Option<String>,
    /// Serial number of the token.
    pub(crate) serial: Option<String>,
    /// Number of the slot that the token is in.
    pub(crate) slot_id: Option<u64>,
    /// Label of the key.
    pub(crate) object: Option<String>,
    /// `CKA_ID` of the key.
    pub(crate) id: Option<Vec<u8>>,
    /// The module.
    pub(crate) module: ModuleRef,
    /// The file that contains the PIN; an absolute path.
    pub(crate) pin_file: Option<PathBuf>,
}

/// How a URI names the PKCS#11 module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum ModuleRef {
    /// Not at all.
    #[default]
    Default,
    /// By a name in lower case, such as `softhsm2`.
    Name(String),
    /// By its absolute path.
    Path(PathBuf),
}

/// Parses what follows `pkcs11:`.
pub(super) fn parse(rest: &str, directory: Option<&Path>) -> Result<TokenUri, KeyError> {
    if rest.contains('#') {
        return Err(usage("the URI has a fragment (write # as %23)"));
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(usage("the URI contains white space (write it as %20)"));
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut uri = TokenUri::default();
    let mut seen = Vec::new();
    for attribute in path.split(';').filter(|text| !text.is_empty()) {
        let (name, value) = split(attribute, &mut seen)?;
        uri.set_path_attribute(name, value)?;
    }
    for attribute in query.split('&').filter(|text| !text.is_empty()) {
        let (name, value) = split(attribute, &mut seen)?;
        uri.set_query_attribute(name, value, directory)?;
    }
    if uri.object.is_none() && uri.id.is_none() {
        return Err(usage(
            "the URI names no key: it has neither object= nor id=",
        ));
    }
    if uri.encoded_bytes() > MAX_URI_BYTES {
        return Err(usage("the URI of the key is too long"));
    }
    Ok(uri)
}

/// Name and value of an attribute that was not given before.
fn split<'a>(attribute: &'a str, seen: &mut Vec<&'a str>) -> Result<(&'a str, Vec<u8>), KeyError> {
    let Some((name, value)) = attribute.split_once('=') else {
        return Err(usage("an attribute of the URI has no value"));
    };
    if seen.contains(&name) {
        return Err(usage("an attribute is given twice in the URI"));
    }
    seen.push(name);
    let value = file::percent_decode(value)
        .ok_or_else(|| usage("% in the URI must be followed by two hexadecimal digits"))?;
    Ok((name, value))
}

impl TokenUri {
    fn set_path_attribute(&mut self, name: &str, value: Vec<u8>) -> Result<(), KeyError> {
        match name {
            "token" => self.token = Some(text(value)?),
            "manufacturer" => self.manufacturer = Some(text(value)?),
            "model" => self.model = Some(text(value)?),
            "serial" => self.serial = Some(text(value)?),
            "slot-id" => {
                let digits = text(value)?;
                let number = digits.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.then(|| digits.parse().ok()).flatten();
                let number = number.ok_or_else(|| usage("slot-id in the URI is no number"))?;
                self.slot_id = Some(number);
            }
            "object" if value.is_empty() => return Err(usage("object= in the URI is empty")),
            "object" => self.object = Some(text(value)?),
            "id" if value.is_empty() => return Err(usage("id= in the URI is empty")),
            "id" => self.id = Some(value),
            "type" if value == b"private" => {}
            "type" => return Err(usage("type= in the URI is not private")),
            "pin-value" => return Err(pin_value()),
            _ => {
                return Err(usage(
                    "the URI has an attribute that is not supported: supported are token, \
                     manufacturer, model, serial, slot-id, object, id and type, then ? and \
                     module-path, module-name and pin-source",
                ));
            }
        }
        Ok(())
    }

    fn set_query_attribute(
        &mut self,
        name: &str,
        value: Vec<u8>,
        directory: Option<&Path>,
    ) -> Result<(), KeyError> {
        match name {
            "module-path" | "module-name" if self.module != ModuleRef::Default => {
                return Err(usage("the URI has both module-path and module-name"));
            }
            "module-path" => {
                if value.is_empty() || value.contains(&0) {
                    return Err(usage("module-path in the URI is no usable path"));
                }
                let path = Path::new(OsStr::from_bytes(&value));
                self.module = ModuleRef::Path(absolute(path, directory)?);
            }
            "module-name" => {
                let name = text(value)?.to_ascii_lowercase();
                let usable = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
                if name.is_empty() || name.starts_with('.') || !name.chars().all(usable) {
                    return Err(usage("module-name in the URI is no name of a module"));
                }
                self.module = ModuleRef::Name(name);
            }
            "pin-source" => {
                let source = text(value)?;
                let path = match source.split_once(':') {
                    Some((scheme, path)) if scheme.eq_ignore_ascii_case("file") => path,
                    _ => return Err(usage("pin-source in the URI is no file:/path")),
                };
                self.pin_file = Some(file::parse(path, directory).map_err(|_| {
                    usage("pin-source in the URI is no file: URI with an absolute path")
                })?);
            }
            "pin-value" => return Err(pin_value()),
            _ => {
                return Err(usage(
                    "the URI has an attribute after ? that is not supported: supported are \
                     module-path, module-name and pin-source",
                ));
            }
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write(self, &mut text);
        text.len()
    }
}

fn text(value: Vec<u8>) -> Result<String, KeyError> {
    String::from_utf8(value)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| usage("an attribute of the URI is no text in UTF-8"))
}

fn absolute(path: &Path, directory: Option<&Path>) -> Result<PathBuf, KeyError> {
    file::absolute(path, directory).map_err(|_| usage("module-path in the URI is not absolute"))
}

/// Writes the URI. Everything that RFC 3986 does not call unreserved is percent-encoded, so that
/// the text is one word for mount(8) and fstab.
pub(super) fn write(uri: &TokenUri, f: &mut impl Write) -> fmt::Result {
    f.write_str("pkcs11:")?;
    let slot_id = uri.slot_id.map(|number| number.to_string());
    let attributes = [
        ("token", uri.token.as_deref()),
        ("manufacturer", uri.manufacturer.as_deref()),
        ("model", uri.model.as_deref()),
        ("serial", uri.serial.as_deref()),
        ("slot-id", slot_id.as_deref()),
        ("object", uri.object.as_deref()),
    ];
    let mut separator = "";
    for (name, value) in attributes {
        if let Some(value) = value {
            write!(f, "{separator}{name}=")?;
            encode(value.as_bytes(), "", f)?;
            separator = ";";
        }
    }
    if let Some(id) = &uri.id {
        write!(f, "{separator}id=")?;
        for byte in id {
            write!(f, "%{byte:02x}")?;
        }
    }
    separator = "?";
    match &uri.module {
        ModuleRef::Default => {}
        ModuleRef::Name(name) => {
            write!(f, "{separator}module-name=")?;
            encode(name.as_bytes(), "", f)?;
            separator = "&";
        }
        ModuleRef::Path(path) => {
            write!(f, "{separator}module-path=")?;
            encode(path.as_os_str().as_bytes(), "/", f)?;
            separator = "&";
        }
    }
    if let Some(path) = &uri.pin_file {
        let mut source = "file:".to_owned();
        file::write_path(path, &mut source)?;
        write!(f, "{separator}pin-source=")?;
        encode(source.as_bytes(), "/:", f)?;
    }
    Ok(())
}

fn encode(bytes: &[u8], also_plain: &str, f: &mut impl Write) -> fmt::Result {
    for &byte in bytes {
        let plain = char::from(byte);
        if byte.is_ascii_alphanumeric() || "-._~".contains(plain) || also_plain.contains(plain) {
            f.write_char(plain)?;
        } else {
            write!(f, "%{byte:02x}")?;
        }
    }
    Ok(())
}

fn pin_value() -> KeyError {
    usage("the URI contains a PIN, and a URI may hold no secret").with_hint(
        "write the PIN to a file that others cannot read and name that: pin-source=file:/path, or \
         --passphrase-file FILE; change the PIN if the URI was seen by others",
    )
}

fn usage(message: impl Into<String>) -> KeyError {
    KeyError::new(ErrorKind::Usage, message).with_hint(
        "a key on a token is named as pkcs11:token=NAME;object=LABEL, quoted for the shell; its \
         PIN may be in a file: pkcs11:token=NAME;object=LABEL?pin-source=file:/path",
    )
}

#[cfg(test)]
mod tests {
    use crate::keys::error::ErrorKind;
    use crate::keys::uri::KeyUri;
    use std::path::Path;

    #[test]
    fn two_spellings_of_the_same_key_are_equal() {
        let one = KeyUri::parse("pkcs11:token=My%20token;object=k1;id=%01%0a").expect("plain");
        for other in [
            "PKCS11:token=My%20token;object=k1;id=%01%0A",
            "pkcs11:id=%01%0a;object=%6b1;token=%4dy%20token",
            "pkcs11:type=private;token=My%20token;object=k1;id=%01%0a?",
        ] {
            assert_eq!(one, KeyUri::parse(other).expect(other), "{other}");
        }
        assert_eq!(
            one.to_string(),
            "pkcs11:token=My%20token;object=k1;id=%01%0a"
        );
        let at = |text| KeyUri::parse_at(text, Path::new("/etc")).expect(text);
        assert_eq!(
            at("pkcs11:object=k?module-path=lib/m.so&pin-source=file:pin"),
            at("pkcs11:object=k?pin-source=file:///etc//pin&module-path=/etc/./lib/m.so"),
        );
        assert_eq!(
            at("pkcs11:object=k?module-name=SoftHSM2"),
            at("pkcs11:object=k?module-name=softhsm2"),
        );
    }

    #[test]
    fn a_printed_uri_parses_to_the_same_uri_and_is_one_word() {
        for text in [
            "pkcs11:object=k",
            "pkcs11:id=%00%ff",
            "pkcs11:token=;object=a",
            "pkcs11:token=%3b%26%2c%3d%25%0a%22;object=%c3%a9;slot-id=007",
            "pkcs11:object=é;token=a,b'c$d;serial=/;model=x+y;manufacturer=(z)",
            "pkcs11:object=k?module-path=/a%20b%2c%26/%ff.so&pin-source=file:/a%2520b%252c",
            "pkcs11:object=k?module-name=softhsm2&pin-source=file:/etc/pin",
        ] {
            let uri = KeyUri::parse(text).expect(text);
            let printed = uri.to_string();
            assert_eq!(KeyUri::parse(&printed).expect(&printed), uri, "{printed}");
            let harmless = |c: char| c.is_ascii_graphic() && !",'\"$()\\".contains(c);
            assert!(printed.chars().all(harmless), "{printed}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_without_being_repeated() {
        let long = format!("pkcs11:object={}", "é".repeat(1000));
        for text in [
            "pkcs11:",
            "pkcs11:token=SECRET",
            "pkcs11:object=",
            "pkcs11:id=",
            "pkcs11:object=SECRET;object=SECRET",
            "pkcs11:object=SECRET;pin-value=SECRET",
            "pkcs11:object=k?pin-value=SECRET",
            "pkcs11:object=k?pin-source=SECRET",
            "pkcs11:object=k?pin-source=|SECRET",
            "pkcs11:object=k?pin-source=file:SECRET",
            "pkcs11:object=k?pin-source=file://host/SECRET",
            "pkcs11:object=k?module-path=SECRET",
            "pkcs11:object=k?module-name=../SECRET",
            "pkcs11:object=k?module-name=a&module-path=/SECRET",
            "pkcs11:object=k?x-pin=SECRET",
            "pkcs11:object=k;x-pin=SECRET",
            "pkcs11:object=k;library-version=3",
            "pkcs11:object=k;type=cert",
            "pkcs11:object=k;slot-id=SECRET",
            "pkcs11:object=k;slot-id=+1",
            "pkcs11:object=k;SECRET",
            "pkcs11:object=k SECRET",
            "pkcs11:object=%SECRET",
            "pkcs11:object=%ff",
            "pkcs11:object=a%00SECRET",
            "pkcs11:object=k#SECRET",
            &long,
        ] {
            let error = KeyUri::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            let hint = error.hint().expect("a hint");
            assert!(hint.contains("pin-source=file:/"), "{text}: {hint}");
            assert!(!format!("{error} {hint}").contains("SECRET"), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_printed_so_that_it_parses_again(
            text in "(token|object|id|slot-id|x)=([a-z0-9%;=/é ]|%[0-9a-f]{2}){0,12}\
                     [?;]?((object|module-path|module-name|pin-source)=\
                     (file:)?([a-z/%&]|%[0-9a-f]{2}){0,12}){0,1}",
        ) {
            if let Ok(uri) = KeyUri::parse(&format!("pkcs11:{text}")) {
                let printed = uri.to_string();
                proptest::prop_assert_eq!(KeyUri::parse(&printed).ok(), Some(uri));
            }
        }
    }
}
