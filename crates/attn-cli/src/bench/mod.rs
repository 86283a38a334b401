//! `attn bench`: how fast, measured so that others can repeat it.
//!
//! Every figure is the median of several runs after one that isn't counted. Comparisons with other programs are made by
//! `scripts/bench_peers.py`, which runs them and this command in turn.

pub(crate) mod args;
mod attention;
mod model;

use anyhow::Result;
use args::{BenchArgs, BenchCommand};
use std::time::Instant;

/// Runs the command.
///
/// # Errors
/// What was asked for can't be run, or gives a wrong result.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        BenchCommand::Attention(args) => attention::run(args),
        BenchCommand::Model(args) => model::run(args),
    }
}

/// Seconds of several runs of the same work.
#[derive(Debug, Clone)]
struct Times {
    /// In ascending order, at least one.
    sorted: Vec<f64>,
}

impl Times {
    /// Runs `work` once uncounted and then `runs` times.
    fn measure(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        work()?;
        let mut seconds = Vec::with_capacity(runs);
        for _ in 0..runs.max(1) {
            let start = Instant::now();
            work()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(Self::new(seconds))
    }

    fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { sorted: seconds }
    }

    fn median(&self) -> f64 {
        let (low, high) = ((self.sorted.len() - 1) / 2, self.sorted.len() / 2);
        (self.sorted[low] + self.sorted[high]) / 2.0
    }

    fn best(&self) -> f64 {
        self.sorted[0]
    }
}

/// The most memory this process ever held, pages of mapped files included, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Times::new(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Times::new(vec![4.0, 1.0, 2.0, 8.0]).median(), 3.0);
        assert_eq!(Times::new(vec![3.0, 1.0]).best(), 1.0);
    }

    #[test]
    fn work_runs_once_more_than_it_is_counted() {
        let mut runs = 0;
        let times = Times::measure(3, || {
            runs += 1;
            Ok(())
        });
        assert_eq!((times.unwrap().sorted.len(), runs), (3, 4));
    }
}
