//! Policies: the small files of a model folder, and what the Hub answers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::hub::{Hub, Patience};

use crate::target::{Random, Target};

/// The small files of a model folder.
pub fn small_files() -> Target {
    let files = model::embedded::files();
    let seeds = [
        Some(files.config.clone()),
        files.tokenizer_config.clone(),
        files.generation_config.clone(),
        files.chat_template.clone(),
    ];
    let read = move |bytes: &[u8], random: &mut Random| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut files = model::embedded::files();
        match random.below(4) {
            0 => {
                let _ = model::Config::parse(&text, Path::new("config.json"));
                files.config = text;
            }
            1 => files.tokenizer_config = Some(text),
            2 => files.generation_config = Some(text),
            _ => files.chat_template = Some(text),
        }
        if let Ok(text) = model::Text::new(&files) {
            let _ = text.prompt("Make 16 from 3, 7, 12.");
        }
        Ok(())
    };
    let pieces = &[
        "{",
        "}",
        "[",
        "]",
        "\"",
        "null",
        "-1",
        "1e99",
        "18446744073709551615",
        "{%",
        "%}",
        "{{",
        "}}",
        "for a in range(9999)",
        "endfor",
        "messages",
        "|",
        "{% for a in messages %}",
        "{% endfor %}",
        "'",
        "eos_token",
        "*9999",
    ];
    Target { name: "model", seeds: seeds.into_iter().flatten().collect(), pieces, read: Box::new(read) }
}

/// Replies of the Hub.
pub fn replies(folder: PathBuf) -> Target {
    let reply = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("{error}"));
    let endpoint = listener.local_addr().map(|address| format!("http://{address}")).unwrap_or_default();
    let served = reply.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let bytes =
                served.lock().map(|bytes: std::sync::MutexGuard<'_, Vec<u8>>| bytes.clone()).unwrap_or_default();
            let _ = stream.write_all(&bytes);
        }
    });
    let limit = Duration::from_millis(50);
    let patience =
        Patience { connect: limit, answer: limit, silence: limit, tries: 2, pause: Duration::from_millis(1) };
    let read = move |bytes: &[u8], random: &mut Random| {
        let cache = folder.join("inside/cache");
        let _ = fs::remove_dir_all(&cache);
        if let Ok(mut reply) = reply.lock() {
            *reply = bytes.to_vec();
        }
        let (endpoint, patience) = (endpoint.clone(), patience.clone());
        let hub = Hub { endpoint, cache, token: None, offline: false, progress: false, patience };
        let revision = if random.below(2) == 0 { "main" } else { "refs/pr/1" };
        if let Err(error) = hub.download("org/tiny", revision)
            && error.to_string().contains('\n')
        {
            return Err(format!("an error of several lines: {error}"));
        }
        let listed = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count);
        match (listed(&folder), listed(&folder.join("inside"))) {
            (0 | 1, 0 | 1) => Ok(()),
            _ => Err("a file outside of the cache".into()),
        }
    };
    let (commit, etag) = ("a".repeat(40), "ce013625030ba8dba906f756967f9e9ca394464a");
    let seeds = vec![
        format!("HTTP/1.1 200 OK\r\nX-Repo-Commit: {commit}\r\nETag: \"{etag}\"\r\nContent-Length: 6\r\n\r\nhello\n"),
        format!(
            "HTTP/1.1 200 OK\r\nX-Repo-Commit: {commit}\r\nETag: \"v1\"\r\nContent-Length: 17\r\n\r\n{{\"weight_map\": {{}}}}"
        ),
        format!(
            "HTTP/1.1 302 Found\r\nLocation: /b\r\nX-Repo-Commit: {commit}\r\nX-Linked-Etag: \"e\"\r\nX-Linked-Size: 3\r\nContent-Length: 0\r\n\r\n"
        ),
        "HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/1\r\nX-Repo-Commit: {commit}\r\nETag: W/\"x\"\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        ),
    ];
    let pieces = &[
        "\r\n",
        "HTTP/1.1 ",
        "200 ",
        "302 ",
        "416 ",
        "Location: ",
        "//evil/",
        "http://127.0.0.1:1/",
        "../",
        "/",
        "ETag: ",
        "\"",
        "X-Repo-Commit: ",
        "Content-Length: 99999999999999999999",
        "Content-Range: bytes 9-1/*",
        "Transfer-Encoding: chunked\r\n",
        "ffffffffffffffff\r\n",
        "\0",
        "{\"weight_map\": {\"a\": \"../../x\"}}",
    ];
    Target { name: "hub", seeds, pieces, read: Box::new(read) }
}
