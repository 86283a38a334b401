//! Where results go, and the one place that makes them: from a row's largest score, sum of weights and sink to its
//! output and log-sum-exp.

use super::problem::Problem;
use crate::{parallel::Disjoint, simd::Element};

/// Where results go.
pub(super) struct Output<'a, T> {
    /// `(b, tq, h, dv)`, or `(b, h, tq, dv)` if `by_head`
    pub(super) out: Disjoint<'a, T>,
    pub(super) by_head: bool,
    /// Per row the log2 of the sum of its weights, `(b, h, tq)`, if somebody asks for it.
    pub(super) log_sums: Option<Disjoint<'a, f32>>,
}

/// The result of a row's sums.
pub(super) struct Finished {
    /// What they have to be multiplied by.
    pub(super) factor: f32,
    /// The sum of the row's weights and its sink, which are relative to a score of `top`.
    all: f32,
    top: f32,
}

impl Finished {
    /// The log2 of the sum of the row's weights and sink; minus infinity if there are none.
    pub(super) fn log_sum(&self) -> f32 {
        self.top + self.all.log2()
    }
}

/// Finishes a row's sum of weights that are relative to a score of `max`. A row without any weight gives zeros.
pub(super) fn finish(max: f32, sum: f32, sink: Option<f32>) -> Finished {
    let there = sum > 0.0 || sum.is_nan();
    match sink {
        None if there => Finished { factor: 1.0 / sum, all: sum, top: max },
        None => Finished { factor: 0.0, all: 0.0, top: 0.0 },
        Some(sink) if !there => Finished { factor: 0.0, all: 1.0, top: sink },
        Some(sink) => {
            // Relative to whichever is larger, so that nothing overflows.
            let top = if sink > max { sink } else { max };
            let (scale, sink) = ((max - top).exp2(), (sink - top).exp2());
            let all = sum * scale + sink;
            Finished { factor: scale / all, all, top }
        }
    }
}

impl<T: Element> Output<'_, T> {
    /// Finishes one row of sums `acc`.
    ///
    /// # Safety
    /// As [`Disjoint::part`]: no other thread writes this row.
    #[inline(always)]
    pub(super) unsafe fn put(&self, p: &Problem, place: (usize, usize, usize), acc: &[f32], max: f32, sum: f32) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let factor = self.finish(p, place, max, sum);
            for (to, x) in self.row(p, place).iter_mut().zip(acc) {
                *to = T::narrow(x * factor);
            }
        }
    }

    /// What the sums of one row have to be multiplied by; keeps its log-sum-exp if somebody asks for it.
    ///
    /// # Safety
    /// As [`Disjoint::part`]: no other thread writes this row.
    pub(super) unsafe fn finish(&self, p: &Problem, (b, head, q): (usize, usize, usize), max: f32, sum: f32) -> f32 {
        let finished = finish(max, sum, p.sinks.as_ref().map(|sinks| sinks[head]));
        if let Some(log_sums) = &self.log_sums {
            // SAFETY: guaranteed by the caller.
            unsafe { log_sums.part((b * p.sizes.h + head) * p.sizes.tq + q, 1)[0] = finished.log_sum() };
        }
        finished.factor
    }

    /// Where one row goes.
    ///
    /// # Safety
    /// As [`Disjoint::part`].
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, p: &Problem, (b, head, q): (usize, usize, usize)) -> &mut [T] {
        let s = p.sizes;
        let row = if self.by_head { (b * s.h + head) * s.tq + q } else { (b * s.tq + q) * s.h + head };
        // SAFETY: guaranteed by the caller.
        unsafe { self.out.part(row * s.dv, s.dv) }
    }
}

/// Numbers in a part: per row its accumulators, its reference score and its sum.
pub(super) fn part_len(p: &Problem, queries: usize) -> usize {
    p.sizes.group() * queries * (p.sizes.dv + 2)
}

#[cfg(test)]
mod tests {
    use super::finish;

    fn finished(max: f32, sum: f32, sink: Option<f32>) -> (f32, f32) {
        let finished = finish(max, sum, sink);
        (finished.factor, finished.log_sum())
    }

    #[test]
    fn a_sink_of_any_size_is_in_the_denominator() {
        for (max, sum, sink) in [(0.0f32, 3.0f32, 1.0f32), (-200.0, 2.0, 40.0), (300.0, 1.5, -100.0), (5.0, 1.0, 5.0)] {
            let all = f64::from(sum) * f64::from(max).exp2() + f64::from(sink).exp2();
            let (factor, log_sum) = finished(max, sum, Some(sink));
            let wanted = f64::from(max).exp2() / all;
            assert!((f64::from(factor) - wanted).abs() <= 1e-6 * wanted.max(1e-30), "{max} {sum} {sink}");
            assert!((f64::from(log_sum) - all.log2()).abs() < 1e-4);
        }
        assert_eq!(finished(f32::NEG_INFINITY, 0.0, None), (0.0, f32::NEG_INFINITY));
        assert_eq!(finished(f32::NEG_INFINITY, 0.0, Some(2.0)), (0.0, 2.0));
        assert_eq!(finished(1.0, 4.0, None), (0.25, 3.0));
    }
}
