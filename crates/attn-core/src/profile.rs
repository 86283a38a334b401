//! Where the time of a forward pass goes, by operation.
//!
//! It is off by default, and then a [`scope`] costs one look at a thread-local flag. [`record`] turns it on for the
//! calling thread, which is the one that runs a model's operations; the threads that kernels use inside an operation
//! count towards it. Scopes nest, and each counts only the time that no inner scope counts, so the rows of a [`Profile`]
//! add up to its total. On CUDA and Metal operations are only queued: [`record_on`] waits for the device wherever a scope
//! begins or ends, so that what is measured is the work, without what would overlap.
//!
//! ```
//! use attn_core::profile::{Op, record, scope};
//!
//! fn norm() -> f32 {
//!     let _scope = scope(Op::Norm); // counts until it is dropped
//!     [3f32, 4.0].iter().map(|x| x * x).sum::<f32>().sqrt()
//! }
//!
//! let (length, profile) = record(norm);
//! assert_eq!(length, 5.0);
//! assert_eq!(profile.calls(Op::Norm), 1);
//! ```

use candle_core::Device;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Rows of the embedding, and what is added to them.
    Embedding,
    /// Products with weights, but for the head's.
    Matmul,
    /// Scores, softmax and the product with the values.
    Attention,
    /// RMS and layer norms.
    Norm,
    /// The rotation of queries and keys.
    Rotary,
    /// Activations, gates, residuals.
    ElementWise,
    /// Writing keys and values to the cache.
    Cache,
    /// From hidden states to logits.
    Head,
    /// Everything between the others.
    Other,
}

impl Op {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 9] = [
        Self::Embedding,
        Self::Matmul,
        Self::Attention,
        Self::Norm,
        Self::Rotary,
        Self::ElementWise,
        Self::Cache,
        Self::Head,
        Self::Other,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Matmul => "matmul",
            Self::Attention => "attention",
            Self::Norm => "norm",
            Self::Rotary => "rotary",
            Self::ElementWise => "element-wise",
            Self::Cache => "cache",
            Self::Head => "head",
            Self::Other => "other",
        }
    }
}

/// What a recording found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Profile {
    total: Duration,
    rows: [(usize, Duration); Op::ALL.len()],
}

impl Profile {
    /// The time from the start of the recording to its end: the sum of all rows.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The time of an operation, without what other scopes inside it took.
    pub fn time(&self, op: Op) -> Duration {
        self.rows[op as usize].1
    }

    /// How often an operation ran.
    pub fn calls(&self, op: Op) -> usize {
        self.rows[op as usize].0
    }
}

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    /// Time that scopes inside the current one have counted.
    static INNER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// What scopes wait for, if not the CPU.
    static DEVICE: RefCell<Option<Device>> = const { RefCell::new(None) };
    static ROWS: RefCell<[(usize, Duration); Op::ALL.len()]> =
        const { RefCell::new([(0, Duration::ZERO); Op::ALL.len()]) };
}

/// Counts the time until it is dropped.
#[derive(Debug)]
#[must_use = "a scope counts until it is dropped"]
pub struct Scope(Option<Open>);

#[derive(Debug)]
struct Open {
    op: Op,
    started: Instant,
    /// What the enclosing scope's inner scopes had counted before this one.
    before: Duration,
    /// Whether inner scopes are silenced until this one ends.
    whole: bool,
}

/// Counts the time until the result is dropped as `op`, but for the time of scopes inside.
#[inline]
pub fn scope(op: Op) -> Scope {
    if RECORDING.get() { open(op, false) } else { Scope(None) }
}

/// As [`scope`], with the time of scopes inside.
#[inline]
pub fn whole(op: Op) -> Scope {
    if RECORDING.get() { open(op, true) } else { Scope(None) }
}

#[cold]
fn open(op: Op, whole: bool) -> Scope {
    wait();
    RECORDING.set(!whole);
    Scope(Some(Open { op, started: Instant::now(), before: INNER.replace(Duration::ZERO), whole }))
}

impl Drop for Scope {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        wait();
        let elapsed = open.started.elapsed();
        let own = elapsed.saturating_sub(INNER.replace(open.before + elapsed));
        if open.whole {
            RECORDING.set(true);
        }
        ROWS.with_borrow_mut(|rows| {
            let row = &mut rows[open.op as usize];
            *row = (row.0 + 1, row.1 + own);
        });
    }
}

/// Waits for the device of the recording. A failure shows in the operation that caused it.
fn wait() {
    DEVICE.with_borrow(|device| device.as_ref().map(Device::synchronize));
}

/// As [`record`], for work on `device`.
pub fn record_on<T>(device: &Device, work: impl FnOnce() -> T) -> (T, Profile) {
    // Restores what an outer recording waits for, however `work` ends.
    struct Outer(Option<Device>);
    impl Drop for Outer {
        fn drop(&mut self) {
            DEVICE.set(self.0.take());
        }
    }
    let _outer = Outer(DEVICE.replace((!device.is_cpu()).then(|| device.clone())));
    record(work)
}

/// Runs `work` and says where its time went. A recording inside another takes its time away from it.
pub fn record<T>(work: impl FnOnce() -> T) -> (T, Profile) {
    // Restores the outer recording, however `work` ends.
    struct Outer {
        recording: bool,
        inner: Duration,
        rows: [(usize, Duration); Op::ALL.len()],
        started: Instant,
    }
    impl Drop for Outer {
        fn drop(&mut self) {
            RECORDING.set(self.recording);
            INNER.set(self.inner + self.started.elapsed());
            ROWS.set(self.rows);
        }
    }
    let outer = Outer {
        recording: RECORDING.replace(true),
        inner: INNER.replace(Duration::ZERO),
        rows: ROWS.take(),
        started: Instant::now(),
    };
    let result = work();
    let total = outer.started.elapsed();
    let mut rows = ROWS.take();
    let named: Duration = rows.iter().map(|row| row.1).sum();
    rows[Op::Other as usize].1 += total.saturating_sub(named);
    (result, Profile { total, rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    const STEP: Duration = Duration::from_millis(4);

    fn spend(op: Op) {
        let _scope = scope(op);
        sleep(STEP);
    }

    fn sum(profile: &Profile) -> Duration {
        Op::ALL.iter().map(|&op| profile.time(op)).sum()
    }

    #[test]
    fn nested_scopes_count_once_and_add_up_to_the_total() {
        let ((), profile) = record(|| {
            let _outer = scope(Op::Attention);
            spend(Op::Matmul);
            spend(Op::Matmul);
            sleep(STEP);
        });
        assert_eq!((profile.calls(Op::Attention), profile.calls(Op::Matmul)), (1, 2));
        assert!(profile.time(Op::Matmul) >= 2 * STEP && profile.time(Op::Attention) >= STEP);
        // Were the products counted twice, attention would have all of the time.
        assert!(profile.time(Op::Attention) <= profile.total() - profile.time(Op::Matmul));
        assert_eq!(sum(&profile), profile.total());
    }

    #[test]
    fn a_whole_scope_takes_what_is_inside() {
        let ((), profile) = record(|| {
            {
                let _head = whole(Op::Head);
                spend(Op::Matmul);
            }
            spend(Op::Norm);
        });
        assert_eq!((profile.calls(Op::Matmul), profile.calls(Op::Norm), profile.calls(Op::Head)), (0, 1, 1));
        assert!(profile.time(Op::Head) >= STEP);
        assert_eq!(sum(&profile), profile.total());
    }

    #[test]
    fn nothing_is_recorded_unless_asked_for() {
        spend(Op::Cache);
        let ((), profile) = record(|| sleep(STEP));
        assert!(Op::ALL.iter().all(|&op| profile.calls(op) == 0));
        assert_eq!(profile.time(Op::Other), profile.total());
        let ((), profile) = record(|| {
            let ((), inner) = record(|| spend(Op::Norm));
            assert_eq!(inner.calls(Op::Norm), 1);
        });
        assert_eq!(profile.calls(Op::Norm), 0);
        assert!(!RECORDING.get());
    }
}
