//! The process that has a volume mounted, from the mount options to its end.
//!
//! | file | what it is |
//! |---|---|
//! | `mount_request`, `directories` | what to mount where, and both directories |
//! | `mount` | all steps from opening a volume to releasing its lock |
//! | `options`, `size` | the one parser of mount options, and of sizes |
//! | `effective_options` | the options of the filesystem and of FUSE, with their defaults |
//! | `background` | moving to the background, and reporting the outcome |
//! | `request_handler`, `operations` | requests on the control socket, and operations on views |
//! | `remount` | changing an existing mount |
//! | `key_rotation` | replacing old platform keys, and following a rotation |
//! | `create` | making a volume, for `create` and `mount --create` |
//! | `new_keystore` | the notice about a new platform keystore |
//! | `former_identity` | the error of a mount that failed after it had changed the identity |
//! | `mount_record`, `log`, `utab` | a mount in the audit, the log and mount(8)'s table |

pub(crate) mod background;
pub(crate) mod create;
mod customer_key;
mod directories;
mod effective_options;
mod former_identity;
mod key_rotation;
pub(crate) mod log;
pub(crate) mod mount;
mod mount_record;
pub(crate) mod mount_request;
pub(crate) mod new_keystore;
pub(crate) mod operations;
pub(crate) mod options;
pub(crate) mod remount;
mod request_handler;
pub(crate) mod size;
mod utab;

pub use request_handler::answer_line;
