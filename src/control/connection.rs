//! Connecting to the socket of a daemon of some user.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::address::{Address, directories, untrusted_directory};
use super::obstacle::Obstacle;
use crate::sys::process::{PeerCredentials, peer_credentials};

/// A connection, which proves nothing yet.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    /// The process that answers.
    pub(super) peer: PeerCredentials,
}

/// Connects to a socket of user `uid`; `None` if there is none. Adds the reasons for a failure to
/// `obstacles`.
pub(super) fn connect(
    address: Address,
    uid: u32,
    obstacles: &mut Vec<Obstacle>,
) -> Option<Connection> {
    let name = address.socket_name();
    let dirs = directories(uid).into_iter();
    dirs.map(|dir| connect_in(&dir, &name, uid))
        .find_map(|connected| {
            connected.unwrap_or_else(|obstacle| {
                obstacles.push(obstacle);
                None
            })
        })
}

/// Connects to a socket in one directory of user `uid`; `None` if there is none.
///
/// # Errors
/// The socket or its directory is not trusted; or this process may not connect; or the daemon is
/// dead.
pub(super) fn connect_in(dir: &Path, name: &str, uid: u32) -> Result<Option<Connection>, Obstacle> {
    let classify = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Err(Obstacle::Denied(uid)),
        io::ErrorKind::ConnectionRefused => Err(Obstacle::Dead),
        _ => Ok(None),
    };
    let metadata = match fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) => return classify(error),
    };
    if let Some(obstacle) = untrusted_directory(dir, &metadata, uid) {
        return Err(obstacle);
    }
    let path = dir.join(name);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) => return classify(error),
    };
    match peer_credentials(&stream) {
        Ok(peer) if peer.uid == uid => Ok(Some(Connection { stream, peer })),
        Ok(peer) => Err(Obstacle::Foreign {
            path,
            user: uid,
            owner: peer.uid,
        }),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::identity::effective_user;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    #[test]
    fn sockets_in_a_directory_of_another_user_are_not_trusted() {
        let dir = private();
        let _socket = UnixListener::bind(dir.path().join("x.sock")).unwrap();
        let uid = effective_user();
        assert!(connect_in(dir.path(), "x.sock", uid).unwrap().is_some());
        let refused = connect_in(dir.path(), "x.sock", uid + 1).unwrap_err();
        let error = refused.to_string();
        assert!(error.contains(&format!("belongs to user {uid}")), "{error}");
        assert!(refused.hint().contains("ls -ld"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o701)).unwrap();
        let refused = connect_in(dir.path(), "x.sock", uid).unwrap_err();
        assert!(matches!(refused, Obstacle::UntrustedDirectory { .. }));
        let gone = connect_in(&dir.path().join("gone"), "x.sock", uid).unwrap();
        assert!(gone.is_none());
    }
}
