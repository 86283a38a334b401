//! Wall-clock time, where there is a clock.

use std::time::Instant;

/// The standard library has no clock on wasm32-unknown-unknown, and panics when asked for the time.
const HAS_CLOCK: bool = !cfg!(all(target_family = "wasm", target_os = "unknown"));

/// Counts seconds from when it was started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Option<Instant>);

impl Clock {
    /// Starts counting.
    pub(crate) fn start() -> Self {
        Self(HAS_CLOCK.then(Instant::now))
    }

    /// Seconds since then; 0 where there is no clock.
    pub(crate) fn seconds(self) -> f64 {
        self.0.map_or(0.0, |started| started.elapsed().as_secs_f64())
    }
}
