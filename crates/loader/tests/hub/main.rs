//! Downloads from a hub that answers well, badly, slowly, or not at all.
#![cfg(feature = "hub")]
#![allow(missing_docs)]

mod common;

use common::{
    hub::{COMMIT, Hub, Reply, TOKEN, git_blob, sha256},
    two_tensors,
};
use loader::{Checkpoint, LoadError, LoadOptions, download};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

fn cache() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn repo(cache: &Path) -> PathBuf {
    cache.join("models--org--name")
}

/// The error, after checking that it is one line, tells no secrets and left nothing broken behind.
fn fails(hub: &Hub, cache: &Path) -> LoadError {
    fails_for("org/name", &hub.options(cache), cache)
}

fn fails_for(model: &str, options: &LoadOptions, cache: &Path) -> LoadError {
    let err = download(model, options).unwrap_err();
    let text = format!("{err} {err:?}");
    assert!(!err.to_string().contains('\n'), "{text}");
    assert!(!text.contains(TOKEN) && !text.contains("sig="), "{text}");
    nothing_broken(cache);
    err
}

/// Every file under a final name is whole: its name is its hash.
fn nothing_broken(cache: &Path) {
    let Ok(blobs) = std::fs::read_dir(repo(cache).join("blobs")) else { return };
    for blob in blobs.flatten() {
        let name = blob.file_name().to_string_lossy().into_owned();
        if !name.contains('.') {
            let bytes = std::fs::read(blob.path()).unwrap();
            assert!(name == sha256(&bytes) || name == git_blob(&bytes), "{name} is broken");
        }
    }
}

#[test]
fn a_model_is_fetched_once() {
    let (hub, dir) = (Hub::with_model(), cache());
    let c = Checkpoint::open("org/name", &hub.options(dir.path())).unwrap();
    assert_eq!(c.weights.names(), ["a", "b"]);
    assert_eq!(c.origin.commit.as_deref(), Some(COMMIT));
    assert_eq!(hub.hits("README"), 0, "only what is needed");
    nothing_broken(dir.path());
    // As huggingface_hub lays it out.
    let repo = repo(dir.path());
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = repo.join("snapshots").join(COMMIT).join("model.safetensors");
    let blob = sha256(&two_tensors());
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("../../blobs").join(&blob));
    assert_eq!(std::fs::read(link).unwrap(), two_tensors());
    assert!(dir.path().join(".locks/models--org--name").join(format!("{blob}.lock")).exists());
    // The token goes to the hub and not to the storage behind it.
    for request in hub.log() {
        assert_eq!(request.token.is_some(), !request.path.starts_with("/storage"), "{request:?}");
    }
    // Again: one question, no download.
    let before = hub.log().len();
    download("org/name", &hub.options(dir.path())).unwrap();
    assert_eq!(hub.log().len(), before + 1);
    // By commit: not even a question.
    let fetched = download(&format!("org/name@{COMMIT}"), &hub.options(dir.path())).unwrap();
    assert_eq!(hub.log().len(), before + 1);
    assert_eq!((fetched.commit.as_str(), fetched.files.len()), (COMMIT, 2));
    // A branch with a slash.
    download("org/name@refs/pr/1", &hub.options(dir.path())).unwrap();
    assert_eq!(std::fs::read_to_string(repo.join("refs/refs/pr/1")).unwrap(), COMMIT);
}

#[test]
fn shards_and_gguf_files() {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let tensor = |name: &str| {
        let header = serde_json::json!({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}});
        common::safetensors(&header, &[1])
    };
    let (one, two) = (tensor("a"), tensor("b"));
    let gguf = common::tiny_llama().bytes();
    let config: &[u8] = b"{}";
    let files: Vec<(&str, &[u8])> = vec![
        ("config.json", config),
        ("model.safetensors.index.json", index),
        ("m-1.safetensors", &one),
        ("m-2.safetensors", &two),
        ("q/x y.gguf", &gguf),
    ];
    let (hub, dir) = (Hub::new(&files[..4]), cache());
    assert_eq!(Checkpoint::open("org/name", &hub.options(dir.path())).unwrap().weights.names(), ["a", "b"]);
    let (hub, dir) = (Hub::new(&files[..3]), cache());
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("m-2.safetensors"), "{err}");

    let (hub, dir) = (Hub::new(&[("config.json", config), ("q/x.gguf", &gguf)]), cache());
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("org/name/q/x.gguf"), "the way out is not named: {err}");
    let c = Checkpoint::open("org/name/q/x.gguf", &hub.options(dir.path())).unwrap();
    assert_eq!(c.weights.names(), ["model.embed_tokens.weight"]);
    let err = fails_for("org/name/q/y.gguf", &hub.options(dir.path()), dir.path());
    assert!(matches!(err, LoadError::NotOnHub { .. }), "{err}");

    // Of a model in parts any may be asked for, and all are fetched.
    let mut parts = [common::Gguf::default(), common::Gguf::default()];
    parts[0].meta = common::tiny_llama().meta;
    parts[1].tensors = common::tiny_llama().tensors;
    for (no, part) in parts.iter_mut().enumerate() {
        part.set("split.no", common::Meta::U32(no as u32)).set("split.count", common::Meta::U32(2));
    }
    let names = ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"];
    let hub = Hub::new(&[(names[0], &parts[0].bytes()), (names[1], &parts[1].bytes())]);
    for name in names {
        let dir = cache();
        let c = Checkpoint::open(&format!("org/name/{name}"), &hub.options(dir.path())).unwrap();
        assert_eq!(c.weights.names(), ["model.embed_tokens.weight"]);
        let mut offline = hub.options(dir.path());
        offline.hub.offline = true;
        assert!(Checkpoint::open(&format!("org/name/{name}"), &offline).is_ok());
    }

    let (hub, dir) = (Hub::new(&[("config.json", config), ("pytorch_model.bin", b"x")]), cache());
    let err = fails(&hub, dir.path());
    assert!(matches!(err, LoadError::PickledWeights { .. }), "{err}");
    assert_eq!(hub.hits("resolve"), 0);
    let (hub, dir) = (Hub::new(&[("model.safetensors", &two_tensors())]), cache());
    assert!(fails(&hub, dir.path()).to_string().contains("config.json"));
}

#[test]
fn what_is_missing_is_named() {
    let (hub, dir) = (Hub::with_model(), cache());
    let options = hub.options(dir.path());
    let err = fails_for("org/other", &options, dir.path());
    assert!(matches!(&err, LoadError::NotOnHub { what, .. } if what == "the repository"), "{err}");
    assert!(err.to_string().contains("private"), "{err}");
    let err = fails_for("org/name@v9", &options, dir.path());
    assert!(matches!(&err, LoadError::NotOnHub { what, .. } if what == "revision v9"), "{err}");
    hub.script("resolve", Reply::status(404).header("X-Error-Code", "EntryNotFound"));
    let err = fails(&hub, dir.path());
    assert!(matches!(&err, LoadError::NotOnHub { what, .. } if what.contains("config.json")), "{err}");
}

#[test]
fn gated_models_say_what_to_do() {
    let (hub, dir) = (Hub::with_model(), cache());
    let mut options = hub.options(dir.path());
    for status in [401, 403] {
        hub.script("/api/", Reply::status(status).header("X-Error-Code", "GatedRepo"));
        let err = fails_for("org/name", &options, dir.path()).to_string();
        assert!(err.contains("ask for it") && err.contains(&format!("{}/org/name", hub.url)), "{err}");
    }
    hub.script("/api/", Reply::status(401));
    assert!(fails_for("org/name", &options, dir.path()).to_string().contains("token was not accepted"));
    options.hub.token = None;
    hub.script("/api/", Reply::status(401).header("X-Error-Code", "GatedRepo"));
    let err = fails_for("org/name", &options, dir.path()).to_string();
    assert!(err.contains("accept its terms") && err.contains("HF_TOKEN"), "{err}");
    // Gating shows only at the file for some repositories.
    hub.script("resolve", Reply::status(403));
    let err = fails_for("org/name", &options, dir.path());
    assert!(matches!(err, LoadError::AccessDenied { status: 403, .. }), "{err}");
}

#[test]
fn passing_errors_pass() {
    let (hub, dir) = (Hub::with_model(), cache());
    hub.script("/api/", Reply::status(503)).script("/api/", Reply::status(500));
    hub.script("resolve", Reply::status(502)).script("storage", Reply::status(504));
    hub.script("storage", Reply::status(429).header("Retry-After", "1"));
    let start = Instant::now();
    download("org/name", &hub.options(dir.path())).unwrap();
    assert!(start.elapsed() > Duration::from_millis(900), "Retry-After was not honoured");
    assert_eq!((hub.hits("/api/"), hub.hits("storage")), (3, 3));
    // And those that do not are given up, in words.
    let dir = cache();
    for _ in 0..4 {
        hub.script("storage", Reply::status(429).header("Retry-After", "0"));
    }
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("429") && err.contains("model.safetensors"), "{err}");
    for _ in 0..4 {
        hub.script("/api/", Reply::status(500));
    }
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("500") && err.contains("no complete copy"), "{err}");
}

#[test]
fn a_cut_connection_is_continued() {
    let big = weights(300_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.script("storage", Reply::status(200).body(&big).cut(100_000));
    download("org/name", &hub.options(dir.path())).unwrap();
    let ranges: Vec<_> = hub.log().into_iter().filter(|r| r.path.contains("storage")).map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_string())]);
    nothing_broken(dir.path());

    // Across processes: the first gives up, the second goes on from there.
    let dir = cache();
    let mut options = hub.options(dir.path());
    options.hub.retries = 0;
    hub.script("storage", Reply::status(200).body(&big).cut(200_000));
    let err = fails_for("org/name", &options, dir.path()).to_string();
    assert!(err.contains("200000 of") && err.contains("again"), "{err}");
    let part = repo(dir.path()).join("blobs").join(format!("{}.incomplete", sha256(&big)));
    assert_eq!(std::fs::metadata(&part).unwrap().len(), 200_000);
    assert!(!repo(dir.path()).join("refs/main").exists());
    download("org/name", &options).unwrap();
    assert_eq!(hub.log().last().unwrap().range.as_deref(), Some("bytes=200000-"));
    assert!(!part.exists());
    nothing_broken(dir.path());
}

/// A safetensors file of one tensor of `n` bytes.
fn weights(n: usize) -> Vec<u8> {
    let header = serde_json::json!({"w": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}});
    common::safetensors(&header, &(0..n).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>())
}

#[test]
fn a_server_without_ranges_starts_over() {
    let big = weights(10_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    let start = Reply::status(200).body(&big).cut(5_000);
    hub.script("storage", start.clone()).script("storage", Reply::status(200).body(&big));
    download("org/name", &hub.options(dir.path())).unwrap();
    nothing_broken(dir.path());
    // The wrong range, and a range that is refused.
    let wrong = Reply::status(206).body(&big[1..]).header("Content-Range", "bytes 1-2/3");
    for bad in [wrong, Reply::status(416)] {
        let dir = cache();
        hub.script("storage", start.clone()).script("storage", bad);
        download("org/name", &hub.options(dir.path())).unwrap();
        nothing_broken(dir.path());
    }
    // What was left from before is not what it should be.
    let dir = cache();
    let part = repo(dir.path()).join("blobs").join(format!("{}.incomplete", sha256(&big)));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    for junk in [vec![9; 4000], vec![9; big.len()], vec![9; big.len() + 10]] {
        std::fs::write(&part, junk).unwrap();
        download("org/name", &hub.options(dir.path())).unwrap();
        nothing_broken(dir.path());
        std::fs::remove_file(repo(dir.path()).join("blobs").join(sha256(&big))).unwrap();
    }
}

#[test]
fn what_comes_is_checked() {
    let big = weights(1000);
    let fresh = || (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    let n = big.len() as u64;

    let (hub, dir) = fresh();
    hub.lie("model.safetensors", n, &"ab".repeat(32));
    let err = fails(&hub, dir.path());
    assert!(matches!(err, LoadError::Damaged { .. }) && err.to_string().contains("SHA-256"), "{err}");
    let left = std::fs::read_dir(repo(dir.path()).join("blobs")).unwrap().count();
    assert_eq!(left, 1, "the damaged file is still there");
    // A small file of the right length and other contents.
    let (hub, dir) = fresh();
    hub.script("resolve", Reply::status(200).body(b"[]"));
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("config.json") && err.contains("git blob id"), "{err}");

    for size in [n - 1, n + 1] {
        let (hub, dir) = fresh();
        hub.lie("model.safetensors", size, &sha256(&big));
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains(&format!("sends {n} bytes where {size}")), "{err}");
    }
    // No length announced, and more bytes than there should be.
    let (hub, dir) = fresh();
    let chunked = [format!("{:x}\r\n", n + 5).as_bytes(), &big, b"extra\r\n0\r\n\r\n"].concat();
    let reply = Reply::status(200).body(&chunked).header("Transfer-Encoding", "chunked");
    hub.script("storage", reply);
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("more than") || err.contains("sends"), "{err}");

    for html in [b"<!DOCTYPE html><title>Log in</title>".as_slice(), b"\n <HTML>"] {
        let (hub, dir) = fresh();
        hub.script("resolve", Reply::status(200).body(html).header("Content-Type", "text/html"));
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains("web page"), "{err}");
        hub.script("/api/", Reply::status(200).body(html));
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains("web page"), "{err}");
    }
    // A page of exactly the announced length, without saying that it is one.
    let (hub, dir) = fresh();
    hub.script("resolve/0123456789abcdef0123456789abcdef01234567/config", Reply::status(200).body(b"{}"));
    let mut page = b"<html>".to_vec();
    page.resize(big.len(), b' ');
    hub.script("storage", Reply::status(200).body(&page));
    assert!(fails(&hub, dir.path()).to_string().contains("web page"));
}

#[test]
fn a_password_in_the_address_stays_secret() {
    let (hub, dir) = (Hub::with_model(), cache());
    let mut options = hub.options(dir.path());
    options.hub.endpoint = hub.url.replace("http://", "http://me:secret@");
    for (path, reply) in [("/api/", Reply::status(403)), ("/api/", Reply::status(200)), ("resolve", Reply::status(404))]
    {
        hub.script(path, reply);
        let err = fails_for("org/name", &options, dir.path());
        assert!(!format!("{err} {err:?}").contains("secret"), "{err}");
    }
    hub.script("resolve", Reply::status(200).header("Content-Type", "text/html").body(b"<html>"));
    let err = fails_for("org/name", &options, dir.path());
    assert!(err.to_string().contains("web page") && !format!("{err:?}").contains("secret"), "{err}");
}

/// Every status that redirects, to every kind of place: only the hub's own scheme, host and port get the token.
#[test]
fn the_token_stays_at_its_origin() {
    let config = b"{}".as_slice();
    for status in [301, 302, 303, 307, 308] {
        for target in ["path", "absolute", "other port", "other name", "twice"] {
            let (hub, dir) = (Hub::with_model(), cache());
            let other = Hub::new(&[("config.json", config)]);
            let there = "/storage/config.json?sig=x";
            let location = match target {
                "path" => there.to_string(),
                "absolute" => format!("{}{there}", hub.url),
                "other name" => format!("{}{there}", hub.url.replace("127.0.0.1", "localhost")),
                // Another origin, and from there back: whoever is in between may have chosen the path.
                _ => format!("{}{there}", other.url),
            };
            let redirect = |to: &str| Reply::status(status).header("Location", to);
            hub.script("resolve/0123456789abcdef0123456789abcdef01234567/config", redirect(&location));
            if target == "twice" {
                other.script("storage", redirect(&format!("{}{there}", other.url.replace("127.0.0.1", "localhost"))));
            }
            // What comes is checked as ever, and the other hub has another config.
            let _ = download("org/name", &hub.options(dir.path()));
            let storage: Vec<_> =
                [&hub, &other].iter().flat_map(|h| h.log()).filter(|r| r.path.starts_with("/storage/config")).collect();
            let may = matches!(target, "path" | "absolute");
            assert!(!storage.is_empty(), "{status} to {target}");
            for request in storage {
                assert_eq!(request.token.is_some(), may, "{status} to {target}: {}", request.path);
            }
            assert!(hub.log().iter().filter(|r| r.path.contains("/api/")).all(|r| r.token.is_some()));
        }
    }
}

#[test]
fn redirects_end() {
    let (hub, dir) = (Hub::with_model(), cache());
    for _ in 0..200 {
        hub.script("config", Reply::status(302).header("Location", &format!("/org/name/resolve/{COMMIT}/config.json")));
    }
    assert!(fails(&hub, dir.path()).to_string().contains("redirect"));
    for place in ["file:///etc/passwd", "gopher://x/y", "http://"] {
        let (hub, dir) = (Hub::with_model(), cache());
        for _ in 0..9 {
            hub.script("config", Reply::status(302).header("Location", place));
        }
        assert!(fails(&hub, dir.path()).to_string().contains("redirect"), "{place}");
    }
}

/// A hub that sends a little and hangs up, a little and another range, or a byte now and then, holds nobody up.
#[test]
fn downloads_that_never_end_are_given_up() {
    let big = weights(3_000);
    let fresh = || (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    for (bytes, wrong) in [(1, false), (2, true), (1_000, true)] {
        let (hub, dir) = fresh();
        hub.drip(bytes);
        if wrong {
            hub.wrong_ranges();
        }
        let err = fails(&hub, dir.path());
        assert!(matches!(err, LoadError::Unreachable { .. }), "{err}");
        assert!(hub.log().len() < 20, "{bytes} {wrong}: {} requests", hub.log().len());
    }
    let (hub, dir) = fresh();
    hub.slow(Duration::from_millis(10));
    let mut options = hub.options(dir.path());
    (options.hub.slow_patience, options.hub.slowest) = (Duration::from_millis(300), 2_000);
    let start = Instant::now();
    let err = fails_for("org/name", &options, dir.path()).to_string();
    assert!(err.contains("bytes came in") && err.contains("again"), "{err}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // The same of the API's answer.
    let (hub, dir) = fresh();
    for _ in 0..9 {
        let slow = Reply { slow: Duration::from_millis(10), ..Reply::status(200).body(&[b' '; 9_000]) };
        hub.script("/api/", slow);
    }
    options.hub.endpoint = hub.url.clone();
    let err = fails_for("org/name", &options, dir.path()).to_string();
    assert!(err.contains("bytes came in"), "{err}");
}

#[test]
fn nobody_waits_for_a_year() {
    for wait in ["31536000", "18446744073709551615"] {
        let (hub, dir) = (Hub::with_model(), cache());
        hub.script("storage", Reply::status(429).header("Retry-After", wait));
        let start = Instant::now();
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains(&format!("asks to wait for {wait} s")), "{err}");
        hub.script("/api/", Reply::status(503).header("Retry-After", wait));
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains(&format!("asks to wait for {wait} s")), "{err}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_commit_is_the_one_that_was_asked_for() {
    let (hub, dir) = (Hub::with_model(), cache());
    let asked = "f".repeat(40);
    let other = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": []}}");
    hub.script("/revision/ffff", Reply::status(200).body(other.as_bytes()));
    let err = fails_for(&format!("org/name@{asked}"), &hub.options(dir.path()), dir.path()).to_string();
    assert!(err.contains(&asked) && err.contains(COMMIT), "{err}");
    download(&format!("org/name@{COMMIT}"), &hub.options(dir.path())).unwrap();
}

#[test]
fn an_endpoint_is_an_address() {
    let dir = cache();
    for endpoint in ["huggingface.co", "", "localhost:8080", "ftp://hub.co", "https://", "//hub.co", "http://hub.co:x"]
    {
        let mut options = Hub::with_model().options(dir.path());
        options.hub.endpoint = endpoint.to_string();
        (options.hub.backoff, options.hub.retries) = (Duration::from_secs(60), 5);
        let err = fails_for("org/name", &options, dir.path());
        assert!(matches!(err, LoadError::BadEndpoint { .. }), "{endpoint}: {err}");
    }
}

/// Gzip of ASCII `text` and `more` repetitions of 258 times its last byte, in deflate's fixed code.
fn gzip(text: &[u8], more: usize) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let (mut held, mut bits) = (0u32, 0);
    let mut push = |code: u32, length: u32| {
        // Codes go in with their highest bit first.
        for bit in (0..length).rev() {
            held |= (code >> bit & 1) << bits;
            bits += 1;
            if bits == 8 {
                out.push(held as u8);
                (held, bits) = (0, 0);
            }
        }
    };
    push(0b110, 3);
    text.iter().for_each(|&byte| push(0x30 + u32::from(byte), 8));
    for _ in 0..more {
        push(0xc5, 8);
        push(0, 5);
    }
    push(0, 7);
    push(0, 7);
    let mut crc = !0u32;
    for &byte in text {
        crc = (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 });
    }
    out.extend((!crc).to_le_bytes());
    out.extend((text.len() as u32).to_le_bytes());
    out
}

/// What is sent compressed though it was not asked for counts as what it comes to.
#[test]
fn compressed_answers_count_as_what_they_are() {
    let (hub, dir) = (Hub::with_model(), cache());
    let answer = |body: Vec<u8>| Reply::status(200).header("Content-Encoding", "gzip").body(&body);
    let info = serde_json::json!({"sha": COMMIT, "siblings": []}).to_string();
    hub.script("/api/", answer(gzip(info.as_bytes(), 0)));
    let err = fails(&hub, dir.path());
    assert!(matches!(err, LoadError::MissingFile { .. }), "the answer is read, and names no weights: {err}");
    let bomb = gzip(b" ", 300_000);
    assert!(bomb.len() < 500_000);
    hub.script("/api/", answer(bomb));
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("longer than"), "{err}");
    // A file: more comes than was announced.
    hub.script("resolve", answer(gzip(b"{", 300_000)));
    let err = fails(&hub, dir.path()).to_string();
    assert!(err.contains("more than the"), "{err}");
}

#[test]
fn answers_that_are_not_the_api() {
    for (body, want) in [
        (&b"[]"[..], "not the hub's API"),
        (b"{\"sha\": \"../../evil\", \"siblings\": []}", "commit"),
        (b"{\"sha\": \"0123456789abcdef0123456789abcdef01234567\", \"siblings\": [{\"rfilename\": \"config.json\", \"size\": 2, \"blobId\": \"../x\"}, {\"rfilename\": \"model.safetensors\"}]}", "mirror"),
    ] {
        let (hub, dir) = (Hub::with_model(), cache());
        hub.script("/api/", Reply::status(200).body(body));
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains(want), "{err}");
    }
    // A shard that would be written outside the cache.
    let index = br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#;
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors.index.json", index)];
    let (hub, dir) = (Hub::new(&files), cache());
    let err = fails(&hub, dir.path());
    assert!(matches!(err, LoadError::UnsafePath { .. }), "{err}");
}

#[test]
fn without_a_network() {
    let (hub, dir) = (Hub::with_model(), cache());
    let mut gone = hub.options(dir.path());
    // A port that nothing listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    gone.hub.endpoint = format!("http://{free}");
    let mut offline = hub.options(dir.path());
    offline.hub.offline = true;
    let start = Instant::now();
    let err = fails_for("org/name", &gone, dir.path());
    assert!(matches!(err, LoadError::Unreachable { .. }) && err.to_string().contains("no complete copy"), "{err}");
    let err = fails_for("org/name", &offline, dir.path()).to_string();
    assert!(err.contains("HF_HUB_OFFLINE"), "{err}");
    assert!(start.elapsed() < Duration::from_secs(5));

    download("org/name", &hub.options(dir.path())).unwrap();
    let asked = hub.log().len();
    for options in [&gone, &offline] {
        let c = Checkpoint::open("org/name", options).unwrap();
        assert_eq!(c.origin.commit.as_deref(), Some(COMMIT));
    }
    assert_eq!(hub.log().len(), asked);
    // Half a copy is none.
    std::fs::remove_file(repo(dir.path()).join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
    fails_for("org/name", &offline, dir.path());
}

#[test]
fn two_at_once_download_once() {
    let big = weights(50_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.delay(Duration::from_millis(300));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| download("org/name", &hub.options(dir.path())).unwrap());
        }
    });
    nothing_broken(dir.path());
    assert_eq!(hub.hits("storage"), 1);
}

/// Not a test of its own: what the next two run in another process.
#[test]
#[ignore = "run by other tests"]
fn child() {
    let [url, cache] = ["TEST_HUB_URL", "TEST_HUB_CACHE"].map(|v| std::env::var(v).unwrap());
    let mut options = Hub::with_model().options(Path::new(&cache));
    options.hub.endpoint = url;
    download("org/name", &options).unwrap();
}

fn spawn(hub: &Hub, cache: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env("TEST_HUB_URL", &hub.url)
        .env("TEST_HUB_CACHE", cache)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn two_processes_download_once() {
    let big = weights(50_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.delay(Duration::from_millis(500));
    let children = [spawn(&hub, dir.path()), spawn(&hub, dir.path())];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    nothing_broken(dir.path());
    assert_eq!(hub.hits("storage"), 1);
}

/// What Ctrl-C does, only less politely.
#[test]
fn a_killed_download_is_continued() {
    let big = weights(400_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.script("storage", Reply { delay: Duration::from_secs(600), ..Reply::status(200).body(&big) });
    let mut child = spawn(&hub, dir.path());
    let part = repo(dir.path()).join("blobs").join(format!("{}.incomplete", sha256(&big)));
    let start = Instant::now();
    while std::fs::metadata(&part).map_or(0, |m| m.len()) < big.len() as u64 / 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "the download did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_broken(dir.path());
    assert!(!repo(dir.path()).join("refs").exists());
    // The lock died with the process.
    download("org/name", &hub.options(dir.path())).unwrap();
    assert_eq!(hub.log().last().unwrap().range, Some(format!("bytes={}-", big.len() / 2)));
    nothing_broken(dir.path());
}

#[test]
fn a_lock_that_is_never_released() {
    let (hub, dir) = (Hub::with_model(), cache());
    let locks = dir.path().join(".locks/models--org--name");
    std::fs::create_dir_all(&locks).unwrap();
    let held = std::fs::File::create(locks.join(format!("{}.lock", sha256(&two_tensors())))).unwrap();
    held.lock().unwrap();
    let mut options = hub.options(dir.path());
    options.hub.lock_patience = Duration::from_millis(300);
    let err = fails_for("org/name", &options, dir.path());
    assert!(matches!(err, LoadError::Locked { .. }), "{err}");
    drop(held);
    download("org/name", &options).unwrap();
}

#[cfg(unix)]
#[test]
fn a_cache_that_can_not_be_written() {
    let (hub, dir) = (Hub::with_model(), cache());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let err = download("org/name", &hub.options(&file.join("cache"))).unwrap_err();
    assert!(matches!(err, LoadError::Io { .. }) && err.to_string().contains("cache"), "{err}");
    // A device that is always full stands for a full disk.
    if Path::new("/dev/full").exists() {
        let part = repo(dir.path()).join("blobs").join(format!("{}.incomplete", sha256(&two_tensors())));
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/full", &part).unwrap();
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains("can't write"), "{err}");
    }
}

/// Hugging Face's own Python library finds, reads and checks what was fetched. `ATTN_PYTHON` names a Python that has
/// `huggingface_hub`.
#[test]
#[ignore = "needs ATTN_PYTHON"]
fn the_cache_reads_in_python() {
    const SCRIPT: &str = "
import pathlib, sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
cache, commit, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
folder = pathlib.Path(snapshot_download('org/name', cache_dir=cache, local_files_only=True))
assert folder.name == commit, folder
weights = pathlib.Path(hf_hub_download('org/name', 'model.safetensors', cache_dir=cache, local_files_only=True))
assert weights.parent == folder and weights.stat().st_size == size, weights
info = scan_cache_dir(cache)
assert not info.warnings, info.warnings
repo, = info.repos
revision, = repo.revisions
assert (repo.repo_id, revision.commit_hash, revision.refs) == ('org/name', commit, {'main'}), repo
assert {f.file_name for f in revision.files} == {'config.json', 'model.safetensors'}, revision
";
    let python = std::env::var("ATTN_PYTHON").expect("ATTN_PYTHON names a Python with huggingface_hub");
    let (hub, dir) = (Hub::with_model(), cache());
    download("org/name", &hub.options(dir.path())).unwrap();
    let output = std::process::Command::new(python)
        .args(["-c", SCRIPT])
        .arg(dir.path())
        .args([COMMIT, &two_tensors().len().to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn settings_come_from_the_environment() {
    use loader::HubConfig;
    let env = |pairs: &'static [(&str, &str)]| {
        HubConfig::from_lookup(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    };
    let c = env(&[("HF_HOME", "/h"), ("HF_TOKEN", " t "), ("HF_ENDPOINT", "https://mirror/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!((c.cache.as_path(), c.token.as_deref()), (Path::new("/h/hub"), Some("t")));
    assert_eq!((c.endpoint.as_str(), c.offline), ("https://mirror", true));
    let c = env(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!((c.cache.as_path(), c.offline, c.endpoint.as_str()), (Path::new("/c"), false, HubConfig::ENDPOINT));
    let dir = cache();
    std::fs::write(dir.path().join("token"), "stored\n").unwrap();
    let home = dir.path().to_str().unwrap().to_string();
    let c = HubConfig::from_lookup(|name| (name == "HF_HOME").then(|| home.clone()));
    assert_eq!(c.token.as_deref(), Some("stored"));
    assert!(!format!("{c:?}").contains("stored"));
    let c = env(&[("HF_ENDPOINT", "https://me:secret@mirror.example")]);
    assert!(!format!("{c:?}").contains("secret") && format!("{c:?}").contains("mirror.example"));
}
