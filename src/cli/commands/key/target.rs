//! The volume whose slots a command changes: a mounted one, through its daemon, or one that is not
//! mounted, which the command opens.
//!
//! Either way this process has unwrapped the volume's keys with a customer key. That is the consent
//! to a change, and what a new wrap is compared with.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::audit;
use crate::cli::args::OpenArgs;
use crate::cli::session::unexpected_outcome;
use crate::control::client::ControlClient;
use crate::control::locate::{Holder, Located, find};
use crate::control::paths;
use crate::control::request::Operation;
use crate::control::response::{Discard, Outcome};
use crate::daemon::mount::open_with_retry;
use crate::daemon::options;
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::keys::{CustomerKeyProvider, KeyUri, PassphraseSource, customer};
use crate::store::directory::DirectoryStore;
use crate::volume::slot::{SlotKey, SlotKind};
use crate::volume::{
    self, OpenOptions, OpenedBy, SlotChange, SlotNumber, Slots, SlottedKey, Unlocked, Volume,
};

/// How often a change is asked for while others change the slots, too.
const ATTEMPTS: u32 = 8;

/// The volume, and the key that opens it.
#[derive(Args, Debug)]
pub(in crate::cli) struct TargetArgs {
    /// Directory of the volume, or where it is mounted
    #[arg(value_name = "VOLUME|DIR")]
    pub(super) path: PathBuf,
    #[command(flatten)]
    pub(super) open: OpenArgs,
}

/// The key that consents to a change.
#[derive(Args, Debug)]
pub(in crate::cli) struct ConsentArg {
    /// Customer key of a slot that consents to the change [default: the key by which this machine
    /// opens the volume]
    #[arg(long, value_name = "URI")]
    unlock_with: Option<String>,
}

impl ConsentArg {
    /// The URI of the key.
    ///
    /// # Errors
    /// It is no URI of a key.
    pub(super) fn uri(&self) -> Result<Option<KeyUri>, UserError> {
        self.unlock_with.as_deref().map(uri_option).transpose()
    }
}

/// A URI that was given on the command line.
///
/// # Errors
/// It is no URI of a key.
pub(super) fn uri_option(text: &str) -> Result<KeyUri, UserError> {
    options::key_uri(text, &paths::working_directory()?)
}

/// The URI of a slot's key, for a command that was given none: the one that opened the volume, or a
/// recovery code. Any other URI in a superblock was chosen by the holder of that slot. It might
/// name a program, a module or a host that this user never agreed to use.
///
/// # Errors
/// The slot has another URI, or there is no such slot.
pub(super) fn slot_uri(
    doing: &str,
    slots: &Slots,
    number: SlotNumber,
    opened_by: &OpenedBy,
) -> Result<KeyUri, UserError> {
    let slot = slots.get(number).ok_or_else(|| {
        UserError::usage(format!("{doing}: there is no slot {number}"))
            .with_hint("look at the slots with bilayer key list")
    })?;
    if number == opened_by.key.slot {
        return Ok(opened_by.uri.clone());
    }
    if slot.kind == SlotKind::Recovery {
        return Ok(KeyUri::recovery());
    }
    let message = format!("{doing}: the key of slot {number} was not named");
    Err(UserError::usage(message).with_hint(format!(
        "name it, if you trust it: the slot has {}",
        slot.provider.escape_debug()
    )))
}

/// A URI of a key that is to be used again and again, which a recovery code is not.
///
/// # Errors
/// It is no URI of a key, or it is a recovery code.
pub(super) fn lasting_uri(text: &str) -> Result<KeyUri, UserError> {
    let uri = uri_option(text)?;
    if uri == KeyUri::recovery() {
        let message = "a recovery code is for one time, and cannot be the key of a volume";
        return Err(UserError::usage(message)
            .with_hint("make a new code: bilayer key add VOLUME --recovery"));
    }
    Ok(uri)
}

/// Opens a key, for a message that begins with `doing`.
///
/// # Errors
/// The key is not available.
pub(super) fn open_key(
    doing: &str,
    uri: &KeyUri,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, UserError> {
    customer::open(uri, passphrase).map_err(|error| UserError::key(doing, &error))
}

/// The source of the passphrase of a new key.
///
/// # Errors
/// The working directory is not known.
pub(super) fn new_passphrase(file: Option<&PathBuf>) -> Result<PassphraseSource, UserError> {
    match file {
        Some(path) => Ok(PassphraseSource::File(paths::absolute(path)?)),
        None => Ok(PassphraseSource::Prompt),
    }
}

/// The current version of a key, which has opened what was wrapped to it. Of a public half that is
/// not known.
///
/// # Errors
/// The key is not available, or does not open what was wrapped to it.
pub(super) fn proven_key(
    doing: &str,
    provider: &dyn CustomerKeyProvider,
) -> Result<SlotKey, UserError> {
    let failed = |error| UserError::key(doing, &error);
    let version = provider.current().map_err(failed)?;
    if provider.can_unwrap() {
        version.prove(provider).map_err(failed)?;
    } else {
        notice(format_args!(
            "this is only the public half of the key: that it opens the volume is not proven"
        ));
    }
    Ok(SlotKey::new(&version, provider.can_unwrap()))
}

/// A volume whose keys this process has unwrapped.
pub(super) struct Target {
    doing: String,
    /// The volume's directory, for people.
    pub(super) path: PathBuf,
    /// Where the passphrase of the consenting key comes from.
    pub(super) passphrase: PassphraseSource,
    backend: Backend,
}

enum Backend {
    Daemon(Box<Mounted>),
    Own(Box<Volume>),
}

/// A mounted volume, and what this process has unwrapped. The daemon is asked by a connection for
/// each change: it does not wait while somebody types a code, or a token is found.
struct Mounted {
    path: PathBuf,
    store: DirectoryStore,
    unlocked: Unlocked,
}

impl Target {
    /// Unwraps the keys of the volume, with the named customer key or the remembered one. `doing`
    /// is the beginning of error messages.
    ///
    /// # Errors
    /// There is no such volume, the key does not open it, or the process that uses it cannot be
    /// asked.
    pub(super) fn open(
        args: &TargetArgs,
        customer_key: Option<KeyUri>,
        doing: &str,
    ) -> Result<Self, UserError> {
        let keys = args.open.keys()?;
        let mut located = find(&args.path)?;
        audit::set_volume(&located.path);
        let store = DirectoryStore::open(&located.access_path()?)
            .map_err(|error| UserError::io(doing, &error))?;
        let options = OpenOptions {
            customer_key,
            keystore: keys.keystore,
            path: Some(located.path.clone()),
            named: located.named.clone(),
            passphrase: keys.passphrase.clone(),
            ..OpenOptions::default()
        };
        let failed = |error| UserError::volume(doing, &error);
        let holder = std::mem::replace(&mut located.holder, Holder::Nobody);
        let backend = match holder {
            Holder::Daemon { .. } => Backend::Daemon(Box::new(Mounted {
                unlocked: volume::unlock(&store, &options).map_err(failed)?,
                path: args.path.clone(),
                store,
            })),
            Holder::Mount(_) => return Err(daemon_is_not_ours(&located.path, doing)),
            Holder::Unknown(error) => return Err(error),
            Holder::Nobody => Backend::Own(Box::new(open_here(&located, store, &options, doing)?)),
        };
        let this = Self {
            doing: doing.to_owned(),
            path: located.path,
            passphrase: keys.passphrase,
            backend,
        };
        match this.slots().is_empty() {
            true => Err(platform_managed(doing)),
            false => Ok(this),
        }
    }

    /// The slots.
    pub(super) fn slots(&self) -> Slots {
        match &self.backend {
            Backend::Daemon(mounted) => mounted.unlocked.header.slots().clone(),
            Backend::Own(volume) => volume.header().slots().clone(),
        }
    }

    /// The key that opened the volume.
    ///
    /// # Errors
    /// The volume is platform-managed.
    pub(super) fn opened_by(&self) -> Result<OpenedBy, UserError> {
        let opened_by = match &self.backend {
            Backend::Daemon(mounted) => mounted.unlocked.opened_by.clone(),
            Backend::Own(volume) => volume.opened_by.clone(),
        };
        opened_by.ok_or_else(|| platform_managed(&self.doing))
    }

    /// Changes the slots, and returns the number of the changed one.
    ///
    /// # Errors
    /// The change is refused, or cannot be written.
    pub(super) fn change(&mut self, change: &SlotChange) -> Result<SlotNumber, UserError> {
        let failed = |error| UserError::volume(&self.doing, &error);
        match &mut self.backend {
            Backend::Own(volume) => {
                let consent = volume.consent(change).map_err(failed)?;
                volume.change_slots(change, &consent).map_err(failed)
            }
            Backend::Daemon(mounted) => {
                let Mounted {
                    path,
                    store,
                    unlocked,
                } = &mut **mounted;
                let mut attempts = 0;
                loop {
                    let mut daemon = connect(path, &self.doing)?;
                    let operation = Operation::ChangeSlots {
                        change: change.clone(),
                        consent: unlocked.consent(change).map_err(failed)?,
                    };
                    let outcome = daemon.perform(&operation, None, &mut Discard);
                    let before = unlocked.header.header_sequence();
                    unlocked.refresh(store).map_err(failed)?;
                    attempts += 1;
                    match outcome {
                        Ok(Outcome::Slot(number)) => return Ok(SlotNumber(number)),
                        Ok(other) => return Err(unexpected_outcome(&operation, &other)),
                        // Another command was faster; the consent is for the slots as they were.
                        Err(error)
                            if error.code == ExitCode::InUse
                                && attempts < ATTEMPTS
                                && unlocked.header.header_sequence() > before => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// The change is refused, or cannot be written.
    pub(super) fn remove(&mut self, slot: SlotNumber) -> Result<SlotNumber, UserError> {
        let opened_by = self.opened_by()?.key.slot;
        self.change(&SlotChange::Remove { slot, opened_by })
    }

    /// Proves that a key opens every key set by a slot, as the superblock has it now.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn prove_slot(
        &self,
        provider: &dyn CustomerKeyProvider,
        slot: SlotNumber,
    ) -> Result<SlottedKey, UserError> {
        let proven = match &self.backend {
            Backend::Daemon(mounted) => mounted.unlocked.prove_slot(provider, slot),
            Backend::Own(volume) => volume.prove_slot(provider, slot),
        };
        proven.map_err(|error| UserError::volume(&self.doing, &error))
    }
}

fn open_here(
    located: &Located,
    store: DirectoryStore,
    options: &OpenOptions,
    doing: &str,
) -> Result<Volume, UserError> {
    open_with_retry(
        located.directory.as_ref(),
        &std::sync::Arc::new(store),
        options,
    )
    .map_err(|error| UserError::volume(doing, &error))
}

/// Finds the daemon of a volume that was mounted a moment ago.
fn connect(path: &Path, doing: &str) -> Result<ControlClient, UserError> {
    match find(path)?.holder {
        Holder::Daemon { control, .. } => Ok(control),
        Holder::Unknown(error) => Err(error),
        Holder::Mount(_) => Err(daemon_is_not_ours(path, doing)),
        Holder::Nobody => Err(UserError::new(
            ExitCode::InUse,
            format!("{doing}: the volume was unmounted meanwhile"),
        )
        .with_hint("run the command again")),
    }
}

fn daemon_is_not_ours(path: &Path, doing: &str) -> UserError {
    UserError::new(
        ExitCode::System,
        format!(
            "{doing}: the daemon that has {} mounted does not answer this user",
            path.display()
        ),
    )
    .with_hint("run this as root, or as the user who mounted it")
}

fn platform_managed(doing: &str) -> UserError {
    UserError::usage(format!(
        "{doing}: the volume is platform-managed: it has no slots for customer keys"
    ))
    .with_hint("copy the files to a volume made with bilayer create --customer-key URI")
}
