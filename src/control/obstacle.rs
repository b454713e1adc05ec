//! Why a daemon cannot be asked, and the error of a command that cannot be certain without it.

use std::path::PathBuf;

use super::health::DAEMON_DEAD;
use crate::diagnostics::{ExitCode, UserError};

/// Why a daemon of some user could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    /// The directory for sockets is not its user's alone: others may have created sockets in it.
    #[error(
        "{} should be user {user}'s alone, but it {problem}: nothing in it is trusted",
        .dir.display()
    )]
    UntrustedDirectory {
        /// The directory.
        dir: PathBuf,
        /// The user who should own it.
        user: u32,
        /// What is wrong with it: the rest of a sentence that begins with "it".
        problem: String,
    },
    /// Daemons of this user answer only that user and root.
    #[error("daemons of user {0} do not answer this user")]
    Denied(u32),
    /// The socket belongs to another user.
    #[error("{} is a socket of user {owner}, not of user {user}", .path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// The user who should own it.
        user: u32,
        /// The user who owns it.
        owner: u32,
    },
    /// The process that created the socket has ended.
    #[error("{DAEMON_DEAD}")]
    Dead,
    /// The daemon does not answer.
    #[error("the daemon does not answer")]
    Silent,
    /// The daemon is ending and no longer holds the volume.
    #[error("the daemon is ending")]
    Closing,
    /// The daemon answered without a proof that it holds the volume.
    #[error("the process that answers has not proved that it has the volume: {0}")]
    Unproven(String),
}

impl Obstacle {
    /// The next step for the user.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::UntrustedDirectory { dir, .. } => format!(
                "see who created it: ls -ld {0}; then remove it: rm -r {0}; and mount the volume \
                 again",
                dir.display()
            ),
            Self::Foreign { path, .. } => format!("see who created it: ls -l {}", path.display()),
            Self::Denied(_) => "root and the user who mounted it may ask".to_owned(),
            Self::Closing => "wait until it has ended, and try again".to_owned(),
            Self::Dead => "bilayer unmount DIR && bilayer mount VOLUME DIR".to_owned(),
            Self::Silent => {
                "look at the daemon and its log; bilayer unmount --force ends it".to_owned()
            }
            Self::Unproven(_) => {
                "unmount it and mount it again; daemons of an older version cannot prove it"
                    .to_owned()
            }
        }
    }
}

/// The error of a command that is refused because it cannot be certain. Its message is `failure`
/// and the most informative obstacle.
pub(crate) fn refusal(failure: String, obstacles: &[Obstacle]) -> UserError {
    let refused = |why: &str| UserError::new(ExitCode::System, format!("{failure}: {why}"));
    // An answer of the daemon itself says more than a reason why it was not reached.
    let rank = |obstacle: &&Obstacle| match obstacle {
        Obstacle::Unproven(_) => 0,
        Obstacle::Silent | Obstacle::Closing => 1,
        Obstacle::UntrustedDirectory { .. } | Obstacle::Foreign { .. } => 2,
        Obstacle::Dead => 3,
        Obstacle::Denied(_) => 4,
    };
    match obstacles.iter().min_by_key(rank) {
        Some(obstacle) => refused(&obstacle.to_string()).with_hint(obstacle.hint()),
        None => refused("no daemon for it can be found from here")
            .with_hint("it may run where /run is another directory, as in a container: ask there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_informative_obstacle_is_reported() {
        let untrusted_directory = Obstacle::UntrustedDirectory {
            dir: "/tmp/x".into(),
            user: 7,
            problem: "belongs to user 8".to_owned(),
        };
        let all = [
            Obstacle::Denied(0),
            untrusted_directory,
            Obstacle::Unproven("it lies".to_owned()),
        ];
        let error = refusal("no".to_owned(), &all);
        assert!(error.message.ends_with("it lies") && error.hint.is_some());
        let error = refusal("no".to_owned(), &all[..2]);
        assert!(error.message.contains("/tmp/x should be user 7's alone"));
        let error = refusal("no".to_owned(), &[]);
        assert!(error.hint.unwrap().contains("container"));
    }
}
