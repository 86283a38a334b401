//! What is fetched, from where, and with which secrets.

use crate::common;
use crate::common::hub::{COMMIT, Hub, Reply, sha256};
use crate::common::two_tensors;
use crate::{cache, fails, fails_for, nothing_broken, repo};
use loader::{Checkpoint, LoadError, download};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn a_model_is_fetched_once() {
    let (hub, dir) = (Hub::with_model(), cache());
    let c = Checkpoint::open("org/name", &hub.options(dir.path())).unwrap();
    assert_eq!(c.weights.names(), ["a", "b"]);
    assert_eq!(c.origin.commit.as_deref(), Some(COMMIT));
    assert_eq!(hub.hits("README"), 0, "only what is needed");
    nothing_broken(dir.path());
    // The layout is that of huggingface_hub.
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
    // The second time, one request and no download.
    let before = hub.log().len();
    download("org/name", &hub.options(dir.path())).unwrap();
    assert_eq!(hub.log().len(), before + 1);
    // By commit, not even a request.
    let fetched = download(&format!("org/name@{COMMIT}"), &hub.options(dir.path())).unwrap();
    assert_eq!(hub.log().len(), before + 1);
    assert_eq!((fetched.commit.as_str(), fetched.files.len()), (COMMIT, 2));
    // The name of a branch may have a slash.
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

    // Any part of a model may be named, and all parts are fetched.
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
    // Some repositories refuse only the file, not the API.
    hub.script("resolve", Reply::status(403));
    let err = fails_for("org/name", &options, dir.path());
    assert!(matches!(err, LoadError::AccessDenied { status: 403, .. }), "{err}");
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
                // Another origin, and from there back: the other origin may have chosen the path.
                _ => format!("{}{there}", other.url),
            };
            let redirect = |to: &str| Reply::status(status).header("Location", to);
            hub.script("resolve/0123456789abcdef0123456789abcdef01234567/config", redirect(&location));
            if target == "twice" {
                other.script("storage", redirect(&format!("{}{there}", other.url.replace("127.0.0.1", "localhost"))));
            }
            // The answer is checked as always, and the other hub has another config.
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
    // An incomplete copy does not count.
    std::fs::remove_file(repo(dir.path()).join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
    fails_for("org/name", &offline, dir.path());
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
