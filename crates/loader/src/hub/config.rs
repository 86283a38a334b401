//! Where the hub and its cache are.

use std::{fmt, path::PathBuf, time::Duration};

/// The settings other Hugging Face tools take from the environment, as an explicit value.
#[derive(Clone)]
pub struct HubConfig {
    /// The hub's address (`HF_ENDPOINT`), without a slash at the end.
    pub endpoint: String,
    /// The cache folder (`HF_HUB_CACHE`, else `HF_HOME`/hub, else ~/.cache/huggingface/hub).
    pub cache: PathBuf,
    /// The access token (`HF_TOKEN`, else the file that `hf auth login` writes).
    pub token: Option<String>,
    /// Never use the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// How often a request is repeated after an error that may pass.
    pub retries: u32,
    /// How long to wait before the first repetition; doubled for each after it.
    pub backoff: Duration,
    /// Bytes a second that a server has to send at least.
    pub slowest: u64,
    /// Over how long that is measured; a connection that is slower is given up and continued on another.
    pub slow_patience: Duration,
    /// How long to wait for another process that holds the lock on a file without making progress.
    pub lock_patience: Duration,
}

impl HubConfig {
    /// The public hub.
    pub const ENDPOINT: &'static str = "https://huggingface.co";

    /// Reads the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// The address for messages: without a password that it may hold.
    pub(crate) fn shown(&self) -> String {
        match self.endpoint.split_once("://") {
            Some((scheme, rest)) => match rest.split_once('@') {
                Some((_, host)) => format!("{scheme}://{host}"),
                None => self.endpoint.clone(),
            },
            None => self.endpoint.clone(),
        }
    }

    /// As [`HubConfig::from_env`] with another environment.
    pub fn from_lookup(var: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| var(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(crate::source::home()?.join(".cache")));
            cache.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
        });
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let stored = || std::fs::read_to_string(token_file).ok().map(|t| t.trim().to_string());
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(stored);
        let yes = |v: String| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| Self::ENDPOINT.to_string());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.filter(|t| !t.is_empty()),
            offline: set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(yes),
            retries: 5,
            backoff: Duration::from_secs(1),
            slowest: 1024,
            slow_patience: Duration::from_secs(60),
            lock_patience: Duration::from_secs(60),
        }
    }
}

/// Without the token.
impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let token = if self.token.is_some() { "set" } else { "none" };
        f.debug_struct("HubConfig")
            .field("endpoint", &self.shown())
            .field("cache", &self.cache)
            .field("token", &token)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}
