//! The process that has a volume mounted, from the words of mount(8) to its end.
//!
//! | file | what it is |
//! |---|---|
//! | `mount` | the order of everything between opening a volume and letting its lock go |
//! | `options`, `size` | the one parser of mount options, and of sizes |
//! | `background` | leaving the terminal, and saying how it went |
//! | `answers`, `serve` | what is answered over the control socket, and what is done for it |
//! | `remount` | changing a mount that is there |
//! | `create` | making a volume, for `create` and `mount --create` |
//! | `former_identity` | what a mount that fails has changed before |
//! | `mount_record`, `log`, `utab` | what a mount leaves in the audit, the log and mount(8)'s table |

mod answers;
pub(crate) mod background;
pub(crate) mod create;
mod former_identity;
pub(crate) mod log;
pub(crate) mod mount;
mod mount_record;
pub(crate) mod options;
pub(crate) mod remount;
pub(crate) mod serve;
pub(crate) mod size;
mod utab;

pub use answers::answer_line;
