//! Requests to the hub: with timeouts, repeated when that can help, and with its refusals put into words.

use super::{cache::is_commit, config::HubConfig, redirect, steady::Steady};
use crate::{
    error::{LoadError, Result},
    source::HubRef,
};
use hf_hub::Repo;
use serde::Deserialize;
use std::{
    io::Read,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use ureq::{Agent, Body, config::RedirectAuthHeaders, http::Response};

/// The longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Waits from this on are announced.
const LONG_WAIT: Duration = Duration::from_secs(5);
/// The longest answer of the API that is read.
const MAX_INFO: u64 = 64 << 20;

/// What the hub says about a repository at a revision.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) sha: String,
    #[serde(default)]
    pub(super) siblings: Vec<Sibling>,
}

/// One file of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct Sibling {
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// What a download must turn out to be.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// The name of the blob in the cache.
    pub(super) etag: String,
    pub(super) size: u64,
    /// What its contents hash to.
    pub(super) digest: Digest,
}

/// How the hub names the contents of a file.
#[derive(Debug, Clone)]
pub(super) enum Digest {
    /// Large files: the SHA-256.
    Sha256(String),
    /// Files that are kept in git: git's id.
    GitBlob(String),
}

impl Sibling {
    /// The file's etag, size and hash, if the hub gave them.
    pub(super) fn expected(&self) -> Option<Expected> {
        let hash = self.lfs.as_ref().and_then(|l| l.sha256.clone());
        let size = self.lfs.as_ref().and_then(|l| l.size).or(self.size)?;
        let etag = hash.clone().or_else(|| self.blob_id.clone())?;
        let name = etag.to_ascii_lowercase();
        let (digest, length) = match hash {
            Some(_) => (Digest::Sha256(name), 64),
            None => (Digest::GitBlob(name), 40),
        };
        let sound = super::cache::is_hex(&etag) && etag.len() == length;
        sound.then_some(Expected { etag, size, digest })
    }
}

/// Why a request failed.
pub(super) enum Failure {
    /// The hub answered and said no: asking again, or elsewhere, does not help.
    Refused(LoadError),
    /// The hub can't be reached or does not work at the moment; in words.
    Unreachable(String),
}

/// Talks to one hub.
pub(super) struct Client<'a> {
    agent: Agent,
    config: &'a HubConfig,
    quiet: bool,
}

impl<'a> Client<'a> {
    /// # Errors
    /// The endpoint is no address of a hub.
    pub(super) fn new(config: &'a HubConfig, quiet: bool) -> Result<Self> {
        if redirect::origin(&config.endpoint).is_none() {
            return Err(LoadError::BadEndpoint { endpoint: config.shown() });
        }
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("attn-loader/", env!("CARGO_PKG_VERSION")))
            // Followed by hand: see `redirect`.
            .max_redirects(0)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|l| config.endpoint.starts_with(l)) {
            builder = builder.proxy(None);
        }
        Ok(Self { agent: builder.build().into(), config, quiet })
    }

    /// One GET, of the rest of a file from byte `from` on, wherever it is redirected to.
    pub(super) fn get(&self, url: &str, from: u64) -> Result<Response<Body>, ureq::Error> {
        let mut url = url.to_string();
        for _ in 0..=redirect::MOST {
            let response = self.once(&url, from)?;
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            match location {
                Some(location) if redirect::is_redirect(response.status().as_u16()) => {
                    let next = redirect::target(&url, location);
                    url = next
                        .ok_or_else(|| ureq::Error::BadUri("a redirect to an address that is not http".to_string()))?;
                }
                _ => return Ok(response),
            }
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// One GET of one address. The token goes to the hub's own origin only, not to the storage it redirects to.
    fn once(&self, url: &str, from: u64) -> Result<Response<Body>, ureq::Error> {
        // Compressed bodies have other lengths and other bytes than those announced.
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if let Some(token) = &self.config.token
            && redirect::origin(url) == redirect::origin(&self.config.endpoint)
        {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call()
    }

    /// The address of `file` at `commit`.
    pub(super) fn file_url(&self, repo: &Repo, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.config.endpoint, repo.url(), escape(file))
    }

    /// Asks the hub which commit a revision is at, and for its files.
    pub(super) fn info(&self, repo: &Repo, id: &HubRef) -> Result<Info, Failure> {
        let shown = format!("{}/api/{}", self.config.shown(), repo.api_url());
        let url = format!("{}/api/{}?blobs=true", self.config.endpoint, repo.api_url());
        let mut attempt = 0;
        let mut response = loop {
            let (reason, wait) = match self.get(&url, 0) {
                Ok(r) if r.status().is_success() => break r,
                Ok(r) if passing(r.status().as_u16()) => (status_words(r.status().as_u16()), retry_after(&r)),
                Ok(r) => return Err(Failure::Refused(self.refusal(&r, id, None))),
                Err(e) if hopeless(&e) => return Err(Failure::Unreachable(words(&e))),
                Err(e) => (words(&e), None),
            };
            if let Err(more) = self.pause(&mut attempt, wait) {
                return Err(Failure::Unreachable(reason + &more));
            }
        };
        let bad = |reason: String| Failure::Refused(LoadError::BadResponse { url: shown.clone(), reason });
        let mut body = Vec::new();
        let read = Steady::new(response.body_mut().as_reader(), self.config).take(MAX_INFO + 1).read_to_end(&mut body);
        read.map_err(|e| Failure::Unreachable(format!("the connection was cut ({e})")))?;
        if body.len() as u64 > MAX_INFO {
            return Err(bad(format!("it is longer than {MAX_INFO} bytes")));
        }
        if looks_like_html(&body) {
            return Err(bad(HTML.to_string()));
        }
        let info: Info = serde_json::from_slice(&body).map_err(|e| bad(format!("not the hub's API: {e}")))?;
        if !is_commit(&info.sha) {
            return Err(bad("the commit it names is not valid".to_string()));
        }
        Ok(info)
    }

    /// Waits before another attempt.
    ///
    /// # Errors
    /// There were too many attempts, or the server asks for too long a wait; the error is what to add to the reason.
    pub(super) fn pause(&self, attempt: &mut u32, asked: Option<Duration>) -> Result<(), String> {
        if *attempt >= self.config.retries {
            return Err(String::new());
        }
        if let Some(asked) = asked.filter(|&asked| asked > MAX_WAIT) {
            return Err(format!(" and asks to wait for {} s", asked.as_secs()));
        }
        let backoff = self.config.backoff.saturating_mul(1 << (*attempt).min(5));
        // Up to a quarter more, so that many clients do not come back at once.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
        let jitter = backoff.mul_f64(f64::from(nanos % 1000) / 4000.0);
        let wait = asked.unwrap_or(backoff + jitter).min(MAX_WAIT);
        if wait >= LONG_WAIT && !self.quiet {
            let why = if asked.is_some() { ", as it asks" } else { "" };
            eprintln!("{}: waiting for {} s{why}", self.config.shown(), wait.as_secs());
        }
        std::thread::sleep(wait);
        *attempt += 1;
        Ok(())
    }

    /// An answer that is a refusal, in words.
    pub(super) fn refusal(&self, response: &Response<Body>, id: &HubRef, file: Option<&str>) -> LoadError {
        let status = response.status().as_u16();
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (repo, endpoint) = (id.repo.clone(), self.config.shown());
        let login = "set HF_TOKEN or run `hf auth login`";
        let page = format!("{endpoint}/{repo}");
        let missing = |what: String, hint: String| LoadError::NotOnHub {
            repo: repo.clone(),
            what,
            endpoint: endpoint.clone(),
            hint,
        };
        let denied = |hint: String| LoadError::AccessDenied { repo: repo.clone(), status, hint };
        match (status, code, file) {
            (_, "RevisionNotFound", _) => {
                missing(format!("revision {}", id.revision()), format!("see {page}/branches/all for those there are"))
            }
            (404, "EntryNotFound", Some(file)) => missing(format!("file {file}"), format!("see {page}/tree/main")),
            (401 | 403, "GatedRepo", _) if self.config.token.is_none() => {
                denied(format!("the model is gated: accept its terms at {page}, then {login}"))
            }
            (401 | 403, "GatedRepo", _) => {
                denied(format!("the model is gated and your token's account has no access yet: ask for it at {page}"))
            }
            (401 | 404, "RepoNotFound", _) | (404, "", None) => {
                missing("the repository".to_string(), format!("check the name; if it is private, {login}"))
            }
            (401, _, _) if self.config.token.is_some() => {
                denied("your token was not accepted: check HF_TOKEN or run `hf auth login`".to_string())
            }
            (401 | 403, _, _) => denied(format!("it may be private or gated: see {page}, then {login}")),
            (404, _, Some(file)) => missing(format!("file {file}"), format!("see {page}/tree/main")),
            (404, _, None) => missing("the repository".to_string(), "check the name".to_string()),
            _ => LoadError::BadResponse { url: page, reason: format!("the hub answered HTTP {status}") },
        }
    }
}

/// What is said about an HTML page in place of something else.
pub(super) const HTML: &str = "a web page came instead: a proxy or a login page is in the way, or HF_ENDPOINT is wrong";

/// Whether contents begin as a web page does.
pub(super) fn looks_like_html(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    let begins = |tag: &[u8]| text.get(..tag.len()).is_some_and(|t| t.eq_ignore_ascii_case(tag));
    begins(b"<!doctype html") || begins(b"<html")
}

/// Whether a status may be another one soon.
pub(super) fn passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

pub(super) fn status_words(status: u16) -> String {
    match status {
        429 => "the hub is limiting requests (HTTP 429)".to_string(),
        status => format!("the hub has an error of its own (HTTP {status})"),
    }
}

/// The wait that a server asks for.
pub(super) fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Errors that a retry within seconds will not change.
fn hopeless(err: &ureq::Error) -> bool {
    match err {
        ureq::Error::HostNotFound | ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => true,
        ureq::Error::Io(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// An error in words, which never hold a header.
pub(super) fn words(err: &ureq::Error) -> String {
    match err {
        ureq::Error::HostNotFound => "the hub's name can't be resolved; is there a network?".to_string(),
        ureq::Error::TooManyRedirects => format!("it redirects more than {} times", redirect::MOST),
        ureq::Error::BadUri(reason) if reason.contains("redirect") => format!("the hub sends {reason}"),
        ureq::Error::Http(_) => "the request could not be built; does HF_TOKEN contain invalid characters?".to_string(),
        other => format!("the hub can't be reached ({other})"),
    }
}

/// Percent-encodes a path, keeping its slashes.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(b as char),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
