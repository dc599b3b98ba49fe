//! What the Hub's answers say: headers over several redirects, ranges, and where a redirect leads.

use super::cache::is_plain;
use super::client::Failure;
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};

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

/// The Hub's headers over the redirects of one request.
#[derive(Default)]
pub(super) struct Said {
    commit: Option<String>,
    /// Of git-lfs: the content behind the redirect.
    linked_etag: Option<String>,
    linked_size: Option<u64>,
    etag: Option<String>,
    size: Option<u64>,
}

impl Said {
    /// Takes in the headers of an answer.
    pub(super) fn hear(&mut self, answer: &Response<Body>) {
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

    /// Whether a further answer could add nothing that matters.
    pub(super) fn enough(&self) -> bool {
        self.commit.is_some() && self.linked_etag.is_some() && self.linked_size.is_some()
    }

    /// The file that the answers were about.
    pub(super) fn found(self) -> Result<Found, Failure> {
        let commit = self.commit.ok_or_else(|| Failure::Odd("it sends no X-Repo-Commit; is it a Hub?".into()))?;
        if !is_plain(&commit) {
            return Err(Failure::Odd("its X-Repo-Commit is not a commit".into()));
        }
        let etag = self.linked_etag.or(self.etag).filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| Failure::Odd("it sends no ETag".into()))?;
        Ok(Found { commit, etag, size: self.linked_size.or(self.size) })
    }
}

/// A header as text.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| value.trim().to_string())
}

/// A header as a number.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// First byte and whole length of `bytes first-last/length`, whose length may be `*`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = text(headers, "content-range")?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Where an answer sends us on to, if it does.
pub(super) fn redirect(answer: &Response<Body>, from: &str) -> Result<Option<String>, Failure> {
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

/// Whether two addresses are of one scheme, host and port.
pub(super) fn same_origin(a: &str, b: &str) -> bool {
    origin(a).is_some_and(|a| Some(a) == origin(b))
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
