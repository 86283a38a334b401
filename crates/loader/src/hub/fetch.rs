//! Which files a checkpoint needs, and when the copy in the cache can be used.

use super::{
    cache::{RepoCache, is_commit},
    client::{Client, Failure, Info},
    config::HubConfig,
    download::Download,
    fetched::Fetched,
};
use crate::{
    error::{LoadError, Result},
    folder::{self, INDEX, SINGLE, SMALL_FILES},
    gguf, safetensors,
    source::HubRef,
};
use std::path::{Path, PathBuf};

/// Brings the files a checkpoint needs into the cache.
pub(crate) fn fetch(id: &HubRef, config: &HubConfig, quiet: bool) -> Result<Fetched> {
    let cache = RepoCache::new(config, id);
    let cached = cache.commit().and_then(|commit| {
        let files = cache.complete(&commit, id)?;
        Some(Fetched { folder: cache.snapshot(&commit), commit, files })
    });
    let unreachable = |reason: String, hint: &str| {
        let hint = format!("{hint}, or give a folder or a .gguf file");
        LoadError::Unreachable { repo: id.repo.clone(), reason, hint }
    };
    if config.offline {
        let reason = format!("no complete copy in {} and HF_HUB_OFFLINE is set", config.cache.display());
        return cached.ok_or_else(|| unreachable(reason, "unset it to download the model"));
    }
    // A commit never changes, so a complete copy of one needs no network.
    if let Some(cached) = cached.as_ref().filter(|_| is_commit(id.revision())) {
        return Ok(cached.clone());
    }
    let client = Client::new(config, quiet)?;
    let info = match (client.info(cache.repo(), id), cached) {
        (Ok(info), _) if is_commit(id.revision()) && !info.sha.eq_ignore_ascii_case(id.revision()) => {
            let reason = format!("commit {} was asked for, {} came", id.revision(), info.sha);
            return Err(LoadError::BadResponse { url: format!("{}/{}", config.shown(), id.repo), reason });
        }
        (Ok(info), _) => info,
        (Err(Failure::Refused(err)), _) => return Err(err),
        (Err(Failure::Unreachable(reason)), Some(cached)) => {
            if !quiet {
                eprintln!("{}: {reason}; using the copy of commit {} in the cache", id.repo, &cached.commit[..12]);
            }
            return Ok(cached);
        }
        (Err(Failure::Unreachable(reason)), None) => {
            let reason = format!("{reason} and there is no complete copy in the cache");
            return Err(unreachable(reason, "try again when there is a network"));
        }
    };
    let plan = Plan { id, config, client: &client, cache: &cache, info: &info, quiet };
    let files = plan.run()?;
    cache.set_commit(&info.sha)?;
    Ok(Fetched { folder: cache.snapshot(&info.sha), commit: info.sha, files })
}

/// One download of one repository.
struct Plan<'a> {
    id: &'a HubRef,
    config: &'a HubConfig,
    client: &'a Client<'a>,
    cache: &'a RepoCache,
    info: &'a Info,
    quiet: bool,
}

impl Plan<'_> {
    fn run(&self) -> Result<Vec<PathBuf>> {
        if let Some(file) = &self.id.file {
            return gguf::part_names(file).iter().map(|part| self.file(part)).collect();
        }
        let has = |name: &str| self.info.siblings.iter().any(|s| s.name == name);
        // Checked before anything is fetched: a repository without usable weights cannot be used.
        if !has(SINGLE) && !has(INDEX) {
            let names: Vec<String> = self.info.siblings.iter().map(|s| s.name.clone()).collect();
            return Err(folder::missing_weights(&self.id.repo, Path::new(&self.id.repo), &names));
        }
        let mut files = vec![self.file("config.json")?];
        for name in SMALL_FILES.iter().filter(|n| **n != "config.json" && has(n)) {
            files.push(self.file(name)?);
        }
        if has(SINGLE) {
            files.push(self.file(SINGLE)?);
            return Ok(files);
        }
        let index = self.file(INDEX)?;
        for shard in safetensors::shards(&index)? {
            files.push(self.file(&shard)?);
        }
        files.push(index);
        Ok(files)
    }

    /// Makes sure that the cache has one file and returns where.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let Some(sibling) = self.info.siblings.iter().find(|s| s.name == name) else {
            return Err(LoadError::NotOnHub {
                repo: self.id.repo.clone(),
                what: format!("file {name}"),
                endpoint: self.config.shown(),
                hint: format!("the repository is incomplete at revision {}", self.id.revision()),
            });
        };
        let Some(expected) = sibling.expected() else {
            let url = format!("{}/{}", self.config.shown(), self.id.repo);
            let reason = format!("no size and hash for {name} in the answer; is HF_ENDPOINT a full mirror of the hub?");
            return Err(LoadError::BadResponse { url, reason });
        };
        let url = self.client.file_url(self.cache.repo(), &self.info.sha, name);
        let download = Download {
            client: self.client,
            config: self.config,
            cache: self.cache,
            id: self.id,
            name,
            url,
            expected: &expected,
            quiet: self.quiet,
        };
        download.ensure()?;
        self.cache.link(&self.info.sha, name, &expected.etag)?;
        Ok(self.cache.snapshot(&self.info.sha).join(name))
    }
}
