//! One file, from the hub to its final name in the cache: locked, resumed, checked, and only then renamed.

use super::{
    cache::RepoCache,
    client::{self, Client, Digest, Expected},
    config::HubConfig,
    steady::Steady,
};
use crate::{
    digest::{hex, sha256_file},
    error::{LoadError, Result},
    source::HubRef,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
    time::{Duration, Instant},
};

/// A file to be in the cache.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) config: &'a HubConfig,
    pub(super) cache: &'a RepoCache,
    pub(super) id: &'a HubRef,
    pub(super) name: &'a str,
    pub(super) url: String,
    pub(super) expected: &'a Expected,
    pub(super) quiet: bool,
}

/// What an attempt has to bring of a file to count as progress, if a hundredth of it is less.
const PROGRESS: u64 = 1 << 20;

/// How one transfer ended.
enum Transfer {
    /// The announced number of bytes is on disk.
    Complete,
    /// Worth repeating, after the wait that the server asked for; why.
    Cut(String, Option<Duration>),
}

impl Download<'_> {
    /// Returns when the blob is complete under its final name.
    pub(super) fn ensure(&self) -> Result<()> {
        let blob = self.cache.blob(&self.expected.etag);
        if self.is_there(&blob) {
            return Ok(());
        }
        for folder in [blob.parent(), self.cache.lock(&self.expected.etag).parent()].into_iter().flatten() {
            std::fs::create_dir_all(folder).map_err(LoadError::io(folder, "create"))?;
        }
        let _lock = self.lock()?;
        // Another process may have finished it meanwhile.
        if self.is_there(&blob) {
            return Ok(());
        }
        let part = self.cache.partial(&self.expected.etag);
        let bar = self.progress();
        let resumed = std::fs::metadata(&part).is_ok_and(|m| m.len() > 0);
        self.transfer(&part, &bar)?;
        if let Err(err) = self.verify(&part) {
            std::fs::remove_file(&part).map_err(LoadError::io(&part, "delete"))?;
            // The part that was left from an earlier download may have been the broken one.
            if !resumed {
                return Err(err);
            }
            self.transfer(&part, &bar)?;
            if let Err(err) = self.verify(&part) {
                std::fs::remove_file(&part).map_err(LoadError::io(&part, "delete"))?;
                return Err(err);
            }
        }
        bar.finish_and_clear();
        std::fs::rename(&part, &blob).map_err(LoadError::io(&blob, "create"))
    }

    fn is_there(&self, blob: &Path) -> bool {
        std::fs::metadata(blob).is_ok_and(|m| m.is_file() && m.len() == self.expected.size)
    }

    /// Takes the lock, waiting as long as the process that holds it makes progress.
    fn lock(&self) -> Result<Option<File>> {
        let path = self.cache.lock(&self.expected.etag);
        let part = self.cache.partial(&self.expected.etag);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(LoadError::io(&path, "create"))?;
        let start = Instant::now();
        let mut last = (0, start);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                // File systems without locks: the worst that happens is that both processes fetch the file.
                Err(TryLockError::Error(_)) => return Ok(None),
            }
            let size = std::fs::metadata(&part).map_or(0, |m| m.len());
            if size != last.0 {
                last = (size, Instant::now());
            }
            if last.1.elapsed() > self.config.lock_patience {
                return Err(LoadError::Locked { lock: path, waited: start.elapsed().as_secs() });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Fetches until all bytes are there, continuing after whatever cuts it off.
    fn transfer(&self, part: &Path, bar: &ProgressBar) -> Result<()> {
        let mut attempt = 0;
        let size_of = || std::fs::metadata(part).map_or(0, |m| m.len());
        let mut most = size_of();
        loop {
            let (reason, wait) = match self.once(part, bar)? {
                Transfer::Complete => return Ok(()),
                Transfer::Cut(reason, wait) => (reason, wait),
            };
            // Only attempts that bring little count; bytes that were here before and are fetched again are not
            // progress.
            let now = size_of();
            if now >= most.saturating_add(PROGRESS.max(self.expected.size / 100)) {
                (attempt, most) = (0, now);
            }
            if let Err(more) = self.client.pause(&mut attempt, wait) {
                return Err(LoadError::Unreachable {
                    repo: format!("{}/{}", self.id.repo, self.name),
                    reason: format!("{reason}{more}, {now} of {} bytes are here", self.expected.size),
                    hint: "run the command again to continue from there".to_string(),
                });
            }
        }
    }

    /// One request, from where the partial file ends.
    fn once(&self, part: &Path, bar: &ProgressBar) -> Result<Transfer> {
        let size = self.expected.size;
        let mut file =
            OpenOptions::new().create(true).append(true).open(part).map_err(LoadError::io(part, "create"))?;
        let mut have = file.metadata().map_err(LoadError::io(part, "read the size of"))?.len();
        if have > size {
            file.set_len(0).map_err(LoadError::io(part, "shorten"))?;
            have = 0;
        }
        bar.set_position(have);
        if have == size {
            return Ok(Transfer::Complete);
        }
        let response = match self.client.get(&self.url, have) {
            Ok(response) => response,
            Err(err) => return Ok(Transfer::Cut(client::words(&err), None)),
        };
        let status = response.status().as_u16();
        match status {
            // The whole file, though perhaps only the rest was asked for.
            200 if have > 0 => {
                file.set_len(0).map_err(LoadError::io(part, "shorten"))?;
                have = 0;
            }
            200 => {}
            206 if content_range(&response) == Some((have, size)) => {}
            206 | 416 => {
                file.set_len(0).map_err(LoadError::io(part, "shorten"))?;
                return Ok(Transfer::Cut("the server could not continue the file".to_string(), None));
            }
            s if client::passing(s) => {
                return Ok(Transfer::Cut(client::status_words(s), client::retry_after(&response)));
            }
            _ => return Err(self.client.refusal(&response, self.id, Some(self.name))),
        }
        if response.body().mime_type() == Some("text/html") {
            return Err(self.not_the_file(client::HTML.to_string()));
        }
        if let Some(n) = response.body().content_length().filter(|&n| n != size - have) {
            return Err(self.not_the_file(format!("it sends {n} bytes where {} are expected", size - have)));
        }
        self.copy(response.into_body().into_reader(), &mut file, part, have, bar)
    }

    /// Appends what comes to the partial file, up to the announced size and one byte more.
    fn copy(
        &self,
        body: impl Read,
        file: &mut File,
        part: &Path,
        mut have: u64,
        bar: &ProgressBar,
    ) -> Result<Transfer> {
        let mut body = Steady::new(body, self.config).take(self.expected.size - have + 1);
        let mut buf = vec![0; 1 << 17];
        bar.set_position(have);
        loop {
            let n = match body.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Transfer::Cut(format!("the connection was cut ({e})"), None)),
            };
            if have == 0 && client::looks_like_html(&buf[..n]) {
                return Err(self.not_the_file(client::HTML.to_string()));
            }
            if have + n as u64 > self.expected.size {
                let _ = file.set_len(0);
                return Err(self.not_the_file(format!("it sends more than the {} bytes announced", self.expected.size)));
            }
            file.write_all(&buf[..n]).map_err(LoadError::io(part, "write"))?;
            have += n as u64;
            bar.set_position(have);
        }
        if have < self.expected.size {
            return Ok(Transfer::Cut("the connection was cut".to_string(), None));
        }
        file.sync_all().map_err(LoadError::io(part, "write"))?;
        Ok(Transfer::Complete)
    }

    fn not_the_file(&self, reason: String) -> LoadError {
        let url = self.url.replacen(&self.config.endpoint, &self.config.shown(), 1);
        LoadError::BadResponse { url, reason }
    }

    /// Compares the partial file, now complete, with what the hub announced.
    fn verify(&self, part: &Path) -> Result<()> {
        let damaged = |reason: String| LoadError::Damaged { file: self.name.to_string(), reason };
        let size = std::fs::metadata(part).map_err(LoadError::io(part, "read the size of"))?.len();
        if size != self.expected.size {
            return Err(damaged(format!("it is {size} bytes long, the hub announced {}", self.expected.size)));
        }
        match &self.expected.digest {
            Digest::Sha256(want) if sha256_file(part)? != *want => Err(damaged(format!("its SHA-256 is not {want}"))),
            Digest::GitBlob(want) if git_blob(part, size)? != *want => {
                Err(damaged(format!("its git blob id is not {want}")))
            }
            _ => Ok(()),
        }
    }

    fn progress(&self) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        // Drawn to stderr, and only if that is a terminal.
        let bar = ProgressBar::new(self.expected.size).with_message(self.name.to_string());
        let style = "{msg:32!} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        match ProgressStyle::with_template(style) {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        }
    }
}

/// Git's id of a file of `size` bytes: the SHA-1 of a short header and the contents.
fn git_blob(path: &Path, size: u64) -> Result<String> {
    use sha1::Digest;
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {size}\0"));
    let mut file = File::open(path).map_err(LoadError::io(path, "open"))?;
    let mut buf = vec![0; 1 << 16];
    loop {
        match file.read(&mut buf).map_err(LoadError::io(path, "read"))? {
            0 => return Ok(hex(hash.finalize())),
            n => hash.update(&buf[..n]),
        }
    }
}

/// The start and the total of `Content-Range: bytes START-END/TOTAL`.
fn content_range(response: &ureq::http::Response<ureq::Body>) -> Option<(u64, u64)> {
    let value = response.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}
