//! `mount.bilayer`, `mount.fuse.bilayer`: the helpers that mount(8) calls for these types.

fn main() -> std::process::ExitCode {
    bilayer::cli::helper::run(bilayer::cli::helper::Helper::Mount)
}
