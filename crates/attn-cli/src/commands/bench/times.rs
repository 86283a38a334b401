//! How long work takes, and the memory that it took.

use anyhow::Result;
use std::time::{Duration, Instant};

/// How long work is repeated before it is timed: until the threads are awake, each on a processor of its own.
const WARM_UP: Duration = Duration::from_millis(100);
/// The most often it is repeated for that.
const WARM_UP_RUNS: usize = 100;

/// Seconds of several runs of the same work.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// In ascending order, at least one.
    sorted: Vec<f64>,
}

impl Times {
    /// Runs `work` uncounted, at least once, and then `runs` times.
    pub(super) fn measure(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let start = Instant::now();
        for _ in 0..WARM_UP_RUNS {
            work()?;
            if start.elapsed() >= WARM_UP {
                break;
            }
        }
        let mut seconds = Vec::with_capacity(runs);
        for _ in 0..runs.max(1) {
            let start = Instant::now();
            work()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(Self::new(seconds))
    }

    /// The same for two kinds of work, run in turn, so that what the machine does meanwhile slows both.
    pub(super) fn measure_two(
        runs: usize,
        mut one: impl FnMut() -> Result<()>,
        mut other: impl FnMut() -> Result<()>,
    ) -> Result<(Self, Self)> {
        let (mut ones, mut others) = (vec![], vec![]);
        for i in 0..runs + 1 {
            for (work, seconds) in [(&mut one as &mut dyn FnMut() -> Result<()>, &mut ones), (&mut other, &mut others)]
            {
                let start = Instant::now();
                work()?;
                if i > 0 {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
        Ok((Self::new(ones), Self::new(others)))
    }

    pub(super) fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { sorted: seconds }
    }

    pub(super) fn median(&self) -> f64 {
        let (low, high) = ((self.sorted.len() - 1) / 2, self.sorted.len() / 2);
        (self.sorted[low] + self.sorted[high]) / 2.0
    }

    pub(super) fn best(&self) -> f64 {
        self.sorted[0]
    }
}

/// The most memory this process ever held, pages of mapped files included, where the system tells.
pub(super) fn peak_rss_bytes() -> Option<u64> {
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
    fn the_first_runs_are_not_counted() {
        let mut runs = 0;
        let times = Times::measure(3, || {
            runs += 1;
            Ok(())
        });
        assert_eq!(times.unwrap().sorted.len(), 3);
        assert!((4..=3 + WARM_UP_RUNS).contains(&runs), "{runs}");
        let slow = Times::measure(1, || {
            runs += 1;
            std::thread::sleep(WARM_UP);
            Ok(())
        });
        assert!(slow.unwrap().best() >= WARM_UP.as_secs_f64());
    }
}
