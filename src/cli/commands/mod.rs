//! One module for each command. None of them uses another.

pub(super) mod audit;
pub(super) mod check;
pub(super) mod create;
pub(super) mod generate;
pub(super) mod image;
pub(super) mod key;
pub(super) mod keygen;
pub(super) mod keystore;
pub(super) mod mount;
pub(super) mod salvage;
pub(super) mod snapshot;
pub(super) mod status;
pub(super) mod unmount;
