//! `bilayer key rotate`.

use std::path::PathBuf;

use clap::Args;

use super::target::{
    ConsentArg, Target, TargetArgs, lasting_uri, new_passphrase, open_key, proven_key, slot_uri,
};
use crate::cli::output::print;
use crate::diagnostics::UserError;
use crate::keys::{CustomerKeyProvider, KeyUri};
use crate::volume::slot::{Slot, SlotKey};
use crate::volume::{SlotChange, SlotNumber};

#[derive(Args, Debug)]
pub(in crate::cli) struct RotateArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Another key, instead of the newest version of the slot's key
    #[arg(long, value_name = "URI")]
    to: Option<String>,
    /// Number of the slot [default: the one whose key opens the volume]
    #[arg(long, value_name = "SLOT")]
    slot: Option<u8>,
    /// File whose first line is the passphrase of the other key [default: asked for on the
    /// terminal]
    #[arg(long, value_name = "FILE", requires = "to")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    consent: ConsentArg,
}

/// Rotates the key of a slot.
///
/// # Errors
/// There is no consent, the new key is not available or does not open the volume, or something
/// cannot be written. The old key stays then.
pub(super) fn run(args: &RotateArgs) -> Result<(), UserError> {
    let doing = format!("cannot rotate the key of {}", args.target.path.display());
    let to = args.to.as_deref().map(lasting_uri).transpose()?;
    let mut target = Target::open(&args.target, args.consent.uri()?, &doing)?;
    let opened_by = target.opened_by()?;
    let number = args.slot.map_or(opened_by.key.slot, SlotNumber);
    let slots = target.slots();
    let slot = slots.get(number).ok_or_else(|| {
        UserError::usage(format!("{doing}: there is no slot {number}"))
            .with_hint("look at the slots with bilayer key list")
    })?;
    let uri = match &to {
        Some(uri) => uri.clone(),
        None => slot_uri(&doing, &slots, number, &opened_by)?,
    };
    let source = match &to {
        Some(_) => new_passphrase(args.new_passphrase_file.as_ref())?,
        None => target.passphrase.clone(),
    };
    let provider = open_key(&doing, &uri, &source)?;
    if !provider.can_unwrap() {
        let message = format!("{doing}: {uri} is only the public half of a key");
        return Err(UserError::usage(message).with_hint(
            "name the private key, which has to open the volume before the old one goes",
        ));
    }
    let key = proven_key(&doing, &*provider)?;
    let is_former = slot
        .keys
        .iter()
        .skip(1)
        .any(|former| former.public_key == key.public_key);
    if is_former && to.is_none() {
        return Err(interrupted(&doing, slot, &uri));
    }
    let outcome = rotate_slot(&mut target, &doing, slot, key, &*provider)?;
    // The remembered key opened the volume, and is not the slot's any more.
    let is_remembered = args.consent.uri()?.is_none() && number == opened_by.key.slot;
    if is_remembered && uri != opened_by.uri {
        target.change(&SlotChange::Remember {
            provider: uri.to_string(),
        })?;
    }
    print(&format!(
        "slot {number} of {}: {outcome}\n",
        target.path.display()
    ))
}

/// The error for a rotation to another key that was interrupted: which of the two is wanted is not
/// known.
fn interrupted(doing: &str, slot: &Slot, former: &KeyUri) -> UserError {
    let message = format!(
        "{doing}: a rotation of slot {} to another key was interrupted",
        slot.number
    );
    UserError::usage(message).with_hint(format!(
        "finish it: --to {}; or give it up: --to {former}",
        slot.provider.escape_debug()
    ))
}

/// Rotates a slot to the current version of a key. Returns what happened, for people.
fn rotate_slot(
    target: &mut Target,
    doing: &str,
    slot: &Slot,
    key: SlotKey,
    provider: &dyn CustomerKeyProvider,
) -> Result<String, UserError> {
    let number = slot.number;
    let is_known = slot
        .keys
        .iter()
        .any(|known| known.public_key == key.public_key);
    if is_known && slot.keys.len() == 1 {
        target.prove_slot(provider, number)?;
        return Ok("the newest version wraps it already".to_owned());
    }
    let version = key
        .to_version()
        .map_err(|error| UserError::key(doing, &error))?;
    let new = version.key.fingerprint().to_owned();
    if !is_known {
        target.change(&SlotChange::BeginRotation {
            slot: number,
            provider: provider.uri().to_string(),
            key,
        })?;
    }
    match target.prove_slot(provider, number) {
        Ok(proven) if proven.version.key.fingerprint() == new => {}
        Ok(_) => return Err(not_proven(doing)),
        Err(error) => return Err(error),
    }
    target.change(&SlotChange::FinishRotation {
        slot: number,
        provider: provider.uri().to_string(),
        keep: new.clone(),
    })?;
    let name = version
        .name
        .map_or(String::new(), |name| format!(" {name}"));
    Ok(format!("rotated to version{name} ({new})"))
}

fn not_proven(doing: &str) -> UserError {
    UserError::new(
        crate::diagnostics::ExitCode::Key,
        format!("{doing}: the new key has not opened the volume; the old one stays beside it"),
    )
    .with_hint("run bilayer key rotate again, which finishes or repeats the rotation")
}
