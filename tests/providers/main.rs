//! Customer keys wherever they are kept: files of versions, programs, servers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[cfg(feature = "azure-kv")]
mod azure;
#[cfg(any(feature = "azure-kv", feature = "openbao"))]
mod certificates;
mod files;
mod keys;
mod mounted;
#[cfg(feature = "openbao")]
mod openbao;
mod programs;
#[cfg(feature = "openbao")]
mod server;
#[cfg(feature = "azure-kv")]
mod vault;
