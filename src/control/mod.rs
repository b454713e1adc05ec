//! The control socket: how a command finds the daemon of a mount, and their protocol.
//!
//! | file | what it is |
//! |---|---|
//! | `address`, `connection` | where the sockets are, and connecting to one |
//! | `server`, `client` | both sides of a connection |
//! | `request`, `response`, `report` | the messages |
//! | `wire`, `line` | the encoding of the messages, with its version |
//! | `directory`, `proof` | the volume's directory, and the daemon's proof that it holds it |
//! | `locate` | which volume a path names, and which process holds it |
//! | `known_volumes` | the volumes that a platform keystore knows, and where they are |
//! | `health` | the state of a volume, as `status` shows it |
//! | `mount_state` | whether a mount is still served |
//! | `liveness` | waiting for a response as long as the daemon is alive |
//! | `obstacle` | why a daemon cannot be asked |
//! | `paths` | paths of the command line |
//!
//! The name of a socket proves nothing: a command has the daemon prove that it holds the volume's
//! lock. A daemon answers only root and its own user. No secret crosses the socket: a passphrase is
//! named by its file, and an exported image is sealed.

pub(crate) mod address;
pub(crate) mod client;
mod connection;
pub(crate) mod directory;
pub(crate) mod health;
pub(crate) mod known_volumes;
pub(crate) mod line;
pub(crate) mod liveness;
pub(crate) mod locate;
pub(crate) mod mount_state;
pub(crate) mod obstacle;
pub(crate) mod paths;
pub(crate) mod proof;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod wire;
