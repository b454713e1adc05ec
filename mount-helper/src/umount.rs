//! `umount.bilayer`, `umount.fuse.bilayer`: the helpers that umount(8) calls for these types.

fn main() -> std::process::ExitCode {
    bilayer::cli::helper::run(bilayer::cli::helper::Helper::Unmount)
}
