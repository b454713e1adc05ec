//! Why a daemon cannot be asked, and what a command that therefore cannot be sure says.

use std::path::PathBuf;

use super::health::DEAD;
use crate::diagnostics::{ExitCode, UserError};

/// Why a daemon of some user could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    /// The directory for sockets is not its user's alone: somebody else may have made what is in it.
    #[error(
        "{} should be user {wanted}'s alone, and {found}: nothing in it is believed",
        .dir.display()
    )]
    Squatted {
        /// Which directory.
        dir: PathBuf,
        /// Whose it should be.
        wanted: u32,
        /// What it is instead.
        found: String,
    },
    /// Only that user and root are answered.
    #[error("daemons of user {0} do not answer this user")]
    Denied(u32),
    /// The socket is somebody else's.
    #[error("{} is a socket of user {found}, not of user {wanted}", .path.display())]
    Foreign {
        /// Which socket.
        path: PathBuf,
        /// Whose it should be.
        wanted: u32,
        /// Whose it is.
        found: u32,
    },
    /// The process that made the socket is no more.
    #[error("{DEAD}")]
    Dead,
    /// It is there and says nothing.
    #[error("the daemon does not answer")]
    Silent,
    /// It is about to end, and has the volume no more.
    #[error("the daemon is ending")]
    Closing,
    /// It answered and did not prove that it has the volume.
    #[error("the process that answers has not proved that it has the volume: {0}")]
    Unproven(String),
}

impl Obstacle {
    /// What to do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Squatted { dir, .. } => format!(
                "see who made it: ls -ld {0}; then remove it: rm -r {0}; and mount the volume again",
                dir.display()
            ),
            Self::Foreign { path, .. } => format!("see who made it: ls -l {}", path.display()),
            Self::Denied(_) => "root and the user who mounted it may ask".to_owned(),
            Self::Closing => "wait until it has ended, and try again".to_owned(),
            Self::Dead => "bilayer unmount DIR && bilayer mount VOLUME DIR".to_owned(),
            Self::Silent => {
                "look at the daemon and its log; bilayer unmount --force ends it".to_owned()
            }
            Self::Unproven(_) => {
                "unmount it and mount it again; what was mounted by an older version does not \
                 prove itself"
                    .to_owned()
            }
        }
    }
}

/// A command that cannot be sure is refused.
pub(crate) fn refusal(what: String, obstacles: &[Obstacle]) -> UserError {
    let refused = |why: &str| UserError::new(ExitCode::System, format!("{what}: {why}"));
    // What was seen of the very daemon says more than what only was in the way.
    let rank = |obstacle: &&Obstacle| match obstacle {
        Obstacle::Unproven(_) => 0,
        Obstacle::Silent | Obstacle::Closing => 1,
        Obstacle::Squatted { .. } | Obstacle::Foreign { .. } => 2,
        Obstacle::Dead => 3,
        Obstacle::Denied(_) => 4,
    };
    match obstacles.iter().min_by_key(rank) {
        Some(obstacle) => refused(&obstacle.to_string()).with_hint(obstacle.hint()),
        None => refused("no daemon of it can be found from here")
            .with_hint("it may run where /run is another one, as in a container: ask there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_says_most() {
        let squatted = Obstacle::Squatted {
            dir: "/tmp/x".into(),
            wanted: 7,
            found: "belongs to user 8".to_owned(),
        };
        let all = [
            Obstacle::Denied(0),
            squatted,
            Obstacle::Unproven("it lies".to_owned()),
        ];
        let told = refusal("no".to_owned(), &all);
        assert!(told.message.ends_with("it lies") && told.hint.is_some());
        let told = refusal("no".to_owned(), &all[..2]);
        assert!(told.message.contains("/tmp/x should be user 7's alone"));
        let told = refusal("no".to_owned(), &[]);
        assert!(told.hint.unwrap().contains("container"));
    }
}
