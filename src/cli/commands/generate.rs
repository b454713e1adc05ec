//! Man pages and completions, from the parser that reads the command line.

use std::ffi::OsStr;
use std::fs::create_dir_all;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate_to};

use crate::diagnostics::UserError;

const PROGRAM: &str = "bilayer";

/// Shells, each with the directory below `/usr/local/share` in which it looks for completions.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

/// Writes man pages and completions below a directory, such as `/usr/local/share`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn generate(command: Command, dir: &Path) -> Result<(), UserError> {
    write_all(command, dir)
        .map_err(|error| UserError::io(format_args!("cannot write to {}", dir.display()), &error))
}

/// Creates the files in a private directory and renames them into place one by one, so that an
/// existing link is replaced and its target is not written.
fn write_all(mut command: Command, dir: &Path) -> io::Result<()> {
    create_dir_all(dir)?;
    let aside = tempfile::Builder::new()
        .prefix(".bilayer-generate-")
        .tempdir_in(dir)?;
    for (shell, subdirectory) in COMPLETIONS {
        let made = generate_to(shell, &mut command, PROGRAM, aside.path())?;
        let name = match shell {
            // bash looks for a file with the name of the program.
            Shell::Bash => PROGRAM.as_ref(),
            _ => made.file_name().unwrap_or_default(),
        };
        move_to(&dir.join(subdirectory), &made, name)?;
    }
    clap_mangen::generate_to(command, aside.path())?;
    for page in std::fs::read_dir(aside.path())? {
        let page = page?;
        move_to(&dir.join("man/man1"), &page.path(), &page.file_name())?;
    }
    aside.close()
}

fn move_to(dir: &Path, file: &Path, name: &OsStr) -> io::Result<()> {
    create_dir_all(dir)?;
    std::fs::rename(file, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn pages_and_completions_know_every_verb() {
        let dir = tempfile::tempdir().unwrap();
        generate(crate::cli::Cli::command(), dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        for name in [
            "bash-completion/completions/bilayer",
            "zsh/site-functions/_bilayer",
            "fish/vendor_completions.d/bilayer.fish",
        ] {
            let text = read(name);
            assert!(
                text.contains("snapshot") && text.contains("keep-hourly"),
                "{name}"
            );
        }
        // Again, over the existing files, one of which is now a link to another file.
        let (page, prize) = (
            dir.path().join("man/man1/bilayer.1"),
            dir.path().join("prize"),
        );
        std::fs::write(&prize, "kept").unwrap();
        std::fs::remove_file(&page).unwrap();
        std::os::unix::fs::symlink(&prize, &page).unwrap();
        generate(crate::cli::Cli::command(), dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&prize).unwrap(), "kept");
        assert!(std::fs::symlink_metadata(&page).unwrap().is_file());
        let page = read("man/man1/bilayer-snapshot-prune.1");
        assert!(
            page.contains("Example") && page.contains("hourly"),
            "{page}"
        );
        assert!(read("man/man1/bilayer.1").contains("Exit codes"));
        let none = std::path::Path::new("/proc/none");
        assert!(generate(crate::cli::Cli::command(), none).is_err());
    }
}
