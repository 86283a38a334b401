//! A hub on loopback that speaks the hub's API, and misbehaves on request.

use loader::{HubConfig, LoadOptions};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_verySecretToken";

/// A request that the hub got.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// An answer that replaces the true one.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send only so many bytes of the body, then hang up.
    pub cut: Option<usize>,
    /// Wait before the body.
    pub delay: Duration,
    /// Wait after every byte.
    pub slow: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn cut(mut self, n: usize) -> Self {
        self.cut = Some(n);
        self
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Replies to give once each to requests whose path contains a text, in order.
    script: Vec<(String, Reply)>,
    /// What the API announces instead of the truth: file, size, hash.
    lies: BTreeMap<String, (u64, String)>,
    log: Vec<Request>,
    delay: Duration,
    /// Bytes of a file after which every connection is cut.
    drip: Option<usize>,
    /// Answers every request for a range with another one.
    wrong_ranges: bool,
    /// Waits so long after every byte.
    slow: Duration,
}

/// The server; it stops with the test's process.
pub struct Hub {
    pub url: String,
    state: Arc<Mutex<State>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Git's id of these contents.
pub fn git_blob(bytes: &[u8]) -> String {
    let digest = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

impl Hub {
    /// A hub with the repository `org/name` of these files; those named .safetensors or .gguf are large ones.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let (shared, base) = (state.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, base) = (shared.clone(), base.clone());
                std::thread::spawn(move || serve(stream, &state, &base));
            }
        });
        Self { url, state }
    }

    pub fn with_model() -> Self {
        let weights = super::two_tensors();
        Self::new(&[
            ("config.json", br#"{"model_type": "llama", "vocab_size": 8}"#),
            ("README.md", b"# not needed"),
            ("model.safetensors", &weights),
        ])
    }

    pub fn script(&self, path: &str, reply: Reply) -> &Self {
        self.state.lock().unwrap().script.push((path.to_string(), reply));
        self
    }

    pub fn lie(&self, file: &str, size: u64, hash: &str) -> &Self {
        self.state.lock().unwrap().lies.insert(file.to_string(), (size, hash.to_string()));
        self
    }

    pub fn delay(&self, delay: Duration) -> &Self {
        self.state.lock().unwrap().delay = delay;
        self
    }

    /// Cuts every connection after so many bytes of a file.
    pub fn drip(&self, bytes: usize) -> &Self {
        self.state.lock().unwrap().drip = Some(bytes);
        self
    }

    /// Answers every request for a range with another one.
    pub fn wrong_ranges(&self) -> &Self {
        self.state.lock().unwrap().wrong_ranges = true;
        self
    }

    /// Sends files one byte at a time.
    pub fn slow(&self, wait: Duration) -> &Self {
        self.state.lock().unwrap().slow = wait;
        self
    }

    pub fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// How many requests had `part` in their path.
    pub fn hits(&self, part: &str) -> usize {
        self.log().iter().filter(|r| r.path.contains(part)).count()
    }

    pub fn options(&self, cache: &Path) -> LoadOptions {
        let mut hub = HubConfig::from_lookup(|_| None);
        hub.endpoint = self.url.clone();
        hub.cache = cache.to_path_buf();
        hub.token = Some(TOKEN.to_string());
        hub.retries = 3;
        hub.backoff = Duration::from_millis(2);
        LoadOptions { quiet: true, hub, ..LoadOptions::default() }
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, base: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut request = Request { path, range: None, token: None };
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_string()),
            "authorization" => request.token = Some(value.trim().to_string()),
            _ => {}
        }
    }
    let reply = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        let scripted = state.script.iter().position(|(part, _)| request.path.contains(part));
        match scripted {
            Some(i) => state.script.remove(i).1,
            None => truth(&request, &state, base),
        }
    };
    let _ = send(stream, &reply);
}

fn send(mut stream: TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply
        .headers
        .iter()
        .any(|(n, _)| ["content-length", "transfer-encoding"].contains(&n.to_ascii_lowercase().as_str()))
    {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if reply.slow > Duration::ZERO {
        for byte in &reply.body {
            stream.write_all(&[*byte])?;
            stream.flush()?;
            std::thread::sleep(reply.slow);
        }
    }
    let (first, rest) = reply.body.split_at(reply.body.len() / 2);
    let end = reply.cut.unwrap_or(reply.body.len());
    stream.write_all(&first[..end.min(first.len())])?;
    stream.flush()?;
    std::thread::sleep(reply.delay);
    stream.write_all(&rest[..end.saturating_sub(first.len()).min(rest.len())])?;
    stream.flush()
}

fn truth(request: &Request, state: &State, base: &str) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    if let Some(rest) = path.strip_prefix("/api/models/org/name/revision/") {
        return match rest {
            "main" | "refs%2Fpr%2F1" => Reply::status(200).body(info(state).to_string().as_bytes()),
            rev if rev == COMMIT => Reply::status(200).body(info(state).to_string().as_bytes()),
            _ => Reply::status(404).header("X-Error-Code", "RevisionNotFound"),
        };
    }
    if path.starts_with("/api/models/") {
        return Reply::status(401).header("X-Error-Code", "RepoNotFound");
    }
    if let Some(name) = path.strip_prefix("/storage/") {
        return contents(request, state, name);
    }
    let Some(name) = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else { return Reply::status(404) };
    if !state.files.contains_key(name) {
        return Reply::status(404).header("X-Error-Code", "EntryNotFound");
    }
    match is_large(name) {
        // Another host as far as a client can tell, as the hub's storage is.
        true => Reply::status(302)
            .header("Location", &format!("{}/storage/{name}?sig=x", base.replace("127.0.0.1", "localhost"))),
        false => contents(request, state, name),
    }
}

fn contents(request: &Request, state: &State, name: &str) -> Reply {
    let bytes = &state.files[name];
    let from = request.range.as_ref().map(|r| r["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap());
    let mut reply = match from {
        None => Reply::status(200).body(bytes),
        Some(from) if from >= bytes.len() => Reply::status(416),
        Some(from) => {
            let from = if state.wrong_ranges { from - 1 } else { from };
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::status(206).body(&bytes[from..]).header("Content-Range", &range)
        }
    };
    (reply.delay, reply.cut, reply.slow) = (state.delay, state.drip, state.slow);
    reply
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn info(state: &State) -> serde_json::Value {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let (size, hash) = match state.lies.get(name) {
            Some((size, hash)) => (*size, hash.clone()),
            None => (bytes.len() as u64, sha256(bytes)),
        };
        let mut entry = json!({"rfilename": name, "size": size, "blobId": git_blob(bytes)});
        if is_large(name) {
            entry["lfs"] = json!({"sha256": hash, "size": size, "pointerSize": 134});
        }
        entry
    };
    json!({"id": "org/name", "sha": COMMIT, "siblings": state.files.iter().map(sibling).collect::<Vec<_>>()})
}
