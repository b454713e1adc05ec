//! Requests to a server, over TLS, within a limit of time.
//!
//! A session is made for one operation and dropped after it, so that its buffers and keys, which
//! may hold a plaintext or a token, are freed (and wiped, in `with_secrets`) with it.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::{HeaderName, HeaderValue, Method, Request, Response};
use ureq::tls::RootCerts;
use ureq::unversioned::resolver::DefaultResolver;
use zeroize::Zeroizing;

use super::socket::SocketConnector;
use super::token::Token;
use crate::keys::customer::remote::http;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::OpenBaoKey;

/// For one operation, with its logins and repetitions.
const TOTAL_TIME: Duration = Duration::from_secs(20);

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
            (None, ca_file) => http::roots(ca_file.as_deref())?,
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
        let config = http::config(self.roots.clone(), self.agent.is_none());
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
        let error_of = self.unreachable(http::explain(error));
        match http::is_about_certificate(error) {
            true => error_of.with_hint(http::CERTIFICATE_HINT),
            false => error_of,
        }
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
                return Err(self.server.unreachable(http::redirected(
                    &response,
                    "name the server that is active",
                )));
            }
            let body = http::read_body(&mut response)
                .map_err(|error| self.server.explain(&error))?
                .ok_or_else(|| self.server.unreachable(http::TOO_LONG))?;
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

    /// Waits as long as a 429 says.
    fn wait(&self, response: &Response<ureq::Body>) -> Result<(), KeyError> {
        http::wait(response, self.end).map_err(|why| self.server.unreachable(why))
    }
}
