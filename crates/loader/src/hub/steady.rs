//! A response body that fails if it comes too slowly. A server that sends a byte now and then would hold up a download
//! for ever, and a timeout of single reads would not notice.

use super::config::HubConfig;
use std::{
    io::{Error, ErrorKind, Read, Result},
    time::{Duration, Instant},
};

/// Reads on as long as enough comes.
pub(super) struct Steady<R> {
    inner: R,
    since: Instant,
    bytes: u64,
    patience: Duration,
    slowest: u64,
}

impl<R: Read> Steady<R> {
    pub(super) fn new(inner: R, config: &HubConfig) -> Self {
        Self { inner, since: Instant::now(), bytes: 0, patience: config.slow_patience, slowest: config.slowest }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes += n as u64;
        let elapsed = self.since.elapsed();
        if n > 0 && elapsed >= self.patience {
            if (self.bytes as f64) < self.slowest as f64 * elapsed.as_secs_f64() {
                let reason = format!("{} bytes came in {:.0} s", self.bytes, elapsed.as_secs_f64());
                return Err(Error::new(ErrorKind::TimedOut, reason));
            }
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        Ok(n)
    }
}
