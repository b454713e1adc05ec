//! What the providers with a server have in common.

pub(super) mod files;
pub(super) mod http;
