//! A Hub on loopback that can be told to fail: addresses, headers and redirects as the real one has them, no more.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What goes wrong with one request for a file's bytes.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection is cut after so many bytes.
    Drop(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
    /// Another status instead of the bytes.
    Status(u16),
    /// Every byte is another one.
    Wrong,
    /// The whole file, whatever range was asked for.
    Whole,
    /// The file and so many bytes more.
    Longer(usize),
}

/// A file of the repository.
#[derive(Clone)]
pub struct Remote {
    pub body: Vec<u8>,
    /// Whether git-lfs keeps it: its bytes are on the storage host, behind a redirect.
    pub large: bool,
    /// One a request for its bytes, in order; none once they are used up.
    pub faults: VecDeque<Fault>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub storage: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorized: bool,
}

/// What the Hub holds and what it was asked.
pub struct State {
    pub commit: String,
    pub files: BTreeMap<String, Remote>,
    /// Who gives another token, or none, gets a 401.
    pub token: Option<String>,
    /// A status and `X-Error-Code` for every request to the Hub.
    pub refusal: Option<(u16, &'static str)>,
    /// Whether HEAD is not known.
    pub only_get: bool,
    /// The Hub answers no request at all.
    pub silent: bool,
    pub seen: Vec<Seen>,
}

/// The Hub of one repository, `org/tiny`.
pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Starts it with these files; those of a kilobyte and more are large.
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let remote = |body: &[u8]| Remote { body: body.into(), large: body.len() >= 1024, faults: VecDeque::new() };
        let state = Arc::new(Mutex::new(State {
            commit: "a".repeat(40),
            files: files.iter().map(|(name, body)| (name.to_string(), remote(body))).collect(),
            token: None,
            refusal: None,
            only_get: false,
            silent: false,
            seen: Vec::new(),
        }));
        let storage = listen(state.clone(), None);
        let endpoint = listen(state.clone(), Some(storage));
        Self { endpoint, state }
    }

    /// What it holds; to be changed, and looked at.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets requests for a file's bytes fail, one after the other.
    pub fn fail(&self, file: &str, faults: &[Fault]) {
        self.state().files.get_mut(file).unwrap().faults = faults.iter().copied().collect();
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }
}

/// A listener of its own thread; `storage` is where the Hub sends large files' readers, `None` for the storage itself.
fn listen(state: Arc<Mutex<State>>, storage: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (state, storage) = (state.clone(), storage.clone());
            // An answer is written in pieces, each of which would wait for the last one's acknowledgement.
            stream.set_nodelay(true).unwrap();
            // A client that hangs up is part of the tests.
            std::thread::spawn(move || while matches!(answer(&stream, &state, storage.as_deref()), Ok(true)) {});
        }
    });
    address
}

/// Answers one request; whether the connection stays open.
fn answer(stream: &TcpStream, state: &Mutex<State>, storage: Option<&str>) -> std::io::Result<bool> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(false) };
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or("").to_string(), words.next().unwrap_or("").to_string());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let (range, token) = (headers.remove("range"), headers.remove("authorization"));
    let mut state = state.lock().unwrap();
    state.seen.push(Seen {
        storage: storage.is_none(),
        method: method.clone(),
        path: path.clone(),
        range: range.clone(),
        authorized: token.is_some(),
    });
    if storage.is_some() {
        if state.silent {
            drop(state);
            std::thread::sleep(Duration::from_secs(60));
            return Ok(false);
        }
        if let Some((code, kind)) = state.refusal {
            return status(stream, code, kind);
        }
        if state.token.as_ref().is_some_and(|wanted| token.as_deref() != Some(&format!("Bearer {wanted}"))) {
            return status(stream, 401, "GatedRepo");
        }
        if method == "HEAD" && state.only_get {
            return status(stream, 501, "");
        }
    }
    let (name, known) = match path.strip_prefix("/org/tiny/resolve/").and_then(|rest| rest.split_once('/')) {
        Some((revision, name)) => (name, ["main", "refs%2Fpr%2F1", state.commit.as_str()].contains(&revision)),
        None => (path.strip_prefix("/storage/").unwrap_or(""), storage.is_none()),
    };
    if !known {
        return status(stream, 404, if path.starts_with("/org/tiny/") { "RevisionNotFound" } else { "RepoNotFound" });
    }
    let (name, commit) = (name.split('?').next().unwrap_or(name).to_string(), state.commit.clone());
    let Some(file) = state.files.get_mut(&name) else { return status(stream, 404, "EntryNotFound") };
    let etag = if file.large {
        hex(&Sha256::digest(&file.body))
    } else {
        hex(&Sha1::new_with_prefix(format!("blob {}\0", file.body.len())).chain_update(&file.body).finalize())
    };
    if let Some(storage) = storage
        && file.large
    {
        let size = file.body.len();
        let headers = format!(
            "Location: {storage}/storage/{name}?signature=s3cret\r\nX-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}"
        );
        write!(&*stream, "HTTP/1.1 302 Found\r\n{headers}\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    }
    let headers = format!("X-Repo-Commit: {commit}\r\nETag: \"{etag}\"");
    if method == "HEAD" {
        write!(&*stream, "HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n", file.body.len())?;
        return Ok(true);
    }
    let probe = range.as_deref() == Some("bytes=0-0");
    let fault = if probe { None } else { file.faults.pop_front() };
    let body = file.body.clone();
    drop(state);
    send(stream, &headers, body, range.as_deref(), fault)
}

fn send(
    mut stream: &TcpStream,
    headers: &str,
    mut body: Vec<u8>,
    range: Option<&str>,
    fault: Option<Fault>,
) -> std::io::Result<bool> {
    let size = body.len();
    match fault {
        Some(Fault::Status(code)) => return status(stream, code, ""),
        Some(Fault::Wrong) => body.iter_mut().for_each(|byte| *byte ^= 0x55),
        Some(Fault::Longer(more)) => body.extend(std::iter::repeat_n(0, more)),
        _ => {}
    }
    let asked = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let start: usize = asked.and_then(|(start, _)| start.parse().ok()).unwrap_or(0);
    let end: usize = asked.and_then(|(_, end)| end.parse().ok()).map_or(body.len(), |end: usize| end + 1);
    if range.is_none() || matches!(fault, Some(Fault::Whole)) {
        write!(stream, "HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    } else if start >= size {
        return status(stream, 416, "");
    } else {
        body = body[start..end].to_vec();
        let content_range = format!("Content-Range: bytes {start}-{}/{size}", start + body.len() - 1);
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\n{headers}\r\n{content_range}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
    }
    let sent = match fault {
        Some(Fault::Drop(n) | Fault::Stall(n)) => n.min(body.len()),
        _ => body.len(),
    };
    stream.write_all(&body[..sent])?;
    stream.flush()?;
    match fault {
        Some(Fault::Stall(_)) => std::thread::sleep(Duration::from_secs(60)),
        Some(Fault::Drop(_)) => stream.shutdown(std::net::Shutdown::Both)?,
        _ => return Ok(true),
    }
    Ok(false)
}

fn status(mut stream: &TcpStream, code: u16, kind: &str) -> std::io::Result<bool> {
    write!(stream, "HTTP/1.1 {code} No\r\nX-Error-Code: {kind}\r\nContent-Length: 0\r\n\r\n")?;
    Ok(true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
