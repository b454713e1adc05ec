//! Man pages and completions, from the parser that reads the command line.

use std::fs::create_dir_all;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate_to};

use super::error::CliError;

const PROGRAM: &str = "bilayer";

/// Shells, each with the place that it looks for completions in below `/usr/local/share`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

/// Writes all of them below a directory, such as `/usr/local/share`.
pub(super) fn generate(command: Command, dir: &Path) -> Result<(), CliError> {
    write_all(command, dir)
        .map_err(|error| CliError::io(format_args!("cannot write to {}", dir.display()), &error))
}

fn write_all(mut command: Command, dir: &Path) -> io::Result<()> {
    for (shell, place) in COMPLETIONS {
        let place = dir.join(place);
        create_dir_all(&place)?;
        let file = generate_to(shell, &mut command, PROGRAM, &place)?;
        if shell == Shell::Bash {
            // Where bash looks for it by the name of the program.
            std::fs::rename(file, place.join(PROGRAM))?;
        }
    }
    let pages = dir.join("man/man1");
    create_dir_all(&pages)?;
    clap_mangen::generate_to(command, pages)
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
