//! The state of a volume, which `status` shows before anything else.
//!
//! | health | source | next step |
//! |---|---|---|
//! | `ok` | its daemon, or the opening of the volume | |
//! | `daemon dead (umount and mount again)` | `ENOTCONN` of the mount | unmount, mount |
//! | `read-only after an error: ...` | its daemon | unmount, mount |
//! | `damaged: run check` | a page, or the volume itself, does not open | check |
//! | `not known: ...` | no key, or no daemon that answers | |

use std::fmt;
use std::path::Path;

/// The text for a dead daemon, in every message.
pub(super) const DAEMON_DEAD: &str = "daemon dead (umount and mount again)";

/// The state of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    Ok,
    DaemonDead,
    ReadOnly(String),
    Damaged,
    Unknown(String),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::DaemonDead => f.write_str(DAEMON_DEAD),
            Self::ReadOnly(why) => write!(f, "read-only after an error: {why}"),
            Self::Damaged => f.write_str("damaged: run check"),
            Self::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

impl Health {
    /// The command that repairs this state; `dir` is where the volume is mounted, if it is.
    pub(crate) fn next_command(&self, volume: &Path, dir: Option<&Path>) -> Option<String> {
        let volume = volume.display();
        match self {
            Self::Ok | Self::Unknown(_) => None,
            Self::Damaged => Some(format!("bilayer check {volume}")),
            Self::DaemonDead | Self::ReadOnly(_) => {
                let dir = dir?.display();
                Some(format!(
                    "bilayer unmount {dir} && bilayer mount {volume} {dir}"
                ))
            }
        }
    }

    /// The health that a daemon's usage report implies.
    pub(crate) fn from_usage(usage: Option<&serde_json::Value>) -> Self {
        let field = |name: &str| usage.and_then(|usage| usage.get(name));
        match field("latched").and_then(serde_json::Value::as_str) {
            _ if usage.is_none() => Self::Unknown("the daemon is ending".to_owned()),
            Some(why) => Self::ReadOnly(why.to_owned()),
            None if field("damaged").and_then(serde_json::Value::as_bool) == Some(true) => {
                Self::Damaged
            }
            None => Self::Ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_health_has_its_text_and_its_next_command() {
        let of = |text: &str| Health::from_usage(Some(&serde_json::from_str(text).unwrap()));
        let (volume, dir) = (Path::new("/v"), Some(Path::new("/m")));
        let again = Some("bilayer unmount /m && bilayer mount /v /m".to_owned());
        let check = Some("bilayer check /v".to_owned());
        for (health, text, next) in [
            (of("{\"latched\":null,\"damaged\":false}"), "ok", None),
            (of("{\"damaged\":true}"), "damaged: run check", check),
            (
                of("{\"latched\":\"no space\",\"damaged\":true}"),
                "read-only after an error: no space",
                again.clone(),
            ),
            (Health::DaemonDead, DAEMON_DEAD, again),
            (
                Health::from_usage(None),
                "not known: the daemon is ending",
                None,
            ),
        ] {
            assert_eq!(health.to_string(), text);
            assert_eq!(health.next_command(volume, dir), next, "{text}");
        }
    }
}
