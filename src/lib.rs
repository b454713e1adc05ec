//! bilayer: a FUSE filesystem that encrypts everything it stores in two independent layers.
//!
//! `docs/ARCHITECTURE.md` is the map. Modules import only modules below them:
//!
//! ```text
//! cli ─► fuse ─► fs ─► {meta, object} ─► sealed ─► layers ─► store
//!                 volume, keys beside
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
