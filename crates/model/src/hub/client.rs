//! Requests to the Hub: who may see the token, which redirects are followed, and what a failure means.

use super::cache::is_plain;
use super::settings::Hub;
use crate::error::Error;
use std::io::{self, Read};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
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

/// What the Hub says of a file before it sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The commit that the revision stands for.
    pub commit: String,
    /// The name of the content, without quotes; mostly its hash.
    pub etag: String,
    /// Bytes, where it says so.
    pub size: Option<u64>,
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

/// Whether the client's own limit ended a read.
fn is_timeout(error: &io::Error) -> bool {
    error.get_ref().and_then(|e| e.downcast_ref()).is_some_and(|e| matches!(e, ureq::Error::Timeout(_)))
}

fn too_many_redirects() -> Failure {
    Failure::Odd(format!("more than {MAX_HOPS} redirects"))
}

/// The Hub's headers over the redirects of one request.
#[derive(Default)]
struct Said {
    commit: Option<String>,
    /// Of git-lfs: the content behind the redirect.
    linked_etag: Option<String>,
    linked_size: Option<u64>,
    etag: Option<String>,
    size: Option<u64>,
}

impl Said {
    fn hear(&mut self, answer: &Response<Body>) {
        let headers = answer.headers();
        let etag = |name| text(headers, name).map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string());
        let (commit, linked_etag) = (text(headers, "x-repo-commit"), etag("x-linked-etag"));
        self.commit = self.commit.take().or(commit);
        self.linked_etag = self.linked_etag.take().or(linked_etag);
        self.linked_size = self.linked_size.or(number(headers, "x-linked-size"));
        self.etag = etag("etag").or(self.etag.take());
        // The length of a redirect is that of its own body.
        self.size = match answer.status() {
            StatusCode::PARTIAL_CONTENT => content_range(headers).and_then(|(_, total)| total),
            status if status.is_success() => number(headers, "content-length"),
            _ => None,
        };
    }

    fn enough(&self) -> bool {
        self.commit.is_some() && self.linked_etag.is_some() && self.linked_size.is_some()
    }

    fn found(self) -> Result<Found, Failure> {
        let commit = self.commit.ok_or_else(|| Failure::Odd("it sends no X-Repo-Commit; is it a Hub?".into()))?;
        if !is_plain(&commit) {
            return Err(Failure::Odd("its X-Repo-Commit is not a commit".into()));
        }
        let etag = self.linked_etag.or(self.etag).filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| Failure::Odd("it sends no ETag".into()))?;
        Ok(Found { commit, etag, size: self.linked_size.or(self.size) })
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| value.trim().to_string())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// First byte and whole length of `bytes first-last/length`, whose length may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = text(headers, "content-range")?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Where an answer sends us on to, if it does.
fn redirect(answer: &Response<Body>, from: &str) -> Result<Option<String>, Failure> {
    if !answer.status().is_redirection() {
        return Ok(None);
    }
    let odd = || Failure::Odd(format!("status {} without an address that can be followed", answer.status().as_u16()));
    let to = text(answer.headers(), "location").ok_or_else(odd)?;
    if to.starts_with("https://") || to.starts_with("http://") {
        return Ok(Some(to));
    }
    let (scheme, authority) = origin(from).ok_or_else(odd)?;
    match to.strip_prefix("//") {
        Some(rest) => Ok(Some(format!("{scheme}://{rest}"))),
        None if to.starts_with('/') => Ok(Some(format!("{scheme}://{authority}{to}"))),
        None => Err(odd()),
    }
}

fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().to_ascii_lowercase()))
}

fn same_origin(a: &str, b: &str) -> bool {
    origin(a).is_some_and(|a| Some(a) == origin(b))
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
    fn the_token_is_for_one_origin() {
        let hub = "https://huggingface.co";
        assert!(same_origin("https://huggingface.co/a/b", hub));
        assert!(same_origin("https://HuggingFace.co/a/b?x=1", hub));
        let others = ["http://huggingface.co/a", "https://huggingface.co.evil/a", "https://huggingface.co:8443/a"];
        for other in others.into_iter().chain(["https://huggingface.co@evil/a", "", "/a"]) {
            assert!(!same_origin(other, hub), "{other}");
        }
    }

    #[test]
    fn ranges_are_read_or_refused() {
        let range = |value: &str| {
            content_range(&HeaderMap::from_iter([("content-range".parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(range("bytes */10"), None);
        assert_eq!(range("5-9/10"), None);
    }
}
