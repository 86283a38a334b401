//! Servers that cut, delay, compress, or answer with something else.

use crate::common::hub::{COMMIT, Hub, Reply, sha256};
use crate::{cache, fails, fails_for, nothing_broken, repo, weights};
use loader::{LoadError, download};
use std::time::{Duration, Instant};

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
    // Errors that do not pass are reported.
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

    // Across processes: the first gives up, the second continues the download.
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

#[test]
fn a_server_without_ranges_starts_over() {
    let big = weights(10_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    let start = Reply::status(200).body(&big).cut(5_000);
    hub.script("storage", start.clone()).script("storage", Reply::status(200).body(&big));
    download("org/name", &hub.options(dir.path())).unwrap();
    nothing_broken(dir.path());
    // The server sends another range, or refuses the range.
    let wrong = Reply::status(206).body(&big[1..]).header("Content-Range", "bytes 1-2/3");
    for bad in [wrong, Reply::status(416)] {
        let dir = cache();
        hub.script("storage", start.clone()).script("storage", bad);
        download("org/name", &hub.options(dir.path())).unwrap();
        nothing_broken(dir.path());
    }
    // A partial file from before has other contents.
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
    // A small file has the right length but other contents.
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
    // No length is announced, and more bytes come than there should be.
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
    // A web page of exactly the announced length comes, without the content type of one.
    let (hub, dir) = fresh();
    hub.script("resolve/0123456789abcdef0123456789abcdef01234567/config", Reply::status(200).body(b"{}"));
    let mut page = b"<html>".to_vec();
    page.resize(big.len(), b' ');
    hub.script("storage", Reply::status(200).body(&page));
    assert!(fails(&hub, dir.path()).to_string().contains("web page"));
}

/// A hub that sends a little and hangs up, sends a little of another range, or sends a byte now and then is given up.
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
    // The API's answer is treated in the same way.
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

/// An answer that is compressed without being asked for counts as what it contains.
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
    // A file from which more comes than was announced is refused.
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
    // A shard's name leads out of the cache.
    let index = br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#;
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors.index.json", index)];
    let (hub, dir) = (Hub::new(&files), cache());
    let err = fails(&hub, dir.path());
    assert!(matches!(err, LoadError::UnsafePath { .. }), "{err}");
}
