//! How commands and the daemon of a mount find one another, and what they say.
//!
//! | file | what it is |
//! |---|---|
//! | `address`, `connection` | where the sockets are, and connecting to one |
//! | `server`, `client` | both sides of a connection |
//! | `request`, `response`, `report` | what is asked and answered |
//! | `wire`, `line` | how that is written, with its version |
//! | `directory`, `proof` | which directory is meant, and how a daemon proves that it has it |
//! | `locate` | which volume a path means, and who has it |
//! | `health`, `pulse`, `patient` | whether a daemon lives, and waiting for one that does |
//! | `obstacle` | why a daemon cannot be asked |
//! | `paths` | paths as people write them |
//!
//! A name proves nothing: whoever connects has the daemon prove that it holds the volume's lock. Only
//! root and the daemon's own user are answered. Nothing secret passes through: passphrases are named
//! by their files, and an exported image is sealed.

pub(crate) mod address;
pub(crate) mod client;
mod connection;
pub(crate) mod directory;
pub(crate) mod health;
pub(crate) mod line;
pub(crate) mod locate;
pub(crate) mod obstacle;
pub(crate) mod paths;
pub(crate) mod patient;
pub(crate) mod proof;
pub(crate) mod pulse;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod wire;
