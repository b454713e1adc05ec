//! The process that has a volume mounted, from the mount options to its end.
//!
//! | file | what it is |
//! |---|---|
//! | `mount_request`, `places` | what to mount where, and both directories |
//! | `mount` | the order of everything between opening a volume and letting its lock go |
//! | `options`, `size` | the one parser of mount options, and of sizes |
//! | `effective_options` | options and defaults as the filesystem and FUSE take them |
//! | `background` | detaching from the terminal, and reporting the outcome |
//! | `request_handler`, `operations` | requests on the control socket, and operations on views |
//! | `remount` | changing an existing mount |
//! | `create` | making a volume, for `create` and `mount --create` |
//! | `former_identity` | changes of identity before a mount that fails |
//! | `mount_record`, `log`, `utab` | a mount in the audit, the log and mount(8)'s table |

pub(crate) mod background;
pub(crate) mod create;
mod effective_options;
mod former_identity;
pub(crate) mod log;
pub(crate) mod mount;
mod mount_record;
pub(crate) mod mount_request;
pub(crate) mod operations;
pub(crate) mod options;
mod places;
pub(crate) mod remount;
mod request_handler;
pub(crate) mod size;
mod utab;

pub use request_handler::answer_line;
