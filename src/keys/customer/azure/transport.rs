//! Sends the requests of Microsoft's crates: by ureq, on this thread, to the server that the URI
//! names and to no other, within the time of the operation.
//!
//! Those crates turn every error into their own. So an error of the transport is kept beside
//! ([`Failure`]) and returned in the place of theirs. It is of a kind that they do not retry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use azure_core::Bytes;
use azure_core::http::headers::Headers;
use azure_core::http::{
    AsyncRawResponse, HttpClient, Method, Request, Transport as SdkTransport, Url,
};
use parking_lot::Mutex;
use ureq::Agent;
use ureq::http::{HeaderValue, Request as HttpRequest, Response};
use ureq::tls::RootCerts;

use super::answers;
use crate::keys::customer::printable;
use crate::keys::customer::remote::http;
use crate::keys::error::{ErrorKind, KeyError};

/// What went wrong first in an operation.
#[derive(Clone, Default, Debug)]
pub(super) struct Failure(Arc<Mutex<Option<KeyError>>>);

impl Failure {
    /// Keeps an error; the one that is returned stands for it.
    pub(super) fn keep(&self, error: KeyError) -> azure_core::Error {
        self.0.lock().get_or_insert(error);
        azure_core::Error::with_message(azure_core::error::ErrorKind::Other, "see the failure")
    }

    pub(super) fn take(&self) -> Option<KeyError> {
        self.0.lock().take()
    }
}

/// Whom a transport speaks to.
#[derive(Debug)]
pub(super) enum Peer {
    Vault(Url),
    /// The endpoint for tokens.
    Authority(Url),
    /// The metadata service of the machine, which has no TLS: it is not reached over a network.
    Metadata(Option<SocketAddr>),
}

/// Where the crates expect the metadata service.
const METADATA_HOST: &str = "169.254.169.254";

impl Peer {
    pub(super) fn vault(authority: &str) -> Result<Self, KeyError> {
        Ok(Self::Vault(base_of(authority)?))
    }

    pub(super) fn authority(authority: &str) -> Result<Self, KeyError> {
        Ok(Self::Authority(base_of(authority)?))
    }

    /// Where a request goes; `None` if that is another server.
    fn address_of(&self, url: &Url) -> Option<String> {
        match self {
            Self::Vault(base) | Self::Authority(base) => (url.origin() == base.origin()
                && url.username().is_empty())
            .then(|| url.as_str().to_owned()),
            Self::Metadata(instead) => {
                let is_it = url.scheme() == "http"
                    && url.host_str() == Some(METADATA_HOST)
                    && url.port().is_none();
                let path = url.as_str().strip_prefix("http://169.254.169.254/");
                match (is_it, path, instead) {
                    (true, Some(path), Some(address)) => Some(format!("http://{address}/{path}")),
                    (true, Some(_), None) => Some(url.as_str().to_owned()),
                    _ => None,
                }
            }
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Vault(url) => format!("the vault {}", url.authority()),
            Self::Authority(url) => format!("the token endpoint {}", url.authority()),
            Self::Metadata(Some(address)) => format!("the metadata service at {address}"),
            Self::Metadata(None) => format!("the metadata service at {METADATA_HOST}"),
        }
    }
}

fn base_of(authority: &str) -> Result<Url, KeyError> {
    Url::parse(&format!("https://{authority}/")).map_err(|_| {
        KeyError::new(
            ErrorKind::Usage,
            format!("{authority} in the URI of the key is no host"),
        )
    })
}

/// Sends requests of one operation to one server.
#[derive(Debug)]
pub(super) struct Transport {
    agent: Agent,
    peer: Peer,
    end: Instant,
    failure: Failure,
}

impl Transport {
    pub(super) fn new(peer: Peer, roots: RootCerts, end: Instant, failure: Failure) -> Self {
        let https_only = !matches!(peer, Peer::Metadata(_));
        Self {
            agent: Agent::new_with_config(http::config(roots, https_only)),
            peer,
            end,
            failure,
        }
    }

    /// As the crates take it.
    pub(super) fn into_sdk(self) -> SdkTransport {
        SdkTransport::new(Arc::new(self))
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> KeyError {
        let error = KeyError::new(
            ErrorKind::KeyUnreachable,
            format!("{} cannot be asked: {why}", self.peer.shown()),
        );
        match self.peer {
            Peer::Metadata(_) => error.with_hint(
                "outside of Azure there is no managed identity; name another login in the URI of \
                 the key: see docs/KEYS.md",
            ),
            _ => error,
        }
    }

    fn explain(&self, error: &ureq::Error) -> KeyError {
        let shown = self.unreachable(http::explain(error));
        match http::is_about_certificate(error) {
            true => shown.with_hint(http::CERTIFICATE_HINT),
            false => shown,
        }
    }

    /// Sends a request. If the server is asked too often it says when to come again, which is
    /// waited for within the time of the operation.
    fn exchange(&self, request: &Request) -> Result<AsyncRawResponse, KeyError> {
        loop {
            let response = self.agent.run(self.prepare(request)?);
            let mut response = response.map_err(|error| self.explain(&error))?;
            let status = response.status();
            if status == 429 {
                http::wait(&response, self.end).map_err(|why| self.unreachable(why))?;
                continue;
            }
            if status.is_redirection() {
                let why = http::redirected(&response, "name the server itself");
                return Err(self.unreachable(why));
            }
            let body = http::read_body(&mut response)
                .map_err(|error| self.explain(&error))?
                .ok_or_else(|| self.unreachable(http::TOO_LONG))?;
            if !status.is_success() && !matches!(self.peer, Peer::Vault(_)) {
                let shown = self.peer.shown();
                return Err(answers::no_token(&shown, status.as_u16(), &body));
            }
            return Ok(AsyncRawResponse::from_bytes(
                status.as_u16().into(),
                headers_of(&response),
                body.to_vec(),
            ));
        }
    }

    fn prepare(&self, request: &Request) -> Result<HttpRequest<ureq::SendBody<'static>>, KeyError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.unreachable("no answer in time"));
        }
        let address = self.peer.address_of(request.url()).ok_or_else(|| {
            // The answer of a vault, or the environment, may name any server.
            let other = printable(request.url().authority());
            self.unreachable(format!("a request for {other} was to be sent"))
        })?;
        let mut new = HttpRequest::builder()
            .method(request.method().as_str())
            .uri(address);
        for (name, value) in request.headers().iter() {
            if name.as_str() == "content-length" {
                continue;
            }
            let mut value = HeaderValue::from_str(value.as_str())
                .map_err(|_| self.unreachable("a header has characters that it cannot have"))?;
            value.set_sensitive(name.as_str() == "authorization");
            new = new.header(name.as_str(), value);
        }
        let body = match request.method() {
            Method::Get => ureq::SendBody::none(),
            _ => {
                let body = Bytes::from(request.body());
                new = new.header("content-length", body.len());
                ureq::SendBody::from_owned_reader(std::io::Cursor::new(body))
            }
        };
        let new = new
            .body(body)
            .map_err(|_| self.unreachable("the request is malformed"))?;
        let configured = self.agent.configure_request(new);
        Ok(configured.timeout_global(Some(left)).build())
    }
}

fn headers_of(response: &Response<ureq::Body>) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in response.headers() {
        if let Ok(value) = value.to_str() {
            headers.insert(name.as_str().to_owned(), value.to_owned());
        }
    }
    headers
}

#[async_trait]
impl HttpClient for Transport {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        self.exchange(request)
            .map_err(|error| self.failure.keep(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_to_the_named_server_alone() {
        let vault = Peer::vault("v.example:8443").expect("a vault");
        let metadata = Peer::Metadata(None);
        let proxy = Peer::Metadata(Some(([127, 0, 0, 1], 80).into()));
        for (peer, url, expected) in [
            (
                &vault,
                "https://v.example:8443/keys/k",
                Some("https://v.example:8443/keys/k"),
            ),
            (&vault, "https://v.example/keys/k", None),
            (&vault, "http://v.example:8443/keys/k", None),
            (&vault, "https://evil.example:8443/keys/k", None),
            (&vault, "https://a:b@v.example:8443/keys/k", None),
            (
                &metadata,
                "http://169.254.169.254/a?b=c",
                Some("http://169.254.169.254/a?b=c"),
            ),
            (
                &proxy,
                "http://169.254.169.254/a?b=c",
                Some("http://127.0.0.1:80/a?b=c"),
            ),
            (&metadata, "http://169.254.169.254:81/a", None),
            (&metadata, "http://evil.example/a", None),
            (&proxy, "https://169.254.169.254/a", None),
        ] {
            let parsed = Url::parse(url).expect(url);
            assert_eq!(peer.address_of(&parsed).as_deref(), expected, "{url}");
        }
    }
}
