//! `bilayer keygen`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::args::PassphraseArg;
use crate::cli::output::print;
use crate::control::paths;
use crate::daemon::size;
use crate::diagnostics::{ExitCode, UserError};
use crate::keys::customer::file;
use crate::keys::{KeyUri, PassphraseSource, WrappingKey};

#[derive(Args, Debug)]
pub(in crate::cli) struct KeygenArgs {
    /// File to make; an existing file is never overwritten
    file: PathBuf,
    /// Size of the key: 2048, 3072 or 4096
    #[arg(
        long,
        default_value_t = 3072,
        allow_negative_numbers = true,
        value_parser = size::parse_count
    )]
    bits: usize,
    #[command(flatten)]
    passphrase: PassphraseArg,
}

/// Creates a customer key and prints its URI, size and version.
///
/// # Errors
/// The file exists or cannot be written, the size is not supported, or the passphrase cannot be
/// read.
pub(in crate::cli) fn run(args: &KeygenArgs) -> Result<(), UserError> {
    let passphrase = match &args.passphrase.passphrase_file {
        Some(path) => PassphraseSource::File(paths::absolute(path)?),
        None => PassphraseSource::None,
    };
    let path = paths::absolute(&args.file)?;
    let key = keygen(&path, args.bits, &passphrase)?;
    let uri = KeyUri::from_file(&path)
        .map_err(|error| UserError::key("cannot name the new key", &error))?;
    print(&format!(
        "{uri} ({} bits, version {})\n",
        key.bits(),
        key.fingerprint()
    ))
}

/// Creates a customer key in a new file.
fn keygen(
    path: &Path,
    bits: usize,
    passphrase: &PassphraseSource,
) -> Result<WrappingKey, UserError> {
    let doing = || format!("cannot make the key {}", path.display());
    let passphrase = match passphrase {
        PassphraseSource::None => None,
        source => Some(
            source
                .obtain(path)
                .map_err(|error| UserError::key(doing(), &error))?,
        ),
    };
    if path.symlink_metadata().is_ok() {
        return Err(
            UserError::new(ExitCode::InUse, format!("{}: the file exists", doing()))
                .with_hint("keys are never overwritten; choose another name"),
        );
    }
    file::generate(path, bits, passphrase.as_ref()).map_err(|error| UserError::key(doing(), &error))
}
