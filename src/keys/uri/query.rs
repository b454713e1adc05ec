//! The query of a URI: `?name=value&name=value` (RFC 3986 section 3.4), with percent-encoding.

use std::fmt::{self, Write};

use super::file::percent_decode;
use super::{KeyError, usage};

/// Length limit of a value, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// The names and values of a query, in the order of the names that are permitted.
#[derive(Debug)]
pub(super) struct Query {
    names: &'static [&'static str],
    values: Vec<Option<String>>,
}

impl Query {
    /// Splits a URI at its query, which may have these names, each once.
    pub(super) fn split<'a>(
        text: &'a str,
        names: &'static [&'static str],
    ) -> Result<(&'a str, Self), KeyError> {
        if text.contains('#') {
            return Err(usage("the URI has a fragment (write # as %23)"));
        }
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        let mut values = vec![None; names.len()];
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // What the name is, or whether it is a secret, is not known here.
            let at = names.iter().position(|known| *known == name);
            let at = at.ok_or_else(|| {
                usage(format!(
                    "the query of the URI may have: {}",
                    names.join(", ")
                ))
            })?;
            if values[at].is_some() {
                return Err(usage(format!("the URI has {name} twice")));
            }
            values[at] = Some(parse_value(name, value)?);
        }
        Ok((path, Self { names, values }))
    }

    /// Takes the value of a name out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.names.iter().position(|known| *known == name)?;
        self.values[at].take()
    }
}

fn parse_value(name: &str, value: &str) -> Result<String, KeyError> {
    let bytes = percent_decode(value).and_then(|bytes| String::from_utf8(bytes).ok());
    let is_good = |text: &String| {
        !text.is_empty() && text.len() <= MAX_VALUE_BYTES && !text.contains(char::is_control)
    };
    bytes.filter(is_good).ok_or_else(|| {
        usage(format!(
            "the value of {name} in the URI is empty, too long or no text"
        ))
    })
}

/// Writes the names that have a value.
pub(super) fn write(
    pairs: &[(&'static str, Option<&str>)],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let mut mark = '?';
    for (name, value) in pairs {
        if let Some(value) = value {
            write!(f, "{mark}{name}=")?;
            write_encoded(value, f)?;
            mark = '&';
        }
    }
    Ok(())
}

/// Writes text with percent-encoding where it is needed, also within the options of a mount.
pub(super) fn write_encoded(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for character in text.chars() {
        let is_plain = character.is_ascii_alphanumeric() || "/:.-_~@".contains(character);
        if is_plain {
            f.write_char(character)?;
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                write!(f, "%{byte:02x}")?;
            }
        }
    }
    Ok(())
}
