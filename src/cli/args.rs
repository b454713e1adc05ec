//! Arguments that several commands share.

use std::path::{Path, PathBuf};

use clap::Args;

use super::session;
use crate::audit::{self, Destination, Requester};
use crate::control::paths;
use crate::daemon::options;
use crate::diagnostics::UserError;
use crate::keys::{AuditHeads, PassphraseSource, keystore};

#[derive(Args, Debug)]
pub(super) struct KeystoreArg {
    /// Directory of the platform keystore [default: /var/lib/bilayer/platform for root, else the
    /// user's data directory; or $BILAYER_PLATFORM_KEYSTORE]
    #[arg(long, value_name = "DIR")]
    pub(super) platform_keystore: Option<PathBuf>,
    /// File that the audit is added to, or syslog for the system's log [default: audit.log in the
    /// directory of the platform keystore]
    #[arg(long, value_name = "FILE|syslog")]
    pub(super) audit_log: Option<PathBuf>,
}

impl KeystoreArg {
    /// The directory of the platform keystore. Also starts the audit.
    ///
    /// # Errors
    /// The keystore's directory is not known, or `--audit-log` is empty.
    pub(super) fn dir(&self) -> Result<PathBuf, UserError> {
        let dir = keystore_dir(self.platform_keystore.as_deref())?;
        let log = self.audit_log.as_deref();
        let log = log.map(|log| options::audit_log(log, &paths::working_directory()?));
        start_audit(log.transpose()?, &dir);
        Ok(dir)
    }
}

/// Starts the audit: to the chosen destination, else to the directory of the platform keystore.
pub(super) fn start_audit(chosen: Option<Destination>, keystore_dir: &Path) {
    let default = Destination::StateDirectory {
        dir: keystore_dir.to_path_buf(),
        marker: keystore::IDENTITY,
    };
    let destination = chosen.unwrap_or_else(|| default.clone());
    let heads = Box::new(AuditHeads::new(keystore_dir));
    audit::start(destination, default, heads, Requester::this_process());
}

#[derive(Args, Debug)]
pub(super) struct PassphraseArg {
    /// File whose first line is the passphrase of the customer key, or the PIN of its token
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
}

/// Options with the sources of the keys that open a volume that is not mounted.
#[derive(Args, Debug)]
pub(super) struct OpenArgs {
    #[command(flatten)]
    pub(super) keystore: KeystoreArg,
    #[command(flatten)]
    pub(super) passphrase: PassphraseArg,
}

impl OpenArgs {
    /// The keystore and the source of the passphrase.
    ///
    /// # Errors
    /// The keystore's directory is not known, or `--audit-log` is empty.
    pub(super) fn keys(&self) -> Result<session::Keys, UserError> {
        Ok(session::Keys {
            keystore: self.keystore.dir()?,
            passphrase: passphrase_source(&self.passphrase)?,
        })
    }
}

/// The platform keystore: option, environment, default, in this order.
///
/// # Errors
/// No option, variable or home directory names one.
pub(super) fn keystore_dir(option: Option<&Path>) -> Result<PathBuf, UserError> {
    let environment = std::env::var_os(keystore::ENVIRONMENT);
    let dir = keystore::resolve(option, environment.as_deref(), keystore::default_dir())
        .map_err(|error| UserError::key("cannot find the platform keystore", &error))?;
    paths::absolute(&dir)
}

/// The source of a passphrase: the file that an option names, else a prompt on the terminal.
///
/// # Errors
/// The working directory is not known.
pub(super) fn passphrase_source(argument: &PassphraseArg) -> Result<PassphraseSource, UserError> {
    match &argument.passphrase_file {
        Some(path) => Ok(PassphraseSource::File(paths::absolute(path)?)),
        None => Ok(PassphraseSource::Prompt),
    }
}
