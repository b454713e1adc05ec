//! HTTP over TLS, as all providers with a server use it: within a limit of time and of length,
//! without redirects, without a proxy, with the authorities of the system or of a file.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use ureq::config::Config;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use zeroize::Zeroizing;

use super::files;
use crate::keys::customer::printable;
use crate::keys::error::{ErrorKind, KeyError};

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Limit on a response, in bytes: a key of a thousand versions.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What the certificates in a file may have together, in bytes.
const MAX_CA_BYTES: usize = 1 << 20;
/// Why an answer is refused that is longer than the limit.
pub(in crate::keys::customer) const TOO_LONG: &str = "its answer is too long";
/// What to do about a certificate that is not accepted.
pub(in crate::keys::customer) const CERTIFICATE_HINT: &str =
    "name the authority that signed it: ?ca-file=/path/to/ca.pem in the URI";

// At the lowest level ureq logs everything that it sends and receives.
const _: () = assert!((log::STATIC_MAX_LEVEL as usize) < (log::LevelFilter::Trace as usize));

/// How connections are made.
pub(in crate::keys::customer) fn config(roots: RootCerts, https_only: bool) -> Config {
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()));
    Config::builder()
        .tls_config(tls.build())
        .https_only(https_only)
        // A proxy of the environment would depend on who mounts.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_resolve(Some(CONNECT_TIME))
        .timeout_connect(Some(CONNECT_TIME))
        .user_agent(concat!("bilayer/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// What went wrong with a connection.
pub(in crate::keys::customer) fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "its name is not known".to_owned(),
        ureq::Error::BodyExceedsLimit(_) => TOO_LONG.to_owned(),
        other if is_about_certificate(other) => {
            format!("its certificate is not accepted: {other}")
        }
        other => printable(&other.to_string()),
    }
}

pub(in crate::keys::customer) fn is_about_certificate(error: &ureq::Error) -> bool {
    let is_tls = |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_));
    match error {
        ureq::Error::Rustls(error) => is_tls(error),
        ureq::Error::Io(error) => error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some_and(is_tls),
        _ => false,
    }
}

/// The body of a response; `None` if it is too long.
pub(in crate::keys::customer) fn read_body(
    response: &mut Response<ureq::Body>,
) -> Result<Option<Zeroizing<Vec<u8>>>, ureq::Error> {
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY_BYTES + 1));
    let limit = MAX_BODY_BYTES as u64 + 1;
    let reader = response.body_mut().with_config().limit(u64::MAX).reader();
    reader.take(limit).read_to_end(&mut body)?;
    Ok((body.len() <= MAX_BODY_BYTES).then_some(body))
}

/// Waits as long as a 429 says (RFC 6585 section 4; RFC 9110 section 10.2.3). Fails, with the
/// reason, if that is after the end of the operation.
pub(in crate::keys::customer) fn wait(
    response: &Response<ureq::Body>,
    end: Instant,
) -> Result<(), String> {
    let header = response.headers().get("retry-after");
    let secs = header
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(1)
        .max(1);
    let now = Instant::now();
    let wait = Duration::from_secs(secs);
    if now.checked_add(wait).is_none_or(|until| until >= end) {
        return Err(format!(
            "it has too many requests, and says to wait {secs} s"
        ));
    }
    std::thread::sleep(wait);
    Ok(())
}

/// A redirect is not followed: the token would be sent to a host that nobody named.
pub(in crate::keys::customer) fn redirected(
    response: &Response<ureq::Body>,
    advice: &str,
) -> String {
    let location = response.headers().get("location");
    let location = location
        .and_then(|value| value.to_str().ok())
        .unwrap_or("?");
    // Without a query, which might hold anything.
    let location = location.split(['?', '#']).next().unwrap_or_default();
    format!(
        "it redirects to {}, which is not followed; {advice}",
        printable(location)
    )
}

/// The certificates to trust: those in a file, otherwise those of the system.
pub(in crate::keys::customer) fn roots(ca_file: Option<&Path>) -> Result<RootCerts, KeyError> {
    match ca_file {
        Some(path) => roots_in(path),
        None => system_roots(),
    }
}

fn roots_in(path: &Path) -> Result<RootCerts, KeyError> {
    let text = files::read_public(path, MAX_CA_BYTES)?;
    let refused = |why: &str| {
        KeyError::new(
            ErrorKind::Usage,
            format!("the file of certificates {} {why}", path.display()),
        )
    };
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(_) => return Err(refused("is damaged")),
        }
    }
    if certificates.is_empty() {
        return Err(refused("has no certificate in PEM"));
    }
    Ok(RootCerts::from(certificates))
}

fn system_roots() -> Result<RootCerts, KeyError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(KeyError::new(
            ErrorKind::KeyUnavailable,
            "this machine has no certificates of authorities",
        )
        .with_hint(
            "install them (package ca-certificates), or name a file: ?ca-file=/path/ca.pem",
        ));
    }
    let certificates = found.certs.iter();
    let certificates = certificates.map(|der| Certificate::from_der(der.as_ref()).to_owned());
    Ok(RootCerts::from(certificates.collect::<Vec<_>>()))
}
