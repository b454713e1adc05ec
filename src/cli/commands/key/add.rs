//! `bilayer key add` and `bilayer key remove`.

use std::path::PathBuf;

use clap::Args;

use super::recovery_paper;
use super::target::{
    ConsentArg, Target, TargetArgs, lasting_uri, new_passphrase, open_key, proven_key,
};
use crate::cli::output::print;
use crate::control::paths;
use crate::diagnostics::{UserError, notice};
use crate::keys::CustomerKeyProvider;
use crate::keys::customer::recovery::{RecoveryKey, Split};
use crate::volume::slot::SlotKind;
use crate::volume::{SlotChange, SlotNumber};

#[derive(Args, Debug)]
pub(in crate::cli) struct AddArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The key to add
    #[arg(
        long,
        value_name = "URI",
        required_unless_present = "recovery",
        conflicts_with = "recovery"
    )]
    customer_key: Option<String>,
    /// Add a recovery code, which is printed once
    #[arg(long)]
    recovery: bool,
    /// Split the recovery code into N shares, of which any M open the volume
    #[arg(
        long,
        value_name = "M/N",
        requires = "recovery",
        conflicts_with = "customer_key"
    )]
    shares: Option<Split>,
    /// File that the recovery code is written to instead; FILE.1, FILE.2, ... for shares
    #[arg(
        long,
        value_name = "FILE",
        requires = "recovery",
        conflicts_with = "customer_key"
    )]
    out: Option<PathBuf>,
    /// A name for people, to tell the slots apart
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// File whose first line is the passphrase of the key to add [default: asked for on the
    /// terminal]
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    consent: ConsentArg,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RemoveArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the slot, as bilayer key list shows it
    slot: u8,
    #[command(flatten)]
    consent: ConsentArg,
}

/// Adds a slot.
///
/// # Errors
/// There is no consent, the key is not available, or the slot cannot be added.
pub(super) fn run(args: &AddArgs) -> Result<(), UserError> {
    let doing = format!("cannot add a key to {}", args.target.path.display());
    let Some(uri) = &args.customer_key else {
        return add_recovery(args, &doing);
    };
    let uri = lasting_uri(uri)?;
    let mut target = Target::open(&args.target, args.consent.uri()?, &doing)?;
    let source = new_passphrase(args.new_passphrase_file.as_ref())?;
    let provider = open_key(&doing, &uri, &source)?;
    let key = proven_key(&doing, &*provider)?;
    let slot = target.change(&SlotChange::Add {
        kind: SlotKind::Customer,
        label: args.label.clone(),
        provider: uri.to_string(),
        key,
    })?;
    let volume = target.path.display().to_string();
    if !provider.can_unwrap() {
        return print(&format!(
            "slot {slot} of {volume} is wrapped to {uri}, whose private half was not there to \
             prove that it opens it\n"
        ));
    }
    prove_or_remove(&mut target, &*provider, slot)?;
    print(&format!("slot {slot} of {volume} opens with {uri}\n"))
}

/// Adds a slot for a new recovery code.
fn add_recovery(args: &AddArgs, doing: &str) -> Result<(), UserError> {
    let failed = |error| UserError::key(doing, &error);
    let mut target = Target::open(&args.target, args.consent.uri()?, doing)?;
    let provider = RecoveryKey::random().map_err(failed)?;
    let texts = provider.to_texts(args.shares).map_err(failed)?;
    let key = proven_key(doing, &provider)?;
    let public_key = key.public_key.clone();
    let split = args.shares.is_some();
    // Before the slot is added: a code that nobody has is worse than none.
    let out = args.out.as_deref().map(paths::absolute).transpose()?;
    if let Some(out) = &out {
        recovery_paper::write_files(out, &texts, split)?;
    }
    let added = target.change(&SlotChange::Add {
        kind: SlotKind::Recovery,
        label: args.label.clone(),
        provider: provider.uri().to_string(),
        key,
    });
    let added = added.and_then(|slot| {
        prove_or_remove(&mut target, &provider, slot)?;
        Ok(slot)
    });
    let slot = added.inspect_err(|_| {
        // A change that failed may be in force all the same.
        if let Some(out) = &out
            && !target.slots().has_public_key(&public_key)
        {
            recovery_paper::remove_files(out, &texts, split);
        }
    })?;
    if args.out.is_none() {
        // A code that nobody has read opens nothing for anybody.
        if let Err(error) = recovery_paper::show(&target.path, &texts, args.shares) {
            target.remove(slot)?;
            return Err(error);
        }
    }
    notice(format_args!(
        "slot {slot} of {} opens with the recovery code, which is asked for where a key is named \
         as recovery:",
        target.path.display()
    ));
    Ok(())
}

/// A slot whose key does not open the volume is removed again.
fn prove_or_remove(
    target: &mut Target,
    provider: &dyn CustomerKeyProvider,
    slot: SlotNumber,
) -> Result<(), UserError> {
    let Err(error) = target.prove_slot(provider, slot) else {
        return Ok(());
    };
    target.remove(slot)?;
    Err(error)
}

/// Removes a slot.
///
/// # Errors
/// There is no consent or no such slot, it is the last one, or it cannot be removed.
pub(super) fn run_remove(args: &RemoveArgs) -> Result<(), UserError> {
    let doing = format!(
        "cannot remove slot {} of {}",
        args.slot,
        args.target.path.display()
    );
    let slot = SlotNumber(args.slot);
    let mut target = Target::open(&args.target, args.consent.uri()?, &doing)?;
    let own = target.opened_by()?.key.slot == slot;
    target.remove(slot)?;
    if own {
        notice(format_args!(
            "this machine opened the volume with the removed key: name another one with \
             bilayer key set"
        ));
    }
    print(&format!(
        "slot {slot} of {} removed\n",
        target.path.display()
    ))
}
