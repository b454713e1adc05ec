//! Requests to a server, over TLS, within a limit of time.
//!
//! A session is made for one operation and dropped after it, so that its buffers and keys, which
//! may hold a plaintext or a token, are freed (and wiped, in `with_secrets`) with it.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{HeaderName, HeaderValue, Method, Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use zeroize::Zeroizing;

use super::files;
use super::socket::SocketConnector;
use super::token::Token;
use crate::keys::customer::printable;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::OpenBaoKey;

/// For one operation, with its logins and repetitions.
const TOTAL_TIME: Duration = Duration::from_secs(20);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Limit on a response, in bytes: a key of a thousand versions.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What the certificates in a file may have together, in bytes.
const MAX_CA_BYTES: usize = 1 << 20;

// At the lowest level ureq logs everything that it sends and receives.
const _: () = assert!((log::STATIC_MAX_LEVEL as usize) < (log::LevelFilter::Trace as usize));

/// Where a server is, and which certificates it may have.
#[derive(Debug)]
pub(super) struct Server {
    /// `https://HOST:PORT`, or what stands for it at an agent.
    base: String,
    agent: Option<PathBuf>,
    namespace: Option<String>,
    roots: RootCerts,
    total_time: Duration,
}

/// The connection of one operation.
pub(super) struct Session<'a> {
    server: &'a Server,
    agent: Agent,
    end: Instant,
}

/// What a server has answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Server {
    pub(super) fn new(key: &OpenBaoKey) -> Result<Self, KeyError> {
        let roots = match (&key.agent, &key.ca_file) {
            (Some(_), _) => RootCerts::new_with_certs(&[]),
            (None, Some(path)) => roots_in(path)?,
            (None, None) => system_roots()?,
        };
        Ok(Self {
            base: match &key.agent {
                // An address that needs no lookup; the socket is connected to.
                Some(_) => "http://127.0.0.1".to_owned(),
                None => format!("https://{}", key.authority),
            },
            agent: key.agent.clone(),
            namespace: key.namespace.clone(),
            roots,
            total_time: TOTAL_TIME,
        })
    }

    /// Starts an operation, and its time.
    pub(super) fn session(&self) -> Session<'_> {
        let tls = TlsConfig::builder()
            .root_certs(self.roots.clone())
            .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = Config::builder()
            .tls_config(tls.build())
            .https_only(self.agent.is_none())
            // A proxy of the environment would depend on who mounts.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECT_TIME))
            .timeout_connect(Some(CONNECT_TIME))
            .user_agent(concat!("bilayer/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = match &self.agent {
            None => Agent::new_with_config(config),
            Some(path) => Agent::with_parts(
                config,
                SocketConnector(path.clone()),
                DefaultResolver::default(),
            ),
        };
        Session {
            server: self,
            agent,
            end: Instant::now() + self.total_time,
        }
    }

    pub(super) fn unreachable(&self, why: impl fmt::Display) -> KeyError {
        let at = match &self.agent {
            Some(path) => format!("the OpenBao agent at {}", path.display()),
            None => format!("the OpenBao server {}", self.base),
        };
        KeyError::new(
            ErrorKind::KeyUnreachable,
            format!("{at} cannot be asked: {why}"),
        )
    }

    /// What went wrong with the connection.
    fn explain(&self, error: &ureq::Error) -> KeyError {
        match error {
            ureq::Error::Timeout(_) => self.unreachable("no answer in time"),
            ureq::Error::HostNotFound => self.unreachable("its name is not known"),
            ureq::Error::BodyExceedsLimit(_) => self.unreachable("its answer is too long"),
            other if is_about_certificate(other) => self
                .unreachable(format!("its certificate is not accepted: {other}"))
                .with_hint(
                    "name the authority that signed it: ?ca-file=/path/to/ca.pem in the URI",
                ),
            other => self.unreachable(printable(&other.to_string())),
        }
    }
}

fn is_about_certificate(error: &ureq::Error) -> bool {
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

impl Session<'_> {
    pub(super) fn get(&self, path: &str, token: Option<&Token>) -> Result<Answer, KeyError> {
        self.send(&Method::GET, path, token, Vec::new())
    }

    pub(super) fn post(
        &self,
        path: &str,
        token: Option<&Token>,
        body: Vec<u8>,
    ) -> Result<Answer, KeyError> {
        self.send(&Method::POST, path, token, body)
    }

    /// Sends a request. If the server is asked too often it says when to come again, which is
    /// waited for within the time of the operation.
    fn send(
        &self,
        method: &Method,
        path: &str,
        token: Option<&Token>,
        body: Vec<u8>,
    ) -> Result<Answer, KeyError> {
        loop {
            let request = self.request(method, path, token, body.clone())?;
            let response = self.agent.run(request);
            let mut response = response.map_err(|error| self.server.explain(&error))?;
            let status = response.status();
            if status == 429 {
                self.wait(&response)?;
                continue;
            }
            if status.is_redirection() {
                return Err(self.server.unreachable(redirected(&response)));
            }
            let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY_BYTES + 1));
            let limit = MAX_BODY_BYTES as u64 + 1;
            let reader = response.body_mut().with_config().limit(u64::MAX).reader();
            let read = reader.take(limit).read_to_end(&mut body);
            read.map_err(|error| self.server.explain(&ureq::Error::from(error)))?;
            if body.len() > MAX_BODY_BYTES {
                return Err(self.server.unreachable("its answer is too long"));
            }
            return Ok(Answer {
                status: status.as_u16(),
                body,
            });
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        token: Option<&Token>,
        body: Vec<u8>,
    ) -> Result<Request<ureq::SendBody<'static>>, KeyError> {
        let server = self.server;
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(server.unreachable("no answer in time"));
        }
        let malformed = |_| server.unreachable("the request is malformed");
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}/v1/{path}", server.base))
            // Agents can be told to refuse requests that a web page could have made.
            .header("x-vault-request", "true");
        if let Some(namespace) = &server.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(token) = token {
            let name = HeaderName::from_static("x-vault-token");
            let mut value = HeaderValue::from_str(token.expose())
                .map_err(|_| server.unreachable("the token has characters that it cannot have"))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let body = match *method == Method::GET {
            true => ureq::SendBody::none(),
            false => {
                request = request.header("content-length", body.len());
                ureq::SendBody::from_owned_reader(std::io::Cursor::new(body))
            }
        };
        let request = request.body(body).map_err(malformed)?;
        Ok(self
            .agent
            .configure_request(request)
            .timeout_global(Some(left))
            .build())
    }

    /// Waits as long as a 429 says (RFC 6585 section 4; RFC 9110 section 10.2.3).
    fn wait(&self, response: &Response<ureq::Body>) -> Result<(), KeyError> {
        let header = response.headers().get("retry-after");
        let secs = header
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(1)
            .max(1);
        let wait = Duration::from_secs(secs);
        if Instant::now() + wait >= self.end {
            return Err(self.server.unreachable(format!(
                "it has too many requests, and says to wait {secs} s"
            )));
        }
        std::thread::sleep(wait);
        Ok(())
    }
}

/// A redirect is not followed: the token would be sent to a host that nobody named.
fn redirected(response: &Response<ureq::Body>) -> String {
    let location = response.headers().get("location");
    let location = location
        .and_then(|value| value.to_str().ok())
        .unwrap_or("?");
    // Without a query, which might hold anything.
    let location = location.split(['?', '#']).next().unwrap_or_default();
    format!(
        "it redirects to {}, which is not followed; name the server that is active",
        printable(location)
    )
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
