//! The Hugging Face hub: its cache on this machine, and downloads into it.
//!
//! The cache is the one that all Hugging Face tools share, so what is put there must be right: a file appears under its
//! final name only when its size and its hash are what the hub announced. A download that is cut off stays beside it
//! under a name of its own and is continued by the next one.

pub(crate) mod config;
mod fetched;
pub use config::HubConfig;
pub use fetched::Fetched;

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod redirect;
#[cfg(feature = "hub")]
mod steady;

use crate::{
    error::{LoadError, Result},
    options::LoadOptions,
    source::ModelRef,
};

/// Brings the files that MODEL needs into the cache, if it is a hub id.
///
/// # Errors
/// MODEL is not a hub id, or the files can't be fetched.
pub fn download(model: &str, options: &LoadOptions) -> Result<Fetched> {
    match ModelRef::parse(model)? {
        ModelRef::Hub(id) => fetch(&id, &options.hub, options.quiet),
        ModelRef::Path(_) => {
            let reason = "it is already on this machine".to_string();
            Err(LoadError::BadModel { model: model.to_string(), reason })
        }
    }
}

/// Brings the files a checkpoint needs into the cache.
#[cfg(feature = "hub")]
pub(crate) use fetch::fetch;

/// There is no network in this build.
#[cfg(not(feature = "hub"))]
pub(crate) fn fetch(id: &crate::source::HubRef, _config: &HubConfig, _quiet: bool) -> Result<Fetched> {
    Err(LoadError::HubDisabled { repo: id.repo.clone() })
}

/// Reads an answer of the API, and follows each line of it as a redirect.
#[cfg(all(fuzzing, feature = "hub"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(info) = serde_json::from_slice::<client::Info>(bytes) {
        for expected in info.siblings.iter().filter_map(client::Sibling::expected) {
            assert!(cache::is_hex(&expected.etag), "{}", expected.etag);
        }
    }
    let mut at = "https://hub.co/org/name/resolve/x".to_string();
    for line in String::from_utf8_lossy(bytes).lines().take(redirect::MOST) {
        let Some(next) = redirect::target(&at, line) else { return };
        assert!(redirect::origin(&next).is_some(), "{next}");
        // Only what says so itself leaves an origin.
        let stays = !line.contains("//");
        assert!(!stays || redirect::origin(&next) == redirect::origin(&at), "{at} and {line}: {next}");
        at = next;
    }
}
