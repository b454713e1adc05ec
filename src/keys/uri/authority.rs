//! The authority of a URI: the host and the port of a server (RFC 3986 section 3.2).

use super::{KeyError, usage};

/// Length limit of a host, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Parses `HOST` or `HOST:PORT`; the port of https is left out. No user: that would be a secret.
pub(super) fn parse(text: &str) -> Result<String, KeyError> {
    let refused = || usage("the URI has no usable host, or a user in front of it");
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(refused)?;
            address
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| refused())?;
            (format!("[{address}]"), port)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            (text[..end].to_owned(), &text[end..])
        }
    };
    let is_name = |host: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        !host.is_empty() && host.len() <= MAX_NAME_BYTES && host.bytes().all(allowed)
    };
    if !host.starts_with('[') && !is_name(&host) {
        return Err(refused());
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        None => return Err(refused()),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let port = digits.parse::<u16>().ok().filter(|port| *port > 0);
            Some(port.ok_or_else(|| usage("the port in the URI is no number from 1 to 65535"))?)
        }
        Some(_) => return Err(refused()),
    };
    let host = host.to_ascii_lowercase();
    Ok(match port {
        // That of https.
        None | Some(443) => host,
        Some(port) => format!("{host}:{port}"),
    })
}
