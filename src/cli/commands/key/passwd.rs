//! `bilayer key passwd`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::args::{PassphraseArg, passphrase_source};
use crate::control::paths;
use crate::diagnostics::UserError;
use crate::keys::PassphraseSource;
use crate::keys::customer::file;

/// Arguments of `key passwd`.
#[derive(Args, Debug)]
pub(in crate::cli) struct PasswdArgs {
    /// PEM file with the private key
    file: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseArg,
    /// File whose first line is the new passphrase [default: asked for on the terminal]
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

/// Replaces the file by the same key under the new passphrase.
///
/// # Errors
/// A key or a passphrase is not available, or the file cannot be replaced.
pub(super) fn run(args: &PasswdArgs) -> Result<(), UserError> {
    let path = paths::absolute(&args.file)?;
    let old = passphrase_source(&args.passphrase)?;
    let new = match &args.new_passphrase_file {
        Some(file) => PassphraseSource::File(paths::absolute(file)?),
        None => PassphraseSource::Prompt,
    };
    file::change_passphrase(&path, &old, &new).map_err(|error| UserError::key(doing(&path), &error))
}

fn doing(path: &Path) -> String {
    format!("cannot change the passphrase of {}", path.display())
}
