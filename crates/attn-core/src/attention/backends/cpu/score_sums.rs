//! Gradients of what a bias is made of, and of the sinks, from the gradients of the scores.
//!
//! Every query head of every batch row and part of the keys has a line of sums of its own, so that threads share none; the
//! lines are added up afterwards, in order.

use super::{
    bias::{Bank, Bias},
    problem::Problem,
};
use crate::simd::Simd;

impl Problem<'_> {
    /// Numbers in a line of sums.
    pub(super) fn score_sums(&self) -> usize {
        match &self.bias {
            Bias::None | Bias::Dense { .. } => 0,
            Bias::Linear { .. } => 1,
            Bias::Relative { columns, .. } => *columns,
            Bias::Keys { .. } => self.sizes.tq + self.sizes.tk,
            Bias::Bank(bank) => self.sizes.tq * bank.width + bank.width * bank.columns,
            Bias::Curve(lines) => lines.sums(),
        }
    }

    /// Adds the gradients `g` of a row's scores, on the keys from `key` on, to the line of its head.
    ///
    /// # Safety
    /// The machine has the instruction set of `S`.
    #[inline(always)]
    pub(super) unsafe fn add_score_gradients<S: Simd>(
        &self,
        line: &mut [f32],
        (b, head, q): (usize, usize, usize),
        key: usize,
        g: &[f32],
    ) {
        let s = &self.sizes;
        match &self.bias {
            Bias::None | Bias::Dense { .. } => {}
            // SAFETY: guaranteed by the caller.
            Bias::Linear { .. } => line[0] += unsafe { times_ramp::<S>((key as i64 - self.origin(q)) as f32, g) },
            Bias::Relative { .. } => add(&mut line[self.distance(q) + key..], g),
            Bias::Keys { .. } => {
                let (queries, keys) = line.split_at_mut(s.tq);
                // SAFETY: guaranteed by the caller.
                queries[q] += unsafe { total::<S>(g) };
                for (sum, g) in keys[key..].iter_mut().zip(g) {
                    *sum -= g;
                }
            }
            Bias::Bank(bank) => {
                let (rows, vectors) = line.split_at_mut(s.tq * bank.width);
                let column = -self.origin(q) - bank.first + key as i64;
                let row = bank.row(s, b, head, q);
                bank.add(row, (&mut rows[q * bank.width..(q + 1) * bank.width], vectors), column, g);
            }
            Bias::Curve(lines) => lines.add(line, head, (b, q), (self.origin(q), key), g),
        }
    }

    /// The gradients of the bias' tensors, in their order and one after another, from the lines `(b, h, parts, sums)`.
    pub(super) fn bias_gradients(&self, lines: &[f32], parts: usize) -> Vec<f32> {
        let (s, n) = (&self.sizes, self.score_sums());
        if n == 0 {
            return Vec::new();
        }
        let heads: Vec<Vec<f32>> =
            lines.chunks_exact(parts * n).map(|lines| summed(lines.chunks_exact(n), n)).collect();
        // Over the batch, for what all its rows share.
        let shared = |range: std::ops::Range<usize>| -> Vec<f32> {
            let head = |head: usize| summed((0..s.b).map(|b| &heads[b * s.h + head][range.clone()]), range.len());
            (0..s.h).flat_map(head).collect()
        };
        let each = |range: std::ops::Range<usize>| heads.iter().flat_map(move |line| line[range.clone()].to_vec());
        match &self.bias {
            Bias::None | Bias::Dense { .. } => Vec::new(),
            Bias::Linear { .. } | Bias::Relative { .. } => shared(0..n),
            Bias::Keys { .. } => each(0..s.tq).chain(each(s.tq..n)).collect(),
            Bias::Bank(bank) => {
                let vectors = shared(s.tq * bank.width..n);
                let size = bank.width * bank.columns;
                let vectors = if bank.heads == 1 { summed(vectors.chunks_exact(size), size) } else { vectors };
                each(0..s.tq * bank.width).chain(vectors).collect()
            }
            Bias::Curve(lines) => lines.gradients(&heads.concat(), s.b, s.h),
        }
    }

    /// The gradients of the sinks, from log2 of each row's sum of weights and what its gradients of scores are relative to,
    /// both `(b, h, tq)`.
    pub(super) fn sink_gradients(&self, log_sums: &[f32], deltas: &[f32]) -> Vec<f32> {
        let Some(sinks) = &self.sinks else { return Vec::new() };
        let (s, mut sums) = (&self.sizes, vec![0f32; sinks.len()]);
        for (i, (log_sums, deltas)) in log_sums.chunks_exact(s.tq).zip(deltas.chunks_exact(s.tq)).enumerate() {
            let head = i % s.h;
            let weights = log_sums.iter().map(|log_sum| (sinks[head] - log_sum).exp2());
            sums[head] -= weights.zip(deltas).map(|(weight, delta)| weight * delta).sum::<f32>();
        }
        sums
    }
}

impl Bank {
    /// Adds the gradients `g` of a row's scores to those of its coefficients and of its head's vectors. The first key takes
    /// `column`.
    fn add(
        &self,
        (coefficients, vectors): (&[f32], &[f32]),
        (to_row, to_vectors): (&mut [f32], &mut [f32]),
        column: i64,
        g: &[f32],
    ) {
        let (before, until) = self.inside(column, g.len());
        let (low, high) = (g[..before].iter().sum::<f32>(), g[until..].iter().sum::<f32>());
        let from = (column + before as i64).max(0) as usize;
        let last = self.columns - 1;
        let each = coefficients.iter().zip(to_row).zip(vectors.chunks_exact(self.columns));
        for (((c, to_c), vector), to) in each.zip(to_vectors.chunks_exact_mut(self.columns)) {
            *to_c += low * vector[0] + high * vector[last];
            to[0] += c * low;
            to[last] += c * high;
            if before < until {
                let mut sum = 0.0;
                for ((g, v), to) in g[before..until].iter().zip(&vector[from..]).zip(&mut to[from..]) {
                    sum += g * v;
                    *to += c * g;
                }
                *to_c += sum;
            }
        }
    }
}

/// The sum of `g[i] * (first + i)`.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn times_ramp<S: Simd>(first: f32, g: &[f32]) -> f32 {
    let whole = g.len() / S::LANES * S::LANES;
    // SAFETY: LANES numbers from each i on are there, and the caller guarantees the instruction set.
    unsafe {
        let (iota, mut sum) = (S::from_fn(|i| i as f32), S::splat(0.0));
        for i in (0..whole).step_by(S::LANES) {
            let place = S::add(iota, S::splat(first + i as f32));
            sum = S::fma(S::load(g.as_ptr().add(i)), place, sum);
        }
        let rest = g[whole..].iter().enumerate().map(|(i, g)| g * (first + (whole + i) as f32));
        S::sum(sum) + rest.sum::<f32>()
    }
}

/// The sum of `g`.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn total<S: Simd>(g: &[f32]) -> f32 {
    let whole = g.len() / S::LANES * S::LANES;
    // SAFETY: LANES numbers from each i on are there, and the caller guarantees the instruction set.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            sum = S::add(sum, S::load(g.as_ptr().add(i)));
        }
        S::sum(sum) + g[whole..].iter().sum::<f32>()
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to += x;
    }
}

fn summed<'a>(lines: impl Iterator<Item = &'a [f32]>, n: usize) -> Vec<f32> {
    let mut sums = vec![0f32; n];
    for line in lines {
        add(&mut sums, line);
    }
    sums
}
