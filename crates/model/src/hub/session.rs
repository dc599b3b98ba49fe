//! One model on the Hub, all of its files of one commit, from the cache where they are there.

use super::answer::Found;
use super::cache::{RepoCache, is_commit};
use super::client::{Client, Failure};
use super::download::{self, Wanted};
use super::settings::Hub;
use crate::error::{Error, Result};
use crate::files::{self, shard_names};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A model that is being fetched.
pub(super) struct Session<'a> {
    hub: &'a Hub,
    /// `org/name@revision`, for messages.
    name: String,
    id: String,
    revision: String,
    repo: RepoCache,
    /// `None` when the network is forbidden.
    client: Option<Client<'a>>,
    /// The commit that every file is of; on the network, known from the first answer on.
    commit: Option<String>,
    /// Whether something was downloaded, which a later try goes on from.
    begun: bool,
}

/// Why a file cannot be had.
enum Trouble {
    /// Asking for it failed.
    Failed { file: String, failure: Failure },
    /// The model has no such file, or the cache has not where the network is forbidden.
    Absent { file: String },
    /// The branch got another commit between two files.
    Moved,
}

impl<'a> Session<'a> {
    /// # Errors
    /// When the id or the revision cannot be one: both become paths.
    pub(super) fn new(hub: &'a Hub, id: &str, revision: &str) -> Result<Self> {
        let name = format!("{id}@{revision}");
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
        if !id.split('/').all(plain) || !revision.split('/').all(plain) {
            return Err(Error::Hub(format!("{name:?} is not a Hub id like org/name or org/name@revision")));
        }
        let repo = RepoCache::new(&hub.cache, id);
        let commit =
            if hub.offline { repo.commit(revision) } else { Some(revision.to_string()).filter(|r| is_commit(r)) };
        let client = (!hub.offline).then(|| Client::new(hub));
        Ok(Self { hub, name, id: id.into(), revision: revision.into(), repo, client, commit, begun: false })
    }

    /// Brings `config.json`, or finds it in the cache.
    pub(super) fn config(&mut self) -> Result<PathBuf> {
        let path = self.required("config.json").map_err(|trouble| self.explain(trouble))?;
        if let Some(commit) = &self.commit
            && self.repo.commit(&self.revision).is_none()
        {
            self.repo.set_commit(&self.revision, commit)?;
        }
        Ok(path)
    }

    /// Brings every file, and notes the revision's commit only then: an older whole model stays in use until a newer
    /// one is whole.
    pub(super) fn download(&mut self) -> Result<PathBuf> {
        let known = self.repo.commit(&self.revision);
        let known = known.and_then(|commit| Some((self.repo.whole(&commit)?, commit)));
        match (self.every_file(), known) {
            (Ok(folder), _) => {
                let commit = self.commit.as_deref().unwrap_or(&self.revision);
                self.repo.set_commit(&self.revision, commit)?;
                Ok(folder)
            }
            (Err(Trouble::Failed { file, failure }), Some((folder, commit))) if failure.is_outage() => {
                let why = self.explain(Trouble::Failed { file, failure });
                // Not `eprintln!`, which panics when stderr is closed.
                let _ = writeln!(std::io::stderr(), "{why}; going on with commit {commit} from the cache");
                Ok(folder)
            }
            (Err(trouble), _) => Err(self.explain(trouble)),
        }
    }

    fn every_file(&mut self) -> Result<PathBuf, Trouble> {
        let mut folder = PathBuf::new();
        for name in files::REQUIRED {
            folder = self.required(name)?;
        }
        for name in files::OPTIONAL {
            self.optional(name)?;
        }
        match self.optional(files::INDEX)? {
            None => drop(self.required(files::SINGLE)?),
            Some(index) => {
                let text = std::fs::read_to_string(&index).map_err(Error::io(&index));
                let shards = text.and_then(|text| shard_names(&text).map_err(|e| Error::invalid(&index, e)));
                for shard in shards.map_err(|error| local(files::INDEX, error))? {
                    self.required(&shard)?;
                }
            }
        }
        folder.pop();
        Ok(folder)
    }

    fn required(&mut self, file: &str) -> Result<PathBuf, Trouble> {
        self.optional(file)?.ok_or_else(|| Trouble::Absent { file: file.into() })
    }

    /// A file's path in the cache, brought there first where need be; `None` if the model has none.
    fn optional(&mut self, file: &str) -> Result<Option<PathBuf>, Trouble> {
        if let Some(commit) = &self.commit {
            if let Some(path) = self.repo.file(commit, file) {
                return Ok(Some(path));
            }
            if self.repo.is_absent(commit, file) {
                return Ok(None);
            }
        }
        let Some(client) = &self.client else { return Ok(None) };
        let url = format!("{}/{}/resolve/{}/{file}", self.hub.endpoint, self.id, escape(&self.revision));
        let failed = |failure| Trouble::Failed { file: file.into(), failure };
        let found = match locate(client, &url) {
            Ok(found) => found,
            Err(failure) if failure.is_no_such_file() => {
                if let Some(commit) = &self.commit {
                    self.repo.set_absent(commit, file).map_err(|error| local(file, error))?;
                }
                return Ok(None);
            }
            Err(failure) => return Err(failed(failure)),
        };
        if *self.commit.get_or_insert_with(|| found.commit.clone()) != found.commit {
            return Err(Trouble::Moved);
        }
        let label = format!("{} {file}", self.id);
        let wanted = Wanted { url: &url, found: &found, label: &label, show: self.hub.progress };
        let blob = download::fetch(client, &self.repo, &wanted);
        self.begun |= download::has_begun(&self.repo, &found);
        let blob = blob.map_err(failed)?;
        self.repo.link(&found.commit, file, &blob).map(Some).map_err(|error| local(file, error))
    }

    /// What went wrong and what to do, in one line without a secret.
    fn explain(&self, trouble: Trouble) -> Error {
        let at = &self.hub.endpoint;
        // `runs/nope` is a legal id, and where there is a folder `runs` more likely the name of a folder in it.
        let meant = Path::new(&self.id).parent().is_some_and(|above| !above.as_os_str().is_empty() && above.is_dir());
        let name = match meant {
            true => format!("{}: there is no folder {} here, so it was looked for on the Hub", self.name, self.id),
            false => self.name.clone(),
        };
        let (file, failure) = match trouble {
            Trouble::Failed { failure: Failure::Local(error), .. } => return error,
            Trouble::Failed { file, failure } => (file, failure),
            Trouble::Moved => {
                let advice = "run again, or give a commit as its revision";
                return Error::Hub(format!("{name}: it changed on {at} while it was downloaded; {advice}"));
            }
            Trouble::Absent { file } if self.client.is_none() => {
                let cache = self.hub.cache.display();
                let advice = "unset it where there is a network, or give a folder with the model";
                return Error::Hub(format!(
                    "{name}: {file} is not in the cache {cache}, and HF_HUB_OFFLINE is set; {advice}"
                ));
            }
            Trouble::Absent { file } => {
                return Error::Hub(format!("{name}: there is no {file} on {at}; check the id and the revision"));
            }
        };
        let why = match failure {
            Failure::Status { code: 404, kind } if kind == "RevisionNotFound" => "there is no such revision".into(),
            Failure::Status { code: 404, .. } => "there is no such model; check its id".into(),
            Failure::Status { code: code @ (401 | 403), .. } => self.refused(code),
            Failure::Status { code, .. } => format!("the Hub answers with status {code}; try again later"),
            Failure::Unreachable(why) => {
                let advice = "give a folder with the model, set HF_ENDPOINT to a Hub that can be reached, or \
                              HF_HUB_OFFLINE=1 to look in the cache alone";
                format!("the Hub cannot be reached ({why}); {advice}")
            }
            Failure::Broken(why) => {
                let tries = self.hub.patience.tries;
                let often = if tries > 1 { format!(", {tries} times in a row") } else { String::new() };
                let advice = if self.begun { "run again to go on from there" } else { "run again" };
                format!("{why}{often}; {advice}")
            }
            Failure::Odd(why) => format!("the Hub's answer cannot be used: {why}"),
            Failure::Corrupt(why) => format!("the file that came is not whole: {why}; it is thrown away, run again"),
            Failure::Local(error) => error.to_string(),
        };
        Error::Hub(format!("{name}: {file} from {at}: {why}"))
    }

    fn refused(&self, code: u16) -> String {
        let advice = match self.hub.token {
            None => "the id is wrong, or the model is not public: set HF_TOKEN to a token that may read it",
            Some(_) => "the token has no access: accept the model's terms on its page, or use another HF_TOKEN",
        };
        format!("the Hub refuses it (status {code}); {advice}")
    }
}

fn local(file: &str, error: Error) -> Trouble {
    Trouble::Failed { file: file.into(), failure: Failure::Local(error) }
}

/// Asks again where that may help.
fn locate(client: &Client, url: &str) -> Result<Found, Failure> {
    let patience = client.patience();
    let mut tries = 1;
    loop {
        match client.locate(url) {
            Err(failure) if failure.may_pass() && tries < patience.tries => {
                std::thread::sleep(patience.pause * 2u32.pow((tries - 1).min(5)));
                tries += 1;
            }
            result => return result,
        }
    }
}

/// A revision as one part of an address: `refs/pr/1` is `refs%2Fpr%2F1`.
fn escape(revision: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    revision.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_one_part_of_an_address() {
        assert_eq!(escape("v1.0-rc_2"), "v1.0-rc_2");
        assert_eq!(escape("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escape("größe ?"), "gr%C3%B6%C3%9Fe%20%3F");
    }
}
