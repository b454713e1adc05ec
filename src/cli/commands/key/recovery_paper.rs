//! How a recovery code reaches its holder: on the terminal, with a QR code, or in files. It is
//! shown once and stored nowhere else.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use qrcode::QrCode;
use qrcode::render::unicode;
use zeroize::Zeroizing;

use crate::cli::output::print;
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::keys::customer::recovery::Split;

/// Prints the code, or the shares. On a terminal each comes with a QR code and a word on what it
/// is.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn show(
    volume: &Path,
    texts: &[Zeroizing<String>],
    split: Option<Split>,
) -> Result<(), UserError> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut paper = Zeroizing::new(String::new());
    if is_terminal {
        let volume = volume.display();
        paper.push_str(&match split {
            None => format!(
                "Recovery code of {volume}. It opens the volume in the place of a customer key, "
            ),
            Some(Split { needed, shares }) => format!(
                "Recovery code of {volume} in {shares} shares. Any {needed} of them open it, "
            ),
        });
        paper.push_str(
            "and is shown only now.\nWrite it down, and keep it where no thief finds it.\n",
        );
    }
    for text in texts {
        if is_terminal {
            paper.push('\n');
            if let Some(picture) = qr_code(text) {
                paper.push_str(&picture);
                paper.push('\n');
            }
        }
        paper.push_str(text);
        paper.push('\n');
    }
    print(&paper)
}

/// The code as a picture of half blocks, two modules a character.
fn qr_code(text: &str) -> Option<Zeroizing<String>> {
    let digits = Zeroizing::new(text.replace(' ', ""));
    let code = QrCode::new(digits.as_bytes()).ok()?;
    // Terminals are dark, and readers expect dark on light.
    let picture = code
        .render::<unicode::Dense1x2>()
        .dark_color(unicode::Dense1x2::Light)
        .light_color(unicode::Dense1x2::Dark)
        .build();
    Some(Zeroizing::new(picture))
}

/// Writes the code to a file, or each share to a file of its own, with mode 0600. Nothing is
/// overwritten. Durable on return.
///
/// # Errors
/// A file exists or cannot be written.
pub(super) fn write_files(
    path: &Path,
    texts: &[Zeroizing<String>],
    split: bool,
) -> Result<(), UserError> {
    let original = path;
    for (place, text) in texts.iter().enumerate() {
        let path = place_of(original, place, split);
        write_file(&path, text).map_err(|error| {
            remove_files(original, &texts[..place], split);
            let doing = format!("cannot write the recovery code to {}", path.display());
            match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    UserError::new(ExitCode::InUse, format!("{doing}: the file exists"))
                        .with_hint("codes are never overwritten; choose another name")
                }
                _ => UserError::io(doing, &error),
            }
        })?;
    }
    Ok(())
}

/// Removes files that [`write_files`] has written, of a code that opens nothing.
pub(super) fn remove_files(path: &Path, texts: &[Zeroizing<String>], split: bool) {
    for place in 0..texts.len() {
        let path = place_of(path, place, split);
        if let Err(error) = std::fs::remove_file(&path) {
            notice(format_args!(
                "{} holds a recovery code that opens nothing, and cannot be removed: {error}",
                path.display()
            ));
        }
    }
}

/// The file of a code, or of one of its shares.
fn place_of(path: &Path, place: usize, split: bool) -> PathBuf {
    match split {
        false => path.to_owned(),
        true => numbered(path, place + 1),
    }
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(directory)?.sync_all()
}
