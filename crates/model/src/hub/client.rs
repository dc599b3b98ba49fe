//! Requests to the Hub: who may see the token, which redirects are followed, and what a failure means.

use super::answer::{Found, Said, content_range, number, redirect, same_origin, text};
use super::cache::is_plain;
use super::settings::Hub;
use crate::error::Error;
use std::io::{self, Read};
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, BodyReader};

/// Redirects followed for one request.
const MAX_HOPS: usize = 5;

/// How long to wait and how often to try.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a name to resolve and a connection to stand.
    pub connect: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the next bytes of a body.
    pub silence: Duration,
    /// Tries in a row that bring nothing, before it is given up.
    pub tries: u32,
    /// Before the second try; doubles with each further one.
    pub pause: Duration,
}

impl Default for Patience {
    /// The limits of the Hub's own client: 10 seconds each. With its 4 tries, a dead server is given up in under a minute.
    fn default() -> Self {
        let limit = Duration::from_secs(10);
        Self { connect: limit, answer: limit, silence: limit, tries: 4, pause: Duration::from_secs(1) }
    }
}

/// Why a file did not come.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no. `kind` is its `X-Error-Code`, such as `RevisionNotFound`.
    Status { code: u16, kind: String },
    /// There is no connection to be had.
    Unreachable(String),
    /// A connection that stood was cut or fell silent.
    Broken(String),
    /// The answer is not one of a Hub.
    Odd(String),
    /// The file came, but is not what the Hub says it is.
    Corrupt(String),
    /// This machine's own trouble.
    Local(Error),
}

impl Failure {
    /// Whether the same request may succeed in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Status { code, .. } => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the Hub itself is out of reach, whatever is asked of it.
    pub(super) fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_)) || self.may_pass()
    }

    /// Whether the repository is there and the file is not.
    pub(super) fn is_no_such_file(&self) -> bool {
        matches!(self, Self::Status { code: 404, kind } if kind.is_empty() || kind == "EntryNotFound")
    }
}

/// A body that has begun to come.
pub(super) struct Opened {
    /// The place in the file of the body's first byte.
    pub start: u64,
    /// Bytes of the whole file, where the answer says so.
    pub total: Option<u64>,
    /// The bytes.
    pub body: BodyReader<'static>,
}

/// The system's own TLS with the certificates that it trusts.
#[cfg(target_os = "macos")]
fn system_tls() -> ureq::tls::TlsConfig {
    use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
    TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build()
}

/// A connection pool with the Hub's manners.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        let wait = &hub.patience;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here: the first of them carries the Hub's headers, and only the Hub gets the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(wait.connect))
            .timeout_connect(Some(wait.connect))
            .timeout_recv_response(Some(wait.answer))
            .timeout_per_read(Some(wait.silence))
            .user_agent(concat!("bellows/", env!("CARGO_PKG_VERSION")));
        #[cfg(target_os = "macos")]
        let config = config.tls_config(system_tls());
        Self { hub, agent: config.build().into() }
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.hub.patience
    }

    /// Asks for a file's commit, etag and size.
    pub(super) fn locate(&self, url: &str) -> Result<Found, Failure> {
        let (mut url, mut said) = (url.to_string(), Said::default());
        for _ in 0..MAX_HOPS {
            let answer = self.head(&url)?;
            said.hear(&answer);
            // Storage on another host knows nothing more that matters; a renamed repository's new place does.
            match redirect(&answer, &url)? {
                Some(next) if !said.enough() && same_origin(&next, &self.hub.endpoint) => url = next,
                _ => return said.found(),
            }
        }
        Err(too_many_redirects())
    }

    fn head(&self, url: &str) -> Result<Response<Body>, Failure> {
        match self.send(self.agent.head(url), url, None) {
            // A server that knows only GET: its first byte brings the same headers.
            Err(Failure::Status { code: 405 | 501, .. }) => {
                self.send(self.agent.get(url), url, Some("bytes=0-0".into()))
            }
            other => other,
        }
    }

    /// Asks for a file's bytes from `start` on. The server may begin at zero instead.
    pub(super) fn open(&self, url: &str, start: u64) -> Result<Opened, Failure> {
        let mut url = url.to_string();
        for _ in 0..MAX_HOPS {
            let range = (start > 0).then(|| format!("bytes={start}-"));
            let answer = self.send(self.agent.get(&url), &url, range)?;
            if let Some(next) = redirect(&answer, &url)? {
                url = next;
                continue;
            }
            let (start, total) = match answer.status() {
                StatusCode::PARTIAL_CONTENT => match content_range(answer.headers()) {
                    Some((from, total)) if from == start => (start, total),
                    _ => return Err(Failure::Odd("it sends another range than it was asked for".into())),
                },
                _ => (0, number(answer.headers(), "content-length")),
            };
            return Ok(Opened { start, total, body: answer.into_body().into_reader() });
        }
        Err(too_many_redirects())
    }

    fn send(
        &self,
        mut request: ureq::RequestBuilder<ureq::typestate::WithoutBody>,
        url: &str,
        range: Option<String>,
    ) -> Result<Response<Body>, Failure> {
        // Compressed bytes have another length and another hash.
        request = request.header("accept-encoding", "identity");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        if let Some(token) = self.hub.token.as_ref().filter(|_| same_origin(url, &self.hub.endpoint)) {
            request = request.header("authorization", token.bearer());
        }
        let answer = request.call().map_err(|e| self.failure(e))?;
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(answer);
        }
        let kind = text(answer.headers(), "x-error-code").filter(|kind| is_plain(kind)).unwrap_or_default();
        Err(Failure::Status { code: status.as_u16(), kind })
    }

    /// What an error of the connection means. Addresses are left out: those of storage are secrets while they last.
    fn failure(&self, error: ureq::Error) -> Failure {
        let wait = &self.hub.patience;
        match error {
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                Failure::Unreachable(format!("no connection within {} s", wait.connect.as_secs_f64()))
            }
            ureq::Error::Timeout(ureq::Timeout::PerRead) => self.silence(),
            ureq::Error::Timeout(_) => Failure::Broken(format!("no answer within {} s", wait.answer.as_secs_f64())),
            // A name that is not found, a network that is not there: only some errors need a connection to break.
            ureq::Error::Io(e) if !is_of_a_connection(&e) => Failure::Unreachable(e.to_string()),
            ureq::Error::Io(e) => self.io_failure(&e),
            ureq::Error::HostNotFound => Failure::Unreachable("its name is not known here".into()),
            ureq::Error::ConnectionFailed => Failure::Unreachable("no connection".into()),
            ureq::Error::BadUri(_) => Failure::Odd("it sends an address that is none".into()),
            other => Failure::Odd(other.to_string()),
        }
    }

    fn silence(&self) -> Failure {
        Failure::Broken(format!("nothing came for {} s", self.hub.patience.silence.as_secs_f64()))
    }

    /// What an error while bytes come means.
    pub(super) fn io_failure(&self, error: &io::Error) -> Failure {
        use io::ErrorKind::{
            AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut, WouldBlock,
        };
        match error.kind() {
            ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable => {
                Failure::Unreachable(error.to_string())
            }
            TimedOut | WouldBlock => self.silence(),
            _ if is_timeout(error) => self.silence(),
            _ => Failure::Broken(format!("the connection broke: {error}")),
        }
    }
}

/// Whether an error of a request can only come once there was a connection.
fn is_of_a_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, NotConnected, TimedOut, UnexpectedEof, WouldBlock,
        WriteZero,
    };
    let kinds = [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        InvalidData,
        NotConnected,
        TimedOut,
        UnexpectedEof,
        WouldBlock,
        WriteZero,
    ];
    kinds.contains(&error.kind()) || is_timeout(error)
}

/// Whether the client's own limit ended a read.
fn is_timeout(error: &io::Error) -> bool {
    error.get_ref().and_then(|e| e.downcast_ref()).is_some_and(|e| matches!(e, ureq::Error::Timeout(_)))
}

fn too_many_redirects() -> Failure {
    Failure::Odd(format!("more than {MAX_HOPS} redirects"))
}

/// Reads as much as there is, up to the buffer's length; zero at the end.
pub(super) fn read_some(body: &mut BodyReader<'static>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match body.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_was_connected_did_not_break() {
        let hub = Hub {
            endpoint: "http://127.0.0.1:1".into(),
            cache: "none".into(),
            token: None,
            offline: false,
            progress: false,
            patience: Patience::default(),
        };
        let client = Client::new(&hub);
        // As the system says that a name is unknown: an error of no kind of its own.
        let unknown = || io::Error::other("failed to lookup address information: Name or service not known");
        let failure = client.failure(ureq::Error::Io(unknown()));
        assert!(matches!(&failure, Failure::Unreachable(why) if why.contains("Name or service")), "{failure:?}");
        assert!(!failure.may_pass() && failure.is_outage());
        let failure = client.failure(ureq::Error::Io(io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(&failure, Failure::Broken(why) if why.contains("broke")) && failure.may_pass(), "{failure:?}");
    }
}
