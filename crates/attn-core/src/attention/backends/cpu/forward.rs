//! The forward pass: a call is cut into blocks of queries and, where there are few of those, of keys.
//!
//! One unit is a block of queries of all the query heads that share a kv head, so that every key packed serves them all.
//! Units depend on the shape of the call and never on the number of threads, and partial results are merged in order:
//! results are the same from run to run and on any number of cores.

#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::{
    block::run_unit,
    output::{Output, part_len},
    problem::Problem,
    skip::Skip,
    task::Task,
    tile::ROWS,
    unit::Unit,
};
use crate::{
    attention::view::Inputs,
    parallel::{Disjoint, waiting},
    simd::{Element, Job, KEYS, KernelPath, Simd, dispatch},
};
use half::{bf16, f16};
use std::{
    cmp::Reverse,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Rows in a unit, about: enough to pay for packing its keys, few enough to stay in the second-level cache.
const UNIT_ROWS: usize = 1152;
/// Below this many units a call with one block of queries is split over the keys as well.
const FEW_UNITS: usize = 32;
/// Multiplications below which a call isn't worth a second thread.
const ONE_THREAD: usize = 1 << 17;
/// Up to about this many queries, a call takes no longer than waking a thread: decoding.
const SHORT: usize = 8;

/// How a call is cut up.
struct Plan {
    units: Vec<Unit>,
    /// The runs of parts that make up one result, with the unit they stand for.
    merges: Vec<(Unit, Range<usize>)>,
}

impl Plan {
    fn new(p: &Problem) -> Self {
        let s = p.sizes;
        let mut block = (UNIT_ROWS / s.group() / ROWS * ROWS).max(ROWS);
        while block > ROWS && s.b * s.h_kv * s.tq.div_ceil(block) < FEW_UNITS / 2 {
            block -= ROWS;
        }
        let blocks = s.tq.div_ceil(block);
        let split = blocks == 1 && s.b * s.h_kv < FEW_UNITS;
        let (mut units, mut merges, mut parts) = (Vec::new(), Vec::new(), 0);
        for (b, kv_head) in s.key_rows() {
            for queries in (0..blocks).map(|i| i * block..s.tq.min((i + 1) * block)) {
                let keys = p.seen_by_any(b, queries.clone());
                let unit = Unit { b, kv_head, queries, keys, part: None };
                let step = unit.keys.len().div_ceil(16).max(512).next_multiple_of(KEYS);
                if !split || unit.keys.len() <= step {
                    units.push(unit);
                    continue;
                }
                let before = parts;
                for start in (unit.keys.start / KEYS * KEYS..unit.keys.end).step_by(step) {
                    let keys = start.max(unit.keys.start)..unit.keys.end.min(start + step);
                    units.push(Unit { keys, part: Some(parts), ..unit.clone() });
                    parts += 1;
                }
                merges.push((unit, before..parts));
            }
        }
        // Longest first, so that the threads finish together.
        units.sort_by_key(|unit| Reverse(unit.keys.len() * unit.queries.len()));
        Self { units, merges }
    }

    fn parts(&self) -> usize {
        self.merges.last().map_or(0, |(_, parts)| parts.end)
    }

    fn work(&self, p: &Problem) -> usize {
        let pairs: usize = self.units.iter().map(|unit| unit.keys.len() * unit.queries.len()).sum();
        pairs * p.sizes.group() * (p.sizes.d + p.sizes.dv)
    }
}

/// A dtype of the inputs.
pub(super) trait Input: Element {
    /// Computes a unit in a way that only this dtype has, or returns false.
    ///
    /// # Safety
    /// The machine has `path`, and no other thread writes the unit's rows or part.
    unsafe fn run_own(_path: KernelPath, _task: &Task<Self>, _unit: &Unit) -> bool {
        false
    }
}

impl Input for f32 {}
impl Input for f16 {}

impl Input for bf16 {
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_own(path: KernelPath, task: &Task<Self>, unit: &Unit) -> bool {
        if !pairs::runs(path, task.p, unit) {
            return false;
        }
        // SAFETY: guaranteed by the caller.
        unsafe { pairs::run_unit(path, task, unit) };
        true
    }
}

/// What one thread does: it computes units as long as there are any.
struct Worker<'a, T> {
    path: KernelPath,
    task: &'a Task<'a, T>,
    units: &'a [Unit],
    next: &'a AtomicUsize,
}

impl<T: Input> Job for Worker<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        while let Some(unit) = self.units.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            // SAFETY: the caller guarantees the instruction set, and no two units share rows or parts.
            unsafe {
                if !T::run_own(self.path, self.task, unit) {
                    run_unit::<S, T>(self.task, unit);
                }
            }
        }
    }
}

/// Computes the whole call.
pub(super) fn forward<T: Input>(
    path: KernelPath,
    p: &Problem,
    inputs: Inputs<'_, T>,
    skip: Option<Skip>,
    output: Output<'_, T>,
) {
    let plan = Plan::new(p);
    let next = AtomicUsize::new(0);
    let parts = Disjoint::zeroed(plan.parts() * part_len(p, p.sizes.tq));
    let task = Task { p, inputs, skip, output, parts };
    let worker = || dispatch(path, Worker { path, task: &task, units: &plan.units, next: &next });
    let most = if plan.work(p) < ONE_THREAD { 1 } else { plan.units.len() };
    if p.sizes.tq <= SHORT {
        on_waiting_threads(most, worker)
    } else {
        on_threads(most, worker)
    }
    let Task { output, parts, .. } = task;
    // SAFETY: it was zeroed.
    let buffer = unsafe { parts.finish() };
    for (unit, range) in &plan.merges {
        merge(p, unit, &buffer, range.clone(), &output);
    }
}

/// Runs `worker` on up to `most` threads of the current pool at once.
pub(super) fn on_threads(most: usize, worker: impl Fn() + Sync) {
    let threads = most.min(rayon::current_num_threads());
    if threads <= 1 {
        return worker();
    }
    rayon::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| worker());
        }
        worker();
    });
}

/// The same on the threads that stay awake while they wait for work. The products of a generated token ran on them a
/// few microseconds before, and other threads would have to share the cores with them. Rayon's threads are used if they
/// are fewer, or if the caller is one of them.
fn on_waiting_threads(most: usize, worker: impl Fn() + Sync) {
    if rayon::current_thread_index().is_some() || rayon::current_num_threads() < waiting::threads() {
        return on_threads(most, worker);
    }
    waiting::on_waiting_threads(most, worker);
}

/// Adds up the parts of a unit, in order.
fn merge<T: Element>(p: &Problem, unit: &Unit, parts: &[f32], range: Range<usize>, output: &Output<T>) {
    let s = p.sizes;
    let (len, width) = (part_len(p, s.tq), s.dv + 2);
    let mut acc = vec![0f32; s.dv];
    for i in 0..s.group() * unit.queries.len() {
        let lines = || range.clone().map(|part| &parts[part * len + i * width..][..width]);
        let max = lines().map(|line| line[s.dv]).fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, reference) = (0.0, if max == f32::NEG_INFINITY { 0.0 } else { max });
        acc.fill(0.0);
        for line in lines() {
            let factor = (line[s.dv] - reference).exp2();
            sum += line[s.dv + 1] * factor;
            for (acc, x) in acc.iter_mut().zip(line) {
                *acc += x * factor;
            }
        }
        let head = unit.kv_head * s.group() + i / unit.queries.len();
        let q = unit.queries.start + i % unit.queries.len();
        // SAFETY: the threads are done; this is the only writer.
        unsafe { output.put(p, (unit.b, head, q), &acc, max, sum) };
    }
}
