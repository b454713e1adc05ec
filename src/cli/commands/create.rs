//! `bilayer create`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{KeystoreArg, PassphraseArg, passphrase_source};
use crate::cli::output::print;
use crate::control::paths;
use crate::daemon::create::{self, NewVolume};
use crate::daemon::{options, size};
use crate::diagnostics::UserError;

#[derive(Args, Debug)]
pub(in crate::cli) struct CreateArgs {
    /// Directory of the volume: made if missing, empty otherwise
    volume: PathBuf,
    /// Customer key (file:, pkcs11:, openbao:, azure-kv: or exec:, see docs/KEYS.md) that wraps the
    /// customer's half of the keys; without one the platform wraps both
    #[arg(long, value_name = "URI")]
    customer_key: Option<String>,
    /// Largest size of the contents, in bytes or as 10G; what snapshots alone hold does not count
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    size: Option<String>,
    #[command(flatten)]
    keystore: KeystoreArg,
    #[command(flatten)]
    passphrase: PassphraseArg,
}

/// Makes a volume.
///
/// # Errors
/// An argument is wrong, no keystore directory is known, or the volume cannot be made.
pub(in crate::cli) fn run(args: CreateArgs) -> Result<(), UserError> {
    let customer_key = match &args.customer_key {
        Some(uri) => Some(options::key_uri(uri, &paths::working_directory()?)?),
        None => None,
    };
    let size_bytes = size::size_option(args.size.as_deref())?;
    let new = NewVolume {
        path: paths::absolute(&args.volume)?,
        customer_key,
        size_bytes,
        keystore: args.keystore.dir()?,
        passphrase: passphrase_source(&args.passphrase)?,
    };
    let id = create::create(&new)?;
    print(&format!("volume {id} made in {}\n", new.path.display()))
}
