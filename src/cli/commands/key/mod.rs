//! `bilayer key`: the customer keys of volumes.
//!
//! A volume has up to eight slots, each with a key that opens it ([`crate::volume::slot`]). Every
//! change needs the consent of somebody who can use one of them: the command itself unwraps the
//! volume's keys with it, whether the volume is mounted or not ([`target`]).

mod add;
mod list;
mod passwd;
mod recovery_paper;
mod rotate;
mod target;
mod test;

use clap::Subcommand;

use crate::diagnostics::UserError;

/// `bilayer key …`
#[derive(Subcommand, Debug)]
pub(in crate::cli) enum KeyCommand {
    /// List the slots of a volume
    #[command(
        visible_alias = "ls",
        after_help = "No key is used. What is shown of a volume that is not mounted is not \
        verified.\n\nExample:\n  bilayer key list /srv/vault"
    )]
    List(list::ListArgs),
    /// Add a key that opens the volume too
    #[command(
        after_help = "Examples:\n  bilayer key add /srv/vault --customer-key file:/media/spare.pem \
        --label spare\n  bilayer key add /srv/vault --recovery --shares 2/3"
    )]
    Add(add::AddArgs),
    /// Remove a slot: its key no longer opens the volume
    #[command(
        after_help = "Whoever kept a copy of the volume's directory, or of volume.json, still \
        opens it with the removed key.\n\nExample:\n  bilayer key remove /srv/vault 2"
    )]
    Remove(add::RemoveArgs),
    /// Wrap the volume's keys under the newest version of a slot's key, or under another key
    #[command(
        after_help = "Only the wraps of the data keys are replaced; no data is written anew. \
        The old key stays until the new\none has opened the volume.\n\nExamples:\n  \
        bilayer key rotate /srv/vault\n  bilayer key rotate /srv/vault --to file:/media/new.pem"
    )]
    Rotate(rotate::RotateArgs),
    /// Prove that a key opens the volume, without changing anything
    #[command(
        after_help = "Unwraps every data key, and compares it with what the volume was sealed \
        under.\n\nExamples:\n  bilayer key test /srv/vault\n  bilayer key test /srv/vault \
        --customer-key file:/media/spare.pem"
    )]
    Test(test::TestArgs),
    /// Choose the key by which this machine opens a volume from now on
    #[command(
        after_help = "The key has to open the volume. It is remembered in the platform \
        keystore.\n\nExample:\n  bilayer key set /srv/vault file:/etc/keys/vault.pem"
    )]
    Set(test::SetArgs),
    /// Change the passphrase of a private key's file, or encrypt one that had none
    #[command(
        after_help = "The key itself stays the same, so volumes are not affected, and copies \
        of the file keep the old\npassphrase.\n\nExample:\n  bilayer key passwd /media/key.pem"
    )]
    Passwd(passwd::PasswdArgs),
}

/// Runs one of the commands.
///
/// # Errors
/// A key is not available or refused, a rule would be broken, or something cannot be written.
pub(in crate::cli) fn run(command: KeyCommand) -> Result<(), UserError> {
    match command {
        KeyCommand::List(args) => list::run(&args),
        KeyCommand::Add(args) => add::run(&args),
        KeyCommand::Remove(args) => add::run_remove(&args),
        KeyCommand::Rotate(args) => rotate::run(&args),
        KeyCommand::Test(args) => test::run(&args),
        KeyCommand::Set(args) => test::run_set(&args),
        KeyCommand::Passwd(args) => passwd::run(&args),
    }
}
