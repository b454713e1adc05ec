//! `exec:` URIs: `exec:/path/to/program?key=NAME&version=NAME`.
//!
//! The program gets `key` and `version` in its requests. There are no arguments.

use std::fmt;
use std::path::{Path, PathBuf};

use super::query::{self, Query};
use super::{KeyError, file, usage};

/// A program, and the key that it is asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ProgramKey {
    /// The path of the program; absolute.
    pub(crate) program: PathBuf,
    /// The name of the key, for a program that serves several.
    pub(crate) key: Option<String>,
    /// The version that new wraps are made to, in place of the newest.
    pub(crate) version: Option<String>,
}

const NAMES: &[&str] = &["key", "version"];

/// Parses what follows `exec:`.
pub(super) fn parse(rest: &str) -> Result<ProgramKey, KeyError> {
    let (path, mut query) = Query::split(rest, NAMES)?;
    let bytes = file::percent_decode(path)
        .ok_or_else(|| usage("% in the URI must be followed by two hexadecimal digits"))?;
    let program = file::path_of(&bytes)?;
    if path.starts_with("//") || !program.is_absolute() || program.file_name().is_none() {
        return Err(usage(
            "an exec URI has the absolute path of a program: exec:/usr/local/libexec/key",
        ));
    }
    Ok(ProgramKey {
        program: file::absolute(Path::new(&program), None)?,
        key: query.take("key"),
        version: query.take("version"),
    })
}

/// Writes the URI.
pub(super) fn write(uri: &ProgramKey, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("exec:")?;
    file::write_path(&uri.program, f)?;
    query::write(
        &[
            ("key", uri.key.as_deref()),
            ("version", uri.version.as_deref()),
        ],
        f,
    )
}
