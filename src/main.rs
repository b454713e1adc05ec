//! The `bilayer` program; everything is in the library.

fn main() -> std::process::ExitCode {
    bilayer::cli::run()
}
