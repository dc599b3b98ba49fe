//! Where the Hub is, where its cache is, and what may be asked of it.

use super::cache::RepoCache;
use super::client::Patience;
use super::session::Session;
use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A secret; shows itself to nobody.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token without the white space around it; `None` if nothing else is there.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.into()))
    }

    /// The value of the `Authorization` header.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a header can hold it.
    fn sendable(&self) -> bool {
        self.0.bytes().all(|b| b.is_ascii_graphic())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A Hub and its cache.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// The folder that holds a folder for each repository.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// Whether the network may not be used.
    pub offline: bool,
    /// Whether downloads show how far they are, on stderr.
    pub progress: bool,
    /// How long to wait, how often to try.
    pub patience: Patience,
}

impl Hub {
    /// The Hub that the environment describes.
    ///
    /// # Errors
    /// When a variable has a value that cannot be used: names it.
    pub fn from_env() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = match variable("HF_HOME") {
            Some(home) => expand(&home)?,
            None => match variable("XDG_CACHE_HOME") {
                Some(cache) => expand(&cache)?.join("huggingface"),
                None => user_home()?.join(".cache").join("huggingface"),
            },
        };
        let cache = variable("HF_HUB_CACHE").map_or_else(|| Ok(home.join("hub")), |path| expand(&path))?;
        let mut patience = Patience::default();
        for (name, limit) in
            [("HF_HUB_ETAG_TIMEOUT", &mut patience.answer), ("HF_HUB_DOWNLOAD_TIMEOUT", &mut patience.silence)]
        {
            if let Some(text) = variable(name) {
                *limit = seconds(name, &text)?;
            }
        }
        Ok(Self {
            endpoint: endpoint(variable("HF_ENDPOINT"))?,
            cache,
            token: token(variable, &home)?,
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| truthy(&value)),
            progress: true,
            patience,
        })
    }

    /// The folder of a model that lies whole in the cache.
    pub fn cached(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let repo = RepoCache::new(&self.cache, id);
        repo.whole(&repo.commit(revision)?)
    }

    /// Only the `config.json` of a model, its path and its text: enough to know what it needs before its weights are
    /// downloaded.
    ///
    /// # Errors
    /// When it is neither in the cache nor to be had: names the model, the file, and what to do.
    pub fn config(&self, id: &str, revision: &str) -> Result<(PathBuf, String)> {
        let path = Session::new(self, id, revision)?.config()?;
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Ok((path, text))
    }

    /// Brings a model's files into the cache, all of one commit, and returns their folder. A model that lies whole in
    /// the cache is used, with a line on stderr, when the Hub cannot be reached.
    ///
    /// # Errors
    /// When a file that a model must have cannot be had: names the model, the file, and what to do.
    pub fn download(&self, id: &str, revision: &str) -> Result<PathBuf> {
        Session::new(self, id, revision)?.download()
    }
}

fn truthy(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

fn endpoint(value: Option<String>) -> Result<String> {
    let value = value.unwrap_or_else(|| "https://huggingface.co".into());
    let address = value.trim().trim_end_matches('/');
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    match rest {
        // Text before an @ would be a password, which messages would show.
        Some(rest) if !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']) => Ok(address.into()),
        _ => Err(Error::Hub(
            "HF_ENDPOINT: give the address of a Hub, such as https://huggingface.co, without a user, a query or spaces"
                .into(),
        )),
    }
}

/// `HF_TOKEN`, or the file where the Hub's login command puts it.
fn token(variable: impl Fn(&str) -> Option<String>, home: &Path) -> Result<Option<Token>> {
    let (name, text) = match variable("HF_TOKEN") {
        Some(text) => ("HF_TOKEN".to_string(), text),
        None if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| truthy(&value)) => return Ok(None),
        None => {
            let path = variable("HF_TOKEN_PATH").map_or_else(|| Ok(home.join("token")), |path| expand(&path))?;
            match std::fs::read_to_string(&path) {
                Ok(text) => (path.display().to_string(), text),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::io(path)(e)),
            }
        }
    };
    match Token::new(&text) {
        Some(token) if !token.sendable() => {
            Err(Error::Hub(format!("{name}: a token has no spaces, no line breaks and no other than ASCII characters")))
        }
        token => Ok(token),
    }
}

fn seconds(name: &str, text: &str) -> Result<Duration> {
    match text.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(Duration::from_secs_f64(value)),
        _ => Err(Error::Hub(format!("{name} = {text:?}: give seconds, more than 0 and at most 86400"))),
    }
}

fn user_home() -> Result<PathBuf> {
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .ok_or_else(|| Error::Hub("there is no home folder for the Hub's cache; set HF_HOME".into()))
}

/// A path whose `~` at the start is the user's home.
fn expand(path: &str) -> Result<PathBuf> {
    match path.strip_prefix("~/") {
        Some(rest) => Ok(user_home()?.join(rest)),
        None if path == "~" => user_home(),
        None => Ok(path.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_without_secrets() {
        assert_eq!(endpoint(None).unwrap(), "https://huggingface.co");
        assert_eq!(endpoint(Some("http://127.0.0.1:8080/".into())).unwrap(), "http://127.0.0.1:8080");
        assert_eq!(endpoint(Some("https://mirror/hf".into())).unwrap(), "https://mirror/hf");
        for wrong in ["huggingface.co", "https://", "ftp://x", "https://me:secret@mirror", "https://a b"] {
            let message = endpoint(Some(wrong.into())).unwrap_err().to_string();
            assert!(message.contains("HF_ENDPOINT") && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_token_is_read_but_never_shown() {
        let home = tempfile::tempdir().unwrap();
        let none = |_: &str| None;
        assert!(token(none, home.path()).unwrap().is_none());
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let found = token(none, home.path()).unwrap().unwrap();
        assert_eq!(found.bearer(), "Bearer hf_file");
        assert_eq!(format!("{found:?}"), "Token(..)");
        let set = |name: &str| (name == "HF_TOKEN").then(|| " hf_env ".to_string());
        assert_eq!(token(set, home.path()).unwrap().unwrap().bearer(), "Bearer hf_env");
        let off = |name: &str| (name == "HF_HUB_DISABLE_IMPLICIT_TOKEN").then(|| "1".to_string());
        assert!(token(off, home.path()).unwrap().is_none());
        let broken = |name: &str| (name == "HF_TOKEN").then(|| "hf_se\ncret".to_string());
        let message = token(broken, home.path()).unwrap_err().to_string();
        assert!(message.starts_with("HF_TOKEN: ") && !message.contains("cret"), "{message}");
    }

    #[test]
    fn limits_are_positive_seconds() {
        assert_eq!(seconds("X", "0.5").unwrap(), Duration::from_millis(500));
        for wrong in ["0", "-1", "ten", "nan", "inf"] {
            assert!(seconds("X", wrong).unwrap_err().to_string().contains("X = "), "{wrong}");
        }
    }
}
