//! bilayer: a FUSE filesystem that encrypts everything it stores in two independent layers.
//!
//! `docs/ARCHITECTURE.md` has the map of the modules. A module imports only modules below it:
//!
//! ```text
//! cli ─► daemon ─► fuse ─► fs ─► {meta, object} ─► sealed ─► {layers, store}
//!            volume, keys beside; image above them
//! ```

pub mod audit;
pub mod check;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod diagnostics;
pub mod errno;
pub mod fs;
pub mod fuse;
pub mod ids;
pub mod image;
pub mod keys;
pub mod layers;
pub mod meta;
pub mod object;
pub mod planted;
pub mod salvage;
pub mod sealed;
pub mod snapshot;
pub mod store;
pub(crate) mod sys;
pub mod volume;

#[global_allocator]
static ALLOCATOR: sys::wipe::WipingAllocator = sys::wipe::WipingAllocator;
