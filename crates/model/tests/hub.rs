//! Downloads from a Hub on loopback that drops, stalls, refuses and lies: the right files, or one clear error each, and
//! nothing half-written taken for whole.

#[path = "hub/server.rs"]
mod server;

use model::hub::{Hub, Patience, Token};
use server::{Fault, Server};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const ID: &str = "org/tiny";
const WEIGHTS: &str = "model.safetensors";

/// Bytes with a period that no buffer has.
fn weights() -> Vec<u8> {
    (0..700_001u32).map(|i| (i % 251) as u8).collect()
}

fn tiny() -> Server {
    Server::start(&[
        ("config.json", b"{\"model_type\": \"qwen2\"}"),
        ("tokenizer.json", b"{\"version\": \"1.0\"}"),
        ("generation_config.json", b"{\"eos_token_id\": [1, 2]}"),
        (WEIGHTS, &weights()),
    ])
}

/// A client of the server with a cache of its own, which gives up soon.
fn client(server: &Server) -> (Hub, TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let limit = Duration::from_millis(300);
    let patience =
        Patience { connect: limit, answer: limit, silence: limit, tries: 3, pause: Duration::from_millis(1) };
    let hub = Hub {
        endpoint: server.endpoint.clone(),
        cache: cache.path().into(),
        token: None,
        offline: false,
        progress: false,
        patience,
    };
    (hub, cache)
}

fn refusal(hub: &Hub, revision: &str) -> String {
    let message = hub.download(ID, revision).unwrap_err().to_string();
    assert!(!message.contains('\n') && message.starts_with(&format!("{ID}@{revision}: ")), "{message}");
    assert!(!message.contains("s3cret"), "{message}");
    message
}

fn assert_whole(folder: &Path, server: &Server) {
    for (name, file) in &server.state().files {
        assert!(fs::read(folder.join(name)).unwrap() == file.body, "{name} is not what the Hub has");
    }
}

/// Every file below a folder, with its length.
fn files_in(folder: PathBuf) -> Vec<(String, u64)> {
    let entries = fs::read_dir(folder).map_or_else(|_| Vec::new(), |entries| entries.map(Result::unwrap).collect());
    entries.iter().map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len())).collect()
}

fn blobs(cache: &TempDir) -> Vec<(String, u64)> {
    files_in(cache.path().join("models--org--tiny/blobs"))
}

/// Asserts that no file of the weights' length stands anywhere under a name of its own.
fn assert_no_weights(hub: &Hub, cache: &TempDir) {
    assert!(blobs(cache).iter().all(|(name, _)| name.len() == 40 || name.ends_with(".part")), "{:?}", blobs(cache));
    let snapshot = cache.path().join("models--org--tiny/snapshots").join("a".repeat(40));
    assert!(!snapshot.join(WEIGHTS).exists());
    assert!(hub.cached(ID, "main").is_none());
    let offline = Hub { offline: true, ..hub.clone() };
    let message = offline.download(ID, "main").unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn a_model_is_downloaded_once_and_then_used_without_a_network() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    let folder = hub.download(ID, "main").unwrap();
    assert_whole(&folder, &server);
    assert_eq!(hub.cached(ID, "main"), Some(folder.clone()));
    assert!(server.requests().len() > 5);

    assert_eq!(hub.download(ID, "main").unwrap(), folder);
    let asked = server.requests();
    assert_eq!(asked.len(), 1, "a branch is asked for its commit, and a whole one for no file: {asked:?}");
    assert_eq!((asked[0].method.as_str(), asked[0].path.as_str()), ("HEAD", "/org/tiny/resolve/main/config.json"));
}

#[test]
fn a_commit_in_the_cache_needs_no_network() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    let folder = hub.download(ID, "main").unwrap();
    server.requests();
    for offline in [Hub { offline: true, ..hub.clone() }, Hub { endpoint: "http://127.0.0.1:1".into(), ..hub.clone() }]
    {
        assert_eq!(offline.download(ID, "main").unwrap(), folder);
        assert_eq!(offline.download(ID, &"a".repeat(40)).unwrap(), folder);
        assert_eq!(offline.config(ID, &"a".repeat(40)).unwrap().0, folder.join("config.json"));
    }
    assert_eq!(server.requests().len(), 0);
    let offline = Hub { offline: true, ..hub };
    let message = offline.download("org/other", "main").unwrap_err().to_string();
    assert!(message.contains("config.json is not in the cache") && message.contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn the_cache_has_the_hubs_own_layout() {
    let server = tiny();
    let (hub, cache) = client(&server);
    let folder = hub.download(ID, "refs/pr/1").unwrap();
    let root = cache.path().join("models--org--tiny");
    let commit = "a".repeat(40);
    assert_eq!(folder, root.join("snapshots").join(&commit));
    assert_eq!(fs::read_to_string(root.join("refs/refs/pr/1")).unwrap(), commit);
    assert!(root.join(".no_exist").join(&commit).join("chat_template.jinja").is_file());
    let mut names: Vec<usize> = blobs(&cache).iter().map(|(name, _)| name.len()).collect();
    names.sort_unstable();
    assert_eq!(names, [40, 40, 40, 64], "three git hashes, one SHA-256, no part");
    #[cfg(unix)]
    assert!(fs::read_link(folder.join(WEIGHTS)).unwrap().starts_with("../../blobs"));
}

#[test]
fn shards_come_by_their_index() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let server = Server::start(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", &weights()),
        ("model-2.safetensors", &weights()[1..]),
    ]);
    let (hub, _cache) = client(&server);
    server.fail("model-2.safetensors", &[Fault::Status(403)]);
    assert!(refusal(&hub, "main").contains("model-2.safetensors"));
    assert!(hub.cached(ID, "main").is_none(), "a shard is missing");
    let folder = hub.download(ID, "main").unwrap();
    assert_whole(&folder, &server);
}

#[test]
fn a_dropped_connection_is_resumed_where_it_broke() {
    let server = tiny();
    let (hub, cache) = client(&server);
    let drops = [Fault::Drop(300_000), Fault::Drop(1), Fault::Drop(1), Fault::Drop(1), Fault::Drop(200_000)];
    server.fail(WEIGHTS, &drops);
    let folder = hub.download(ID, "main").unwrap();
    assert_whole(&folder, &server);
    let asked: Vec<_> = server.requests().into_iter().filter(|r| r.storage).map(|r| r.range).collect();
    assert_eq!(asked.len(), 6);
    assert_eq!(asked[0], None);
    assert_eq!(asked[1].as_deref(), Some("bytes=300000-"));
    assert_eq!(asked[5].as_deref(), Some("bytes=500003-"));
    assert!(blobs(&cache).iter().all(|(name, _)| !name.ends_with(".part")));
}

#[test]
fn a_later_run_goes_on_where_one_gave_up() {
    let server = tiny();
    let (hub, cache) = client(&server);
    server.fail(WEIGHTS, &[Fault::Drop(400_000), Fault::Drop(0), Fault::Drop(0), Fault::Drop(0)]);
    let message = refusal(&hub, "main");
    assert!(
        message.contains(WEIGHTS) && message.ends_with("3 times in a row; run again to go on from there"),
        "{message}"
    );
    assert_no_weights(&hub, &cache);
    server.requests();
    server.fail(WEIGHTS, &[]);
    assert_whole(&hub.download(ID, "main").unwrap(), &server);
    let asked: Vec<_> = server.requests().into_iter().filter(|r| r.storage).map(|r| r.range).collect();
    assert_eq!(asked, [Some("bytes=400000-".to_string())]);
}

#[test]
fn a_server_that_cannot_resume_starts_again() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    server.fail(WEIGHTS, &[Fault::Drop(400_000), Fault::Whole]);
    assert_whole(&hub.download(ID, "main").unwrap(), &server);
}

#[test]
fn a_wrong_checksum_is_an_error_and_leaves_nothing() {
    let server = tiny();
    let (hub, cache) = client(&server);
    server.fail(WEIGHTS, &[Fault::Wrong]);
    let message = refusal(&hub, "main");
    assert!(message.contains(WEIGHTS) && message.contains("checksum"), "{message}");
    assert_no_weights(&hub, &cache);
    assert!(blobs(&cache).iter().all(|(name, _)| !name.ends_with(".part")));

    // Small files are checked as well, by git's hash.
    let (hub, _cache) = client(&server);
    server.fail("config.json", &[Fault::Wrong]);
    let message = refusal(&hub, "main");
    assert!(message.contains("config.json") && message.contains("checksum"), "{message}");
}

#[test]
fn a_file_of_another_length_is_an_error() {
    let server = tiny();
    let (hub, cache) = client(&server);
    server.fail(WEIGHTS, &[Fault::Longer(10)]);
    let message = refusal(&hub, "main");
    assert!(message.contains("longer than the 700001 bytes"), "{message}");
    assert_no_weights(&hub, &cache);
    server.fail(WEIGHTS, &[]);
    assert_whole(&hub.download(ID, "main").unwrap(), &server);
}

#[test]
fn a_rotten_part_is_thrown_away_and_fetched_anew() {
    let server = tiny();
    for rot in [vec![7; 5000], vec![7; 700_001], vec![7; 800_000]] {
        let (hub, cache) = client(&server);
        server.fail(WEIGHTS, &[Fault::Drop(1000), Fault::Drop(0), Fault::Drop(0), Fault::Drop(0)]);
        refusal(&hub, "main");
        server.fail(WEIGHTS, &[]);
        let part = blobs(&cache).into_iter().find(|(name, _)| name.ends_with(".part")).unwrap();
        fs::write(cache.path().join("models--org--tiny/blobs").join(part.0), rot).unwrap();
        assert_whole(&hub.download(ID, "main").unwrap(), &server);
    }
}

#[test]
fn silence_is_an_error_in_time() {
    let server = tiny();
    let (hub, cache) = client(&server);
    server.fail(WEIGHTS, &[Fault::Stall(1000), Fault::Whole]);
    assert_whole(&hub.download(ID, "main").unwrap(), &server);

    let (hub, cache2) = client(&server);
    server.fail(WEIGHTS, &[Fault::Stall(0), Fault::Stall(0), Fault::Stall(0)]);
    let start = Instant::now();
    let message = refusal(&hub, "main");
    assert!(message.contains("0.3 s") && start.elapsed() < Duration::from_secs(5), "{message} {:?}", start.elapsed());
    assert_no_weights(&hub, &cache2);

    let (hub, _cache) = client(&server);
    server.state().silent = true;
    let start = Instant::now();
    let message = refusal(&hub, "main");
    assert!(message.contains("0.3 s") && start.elapsed() < Duration::from_secs(5), "{message}");
    assert!(message.ends_with("; run again"), "there is nothing to go on from: {message}");
    drop(cache);
}

#[test]
fn a_hub_that_is_nowhere_is_named_with_what_to_do() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    // A name that no server may have, and a port that none listens on.
    for endpoint in ["http://hub.invalid", "http://127.0.0.1:1"] {
        let hub = Hub { endpoint: endpoint.into(), ..hub.clone() };
        let message = refusal(&hub, "main");
        for expected in [endpoint, "cannot be reached", "a folder", "HF_ENDPOINT", "HF_HUB_OFFLINE=1"] {
            assert!(message.contains(expected), "{message}");
        }
        assert!(!message.contains("in a row") && !message.contains("go on"), "{message}");
        assert!(!message.contains("no folder"), "{message}");
        // This test runs in the folder of its crate, which has a folder `src`.
        let message = hub.download("src/nope", "main").unwrap_err().to_string();
        let expected = "src/nope@main: there is no folder src/nope here, so it was looked for on the Hub: config.json";
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn refusals_say_what_to_do_and_keep_the_token() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    let known = Hub { token: Token::new("hf_verysecret"), ..hub.clone() };
    server.state().token = Some("hf_another".into());
    assert!(refusal(&hub, "main").contains("set HF_TOKEN"));
    let message = refusal(&known, "main");
    assert!(message.contains("401") && message.contains("no access") && !message.contains("verysecret"), "{message}");
    server.state().token = None;
    for (code, kind, expected) in [
        (401, "RepoNotFound", "set HF_TOKEN"),
        (403, "GatedRepo", "refuses"),
        (404, "RepoNotFound", "no such model"),
        (404, "RevisionNotFound", "no such revision"),
        (404, "", "there is no config.json"),
        (410, "", "status 410"),
    ] {
        server.state().refusal = Some((code, kind));
        server.requests();
        let message = refusal(&hub, "main");
        assert!(message.contains(expected), "{code} {kind}: {message}");
        assert_eq!(server.requests().len(), 1, "{code} was asked again");
    }
    server.state().refusal = None;
    assert!(refusal(&hub, "v2").contains("no such revision"));
    server.state().files.remove("tokenizer.json");
    assert!(refusal(&hub, "main").contains("there is no tokenizer.json"));
}

#[test]
fn only_the_hub_sees_the_token() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    server.state().token = Some("hf_verysecret".into());
    let hub = Hub { token: Token::new("hf_verysecret"), ..hub };
    assert_whole(&hub.download(ID, "main").unwrap(), &server);
    assert!(!format!("{hub:?}").contains("verysecret"));
    let requests = server.requests();
    assert!(requests.iter().any(|r| r.storage));
    for request in requests {
        assert_eq!(request.authorized, !request.storage, "{request:?}");
    }
}

#[test]
fn a_hub_in_trouble_is_asked_again() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    server.fail(WEIGHTS, &[Fault::Status(503), Fault::Status(500)]);
    assert_whole(&hub.download(ID, "main").unwrap(), &server);

    // What is whole in the cache is used while there is no Hub, and not where the Hub says no.
    server.state().refusal = Some((503, ""));
    hub.download(ID, "main").unwrap();
    let (fresh, _cache) = client(&server);
    assert!(refusal(&fresh, "main").contains("status 503"));
    let nowhere = Hub { endpoint: "http://127.0.0.1:1".into(), ..fresh };
    let start = Instant::now();
    assert!(refusal(&nowhere, "main").contains("cannot be reached"));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_new_commit_replaces_the_old_one_only_when_it_is_whole() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    let old = hub.download(ID, "main").unwrap();
    {
        let mut state = server.state();
        state.commit = "b".repeat(40);
        state.files.get_mut(WEIGHTS).unwrap().body.reverse();
    }
    server.fail(WEIGHTS, &[Fault::Wrong]);
    refusal(&hub, "main");
    assert_eq!(hub.cached(ID, "main"), Some(old.clone()));
    server.requests();
    let new = hub.download(ID, "main").unwrap();
    assert_ne!(new, old);
    assert_whole(&new, &server);
    assert_eq!(server.requests().iter().filter(|r| r.method == "GET").count(), 2, "only the weights are new");
}

#[test]
fn a_server_without_head_is_asked_with_get() {
    let server = tiny();
    server.state().only_get = true;
    let (hub, _cache) = client(&server);
    assert_whole(&hub.download(ID, "main").unwrap(), &server);
    assert_eq!(server.requests().iter().filter(|r| r.method == "HEAD" && !r.storage).count(), 7);
}

#[test]
fn two_processes_download_a_file_once() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| hub.download(ID, "main").unwrap())).collect();
        for folder in both {
            assert_whole(&folder.join().unwrap(), &server);
        }
    });
    assert_eq!(server.requests().iter().filter(|r| r.storage).count(), 1);
}

#[test]
fn an_id_or_a_revision_cannot_leave_the_cache() {
    let server = tiny();
    let (hub, _cache) = client(&server);
    for (id, revision) in [("../x", "main"), ("org/..", "main"), (ID, "../../x"), (ID, "/etc"), (ID, "a\\b"), (ID, "")]
    {
        let message = hub.download(id, revision).unwrap_err().to_string();
        assert!(message.contains("not a Hub id"), "{message}");
    }
    server.state().commit = "../../../x".into();
    assert!(refusal(&hub, "main").contains("X-Repo-Commit"));
}
