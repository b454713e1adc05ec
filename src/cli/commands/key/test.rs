//! `bilayer key test` and `bilayer key set`.

use clap::Args;

use super::target::{Target, TargetArgs, lasting_uri, open_key, slot_uri, uri_option};
use crate::cli::output::{print, print_json};
use crate::diagnostics::UserError;
use crate::volume::{SlotChange, SlotNumber};

#[derive(Args, Debug)]
pub(in crate::cli) struct TestArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the slot [default: the one of the key that is named, or remembered]
    slot: Option<u8>,
    /// The key to test [default: the key by which this machine opens the volume]
    #[arg(long, value_name = "URI")]
    customer_key: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct SetArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The key
    uri: String,
}

/// The result of a test as JSON.
#[derive(serde::Serialize)]
struct Tested {
    volume: String,
    slot: u8,
    uri: String,
    version: Option<String>,
    fingerprint: String,
    algorithm: &'static str,
}

/// Proves that a key opens the volume.
///
/// # Errors
/// It does not, or it is not available.
pub(super) fn run(args: &TestArgs) -> Result<(), UserError> {
    let doing = format!("cannot test a key of {}", args.target.path.display());
    let named = args.customer_key.as_deref().map(uri_option).transpose()?;
    let target = Target::open(&args.target, named, &doing)?;
    let opened_by = target.opened_by()?;
    let (key, uri) = match args.slot.map(SlotNumber) {
        Some(slot) if slot != opened_by.key.slot => {
            let uri = slot_uri(&doing, &target.slots(), slot, &opened_by)?;
            let provider = open_key(&doing, &uri, &target.passphrase)?;
            (target.prove_slot(&*provider, slot)?, uri)
        }
        _ => (opened_by.key, opened_by.uri),
    };
    let tested = Tested {
        volume: target.path.display().to_string(),
        slot: key.slot.0,
        uri: uri.to_string(),
        version: key.version.name.clone(),
        fingerprint: key.version.key.fingerprint().to_owned(),
        algorithm: key.version.key.algorithm().name(),
    };
    if args.json {
        return print_json(&tested);
    }
    print(&format!(
        "slot {} opens {} with {}\n",
        tested.slot, tested.volume, tested.uri
    ))
}

/// Remembers a key that opens the volume.
///
/// # Errors
/// It does not open the volume, or the keystore cannot be written.
pub(super) fn run_set(args: &SetArgs) -> Result<(), UserError> {
    let doing = format!("cannot set the key of {}", args.target.path.display());
    let uri = lasting_uri(&args.uri)?;
    let mut target = Target::open(&args.target, Some(uri.clone()), &doing)?;
    target.change(&SlotChange::Remember {
        provider: uri.to_string(),
    })?;
    print(&format!(
        "this machine opens {} with {uri} from now on\n",
        target.path.display()
    ))
}
