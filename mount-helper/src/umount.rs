//! `umount.bilayer`, `umount.fuse.bilayer`: what umount(8) calls for these types.

fn main() -> std::process::ExitCode {
    bilayer::cli::helper::run(bilayer::cli::helper::Helper::Unmount)
}
